"""The same tests over fakeredis and a real Valkey; faults over the real one only."""

import asyncio
import hashlib
import logging
import math
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import fakeredis
import hiredis
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import NoScriptError, ResponseError

from logpipe.continuity import Cursor, Gap
from logpipe.ids import END, START, StreamId, parse_id
from logpipe.problems import Unavailable
from logpipe.redis_address import RedisAddress
from logpipe.stream import Append, Appended, NoGroupError, RedisHealth, Stream, connections, gap_of
from logpipe.stream.append import MAX_TRANSACTION_EVENTS
from logpipe.stream.pool import MAX_CONNECTIONS, Pool, PooledConnection
from logpipe.stream.scripts import companion_key
from logpipe.stream.stream import PAGE_BYTES
from tests.helpers import fair_time, unmeasured, wait_until
from tests.servers import Valkey, free_port
from tests.streams import (
    MAXLEN,
    NAME,
    add,
    address_of,
    appended,
    event,
    events,
    once,
    plain,
    stream_at,
)

GROUP = "workers"


class FakePool(Pool):
    """A pool over fakeredis, which executes the commands of a transaction one by one."""

    def __init__(self, server: fakeredis.FakeServer) -> None:
        self._client: Any = fakeredis.FakeAsyncRedis(server=server)
        self._client.response_callbacks.clear()  # answers as hiredis reads them

    async def exchange(self, packed: list[bytes], count: int) -> list[Any]:
        reader = hiredis.Reader()
        reader.feed(b"".join(packed))
        commands = [reader.gets() for _ in range(count)]
        assert reader.gets() is False
        if commands[0] != [b"MULTI"]:
            return [await self._answer(command) for command in commands]
        done = [await self._answer(command) for command in commands[1:-1]]
        return [b"OK", *[b"QUEUED" for _ in done], done]

    async def _answer(self, command: list[bytes]) -> Any:
        try:
            return await self._client.execute_command(*command)
        except NoScriptError as error:
            return ResponseError(f"NOSCRIPT {error}")
        except ResponseError as error:
            return error

    async def aclose(self) -> None:
        await self._client.aclose()


@pytest.fixture(params=["fakeredis", "valkey"])
async def stream(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stream]:
    if request.param == "fakeredis":
        server = fakeredis.FakeServer()
        monkeypatch.setattr(
            connections, "client", lambda *_: fakeredis.FakeAsyncRedis(server=server)
        )
        monkeypatch.setattr(connections, "Pool", lambda *_, **__: FakePool(server))
        address = RedisAddress(host="fake")
    else:
        address = address_of(request.getfixturevalue("valkey"))
    async with stream_at(address) as made:
        yield made


@pytest.fixture
async def real(valkey: Valkey) -> AsyncIterator[Stream]:
    async with stream_at(address_of(valkey)) as made:
        yield made


# -- append ----------------------------------------------------------------------------------------


async def test_an_append_of_many_events_keeps_their_order(real: Stream) -> None:
    count = MAX_TRANSACTION_EVENTS + 1
    [done] = await appended(real, Append(events(count), receipt=b"receipt"))
    rows = await real.range(START, END, MAXLEN)
    kept = [entry.event.message for _, entry in rows if entry is not None]
    assert len(kept) == MAXLEN
    [(last, entry)] = await real.range(parse_id(done.last), END, 5)
    assert entry is not None
    assert (str(last), entry.event.message) == (done.last, f"number {count - 1}")
    assert (done.receipt, done.repeated) == (b"receipt", False)
    assert parse_id(done.first) < rows[0][0]


async def test_an_append_keeps_the_order_of_the_events(stream: Stream) -> None:
    [done] = await appended(stream, Append(events(2500)))
    rows = await stream.range(START, END, 5000)
    kept = [entry.event.message for _, entry in rows if entry is not None]
    assert kept == [f"number {n}" for n in range(2500)][-len(kept) :]
    assert len(kept) >= MAXLEN
    ids = [id_ for id_, _ in rows]
    assert ids == sorted(set(ids))
    assert parse_id(done.last) == ids[-1]
    assert parse_id(done.first) <= ids[0]


async def test_requests_that_share_a_call_each_get_their_own_answer(stream: Stream) -> None:
    answers = await appended(
        stream,
        Append(events(2), receipt=b"first"),
        Append(events(1), once("a"), b"second with spaces"),
        Append(events(3), once("b")),
    )
    assert [answer.receipt for answer in answers] == [b"first", b"second with spaces", b""]
    ids = [id_ for id_, _ in await stream.range(START, END, 10)]
    assert len(ids) == 6
    spans = [(parse_id(answer.first), parse_id(answer.last)) for answer in answers]
    assert spans == [(ids[0], ids[1]), (ids[2], ids[2]), (ids[3], ids[5])]
    assert not any(answer.repeated for answer in answers)


async def test_a_request_that_comes_again_adds_nothing_and_gets_the_first_answer(
    stream: Stream,
) -> None:
    [first] = await appended(stream, Append(events(3), once("key"), b"receipt"))
    [again, other] = await appended(
        stream, Append(events(3), once("key"), b"another"), Append(events(1))
    )
    assert again == msgspec.structs.replace(first, repeated=True)
    assert other.first == other.last > first.last
    assert (await stream.bounds()).length == 4


async def test_a_request_that_comes_twice_in_one_call_is_appended_once(stream: Stream) -> None:
    first, second = await appended(
        stream, Append(events(2), once("k")), Append(events(2), once("k"))
    )
    assert second == msgspec.structs.replace(first, repeated=True)
    assert (await stream.bounds()).length == 2


async def test_a_request_without_events_harms_no_other_of_its_call(stream: Stream) -> None:
    one, none, two = await appended(stream, Append(events(1)), Append([]), Append(events(1)))
    assert (await stream.bounds()).length == 2
    assert none == Appended("0-0", "0-0", b"", repeated=False)
    assert one.last < two.last


