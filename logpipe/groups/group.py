"""One consumer group, as a process takes part in it.

A group is read only while one of its subscribers here waits for work, so that slow readers slow
the reading, and what nobody here can take stays for the other replicas. An entry is acknowledged
after it was written; while it is in flight, its idle time is kept at zero, so that no other
replica takes it from a reader that is merely slow. When a subscriber leaves, what it had not
acknowledged goes to the others here; when the process dies, to another replica.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from logpipe import __version__
from logpipe.continuity import NO_STREAM, Gap
from logpipe.event import Entry, weight_of
from logpipe.groups.consumer import Consumer
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Hello, Item, Start
from logpipe.metrics import GroupMetrics
from logpipe.problems import Unavailable
from logpipe.stream import WRITES_ONLY, Claimed, NoGroupError, Stream, gap_of
from logpipe.stream.groups import READ_BYTES

log = logging.getLogger("logpipe.groups")

KEEPER_S = 1.0
"""The longest time in seconds between two rounds of keeping, acknowledging and claiming."""

RECOVERY_S = 1.0
"""How long a group waits for word that Redis is back before it looks for itself."""

PENDING_ENTRIES = 64
"""Pending entries that one read takes over at the most, as many as `BATCH_COUNT` allows: of events
of 64 KiB 4 MiB."""


class Terms(NamedTuple):
    """How a process takes part in its groups."""

    consumer: Consumer
    pending_idle_ms: int
    batch_count: int
    reads: asyncio.Semaphore
    """The seats for reads of entries, of all groups together."""

    @property
    def pending_count(self) -> int:
        """How many pending entries one read takes over at the most."""
        return min(self.batch_count, PENDING_ENTRIES)


class Share:
    """One subscriber's hand: what it was given of a group and has not written yet."""

    def __init__(self) -> None:
        self.asking = False
        """Whether the subscriber waits for work, or for word that it need not."""
        self.items: list[Item] = []
        self.entries: list[Entry] = []
        """The entries among the items, to be acknowledged."""
        self.losses: list[str] = []
        """Records of the losses that gaps among the items tell of."""
        self.woken = asyncio.Event()

    @property
    def waiting(self) -> bool:
        """Whether it can take work."""
        return self.asking and not self.items

    def give(self, entries: list[Entry], losses: Sequence[str]) -> None:
        """Hands it work: losses to be told of, then entries to acknowledge."""
        self.entries = entries
        self.losses = list(losses)
        self.items = [*told(losses)]
        if entries:
            self.items.append(Batch.of(entries))
        self.wake()

    def wake(self) -> None:
        """Makes its subscriber look again."""
        self.woken.set()


def told(losses: Sequence[str]) -> Iterator[Gap]:
    """The gaps of recorded losses: one for all entries that were trimmed while they were pending,
    and one each for what was trimmed unread."""
    ids = [gap_of(record).resume for record in losses if " " not in record]
    if ids:
        yield Gap("trimmed", min(ids).before(), max(ids).after(), len(ids), max(ids))
    yield from (gap_of(record) for record in losses if " " in record)


