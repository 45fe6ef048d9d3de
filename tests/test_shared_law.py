"""At least once as a law: real groups on two replicas, on any schedule of workers and deaths."""

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from logpipe.background import Background
from logpipe.continuity import Gap
from logpipe.event import Entry
from logpipe.filters import EVERYTHING
from logpipe.groups import Groups
from logpipe.groups import consumer as consumer_module
from logpipe.groups import group as group_module
from logpipe.groups.group import Group, Share
from logpipe.groups.member import Member
from logpipe.groups.shared import SharedSubscription
from logpipe.ids import START, StreamId, parse_id
from logpipe.messages import Batch, Hello, Item, Start
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.stream import Stream
from tests.helpers import wait_until
from tests.model import Written
from tests.schedules import FIRST_FAILURE, SCHEDULES, TIMEOUT_S, Schedule, fails, over, run
from tests.servers import Valkey
from tests.streams import NAME, QUICK, address_of, event

GROUP = "workers"
IDLE_MS = 300
FEW = settings(FIRST_FAILURE, max_examples=SCHEDULES or 30)
"""Each waits at its end for what the dead have left behind."""
LOOK_S = 0.01


class Replica:
    """A process's groups, which can die without giving anything back."""

    def __init__(self, valkey: Valkey, name: str) -> None:
        self.stream = Stream(address_of(valkey), NAME, maxlen=10**6, block_ms=30, intervals=QUICK)
        self.background = Background()
        self.requests: set[asyncio.Task[int]] = set()
        self.dead = False
        self.groups = Groups(
            self.stream,
            Metrics(),
            self.background,
            consumer=name,
            pending_idle_ms=IDLE_MS,
            batch_count=5,
            heartbeat_s=15.0,
        )

    @property
    def busy(self) -> bool:
        """Whether it has read what is not acknowledged yet."""
        return any(group._in_flight for group in self.groups._groups.values())

    async def acknowledge(self, member: str, id_: StreamId) -> None:
        """A request of a member, which does not know what became of it where the replica dies."""
        if self.dead:
            return
        request = asyncio.create_task(self.groups.acknowledge(GROUP, member, [id_]))
        self.requests.add(request)
        request.add_done_callback(self._answered)
        await asyncio.wait((request,))

    def _answered(self, request: asyncio.Task[int]) -> None:
        self.requests.discard(request)
        if not request.cancelled() and not isinstance(request.exception(), Unavailable):
            request.result()

    async def die(self, workers: Sequence["Worker"]) -> None:
        """Nothing is given back; its workers lose their connections."""
        self.dead = True
        holding = filter(None, (self.groups._holding,))
        tasks: set[asyncio.Task[Any]] = {*self.groups._tasks, *holding, *self.requests}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for worker in workers:
            await worker.leave()
        await self.stream.aclose()
        assert self.background.failure is None


class Worker:
    """A subscriber of the group; `flowing` while it writes what it is given."""

    def __init__(self, replica: Replica, got: Counter[StreamId], gaps: list[Gap]) -> None:
        self.replica = replica
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._got = got
        self._gaps = gaps
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        start = Start(since=START)
        with SharedSubscription(self.replica.groups, GROUP, start, EVERYTHING) as subscription:
            while (items := await subscription.next()) is not None:
                if not isinstance(next(iter(items), None), Hello):
                    await self.flowing.wait()
                for item in items:
                    if isinstance(item, Gap):
                        self._gaps.append(item)
                    elif isinstance(item, Batch):
                        self._got.update(entry.id for entry in item.entries)
                await subscription.sent()

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))
        if not self.task.cancelled():
            self.task.result()


class Acknowledging(Worker):
    """A member with `ack=client`: what was written to it lies in buffers until it has finished with
    it, and is gone with them when it leaves. It acknowledges at any of the replicas."""

    IN_FLIGHT = 7

    def __init__(
        self, replica: Replica, got: Counter[StreamId], gaps: list[Gap], others: list[Replica]
    ) -> None:
        self._others = others
        self._member = Member(IDLE_MS / 1000, self.IN_FLIGHT)
        self._buffers: deque[StreamId] = deque()
        super().__init__(replica, got, gaps)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            finishing = tasks.create_task(self._finish())
            await self._receive()
            finishing.cancel()

    async def _receive(self) -> None:
        start = Start(since=START)
        with SharedSubscription(
            self.replica.groups, GROUP, start, EVERYTHING, self._member
        ) as subscription:
            while (items := await subscription.next()) is not None:
                for item in items:
                    if isinstance(item, Gap):
                        self._gaps.append(item)
                    elif isinstance(item, Batch):
                        self._buffers.extend(entry.id for entry in item.entries)
                        assert len(self._member.held) <= self.IN_FLIGHT
                await subscription.sent()

    async def _finish(self) -> None:
        while True:
            await self.flowing.wait()
            if not self._buffers:
                await asyncio.sleep(LOOK_S / 10)
                continue
            id_ = self._buffers.popleft()
            await asyncio.sleep(0)
            self._got[id_] += 1
            at = self._others[id_.seq % 2] if id_.seq % 3 else self.replica
            await at.acknowledge(self._member.id, id_)