async def test_an_append_works_after_redis_has_forgotten_the_script(stream: Stream) -> None:
    await add(stream)
    await plain(stream).script_flush()
    await add(stream)
    assert (await stream.bounds()).length == 2


@given(st.text(min_size=1), st.sampled_from(["logs", "{a}logs", "my {logs}", "logs:{x}:y"]))
def test_the_name_of_an_idempotency_key_holds_no_text_of_the_client(key: str, stream: str) -> None:
    name = companion_key(stream, "once", key)
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    assert name.endswith(f":once:{digest}")
    # The part that a Cluster hashes is the same for both.
    assert hash_tag(name) == hash_tag(stream)


def hash_tag(key: str) -> str:
    """What a Cluster hashes of a key's name, as its specification says."""
    _, brace, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    return tag if brace and end and tag else key


async def test_the_stream_is_trimmed_to_about_its_length(stream: Stream) -> None:
    for _ in range(30):
        await stream.append([Append(events(100))])
    assert MAXLEN <= (await stream.bounds()).length <= MAXLEN + 100


async def test_one_append_of_thirty_thousand_events_is_trimmed_too(real: Stream) -> None:
    [done] = await appended(real, Append(events(30_000)))
    bounds = await real.bounds()
    assert bounds.added == 30_000
    assert MAXLEN <= bounds.length <= MAXLEN + 100
    assert bounds.last == parse_id(done.last)


async def test_many_small_appends_after_a_large_one_shorten_the_stream(real: Stream) -> None:
    real._maxlen = 40_000
    await real.append([Append(events(40_000))])
    real._maxlen = MAXLEN
    for _ in range(5):  # one call takes at most 10,000
        await add(real)
    assert (await real.bounds()).length <= MAXLEN + 100


# -- reading ---------------------------------------------------------------------------------------


async def test_a_reader_from_the_start_gets_all_in_pages(stream: Stream) -> None:
    ids = await add(stream, 5)
    seen: list[StreamId] = []
    cursor = Cursor(START)
    for size in (2, 2, 1, 0):
        page = await stream.read(cursor, 2)
        assert page.gap is None
        assert page.unreadable == 0
        assert len(page.entries) == size
        seen += [entry.id for entry in page.entries]
        cursor = page.end
    assert seen == ids
    assert cursor == Cursor(ids[-1], 5)


@pytest.mark.parametrize("verb", ["read", "follow"])
async def test_a_page_of_large_entries_ends_at_its_bytes(stream: Stream, verb: str) -> None:
    large = b'{"source":"api","message":"%b"}' % (b"x" * 60_000)
    appends = [(await stream.append([Append([large])]))[0] for _ in range(40)]
    seen, cursor, pages = list[str](), Cursor(START), 0
    while len(seen) < len(appends):
        page = await getattr(stream, verb)(cursor, 500)
        assert page.gap is None
        assert page.limited == (len(seen) + len(page.entries) < len(appends)) or verb == "follow"
        assert 0 < sum(len(entry.json) for entry in page.entries) < PAGE_BYTES + 2 * len(large)
        seen += [str(entry.id) for entry in page.entries]
        cursor, pages = page.end, pages + 1
    assert seen == [each.first for each in appends if isinstance(each, Appended)]
    assert cursor.position == len(appends)
    assert 8 <= pages <= 10


async def test_a_cursor_keeps_its_position_by_its_own_entry(stream: Stream) -> None:
    ids = await add(stream, 3)
    page = await stream.read(Cursor(ids[0], 1), 10)
    assert page.start == Cursor(ids[0], 1)
    assert page.end == Cursor(ids[2], 3)
    assert (await stream.read(Cursor(ids[0]), 10)).end == Cursor(ids[2])


async def test_a_cursor_whose_entry_is_there_has_missed_nothing(stream: Stream) -> None:
    ids = await add(stream, 10)
    await plain(stream).xtrim(NAME, minid=str(ids[4]), approximate=False)
    page = await stream.read(Cursor(ids[4]), 3)
    assert page.gap is None
    assert [entry.id for entry in page.entries] == ids[5:8]


async def test_what_was_trimmed_is_counted_exactly_by_positions(stream: Stream) -> None:
    ids = await add(stream, 20)
    await plain(stream).xtrim(NAME, maxlen=5, approximate=False)
    page = await stream.read(Cursor(ids[2], 3), 10)
    assert page.gap == Gap("trimmed", ids[2], ids[15], 12, ids[15].before())
    assert [entry.id for entry in page.entries] == ids[15:]
    assert page.end == Cursor(ids[-1], 20)


async def test_what_was_trimmed_is_told_without_a_count_to_a_cursor_without_position(
    stream: Stream,
) -> None:
    ids = await add(stream, 20)
    await plain(stream).xtrim(NAME, maxlen=5, approximate=False)
    page = await stream.read(Cursor(ids[2]), 10)
    assert page.gap == Gap("trimmed", ids[2], ids[15], None, ids[15].before())


async def test_a_cursor_of_what_was_trimmed_last_has_missed_nothing(stream: Stream) -> None:
    ids = await add(stream, 20)
    await plain(stream).xtrim(NAME, maxlen=5, approximate=False)
    page = await stream.read(Cursor(ids[14], 15), 10)
    assert page.gap is None
    assert page.end == Cursor(ids[-1], 20)


async def test_a_gap_over_a_wholly_trimmed_stream_is_told_with_the_next_entry(
    stream: Stream,
) -> None:
    ids = await add(stream, 4)
    await plain(stream).xtrim(NAME, maxlen=0, approximate=False)
    nothing = await stream.read(Cursor(ids[0], 1), 10)
    assert (nothing.gap, nothing.entries, nothing.end) == (None, [], Cursor(ids[0], 1))
    [new] = await add(stream)
    page = await stream.read(nothing.end, 10)
    assert page.gap == Gap("trimmed", ids[0], new, 3, new.before())
    assert (await stream.read(Cursor(ids[-1], 4), 10)).gap is None


