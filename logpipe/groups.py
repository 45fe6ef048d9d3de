"""Shared delivery: the subscribers of a consumer group split its events, each at least once.

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
from collections.abc import Coroutine, Sequence
from typing import Any, Self

from logpipe import __version__
from logpipe.background import Background
from logpipe.continuity import NO_STREAM, Cursor, Gap
from logpipe.event import Entry
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Hello, Item, Start
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.stream import WRITES_ONLY, Claimed, NoGroupError, Stream

log = logging.getLogger("logpipe.groups")

MAX_GROUPS = 64
"""Consumer groups that one process reads at a time; a client may name any, Redis keeps them all."""

KEEPER_S = 1.0
"""The longest time between two rounds of keeping, acknowledging and claiming."""

LAST_READ_S = 2.0
"""How long the end of the process waits for a read under way."""

LAST_RELEASE_S = 0.5
"""How long it waits to give back what no subscriber took."""

RECOVERY_S = 1.0
"""How long a group waits for word that Redis is back before it looks for itself."""


class TooManyGroupsError(Exception):
    """This process already reads MAX_GROUPS groups."""


class Groups:
    """The groups that have subscribers in this process."""

    def __init__(
        self,
        stream: Stream,
        metrics: Metrics,
        background: Background,
        *,
        consumer: str,
        pending_idle_ms: int,
        batch_count: int,
        heartbeat_s: float,
    ) -> None:
        self.stream = stream
        self.metrics = metrics
        self.consumer = consumer
        self.pending_idle_ms = pending_idle_ms
        self.batch_count = batch_count
        self.heartbeat_s = heartbeat_s
        self.closing = False
        self._groups: dict[str, Group] = {}
        self._background = background
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # The reads end by themselves within BLOCK_MS: one that is cancelled may have been given
        # entries that nobody would get before PENDING_IDLE_MS.
        self.close()
        if self._tasks:
            late = (await asyncio.wait(self._tasks, timeout=LAST_READ_S))[1]
            for task in late:
                task.cancel()
            if late:  # they let go of their connections before the stream closes these
                await asyncio.wait(late)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_RELEASE_S):
                for group in self._groups.values():
                    await group.release_at_end()

    def refuse_more_than_allowed(self, group: str) -> None:
        """Raises `TooManyGroupsError` for a group that this process would have to read as well."""
        if group not in self._groups and len(self._groups) >= MAX_GROUPS:
            raise TooManyGroupsError(f"{MAX_GROUPS} groups are read here already")

    def join(self, name: str, start: Start, share: "Share") -> "Group":
        """Takes a subscriber into its group, which begins where `start` says unless it exists.

        The group is read here from its first subscriber on, not before: a request that is never
        answered by a stream (HEAD, or a client that has left) would keep its group for ever.
        Raises `TooManyGroupsError`.
        """
        self.refuse_more_than_allowed(name)
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(self, name, start)
        group.join(share)
        return group

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a group's task; one that fails ends the process."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._background.watch(task)
        return task

    def forget(self, group: "Group") -> None:
        """A group has no subscriber left."""
        self._groups.pop(group.name, None)

    def close(self) -> None:
        """Ends all subscriptions with a `Bye`."""
        self.closing = True
        for group in self._groups.values():
            group.wake_all()


class Share:
    """One subscriber's hand: what it was given of a group and has not written yet."""

    def __init__(self) -> None:
        self.asking = False
        """Whether the subscriber waits for work, or for word that it need not."""
        self.items: list[Item] = []
        self.entries: list[Entry] = []
        """The entries among the items, to be acknowledged."""
        self.lost: list[StreamId] = []
        """The ids that a gap among the items tells of."""
        self.woken = asyncio.Event()

    @property
    def waiting(self) -> bool:
        """Whether it can take work."""
        return self.asking and not self.items

    def give(self, items: list[Item], entries: list[Entry], lost: Sequence[StreamId] = ()) -> None:
        """Hands it work: `entries` to acknowledge, `lost` to be told of."""
        self.items = items
        self.entries = entries
        self.lost = list(lost)
        self.wake()

    def wake(self) -> None:
        """Makes its subscriber look again."""
        self.woken.set()


