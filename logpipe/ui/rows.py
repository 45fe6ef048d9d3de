"""The stream as the page takes it: Server-Sent Events whose data are rows of HTML.

Log text is hostile: it reaches the page through `shown` alone, which leaves it no markup and makes
what could disguise it visible.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from markupsafe import escape

from logpipe import sse
from logpipe.continuity import Gap
from logpipe.event import RANK, Entry, StoredEvent
from logpipe.ids import MAX_PART, START, StreamId
from logpipe.messages import Message, Notice, named

# Control characters except tab and line feed; marks that reorder, join or hide text (bidi, zero
# width, tags, line separators); lone surrogates, which have no UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)

_REASONS = {
    "trimmed": "the stream no longer keeps them",
    "slow": "this page was too slow for them",
    "reset": "the stream was emptied or replaced",
}


class RowEncoder:
    """An `Encoder` of the page. A batch is one message, so that the rows and the cursor that they
    move arrive together or not at all; named messages become DOM events on the page."""

    media_type = sse.MEDIA_TYPE
    heartbeat = b"event: heartbeat\ndata:\n\n"
    """Not a comment: the page watches for it, to notice a connection that died in silence."""

    def entries(self, entries: Sequence[Entry]) -> bytes:
        """The rows of a batch, with the last entry's id."""
        rows = "".join([row(entry) for entry in entries])
        return sse.frame(rows.encode(), id=b"%d-%d" % entries[-1].id)

    def message(self, message: Message) -> bytes:
        """A gap is a row like any other; the rest are named events with JSON."""
        if isinstance(message, Gap):
            return sse.frame(gap_row(message).encode(), id=str(message.resume).encode())
        if isinstance(message, Notice):
            return sse.frame(msgspec.json.encode({"reason": message.reason}), event=b"notice")
        name, cursor, data = named(message)
        id_ = str(cursor).encode() if cursor is not None else b""
        retry = b"retry: %d\n" % data["retry_ms"] if "retry_ms" in data else b""
        return retry + sse.frame(msgspec.json.encode(data), id=id_, event=name.encode())


ROWS = RowEncoder()


def row(entry: Entry) -> str:
    """One entry as a row."""
    id_, _, event = entry
    level = event.level
    meta = f' <span class="meta">{shown(_pairs(event.metadata))}</span>' if event.metadata else ""
    return (
        f'<div class="row {level.lower() if level in RANK else "other"}">{_when(id_, event)}'
        f'<b class="level">{shown(level)}</b><span class="source">{shown(event.source)}</span>'
        f'<span class="message">{shown(event.message)}{meta}</span></div>'
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


def shown(text: str) -> str:
    """Text as HTML that displays it and nothing else; hidden characters as visible escapes."""
    html = str(escape(text))
    if html.isprintable():
        return html
    return _HIDDEN.sub(_visible, html.replace("\r\n", "\n"))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    name = f"x{code:02x}" if code < 256 else f"u{code:04x}"
    return f'<span class="hidden">\\{name}</span>'


def _when(id_: StreamId, event: StoredEvent) -> str:
    """The event's own time, as a link to the page from this entry on."""
    ms = id_.ms if event.ts_unix_ms is None else event.ts_unix_ms
    seconds, rest = divmod(ms, 1000)
    date, time = _clock(seconds)
    return (
        f'<a class="when" href="/?since={id_.ms}-{id_.seq}" title="{date} {time}.{rest:03} UTC,'
        f' id {id_.ms}-{id_.seq}"><span class="date">{date} </span>{time}.{rest:03}Z</a>'
    )


@lru_cache(maxsize=4096)
def _clock(seconds: int) -> tuple[str, str]:
    """The date and the time of day in UTC; other writers' times may be beyond any calendar."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return "", str(seconds)
    return moment.strftime("%Y-%m-%d"), moment.strftime("%H:%M:%S")


def _pairs(metadata: dict[str, Any]) -> str:
    """`region=us-east-1 status=500`; what is not a text is JSON."""
    return " ".join([f"{name}={_plain(value)}" for name, value in metadata.items()])


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except RecursionError:
        # Another writer's, nested as deep as could just be read: one event must not end a stream.
        return "…"
