import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from logpipe.background import Background
from logpipe.continuity import Gap
from logpipe.filters import EVERYTHING, Filter
from logpipe.groups import LAST_READ_S, MAX_GROUPS, READS, Groups, TooManyGroupsError
from logpipe.groups import consumer as consumer_module
from logpipe.groups import group as group_module
from logpipe.groups.group import PENDING_ENTRIES
from logpipe.groups.shared import SharedSubscription
from logpipe.ids import END, START, StreamId
from logpipe.messages import Batch, Bye, Hello, Item, Start
from logpipe.metrics import Metrics
from logpipe.stream import Append, Claimed, Stream
from logpipe.stream.groups import READ_BYTES, READ_ENTRIES
from logpipe.stream.scripts import companion_key
from tests.helpers import fair_time, wait_until
from tests.servers import Valkey
from tests.streams import NAME, add, address_of, event, plain, stream_at

GROUP = "workers"
IDLE_MS = 300


class Replica:
    """A process of its own: a stream, its groups, and what its subscribers were given."""

    def __init__(self, stream: Stream, groups: Groups) -> None:
        self.stream = stream
        self.groups = groups

    def worker(self, start: Start | None = None, chosen: Filter = EVERYTHING) -> "Worker":
        return Worker(SharedSubscription(self.groups, GROUP, start or Start(), chosen))

    @property
    def lost(self) -> float:
        return float(self.groups.metrics.group_lost.labels(GROUP)._value.get())

    async def pending(self) -> int:
        return await self.stream.groups.pending(GROUP)


@contextlib.asynccontextmanager
async def a_replica(valkey: Valkey, name: str = "one", **more: Any) -> AsyncIterator[Replica]:
    given = {"pending_idle_ms": IDLE_MS, "batch_count": 10, "heartbeat_s": 15.0, **more}
    async with stream_at(address_of(valkey), maxlen=10**6, block_ms=100) as stream:
        monitor = asyncio.create_task(stream.monitor())
        background = Background()
        async with Groups(stream, Metrics(), background, consumer=name, **given) as groups:
            yield Replica(stream, groups)
        assert background.failure is None
        monitor.cancel()
        await asyncio.wait((monitor,))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "RECOVERY_S", 0.02)


class Worker:
    """A subscriber of the group, as a response drives it: next, write, sent."""

    def __init__(self, subscription: SharedSubscription) -> None:
        self.subscription = subscription
        self.got: list[StreamId] = []
        self.gaps: list[Gap] = []
        self.farewell: Bye | None = None
        self.hello: Hello | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> "Worker":
        self.subscription.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
        self.subscription.__exit__()

    async def take(self, timeout: float = 5.0) -> list[StreamId]:
        """The next entries, written but not yet acknowledged."""
        while True:
            items = await asyncio.wait_for(self.subscription.next(), timeout)
            assert items is not None, "the subscription has ended"
            taken = self.note(items)
            if taken:
                return taken
            await self.subscription.sent()

    def note(self, items: Sequence[Item]) -> list[StreamId]:
        taken: list[StreamId] = []
        for item in items:
            match item:
                case Batch():
                    taken += [entry.id for entry in item.matching(self.subscription.filter)]
                case Gap():
                    self.gaps.append(item)
                case Bye():
                    self.farewell = item
                case Hello():
                    self.hello = item
                case _:
                    raise AssertionError(f"nobody expected {item}")
        self.got += taken
        return taken

    async def greet(self) -> Hello:
        """The hello; the group exists then."""
        items = await asyncio.wait_for(self.subscription.next(), 5)
        assert items is not None
        self.note(items)
        await self.subscription.sent()
        assert self.hello is not None
        return self.hello

    def work(self) -> None:
        """Takes whatever comes, from now on."""
        self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while (items := await self.subscription.next()) is not None:
            self.note(items)
            await self.subscription.sent()


async def all_acknowledged(replica: Replica) -> None:
    async def none_pending() -> bool:
        return await replica.pending() == 0

    await wait_until(none_pending, "everything is acknowledged")


# -- each event to one -----------------------------------------------------------------------------


async def test_each_event_goes_to_exactly_one_subscriber_of_all_replicas(valkey: Valkey) -> None:
    async with a_replica(valkey, "one") as one, a_replica(valkey, "two") as two:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(each.worker()) for each in (one, one, two, two, two)]
            for worker in workers:
                await worker.greet()
                worker.work()
            ids: list[StreamId] = []
            for _ in range(30):
                ids += await add(one.stream, 20)
            await wait_until(
                lambda: sum(len(worker.got) for worker in workers) >= len(ids), "all were given"
            )
            assert Counter(id_ for worker in workers for id_ in worker.got) == Counter(ids)
            assert sum(bool(worker.got) for worker in workers) > 1
            await all_acknowledged(one)


async def test_the_hello_comes_first_and_what_is_sent_after_it_is_the_group_s(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey) as replica:
        old = await add(replica.stream, 3)
        with replica.worker() as worker:
            hello = await worker.greet()
            assert hello == Hello(old[-1], old[0], old[-1], "shared", hello.version, "")
            [new] = await add(replica.stream)
            assert await worker.take() == [new]