async def test_a_flushed_stream_is_told_as_reset_and_read_from_its_beginning(
    stream: Stream,
) -> None:
    old = await add(stream, 5)
    await plain(stream).flushall()
    empty = await stream.read(Cursor(old[-1], 5), 10)
    assert (empty.gap, empty.entries) == (None, [])
    new = await add(stream, 2)
    page = await stream.read(Cursor(old[-1], 5), 10)
    assert page.gap == Gap("reset", old[-1], new[0], None, new[0].before())
    assert [entry.id for entry in page.entries] == new


async def test_ids_behind_the_cursor_are_told_as_reset(stream: Stream) -> None:
    for ms in (5, 6, 7):
        await plain(stream).xadd(NAME, {"event": event()}, id=f"{ms}-0")
    page = await stream.read(Cursor(StreamId(900, 0), 12), 10)
    first = StreamId(5, 0)
    assert page.gap == Gap("reset", StreamId(900, 0), first, None, first.before())
    assert [entry.id.ms for entry in page.entries] == [5, 6, 7]


async def test_an_id_that_the_stream_never_had_is_told_as_reset(stream: Stream) -> None:
    for ms in (5, 6, 7):
        await plain(stream).xadd(NAME, {"event": event()}, id=f"{ms}-0")
    page = await stream.read(Cursor(StreamId(6, 3)), 10)
    assert page.gap is not None
    assert page.gap.reason == "reset"
    assert [entry.id.ms for entry in page.entries] == [5, 6, 7]


async def test_a_position_counts_nothing_where_the_stream_does_not_span_the_witness(
    stream: Stream,
) -> None:
    old = await add(stream, 4)
    await plain(stream).flushall()
    new = await add(stream, 20)
    await plain(stream).xtrim(NAME, maxlen=5, approximate=False)
    trusted = await stream.read(Cursor(old[0], 1), 10)
    assert trusted.gap is not None and trusted.gap.count == 14  # so many, if it were one stream
    page = await stream.read(Cursor(old[0], 1), 10, witness=old[-1])
    assert page.gap == Gap("trimmed", old[0], new[15], None, new[15].before())
    # 15 were trimmed: to a reader of 15 the stream seems to go on right where it was.
    page = await stream.read(Cursor(old[-1], 15), 10, witness=old[-1])
    assert page.gap is not None and page.gap.count is None


async def test_a_reader_who_had_nothing_is_told_when_the_stream_is_another(stream: Stream) -> None:
    old = await add(stream, 4)
    assert (await stream.read(Cursor(START), 10, witness=old[-1])).gap is None
    await plain(stream).flushall()
    [new] = await add(stream)
    page = await stream.read(Cursor(START), 10, witness=old[-1])
    assert page.gap == Gap("reset", START.after(), new, None, new.before())
    assert [entry.id for entry in page.entries] == [new]


async def test_the_bounds_of_no_stream_are_nothing(stream: Stream) -> None:
    bounds = await stream.bounds()
    assert (bounds.first, bounds.last, bounds.added, bounds.length) == (None, START, 0, 0)
    page = await stream.read(Cursor(START), 10)
    assert (page.gap, page.entries) == (None, [])
    assert page.end.id == START


async def test_the_bounds_name_first_last_and_counters(stream: Stream) -> None:
    ids = await add(stream, 10)
    await plain(stream).xtrim(NAME, maxlen=4, approximate=False)
    bounds = await stream.bounds()
    assert bounds == (ids[6], ids[9], 10, 4, START, ids[9])
    await plain(stream).xdel(NAME, str(ids[7]))
    assert (await stream.bounds()).deleted == ids[7]


async def test_entries_that_hold_no_event_are_counted_and_passed(stream: Stream) -> None:
    ids = await add(stream)
    foreign: list[dict[bytes, bytes]] = [
        {b"other": b"field"},
        {b"event": b"\xff\xfe not UTF-8"},
        {b"event": b"[1, 2]"},
        {b"event": b"{" * 3000},
        {b"\xff": b"\xff", b"event": event(7)},
    ]
    ids += [parse_id((await plain(stream).xadd(NAME, fields)).decode()) for fields in foreign]
    page = await stream.read(Cursor(START), 10)
    assert page.unreadable == 4
    assert [entry.id for entry in page.entries] == [ids[0], ids[5]]
    assert page.end == Cursor(ids[5], 6)
    rows = await stream.range(START, END, 10)
    assert [entry is None for _, entry in rows] == [False, True, True, True, True, False]


async def test_a_huge_entry_of_another_writer_is_read(stream: Stream) -> None:
    huge = b'{"source":"api","message":"%b"}' % (b"x" * 3_000_000)
    await plain(stream).xadd(NAME, {"event": huge})
    page = await stream.read(Cursor(START), 10)
    assert len(page.entries[0].event.message) == 3_000_000


async def test_a_range_goes_both_ways_and_includes_both_ends(stream: Stream) -> None:
    ids = await add(stream, 6)
    assert [id_ for id_, _ in await stream.range(ids[1], ids[4], 10)] == ids[1:5]
    newest = await stream.range(ids[1], ids[4], 2, newest_first=True)
    assert [id_ for id_, _ in newest] == [ids[4], ids[3]]


async def test_a_wait_ends_with_the_next_entry(stream: Stream) -> None:
    stream._block_ms = 5000
    [last] = await add(stream)
    waiting = asyncio.create_task(stream.wait(last))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    started = fair_time()
    await add(stream)
    await waiting
    assert fair_time() - started < 1


