"""All that a filter takes, as a file: read page by page, as quickly as it is taken."""

import csv
import io
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from logpipe.event import Entry
from logpipe.fanout.history import HistoryPage
from logpipe.filters import Filter
from logpipe.ids import StreamId
from logpipe.parameters import chosen_filter, one_of, span
from logpipe.problems import Problem
from logpipe.ui.log import Log
from logpipe.ui.rows import as_json

log = logging.getLogger("logpipe.ui")

AT_ONCE = 5_000
"""Events that are read for one piece of a file, unless `history.PAGE_BYTES` makes them fewer."""

_CSV_FIELDS = ("id", "ts_unix_ms", "level", "source", "message", "metadata")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What begins a formula, or may: OWASP, CSV injection."""


class DownloadResponse(StreamingResponse):
    """A file. One that cannot be read to its end is cut off, so that nobody takes it for whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As any response; HEAD reads nothing."""
        if scope["method"] == "HEAD":
            self.body_iterator = iterate_in_threadpool(())
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Sends the pieces as they come."""
        try:
            await super().stream_response(send)
        except Problem as problem:
            log.warning("a download is cut off: %s", problem.detail)


async def download(source: Log, query: Mapping[str, str]) -> DownloadResponse:
    """What matches, from the oldest on. Raises a `Problem` as long as nothing is sent."""
    chosen = chosen_filter(query)
    low, high = span(query, "since")
    name = one_of(query, "format", "ndjson", *_FORMATS)
    media_type, encoded = _FORMATS[name]
    first = await source.page(chosen, low, high, AT_ONCE, newest_first=False)
    headers = {
        "Content-Disposition": f'attachment; filename="logpipe.{name}"',
        "Cache-Control": "no-store",
    }
    parts = encoded(_pages(source, chosen, first, high))
    return DownloadResponse(parts, 200, headers, media_type)


async def _pages(
    source: Log, chosen: Filter, page: HistoryPage, high: StreamId
) -> AsyncIterator[list[Entry]]:
    yield page.entries
    while page.next is not None:
        page = await source.page(chosen, page.next, high, AT_ONCE, newest_first=False)
        yield page.entries


async def _ndjson(pages: AsyncIterator[list[Entry]]) -> AsyncIterator[bytes]:
    async for entries in pages:
        yield b"".join([entry.json + b"\n" for entry in entries])


async def _csv(pages: AsyncIterator[list[Entry]]) -> AsyncIterator[bytes]:
    yield _csv_rows([_CSV_FIELDS])
    async for entries in pages:
        yield _csv_rows([_csv_row(entry) for entry in entries])


def _csv_row(entry: Entry) -> tuple[str, ...]:
    id_, _, event = entry
    metadata = as_json(event.metadata) if event.metadata else ""
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


_FORMATS: Mapping[str, tuple[str, Callable[[AsyncIterator[list[Entry]]], AsyncIterator[bytes]]]] = {
    "ndjson": ("application/x-ndjson", _ndjson),
    "csv": ("text/csv; charset=utf-8", _csv),
}