class Group:
    """One consumer group: its subscribers here, what is queued for them, and the reading."""

    def __init__(
        self, name: str, stream: Stream, terms: Terms, metrics: GroupMetrics, start: Start
    ) -> None:
        self.name = name
        self.stream = stream
        self.members: set[Share] = set()
        self.closing = False
        self.lag: int | None = None
        """How many entries the group had not read at the last read here, where that is known."""
        self._terms = terms
        self._metrics = metrics
        self._start = start
        self._begun_ms = time.time_ns() // 1_000_000
        self._exists = False
        """Whether the group was there: when it is missing then, Redis was flushed, or a failover
        came before the replica knew of it."""
        self._gone = False
        """Whether that has happened: then all that is new in the stream is the group's."""
        self._read_until = START
        """How far the group had read by its last read here."""
        self._creating = asyncio.Lock()
        self._queue: deque[Entry] = deque()
        self._losses: list[str] = []
        self._told: set[str] = set()
        self._in_flight: set[StreamId] = set()
        self._written: set[StreamId] = set()
        self._claim_after = START
        self._swept = time.monotonic()
        self._work_wanted = asyncio.Event()
        self._claim_wanted = asyncio.Event()
        """Set when a subscriber asks and the queue has nothing for it."""

    # -- subscribers --------------------------------------------------------------------------

    def leave(self, member: Share) -> None:
        """Lets a subscriber go; the others get what it was given and did not write."""
        self.members.discard(member)
        self._queue.extendleft(reversed(member.entries))
        self._losses[:0] = member.losses
        self._hand_out()
        self._work_wanted.set()

    async def hello(self) -> Hello:
        """The first word to a subscriber; while Redis is away it knows no ids.

        The group exists by then, so that what is sent after the hello is the group's.
        """
        try:
            await self._create()
            bounds = await self.stream.bounds()
        except Unavailable:
            bounds = NO_STREAM
        last = bounds.last if bounds.last > START else None
        return Hello(bounds.last, bounds.first, last, "shared", __version__)

    def want_work(self) -> None:
        """Gives a subscriber that asks what is queued, and makes the group read and claim more."""
        self._work_wanted.set()
        self._hand_out()
        if self._has_waiting_member:
            self._claim_wanted.set()

    def wake_all(self) -> None:
        """Makes every subscriber and the reader look again."""
        self._work_wanted.set()
        for member in self.members:
            member.wake()

    async def acknowledge(self, entries: Sequence[Entry], losses: Sequence[str]) -> None:
        """Takes note of what was written, and tells Redis now or when it is back."""
        self._written.update(entry.id for entry in entries)
        self._told.update(losses)
        try:
            await self._flush_written()
        except (Unavailable, NoGroupError):
            log.debug("acknowledged later: %d", len(self._written))

    async def _flush_written(self) -> None:
        if self._written:
            ids = list(self._written)
            await self.stream.groups.acknowledge(self.name, ids)
            self._written.difference_update(ids)
            self._in_flight.difference_update(ids)
        if self._told:
            records = list(self._told)
            await self.stream.groups.told(self.name, records)
            self._told.difference_update(records)

    def _hand_out(self) -> None:
        """Splits what is there evenly among the subscribers that wait; the first tells the gaps."""
        waiting = [member for member in self.members if member.waiting]
        while waiting and (self._queue or self._losses):
            share = -(-len(self._queue) // len(waiting))
            entries = [self._queue.popleft() for _ in range(share)]
            losses, self._losses = self._losses, []
            waiting.pop().give(entries, losses)

    # -- reading ------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether there is a subscriber to read for."""
        return bool(self.members) and not self.closing

    @property
    def _has_waiting_member(self) -> bool:
        return any(member.waiting for member in self.members)

    async def run(self) -> None:
        """Reads while there are subscribers."""
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(self._keep())
            await self._run()
            keeper.cancel()
        self._metrics.forget()

    async def _run(self) -> None:
        """The one loop that reconnects."""
        while self.wanted:
            try:
                await self._create()
                await self._read()
                await self._release()
            except NoGroupError:
                log.warning("the consumer group %r is gone and made anew", self.name)
                self._exists, self._gone = False, True
                self._in_flight.clear()
                self._written.clear()
            except Unavailable:
                await self.stream.health.recovered(RECOVERY_S)
                await asyncio.sleep(0.05)

    async def _create(self) -> None:
        """Makes sure that the group exists."""
        async with self._creating:
            if self._exists:
                return
            if self._gone:
                self._start = Start(resume=await self.stream.same_until(self._read_until))
            first = self._first()
            anew = self._gone and first == START
            try:
                await self.stream.groups.create(self.name, first, from_the_first=anew)
            except Unavailable as error:
                if first is None:
                    # What is sent until Redis is back is new to the group.
                    self._start = Start(since=StreamId(self._begun_ms, 0))
                if not await self._is_there(error):
                    raise
            self._exists = True

    async def _is_there(self, error: Unavailable) -> bool:
        """A Redis without memory creates no group, not even one that it has; but it reads."""
        if error.kind not in WRITES_ONLY:
            return False
        try:
            await self.stream.groups.pending(self.name)
        except NoGroupError:
            return False
        return True

    async def _release(self) -> None:
        """Gives back what was read and has no reader here, for other replicas to take at once."""
        await self._flush_written()
        if self._losses:
            await self.stream.groups.hand_back(self.name, self._losses)
            self._losses.clear()
        ids = [entry.id for entry in self._queue]
        self._queue.clear()
        self._in_flight.difference_update(ids)
        if ids:
            await self.stream.groups.release(self.name, self._terms.consumer.name, ids)
        await self.stream.groups.leave(self.name, self._terms.consumer.name)

    async def release_at_end(self) -> None:
        """The last `_release`, when the process ends and all subscribers have left."""
        with contextlib.suppress(Unavailable, NoGroupError):
            await self._release()

    def _first(self) -> StreamId | None:
        if self._start.resume is not None:
            return self._start.resume
        return self._start.since.before() if self._start.since is not None else None

    async def _read(self) -> None:
        """Reads whenever a subscriber waits, until none is left."""
        consumer = self._terms.consumer
        read_as = ""
        while self.wanted:
            if not self._has_waiting_member:
                self._work_wanted.clear()
                await self._work_wanted.wait()
                continue
            if not consumer.name:
                await consumer.hold()
            if consumer.name != read_as:
                # First what this consumer was given before, by a process or a connection that is
                # gone.
                read_as = consumer.name
                pending: StreamId | None = START
            if pending is not None:
                pending = await self._read_history(read_as, pending)
                continue
            async with self._terms.reads:
                claimed = await self.stream.groups.read(self.name, read_as, self._terms.batch_count)
            for record in claimed.losses:
                self._metrics.lost(gap_of(record).count)
            self._read_until = claimed.end
            self.lag = claimed.lag
            self._metrics.lag(claimed.lag)
            self._take(claimed)
            if not claimed.entries and not claimed.unreadable:
                await self.stream.wait(claimed.end)

    async def _read_history(self, consumer: str, after: StreamId) -> StreamId | None:
        """Takes a page of what is pending for a consumer; the id to go on from, None at the end."""
        async with self._terms.reads:
            history = await self.stream.groups.history(
                self.name, consumer, self._terms.pending_count, after
            )
        if history.lost:
            await self.stream.groups.lose(self.name, history.lost)
        self._take(history)
        ids = [*(entry.id for entry in history.entries), *history.lost, *history.unreadable]
        return max(ids, default=None)

    def _take(self, claimed: Claimed) -> None:
        """Queues what Redis gave, apart from what is in flight here already."""
        new = [entry for entry in claimed.entries if entry.id not in self._in_flight]
        self._in_flight.update(entry.id for entry in new)
        self._queue.extend(new)
        self._written.update(claimed.unreadable)
        self._metrics.unreadable(len(claimed.unreadable))
        # What was trimmed and is in flight here reaches its subscriber all the same.
        self._told.update(str(id_) for id_ in claimed.lost if id_ in self._in_flight)
        lost = [str(id_) for id_ in claimed.lost if id_ not in self._in_flight]
        self._metrics.lost(len(lost))
        if found := [*lost, *claimed.losses]:
            here = {*self._told, *self._losses, *(each for m in self.members for each in m.losses)}
            self._losses += [record for record in found if record not in here]
        self._hand_out()

    async def _keep(self) -> None:
        """Keeps what is in flight, acknowledges late, and claims what others left behind."""
        pause = min(KEEPER_S, self._terms.pending_idle_ms / 3000)
        while True:
            await self._next_round(pause)
            if not self._terms.consumer.name:
                continue
            try:
                await self._keep_once(self._terms.consumer.name)
            except (Unavailable, NoGroupError) as error:
                log.debug("next round: %s", error)

    async def _next_round(self, pause: float) -> None:
        """Returns after `pause` seconds; where the last round has left entries to claim, as soon
        as a subscriber asks for work."""
        if self._claim_after == START:
            await asyncio.sleep(pause)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._claim_wanted.wait()

    async def _keep_once(self, consumer: str) -> None:
        self._claim_wanted.clear()
        # Looked at before the reader, which the same subscriber woke, can give it new entries.
        claiming = self._has_waiting_member
        await self._flush_written()
        if self._in_flight:
            await self.stream.groups.keep(self.name, consumer, self._in_flight)
        if claiming:
            await self._claim_many(consumer)
        if time.monotonic() - self._swept > self._terms.pending_idle_ms / 1000:
            self._swept = time.monotonic()
            await self.stream.groups.sweep(self.name, consumer, self._terms.pending_idle_ms)
        self._metrics.pending(await self.stream.groups.pending(self.name))

    async def _claim_many(self, consumer: str) -> None:
        """Claims entries until the queue has about `BATCH_COUNT` of them or `READ_BYTES`."""
        for _ in range(0, self._terms.batch_count, self._terms.pending_count):
            await self._claim(consumer)
            queued_bytes = weight_of(self._queue)
            full = len(self._queue) >= self._terms.batch_count or queued_bytes >= READ_BYTES
            if full or self._claim_after == START:
                break

    async def _claim(self, consumer: str) -> None:
        async with self._terms.reads:
            claimed = await self.stream.groups.claim(
                self.name,
                consumer,
                self._terms.pending_idle_ms,
                self._terms.pending_count,
                after=self._claim_after,
            )
        self._claim_after = claimed.end
        self._metrics.claimed(len(claimed.entries))
        self._take(claimed)