async def test_a_group_is_made_where_its_first_subscriber_says(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        ids = await add(replica.stream, 6)
        for name, start, index in (
            ("earliest", Start(since=START), 0),
            ("since", Start(since=ids[2]), 2),
            ("resume", Start(resume=ids[3]), 4),
        ):
            expected = ids[index:]
            with Worker(SharedSubscription(replica.groups, name, start, EVERYTHING)) as worker:
                got: list[StreamId] = []
                while len(got) < len(expected):
                    got += await worker.take()
                    await worker.subscription.sent()
                assert got == expected
            with Worker(
                SharedSubscription(replica.groups, name, Start(since=START), EVERYTHING)
            ) as again:
                await again.greet()
                [new] = await add(replica.stream)
                assert await again.take() == [new]  # the group was there already
                ids.append(new)
                await again.subscription.sent()


async def test_work_is_split_among_those_who_wait(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as one, replica.worker() as two:
            for worker in (one, two):
                await worker.greet()
            takes = [asyncio.create_task(worker.take()) for worker in (one, two)]
            await asyncio.sleep(0.02)
            await add(replica.stream, 10)
            assert sorted(map(len, await asyncio.gather(*takes))) == [5, 5]


async def test_entries_that_the_filter_rejects_are_acknowledged_too(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker(chosen=Filter("source:db")) as worker:
            await worker.greet()
            worker.work()
            await add(replica.stream, 5)
            await replica.stream.append([Append([b'{"source":"db","message":"m"}'])])
            await wait_until(lambda: len(worker.got) == 1, "the one that matches")
            await all_acknowledged(replica)


async def test_entries_that_hold_no_event_are_acknowledged_and_counted(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            worker.work()
            for _ in range(3):
                await plain(replica.stream).xadd(NAME, {"junk": b"\xff"})
            await add(replica.stream, 2)
            await wait_until(lambda: len(worker.got) == 2, "the good ones")
            await all_acknowledged(replica)
            assert replica.groups.metrics.unreadable._value.get() == 3


# -- acknowledgement and its absence ---------------------------------------------------------------


async def test_an_event_is_acknowledged_after_it_was_written(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            ids = await add(replica.stream, 3)
            assert await worker.take() == ids
            assert await replica.pending() == 3
            await worker.subscription.sent()
            assert await replica.pending() == 0


async def test_what_a_leaving_subscriber_did_not_write_goes_to_another_at_once(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey, pending_idle_ms=60_000) as replica:
        with replica.worker() as stays:
            await stays.greet()
            with replica.worker() as leaves:
                await leaves.greet()
                ids = await add(replica.stream, 3)
                assert await leaves.take() == ids
                stays.work()
                await asyncio.sleep(0.05)
                assert not stays.got
            await wait_until(lambda: stays.got == ids, "the other gets them")
            await all_acknowledged(replica)


async def test_what_the_last_subscriber_did_not_write_goes_to_the_next_one_here(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey, pending_idle_ms=60_000) as replica:
        with replica.worker() as first:
            await first.greet()
            ids = await add(replica.stream, 3)
            assert await first.take() == ids
        with replica.worker() as second:  # while the read of the first is still under way
            assert await second.take(1) == ids
        await wait_until(lambda: not replica.groups._groups, "the group is let go")
        with replica.worker() as third:
            assert await third.take(1) == ids
            await third.subscription.sent()
        await all_acknowledged(replica)


async def test_what_the_last_subscriber_did_not_write_goes_to_other_replicas_soon(
    valkey: Valkey,
) -> None:
    async with (
        a_replica(valkey, "one", pending_idle_ms=15_000) as one,
        a_replica(valkey, "two", pending_idle_ms=15_000) as two,
    ):
        with two.worker() as other:
            await other.greet()
            with one.worker() as leaves:
                await leaves.greet()
                ids = await add(one.stream, 3)
                assert await leaves.take() == ids
                other.work()
            await wait_until(lambda: other.got == ids, "claimed before it was idle")


async def test_a_process_that_ends_leaves_its_work_to_the_others_at_once(valkey: Valkey) -> None:
    async with a_replica(valkey, "two", pending_idle_ms=15_000) as two:
        with two.worker() as other:
            await other.greet()
            async with a_replica(valkey, "one", pending_idle_ms=60_000) as one:
                with one.worker() as leaves:
                    await leaves.greet()
                    ids = await add(one.stream, 3)
                    assert await leaves.take() == ids
                    other.work()
                    one.groups.close()  # as a server does before its streams end
            await wait_until(lambda: other.got == ids, "claimed before it was idle")


async def test_what_a_dead_replica_left_is_claimed_by_another(valkey: Valkey) -> None:
    async with a_replica(valkey, "live") as live:
        async with stream_at(address_of(valkey), block_ms=100) as stream:
            # A process that is killed: it has read, and nothing of it runs any more.
            await stream.groups.create(GROUP, None)
            ids = await add(stream, 25)
            read = await stream.groups.read(GROUP, "dead", 100)
            assert len(read.entries) == 25
        with live.worker() as worker:
            worker.work()
            loop = asyncio.get_running_loop()
            started = loop.time()
            await wait_until(lambda: sorted(worker.got) == ids, "all claimed", IDLE_MS / 1000 + 2)
            assert loop.time() - started > IDLE_MS / 1000 / 2
            await all_acknowledged(live)
            assert live.groups.metrics.group_claimed.labels(GROUP)._value.get() == 25


async def test_a_process_gets_back_what_it_had_when_it_starts_again(valkey: Valkey) -> None:
    async with a_replica(valkey, "same", pending_idle_ms=60_000) as replica:
        await replica.stream.groups.create(GROUP, None)
        ids = await add(replica.stream, 25)
        await replica.stream.groups.read(GROUP, "same", 100)
        with replica.worker() as worker:
            worker.work()
            await wait_until(lambda: worker.got == ids, "all of them, in order")
            await all_acknowledged(replica)


async def test_a_process_that_starts_again_reads_its_work_as_it_is_taken(valkey: Valkey) -> None:
    async with a_replica(valkey, "same", batch_count=5, pending_idle_ms=60_000) as replica:
        await replica.stream.groups.create(GROUP, None)
        await add(replica.stream, 200)
        await replica.stream.groups.read(GROUP, "same", 1000)
        with replica.worker() as worker:
            await worker.take()
            await asyncio.sleep(0.05)
            assert len(in_flight(replica)) <= 10


def in_flight(replica: Replica) -> set[StreamId]:
    return replica.groups._groups[GROUP]._in_flight


async def test_a_slow_subscriber_is_not_robbed_by_another_replica(valkey: Valkey) -> None:
    async with a_replica(valkey, "one") as one, a_replica(valkey, "two") as two:
        with one.worker() as slow:
            await slow.greet()
            ids = await add(one.stream, 3)
            assert await slow.take() == ids
            with two.worker() as greedy:
                await greedy.greet()
                greedy.work()
                await asyncio.sleep(3 * IDLE_MS / 1000)
                assert greedy.got == []
                await slow.subscription.sent()
                await all_acknowledged(one)
                assert greedy.got == []


async def test_acknowledgements_that_redis_missed_are_made_up_for(own_valkey: Valkey) -> None:
    async with a_replica(own_valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            ids = await add(replica.stream, 3)
            assert await worker.take() == ids
            own_valkey.kill()
            await worker.subscription.sent()
            worker.work()
            own_valkey.start()
            await all_acknowledged(replica)
            new = await add(replica.stream, 3)
            await wait_until(lambda: worker.got == ids + new, "it goes on, and none comes twice")


# -- nothing is read that nobody can take ----------------------------------------------------------


async def test_reading_waits_for_a_slow_subscriber(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as slow:
            await slow.greet()
            await add(replica.stream, 100)
            assert len(await slow.take()) == 10
            await asyncio.sleep(0.25)
            assert await replica.pending() == 10
            await slow.subscription.sent()
            assert len(await slow.take()) == 10


async def test_nothing_is_read_for_a_group_without_a_subscriber(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
        SharedSubscription(replica.groups, GROUP, Start(), EVERYTHING)  # never entered, as for HEAD
        await wait_until(lambda: not replica.groups._groups, "the group is let go")
        ids = await add(replica.stream, 5)
        await asyncio.sleep(0.25)
        assert await replica.pending() == 0
        with replica.worker() as worker:
            assert await worker.take() == ids


async def test_what_is_read_just_after_the_last_has_left_is_given_back(valkey: Valkey) -> None:
    async with (
        a_replica(valkey, "one", pending_idle_ms=60_000) as one,
        a_replica(valkey, "two", pending_idle_ms=15_000) as two,
    ):
        with two.worker() as other:
            await other.greet()
            with one.worker() as worker:
                await worker.greet()
                waiting = asyncio.create_task(worker.take())
                await asyncio.sleep(0.02)
                waiting.cancel()
                await asyncio.wait((waiting,))
            ids = await add(one.stream, 4)  # the blocked read is still there and takes them
            other.work()
            await wait_until(lambda: sorted(other.got) == ids, "the other replica has them")


# -- names -----------------------------------------------------------------------------------------


async def consumers(replica: Replica) -> dict[str, int]:
    """The group's consumers as Redis knows them, and how much is pending for each."""
    found = await plain(replica.stream).xinfo_consumers(NAME, GROUP)
    return {each["name"].decode(): each["pending"] for each in found}


async def test_two_replicas_of_one_name_are_told_apart(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_replica(valkey, "dist-1") as one, a_replica(valkey, "dist-1") as two:
        with one.worker() as first, two.worker() as second:
            for worker in (first, second):
                await worker.greet()
            ids = await add(one.stream, 15)
            held = await first.take()  # and not written for a while
            second.work()
            rest = [id_ for id_ in ids if id_ not in held]
            await wait_until(lambda: sorted(second.got) == rest, "the other has the rest")
            # What is pending for a name would have been read before anything new.
            assert (await consumers(one))["dist-1"] == len(held)
            assert set(await consumers(one)) == {"dist-1", "dist-1~2"}
            await first.subscription.sent()
            await all_acknowledged(one)
    assert "give each replica a CONSUMER_NAME of its own" in caplog.text


async def test_a_process_goes_back_to_its_name_and_its_work_when_the_dead_holder_s_lease_ends(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "LEASE_S", 0.3)
    async with a_replica(valkey, "dist-1", pending_idle_ms=60_000) as replica:
        groups = replica.stream.groups
        await groups.create(GROUP, None)
        ids = await add(replica.stream, 3)
        assert await groups.hold("dist-1", "a process that was killed", 400)
        await groups.read(GROUP, "dist-1", 10)
        with replica.worker() as worker:
            await worker.greet()
            worker.work()
            await wait_until(lambda: worker.got == ids, "its work of before")
            assert replica.groups.consumer.name == "dist-1"
            await all_acknowledged(replica)


async def test_a_name_that_was_lost_in_an_outage_is_given_up(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "LEASE_S", 0.1)
    async with a_replica(valkey, "dist-1") as replica:
        with replica.worker() as worker:
            await worker.greet()
            worker.work()
            await wait_until(lambda: replica.groups.consumer.name == "dist-1", "it has a name")
            valkey.client.flushall()
            await wait_until(
                lambda: replica.stream.groups.hold("dist-1", "another", 60_000),
                "another was quicker",
            )
            await wait_until(lambda: replica.groups.consumer.name == "dist-1~2", "another name")
            ids = await add(replica.stream, 3)
            await wait_until(lambda: worker.got == ids, "it goes on")


async def test_dead_consumers_are_removed_when_nothing_is_pending_for_them(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey, "live") as live:
        groups = live.stream.groups
        await groups.create(GROUP, None)
        ids: list[StreamId] = []
        for number in range(20):
            ids += await add(live.stream)
            await groups.read(GROUP, f"dead-{number}", 1)
        with live.worker() as worker:
            worker.work()

            async def alone() -> bool:
                return set(await consumers(live)) == {"live"}

            await wait_until(alone, "the dead ones are gone")
            assert sorted(worker.got) == ids
    assert valkey.client.xinfo_consumers(NAME, GROUP) == []  # it has left, too


# -- losses ----------------------------------------------------------------------------------------


async def test_entries_trimmed_while_pending_are_counted_and_told(valkey: Valkey) -> None:
    async with a_replica(valkey) as live:
        await live.stream.groups.create(GROUP, None)
        ids = await add(live.stream, 20)
        await live.stream.groups.read(GROUP, "dead", 100)
        await plain(live.stream).xtrim(NAME, maxlen=5, approximate=False)
        with live.worker() as worker:
            worker.work()
            await wait_until(lambda: len(worker.got) == 5, "what is kept")
            await wait_until(lambda: worker.gaps, "the loss is told")
            await all_acknowledged(live)
            assert sum(gap.count or 0 for gap in worker.gaps) == 15
            told = [gap for gap in worker.gaps for id_ in ids if gap.after < id_ < gap.before]
            assert len(told) == 15
            assert {gap.reason for gap in worker.gaps} == {"trimmed"}
            assert live.lost == 15


async def test_entries_trimmed_before_the_group_read_them_are_counted_and_told_once(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey, "one") as one, a_replica(valkey, "two") as two:
        await one.stream.groups.create(GROUP, None)
        ids = await add(one.stream, 250)
        await plain(one.stream).xtrim(NAME, maxlen=30, approximate=False)
        with one.worker() as first, two.worker() as second:
            first.work()
            second.work()
            await wait_until(lambda: sorted(first.got + second.got) == ids[220:], "what is kept")
            [gap] = first.gaps + second.gaps
            assert (gap.reason, gap.count) == ("trimmed", 220)
            assert (gap.after < ids[0], gap.before) == (True, ids[220])
            assert one.lost + two.lost == 220


def test_entries_trimmed_while_pending_are_told_by_one_gap_and_others_each_by_its_own() -> None:
    pending = Gap("trimmed", StreamId(1, 0), StreamId(7, 3), 2, StreamId(7, 2))
    known = Gap("trimmed", StreamId(9, 0), StreamId(11, 0), 4, StreamId(11, 0).before())
    unknown = Gap("trimmed", StreamId(12, 0), StreamId(15, 1), None, StreamId(15, 0))
    records = ["9-0 11-0 4", "7-2", "12-0 15-1 unknown", "1-1"]
    assert list(group_module.told(records)) == [pending, known, unknown]
    assert list(group_module.told([])) == []


async def test_a_group_without_a_known_position_tells_a_loss_without_a_count(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey) as replica:
        ids = await add(replica.stream, 10)
        await replica.stream.groups.create(GROUP, ids[4])  # between others: Redis knows no position
        await plain(replica.stream).xtrim(NAME, maxlen=2, approximate=False)
        with replica.worker() as worker:
            assert await worker.take() == ids[8:]
            [gap] = worker.gaps
            assert (gap.count, gap.after, gap.before) == (None, ids[4], ids[8])
            assert replica.lost == 0


async def test_a_loss_that_a_process_had_not_told_when_it_was_killed_is_told_by_another(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey, "live") as live:
        groups = live.stream.groups
        await groups.create(GROUP, None)
        ids = await add(live.stream, 12)
        await groups.read(GROUP, "dead", 4)
        await plain(live.stream).xtrim(NAME, maxlen=2, approximate=False)
        # A process that finds both kinds of losses, and dies before it has told anybody.
        assert len((await groups.read(GROUP, "dead", 10)).losses) == 1
        assert len((await groups.claim(GROUP, "dead", 0, 10)).lost) == 4
        with live.worker() as worker:
            worker.work()
            await wait_until(lambda: len(worker.gaps) == 2, "told", IDLE_MS / 1000 + 2)
            assert sorted(gap.count or 0 for gap in worker.gaps) == [4, 6]
            told = [i for i in ids for gap in worker.gaps if gap.after < i < gap.before]
            assert sorted(told) == ids[:10]
            await wait_until(lambda: recorded(valkey) == 0, "both losses are forgotten")
            assert len(worker.gaps) == 2  # once


async def test_a_loss_that_nobody_was_told_of_is_told_to_the_next_subscriber(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey) as replica:
        await replica.stream.groups.create(GROUP, None)
        await add(replica.stream, 5)
        await plain(replica.stream).xtrim(NAME, maxlen=1, approximate=False)
        with replica.worker() as leaves:
            await leaves.take()
            assert len(leaves.gaps) == 1
        with replica.worker() as worker:
            await worker.take()
            assert worker.gaps == leaves.gaps
        assert replica.lost == 4


async def test_a_loss_that_a_leaving_subscriber_did_not_write_is_told_to_another(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey) as live:
        await live.stream.groups.create(GROUP, None)
        await add(live.stream, 3)
        await live.stream.groups.read(GROUP, "dead", 100)
        await plain(live.stream).xtrim(NAME, maxlen=0, approximate=False)
        with live.worker() as stays:
            with live.worker() as leaves:
                await leaves.greet()
                items: Sequence[Item] | None = []
                while not items:
                    items = await asyncio.wait_for(leaves.subscription.next(), 5)
                assert items is not None and isinstance(items[0], Gap)
            stays.work()
            await wait_until(lambda: stays.gaps, "the other is told")
            assert stays.gaps[0].count == 3
            assert live.lost == 3


async def test_what_is_trimmed_in_flight_still_reaches_its_subscriber(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            ids = await add(replica.stream, 3)
            assert await worker.take() == ids
            await plain(replica.stream).xtrim(NAME, maxlen=0, approximate=False)
            valkey.client.client_kill_filter(_type="normal", skipme=True)
            await worker.subscription.sent()
            worker.work()
            new = valkey.client.xadd(NAME, {"event": event()})
            await wait_until(lambda: len(worker.got) == 4, "it goes on")
            assert [str(id_).encode() for id_ in worker.got[3:]] == [new]
            assert (worker.gaps, replica.lost) == ([], 0)


async def test_what_is_acknowledged_while_it_is_read_again_is_given_once(
    valkey: Valkey,
) -> None:
    """The answer to a read of pending entries may come after that to their acknowledgement."""
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            ids = await add(replica.stream, 3)
            assert await worker.take() == ids
            group = replica.groups._groups[GROUP]
            with group._reread():
                consumer = valkey.client.xinfo_consumers(NAME, GROUP)[0]["name"].decode()
                pending = await replica.stream.groups.history(GROUP, consumer, 10, START)
                assert [entry.id for entry in pending.entries] == ids
                await worker.subscription.sent()
                await group._take(pending)
            worker.work()
            new = await add(replica.stream, 1)
            await wait_until(lambda: len(worker.got) == 4, "it goes on")
            assert worker.got == [*ids, *new]
            assert not group._finished


async def test_a_reported_loss_is_forgotten(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        await replica.stream.groups.create(GROUP, None)
        await add(replica.stream, 5)
        await plain(replica.stream).xtrim(NAME, maxlen=1, approximate=False)
        with replica.worker() as worker:
            await worker.take()
            assert [gap.count for gap in worker.gaps] == [4]
            assert recorded(valkey) == 1
            await worker.subscription.sent()
            assert recorded(valkey) == 0


def recorded(valkey: Valkey) -> int:
    """How many losses are recorded until they are reported."""
    return int(valkey.client.hlen(companion_key(NAME, "lost", GROUP)))


async def test_losses_of_an_earlier_process_are_recorded(valkey: Valkey) -> None:
    async with a_replica(valkey, "same", pending_idle_ms=60_000) as replica:
        await replica.stream.groups.create(GROUP, None)
        ids = await add(replica.stream, 3)
        await replica.stream.groups.read(GROUP, "same", 9)
        await plain(replica.stream).xtrim(NAME, maxlen=0, approximate=False)
        with replica.worker() as worker:
            await worker.greet()
            [gap] = await asyncio.wait_for(worker.subscription.next(), 5) or []
            assert isinstance(gap, Gap)
            assert (gap.after < ids[0], gap.before > ids[2], gap.count) == (True, True, 3)
            assert (recorded(valkey), await replica.pending()) == (3, 0)
            assert replica.lost == 3
            await worker.subscription.sent()
            assert recorded(valkey) == 0


async def test_a_loss_not_written_goes_to_another_replica(valkey: Valkey) -> None:
    async with (
        a_replica(valkey, "one", pending_idle_ms=60_000) as one,
        a_replica(valkey, "two", pending_idle_ms=60_000) as two,
    ):
        await one.stream.groups.create(GROUP, None)
        await add(one.stream, 3)
        await plain(one.stream).xtrim(NAME, maxlen=1, approximate=False)
        with one.worker() as leaves:
            await leaves.take()
        with two.worker() as other:
            other.work()
            await wait_until(lambda: other.gaps, "the other replica reports it")
            assert other.gaps == leaves.gaps


async def test_a_loss_that_is_being_written_is_not_given_again(valkey: Valkey) -> None:
    async with a_replica(valkey, pending_idle_ms=60_000) as replica:
        with replica.worker() as worker:
            await worker.greet()
            ids = await add(replica.stream, 3)
            assert await worker.take() == ids
            group = replica.groups._groups[GROUP]
            worker.subscription.share.losses = ["1-0"]
            group._told = {"2-0"}
            group._losses = ["3-0"]
            group._trimmed = {ids[0]}
            losses = ["1-0", "2-0", "3-0", str(ids[0]), "4-0"]
            await group._take(Claimed([], [], [], losses=losses))
            assert group._losses == ["3-0", "4-0"]
            group._trimmed.clear()


async def test_what_is_in_flight_as_the_history_is_read_is_given_once(valkey: Valkey) -> None:
    async with a_replica(valkey, pending_idle_ms=60_000) as replica:
        with replica.worker() as slow, replica.worker() as other:
            await slow.greet()
            ids = await add(replica.stream, 3)
            assert await slow.take() == ids
            other.work()
            group = replica.groups._groups[GROUP]
            await wait_until(lambda: group._has_taker, "the other waits")
            assert await group._read_history("one", START) == ids[-1]  # as over a new connection
            new = await add(replica.stream)
            await wait_until(lambda: other.got, "it goes on")
            assert other.got == new
            await slow.subscription.sent()
            await all_acknowledged(replica)


async def test_trimmed_in_flight_is_a_loss_only_if_not_written(valkey: Valkey) -> None:
    async with a_replica(valkey, pending_idle_ms=60_000) as replica:
        with replica.worker() as worker:
            await worker.greet()
            ids = await add(replica.stream, 3)
            assert await worker.take() == ids
            group = replica.groups._groups[GROUP]
            await plain(replica.stream).xtrim(NAME, maxlen=0, approximate=False)
            claimed = await replica.stream.groups.claim(GROUP, "one", 0, 10)
            assert claimed.lost == ids
            with group._reread():
                await group._take(claimed)
                assert (recorded(valkey), replica.lost, group._losses) == (3, 0, [])
                await worker.subscription.sent()
                assert (recorded(valkey), group._trimmed) == (0, set())
                # The answer to a claim that was under way before.
                await replica.stream.groups.hand_back(GROUP, [str(ids[0])])
                await group._take(claimed)
                await worker.subscription.sent()
                await group._flush_written()
            assert (recorded(valkey), replica.lost, group._losses) == (0, 0, [])


async def test_an_idle_group_waits_between_its_reads(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting itself, for as long as BLOCK_MS at the most, is tested with the stream."""
    async with a_replica(valkey) as replica:
        stream, reads, waits = replica.stream, 0, 0
        read, wait = stream.groups.read, stream.wait

        async def counted(*args: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*args)

        async def awaited(after: StreamId) -> Any:
            nonlocal waits
            waits += 1
            assert waits == reads
            return await wait(after)

        monkeypatch.setattr(stream.groups, "read", counted)
        monkeypatch.setattr(stream, "wait", awaited)
        with replica.worker() as worker:
            await worker.greet()
            worker.work()
            await wait_until(lambda: waits >= 3, "it has waited")
            assert reads - waits <= 1


async def test_what_is_trimmed_in_flight_and_never_written_is_a_loss(valkey: Valkey) -> None:
    """Also where a claim of this process has found that it was trimmed."""
    async with a_replica(valkey) as replica:
        with replica.worker() as leaving:
            await leaving.greet()
            ids = await add(replica.stream, 3)
            assert await leaving.take() == ids
            await plain(replica.stream).xtrim(NAME, maxlen=0, approximate=False)
            with replica.worker() as other:
                await other.greet()
                other.work()
                await all_acknowledged(replica)
                assert recorded(valkey) == 3
        assert (other.gaps, other.got) == ([], [])
        await wait_until(lambda: not valkey.client.xinfo_consumers(NAME, GROUP), "it has left")
        with replica.worker() as late:
            late.work()
            await wait_until(lambda: late.gaps, "the loss is reported")
            assert ([gap.count for gap in late.gaps], late.got) == ([3], [])
            assert replica.lost == 3


async def test_a_flushed_group_is_made_anew_and_gets_all_new_events(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            await add(replica.stream, 3)
            worker.work()
            await wait_until(lambda: len(worker.got) == 3, "before the flush")
            assert "made anew" not in caplog.text
            for _ in range(5):
                worker.got.clear()
                await plain(replica.stream).flushall()
                new = await add(replica.stream, 4)
                await wait_until(lambda new=new: worker.got == new, "all")  # type: ignore[misc]
            assert "made anew" in caplog.text


async def test_what_is_trimmed_before_a_flushed_group_is_made_anew_is_told(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            await add(replica.stream, 2)
            await worker.take()
            valkey.client.flushall()
            await add(replica.stream, 8)
            valkey.client.xtrim(NAME, maxlen=3, approximate=False)
            await worker.subscription.sent()
            assert len(await worker.take()) == 3
            assert [gap.count for gap in worker.gaps] == [5]


async def test_a_subscriber_that_joins_after_a_flush_takes_no_event_away(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as one:
            await one.greet()
            one.work()
            await add(replica.stream)
            await wait_until(lambda: one.got, "before the flush")
            one.got.clear()
            with valkey.client.pipeline() as pipe:
                pipe.flushall()
                for number in range(5):
                    pipe.xadd(NAME, {"event": event(number)})
                pipe.execute()
            with replica.worker() as two:
                await two.greet()
                two.work()
                await wait_until(lambda: len(one.got) + len(two.got) == 5, "all of them")


# -- outages ---------------------------------------------------------------------------------------


async def test_a_subscriber_that_comes_while_redis_is_away_gets_what_is_sent_from_then_on() -> None:
    with Valkey.started("--save", "") as server:
        server.kill()
        async with a_replica(server) as replica:
            with replica.worker() as worker:
                assert await worker.greet() == Hello(START, None, None, "shared", "0.1.0", "")
                worker.work()
                server.start()
                server.client.xadd(NAME, {"event": event()})
                await wait_until(lambda: len(worker.got) == 1, "the event")


async def test_a_full_redis_still_hands_out_what_it_has(valkey: Valkey) -> None:
    async with a_replica(valkey, "one") as one:
        await one.stream.groups.create(GROUP, None)
        ids = await add(one.stream, 5)
        valkey.client.config_set("maxmemory", "1mb")
        with one.worker() as worker:
            worker.work()
            await wait_until(lambda: worker.got == ids, "all of them")
            await all_acknowledged(one)


async def test_a_group_that_cannot_be_made_in_a_full_redis_is_made_when_there_is_room(
    valkey: Valkey,
) -> None:
    async with a_replica(valkey) as replica:
        await add(replica.stream)
        valkey.client.config_set("maxmemory", "1mb")
        with replica.worker() as worker:
            await worker.greet()
            worker.work()
            await asyncio.sleep(0.1)
            valkey.client.config_set("maxmemory", "0")
            new = await add(replica.stream, 2)
            await wait_until(lambda: worker.got[-2:] == new, "what is sent now")


async def test_groups_outlive_cut_connections(valkey: Valkey) -> None:
    async with a_replica(valkey, "one") as one, a_replica(valkey, "two") as two:
        with one.worker() as first, two.worker() as second:
            for worker in (first, second):
                await worker.greet()
                worker.work()
            with writer(valkey) as write:
                ids: set[bytes] = set()
                for _ in range(10):
                    ids |= set(write(5))
                    valkey.client.client_kill_filter(_type="normal", skipme=True)
                    await asyncio.sleep(0.02)
                ids |= set(write(5))
            await wait_until(
                lambda: {str(i).encode() for i in first.got + second.got} == ids, "every event"
            )


@contextlib.contextmanager
def writer(valkey: Valkey) -> Iterator[Any]:
    def write(count: int) -> list[bytes]:
        with valkey.client.pipeline() as pipe:
            for number in range(count):
                pipe.xadd(NAME, {"event": event(number)})
            found: list[bytes] = pipe.execute()
            return found

    yield write


# -- coming and going ------------------------------------------------------------------------------


async def test_quick_comings_and_goings_never_start_a_second_reader(valkey: Valkey) -> None:
    most = now = 0

    async with a_replica(valkey) as replica:
        read = replica.stream.groups.read

        async def counted(*args: Any, **more: Any) -> Any:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                return await read(*args, **more)
            finally:
                now -= 1

        replica.stream.groups.read = counted  # type: ignore[method-assign]
        chance = random.Random(7)
        acknowledged: Counter[StreamId] = Counter()
        ids: list[StreamId] = []
        for _ in range(60):
            waiting = replica.worker()  # made, not entered yet: the group may go meanwhile
            with replica.worker() as worker:
                if chance.random() < 0.7:
                    await worker.greet()
                    ids += await add(replica.stream, chance.randint(1, 4))
                    with contextlib.suppress(TimeoutError):
                        taken = await worker.take(chance.choice([0.001, 0.01, 0.15]))
                        if chance.random() < 0.5:
                            await worker.subscription.sent()
                            acknowledged.update(taken)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice([0.001, 0.12]))
            with waiting:
                await waiting.greet()
            assert len(replica.groups._groups) <= 1
        with replica.worker() as worker:
            worker.work()
            await wait_until(
                lambda: set(worker.got) | set(acknowledged) == set(ids), "nothing is lost"
            )
            await all_acknowledged(replica)
        assert most == 1
        assert set(acknowledged.values()) == {1}


async def test_any_schedule_of_subscribers_delivers_every_event_at_least_once(
    valkey: Valkey,
) -> None:
    chance = random.Random(3)
    async with a_replica(valkey, "one") as one, a_replica(valkey, "two") as two:
        await one.stream.groups.create(GROUP, None)
        ids: list[StreamId] = []
        written: set[StreamId] = set()

        async def one_life(replica: Replica) -> None:
            with replica.worker() as worker:
                for _ in range(chance.randint(1, 6)):
                    try:
                        taken = await worker.take(chance.choice([0.005, 0.05]))
                    except TimeoutError:
                        return
                    if chance.random() < 0.3:
                        return  # cut off before the write
                    await worker.subscription.sent()
                    written.update(taken)

        async def many_lives(replica: Replica) -> None:
            while not done.is_set():
                await one_life(replica)
                await asyncio.sleep(chance.choice([0, 0.001, 0.03]))

        done = asyncio.Event()
        lives = [asyncio.create_task(many_lives(each)) for each in (one, one, one, two, two)]
        for _ in range(40):
            ids += await add(one.stream, chance.randint(1, 20))
            await asyncio.sleep(chance.choice([0, 0.005, 0.02]))
        await wait_until(lambda: written >= set(ids), "every event was written to somebody")
        done.set()
        await asyncio.gather(*lives)
        with one.worker() as worker:
            worker.work()
            await all_acknowledged(one)


async def test_work_that_comes_as_the_heartbeat_falls_due_is_not_acknowledged_unwritten(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_replica(valkey, heartbeat_s=0.01) as replica:
        acknowledge = replica.stream.groups.acknowledge

        with replica.worker() as worker:

            async def checked(group: str, ids: Iterable[StreamId]) -> None:
                ids = list(ids)
                assert set(ids) <= set(worker.got)
                await acknowledge(group, ids)

            monkeypatch.setattr(replica.stream.groups, "acknowledge", checked)
            await worker.greet()
            worker.work()  # a heartbeat is written and confirmed a hundred times a second
            ids: list[StreamId] = []
            for _ in range(60):
                ids += await add(replica.stream)
            await wait_until(lambda: worker.got == ids, "all of them")
            await all_acknowledged(replica)


async def test_work_given_in_the_moment_of_the_heartbeat_is_returned_by_the_same_call(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            lost = StreamId(1, 0)
            gap = Gap("trimmed", lost.before(), lost.after(), 1, lost)

            async def too_late(self: SharedSubscription, due: float) -> bool:
                self.share.give([], [str(lost)])
                return False

            monkeypatch.setattr(SharedSubscription, "_wait_until", too_late)
            assert await worker.subscription.next() == [gap]


async def test_a_process_reads_a_bounded_number_of_groups(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with contextlib.ExitStack() as stack:
            subscribe = partial(SharedSubscription, replica.groups)
            early = subscribe("early", Start(), EVERYTHING)
            for number in range(MAX_GROUPS):
                stack.enter_context(subscribe(f"g{number}", Start(), EVERYTHING))
            with pytest.raises(TooManyGroupsError):
                subscribe("another", Start(), EVERYTHING)
            stack.enter_context(subscribe("g0", Start(), EVERYTHING))
            with early:  # it asked in time and came too late
                [farewell] = await early.next() or []
                assert isinstance(farewell, Bye)
                assert str(MAX_GROUPS) in farewell.reason
                assert await early.next() is None
            assert len(replica.groups._groups) == MAX_GROUPS
        await wait_until(lambda: not replica.groups._groups, "all groups are let go")
        subscribe("another", Start(), EVERYTHING)


async def test_subscribers_of_groups_are_counted_while_they_are_there(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        gauge = replica.groups.metrics.subscribers.labels("shared")
        with replica.worker(), replica.worker():
            assert gauge._value.get() == 2
        assert gauge._value.get() == 0


async def test_closing_says_farewell_and_ends_in_a_bounded_time(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker, replica.worker() as other:
            await worker.greet()
            worker.work()
            ids = await add(replica.stream, 2)
            await wait_until(lambda: worker.got == ids, "work was done")
            replica.groups.close()
            await wait_until(lambda: worker.farewell, "the farewell")
            await other.greet()
            assert not await other_words(other)
            with replica.worker() as late:
                await late.greet()
                assert not await other_words(late)
        started = fair_time()
    assert fair_time() - started < 1


async def other_words(worker: Worker) -> list[StreamId]:
    """What a subscriber is given before its farewell."""
    while (items := await asyncio.wait_for(worker.subscription.next(), 2)) is not None:
        worker.note(items)
    assert worker.farewell is not None
    return worker.got


async def test_closing_ends_in_a_bounded_time_though_redis_is_frozen(own_valkey: Valkey) -> None:
    async with a_replica(own_valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            worker.work()
            own_valkey.signal(signal.SIGSTOP)
            await asyncio.sleep(0.1)
        started = fair_time()
    took = fair_time() - started
    own_valkey.signal(signal.SIGCONT)
    assert took < LAST_READ_S + 1


async def test_an_idle_subscriber_of_a_group_gets_its_heartbeat_in_time(valkey: Valkey) -> None:
    loop = asyncio.get_running_loop()
    async with a_replica(valkey, heartbeat_s=0.1) as replica:
        with replica.worker() as worker:
            await worker.greet()
            started, fair = loop.time(), fair_time()
            assert await worker.subscription.next() == []
            assert await worker.subscription.next() == []
            assert loop.time() - started > 0.19
            assert fair_time() - fair < 1


# -- bounds of reads -------------------------------------------------------------------------------


async def test_a_read_of_large_events_ends_and_the_next_goes_on(valkey: Valkey) -> None:
    large = b'{"source":"api","message":"%b"}' % (b"x" * 50_000)
    async with stream_at(address_of(valkey), maxlen=10**6) as stream:
        await stream.groups.create(GROUP, START)
        await stream.append([Append([large] * 150)])
        rows = await stream.range(START, END, 150)
        read: list[StreamId] = []
        while len(read) < 150:
            claimed = await stream.groups.read(GROUP, "one", 500)
            assert claimed.entries
            size = sum(len(entry.json) for entry in claimed.entries)
            assert size <= READ_BYTES + READ_ENTRIES * 50_100
            read += [entry.id for entry in claimed.entries]
            assert (claimed.end, claimed.lag) == (read[-1], 150 - len(read))
        assert read == [id_ for id_, _ in rows]
        assert (await stream.groups.read(GROUP, "one", 500)).entries == []


async def test_a_read_has_no_more_events_than_were_asked_for(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey), maxlen=10**6) as stream:
        await stream.groups.create(GROUP, START)
        ids = await add(stream, 100)
        for count in (1, READ_ENTRIES, READ_ENTRIES + 1):
            claimed = await stream.groups.read(GROUP, "one", count)
            assert [entry.id for entry in claimed.entries] == ids[:count]
            ids = ids[count:]


async def test_few_groups_read_at_the_same_time(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = most = 0
    async with a_replica(valkey) as replica:
        read = replica.stream.groups.read

        async def counted(*args: Any) -> Any:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                await asyncio.sleep(0.001)
                return await read(*args)
            finally:
                now -= 1

        monkeypatch.setattr(replica.stream.groups, "read", counted)
        with contextlib.ExitStack() as stack:
            workers = []
            for number in range(40):
                made = SharedSubscription(replica.groups, f"g{number}", Start(), EVERYTHING)
                workers.append(stack.enter_context(Worker(made)))
                await workers[-1].greet()
                workers[-1].work()
            ids = await add(replica.stream, 30)
            await wait_until(lambda: all(each.got == ids for each in workers), "all have all", 20)
        assert 1 < most <= READS


async def test_all_that_a_dead_consumer_left_is_claimed(valkey: Valkey) -> None:
    count = 2 * PENDING_ENTRIES + 10
    async with a_replica(valkey, batch_count=3 * PENDING_ENTRIES) as replica:
        await replica.stream.groups.create(GROUP, START)
        ids = await add(replica.stream, count)
        claimed = await replica.stream.groups.read(GROUP, "dead", count)
        assert len(claimed.entries) == count
        with replica.worker() as worker:
            worker.work()
            await wait_until(lambda: sorted(worker.got) == ids, "it has them", 20)


async def test_pending_entries_are_claimed_in_full_rounds(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, batch = 16 * PENDING_ENTRIES, 4 * PENDING_ENTRIES
    rounds = [0]
    """Entries claimed in each round."""
    async with a_replica(valkey, batch_count=batch, pending_idle_ms=60_000) as replica:
        groups = replica.stream.groups
        await groups.create(GROUP, START)
        ids = await add(replica.stream, count)
        await groups.read(GROUP, "dead", count)
        await groups.release(GROUP, "dead", ids)
        claim, holdings = groups.claim, groups.holdings

        async def counted(*args: Any, **more: Any) -> Any:
            claimed = await claim(*args, **more)
            assert len(claimed.entries) <= PENDING_ENTRIES
            rounds[-1] += len(claimed.entries)
            return claimed

        async def before_it(group: str) -> dict[str, int]:
            rounds.append(0)
            return await holdings(group)

        monkeypatch.setattr(groups, "claim", counted)
        monkeypatch.setattr(groups, "holdings", before_it)
        with replica.worker() as worker:
            worker.work()
            await wait_until(lambda: sorted(worker.got) == ids, "it has them", 20)
        assert [each for each in rounds if each] == [batch] * 4


async def test_no_more_large_entries_are_claimed_than_one_read(valkey: Valkey) -> None:
    large = b'{"source":"api","message":"%b"}' % (b"x" * 20_000)
    count = 3 * PENDING_ENTRIES
    async with a_replica(valkey, batch_count=count, pending_idle_ms=60_000) as replica:
        groups = replica.stream.groups
        await groups.create(GROUP, START)
        await replica.stream.append([Append([large] * count)])
        read = 0
        while read < count:
            claimed = await groups.read(GROUP, "dead", count)
            await groups.release(GROUP, "dead", [entry.id for entry in claimed.entries])
            read += len(claimed.entries)
        with replica.worker() as worker:
            await worker.greet()
            # One read is given to the subscriber, one is queued while it does not ask for more.
            assert len(await worker.take()) == PENDING_ENTRIES
            group = replica.groups._groups[GROUP]
            await wait_until(lambda: len(group._queue) == PENDING_ENTRIES, "it is full")
            await group._keep_once("one")
            assert len(group._queue) == PENDING_ENTRIES


async def test_a_subscriber_that_asks_begins_the_next_round_of_claims(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        with replica.worker() as worker:
            await worker.greet()
            group = replica.groups._groups[GROUP]
            group._claim_after = StreamId(1, 0)
            group._round_wanted.clear()
            waiting = asyncio.create_task(group._next_round(3600))
            await asyncio.sleep(0)
            assert not waiting.done()
            worker.work()
            await asyncio.wait_for(waiting, 10)
            # Where nothing is left to claim, it waits for as long as it was asked to.
            group._claim_after = START
            waiting = asyncio.create_task(group._next_round(3600))
            group.want_work()
            await asyncio.sleep(0.05)
            assert not waiting.done()
            waiting.cancel()
