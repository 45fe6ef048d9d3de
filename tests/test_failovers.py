"""What is known of failovers, and what follows from it."""

import asyncio
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from logpipe.continuity import Cursor, Gap
from logpipe.fanout.hub import Hub
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import EVERYTHING
from logpipe.ids import StreamId
from logpipe.messages import Batch, Item, Start
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.redis_address import Node, RedisAddress
from logpipe.stream import Stream
from logpipe.stream.failovers import (
    KEPT,
    NOTE,
    Failovers,
    Topology,
    failovers_key,
    gap_before,
    replication_id,
)
from logpipe.stream.replicas import in_sync
from tests.deployments import MASTER, Deployment
from tests.fake_sentinel import FakeSentinel
from tests.helpers import wait_until
from tests.servers import Valkey
from tests.streams import NAME, add, address_of, running, stream_at

ID = b"a" * 40


def an_id(ms: int) -> StreamId:
    return StreamId(ms, 0)


def answer(*ends: int, done: int = 1) -> list[Any]:
    """What `NOTE` returns."""
    return [done, ID, [b"%d-0" % end for end in ends]]


def test_an_end_that_becomes_known_begins_an_era() -> None:
    known = Failovers("logs", "sentinel")
    assert known.noted(answer())
    assert (known.era, known.parted_since(0)) == (0, None)
    assert known.noted(answer(7))
    assert (known.era, known.parted_since(0), known.parted_since(1)) == (1, an_id(7), None)
    assert known.noted(answer(7))
    assert known.era == 1
    known.noted(answer(7, 8, 9))
    assert (known.era, known.parted_since(0), known.parted_since(1)) == (2, an_id(7), an_id(8))
    known.noted([1, ID, [b"7-0", b"8-0", b"8-0 1", b"9-0"]])
    assert (known.era, known.parted_since(2)) == (3, an_id(8))
    known.noted([1, ID, [b"7-0", b"8-0 2"]])
    assert (known.era, known.parted_since(3)) == (4, an_id(8))


def test_ends_that_others_have_recorded_are_to_be_noted() -> None:
    known = Failovers("logs", "one")
    known.heard([b"5-0 1"])
    assert known.generation == 0  # it has not asked yet
    known.noted([1, ID, [b"5-0 1"]])
    generation = known.generation
    known.heard([b"5-0 1"])
    assert known.generation == generation
    known.heard([b"5-0 1", b"5-0 2"])
    assert known.generation == generation + 1


def test_the_oldest_of_many_ends_leave_without_a_trace() -> None:
    known = Failovers("logs", "sentinel")
    known.noted(answer(*range(1, KEPT + 1)))
    known.noted(answer(*range(2, KEPT + 2)))
    assert known.parted_since(0) == an_id(KEPT + 1)


def test_ends_that_a_flush_has_taken_part_nothing() -> None:
    known = Failovers("logs", "sentinel")
    known.saw(an_id(9), known.era)
    known.noted(answer())
    known.noted(answer(7))
    known.noted(answer())
    assert (known.era, known.parted_since(1), known.parted_since(2)) == (2, None, None)
    known.noted(answer(3))
    assert known.parted_since(2) == an_id(3)


def test_the_witness_is_the_newest_of_the_stream_of_now() -> None:
    known = Failovers("logs", "one")
    known.saw(an_id(9), known.era)
    known.saw(an_id(8), known.era)
    assert known.arguments(fail=False)[2] == "9-0"
    before = known.era
    known.noted(answer())
    known.noted(answer(5))
    assert known.arguments(fail=False)[2] == "5-0"
    known.saw(an_id(99), before)  # it was read before that was known
    assert known.arguments(fail=False)[2] == "5-0"
    known.saw(an_id(6), known.era)
    assert known.arguments(fail=True) == (100, 1, "6-0", "", "one", b"5-0")


def test_a_primary_with_another_past_is_noticed() -> None:
    known = Failovers("logs", "one")
    for id_, generation in ((ID, 1), (ID, 1), (b"", 1), (b"b" * 40, 2)):
        known.met(id_)
        assert known.generation == generation
    assert replication_id(b"role:master\r\nmaster_replid:abc\r\n") == b"abc"
    assert replication_id(b"role:master\r\n") == b""


