"""Reading back: where a subscription begins, and the pages of the history."""

import asyncio
import math
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate
from typing import NamedTuple, Protocol

from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry, read_entry, weight_of
from logpipe.filters import Filter
from logpipe.ids import START, StreamId, from_wire
from logpipe.problems import Problem
from logpipe.stream import FIELD, RawEntry, Stream, event_json
from logpipe.turns import CpuTime, Turns

PAGE_BYTES = 8 * 1024 * 1024
"""A page of the history ends at this size, though it may hold fewer events than were asked for."""
PAGE_SCAN = 50_000
"""Entries that one page looks at; a rare match in a long stream then takes more than one page."""
PAGE_READ_BYTES = 32 * 1024 * 1024
"""Bytes that one page looks at."""
PAGE_S = 0.25
"""Seconds of the processor that one page may spend on looking at entries: a busy machine makes no
page shorter."""

STEP_BYTES = 1024 * 1024
"""About so many bytes are read from Redis in one step, as far as the entries before it tell; of no
more, and one entry, are the entries that it finds."""
STEP_S = 0.05
"""Seconds of the processor after which a step ends."""
FIRST_COUNT = 16
"""Entries of a first step, whose size is not known; of 64 KiB each they are 1 MiB."""
STEP_GROWTH = 4
"""A step has at most so many times the entries of the one before, whatever the size of those."""
MAX_STEP_COUNT = 256
"""Entries of one step: where large entries follow small ones, 16 MiB of 64 KiB each."""
RUN_BYTES = 16 * 1024
"""Entries of so many bytes are checked for a filter's words at once, between two looks at the
clock: 20 to 60 us where none of them has the words."""
ENTRY_BYTES = 64
"""What an entry counts besides its event, in budgets."""

SCAN_SEATS = 3
"""Steps of scans that are under way at the same time in one process."""
SCAN_QUEUE = 32
"""Steps that may wait for a seat before a new scan is refused."""
BUSY_RETRY_S = 2
"""When a refused client is asked to try again."""


class ScanSeats:
    """The seats for the steps of all scans in a process, taken in order of arrival."""

    def __init__(
        self,
        seats: int = SCAN_SEATS,
        queue: int = SCAN_QUEUE,
        limited: Callable[[Mapping[str, int]], None] = lambda _: None,
        turns: Turns | None = None,
    ) -> None:
        self.turns = turns or Turns()
        """For looking at the entries: all scans together hold the event loop for one turn."""
        self._free = asyncio.Semaphore(seats)
        self._queue = queue
        self._limited = limited
        self.waiting = 0
        """Steps that wait for a seat."""

    def require(self) -> None:
        """Raises a 503 `Problem` for a new scan where too many steps are waiting."""
        if self.waiting >= self._queue:
            self._limited({"scans": 1})
            raise Problem(
                503,
                "Too many searches of the history are waiting here; try again later.",
                headers={"Retry-After": str(BUSY_RETRY_S)},
            )

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """A seat for one step, given back at the end of the context."""
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free.release()


class Budget:
    """What a scan may still look at before it has to end, and the seconds of the processor that it
    may still take."""

    def __init__(
        self, entries: int | None = None, size: int | None = None, seconds: float | None = None
    ) -> None:
        """That of one page, where nothing else is given."""
        self.entries = PAGE_SCAN if entries is None else entries
        self.bytes = PAGE_READ_BYTES if size is None else size
        self.seconds = PAGE_S if seconds is None else seconds

    @classmethod
    def unlimited(cls) -> "Budget":
        """That of a scan which its caller ends."""
        return cls(sys.maxsize, sys.maxsize, math.inf)

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.entries <= 0 or self.bytes <= 0 or self.seconds <= 0


class History(Protocol):
    """A search of a log, step by step: of the stream by `Scan`, of another process by
    `client.log.RemoteScan`."""

    @property
    def next(self) -> StreamId | None:
        """The id at which it goes on; None when it has reached its end."""

    @property
    def searched_to(self) -> StreamId | None:
        """The last entry that was looked at; None before the first."""

    @property
    def over(self) -> bool:
        """Whether it has reached its end or spent its budget."""

    async def step(self, limit: int, size: int = PAGE_BYTES) -> list[Entry]:
        """Up to `limit` further matching entries, of `size` and of `STEP_BYTES` or little more.
        Raises a `Problem`."""


