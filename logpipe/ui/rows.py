"""What the page shows, as rows of HTML: events, gaps, and what it leaves out."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from markupsafe import escape

from logpipe.continuity import Gap
from logpipe.event import RANK, Entry, StoredEvent
from logpipe.filters import Filter, Highlight
from logpipe.filters.values import MISSING, looked_up
from logpipe.ids import MAX_PART, START, StreamId
from logpipe.ui.text import MAX_SGR, message, shown

MAX_COLUMNS = 8
MAX_COLUMN_NAME = 100
FOLD_CHARACTERS = 1_500
FOLD_LINES = 12
"""A message longer than this shows its beginning and a button for the rest."""

_REASONS = {
    "trimmed": "the stream no longer keeps them",
    "slow": "this page was too slow for them",
    "reset": "the stream was emptied or replaced",
}


class View(NamedTuple):
    """How rows are shown: metadata with columns of their own, and what is marked in messages."""

    columns: tuple[str, ...] = ()
    found: Highlight | None = None


def view_of(chosen: Filter, columns: Sequence[str]) -> View:
    """The view of a filter."""
    return View(tuple(columns), chosen.highlight)


def row(entry: Entry, view: View = View()) -> str:  # noqa: B008 - a constant
    """One entry as a row. `data-event` is all of it but the message, for `/ui/details`."""
    id_, _, event = entry
    level = event.level
    name = level.lower() if level in RANK else "other"
    columns = "".join([_column(event.metadata, key) for key in view.columns])
    return (
        f'<div class="row {name}" data-id="{id_.ms}-{id_.seq}" data-event="{_facts(id_, event)}">'
        f'{_when(id_, event)}<b class="level">{shown(level)}</b>'
        f'<span class="source">{shown(event.source)}</span>{columns}'
        f'<span class="message">{_folded(event.message, view.found)}{_meta(event, view)}</span>'
        "</div>"
    )


def gap_row(gap: Gap) -> str:
    """What is missing, between which ids, and why."""
    number = "An unknown number of" if gap.count is None else f"{gap.count:,}"
    events = "event is" if gap.count == 1 else "events are"
    if gap.after.seq == MAX_PART:  # right before an id: that one is easier to read
        since = f"from <code>{gap.after.after()}</code> on and "
    else:
        since = f"after <code>{gap.after}</code> and " if gap.after > START else ""
    return (
        f'<div class="gap" role="note"><b>Gap</b> {number} {events} missing {since}before'
        f" <code>{gap.before}</code>: {_REASONS.get(gap.reason, 'reason unknown')}.</div>"
    )


def left_out_row(count: int, first: StreamId, last: StreamId, href: str) -> str:
    """What a sample leaves out of the events between two ids, and the way to all of them."""
    events = "event" if count == 1 else "events"
    return (
        f'<div class="left-out" role="note">{count:,} more {events} between <code>{first}</code>'
        f' and <code>{last}</code>: <a href="{escape(href)}">show all</a></div>'
    )


def look_back_row(upto: StreamId) -> str:
    """Says that a search has not looked at the events up to an id."""
    seconds, rest = divmod(upto.ms, 1000)
    date, time = _clock(seconds)
    return (
        f'<div class="left-out" role="note">Looked back as far as {date}'
        f" {time}.{rest:03} UTC; older matches are not shown.</div>"
    )


def _facts(id_: StreamId, event: StoredEvent) -> str:
    facts = {
        "id": str(id_),
        "ts_unix_ms": event.ts_unix_ms,
        "source": event.source,
        "level": event.level,
        "metadata": event.metadata,
    }
    return str(escape(as_json(facts)))


def _folded(text: str, found: Highlight | None) -> str:
    """The message; the rest of a long one waits behind a button."""
    cut = min(_line_end(text, FOLD_LINES), FOLD_CHARACTERS)
    if len(text) <= cut * 1.2:
        return message(text, found)
    cut = _between(text, cut)
    return (
        f'{message(text[:cut], found)}<button type="button" class="more" aria-expanded="false">'
        f'show all {len(text):,} characters</button><span class="rest" hidden>'
        f"{message(text[cut:], found)}</span>"
    )


def _between(text: str, at: int) -> int:
    """A place at or before this one that is not within a line end, or what sets a colour."""
    begun = max(text.rfind("\x1b", max(0, at - MAX_SGR), at), text.rfind("\r", max(0, at - 1), at))
    return begun if begun > 0 else at


def _line_end(text: str, lines: int) -> int:
    at = -1
    for _ in range(lines):
        at = text.find("\n", at + 1)
        if at < 0:
            return len(text)
    return at


def _when(id_: StreamId, event: StoredEvent) -> str:
    """The event's own time, as a link to this event; the page shows it as its reader likes."""
    ms = id_.ms if event.ts_unix_ms is None else event.ts_unix_ms
    seconds, rest = divmod(ms, 1000)
    date, time = _clock(seconds)
    return (
        f'<a class="when" href="/?at={id_.ms}-{id_.seq}" data-ms="{ms}" title="{date}'
        f' {time}.{rest:03} UTC, id {id_.ms}-{id_.seq}">{date} {time}.{rest:03}Z</a>'
    )


@lru_cache(maxsize=4096)
def _clock(seconds: int) -> tuple[str, str]:
    """The date and the time of day in UTC; other writers' times may be beyond any calendar."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return "", str(seconds)
    return moment.strftime("%Y-%m-%d"), moment.strftime("%H:%M:%S")


# -- metadata ---------------------------------------------------------------------------------


def _column(metadata: dict[str, Any], key: str) -> str:
    """The value of one key, where it has a column of its own."""
    value = looked_up(metadata, key)
    text = "" if value is MISSING else shown(plain(value))
    return f'<span class="column" data-key="{escape(key)}">{text}</span>'


def _meta(event: StoredEvent, view: View) -> str:
    """`region=us-east-1 status=500`: what has no column; what is not a text is JSON."""
    rest = {k: v for k, v in event.metadata.items() if k not in view.columns}
    if not rest:
        return ""
    pairs = " ".join([f"{name}={plain(value)}" for name, value in rest.items()])
    return f' <span class="meta">{shown(pairs)}</span>'


def plain(value: Any) -> str:
    """A value as people read it: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else as_json(value)


def as_json(value: Any) -> str:
    """JSON, or an ellipsis for what is nested too deep."""
    try:
        return msgspec.json.encode(value).decode()
    except RecursionError:
        # Another writer's, nested as deep as could just be read: one event must not end a stream.
        return "…"