def test_what_is_not_recorded_yet_is_asked_again() -> None:
    assert not Failovers("logs", "one").noted(answer(done=0))


def test_a_user_that_may_not_record_ends_can_use_one_server() -> None:
    refused = NoPermissionError("NOPERM no permissions to access a key")
    assert Failovers("logs", "one").noted(refused)
    for topology, error in (("sentinel", refused), ("one", ResponseError("OOM"))):
        with pytest.raises(ResponseError):
            Failovers("logs", topology).noted(error)  # type: ignore[arg-type]


def test_ends_are_found_by_the_ids_around_them() -> None:
    known = Failovers("logs", "sentinel")
    known.noted(answer(3, 7))
    assert known.ends_before(an_id(7)) == [an_id(3)]
    assert known.end_between(an_id(3), an_id(9)) == an_id(3)
    assert known.end_between(an_id(4), an_id(9)) == an_id(7)
    assert known.end_between(an_id(4), an_id(7)) is None
    gap = gap_before(an_id(8), an_id(5))
    assert (gap.reason, gap.after, gap.before, gap.count) == ("reset", an_id(5), an_id(8), None)


def test_a_witness_outlives_ends_that_a_flush_has_taken() -> None:
    known = Failovers(NAME, "one")
    known.saw(StreamId(3, 0), known.era)
    for ends in ([], [b"5-0"], []):
        known.noted([1, b"a", ends])
    known.saw(StreamId(9, 0), known.era)
    assert known.arguments(fail=False)[2:] == ("9-0", "", "one")


def test_ends_of_before_its_time_part_a_process_from_nothing() -> None:
    known = Failovers(NAME, "one")
    era = known.era
    known.noted([1, b"a", [b"3-0", b"5-0"]])
    assert known.parted_since(era) is None
    known.noted([1, b"b", [b"3-0", b"5-0", b"7-0"]])
    assert known.parted_since(era) == StreamId(7, 0)


def test_a_replica_that_info_does_not_list_is_not_in_sync() -> None:
    online = {"state": "online", "lag": 0}
    assert in_sync({"connected_slaves": 2, "slave0": online}) == 1


async def test_looking_back_past_a_failover_tells_of_it(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey)) as stream:
        before = await add(stream, 3)
        await asyncio.sleep(0.002)  # else no id fits between them
        after = await add(stream, 2)
    valkey.client.rpush(failovers_key(NAME), str(before[-1]))
    items: list[Item] = []
    async with stream_at(address_of(valkey)) as stream, running(stream) as hub:
        await wait_until(lambda: hub.attached, "attached")
        with HubSubscription(hub, Start(tail=4), EVERYTHING) as subscription:
            while after[-1] not in ids(items):
                items += await subscription.next() or ()
    gaps = [item for item in items if isinstance(item, Gap)]
    assert [(gap.after, gap.before) for gap in gaps] == [(before[-1], after[0])]
    assert ids(items) == [*before[1:], *after]


def ids(items: list[Item]) -> list[StreamId]:
    """The ids of the entries."""
    return [entry.id for item in items if isinstance(item, Batch) for entry in item.entries]


@pytest.fixture
def sentinel() -> Iterator[FakeSentinel]:
    server = FakeSentinel()
    yield server
    server.close()


async def test_a_primary_that_is_a_replica_now_is_not_read(sentinel: FakeSentinel) -> None:
    """It may lack what its readers have had."""
    address = RedisAddress(sentinels=(Node("127.0.0.1", sentinel.port),), service=MASTER)
    with Deployment.started() as deployment:
        node = deployment.node()
        sentinel.name(node.port)
        async with stream_at(address) as stream:
            (first,) = await add(stream)
            node.ask("REPLICAOF", "127.0.0.1", 9)
            node.ask("CLIENT", "KILL", "TYPE", "normal")

            async def read() -> bool:
                return bool(await stream.range(first, first, 1))

            async def refused() -> bool:
                with pytest.raises(Unavailable):
                    await read()
                return stream.health.kind == "read-only"

            await wait_until(refused, "the replica is not read")
            node.ask("REPLICAOF", "NO", "ONE")
            assert await read()