class Scan:
    """A search for matching entries between two ids (inclusive), one bounded step at a time.

    A step reads from Redis once, holds a seat meanwhile, and looks at the entries in turns. A
    caller that is cancelled, because its client has left, ends the scan within the step.
    """

    def __init__(
        self,
        stream: Stream,
        seats: ScanSeats,
        chosen: Filter,
        low: StreamId,
        high: StreamId,
        count: int,
        *,
        newest_first: bool,
        budget: Budget | None = None,
    ) -> None:
        self.budget = budget or Budget()
        self.next: StreamId | None = (high if newest_first else low) if low <= high else None
        """The id at which it goes on; None when it has reached its end."""
        self.searched_to: StreamId | None = None
        """The last entry that was looked at; None before the first."""
        self._stream = stream
        self._seats = seats
        self._may_match = chosen.may_match
        self._accepts = chosen.predicate
        self._low = low
        self._high = high
        self._most = min(count, MAX_STEP_COUNT)
        self._fits = FIRST_COUNT
        self._seen = 0
        """Rows of the current step that were looked at."""
        self._newest_first = newest_first

    @property
    def over(self) -> bool:
        """Whether it has reached its end or spent its budget."""
        return self.next is None or self.budget.spent

    async def step(self, limit: int, size: int = PAGE_BYTES) -> list[Entry]:
        """Up to `limit` further matching entries, of `size` bytes and, by `event.weight_of`, of
        `STEP_BYTES` or little more, from one read: one entry may exceed them.

        Raises `Unavailable`; the step may then be repeated.
        """
        assert self.next is not None
        low, high = (self._low, self.next) if self._newest_first else (self.next, self._high)
        wanted = self._wanted(limit)
        async with self._seats.step():
            rows = await self._stream.raw_range(low, high, wanted, newest_first=self._newest_first)
            found, seen = await self._judged(rows, limit, size)
        if seen < len(rows):
            self.next = from_wire(rows[seen][0])
        elif len(rows) < wanted:
            self.next = None
        else:
            last = from_wire(rows[-1][0])
            self.next = last.before() if self._newest_first else last.after()
            if self.next == last or not self._low <= self.next <= self._high:
                self.next = None
        if seen:
            self.searched_to = from_wire(rows[seen - 1][0])
        return found

    def _wanted(self, limit: int) -> int:
        """How many entries to read: so many that the step stays within its bounds."""
        count = min(self._most, self._fits, self.budget.entries)
        if self._accepts is None:
            count = min(count, limit)
            # One more than is given tells whether the page is the last.
            count += count == limit
        return max(1, count)

    async def _judged(
        self, rows: Sequence[RawEntry], limit: int, size: int
    ) -> tuple[list[Entry], int]:
        """The matching entries, and how many rows were looked at until the step was over."""
        # Without a call for each entry, where it is as logpipe writes it.
        raws = [
            (fields[1] if fields and fields[0] == FIELD else event_json(fields)) or b""
            for _, fields in rows
        ]
        ends = list(accumulate(map(len, raws)))
        found: list[Entry] = []
        cpu = CpuTime()
        self._seen = 0
        await self._seats.turns.run(self._judging(rows, raws, ends, limit, size, found, cpu), cpu)
        seen = self._seen
        self.budget.seconds -= cpu.seconds
        if seen:
            total = ends[seen - 1] + ENTRY_BYTES * seen
            self.budget.entries -= seen
            self.budget.bytes -= total
            self._fits = min(
                STEP_GROWTH * len(rows),
                STEP_BYTES * seen // total,
                int(STEP_S * seen / max(cpu.seconds, 1e-6)),
            )
        return found, seen

    def _judging(
        self,
        rows: Sequence[RawEntry],
        raws: Sequence[bytes],
        ends: Sequence[int],
        limit: int,
        size: int,
        found: list[Entry],
        cpu: CpuTime,
    ) -> Iterator[None]:
        """Adds the matching entries, as work for `Turns`. `raws` is the JSON of the rows, `ends`
        the sum of its sizes."""
        accepts = self._accepts
        seconds = min(STEP_S, self.budget.seconds)
        room = STEP_BYTES
        end = 0
        while end < len(rows):
            start = end
            end = bisect_right(ends, RUN_BYTES + (ends[start - 1] if start else 0), start + 1)
            for at in self._candidates(raws, start, end):
                entry = read_entry(from_wire(rows[at][0]), raws[at])
                if entry is not None and (accepts is None or accepts(entry.event)):
                    found.append(entry)
                    size -= len(entry.json)
                    room -= weight_of([entry])
                self._seen = at + 1
                if len(found) >= limit or size <= 0 or room <= 0:
                    return
                yield
                if cpu.seconds > seconds:
                    return
            self._seen = end
            yield
            if cpu.seconds > seconds:
                return

    def _candidates(self, raws: Sequence[bytes], start: int, end: int) -> Sequence[int]:
        """The positions from `start` to `end` of the JSON that the filter may take."""
        may_match = self._may_match
        if may_match is None:
            return range(start, end)
        if end - start > 1 and not may_match(b"\n".join(raws[start:end])):
            return ()
        return [at for at in range(start, end) if may_match(raws[at])]


class HistoryPage(NamedTuple):
    """Matching entries, the id at which the next page goes on (None at the end), and the last id
    that was looked at (None where there was none)."""

    entries: list[Entry]
    next: StreamId | None
    searched_to: StreamId | None = None


async def page_of(scan: History, limit: int, size: int = PAGE_BYTES) -> HistoryPage:
    """Up to `limit` entries, of `size` bytes (by `event.weight_of`) or little more, that a scan
    finds in its budget. Where a step fails after others, the page ends before it. Raises the
    `Problem` of the first step."""
    entries: list[Entry] = []
    while len(entries) < limit and size > 0 and not scan.over:
        try:
            found = await scan.step(limit - len(entries), size)
        except Problem:
            if scan.searched_to is None:
                raise
            break
        entries += found
        size -= weight_of(found)
    return HistoryPage(entries, scan.next, scan.searched_to)


async def before(stream: Stream, since: StreamId) -> tuple[Cursor, Gap | None]:
    """The cursor before the first entry that is not below `since`.

    With a gap where entries since then may have been trimmed; `START` asks for what is kept, so
    that nothing is missing.
    """
    if since > START:
        below = await stream.range(START, since.before(), 1, newest_first=True)
        if below:
            return Cursor(below[0][0]), None
    bounds = await stream.bounds()
    if bounds.first is None:
        # What was wanted may be trimmed: a cursor before it is told so by the next entry.
        if START < since <= bounds.last:
            return Cursor(since.before()), None
        return Cursor(bounds.last, bounds.added), None
    cursor = Cursor(bounds.first.before(), bounds.position_before_first)
    if since == START or not bounds.trimmed or since >= bounds.first:
        return cursor, None
    return cursor, Gap("trimmed", since.before(), bounds.first, None, cursor.id)
