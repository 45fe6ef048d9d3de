"""One consumer group, as a process takes part in it.

A group is read only while one of its subscribers here waits for work, so that slow readers slow
the reading, and entries that no subscriber here can take stay for the other replicas. Entries that
the group's filter rejects are acknowledged at once. Any other entry is acknowledged after it was
written; while it is in flight, its idle time is kept at zero, so that no other replica takes it
from a reader that is merely slow. When a subscriber leaves, the entries that it had not
acknowledged go to the others here; when the process dies, to another replica.

A member with `ack=client` holds its entries in Redis under a consumer of its own, until it
acknowledges them at any replica, its time for them is over, or it leaves. Only their ids are kept
here. Entries that it loses become idle in Redis, where the next replica with room claims them.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from logpipe import __version__
from logpipe.continuity import NO_STREAM, Gap
from logpipe.event import Entry, weight_of
from logpipe.filters import Filter, FilterError, parse_filter
from logpipe.groups.consumer import Consumer
from logpipe.groups.member import MAX_IN_FLIGHT, Member, Members
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Hello, Item, Start
from logpipe.metrics import GroupMetrics
from logpipe.problems import Unavailable
from logpipe.stream import WRITES_ONLY, Claimed, NoGroupError, Stream, gap_of
from logpipe.stream.group_records import NO_GENERATION
from logpipe.stream.groups import READ_BYTES, FilterChangedError
from logpipe.turns import Run

log = logging.getLogger("logpipe.groups")

KEEPER_S = 1.0
"""The longest time in seconds between two rounds of keeping, acknowledging and claiming."""

PAUSE_S = 0.05
"""Between two attempts of what has failed while Redis can be reached."""

RECOVERY_S = 1.0
"""How long a group waits for word that Redis is back before it looks for itself."""

PENDING_ENTRIES = 64
"""Pending entries that one read takes over at the most, as many as `BATCH_COUNT` allows: of events
of 64 KiB 4 MiB."""


ACK_ROUND_S = 0.4
"""As `KEEPER_S`, in a group with members that acknowledge for themselves: how long it takes until
an acknowledgement at another replica makes room."""

OVERDUE_S = 0.1
"""The shortest time between two looks for entries whose time is over."""

PRESENCE_S = 5.0
"""How long a process counts as one with members of a group; renewed five times as often."""


class Terms(NamedTuple):
    """How a process takes part in its groups."""

    consumer: Consumer
    pending_idle_ms: int
    batch_count: int
    reads: asyncio.Semaphore
    """The seats for reads of entries, of all groups together."""
    run: Run
    """Runs the filtering of entries."""
    members: Members
    """The members that acknowledge for themselves, of all groups of this process."""
    lasting: str
    """The group that never ends."""

    @property
    def pending_count(self) -> int:
        """How many pending entries one read takes over at the most."""
        return min(self.batch_count, PENDING_ENTRIES)


class Share:
    """What one subscriber was given of a group and has not written yet.

    `member` is set where it acknowledges for itself. `query` is the text of the group's filter when
    it was admitted; None where that could not be asked.
    """

    def __init__(self, member: Member | None = None, query: str | None = None) -> None:
        self.member = member
        self.query = query
        self.asking = False
        """Whether the subscriber waits for work, or for word that it need not."""
        self.entries: list[Entry] = []
        self.losses: list[str] = []
        """Records of losses that it is to send as gaps."""
        self.farewell = ""
        """Why its subscription ends; empty while it goes on."""
        self.woken = asyncio.Event()
        self._given_at = 0.0

    @property
    def in_flight(self) -> int:
        """How many entries it was given that are not acknowledged."""
        return len(self.entries) if self.member is None else len(self.member.held)

    @property
    def in_flight_s(self) -> float:
        """For how many seconds it has had the first of them."""
        if self.member is not None:
            return self.member.held_s
        return time.monotonic() - self._given_at if self.entries else 0.0

    @property
    def given(self) -> bool:
        """Whether it has something to write."""
        return bool(self.entries or self.losses)

    def give(self, entries: list[Entry], losses: Sequence[str]) -> None:
        """Gives it losses to report, and entries."""
        self.entries = entries
        self.losses = list(losses)
        self._given_at = time.monotonic()
        self.wake()

    def items(self) -> list[Item]:
        """What it was given, as it is written."""
        batch = [Batch.of(self.entries)] if self.entries else []
        return [*told(self.losses), *batch]

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
    """One consumer group: its subscribers here, what is queued for them, and the reading.

    `chosen` is the group's filter, None where it is not known yet.
    """

    def __init__(
        self,
        name: str,
        stream: Stream,
        terms: Terms,
        metrics: GroupMetrics,
        start: Start,
        chosen: Filter | None,
    ) -> None:
        self.name = name
        self.stream = stream
        self.shares: set[Share] = set()
        self.filter = chosen
        self.founder = ""
        """The client that its first subscriber here came from."""
        self.closing = False
        self.lag: int | None = None
        """How many entries the group had not read at the last read here, where that is known."""
        self._terms = terms
        self._metrics = metrics
        self._start = start
        self._generation = NO_GENERATION
        self._entered_at = -math.inf
        self._begun_ms = stream.now_ms
        self._exists = False
        """Whether the group was there: when it is missing then, Redis was flushed, or a failover
        came before the replica knew of it."""
        self._gone = False
        """Whether that has happened: then all that is new in the stream is the group's."""
        self._read_until = START
        """How far the group had read by its last read here."""
        self._creating = asyncio.Lock()
        self._judging = asyncio.Lock()
        self._taking_back = asyncio.Lock()
        self._unjudged: deque[Entry] = deque()
        """Entries that the filter has not seen yet."""
        self._queue: deque[Entry] = deque()
        self._losses: list[str] = []
        self._told: set[str] = set()
        self._in_flight: set[StreamId] = set()
        self._written: set[StreamId] = set()
        self._trimmed: set[StreamId] = set()
        """Entries in flight that were trimmed: recorded as losses until they are written."""
        self._rereads = 0
        """How many reads of pending entries are under way."""
        self._finished: set[StreamId] = set()
        """Entries that were acknowledged meanwhile: the answers may still have them."""
        self._departed: list[Member] = []
        """Members that have left, and whose entries are still theirs in Redis."""
        self._rewound = False
        """Whether entries that members here hold lie before where the group may have been made anew
        by another replica."""
        self._kept_at = -math.inf
        self._stopping = False
        self._claim_after = START
        self._left_behind = False
        """Whether entries were made idle here, so that looking for such is worth while."""
        self._swept = time.monotonic()
        self._work_wanted = asyncio.Event()
        self._round_wanted = asyncio.Event()
        """Set when the keeper is to begin its next round at once."""

    # -- subscribers --------------------------------------------------------------------------

    def join(self, share: Share) -> None:
        """Takes a subscriber in."""
        self.shares.add(share)
        if share.member is not None:
            self._terms.members.add(share.member)
        if not self._suits(share):
            self._entered_at = -math.inf  # the filter was changed: the next round finds out
            self._round_wanted.set()

    def leave(self, share: Share) -> None:
        """Lets a subscriber go; the others get what it was given and did not write or, with
        `ack=client`, did not acknowledge."""
        self.shares.discard(share)
        self._give_back(share)
        if share.member is not None:
            self._terms.members.remove(share.member)
            self._departed.append(share.member)
            self._round_wanted.set()
        self._hand_out()
        self._work_wanted.set()

    def _give_back(self, share: Share) -> None:
        """Queues what a subscriber was given, apart from entries that are its member's in Redis."""
        held = share.member.held if share.member is not None else {}
        entries = [entry for entry in share.entries if entry.id not in held]
        self._in_flight.update(entry.id for entry in entries)
        self._queue.extendleft(reversed(entries))
        self._losses[:0] = share.losses

    async def hello(self, share: Share) -> Hello:
        """The first message to a subscriber; while Redis is away it knows no ids.

        The group exists by then, so that what is sent after the hello is the group's.
        """
        try:
            await self._create()
            bounds = await self.stream.bounds()
        except Unavailable:
            bounds = NO_STREAM
        last = bounds.last if bounds.last > START else None
        chosen = share.query
        if chosen is None and self.filter is not None:
            chosen = self.filter.query
        member = share.member.id if share.member is not None else None
        return Hello(bounds.last, bounds.first, last, "shared", __version__, chosen, member)

    def want_work(self) -> None:
        """Gives a subscriber that asks what is queued, and makes the group read and claim more."""
        self._work_wanted.set()
        self._hand_out()
        if (self._claim_after != START or self._left_behind) and self._has_taker:
            self._round_wanted.set()

    def wake_all(self) -> None:
        """Makes every subscriber and the reader look again."""
        self._work_wanted.set()
        for share in self.shares:
            share.wake()

    async def acknowledge(self, entries: Sequence[Entry], losses: Sequence[str]) -> None:
        """Notes what was written, and acknowledges it now or when Redis is back."""
        self._written.update(entry.id for entry in entries)
        self._told.update(losses)
        try:
            await self._flush_written()
        except (Unavailable, NoGroupError):
            log.debug("acknowledged later: %d", len(self._written))

    async def assign(self, share: Share) -> None:
        """Makes the entries of a share those of its member in Redis, and begins their time. Entries
        that were trimmed become losses; those that another consumer has claimed are dropped."""
        member = share.member
        if member is None or not share.entries:
            return
        ids = [entry.id for entry in share.entries]
        self._in_flight.difference_update(ids)
        share.losses += self._lost_in_flight(ids)
        try:
            for consumer in self._terms.consumer.names:
                moved, trimmed = await self.stream.groups.move(self.name, consumer, member.id, ids)
                member.hold(moved)
                share.losses += map(str, trimmed)
                self._metrics.lost(len(trimmed))
                ids = sorted({*ids}.difference(moved, trimmed))
                if not ids:
                    break
        except NoGroupError:
            self.is_gone()
        except Unavailable:
            self._give_back(share)
            share.losses = []
            await self.stream.health.recovered(RECOVERY_S)
            await asyncio.sleep(PAUSE_S)
        share.entries = [entry for entry in share.entries if entry.id in member.held]

    def _lost_in_flight(self, ids: Iterable[StreamId]) -> list[str]:
        """The records of the losses among entries that leave this process unwritten."""
        lost = sorted(self._trimmed.intersection(ids))
        self._trimmed.difference_update(lost)
        self._metrics.lost(len(lost))
        return [*map(str, lost)]

    async def _flush_written(self) -> None:
        reached = self._trimmed.intersection(self._written)
        self._trimmed.difference_update(reached)
        self._told.update(map(str, reached))
        if self._written:
            ids = list(self._written)
            await self.stream.groups.acknowledge(self.name, ids)
            self._written.difference_update(ids)
            self._in_flight.difference_update(ids)
            if self._rereads:
                self._finished.update(ids)
        if self._told:
            records = list(self._told)
            await self.stream.groups.told(self.name, records)
            self._told.difference_update(records)

    def _suits(self, share: Share) -> bool:
        """Whether a subscriber was admitted with the filter by which entries are judged here."""
        return share.query is None or self.filter is None or share.query == self.filter.query

    def _room(self, share: Share) -> int:
        """How many entries a subscriber may be given."""
        return self._terms.batch_count if share.member is None else share.member.room

    def _takers(self) -> Iterator[Share]:
        """The subscribers that wait and may be given entries."""
        for share in self.shares:
            late = share.member is not None and share.member.late
            ready = share.asking and not share.given and not late
            if ready and self._suits(share) and self._room(share):
                yield share

    @property
    def _has_taker(self) -> bool:
        return any(True for _ in self._takers())

    def _wanted(self) -> int:
        """How many entries are wanted beyond those that are queued, `BATCH_COUNT` at the most. A
        queue is filled up for subscribers that will ask soon, unless all acknowledge for
        themselves: they may not be able to take more, and other replicas are."""
        if not self._acknowledging:
            return self._terms.batch_count - len(self._queue)
        room = sum(map(self._room, self._takers())) - len(self._queue)
        return min(self._terms.batch_count, room)

    @property
    def _acknowledging(self) -> bool:
        """Whether all subscribers here acknowledge for themselves."""
        return all(share.member is not None for share in self.shares)

    def _hand_out(self) -> None:
        """Splits what is there evenly among the subscribers that wait; the first sends the gaps."""
        if not self._queue and not self._losses:
            return
        takers = list(self._takers())
        while takers and (self._queue or self._losses):
            part = -(-len(self._queue) // len(takers))
            share = takers.pop()
            entries = [self._queue.popleft() for _ in range(min(part, self._room(share)))]
            losses, self._losses = self._losses, []
            share.give(entries, losses)

    # -- the filter ---------------------------------------------------------------------------

    async def _enter(self) -> None:
        """Renews the presence of this process in the group, and learns the group's filter."""
        chosen = self.filter.query if self.filter is not None else None
        entered = await self.stream.groups.records.enter(
            self.name, self._terms.consumer.holder, round(PRESENCE_S * 1000), chosen
        )
        self._entered_at = time.monotonic()
        if entered.filter != chosen:
            try:
                self.filter = parse_filter({"q": entered.filter})
            except FilterError as error:
                log.error("the filter of the group %r is not understood: %s", self.name, error)
                for share in self.shares:
                    self._dismiss(share, "this version does not understand the group's filter")
                return
            self._unjudged.extend(self._queue)
            self._queue.clear()
            for share in self.shares:
                if share.query is None:
                    share.query = entered.filter
                elif not self._suits(share):
                    self._dismiss(share, "the filter of the group has changed")
        self._generation = entered.generation
        await self._judge()

    def _dismiss(self, share: Share, reason: str) -> None:
        share.farewell = reason
        share.wake()

    async def _judge(self) -> None:
        """Queues the entries that the filter accepts; the others are acknowledged and counted."""
        async with self._judging:
            chosen = self.filter
            if chosen is None:
                return
            before = len(self._written)
            if chosen.query:
                await self._terms.run(self._steps(chosen))
            else:
                self._queue.extend(self._unjudged)
                self._unjudged.clear()
        self._hand_out()
        if len(self._written) > before:
            await self._flush_written()

    def _steps(self, chosen: Filter) -> Iterator[None]:
        """The judging as work for `Turns`."""
        accepts = chosen.predicate
        yield
        while self._unjudged:
            entry = self._unjudged.popleft()
            if accepts is None or accepts(entry.event):
                self._queue.append(entry)
            else:
                self._written.add(entry.id)
                self._metrics.rejected(1)
            yield

    # -- reading ------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether there is a subscriber to read for."""
        return bool(self.shares) and not self.closing

    async def run(self) -> None:
        """Reads while there are subscribers."""
        self._stopping = False
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep())
            await self._run()
            # Not cancelled: a claim under way may have been given entries.
            self._stopping = True
            self._round_wanted.set()
        with contextlib.suppress(Unavailable, NoGroupError):
            await self._release()
        self._metrics.forget()

    async def _run(self) -> None:
        """The one loop that reconnects."""
        while self.wanted:
            try:
                await self._create()
                if self._entered_at == -math.inf:
                    await self._enter()
                await self._read()
            except NoGroupError:
                self.is_gone()
            except FilterChangedError:
                self._entered_at = -math.inf
            except Unavailable:
                await self.stream.health.recovered(RECOVERY_S)
                await asyncio.sleep(PAUSE_S)

    def is_gone(self) -> None:
        """Has the group made anew: Redis does not have it, as after a flush."""
        if self._exists:
            log.warning("the consumer group %r is gone and made anew", self.name)
            self._exists, self._gone = False, True
            self._go_back_for_members()
            self._in_flight.clear()
            self._written.clear()
            self._trimmed.clear()
        self._work_wanted.set()

    def _go_back_for_members(self) -> None:
        """Has a group that is made anew begin before all that its members here hold or wait for."""
        members = [share.member for share in self.shares if share.member is not None]
        members += self._departed
        if not members:
            return
        given = [entry for share in self.shares for entry in share.entries]
        ids = [entry.id for entry in (*self._queue, *self._unjudged, *given)]
        for member in members:
            ids += member.held
            member.let_go([*member.held])
        self._queue.clear()
        self._unjudged.clear()
        first = min(ids, default=None)
        if first is not None and first <= self._read_until:
            self._read_until, self._rewound = first.before(), True

    async def _create(self) -> None:
        """Makes sure that the group exists, and that this process counts among its readers."""
        async with self._creating:
            if self._exists:
                return
            if self._gone:
                self._start = Start(resume=await self.stream.same_until(self._read_until))
            first = self._first()
            anew = self._gone and first == START
            try:
                await self._enter()
                self._losses += await self.stream.groups.create(
                    self.name,
                    first,
                    from_the_first=anew,
                    may_end=self.name != self._terms.lasting,
                    go_back=self._rewound,
                )
                self._rewound = False
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
        await self._take_back_from_departed()
        await self._release_queue()
        if self._losses:
            await self.stream.groups.hand_back(self.name, self._losses)
            self._losses.clear()
        await self.stream.groups.leave(self.name, self._terms.consumer.name)
        if not self.wanted:
            await self.stream.groups.records.exit(self.name, self._terms.consumer.holder)
            self._entered_at = -math.inf  # a member that comes is entered again

    async def _release_queue(self) -> None:
        """Lets any consumer claim at once what is queued here."""
        ids = [entry.id for entry in (*self._queue, *self._unjudged)]
        self._queue.clear()
        self._unjudged.clear()
        self._in_flight.difference_update(ids)
        self._losses += self._lost_in_flight(ids)
        if ids:
            self._left_behind = True
            await self.stream.groups.release(self.name, self._terms.consumer.name, ids)

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
            if not self._exists:
                raise NoGroupError("found by another task")
            if not self._has_taker:
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
                claimed = await self.stream.groups.read(
                    self.name, read_as, max(1, self._wanted()), self._generation
                )
            for record in claimed.losses:
                self._metrics.lost(gap_of(record).count)
            self._read_until = claimed.end
            self._note_lag(claimed.lag)
            await self._take(claimed)
            if not claimed.entries and not claimed.unreadable:
                await self.stream.wait(claimed.end)

    async def _read_history(self, consumer: str, after: StreamId) -> StreamId | None:
        """Takes a page of what is pending for a consumer; the id to go on from, None at the end."""
        with self._reread():
            async with self._terms.reads:
                history = await self.stream.groups.history(
                    self.name, consumer, self._terms.pending_count, after
                )
            if history.lost:
                await self.stream.groups.lose(self.name, history.lost)
            await self._take(history)
        ids = [*(entry.id for entry in history.entries), *history.lost, *history.unreadable]
        return max(ids, default=None)

    @contextlib.contextmanager
    def _reread(self) -> Iterator[None]:
        """Notes what is acknowledged while pending entries are read."""
        self._rereads += 1
        try:
            yield
        finally:
            self._rereads -= 1
            if not self._rereads:
                self._finished.clear()

    async def _take(self, claimed: Claimed) -> None:
        """Queues what Redis gave, apart from what is or was in flight here already."""
        known = self._in_flight | self._finished
        new = [entry for entry in claimed.entries if entry.id not in known]
        self._in_flight.update(entry.id for entry in new)
        self._unjudged.extend(new)
        self._written.update(claimed.unreadable)
        self._metrics.unreadable(len(claimed.unreadable))
        # What was trimmed and is in flight here reaches its subscriber all the same, as a rule.
        self._trimmed.update(self._in_flight.intersection(claimed.lost))
        self._told.update(map(str, self._finished.intersection(claimed.lost)))
        lost = [str(id_) for id_ in claimed.lost if id_ not in known]
        self._metrics.lost(len(lost))
        if found := [*lost, *claimed.losses]:
            here = {*self._told, *self._losses, *map(str, self._trimmed)}
            here.update(*(share.losses for share in self.shares))
            self._losses += [record for record in found if record not in here]
        await self._judge()

    # -- keeping ------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Keeps what is in flight, acknowledges late, and claims what others left behind."""
        while not self._stopping:
            await self._next_round(self._pause_s())
            wanted = self._round_wanted.is_set()
            self._round_wanted.clear()
            if not self._terms.consumer.name or not self._exists:
                continue
            try:
                if wanted or time.monotonic() - self._kept_at >= self._round_s():
                    await self._keep_once(self._terms.consumer.name)
                else:
                    await self._take_back_overdue()
            except NoGroupError:
                self.is_gone()
            except FilterChangedError:
                self._entered_at = -math.inf
                self._round_wanted.set()
            except Unavailable as error:
                log.debug("next round: %s", error)

    async def _next_round(self, pause: float) -> None:
        """Returns after `pause` seconds, or as soon as a round is wanted."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._round_wanted.wait()

    def _round_s(self) -> float:
        """Seconds between two rounds of keeping."""
        members = any(share.member is not None for share in self.shares)
        longest = ACK_ROUND_S if members else KEEPER_S
        return min(longest, self._terms.pending_idle_ms / 3000)

    def _pause_s(self) -> float:
        """Seconds until the next round, or until the time of an entry is over."""
        now = time.monotonic()
        ends = [s.member.next_end_s for s in self.shares if s.member is not None]
        pause = self._kept_at + self._round_s() - now
        overdue = max(OVERDUE_S, min(ends)) if ends else pause
        return max(0.0, min(pause, overdue, self._round_s()))

    async def _keep_once(self, consumer: str) -> None:
        # Looked at before the reader, which the same subscriber woke, can give it new entries.
        claiming = self._has_taker
        self._kept_at = time.monotonic()
        if time.monotonic() - self._entered_at > PRESENCE_S / 5:
            await self._enter()
        await self._flush_written()
        if self._in_flight:
            await self.stream.groups.keep(self.name, consumer, self._in_flight)
        if self._trimmed:  # so that no other process takes them for lost
            await self.stream.groups.lose(self.name, [*self._trimmed])
        await self._take_back_from_departed()
        holdings = await self.stream.groups.holdings(self.name)
        self._metrics.pending(sum(holdings.values()))
        self._metrics.in_flight(
            sum([share.in_flight for share in self.shares]),
            max([share.in_flight_s for share in self.shares], default=0.0),
        )
        for share in [*self.shares]:
            if share.member is not None:
                await self._look_after(share, share.member, holdings.get(share.member.id, 0))
        await self._take_back_overdue()
        if claiming:
            await self._claim_many(consumer)
        if self._queue and self._acknowledging and not self._has_taker:
            await self._release_queue()
        if time.monotonic() - self._swept > self._terms.pending_idle_ms / 1000:
            self._swept = time.monotonic()
            await self.stream.groups.sweep(self.name, consumer, self._terms.pending_idle_ms)
        if self._has_taker:  # another replica, or time, has made room
            self._work_wanted.set()
            self._hand_out()
        else:  # nothing is read, so that no read says how much there is
            self._note_lag(await self.stream.groups.lag(self.name))

    def _note_lag(self, lag: int | None) -> None:
        self.lag = lag
        self._metrics.lag(lag)

    async def _claim_many(self, consumer: str) -> None:
        """Claims entries until as many are queued as are wanted, or `READ_BYTES`."""
        for _ in range(0, self._terms.batch_count, self._terms.pending_count):
            if self._claim_after == START:
                self._left_behind = False
            await self._claim(consumer)
            full = self._wanted() <= 0 or weight_of(self._queue) >= READ_BYTES
            if full or self._claim_after == START:
                break

    async def _claim(self, consumer: str) -> None:
        with self._reread():
            async with self._terms.reads:
                claimed = await self.stream.groups.claim(
                    self.name,
                    consumer,
                    self._terms.pending_idle_ms,
                    max(1, min(self._terms.pending_count, self._wanted())),
                    after=self._claim_after,
                    generation=self._generation,
                )
            self._claim_after = claimed.end
            self._metrics.claimed(len(claimed.entries))
            await self._take(claimed)

    # -- members that acknowledge for themselves ----------------------------------------------

    async def _take_back_from_departed(self) -> None:
        """Makes the entries of members that have left idle."""
        groups = self.stream.groups
        async with self._taking_back:
            while self._departed:
                member = self._departed[-1]
                # Redis knows better: a move may have succeeded without an answer.
                if held := await groups.held(self.name, member.id, MAX_IN_FLIGHT):
                    await self._take_back(member, sorted(held))
                    continue
                await groups.leave(self.name, member.id)
                self._departed.remove(member)

    async def _look_after(self, share: Share, member: Member, pending: int) -> None:
        """Makes room for what was acknowledged elsewhere, and keeps the rest from other replicas.
        `pending` is how many entries the member holds in Redis."""
        groups = self.stream.groups
        if pending != len(member.held):
            before = set(member.held)
            held = await groups.held(self.name, member.id, MAX_IN_FLIGHT)
            member.let_go(before - held)
            coming = {entry.id for entry in share.entries}
            if strays := held.difference(before, member.held, coming):
                await self._take_back(member, sorted(strays))
        if member.held and time.monotonic() - member.kept_at > self._terms.pending_idle_ms / 3000:
            member.kept_at = time.monotonic()
            ids = list(member.held)
            moved, trimmed = await groups.move(self.name, member.id, member.id, ids)
            member.let_go(set(ids).difference(moved))
            self._lose(trimmed)

    async def _take_back_overdue(self) -> None:
        """Takes back the entries whose time is over."""
        for share in [*self.shares]:
            if share.member is not None and (overdue := share.member.overdue()):
                self._metrics.redelivered(len(overdue))
                await self._take_back(share.member, overdue)

    async def _take_back(self, member: Member, ids: Sequence[StreamId]) -> None:
        """Makes entries of a member idle, so that any consumer may claim them."""
        moved, trimmed = await self.stream.groups.move(
            self.name, member.id, self._terms.consumer.name, ids, idle=True
        )
        member.let_go(ids)
        self._in_flight.difference_update(moved)
        self._left_behind = self._left_behind or bool(moved)
        self._lose(trimmed)
        if self._has_taker:
            self._round_wanted.set()

    def _lose(self, trimmed: Sequence[StreamId]) -> None:
        self._metrics.lost(len(trimmed))
        self._losses += map(str, trimmed)
