"""One stream.

Few verbs: `append`, `read`, `wait`, `range`, `bounds`, and those of its `groups`. Nothing here
retries: a verb works or raises `Unavailable`, and the loops above decide.
"""

import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from redis.exceptions import ResponseError

from logpipe.continuity import NO_STREAM, Bounds, Cursor, Gap, gap_after
from logpipe.event import Entry
from logpipe.ids import START, StreamId, from_wire, parse_id
from logpipe.problems import Unavailable
from logpipe.redis_address import RedisAddress
from logpipe.stream.append import (
    APPEND,
    MAX_TRANSACTION_EVENTS,
    Append,
    Appended,
    Declined,
    Transaction,
    arguments,
    ids_of,
    outcome,
    outcomes,
)
from logpipe.stream.connections import READ_TIMEOUT_S, Connections
from logpipe.stream.disk import Disk
from logpipe.stream.entries import RawEntry, decoded, entry_of
from logpipe.stream.failovers import NOTE, gap_before
from logpipe.stream.groups import StreamGroups
from logpipe.stream.health import RedisHealth
from logpipe.stream.monitor import Intervals, Keeping, Memory, Monitor
from logpipe.stream.once import KEY_LIMITS, KeyLimits
from logpipe.stream.replicas import Replicas
from logpipe.stream.secret import StreamSecret
from logpipe.stream.sign_outs import SignOuts
from logpipe.stream.trimming import StreamTrimming
from logpipe.turns import Turns

PAGE_BYTES = 256 * 1024
"""JSON of the entries of one page, or little more: what one write to one subscriber carries.
Decoded events take up to 30 times as much memory."""

SIZE_SAMPLES = 5
"""Of each node of a stream, and of each group: what asking for its size may cost Redis."""


Read = TypeVar("Read")


class Page(NamedTuple):
    """What follows a cursor: first the gap, if any, then the entries up to `end`."""

    gap: Gap | None
    start: Cursor
    end: Cursor
    entries: list[Entry]
    unreadable: int
    limited: bool = False
    """Whether it ends at `PAGE_BYTES`, and more is there."""
    failover_era: int = 0
    """Grows with each end of the stream that becomes known; see `Failovers.era`."""