def noted(valkey: Valkey, spared: str, topology: Topology = "sentinel") -> list[bytes]:
    """The ends, once a process has recorded what it knows."""
    known = Failovers(NAME, topology)
    known.spared = spared
    ask: Any = valkey.client.eval
    ends: list[bytes] = ask(NOTE.text, len(known.keys), *known.keys, *known.arguments(fail=True))[2]
    return ends


def test_a_loss_noticed_late_is_recorded_among_the_others(own_valkey: Valkey) -> None:
    """By a process that was away meanwhile: what the others have recorded stays."""
    for id_ in (2, 5, 20):
        own_valkey.client.xadd(NAME, {"event": b"{}"}, id=f"{id_}-0")
    known = Failovers(NAME, "one")
    own_valkey.client.rpush(failovers_key(NAME), "3-0", "9-0")
    known.noted(answer(3, 9))
    known.saw(an_id(7), known.era)
    ask: Any = own_valkey.client.eval
    for _ in range(2):
        found = ask(NOTE.text, len(known.keys), *known.keys, *known.arguments(fail=True))
        known.noted(found)
        assert found[2] == own_valkey.client.lrange(failovers_key(NAME), 0, -1)
        assert [end.split()[0] for end in found[2]] == [b"3-0", b"5-0", b"9-0"]


async def test_a_second_loss_back_to_the_same_entry_is_noticed(own_valkey: Valkey) -> None:
    """By the process that records it, and by another one; by each once."""
    saved = own_valkey.folder / "saved"
    address = address_of(own_valkey)
    async with stream_at(address) as stream, stream_at(address) as other:
        own_valkey.client.xadd(NAME, {"event": b"{}"}, id="1-0")
        shutil.copytree(own_valkey.kept, saved)
        for loss, lost, new in ((1, an_id(3), an_id(5)), (2, an_id(7), an_id(9))):
            own_valkey.client.xadd(NAME, {"event": b"{}"}, id=str(lost))
            for each in (stream, other):
                page = await each.read(Cursor(an_id(1)), 9, failover_era=each.failover_era)
                assert page.end.id == lost
            own_valkey.lose_what_followed(saved)
            own_valkey.client.xadd(NAME, {"event": b"{}"}, id=str(new))
            for each in (stream, other):
                await wait_until(partial(reached, each), "it is reached again")
            for each in (stream, other, stream, other):
                page = await each.read(Cursor(lost), 9, failover_era=loss - 1)
                assert (page.gap and page.gap.before, each.failover_era) == (new, loss)


async def test_a_loss_whose_record_is_lost_is_recorded_again(own_valkey: Valkey) -> None:
    """A reader of what was lost goes on behind the last entry that was kept."""
    saved, address = own_valkey.folder / "saved", address_of(own_valkey)
    async with stream_at(address) as stream, stream_at(address) as other:
        kept = await add(stream, 2)
        shutil.copytree(own_valkey.kept, saved)
        lost = (await add(stream, 1))[0]
        for _ in range(2):
            own_valkey.lose_what_followed(saved)
            for each in (stream, other):
                await wait_until(partial(reached, each), "it is reached again")
                page = await each.read(Cursor(lost), 9)
                assert (page.gap, page.entries, page.end.id) == (None, [], lost)
        new = (await add(stream, 1))[0]
        for each in (stream, other):
            page = await each.read(Cursor(lost), 9)
            assert (page.gap, page.end.id) == (gap_before(new, lost), new)
            page = await each.read(Cursor(kept[1]), 9)
            assert (page.gap, page.end.id) == (gap_before(new, kept[1]), new)


async def test_a_gap_over_an_unknown_loss_has_no_count(own_valkey: Valkey) -> None:
    """What was trimmed could be counted, what was lost before that cannot."""
    saved = own_valkey.folder / "saved"
    async with stream_at(address_of(own_valkey)) as stream:
        kept = await add(stream, 2)
        shutil.copytree(own_valkey.kept, saved)
        await add(stream, 3)
        own_valkey.lose_what_followed(saved)
        await wait_until(partial(reached, stream), "it is reached again")
        new = await add(stream, 4)
        own_valkey.client.xtrim(NAME, maxlen=2, approximate=False)
        page = await stream.read(Cursor(kept[0], 1), 9)
        assert page.gap == gap_before(new[2], kept[0])
        page = await stream.read(Cursor(new[0], 3), 9)
        assert page.gap == Gap("trimmed", new[0], new[2], 1, new[2].before())


