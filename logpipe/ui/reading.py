"""What the page reads besides its live stream: older rows, volume, details."""

from collections.abc import Mapping

import msgspec

from logpipe.event import NOT_DECODED
from logpipe.fanout.history import HistoryPage
from logpipe.filters import Filter
from logpipe.ids import END, START, StreamId, parse_id
from logpipe.parameters import chosen_filter, span
from logpipe.problems import Problem, bad_parameter
from logpipe.ui.details import details
from logpipe.ui.log import Log
from logpipe.ui.rows import MAX_COLUMN_NAME, MAX_COLUMNS, View, row, view_of
from logpipe.ui.volume import KINDS, Volume

PAGE_ROWS = 100
"""Older rows that come at a time."""
ROWS_BYTES = 1024 * 1024
"""The events that come as rows at a time; of larger ones there are fewer."""
CONTEXT_ROWS = 50
"""Rows on each side of an event that is shown in its context."""
MAX_COUNTED = 50_000
"""Events that a volume counts, the newest first."""
COUNTED_AT_ONCE = 5_000
MAX_READS = 20
"""Pages of the history that a volume takes: rare matches, or large ones, make a long way."""
MAX_SOURCES = 200


def columns_of(query: Mapping[str, str]) -> tuple[str, ...]:
    """The metadata that have columns: `cols=region,status`. Raises a `Problem`."""
    names = tuple(dict.fromkeys(name for name in query.get("cols", "").split(",") if name))
    if len(names) > MAX_COLUMNS or any(len(name) > MAX_COLUMN_NAME for name in names):
        raise bad_parameter("cols", f"takes up to {MAX_COLUMNS} names of metadata, like a,b")
    return names


def chosen_view(query: Mapping[str, str]) -> tuple[Filter, View]:
    """The filter of a query, and how what it takes is shown. Raises a `Problem`."""
    chosen = chosen_filter(query)
    return chosen, view_of(chosen, columns_of(query))


def _id(query: Mapping[str, str], name: str) -> StreamId | None:
    if not query.get(name):
        return None
    try:
        return parse_id(query[name])
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None


async def older_rows(log: Log, query: Mapping[str, str]) -> str:
    """A page of rows before an id: `before` it, or `upto` it, but none before `since`.

    Above them is where the next page begins, or that there is nothing older.
    """
    chosen, view = chosen_view(query)
    low, high = span(query, "since")
    high = min(high, _id(query, "upto") or END)
    if before := _id(query, "before"):
        high = min(high, before.before())
    page = _fitting(await log.page(chosen, low, high, PAGE_ROWS, newest_first=True))
    rows = "".join([row(entry, view) for entry in reversed(page.entries)])
    return _edge(page.next, limited=low > START) + rows


def _fitting(page: HistoryPage) -> HistoryPage:
    """The page, cut where its rows would become too much for one answer."""
    size = 0
    for number, entry in enumerate(page.entries):
        size += len(entry.json)
        if number and size > ROWS_BYTES:
            return HistoryPage(page.entries[:number], entry.id)
    return page


def _edge(following: StreamId | None, *, limited: bool) -> str:
    """The row above the oldest: the page asks for what is before it when it comes into view."""
    if following is not None:
        return f'<div class="edge" data-upto="{following}">Older events…</div>'
    said = "Nothing older in this span." if limited else "The stream keeps nothing older."
    return f'<div class="edge" role="note">{said}</div>'


async def rows_around(log: Log, query: Mapping[str, str]) -> str:
    """The rows before an event, the event, and the rows behind it."""
    chosen, view = chosen_view(query)
    at = _id(query, "at") or START
    older = _fitting(await log.page(chosen, START, at.before(), CONTEXT_ROWS, newest_first=True))
    newer = _fitting(await log.page(chosen, at, END, CONTEXT_ROWS + 1, newest_first=False))
    entries = [*reversed(older.entries), *newer.entries]
    if all(entry.id != at for entry in newer.entries[:1]):
        # Its filter may not take the event itself; a permalink shows it all the same.
        own = await log.page(Filter(), at, at, 1, newest_first=False)
        entries[len(older.entries) : len(older.entries)] = own.entries
    return _edge(older.next, limited=False) + "".join([row(entry, view) for entry in entries])


async def volume(log: Log, query: Mapping[str, str]) -> bytes:
    """How many events came when, by level, and from which sources, the newest first; `complete`
    unless that takes more than `MAX_COUNTED` or `MAX_READS`. `upto` is the last id counted."""
    chosen = chosen_filter(query)
    counted = Volume()
    sources: dict[str, None] = {}
    high: StreamId | None = _id(query, "upto") or END
    seen = reads = 0
    while high is not None and seen < MAX_COUNTED and reads < MAX_READS:
        reads += 1
        page = await log.page(chosen, START, high, COUNTED_AT_ONCE, newest_first=True)
        counted.add(page.entries)
        if len(sources) < MAX_SOURCES:
            sources.update(dict.fromkeys(entry.event.source for entry in page.entries))
        seen += len(page.entries)
        high = page.next
    return msgspec.json.encode(
        {
            "step_ms": counted.step_ms,
            "kinds": KINDS,
            "volume": counted.rows(),
            "sources": sorted(sources)[:MAX_SOURCES],
            "complete": high is None,
        }
    )


def details_of(text: str) -> str:
    """The details of a row, from all of it but the message as JSON. Raises a `Problem`."""
    try:
        facts = msgspec.json.decode(text)
        if isinstance(facts, dict):
            return details(facts)
    except NOT_DECODED:
        pass
    raise Problem(422, "These metadata are nested too deep to be shown.")