async def test_a_wait_ends_at_once_when_the_entry_is_there_and_in_time_when_none_comes(
    stream: Stream,
) -> None:
    await add(stream)
    started, fair = time.monotonic(), fair_time()
    await stream.wait(START)
    assert fair_time() - fair < 0.15
    await stream.wait(END)
    assert time.monotonic() - started > 0.15
    assert fair_time() - fair < 2


async def test_following_gives_what_comes_next_and_nothing_when_nothing_comes(
    stream: Stream,
) -> None:
    [last] = await add(stream)
    page = await stream.follow(Cursor(last, 1), 10)
    assert (page.gap, page.entries, page.end) == (None, [], Cursor(last, 1))
    stream._block_ms = 5000
    following = asyncio.create_task(stream.follow(Cursor(last, 1), 10))
    await asyncio.sleep(0.05)
    assert not following.done()
    ids = await add(stream, 3)
    page = await following
    # Woken by the first of them, it may have read before the others came.
    assert page.gap is None
    assert [entry.id for entry in page.entries] == ids[: len(page.entries)]
    assert page.entries
    assert page.end == Cursor(page.entries[-1].id, 1 + len(page.entries))


async def test_following_tells_what_was_trimmed_meanwhile(stream: Stream) -> None:
    [last] = await add(stream)
    await add(stream, 5)
    await plain(stream).xtrim(NAME, maxlen=2, approximate=False)
    page = await stream.follow(Cursor(last, 1), 10)
    assert page.gap is not None
    assert (page.gap.reason, page.gap.count) == ("trimmed", 3)
    assert len(page.entries) == 2


async def test_following_passes_entries_of_other_programs(stream: Stream) -> None:
    [last] = await add(stream)
    await plain(stream).xadd(NAME, {"other": "x", "event": event(7), "more": "y"})
    await plain(stream).xadd(NAME, {"other": "x"})
    page = await stream.follow(Cursor(last, 1), 10)
    assert ([entry.event.message for entry in page.entries], page.unreadable) == (["number 7"], 1)


# -- consumer groups -------------------------------------------------------------------------------


async def test_a_group_is_made_once_and_begins_where_it_was_told(real: Stream) -> None:
    ids = await add(real, 3)
    await real.groups.create(GROUP, ids[0])
    await real.groups.create(GROUP, START)  # it exists: nothing changes
    assert [e.id for e in (await real.groups.read(GROUP, "a", 10)).entries] == ids[1:]
    await real.groups.create("newest", None)
    assert (await real.groups.read("newest", "a", 10)).entries == []


async def test_a_group_can_be_made_before_the_stream(real: Stream) -> None:
    await real.groups.create(GROUP, None)
    ids = await add(real, 2)
    assert [e.id for e in (await real.groups.read(GROUP, "a", 10)).entries] == ids


async def test_each_entry_of_a_group_goes_to_one_consumer_until_it_is_acknowledged(
    real: Stream,
) -> None:
    ids = await add(real, 4)
    await real.groups.create(GROUP, START)
    first = await real.groups.read(GROUP, "a", 3)
    second = await real.groups.read(GROUP, "b", 3)
    assert [e.id for e in first.entries] == ids[:3]
    assert [e.id for e in second.entries] == ids[3:]
    assert await real.groups.pending(GROUP) == 4
    await real.groups.acknowledge(GROUP, ids[:2])
    assert await real.groups.pending(GROUP) == 2
    own = await real.groups.history(GROUP, "a", 10, START)
    assert [e.id for e in own.entries] == [ids[2]]
    assert not (await real.groups.history(GROUP, "a", 10, ids[2])).entries


async def test_a_dead_consumer_s_entries_are_claimed_when_they_have_been_idle(
    real: Stream,
) -> None:
    ids = await add(real, 3)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "dead", 10)
    assert not (await real.groups.claim(GROUP, "live", 60_000, 10)).entries
    await asyncio.sleep(0.03)
    claimed = await real.groups.claim(GROUP, "live", 20, 10)
    assert [e.id for e in claimed.entries] == ids
    assert claimed.end == START
    own = await real.groups.history(GROUP, "live", 10, START)
    assert [e.id for e in own.entries] == ids


async def test_kept_entries_are_not_claimed_by_others(real: Stream) -> None:
    ids = await add(real, 2)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "slow", 10)
    await asyncio.sleep(0.05)
    await real.groups.keep(GROUP, "slow", ids[:1])
    claimed = await real.groups.claim(GROUP, "other", 50, 10)
    assert [e.id for e in claimed.entries] == ids[1:]


async def test_released_entries_are_claimed_at_once(real: Stream) -> None:
    ids = await add(real, 3)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "leaving", 10)
    await real.groups.release(GROUP, "leaving", ids[:2])
    claimed = await real.groups.claim(GROUP, "other", 10**12, 10)
    assert [e.id for e in claimed.entries] == ids[:2]


async def test_claimed_entries_that_were_trimmed_are_named_as_lost(real: Stream) -> None:
    ids = await add(real, 5)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "dead", 10)
    await plain(real).xtrim(NAME, maxlen=2, approximate=False)
    claimed = await real.groups.claim(GROUP, "live", 0, 10)
    assert claimed.lost == ids[:3]
    assert [e.id for e in claimed.entries] == ids[3:]
    assert await real.groups.pending(GROUP) == 2


async def test_own_pending_entries_that_were_trimmed_are_named_as_lost(real: Stream) -> None:
    ids = await add(real, 3)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "a", 10)
    await plain(real).xtrim(NAME, maxlen=1, approximate=False)
    own = await real.groups.history(GROUP, "a", 10, START)
    assert own.lost == ids[:2]
    assert [e.id for e in own.entries] == ids[2:]