class Stream:
    """One Redis Stream and its consumer groups; `trouble` says why an embedded engine is down,
    `disk` is the one that Redis writes to, where it is known, `count_limited` counts how often a
    limit was hit, and `check_s` is how long Redis has for an answer to the monitor."""

    def __init__(
        self,
        address: RedisAddress,
        name: str,
        *,
        maxlen: int,
        block_ms: int = 1000,
        ack_replicas: int = 0,
        keys: KeyLimits = KEY_LIMITS,
        trouble: Callable[[], str | None] = lambda: None,
        disk: Disk | None = None,
        count_limited: Callable[[Mapping[str, int]], None] = lambda _: None,
        intervals: Intervals | None = None,
        check_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.name = name
        self._maxlen = maxlen
        self._block_ms = block_ms
        self._keys = keys
        self._transaction = Transaction(name, maxlen)
        self._redis = Connections(
            address, name, block_ms, ack_replicas, trouble, count_limited, check_s
        )
        self._monitor = Monitor(self._redis, name, check_s=check_s, disk=disk, intervals=intervals)
        self._failovers = self._redis.failovers
        self._noted = (-1, -1)
        """The generation whose ends these are."""
        self._followed = -1
        """The era of the ends as of the last page of `follow`."""
        self._turns = Turns()
        self._fits = sys.maxsize
        """Entries of a page of `follow`, as far as the page before tells."""
        self.groups = StreamGroups(self._redis, name, self._turns)
        self.trimming = StreamTrimming(self._redis, name)
        self.secret = StreamSecret(self._redis, name)
        self.sign_outs = SignOuts(self._redis, name, count_limited)

    @property
    def health(self) -> RedisHealth:
        """What Redis was like when it was last asked."""
        return self._redis.health

    @property
    def memory(self) -> Memory:
        """The memory of Redis as of the last look at it."""
        return self._monitor.memory

    @property
    def keeping(self) -> Keeping:
        """How Redis keeps what it has, as of the last look at it."""
        return self._monitor.keeping

    @property
    def no_room(self) -> str:
        """Why the disk that Redis writes to has no room, as of the monitor's last look; empty where
        it has, or is not known."""
        return self._monitor.no_room

    @property
    def now_ms(self) -> int:
        """The time by the clock of Redis, in unix milliseconds; before the monitor's first look,
        and where Redis does not say it, by that of this machine."""
        return self._monitor.now_ms

    async def monitor(self) -> None:
        """Keeps `health` true, without an end."""
        await self._monitor.run()

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._redis.aclose()

    # -- writing ------------------------------------------------------------------------------

    async def append(self, requests: Sequence[Append]) -> list[Appended | Declined]:
        """Appends the events of all requests in one step, each request whole or not at all.

        Returns an outcome for each, only after Redis has confirmed. Raises `Unavailable`; then the
        events of this call are not in the stream, unless the connection was lost while Redis
        worked, or too few replicas have confirmed them (of the kind `replicas`).
        """
        if self._monitor.no_room:
            raise Unavailable("disk", self._monitor.no_room)
        if self._redis.replicas is not None and self.health.kind == "replicas":
            raise self.health.unavailable()  # each would wait in vain, one after the other
        era = self._failovers.era
        found = await self._append(requests)
        new = [each.last for each in found if isinstance(each, Appended) and not each.repeated]
        if new:  # ids rise in a call
            self._failovers.saw(parse_id(new[-1]), era)
        return found

    async def _append(self, requests: Sequence[Append]) -> list[Appended | Declined]:
        replicas = self._redis.replicas
        many = sum([len(request.events) for request in requests]) > MAX_TRANSACTION_EVENTS
        if not many and all(request.once is None for request in requests):
            events = [event for request in requests for event in request.events]
            packed, count = self._transaction.packed(events)
            async with self._redis.translated():
                if replicas is not None:
                    ids = ids_of(await self._exchange_and_wait(packed, count, replicas))
                else:
                    ids = ids_of(await self._redis.appending.exchange([packed], count))
            return list(outcomes(requests, ids))
        most = self._keys.bound(self.memory.limit)
        keys, rest = arguments(
            self.name, self._maxlen, requests, self._keys.ttl_ms, most, waits=replicas is not None
        )
        pool = self._redis.appending_many if many else self._redis.appending
        async with self._redis.translated():
            if replicas is None:
                answers = await APPEND.run_in_pool(pool, keys, *rest)
            else:
                answers, waited = await APPEND.run_in_pool_and(replicas.packed, pool, keys, *rest)
                replicas.check(waited)
        return [outcome(answer) for answer in answers]

    async def _exchange_and_wait(self, packed: bytes, count: int, replicas: Replicas) -> list[Any]:
        *answers, waited = await self._redis.appending.exchange(
            [packed, replicas.packed], count + 1
        )
        if not isinstance(answers[-1], Exception):
            replicas.check(waited)
        return answers

    # -- reading ------------------------------------------------------------------------------

    async def read(
        self,
        after: Cursor,
        count: int,
        witness: StreamId = START,
        *,
        failover_era: int | None = None,
    ) -> Page:
        """Up to `count` entries after a cursor, and the gap between, if there is one.

        `witness` is an entry that the stream had when the cursor's position was found. A stream
        that does not reach from before it to behind it may be another one, which makes the
        position worthless. `failover_era`: that of the page by which the cursor was
        found. After a failover not even an entry with its id proves that it is of this stream.
        """

        async def read() -> Page:
            parted = None if failover_era is None else self.parted_since(failover_era)
            if parted is not None and parted < after.id:
                return await self._rejoin(after, parted, count)
            return await self._read(after, count, witness)

        return await self._page_read_by(read)

    async def _page_read_by(self, read: Callable[[], Awaitable[Page]]) -> Page:
        page, era = await self._steadily(read)
        if page.entries:
            self._failovers.saw(page.end.id, era)
        return page._replace(failover_era=era)

    async def _steadily(self, read: Callable[[], Awaitable[Read]]) -> tuple[Read, int]:
        """What one primary answers whose losses are known, and the era in which that is so."""
        failovers = self._failovers
        while True:
            generation = await self._note()
            era = failovers.era
            found = await read()
            if self._noted != generation:  # it could not be noted; by now another may have
                await self._note()
            if self._generation == generation and failovers.era == era:
                return found, era

    @property
    def failover_era(self) -> int:
        """Grows with each end of the stream that becomes known."""
        return self._failovers.era

    def parted_since(self, failover_era: int) -> StreamId | None:
        """Up to where the stream is still the one of an era, as far as is known; None where it is
        so to its end."""
        return self._failovers.parted_since(failover_era)

    @property
    def _generation(self) -> tuple[int, int]:
        """Grows when the primary may be another node, or the same one with another past."""
        primary = self._redis.primary
        return (primary.generation if primary else 0, self._failovers.generation)

    async def _note(self) -> tuple[int, int]:
        """The generation whose ends are known now."""
        generation = self._generation
        if generation != self._noted:
            failovers = self._failovers
            async with self._redis.translated():
                if self._redis.primary is not None:
                    failovers.spared = await self._redis.primary.spared()
                try:
                    answer = await NOTE.run(
                        self._redis.writing, failovers.keys, *failovers.arguments(fail=False)
                    )
                except ResponseError as error:
                    answer = error
                done = failovers.noted(answer)
            generation = generation[0], failovers.generation
            if done:
                self._noted = generation
        return generation

    async def lost_between(self, after: StreamId, until: StreamId) -> bool:
        """Whether a failover may have cost entries between two that were read."""
        await self._note()
        return self._end_between(after, until) is not None

    async def same_until(self, id_: StreamId) -> StreamId:
        """Up to where this is still the stream that has once had all up to an id: at the most that
        id, less after a failover, and `START` after a flush."""
        if await self.range(id_, id_, 1):
            return id_
        bounds = await self.bounds()
        if bounds.first is None or bounds.first > id_:
            return START
        return await self._end_before(id_) or min(id_, bounds.last)

    async def _end_before(self, id_: StreamId) -> StreamId | None:
        """Where the stream that held an entry which is gone parted from the one of now: at the last
        end before that entry, or at an earlier one behind which it must have followed, because
        today's next entry is a later one."""
        ends = self._failovers.ends_before(id_)
        if not ends:
            return None
        async with self._redis.translated():
            following = await self._redis.reading.call_all(
                *(("XRANGE", self.name, str(end.after()), "+", "COUNT", 1) for end in ends),
            )
        for end, rows in zip(ends, following, strict=True):
            if not rows or from_wire(rows[0][0]) > id_:
                return end
        return ends[-1]

    async def _read(self, after: Cursor, count: int, witness: StreamId) -> Page:
        async with self._redis.translated():
            (raw,) = await self._redis.reading.call(
                "XRANGE", self.name, str(after.id), "+", "COUNT", count + 1
            )
        if raw and from_wire(raw[0][0]) == after.id:
            # Trimming takes from the front: while the cursor's own entry is there, nothing after
            # it has gone.
            return await self._page(after, raw[1:])
        return await self._prove(after, count, witness)

    async def follow(self, after: Cursor, count: int, witness: StreamId = START) -> Page:
        """As `read`, as soon as there is something, or after BLOCK_MS; for one reader.

        The first cursor must be of the stream as it is known at that moment, each further one the
        end of the page before. Waiting and reading are sent together, in one round trip.
        """
        if self._followed < 0:  # the first cursor was found just now
            self._followed = self._failovers.era
        asked = min(count, self._fits)
        page = await self._page_read_by(lambda: self._follow(after, asked, witness))
        if page.entries:
            self._fits = _fitting(page.entries)
            full = len(page.entries) + page.unreadable >= asked
            page = page._replace(limited=page.limited or (full and asked < count))
        if page.end.id != after.id:
            self._followed = page.failover_era
        return page

    async def _follow(self, after: Cursor, count: int, witness: StreamId) -> Page:
        async with self._redis.translated():
            _, raw = await self._redis.blocking.call_all(
                self._wait_command(after.id),
                ("XRANGE", self.name, str(after.id), "+", "COUNT", count + 1),
            )
        parted = self.parted_since(self._followed)
        if parted is not None and parted < after.id:
            return await self._rejoin(after, parted, count)
        if raw and from_wire(raw[0][0]) == after.id:
            return await self._page(after, raw[1:])
        return await self._prove(after, count, witness)

    async def _prove(self, after: Cursor, count: int, witness: StreamId) -> Page:
        """What follows a cursor whose own entry is not there, by the stream's counters."""
        bounds, raw = await self._look(after.id, count)
        if not bounds.spans(witness):
            after = after.unproven()
        gap = gap_after(after, bounds)
        if gap is None:
            return await self._page(_located(after, bounds), raw)
        if gap.reason == "reset" and (end := await self._end_before(after.id)) is not None:
            return await self._rejoin(after, end, count)
        start = Cursor(gap.resume, bounds.position_before_first)
        if gap.reason == "reset":
            again, raw = await self._look(gap.resume, count)
            if again.first != bounds.first:
                return await self._read(after, count, witness)
        if self._end_between(after.id, gap.before) is not None:
            gap = gap_before(gap.before, after.id)  # how many it has cost is not known
        return (await self._page(start, raw))._replace(gap=gap)

    async def _rejoin(self, after: Cursor, end: StreamId, count: int) -> Page:
        """What follows a cursor that a failover has taken from the stream, which is the same up to
        `end`."""
        _, raw = await self._look(end, count)
        if not raw:
            return Page(None, after, after, [], 0)
        gap = gap_before(from_wire(raw[0][0]), after.id)
        page = await self._page(Cursor(gap.resume), raw)
        return page if after.id == gap.resume else page._replace(gap=gap)

    async def _page(self, after: Cursor, raw: list[Any]) -> Page:
        """Entries that follow a cursor: up to where a failover may have cost some, or from there
        on, with the gap."""
        end = self._end_between(after.id, from_wire(raw[-1][0])) if raw else None
        before = [each for each in raw if end is not None and from_wire(each[0]) <= end]
        if end is None or before:
            return await self._decoded(after, before or raw)
        gap = gap_before(from_wire(raw[0][0]), after.id)
        if gap.resume == end:
            return await self._decoded(after, raw)
        return (await self._page(Cursor(gap.resume), raw))._replace(gap=gap)

    def _end_between(self, after: StreamId, until: StreamId) -> StreamId | None:
        """The first end, on the way from one entry to another, at which readers get a gap."""
        if self._redis.replicas is not None:
            return None  # what was acknowledged is on the replica
        return self._failovers.end_between(after, until)

    async def _decoded(self, start: Cursor, raw: list[Any]) -> Page:
        """A page of the entries after a cursor: of all, or of the first `PAGE_BYTES`."""
        pairs = await decoded(raw, self._turns, PAGE_BYTES)
        entries = [entry for _, entry in pairs if entry is not None]
        end = start
        if pairs:
            position = None if start.position is None else start.position + len(pairs)
            end = Cursor(pairs[-1][0], position)
        return Page(None, start, end, entries, len(pairs) - len(entries), len(pairs) < len(raw))

    async def _look(self, after: StreamId, count: int) -> tuple[Bounds, list[Any]]:
        """The bounds and the entries after an id, as of one moment."""
        async with self._redis.translated():
            info, raw = await self._redis.reading.transact(
                ("XINFO", "STREAM", self.name),
                ("XRANGE", self.name, f"({after}", "+", "COUNT", count),
            )
            if isinstance(info, ResponseError) and "no such key" in str(info).lower():
                return NO_STREAM, []
            for answer in (info, raw):
                if isinstance(answer, Exception):
                    raise answer
        return _bounds(info), raw

    async def wait(self, after: StreamId) -> None:
        """Returns when the stream has an entry after `after`, or after BLOCK_MS."""
        async with self._redis.translated():
            await self._redis.blocking.call(*self._wait_command(after))

    def _wait_command(self, after: StreamId) -> tuple[Any, ...]:
        ids = (self.name, str(after))
        return ("XREAD", "COUNT", 1, "BLOCK", self._block_ms, "STREAMS", *ids)

    async def bounds(self) -> Bounds:
        """First and last id and the counters of the stream, as of now."""
        (bounds, _), era = await self._steadily(lambda: self._look(START, 1))
        if bounds.newest is not None:
            self._failovers.saw(bounds.newest, era)
        return bounds

    async def left(self) -> int:
        """How many entries have left the stream, whatever removed them."""
        bounds = await self.bounds()
        return (bounds.added or 0) - bounds.length

    async def size(self) -> float:
        """The bytes of the stream in Redis, estimated from `SIZE_SAMPLES` of its nodes; NaN where
        the user may not ask."""
        redis = self._redis
        async with redis.translated(), redis.upkeep.pipeline(transaction=False) as pipe:
            pipe.memory_usage(self.name, samples=SIZE_SAMPLES)
            (size,) = await pipe.execute(raise_on_error=False)
        # Not raised: this user can still use the stream, and its Redis is well.
        return math.nan if isinstance(size, ResponseError) else float(size or 0)

    async def raw_range(
        self, low: StreamId, high: StreamId, count: int, *, newest_first: bool = False
    ) -> list[RawEntry]:
        """Up to `count` entries between two ids (inclusive), not decoded."""
        if newest_first:
            command = ("XREVRANGE", self.name, str(high), str(low), "COUNT", count)
        else:
            command = ("XRANGE", self.name, str(low), str(high), "COUNT", count)
        async with self._redis.translated():
            (raw,) = await self._redis.reading.call(*command)
        return cast("list[RawEntry]", raw)

    async def range(
        self, low: StreamId, high: StreamId, count: int, *, newest_first: bool = False
    ) -> list[tuple[StreamId, Entry | None]]:
        """As `raw_range`, decoded; None stands for an entry that holds no event."""
        rows = await self.raw_range(low, high, count, newest_first=newest_first)
        return [entry_of(row) for row in rows]


def _fitting(entries: Sequence[Entry]) -> int:
    """How many such entries make a page of `PAGE_BYTES`."""
    return max(1, PAGE_BYTES * len(entries) // sum(len(entry.json) for entry in entries))


def _bounds(fields: list[Any]) -> Bounds:
    info = dict(zip(fields[::2], fields[1::2], strict=True))
    first, newest = info.get(b"first-entry"), info.get(b"last-entry")
    return Bounds(
        first=from_wire(first[0]) if first else None,
        last=from_wire(info[b"last-generated-id"]),
        added=info.get(b"entries-added"),
        length=info[b"length"],
        deleted=from_wire(info.get(b"max-deleted-entry-id", b"0-0")),
        newest=from_wire(newest[0]) if newest else None,
    )


def _located(cursor: Cursor, bounds: Bounds) -> Cursor:
    """The cursor with its position, where the bounds tell it."""
    if cursor.id == bounds.last:
        return Cursor(cursor.id, bounds.added)
    if bounds.first is not None and cursor.id < bounds.first:
        return Cursor(cursor.id, bounds.position_before_first)
    return cursor