class SharedWork(Schedule):
    """Two replicas, sometimes under one name, and workers that come, stall and go."""

    patience = 5.0
    """Seconds within which another entry has to be received or reported as lost, while any is
    missing."""

    def __init__(self) -> None:
        super().__init__()
        self.got: Counter[StreamId] = Counter()
        self.gaps: list[Gap] = []
        self.workers: list[Worker] = []
        self.replicas: list[Replica] = []
        self.names: list[str] = []
        self.calm = 0
        """Since which entry nobody has left or died, nor was held up for so long that others had to
        take it for dead, so that nothing may come twice."""
        self.died_at_work = False
        self._watch: asyncio.Task[None] | None = None

    @initialize(
        names=st.sampled_from([["one", "two"], ["same", "same"]]),
        workers=st.lists(st.integers(0, 1), max_size=4),
    )
    def begin(self, names: list[str], workers: list[int]) -> None:
        self.valkey.reset()
        self.names = names
        self.do(self._start(workers))
        self.log.begun = True

    async def _start(self, workers: Sequence[int]) -> None:
        self._watch = asyncio.create_task(self._look_at_the_clock())
        self.replicas = [Replica(self.valkey, name) for name in self.names]
        await self.replicas[0].stream.groups.create(GROUP, START)
        for where in workers:
            await self._join(where)

    def _troubled(self, *, names: bool = True) -> None:
        """Also as to the leases of names: of two replicas under one name, both may then read for a
        while as the same consumer, what is in flight included."""
        doubtful = names and len({*self.names}) == 1
        self.calm = sys.maxsize if doubtful else max(len(self.log.all), self.calm)

    async def _look_at_the_clock(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK_S)
            if time.monotonic() - before > IDLE_MS / 3000:
                self._troubled()

    @rule(count=st.integers(1, 30), seconds=st.sampled_from([0.0, 0.01, 0.03]))
    def append(self, count: int, seconds: float) -> None:
        self._append(count)
        self.do(asyncio.sleep(seconds))

    def _append(self, count: int) -> None:
        with self.valkey.client.pipeline(transaction=True) as pipe:
            for number in range(count):
                pipe.xadd(NAME, {"event": event(number)})
            self.log.append([Written(parse_id(id_.decode()), "") for id_ in pipe.execute()])

    @rule(keep=st.integers(0, 20))
    def trim(self, keep: int) -> None:
        self.valkey.client.xtrim(NAME, maxlen=keep, approximate=False)
        if not self.valkey.client.exists(NAME) or not self.valkey.client.xinfo_groups(NAME):
            # A process that comes now cannot know that there was a group before the flush.
            self.log.flushed_at = max(self.log.flushed_at, len(self.log.all) - keep)

    # Seldom: what came before a flush can no longer be judged.
    @precondition(lambda self: len(self.log.all) - self.log.flushed_at > 200)
    @rule()
    def flush(self) -> None:
        self.valkey.client.flushall()
        self.log.flush()
        time.sleep(0.002)
        self._troubled()

    @precondition(lambda self: len(self.workers) < 6)
    @rule(where=st.integers(0, 1))
    def join(self, where: int) -> None:
        self.do(self._join(where))

    async def _join(self, where: int) -> None:
        self.workers.append(self._worker(self.replicas[where]))
        await asyncio.sleep(0)

    def _worker(self, replica: Replica) -> Worker:
        return Worker(replica, self.got, self.gaps)

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 5))
    def stall_or_go_on(self, which: int) -> None:
        flowing = self.workers[which % len(self.workers)].flowing
        (flowing.clear if flowing.is_set() else flowing.set)()

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 5))
    def leave(self, which: int) -> None:
        self._troubled(names=False)
        self.do(self.workers.pop(which % len(self.workers)).leave())

    @rule(where=st.integers(0, 1))
    def kill_a_replica(self, where: int) -> None:
        self._troubled()
        self.do(self._restart(where))

    # Once: the others wait each time until what it had is taken for left behind.
    @precondition(lambda self: not self.died_at_work)
    @rule(where=st.integers(0, 1))
    def kill_a_replica_at_work(self, where: int) -> None:
        self.died_at_work = True
        self.do(self._join(where))
        self.workers[-1].flowing.clear()
        self._append(5)
        self._troubled()
        self.do(self._work_and_restart(where))

    async def _work_and_restart(self, where: int) -> None:
        left = 20  # the other replica may be quicker with some of them
        while left and not self.replicas[where].busy:
            left -= 1
            self._append(1)
            await asyncio.sleep(5 * LOOK_S)
        await self._restart(where)
        self._append(1 + left)  # always as many, so that a schedule can be repeated

    async def _restart(self, where: int) -> None:
        await self._die(self.replicas[where])
        self.replicas[where] = Replica(self.valkey, self.names[where])

    async def _die(self, dead: Replica) -> None:
        orphans = [worker for worker in self.workers if worker.replica is dead]
        self.workers = [worker for worker in self.workers if worker not in orphans]
        await dead.die(orphans)

    @rule()
    def cut_connections(self) -> None:
        self.valkey.client.client_kill_filter(_type="normal", skipme=True)

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.05]))
    def pause(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    async def heal_and_check(self) -> None:
        for worker in self.workers:
            worker.flowing.set()
        await self._join(0)
        await self._join(1)
        self._append(12)  # more than one read gives: also what comes last must not come twice
        while left := len(self._missing()):
            try:
                await wait_until(partial(self._fewer, left), "another one", self.patience)
            except AssertionError:
                break
        assert self._missing() == [], f"neither received nor told: {self.gaps=}"
        assert self._twice() == [], "twice though nobody had died"

    def _fewer(self, most: int) -> bool:
        """Whether fewer than `most` entries are missing."""
        for worker in self.workers:
            if worker.task.done():
                worker.task.result()
        return len(self._missing()) < most

    def _missing(self) -> list[StreamId]:
        """Entries that were neither received nor reported; those before a flush do not count."""
        since = [written.id for written in self.log.all[self.log.flushed_at :]]
        reported = [id_ for id_ in since for g in self.gaps if g.after < id_ < g.before]
        return sorted({*since} - {*reported, *self.got})

    def _twice(self) -> list[StreamId]:
        return [each.id for each in self.log.all[self.calm :] if self.got[each.id] > 1]

    async def end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for replica in self.replicas:
            await self._die(replica)


class AcknowledgedWork(SharedWork):
    """As `SharedWork`, with members that acknowledge for themselves: one that stalls for too long
    loses its events to another, so that any may come twice."""

    def _worker(self, replica: Replica) -> Worker:
        return Acknowledging(replica, self.got, self.gaps, self.replicas)

    def _twice(self) -> list[StreamId]:
        return []


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="logpipe")
    monkeypatch.setattr(group_module, "RECOVERY_S", 0.02)
    monkeypatch.setattr(consumer_module, "LEASE_S", 0.3)


