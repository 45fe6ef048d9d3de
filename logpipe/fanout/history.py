"""Reading back: where a subscription begins, and the pages of the history."""

import asyncio
import time
from typing import NamedTuple

from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry
from logpipe.filters import Filter
from logpipe.ids import END, START, StreamId
from logpipe.stream import Stream

PAGE_BYTES = 8 * 1024 * 1024
"""A page of the history ends at this size, though it may hold fewer events than were asked for."""
PAGE_SCAN = 50_000
"""Entries that one page looks at; a rare match in a long stream then takes more than one page."""
TURN_S = 0.005
"""So long entries are looked at in one go: a read of large ones, by a filter of regular
expressions, can take seconds, for which nothing else may have to wait."""


class _Turn:
    """The time for which nothing else had its turn."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() - self._began > TURN_S

    async def give(self) -> None:
        """Has the others go on."""
        await asyncio.sleep(0)
        self._began = time.monotonic()


class HistoryPage(NamedTuple):
    """Matching entries, and the id at which the next page goes on (None at the end)."""

    entries: list[Entry]
    next: StreamId | None


async def history(
    stream: Stream,
    chosen: Filter,
    low: StreamId,
    high: StreamId,
    limit: int,
    count: int,
    *,
    newest_first: bool,
) -> HistoryPage:
    """Up to `limit` matching entries between two ids (inclusive), read `count` at a time, or fewer
    where a page without a filter needs no more."""
    accepts = chosen.predicate
    entries: list[Entry] = []
    scanned = size = 0
    while low <= high:
        wanted = count if accepts else min(count, limit - len(entries) + 1)
        rows = await stream.range(low, high, wanted, newest_first=newest_first)
        turn = _Turn()
        for id_, entry in rows:
            if turn.over:
                await turn.give()
            if len(entries) >= limit or size > PAGE_BYTES or scanned >= PAGE_SCAN:
                return HistoryPage(entries, id_)
            scanned += 1
            if entry is not None and (accepts is None or accepts(entry.event)):
                entries.append(entry)
                size += len(entry.json)
        if len(rows) < wanted:
            break
        if newest_first:
            high = rows[-1][0].before()
        else:
            low = rows[-1][0].after()
    return HistoryPage(entries, None)


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


async def before_last(stream: Stream, chosen: Filter, wanted: int, page: int) -> Cursor:
    """The cursor before the last `wanted` matching entries that are kept."""
    accepts = chosen.predicate
    found = 0
    high = END
    oldest: StreamId | None = None
    while True:
        rows = await stream.range(START, high, page, newest_first=True)
        turn = _Turn()
        for id_, entry in rows:
            if turn.over:
                await turn.give()
            if found >= wanted:
                return Cursor(id_)
            oldest = id_
            found += entry is not None and (accepts is None or accepts(entry.event))
        if not rows:
            break
        high = rows[-1][0].before()
    if oldest is None:
        bounds = await stream.bounds()
        return Cursor(bounds.last, bounds.added)
    return Cursor(oldest.before())
