"""At least once as a law: real groups on two replicas, on any schedule of workers and deaths."""

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition

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
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Hello, Item, Start
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.stream import Stream
from tests.helpers import wait_until
from tests.model import LOST, TWICE, LawBrokenError, is_in
from tests.schedules import (
    KEEP,
    TIMEOUT_S,
    WHERE,
    AnySchedule,
    Replica,
    Schedule,
    Subscriber,
    breaks,
    initialize,
    over,
    rule,
    run,
)
from tests.servers import Valkey
from tests.streams import NAME, OFTEN, address_of

GROUP = "workers"
IDLE_MS = 300
LOOK_S = 0.01

pytestmark = pytest.mark.timeout(TIMEOUT_S)


class Distributor(Replica):
    """A process's groups."""

    def __init__(self, valkey: Valkey, name: str) -> None:
        super().__init__(
            Stream(address_of(valkey), NAME, maxlen=10**6, block_ms=30, intervals=OFTEN)
        )
        self._background = Background()
        self._requests: set[asyncio.Task[int]] = set()
        self._dead = False
        self.groups = Groups(
            self.stream,
            Metrics(),
            self._background,
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
        if self._dead:
            return
        request = asyncio.create_task(self.groups.acknowledge(GROUP, member, [id_]))
        self._requests.add(request)
        request.add_done_callback(self._answered)
        await asyncio.wait((request,))

    def _answered(self, request: asyncio.Task[int]) -> None:
        self._requests.discard(request)
        if not request.cancelled() and not isinstance(request.exception(), Unavailable):
            request.result()

    async def stop(self) -> None:
        self._dead = True
        holding = filter(None, (self.groups._holding,))
        tasks: set[asyncio.Task[Any]] = {*self.groups._tasks, *holding, *self._requests}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        assert self._background.failure is None


class Worker(Subscriber[Distributor]):
    """A subscriber of the group, which has finished with an event when it was written to it."""

    def __init__(self, work: "SharedWork") -> None:
        super().__init__()
        self._work = work

    async def read(self, replica: Distributor) -> None:
        await self._receive(replica, None, self._work.got.update)

    async def _receive(
        self, replica: Distributor, member: Member | None, take: Callable[[list[StreamId]], None]
    ) -> None:
        start = Start(since=START)
        with SharedSubscription(replica.groups, GROUP, start, EVERYTHING, member) as subscription:
            while (items := await subscription.next()) is not None:
                if member is None and not isinstance(next(iter(items), None), Hello):
                    await self.flowing.wait()
                for item in items:
                    if isinstance(item, Gap):
                        self._work.gaps.append(item)
                    elif isinstance(item, Batch):
                        take([entry.id for entry in item.entries])
                await subscription.sent()


class Acknowledging(Worker):
    """A member with `ack=client`: what was written to it lies in buffers until it has finished with
    it, and is gone with them when it leaves. It acknowledges at any of the replicas."""

    IN_FLIGHT = 7

    async def read(self, replica: Distributor) -> None:
        member = Member(IDLE_MS / 1000, self.IN_FLIGHT)
        buffers: deque[StreamId] = deque()

        def take(ids: list[StreamId]) -> None:
            buffers.extend(ids)
            assert len(member.held) <= self.IN_FLIGHT

        async with asyncio.TaskGroup() as tasks:
            finishing = tasks.create_task(self._finish(replica, member, buffers))
            await self._receive(replica, member, take)
            finishing.cancel()

    async def _finish(self, replica: Distributor, member: Member, buffers: deque[StreamId]) -> None:
        while True:
            await self.flowing.wait()
            if not buffers:
                await asyncio.sleep(LOOK_S / 10)
                continue
            id_ = buffers.popleft()
            await asyncio.sleep(0)
            self._work.got[id_] += 1
            at = self._work.replicas[id_.seq % 2] if id_.seq % 3 else replica
            await at.acknowledge(member.id, id_)


class SharedWork(Schedule[Distributor, Worker]):
    """Two replicas, sometimes under one name, and the workers of a group."""

    patience = 5.0
    """Seconds within which another entry has to be received or reported as lost, while any is
    missing."""
    subscriber: type[Worker] = Worker

    def __init__(self) -> None:
        super().__init__()
        self.got: Counter[StreamId] = Counter()
        self.gaps: list[Gap] = []
        self.names: list[str] = []
        self.calm = 0
        """Since which entry nobody has left or died, nor was held up for so long that others had to
        take it for dead, so that nothing may come twice."""
        self.died_at_work = False
        self._watch: asyncio.Task[None] | None = None

    @initialize(
        names=st.sampled_from([["one", "two"], ["same", "same"]]),
        workers=st.lists(WHERE, max_size=4),
    )
    def begin(self, names: list[str], workers: list[int]) -> None:
        self.names = names
        self.do(self._begin(workers))
        self.log.begun = True

    async def _begin(self, workers: Sequence[int]) -> None:
        await self.reset()
        self._watch = asyncio.create_task(self._look_at_the_clock())
        await self.start_replicas()
        await self.replicas[0].stream.groups.create(GROUP, START)
        for where in workers:
            await self._join(where)

    def new_replica(self, where: int) -> Distributor:
        return Distributor(self.valkey, self.names[where])

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

    @rule(keep=KEEP)
    def trim(self, keep: int) -> None:
        super().trim(keep=keep)
        if not self.client.exists(NAME) or not self.client.xinfo_groups(NAME):
            # A process that comes now cannot know that there was a group before the flush.
            self.log.flushed_at = max(self.log.flushed_at, len(self.log.all) - keep)

    # Seldom: what came before a flush can no longer be judged.
    @precondition(lambda self: len(self.log.all) - self.log.flushed_at > 200)
    @rule()
    def flush(self) -> None:
        super().flush()
        self._troubled()

    @precondition(lambda self: len(self.subscribers) < 6)
    @rule(where=WHERE)
    def join(self, where: int) -> None:
        self.do(self._join(where))

    async def _join(self, where: int) -> None:
        await self.connect_to(self.subscriber(self), where)
        await asyncio.sleep(0)

    async def leave(self, subscriber: Worker) -> None:
        if subscriber.replica is not None:
            self._troubled(names=False)
        await super().leave(subscriber)

    async def restart(self, where: int) -> None:
        self._troubled()
        await super().restart(where)

    # Once: the others wait each time until what it had is taken for left behind.
    @precondition(lambda self: not self.died_at_work)
    @rule(where=WHERE)
    def kill_a_replica_at_work(self, where: int) -> None:
        self.died_at_work = True
        self.do(self._work_and_restart(where))

    async def _work_and_restart(self, where: int) -> None:
        await self._join(where)
        self.subscribers[-1].flowing.clear()
        await self.add("a" * 5)
        left = 20  # the other replica may be quicker with some of them
        while left and not self.replicas[where].busy:
            left -= 1
            await self.add("a")
            await asyncio.sleep(5 * LOOK_S)
        await self.restart(where)
        await self.add("a" * (1 + left))  # always as many, so that a schedule can be repeated

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.05]))
    def wait(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    async def heal_and_check(self) -> None:
        self.all_go_on()
        await self._join(0)
        await self._join(1)
        await self.add("a" * 12)  # more than one read gives: what comes last must not come twice
        while left := len(self._missing()):
            try:
                await wait_until(partial(self._fewer, left), "another one", self.patience)
            except AssertionError:
                break
        if missing := self._missing():
            raise LawBrokenError(f"{LOST}: {missing}, {self.gaps=}")
        twice = [each.id for each in self.log.all[self.calm :] if self.got[each.id] > 1]
        if twice:
            raise LawBrokenError(f"{TWICE}: {twice}, though no process had died")

    def _fewer(self, most: int) -> bool:
        """Whether fewer than `most` entries are missing."""
        for worker in self.subscribers:
            worker.check_alive()
        return len(self._missing()) < most

    def _missing(self) -> list[StreamId]:
        """Entries that were neither received nor reported; those before a flush do not count."""
        since = [written.id for written in self.log.all[self.log.flushed_at :]]
        return [id_ for id_ in since if id_ not in self.got and not is_in(id_, self.gaps)]

    async def end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().end()


class AcknowledgedWork(SharedWork):
    """As `SharedWork`, with members that acknowledge for themselves: one that stalls for too long
    loses its events to another, so that any may come twice."""

    subscriber = Acknowledging

    async def heal_and_check(self) -> None:
        self.calm = sys.maxsize
        await super().heal_and_check()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="logpipe")
    monkeypatch.setattr(group_module, "RECOVERY_S", 0.02)
    monkeypatch.setattr(consumer_module, "LEASE_S", 0.3)


