"""What the page reads besides its live stream: older rows, volume, details."""

import time
from collections.abc import Mapping

import msgspec

from logpipe.event import NOT_DECODED
from logpipe.fanout.history import Budget, HistoryPage, page_of
from logpipe.filters import Filter
from logpipe.ids import END, START, StreamId, parse_id
from logpipe.parameters import span
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
VOLUME_SCAN = 1_000_000
"""Entries that a volume looks at."""
VOLUME_BYTES = 256 * 1024 * 1024
"""Bytes that a volume looks at."""
VOLUME_S = 2.0
"""Seconds that a volume may take."""
MAX_SOURCES = 200


def columns_of(query: Mapping[str, str]) -> tuple[str, ...]:
    """The metadata that have columns: `cols=region,status`. Raises a `Problem`."""
    names = tuple(dict.fromkeys(name for name in query.get("cols", "").split(",") if name))
    if len(names) > MAX_COLUMNS or any(len(name) > MAX_COLUMN_NAME for name in names):
        raise bad_parameter("cols", f"takes up to {MAX_COLUMNS} names of metadata, like a,b")
    return names


def chosen_view(chosen: Filter, query: Mapping[str, str]) -> View:
    """How the events that a filter takes are shown. Raises a `Problem`."""
    return view_of(chosen, columns_of(query))


def _id(query: Mapping[str, str], name: str) -> StreamId | None:
    if not query.get(name):
        return None
    try:
        return parse_id(query[name])
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None


async def older_rows(log: Log, chosen: Filter, query: Mapping[str, str]) -> str:
    """A page of rows before an id: `before` it, or `upto` it, but none before `since`.

    Above them is where the next page begins, or that there is nothing older.
    """
    view = chosen_view(chosen, query)
    low, high = span(query, "since", log.now_ms)
    high = min(high, _id(query, "upto") or END)
    if before := _id(query, "before"):
        high = min(high, before.before())
    page = await _page(log, chosen, low, high, PAGE_ROWS, newest_first=True)
    rows = "".join([row(entry, view) for entry in reversed(page.entries)])
    return _edge(page, limited=low > START) + rows


async def _page(
    log: Log, chosen: Filter, low: StreamId, high: StreamId, limit: int, *, newest_first: bool
) -> HistoryPage:
    """A page of the history, cut where its rows would become too much for one answer."""
    scan = log.history(chosen, low, high, newest_first=newest_first)
    page = await page_of(scan, limit, ROWS_BYTES)
    size = 0
    for number, entry in enumerate(page.entries):
        size += len(entry.json)
        if number and size > ROWS_BYTES:
            return HistoryPage(page.entries[:number], entry.id, page.entries[number - 1].id)
    return page


def _edge(page: HistoryPage, *, limited: bool) -> str:
    """The row above the oldest: the page asks for what is before it when it comes into view, and
    says how far was searched where nothing was found."""
    if page.next is not None:
        empty = page.searched_to if not page.entries else None
        searched = f' data-searched="{empty}"' if empty is not None else ""
        return f'<div class="edge" data-upto="{page.next}"{searched}>Older events…</div>'
    said = "Nothing older in this span." if limited else "The stream keeps nothing older."
    return f'<div class="edge" role="note">{said}</div>'


async def rows_around(log: Log, chosen: Filter, query: Mapping[str, str]) -> str:
    """The rows before an event, the event, and the rows behind it."""
    view = chosen_view(chosen, query)
    at = _id(query, "at") or START
    older = await _page(log, chosen, START, at.before(), CONTEXT_ROWS, newest_first=True)
    newer = await _page(log, chosen, at, END, CONTEXT_ROWS + 1, newest_first=False)
    entries = [*reversed(older.entries), *newer.entries]
    if all(entry.id != at for entry in newer.entries[:1]):
        # Its filter may not take the event itself; a permalink shows it all the same.
        own = await _page(log, Filter(), at, at, 1, newest_first=False)
        entries[len(older.entries) : len(older.entries)] = own.entries
    return _edge(older, limited=False) + "".join([row(entry, view) for entry in entries])


async def volume(log: Log, chosen: Filter, query: Mapping[str, str]) -> bytes:
    """How many events came when, by level, and from which sources, the newest first: `complete`
    unless that takes more than `MAX_COUNTED` or the budget of a volume, else `from` the last id
    that was looked at. The parameter `upto` is the newest id that is counted."""
    counted = Volume()
    sources: dict[str, None] = {}
    high = _id(query, "upto") or END
    budget = Budget(VOLUME_SCAN, VOLUME_BYTES, VOLUME_S)
    scan = log.history(chosen, START, high, newest_first=True, budget=budget)
    seen = 0
    deadline = time.monotonic() + VOLUME_S
    while not scan.over and seen < MAX_COUNTED and time.monotonic() < deadline:
        entries = await scan.step(MAX_COUNTED - seen)
        counted.add(entries)
        if len(sources) < MAX_SOURCES:
            sources.update(dict.fromkeys(entry.event.source for entry in entries))
        seen += len(entries)
    return msgspec.json.encode(
        {
            "step_ms": counted.step_ms,
            "kinds": KINDS,
            "volume": counted.rows(),
            "sources": sorted(sources)[:MAX_SOURCES],
            "complete": scan.next is None,
            "from": str(scan.searched_to) if scan.searched_to is not None else None,
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
