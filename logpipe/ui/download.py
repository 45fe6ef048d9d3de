"""All that a filter takes, as a file: read step by step, as quickly as it is taken."""

import csv
import io
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from logpipe.answers import Answers, StreamedResponse
from logpipe.event import Entry
from logpipe.fanout.history import Budget, History
from logpipe.filters import Filter
from logpipe.parameters import one_of, span
from logpipe.ui.log import Log
from logpipe.ui.rows import as_json

AT_ONCE = 5_000
"""The most events of one piece of a file."""

_CSV_FIELDS = ("id", "ts_unix_ms", "level", "source", "message", "metadata")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What begins a formula, or may: OWASP, CSV injection."""


def download(
    source: Log, chosen: Filter, query: Mapping[str, str], answers: Answers
) -> StreamedResponse:
    """What the filter takes, from the oldest on. Raises a `Problem`."""
    low, high = span(query, "since", source.now_ms)
    name = one_of(query, "format", "ndjson", *_FORMATS)
    media_type, encoded = _FORMATS[name]
    scan = source.history(chosen, low, high, newest_first=False, budget=Budget.unlimited())
    headers = {
        "Content-Disposition": f'attachment; filename="logpipe.{name}"',
        "Cache-Control": "no-store",
    }
    return StreamedResponse(encoded(_steps(scan)), answers, headers, media_type)


async def _steps(scan: History) -> AsyncGenerator[list[Entry], None]:
    while not scan.over:
        yield await scan.step(AT_ONCE)


async def _ndjson(pages: AsyncGenerator[list[Entry], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(pages):
        async for entries in pages:
            piece = b"".join([entry.json + b"\n" for entry in entries])
            del entries  # what waits for a slow client is the piece alone
            yield piece


async def _csv(pages: AsyncGenerator[list[Entry], None]) -> AsyncGenerator[bytes, None]:
    yield _csv_rows([_CSV_FIELDS])
    async with aclosing(pages):
        async for entries in pages:
            piece = _csv_rows([_csv_row(entry) for entry in entries])
            del entries
            yield piece


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


_FORMATS: Mapping[
    str, tuple[str, Callable[[AsyncGenerator[list[Entry], None]], AsyncGenerator[bytes, None]]]
] = {
    "ndjson": ("application/x-ndjson", _ndjson),
    "csv": ("text/csv; charset=utf-8", _csv),
}