async def test_readers_share_no_page_of_an_era_unknown_to_the_feed(own_valkey: Valkey) -> None:
    """The second one would go back to where the failover was, and get all since then again."""
    saved = own_valkey.folder / "saved"
    async with stream_at(address_of(own_valkey)) as stream:
        await add(stream, 2)
        shutil.copytree(own_valkey.kept, saved)
        await add(stream, 1)
        hub = Hub(stream, Metrics(), queue_len=9, batch_count=9, heartbeat_s=0.05)
        hub.attached = True
        beating = asyncio.create_task(hub.beat())  # without a feed
        own_valkey.lose_what_followed(saved)
        await wait_until(partial(reached, stream), "it is reached again")
        new = await add(stream, 3)
        for _ in range(2):
            with HubSubscription(hub, Start(resume=new[0]), EVERYTHING) as subscription:
                items = [item for _ in range(3) for item in await subscription.next() or ()]
            assert ids(items) == new[1:]
            assert not any(isinstance(item, Gap) for item in items)
        beating.cancel()


async def test_the_loss_of_an_entry_is_noticed_that_was_seen_as_the_newest(
    own_valkey: Valkey,
) -> None:
    """By a process that has not read it; the others learn of it."""
    saved = own_valkey.folder / "saved"
    async with stream_at(address_of(own_valkey)) as stream:
        own_valkey.client.xadd(NAME, {"event": b"{}"}, id="1-0")
        shutil.copytree(own_valkey.kept, saved)
        own_valkey.client.xadd(NAME, {"event": b"{}"}, id="3-0")
        assert (await stream.bounds()).newest == an_id(3)
        own_valkey.lose_what_followed(saved)
        await wait_until(partial(reached, stream), "it is reached again")
        own_valkey.client.xadd(NAME, {"event": b"{}"}, id="5-0")
        page = await stream.read(Cursor(an_id(1)), 9)
        assert page.gap and (page.gap.after, page.gap.before) == (an_id(1), an_id(5))


async def test_a_loss_that_another_process_notices_is_soon_known(own_valkey: Valkey) -> None:
    """Readers of a process that has gone on meanwhile get a gap, and what followed again."""
    saved, address = own_valkey.folder / "saved", address_of(own_valkey)
    items: list[Item] = []
    async with stream_at(address) as ahead, stream_at(address) as behind:
        own_valkey.client.xadd(NAME, {"event": b"{}"}, id="1-0")
        shutil.copytree(own_valkey.kept, saved)
        own_valkey.client.xadd(NAME, {"event": b"{}"}, id="3-0")
        assert (await ahead.bounds()).newest == an_id(3)
        own_valkey.lose_what_followed(saved)
        own_valkey.client.xadd(NAME, {"event": b'{"source":"s","message":"m"}'}, id="5-0")
        async with running(behind) as hub:
            await wait_until(lambda: hub.attached, "attached")
            with HubSubscription(hub, Start(resume=an_id(1)), EVERYTHING) as subscription:
                while an_id(5) not in ids(items):
                    items += await subscription.next() or ()
                await wait_until(partial(reached, ahead), "it is reached again")
                while ids(items) != [an_id(5)] * 2:
                    items += await subscription.next() or ()
    assert [gap.reason for gap in items if isinstance(gap, Gap)] == ["reset"]


async def reached(stream: Stream) -> bool:
    try:
        await stream.bounds()
    except Unavailable:
        return False
    return True


def test_a_failover_without_loss_spares_no_later_one(own_valkey: Valkey) -> None:
    """The server comes back to where it has recorded nothing yet, after others."""

    def promoted() -> str:
        own_valkey.client.execute_command("REPLICAOF", "127.0.0.1", 9)  # type: ignore[no-untyped-call]
        own_valkey.client.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
        return str(own_valkey.client.info("replication")["master_replid"])

    last = own_valkey.client.xadd(NAME, {"event": b"{}"})
    first = promoted()
    assert noted(own_valkey, "") == []
    second = promoted()
    assert noted(own_valkey, f"{first} {second}") == []
    third = promoted()
    promoted()
    assert [end.split()[0] for end in noted(own_valkey, f"{second} {third}")] == [last]
