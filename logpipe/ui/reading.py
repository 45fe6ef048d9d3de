"""What the page reads besides its live stream: older rows, volume, details, downloads."""

import csv
import io
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from logpipe.event import NOT_DECODED, Entry
from logpipe.filters import Filter
from logpipe.ids import END, START, StreamId, parse_id
from logpipe.parameters import chosen_filter, span
from logpipe.problems import Problem, bad_parameter
from logpipe.ui.log import Log
from logpipe.ui.rows import View, row, view_of
from logpipe.ui.volume import KINDS, Volume

PAGE_ROWS = 100
"""Older rows that come at a time."""
CONTEXT_ROWS = 50
"""Rows on each side of an event that is shown in its context."""
MAX_COUNTED = 50_000
"""Events that a volume counts, the newest first."""
COUNTED_AT_ONCE = 5_000
MAX_COLUMNS = 8
MAX_COLUMN_NAME = 100
MAX_SOURCES = 200

_CSV_FIELDS = ("id", "ts_unix_ms", "level", "source", "message", "metadata")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


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
    page = await log.page(chosen, low, high, PAGE_ROWS, newest_first=True)
    rows = "".join([row(entry, view) for entry in reversed(page.entries)])
    return _edge(page.next, limited=low > START) + rows


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
    older = await log.page(chosen, START, at.before(), CONTEXT_ROWS, newest_first=True)
    newer = await log.page(chosen, at, END, CONTEXT_ROWS + 1, newest_first=False)
    # Its filter may not take the event itself; a permalink shows it all the same.
    if not newer.entries or newer.entries[0].id != at:
        own = await log.page(Filter(), at, at, 1, newest_first=False)
        entries = [*reversed(older.entries), *own.entries, *newer.entries]
    else:
        entries = [*reversed(older.entries), *newer.entries]
    return _edge(older.next, limited=False) + "".join([row(entry, view) for entry in entries])


async def volume(log: Log, query: Mapping[str, str]) -> bytes:
    """How many events came when, by level, and from which sources; `complete` unless there are
    more than `MAX_COUNTED`. `upto` is the last id that is counted."""
    chosen = chosen_filter(query)
    counted = Volume()
    sources: dict[str, None] = {}
    high: StreamId | None = _id(query, "upto") or END
    seen = 0
    while high is not None and seen < MAX_COUNTED:
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


def posted_event(text: str) -> dict[str, Any]:
    """The facts of a row, as it holds them. Raises a `Problem`."""
    try:
        facts = msgspec.json.decode(text)
    except NOT_DECODED:
        facts = None
    if not isinstance(facts, dict):
        raise Problem(422, "These metadata are nested too deep to be shown.")
    return facts


# -- downloads --------------------------------------------------------------------------------


def download(log: Log, query: Mapping[str, str], format_: str) -> tuple[str, AsyncIterator[bytes]]:
    """The media type, and the matching events from the oldest on. Raises a `Problem`."""
    chosen = chosen_filter(query)
    pages = _pages(log, chosen, *span(query, "since"))
    if format_ == "csv":
        return "text/csv; charset=utf-8", _csv(pages)
    if format_ == "ndjson":
        return "application/x-ndjson", _ndjson(pages)
    raise bad_parameter("format", "must be ndjson or csv")


async def _pages(
    log: Log, chosen: Filter, low: StreamId, high: StreamId
) -> AsyncIterator[list[Entry]]:
    at: StreamId | None = low
    while at is not None:
        page = await log.page(chosen, at, high, COUNTED_AT_ONCE, newest_first=False)
        yield page.entries
        at = page.next


async def _ndjson(pages: AsyncIterator[list[Entry]]) -> AsyncIterator[bytes]:
    async for entries in pages:
        yield b"".join([entry.json + b"\n" for entry in entries])


async def _csv(pages: AsyncIterator[list[Entry]]) -> AsyncIterator[bytes]:
    yield _csv_rows([_CSV_FIELDS])
    async for entries in pages:
        yield _csv_rows([_csv_row(entry) for entry in entries])


def _csv_row(entry: Entry) -> tuple[str, ...]:
    id_, _, event = entry
    metadata = msgspec.json.encode(event.metadata).decode() if event.metadata else ""
    ms = id_.ms if event.ts_unix_ms is None else event.ts_unix_ms
    texts = (_cell(each) for each in (event.level, event.source, event.message))
    return (str(id_), str(ms), *texts, metadata)


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_rows(rows: list[tuple[str, ...]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode(errors="replace")