@pytest.fixture
def shared(valkey: Valkey) -> AnySchedule:
    return over(valkey, SharedWork)


@pytest.fixture
def acknowledged(valkey: Valkey) -> AnySchedule:
    return over(valkey, AcknowledgedWork)


def test_every_event_is_finished_with_by_a_member_that_acknowledges(
    acknowledged: AnySchedule,
) -> None:
    run(acknowledged)


def test_every_event_of_a_group_is_received_or_reported(shared: AnySchedule) -> None:
    run(shared)


# The controls


def impatient_about(machine: AnySchedule, kind: str) -> bool:
    """As `breaks`; what never comes is waited for less long."""
    return breaks(type(machine.__name__, (machine,), {"patience": 1.5}), kind)


def test_work_not_claimed_from_the_dead_breaks_the_law(
    shared: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None: ...

    monkeypatch.setattr(Group, "_claim", never)
    monkeypatch.setattr(Group, "_read_history", never)
    assert impatient_about(shared, LOST)


def test_losses_that_are_not_reported_break_the_law(
    shared: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "told", lambda _: [])
    assert impatient_about(shared, LOST)


def test_an_event_that_two_receive_breaks_the_law(
    shared: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = Share.give

    def to_one_more(self: Share, entries: list[Entry], losses: Sequence[str]) -> None:
        give(self, [*entries, *given[-1:]], losses)
        given.extend(entries)

    given: list[Entry] = []
    monkeypatch.setattr(Share, "give", to_one_more)
    assert impatient_about(shared, TWICE)


def test_events_acknowledged_unseen_break_the_law(
    shared: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = SharedSubscription.next

    async def without_events(self: SharedSubscription) -> Sequence[Item] | None:
        items = await following(self)
        return items and [item for item in items if not isinstance(item, Batch)]

    monkeypatch.setattr(SharedSubscription, "next", without_events)
    assert impatient_about(shared, LOST)


def test_events_acknowledged_when_written_break_the_law(
    acknowledged: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = SharedSubscription.sent

    async def and_acknowledged(self: SharedSubscription) -> None:
        member = self.share.member
        assert member is not None
        await self._groups.acknowledge(GROUP, member.id, [e.id for e in self.share.entries])
        await sent(self)

    monkeypatch.setattr(SharedSubscription, "sent", and_acknowledged)
    assert impatient_about(acknowledged, LOST)
