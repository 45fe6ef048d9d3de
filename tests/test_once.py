"""Idempotency keys in Redis: what is kept, for how long, and the memory that it may take."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from logpipe.stream import RECEIPT_BYTES, Append, Appended, Declined, KeyLimits, Once, Rule, Stream
from logpipe.stream.once import KEY_OVERHEAD_BYTES, KEY_TTL_S, MAX_BODIES, VALUE_BYTES
from logpipe.stream.scripts import companion_key
from tests.helpers import wait_until
from tests.servers import Valkey
from tests.streams import MAXLEN, NAME, address_of, appended, events, once, stream_at

COUNTER = "{logs}:once:bytes"
MIB = 1024 * 1024


@pytest.fixture
async def real(valkey: Valkey) -> AsyncIterator[Stream]:
    async with stream_at(address_of(valkey)) as made:
        yield made


async def outcome(stream: Stream, key: Once, receipt: bytes = b"") -> Appended | Declined:
    """What becomes of one event under a key."""
    (done,) = await stream.append([Append(events(1), key, receipt)])
    return done


async def stored(stream: Stream, key: Once) -> bool:
    """Whether an event under this key was added."""
    (done,) = await appended(stream, Append(events(1), key))
    return not done.repeated


async def fill(stream: Stream) -> int:
    """Takes keys until one has no room; how many had."""
    for number in range(10_000):
        if await outcome(stream, once(f"fill {number}")) is Declined.NO_ROOM:
            return number
    raise AssertionError("the memory of keys has no bound")


def value(server: Valkey, key: str) -> bytes:
    found = server.client.get(companion_key(NAME, "once", key))
    assert isinstance(found, bytes)
    return found


def counted(server: Valkey) -> int:
    """The bytes that keys take, as they are counted."""
    found = server.client.get(COUNTER)
    assert isinstance(found, bytes)
    return sum(map(int, found.split()[1::2]))


# -- what another body means -----------------------------------------------------------------------


async def test_another_body_under_a_key_is_declined(real: Stream) -> None:
    first = await outcome(real, once("k", b"one"))
    assert await outcome(real, once("k", b"two")) is Declined.OTHER_BODY
    again = await outcome(real, once("k", b"one"))
    assert isinstance(first, Appended)
    assert again == msgspec.structs.replace(first, repeated=True)
    assert (await real.bounds()).length == 1


async def test_what_is_declined_takes_no_neighbour_along(real: Stream) -> None:
    await outcome(real, once("k", b"one"))
    before, declined, after = await real.append(
        [Append(events(2)), Append(events(1), once("k", b"two")), Append(events(1), once("l"))]
    )
    assert declined is Declined.OTHER_BODY
    assert isinstance(before, Appended)
    assert isinstance(after, Appended)
    assert (await real.bounds()).length == 4


async def test_each_body_of_a_key_may_be_stored_once(real: Stream) -> None:
    bodies = [b"%d" % number for number in range(MAX_BODIES)]
    for stores in (True, False):
        for body in bodies:
            assert await stored(real, once("k", body, Rule.STORE)) is stores
    assert (await real.bounds()).length == MAX_BODIES


async def test_of_more_bodies_the_oldest_is_no_longer_known(valkey: Valkey, real: Stream) -> None:
    for number in range(MAX_BODIES + 1):
        assert await stored(real, once("k", b"%d" % number, Rule.STORE))
    assert not await stored(real, once("k", b"1", Rule.STORE))
    assert await stored(real, once("k", b"0", Rule.STORE))
    assert len(value(valkey, "k")) < VALUE_BYTES


async def test_a_key_may_be_known_whatever_the_body(real: Stream) -> None:
    assert await stored(real, once("k", b"one", Rule.STORE))
    assert not await stored(real, once("k", b"two", Rule.IGNORE))
    assert await stored(real, once("l", b"one", Rule.IGNORE))
    assert not await stored(real, once("l", b"one", Rule.STORE))


# -- how long, and how much ------------------------------------------------------------------------


async def test_an_idempotency_key_is_kept_for_ten_minutes(valkey: Valkey, real: Stream) -> None:
    await stored(real, once("k"))
    assert KEY_TTL_S == 600
    left: Any = valkey.client.ttl(companion_key(NAME, "once", "k"))
    assert 595 <= left <= 600


async def test_the_largest_receipt_fits_into_a_kilobyte(valkey: Valkey, real: Stream) -> None:
    valkey.client.xadd(NAME, {"event": "x"}, id=f"{2**64 - 2}-{2**64 - 100}")
    await outcome(real, once("k"), b"r" * RECEIPT_BYTES)
    assert 900 < len(value(valkey, "k")) <= VALUE_BYTES


async def test_what_keys_take_is_not_more_than_what_is_counted(own_valkey: Valkey) -> None:
    """In batches, so that no buffer of a connection counts for much."""
    async with stream_at(address_of(own_valkey), maxlen=1) as stream:
        await stream.append([Append(events(1), once("first"))])
        used = int(own_valkey.client.info("memory")["used_memory"])
        before = counted(own_valkey)
        for batch in range(20):
            requests = [Append([], once(f"{batch} {n}"), b"r" * 20) for n in range(1000)]
            await stream.append(requests)
        taken = int(own_valkey.client.info("memory")["used_memory"]) - used
        estimate = counted(own_valkey) - before
    assert taken <= estimate + 256 * 1024
    assert estimate <= taken * 1.5


def test_keys_may_take_a_twentieth_of_the_memory_of_redis() -> None:
    limits = KeyLimits()
    assert limits.bound(1000 * MIB) == 50 * MIB
    assert limits.bound(0) == limits.bound(math.nan) == 64 * MIB


async def test_a_new_maxmemory_is_obeyed(own_valkey: Valkey) -> None:
    async with stream_at(address_of(own_valkey), keys=KeyLimits(percent=0.02)) as stream:
        await stream._monitor.check()
        assert await stored(stream, once("without"))
        own_valkey.client.config_set("maxmemory", 50 * MIB)
        await stream._monitor.check()
        few = await fill(stream)
        assert 20 < few < 40
        own_valkey.client.config_set("maxmemory", 100 * MIB)
        await stream._monitor.check()
        assert few * 1.8 < await fill(stream) < few * 2.6


async def test_keys_fill_their_memory_and_no_more(valkey: Valkey) -> None:
    bound = 20_000
    async with stream_at(address_of(valkey), keys=KeyLimits(bytes=bound)) as stream:
        number = await fill(stream)
        size = len(companion_key(NAME, "once", "x")) + KEY_OVERHEAD_BYTES
        assert counted(valkey) == sum(
            size + len(value(valkey, f"fill {each}")) for each in range(number)
        )
        assert bound - size - 200 < counted(valkey) <= bound
        assert (await stream.bounds()).length == number


async def test_without_room_known_keys_and_events_without_one_go_on(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey), keys=KeyLimits(bytes=2_000)) as stream:
        number = await fill(stream)
        assert number > 2
        plain, known, new = await stream.append(
            [Append(events(1)), Append(events(1), once("fill 0")), Append(events(1), once("new"))]
        )
        assert isinstance(plain, Appended)
        assert isinstance(known, Appended)
        assert (plain.repeated, known.repeated) == (False, True)
        assert new is Declined.NO_ROOM
        assert (await stream.bounds()).length == number + 1


async def test_keys_make_room_as_they_expire_and_not_before(valkey: Valkey) -> None:
    limits = KeyLimits(ttl_ms=1_000, bytes=2_000)
    async with stream_at(address_of(valkey), keys=limits) as stream:
        number = await fill(stream)
        while await outcome(stream, once("new")) is Declined.NO_ROOM:
            await asyncio.sleep(0.01)
        assert not valkey.client.exists(companion_key(NAME, "once", "fill 0"))
        assert number > 2


async def test_a_key_that_is_written_again_is_counted_as_one(valkey: Valkey, real: Stream) -> None:
    await stored(real, once("k", b"0", Rule.STORE))
    for number in range(1, MAX_BODIES):
        await stored(real, once("k", b"%d" % number, Rule.STORE))
    grown = len(value(valkey, "k")) + len(companion_key(NAME, "once", "k")) + KEY_OVERHEAD_BYTES
    assert grown <= counted(valkey) <= 2 * grown  # twice where a minute ends meanwhile


async def test_the_count_goes_with_the_last_key(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey), keys=KeyLimits(ttl_ms=200)) as stream:
        await stored(stream, once("k"))
        await wait_until(lambda: not valkey.client.keys("*once*"), "all has expired")


async def test_a_long_append_under_a_key_trims_to_its_end(real: Stream) -> None:
    """A trim takes 10,000 entries at the most, so one at the end is not enough."""
    await appended(real, Append(events(27_500), once("k")))
    bounds = await real.bounds()
    assert bounds.added == 27_500
    assert MAXLEN <= bounds.length <= MAXLEN + 100


async def test_events_without_a_key_leave_nothing_beside_the_stream(
    valkey: Valkey, real: Stream
) -> None:
    await real.append([Append(events(3)), Append(events(2))])
    assert not valkey.client.keys("{logs}:once:*")