async def test_entries_of_a_group_that_hold_no_event_are_named(real: Stream) -> None:
    await real.groups.create(GROUP, START)
    junk = parse_id((await plain(real).xadd(NAME, {"x": b"\xff"})).decode())
    [good] = await add(real)
    claimed = await real.groups.read(GROUP, "a", 10)
    assert claimed.unreadable == [junk]
    assert [e.id for e in claimed.entries] == [good]
    again = await real.groups.claim(GROUP, "b", 0, 10)
    assert again.unreadable == [junk]


async def test_claims_reach_entries_behind_many_that_are_not_idle(real: Stream) -> None:
    ids = await add(real, 60)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "live", 50)
    await real.groups.read(GROUP, "dead", 10)
    await real.groups.release(GROUP, "dead", ids[50:])
    found: list[StreamId] = []
    after = START
    for _ in range(20):  # redis looks at ten times the count a call
        claimed = await real.groups.claim(GROUP, "other", 60_000, 1, after=after)
        found += [entry.id for entry in claimed.entries]
        after = claimed.end
    assert found == ids[50:]


async def test_a_group_that_is_gone_is_an_error_of_its_own(real: Stream) -> None:
    await real.groups.create(GROUP, None)
    await plain(real).flushall()
    with pytest.raises(NoGroupError):
        await real.groups.read(GROUP, "a", 10)
    with pytest.raises(NoGroupError):
        await real.groups.claim(GROUP, "a", 0, 10)
    [id_] = await add(real)
    with pytest.raises(NoGroupError):
        await real.groups.keep(GROUP, "a", [id_])
    assert real.health.kind == "connecting"  # no trouble of Redis


async def test_kept_entries_that_are_trimmed_stay_for_the_claim_that_names_them(
    real: Stream,
) -> None:
    ids = await add(real, 3)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "slow", 10)
    await plain(real).xtrim(NAME, maxlen=1, approximate=False)
    await real.groups.keep(GROUP, "slow", ids)
    assert await real.groups.pending(GROUP) == 3
    assert (await real.groups.claim(GROUP, "other", 0, 10)).lost == ids[:2]


async def test_entries_trimmed_before_release_stay_for_the_claim_that_names_them(
    real: Stream,
) -> None:
    ids = await add(real, 4)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "leaving", 10)
    await plain(real).xtrim(NAME, maxlen=1, approximate=False)
    await real.groups.release(GROUP, "leaving", ids)
    assert await real.groups.pending(GROUP) == 4
    claimed = await real.groups.claim(GROUP, "other", 0, 10)
    assert claimed.lost == ids[:3]
    assert [e.id for e in claimed.entries] == ids[3:]


@pytest.mark.parametrize("since", ["start", "newest", "before"])
async def test_what_was_trimmed_before_a_group_read_it_is_counted_once(
    real: Stream, since: str
) -> None:
    before = await add(real, 3)
    start = {"start": START, "newest": None, "before": before[0].before()}[since]
    await real.groups.create(GROUP, start)
    first = await real.groups.read(GROUP, "a", 10)
    assert not first.losses
    assert first.end == before[-1]
    for missed in (5, 2):  # twice, because Redis' own count goes wrong with the first time
        ids = await add(real, missed + 2)
        await plain(real).xtrim(NAME, maxlen=2, approximate=False)
        read = await real.groups.read(GROUP, "a", 1)
        again = await real.groups.read(GROUP, "b", 10)
        assert [e.id for e in (*read.entries, *again.entries)] == ids[-2:]
        assert not again.losses
        [gap] = map(gap_of, read.losses)
        assert (gap.reason, gap.count) == ("trimmed", missed)
        assert gap.after < ids[0]
        assert gap.before == ids[-2]
        assert gap.resume == gap.before.before()


async def test_a_group_that_begins_with_what_is_kept_misses_nothing(real: Stream) -> None:
    await add(real, 5)
    await plain(real).xtrim(NAME, maxlen=2, approximate=False)
    await real.groups.create(GROUP, START)
    read = await real.groups.read(GROUP, "a", 10)
    assert len(read.entries) == 2
    assert not read.losses


async def test_consumers_without_pending_entries_are_swept_when_they_were_idle(
    real: Stream,
) -> None:
    await add(real, 2)
    await real.groups.create(GROUP, START)
    await real.groups.read(GROUP, "holds", 1)
    done = await real.groups.read(GROUP, "done", 1)
    await real.groups.acknowledge(GROUP, [e.id for e in done.entries])
    await real.groups.read(GROUP, "own", 1)
    assert await real.groups.sweep(GROUP, "own", 60_000) == 0
    await asyncio.sleep(0.02)
    assert await real.groups.sweep(GROUP, "own", 10) == 1
    left = {each["name"] for each in await plain(real).xinfo_consumers(NAME, GROUP)}
    assert left - {b"own"} == {b"holds"}
    await real.groups.leave(GROUP, "holds")
    assert await real.groups.pending(GROUP) == 1
    await real.groups.leave(GROUP, "own")
    assert [c["name"] for c in await plain(real).xinfo_consumers(NAME, GROUP)] == [b"holds"]


async def test_a_name_is_held_by_one_holder_until_its_lease_ends(real: Stream) -> None:
    assert await real.groups.hold("dist-1", "one", 60_000)
    assert await real.groups.hold("dist-1", "one", 50)
    assert not await real.groups.hold("dist-1", "two", 50)
    await real.groups.let_go("dist-1", "two")
    await wait_until(lambda: real.groups.hold("dist-1", "two", 60_000), "the lease has ended")
    await real.groups.let_go("dist-1", "two")
    assert await real.groups.hold("dist-1", "one", 60_000)


# -- errors ----------------------------------------------------------------------------------------


async def refusal(stream: Stream) -> Unavailable:
    """The error of an append."""
    with pytest.raises(Unavailable) as caught:
        await stream.append([Append(events(1))])
    assert stream.health.kind == caught.value.kind
    assert caught.value.status == 503
    return caught.value


def kind_of(stream: Stream) -> str:
    return stream.health.kind


