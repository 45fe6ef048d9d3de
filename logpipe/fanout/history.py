"""Reading back: where a subscription begins, and the pages of the history."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry, read_entry
from logpipe.filters import Filter
from logpipe.ids import START, StreamId, from_wire
from logpipe.problems import Problem
from logpipe.stream import RawEntry, Stream, event_json

PAGE_BYTES = 8 * 1024 * 1024
"""A page of the history ends at this size, though it may hold fewer events than were asked for."""
PAGE_SCAN = 50_000
"""Entries that one page looks at; a rare match in a long stream then takes more than one page."""
PAGE_READ_BYTES = 32 * 1024 * 1024
"""Bytes that one page looks at."""
PAGE_S = 0.25
"""Seconds that one page may spend on looking at entries."""

STEP_BYTES = 1024 * 1024
"""About so much is read from Redis in one step."""
FIRST_COUNT = 64
"""Entries of a first step, whose size nobody knows."""
TURN_S = 0.005
"""So long entries are looked at without a pause: a read of large ones, by a filter of regular
expressions, can take seconds, for which nothing else may have to wait."""

SCAN_SEATS = 3
"""Steps of scans that are under way at the same time in one process."""
SCAN_QUEUE = 32
"""Steps that may wait for a seat before a new scan is refused."""
BUSY_RETRY_S = 2
"""When a refused client is asked to try again."""


class ScanSeats:
    """The seats for the steps of all scans in a process, taken in order of arrival."""

    def __init__(self, seats: int = SCAN_SEATS, queue: int = SCAN_QUEUE) -> None:
        self._free = asyncio.Semaphore(seats)
        self._queue = queue
        self.waiting = 0
        """Steps that wait for a seat."""

    def require(self) -> None:
        """Raises a 503 `Problem` for a new scan where too many steps are waiting."""
        if self.waiting >= self._queue:
            raise Problem(
                503,
                "Too many searches of the history are waiting here; try again later.",
                headers={"Retry-After": str(BUSY_RETRY_S)},
                hits={"scans": 1},
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
    """What a scan may still look at before it has to end, and the seconds it may still take."""

    def __init__(
        self, entries: int = PAGE_SCAN, size: int = PAGE_READ_BYTES, seconds: float = PAGE_S
    ) -> None:
        self.entries = entries
        self.bytes = size
        self.seconds = seconds

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.entries <= 0 or self.bytes <= 0 or self.seconds <= 0


class _Turn:
    """The time for which nothing else had its turn; it is taken from a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._began = time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() - self._began > TURN_S

    def end(self) -> None:
        """Takes what it has lasted from the budget."""
        now = time.monotonic()
        self._budget.seconds -= now - self._began
        self._began = now

    async def give(self) -> None:
        """Lets others go on."""
        self.end()
        await asyncio.sleep(0)
        self._began = time.monotonic()


class Scan:
    """A search for matching entries between two ids (inclusive), one bounded step at a time.

    A step reads from Redis once, holds a seat meanwhile, and pauses every `TURN_S`. A caller that
    is cancelled, because its client has left, ends the scan within the step.
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
        """The last entry that was looked at."""
        self._stream = stream
        self._seats = seats
        self._may_match = chosen.may_match
        self._accepts = chosen.predicate
        self._low = low
        self._high = high
        self._count = count
        self._newest_first = newest_first
        self._average = 0

    @property
    def over(self) -> bool:
        """Whether it has reached its end or spent its budget."""
        return self.next is None or self.budget.spent

    async def step(self, limit: int, size: int = PAGE_BYTES) -> list[Entry]:
        """Up to `limit` further matching entries, of `size` bytes or little more, from one read.

        Raises `Unavailable`.
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
        """So many entries that a step is about as large as it should be."""
        count = min(self._count, self.budget.entries)
        if not self._average:
            count = min(count, FIRST_COUNT)
        else:
            count = min(count, STEP_BYTES // self._average)
        if self._accepts is None:
            count = min(count, limit + 1)
        return max(1, count)

    async def _judged(
        self, rows: Sequence[RawEntry], limit: int, size: int
    ) -> tuple[list[Entry], int]:
        """The matching entries, and how many rows were looked at until there were enough."""
        may_match, accepts, budget = self._may_match, self._accepts, self.budget
        found: list[Entry] = []
        seen = total = 0
        turn = _Turn(budget)
        for id_, fields in rows:
            if turn.over:
                await turn.give()
                if budget.seconds <= 0 and seen:
                    break
            if len(found) >= limit or size <= 0:
                break
            seen += 1
            raw = event_json(fields)
            if raw is None:
                continue
            total += len(raw)
            if may_match is not None and not may_match(raw):
                continue
            entry = read_entry(from_wire(id_), raw)
            if entry is not None and (accepts is None or accepts(entry.event)):
                found.append(entry)
                size -= len(entry.json)
        turn.end()
        budget.entries -= seen
        budget.bytes -= total
        if seen:
            self._average = max(1, total // seen)
        return found, seen


class HistoryPage(NamedTuple):
    """Matching entries, the id at which the next page goes on (None at the end), and the last id
    that was looked at (None where there was none)."""

    entries: list[Entry]
    next: StreamId | None
    searched_to: StreamId | None = None


async def page_of(scan: Scan, limit: int) -> HistoryPage:
    """Up to `limit` entries that a scan finds within its budget."""
    entries: list[Entry] = []
    left = PAGE_BYTES
    while len(entries) < limit and left > 0 and not scan.over:
        found = await scan.step(limit - len(entries), left)
        entries += found
        left -= sum(len(entry.json) for entry in found)
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