class Group:
    """One consumer group as this process takes part in it."""

    def __init__(self, groups: Groups, name: str, start: Start) -> None:
        self.name = name
        self.groups = groups
        self.stream = groups.stream
        self.members: set[Share] = set()
        self._start = start
        self._begun_ms = time.time_ns() // 1_000_000
        self._exists = False
        """Whether the group was there: when it is missing then, Redis was flushed."""
        self._creating = asyncio.Lock()
        self._queue: deque[Entry] = deque()
        self._lost: list[StreamId] = []
        self._in_flight: set[StreamId] = set()
        self._written: set[StreamId] = set()
        self._claim_after = START
        self._work_wanted = asyncio.Event()
        self._running = False

    # -- subscribers --------------------------------------------------------------------------

    def join(self, member: "Share") -> None:
        """Takes a subscriber in, and begins to read with the first."""
        self.members.add(member)
        if not self._running and not self.groups.closing:
            self._running = True
            self.groups.spawn(self._run())

    def leave(self, member: "Share") -> None:
        """Lets a subscriber go; the others get what it was given and did not write."""
        self.members.discard(member)
        self._queue.extendleft(reversed(member.entries))
        self._lost.extend(member.lost)
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
        """A subscriber waits."""
        self._work_wanted.set()
        self._hand_out()

    def wake_all(self) -> None:
        """Makes every subscriber and the reader look again."""
        self._work_wanted.set()
        for member in self.members:
            member.wake()

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Takes note that entries were written, and tells Redis now or when it is back."""
        self._written.update(entry.id for entry in entries)
        try:
            await self._flush_written()
        except (Unavailable, NoGroupError):
            log.debug("acknowledged later: %d", len(self._written))

    async def _flush_written(self) -> None:
        if not self._written:
            return
        ids = list(self._written)
        await self.stream.acknowledge(self.name, ids)
        self._written.difference_update(ids)
        self._in_flight.difference_update(ids)

    def _hand_out(self) -> None:
        """Splits what is there evenly among the subscribers that wait."""
        waiting = [member for member in self.members if member.waiting]
        if self._lost and waiting:
            lost, self._lost = self._lost, []
            gap = Gap("trimmed", min(lost).before(), max(lost).after(), len(lost), max(lost))
            waiting[0].give([gap], [], lost)
            waiting.pop(0)
        while waiting and self._queue:
            share = -(-len(self._queue) // len(waiting))
            entries = [self._queue.popleft() for _ in range(share)]
            batch = Batch(Cursor(entries[0].id.before()), Cursor(entries[-1].id), entries)
            waiting.pop().give([batch], entries)

    # -- reading ------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Reads while there are subscribers; the one loop that reconnects."""
        keeper = self.groups.spawn(self._keep())
        try:
            while self._wanted:
                try:
                    await self._create()
                    await self._read()
                    await self._release()
                except NoGroupError:
                    # Flushed: the new stream is the group's from its beginning.
                    log.warning("the consumer group %r is gone and made anew", self.name)
                    self._exists = False
                    self._start = Start(since=START)
                    self._in_flight.clear()
                    self._written.clear()
                except Unavailable:
                    await self.stream.health.recovered(RECOVERY_S)
                    await asyncio.sleep(0.05)
        finally:
            keeper.cancel()
            self._running = False
            if not self.members:
                self.groups.forget(self)

    async def _create(self) -> None:
        """Makes sure that the group exists."""
        async with self._creating:
            if self._exists:
                return
            try:
                await self.stream.create_group(self.name, self._first())
            except Unavailable as error:
                if self._first() is None:
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
            await self.stream.pending(self.name)
        except NoGroupError:
            return False
        return True

    async def _release(self) -> None:
        """Gives back what was read and has no reader here, for other replicas to take at once."""
        await self._flush_written()
        ids = [entry.id for entry in self._queue]
        self._queue.clear()
        self._in_flight.difference_update(ids)
        if ids:
            kept = await self.stream.release(self.name, self.groups.consumer, ids)
            self.groups.metrics.group_lost.inc(len(ids) - kept)

    async def release_at_end(self) -> None:
        """The last `_release`, when the process ends and all subscribers have left."""
        with contextlib.suppress(Unavailable, NoGroupError):
            await self._release()

    @property
    def _wanted(self) -> bool:
        return bool(self.members) and not self.groups.closing

    def _first(self) -> StreamId | None:
        if self._start.resume is not None:
            return self._start.resume
        return self._start.since.before() if self._start.since is not None else None

    async def _read(self) -> None:
        """Reads whenever a subscriber waits, until none is left.

        First what this consumer was given before, by a process or a connection that is gone.
        """
        pending: StreamId | None = START
        while self._wanted:
            if not any(member.waiting for member in self.members):
                self._work_wanted.clear()
                await self._work_wanted.wait()
                continue
            claimed = await self.stream.read_group(
                self.name,
                self.groups.consumer,
                self.groups.batch_count,
                pending_after=pending,
            )
            if pending is not None:
                ids = [*(entry.id for entry in claimed.entries), *claimed.lost, *claimed.unreadable]
                pending = max(ids, default=None)
                if claimed.lost:
                    await self.stream.acknowledge(self.name, claimed.lost)
            self._take(claimed)

    def _take(self, claimed: Claimed) -> None:
        """Queues what Redis gave, apart from what is in flight here already."""
        new = [entry for entry in claimed.entries if entry.id not in self._in_flight]
        self._in_flight.update(entry.id for entry in new)
        self._queue.extend(new)
        # What was trimmed and is in flight here reaches its subscriber all the same.
        lost = [id_ for id_ in claimed.lost if id_ not in self._in_flight]
        self._lost.extend(lost)
        self._written.update(claimed.unreadable)
        self.groups.metrics.group_lost.inc(len(lost))
        self.groups.metrics.unreadable.inc(len(claimed.unreadable))
        self._hand_out()

    async def _keep(self) -> None:
        """Keeps what is in flight, acknowledges late, and claims what others left behind."""
        pause = min(KEEPER_S, self.groups.pending_idle_ms / 3000)
        while True:
            await asyncio.sleep(pause)
            try:
                await self._flush_written()
                if self._in_flight:
                    await self.stream.keep(self.name, self.groups.consumer, self._in_flight)
                if any(member.waiting for member in self.members):
                    await self._claim()
            except (Unavailable, NoGroupError) as error:
                log.debug("next round: %s", error)

    async def _claim(self) -> None:
        claimed = await self.stream.claim(
            self.name,
            self.groups.consumer,
            self.groups.pending_idle_ms,
            self.groups.batch_count,
            after=self._claim_after,
        )
        self._claim_after = claimed.next
        if claimed.entries or claimed.lost or claimed.unreadable:
            self.groups.metrics.group_claimed.inc(len(claimed.entries))
            self._take(claimed)
