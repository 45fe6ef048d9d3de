"""The framing of Server-Sent Events and its inverse, after the WHATWG's HTML standard, 9.2.

Several clients dispatch an event at every blank line, data or not. So every block that is sent has
`data:`; what has none is a comment, which is one line and ends no block.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b":\n"
"""An empty comment."""

_LINE_END = re.compile(r"\r\n|\r|\n")
_RETRY = re.compile(r"[0-9]{1,15}")


class ServerSentEvent(NamedTuple):
    """One dispatched event; `id` is the last one that the stream has set."""

    data: str
    event: str = "message"
    id: str = ""


def frame(
    data: bytes,
    *,
    id: bytes = b"",  # noqa: A002
    event: bytes = b"",
    retry_ms: int | None = None,
) -> bytes:
    """One event on the wire; `retry_ms` is how long the client shall wait before it reconnects.
    The caller vouches that `id` and `event` hold no line end."""
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    head = b"id: " + id + b"\n" if id else b""
    if event:
        head += b"event: " + event + b"\n"
    if retry_ms is not None:
        head += b"retry: %d\n" % retry_ms
    return head + b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip and people read."""
    return b": " + " ".join(_LINE_END.split(text)).encode() + b"\n"


class Parser:
    """Turns text as it arrives into events. `last_id` and `retry_ms` are the stream's state;
    `comment` is the last one with words, which people may read, until an event has come."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comment = ""
        self._rest = ""
        self._data: list[str] = []
        self._event = ""
        self._id = ""
        self._begun = False
        self._after_cr = False

    def feed(self, text: str) -> Iterator[ServerSentEvent]:
        """Yields the events that `text` completes."""
        if not text:
            return
        if not self._begun:
            self._begun = True
            text = text.removeprefix("\ufeff")
        if self._after_cr:
            text = text.removeprefix("\n")  # the second half of a line end that is done
        self._after_cr = text.endswith("\r")
        *lines, self._rest = _LINE_END.split(self._rest + text)
        for line in lines:
            if line:
                self._field(line)
                continue
            # Only now: a stream cut between `id` and the blank line has not given its event.
            self.last_id = self._id
            if self._data:
                data = "\n".join(self._data)
                self.comment = ""
                yield ServerSentEvent(data, self._event or "message", self.last_id)
            self._data, self._event = [], ""

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "" if value:
                self.comment = value
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if _RETRY.fullmatch(value):
                self.retry_ms = int(value)