@contextmanager
def lines_of_health(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    lines: list[str] = []
    with caplog.at_level(logging.INFO, "logpipe.redis"):
        yield lines
    lines += [record.getMessage() for record in caplog.records if record.name == "logpipe.redis"]


async def test_a_redis_that_is_not_there_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for address in (
        RedisAddress(socket=str(tmp_path / "no.sock"), password="s3cr/#t@"),
        RedisAddress(host="127.0.0.1", port=free_port(), password="s3cr/#t@"),
    ):
        caplog.clear()
        async with stream_at(address) as stream:
            with lines_of_health(caplog) as lines:
                started = fair_time()
                error = await refusal(stream)
                assert fair_time() - started < 1
                await refusal(stream)
                with pytest.raises(Unavailable):
                    await stream.read(Cursor(START), 1)
            assert error.kind == "away"
            assert error.reason == "cannot be reached"
            assert lines == [f"Redis at {address}: {error.reason}; trying on"]
            assert "s3cr" not in str(error) + repr(error) + caplog.text


async def test_an_embedded_engine_s_own_trouble_says_more_than_its_socket(tmp_path: Path) -> None:
    address = RedisAddress(socket=str(tmp_path / "no.sock"))
    async with stream_at(address, trouble=lambda: "the disk is full") as stream:
        error = await refusal(stream)
    assert (error.kind, error.reason) == ("away", "the disk is full")


async def test_a_wrong_password_is_named_and_not_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Valkey.started("--save", "") as server:
        server.client.config_set("requirepass", "right-one")
        for password in ("s3cr/#t@", None):
            caplog.clear()
            async with stream_at(address_of(server, password=password)) as stream:
                with lines_of_health(caplog) as lines:
                    error = await refusal(stream)
                    assert error.kind == "auth"
                    before = tries(server)
                    for _ in range(20):
                        await refusal(stream)
                    assert tries(server) == before
                assert len(lines) == 1
                assert "s3cr" not in str(error) + repr(error) + caplog.text


def tries(server: Valkey) -> int:
    """How many connections a server has seen, whether it let them in or not."""
    client = server.client
    client.connection_pool.connection_kwargs["password"] = "right-one"
    info: dict[str, Any] = client.info("stats")
    return int(info["total_connections_received"])


async def test_a_password_for_a_server_without_one_is_refused_in_plain_words(
    valkey: Valkey,
) -> None:
    async with stream_at(address_of(valkey, username="nobody", password="s3cr/#t@")) as stream:
        error = await refusal(stream)
    assert error.kind == "auth"
    assert "s3cr" not in str(error) + error.reason


async def test_the_monitor_recovers_from_a_refused_login(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    acl(valkey, "SETUSER", "shipper", "on", ">old", "~*", "+@all")
    try:
        async with stream_at(address_of(valkey, username="shipper", password="new")) as stream:
            monitor = asyncio.create_task(stream.monitor())
            await wait_until(lambda: stream.health.kind == "auth", "the login is refused")
            acl(valkey, "SETUSER", "shipper", ">new")
            await wait_until(lambda: stream.health.kind == "ok", "the login is taken")
            assert await add(stream)
            await stop(monitor)
    finally:
        acl(valkey, "DELUSER", "shipper")


def acl(server: Valkey, *words: str) -> None:
    client: Any = server.client
    client.execute_command("ACL", *words)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def test_the_size_of_the_stream_is_known_to_who_may_ask(valkey: Valkey) -> None:
    acl(valkey, "SETUSER", "frugal", "on", ">pw", "~*", "+@all", "-memory", "-info")
    try:
        async with stream_at(address_of(valkey)) as stream:
            assert await stream.size() == 0
            await add(stream, 100)
            await stream._monitor.check()
            assert await stream.size() > 1000
            assert stream.memory.used > 100_000
            assert stream.memory.limit == 0
        async with stream_at(address_of(valkey, username="frugal", password="pw")) as stream:
            await stream._monitor.check()
            assert math.isnan(await stream.size())
            assert math.isnan(stream.memory.used)
            assert stream.health.kind == "ok"
    finally:
        acl(valkey, "DELUSER", "frugal")


async def test_what_redis_evicts_and_keeps_is_known_to_who_may_ask(valkey: Valkey) -> None:
    acl(valkey, "SETUSER", "frugal", "on", ">pw", "~*", "+@all", "-info")
    try:
        async with stream_at(address_of(valkey)) as stream:
            for policy, evicts in (("allkeys-lru", 1), ("volatile-lru", 0), ("noeviction", 0)):
                valkey.client.config_set("maxmemory-policy", policy)
                await stream._monitor.check()
                assert stream.keeping == (evicts, 0)
        async with stream_at(address_of(valkey, username="frugal", password="pw")) as stream:
            await stream._monitor.check()
            assert all(map(math.isnan, stream.keeping))
    finally:
        acl(valkey, "DELUSER", "frugal")


async def test_a_user_without_permission_is_told_as_such(valkey: Valkey) -> None:
    acl(valkey, "SETUSER", "reader", "on", ">pw", "~*", "+@all", "-evalsha", "-eval", "-xadd")
    try:
        async with stream_at(address_of(valkey, username="reader", password="pw")) as stream:
            error = await refusal(stream)
            assert error.kind == "auth"
            assert "may not use" in error.reason
    finally:
        acl(valkey, "DELUSER", "reader")


async def test_a_user_who_may_run_scripts_but_not_add_is_told_the_same(valkey: Valkey) -> None:
    acl(valkey, "SETUSER", "half", "on", ">pw", "~*", "+@all", "-xadd")
    try:
        async with stream_at(address_of(valkey, username="half", password="pw")) as stream:
            assert (await refusal(stream)).kind == "auth"
    finally:
        acl(valkey, "DELUSER", "half")


async def test_a_key_of_another_type_is_named_and_left_alone(
    valkey: Valkey, real: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.client.set(NAME, "somebody's")
    with lines_of_health(caplog) as lines:
        error = await refusal(real)
        with pytest.raises(Unavailable):
            await real.read(Cursor(START), 1)
        with pytest.raises(Unavailable):
            await real.wait(START)
        with pytest.raises(Unavailable):
            await real._monitor.check()
        assert real.health.kind == "wrong-type"
    assert error.kind == "wrong-type"
    assert f"the key {NAME}" in error.reason
    assert len(lines) == 1
    assert valkey.client.get(NAME) == b"somebody's"


async def test_a_full_redis_refuses_writes_serves_readers_and_recovers(
    valkey: Valkey, real: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await add(real, 3)
    await real.groups.create(GROUP, START)
    await real._monitor.check()
    with lines_of_health(caplog) as lines:
        valkey.client.config_set("maxmemory", "1mb")
        error = await refusal(real)
        await refusal(real)
        with pytest.raises(Unavailable):
            await real._monitor.check()
        assert error.kind == kind_of(real) == "full"
        assert real.health.serves(writes=False)
        assert not real.health.serves(writes=True)
        assert len((await real.read(Cursor(START), 10)).entries) == 3
        assert len((await real.groups.read(GROUP, "a", 10)).entries) == 3
        await real.groups.acknowledge(GROUP, ids)
        assert await real.groups.pending(GROUP) == 0
        valkey.client.config_set("maxmemory", "0")
        await add(real)
        await real._monitor.check()
        assert kind_of(real) == "ok"
    assert len(lines) == 2, lines


async def test_what_a_full_redis_refused_is_not_in_the_stream(valkey: Valkey, real: Stream) -> None:
    valkey.client.config_set("maxmemory", "1mb")
    with pytest.raises(Unavailable):
        await real.append([Append(events(100), once("a")), Append(events(100))])
    valkey.client.config_set("maxmemory", "0")
    assert (await real.bounds()).length == 0
    [done] = await appended(real, Append(events(1), once("a")))
    assert not done.repeated


async def test_a_read_only_replica_refuses_writes_and_serves_readers(valkey: Valkey) -> None:
    with Valkey.started("--save", "") as replica, stream_port(valkey) as port:
        async with stream_at(address_of(replica)) as stream:
            await add(stream)
            replica.client.replicaof("127.0.0.1", port)
            error = await refusal(stream)
            assert error.kind == "read-only"
            with pytest.raises(Unavailable):
                await stream._monitor.check()
            assert kind_of(stream) == "read-only"
            assert stream.health.serves(writes=False)
            await stream.bounds()
            replica.client.replicaof("no", "one")
            await stream._monitor.check()
            assert kind_of(stream) == "ok"


@contextmanager
def stream_port(server: Valkey) -> Iterator[int]:
    """A TCP port of a server that has none so far."""
    port = free_port()
    server.client.config_set("port", port)
    try:
        yield port
    finally:
        server.client.config_set("port", 0)


async def test_a_large_append_is_awaited_longer_than_its_request(own_valkey: Valkey) -> None:
    async with stream_at(address_of(own_valkey)) as stream:
        many = Append(events(MAX_TRANSACTION_EVENTS + 1))
        await appended(stream, many)
        await appended(stream, Append(events(1)))
        own_valkey.signal(signal.SIGSTOP)
        try:
            large = asyncio.create_task(appended(stream, many))
            await refusal(stream)
            assert not large.done()
        finally:
            own_valkey.signal(signal.SIGCONT)
        [done] = await large
        assert parse_id(done.first) < parse_id(done.last)


async def test_a_frozen_redis_fails_a_write_within_two_seconds(own_valkey: Valkey) -> None:
    async with stream_at(address_of(own_valkey)) as stream:
        await add(stream)
        own_valkey.signal(signal.SIGSTOP)
        started = fair_time()
        error = await refusal(stream)
        fresh = await refusal(stream)  # a connection that was never open fails as fast
        took = fair_time() - started
        own_valkey.signal(signal.SIGCONT)
        assert error.kind == fresh.kind == "away"
        assert error.reason.startswith("no answer")
        assert took < 4
        assert await add(stream)


async def test_a_connection_that_the_server_closed_while_idle_is_renewed(
    valkey: Valkey, real: Stream
) -> None:
    redis = real._redis
    for _ in range(20):
        await add(real)
        await real.wait(START)
        valkey.client.client_kill_filter(_type="normal", skipme=True)
        idle = list(redis.writing.connection_pool._available_connections)
        ours = [*redis.appending._idle, *redis.reading._idle, *redis.blocking._idle]
        assert len(ours) == 3
        await wait_until(partial(all_closed, idle), "the end of the connections is seen")
        await wait_until(partial(all_lost, ours), "so is that of the pools' connections")
        await add(real)
        await real.wait(START)
    assert (await real.bounds()).length == 40


def all_lost(connections: list[PooledConnection]) -> bool:
    """Whether the other side has ended these idle connections of pools."""
    return all(each.lost for each in connections)


def all_closed(connections: list[Any]) -> bool:
    """Whether the other side has ended these idle connections of redis-py."""
    return all(each._reader is None or each._reader.at_eof() for each in connections)


@pytest.mark.parametrize("password", [None, "p"])
async def test_a_redis_without_a_connection_left_is_told_as_such(password: str | None) -> None:
    """Also where it closes the connection after one word, though it was asked for several."""
    with Valkey.started("--save", "", "--maxclients", "1") as server, stream_port(server) as port:
        address = RedisAddress(host="127.0.0.1", port=port, password=password)
        async with stream_at(address) as stream:
            server.client.config_set("requirepass", password or "")

            async def told() -> bool:  # a reset may come before the word
                return (await refusal(stream)).kind == "clients"

            await wait_until(told, "the server says that it is full")
            server.client.config_set("maxclients", 100)
            assert await add(stream)


async def test_a_read_that_is_cut_off_is_unavailable_and_the_next_one_works(
    valkey: Valkey, real: Stream
) -> None:
    real._block_ms = 5000
    waiting = asyncio.create_task(real.wait(END))
    await wait_until(
        lambda: any(client["cmd"] == "xread" for client in valkey.client.client_list()),
        "the read is under way",
    )
    valkey.client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(Unavailable):
        await waiting
    await add(real)
    await real.wait(START)


async def test_a_cancelled_command_leaves_no_answer_for_the_next(real: Stream) -> None:
    [first, *_] = await add(real, 3)
    for delay in range(30):
        reading = asyncio.create_task(real.read(Cursor(START), 2))
        for _ in range(delay):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait((reading,))
        assert (await real.bounds()).first == first


async def test_a_task_that_is_cancelled_within_a_command_ends(real: Stream) -> None:
    """asyncio's `wait_for` of Python 3.11 swallows some cancellations."""
    await add(real)

    async def endless(verb: Callable[[], Awaitable[object]]) -> None:
        while True:
            with suppress(Unavailable):
                await verb()

    for verb in (
        partial(real.read, Cursor(START), 1),
        partial(real.wait, START),
        partial(real.append, [Append(events(1))]),
        real._monitor.check,
    ):
        for turns in range(60):
            task = asyncio.create_task(endless(verb))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,), timeout=2)
            assert task.cancelled()
    redis = real._redis
    assert not redis.writing.connection_pool._in_use_connections
    for pool in (redis.appending, redis.reading, redis.blocking):
        assert pool._free._value == MAX_CONNECTIONS


async def test_more_readers_than_connections_are_all_answered(real: Stream) -> None:
    await add(real, 2)
    with unmeasured():
        asked = [real.read(Cursor(START), 10) for _ in range(3 * MAX_CONNECTIONS)]
        pages = await asyncio.gather(*asked)
    assert {len(page.entries) for page in pages} == {2}
    assert real.health.kind == "connecting"


class Scripted:
    """A server that greets a client as Redis does and answers all else with one error."""

    def __init__(self, error: bytes) -> None:
        self.error = error

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        while head := await reader.readline():
            words = []
            for _ in range(int(head[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            greeting = words[0] in (b"CLIENT", b"SELECT")
            writer.write(b"+OK\r\n" if greeting else b"-%b\r\n" % self.error)
        writer.close()


ERRORS = [
    (b"LOADING server is loading the dataset in memory", "away", "loading its data"),
    (b"ERR max number of clients reached", "clients", "no connection left"),
    (b"OOM command not allowed when used memory > 'maxmemory'.", "full", "out of memory"),
    (b"OOM allow-oom flag is not set on the script", "full", "out of memory"),
    (b"READONLY You can't write against a read only replica.", "read-only", "replica"),
    (b"MISCONF Errors writing to the AOF file: No space left", "disk", "disk"),
    (b"NOREPLICAS Not enough good replicas to write.", "read-only", "too few replicas"),
    (b"NOAUTH Authentication required.", "auth", "password"),
    (b"WRONGPASS invalid username-password pair", "auth", "refused"),
    (b"NOPERM this user has no permissions to run 'evalsha'", "auth", "may not use"),
    (b"WRONGTYPE Operation against a key", "wrong-type", f"the key {NAME}"),
    (b"ERR something that nobody has heard of", "error", "nobody has heard of"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), ERRORS, ids=[kind for _, kind, _ in ERRORS])
async def test_every_error_of_redis_is_unavailable_with_its_kind(
    answer: bytes, kind: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.sock"
    server = await asyncio.start_unix_server(Scripted(answer), path)
    async with server, stream_at(RedisAddress(socket=str(path))) as stream:
        with lines_of_health(caplog) as lines:
            for verb in (
                stream.append([Append(events(1))]),
                stream.read(Cursor(START), 1),
                stream.range(START, END, 1),
                stream.wait(START),
                stream.groups.create(GROUP, None),
                stream.groups.read(GROUP, "a", 1),
                stream.groups.acknowledge(GROUP, [START]),
                stream.groups.claim(GROUP, "a", 0, 1),
                stream._monitor.check(),
            ):
                with pytest.raises(Unavailable) as caught:
                    await verb
                assert (caught.value.kind, words in caught.value.reason) == (kind, True)
        assert len(lines) == 1
        assert stream.health.unavailable().kind == kind


async def test_a_server_that_repeats_what_it_was_asked_shows_neither_password_nor_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.sock"
    said = b"ERR unknown command 'AUTH', with args beginning with: 'default' 's3cret' "
    server = await asyncio.start_unix_server(Scripted(said), path)
    address = RedisAddress(socket=str(path), password="s3cret")
    async with server, stream_at(address) as stream:
        for verb in (stream.append([Append(events(1))]), stream._monitor.check()):
            with pytest.raises(Unavailable) as caught:
                await verb
            assert caught.value.reason.removeprefix("ERR ") == "unknown command 'AUTH'"
    assert "s3cret" not in caplog.text


async def test_health_tells_of_a_change_once_and_wakes_who_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = RedisHealth("here")
    with lines_of_health(caplog) as lines:
        waiting = asyncio.create_task(health.recovered(10))
        health.report("away", "gone")
        health.report("away", "still gone")
        assert health.detail == "still gone"
        await asyncio.sleep(0)
        assert not waiting.done()
        health.report("ok")
        health.report("ok")
        await asyncio.wait_for(waiting, 10)
        health.report("full", "no room")
    assert lines == [
        "Redis at here: gone; trying on",
        "Redis is ready",
        "Redis at here: no room; trying on",
    ]
    started, fair = time.monotonic(), fair_time()
    await health.recovered(0.05)
    assert time.monotonic() - started > 0.04
    assert fair_time() - fair < 1