@pytest.fixture
def shared(valkey: Valkey) -> type[Schedule]:
    return over(valkey, SharedWork)


@pytest.fixture
def acknowledged(valkey: Valkey) -> type[Schedule]:
    return over(valkey, AcknowledgedWork)


@pytest.mark.timeout(TIMEOUT_S)
def test_every_event_is_finished_with_by_a_member_that_acknowledges(
    acknowledged: type[Schedule],
) -> None:
    run(acknowledged, FEW)


@pytest.mark.timeout(TIMEOUT_S)
def test_every_event_of_a_group_is_received_or_told_as_lost_on_any_schedule(
    shared: type[Schedule],
) -> None:
    run(shared, FEW)


# The controls


def noticed(machine: type[Schedule]) -> bool:
    """Whether some schedule breaks the law; who waits for what never comes waits less."""
    return fails(type(machine.__name__, (machine,), {"patience": 1.5}))


def test_work_that_is_not_claimed_from_the_dead_is_noticed(
    shared: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None: ...

    monkeypatch.setattr(Group, "_claim", never)
    monkeypatch.setattr(Group, "_read_history", never)
    assert noticed(shared)


def test_losses_that_are_not_told_are_noticed(
    shared: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "told", lambda _: [])
    assert noticed(shared)


def test_an_event_that_two_subscribers_get_is_noticed(
    shared: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    give = Share.give

    def to_one_more(self: Share, entries: list[Entry], losses: Sequence[str]) -> None:
        give(self, [*entries, *given[-1:]], losses)
        given.extend(entries)

    given: list[Entry] = []
    monkeypatch.setattr(Share, "give", to_one_more)
    assert noticed(shared)


def test_events_that_are_acknowledged_unseen_are_noticed(
    shared: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    following = SharedSubscription.next

    async def without_events(self: SharedSubscription) -> Sequence[Item] | None:
        items = await following(self)
        return items and [item for item in items if not isinstance(item, Batch)]

    monkeypatch.setattr(SharedSubscription, "next", without_events)
    assert noticed(shared)


def test_events_acknowledged_when_written_are_noticed(
    acknowledged: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = SharedSubscription.sent

    async def and_acknowledged(self: SharedSubscription) -> None:
        member = self.share.member
        assert member is not None
        await self._groups.acknowledge(GROUP, member.id, [e.id for e in self.share.entries])
        await sent(self)

    monkeypatch.setattr(SharedSubscription, "sent", and_acknowledged)
    assert noticed(acknowledged)
