"""The framing of Server-Sent Events and its inverse, after the WHATWG's HTML standard, 9.2."""

import re
from collections.abc import Iterator
from typing import NamedTuple

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b":\n\n"
"""A comment, which clients skip."""

_LINE_END = re.compile(r"\r\n|\r|\n")


class ServerSentEvent(NamedTuple):
    """One dispatched event; `id` is the last one that the stream has set."""

    data: str
    event: str = "message"
    id: str = ""


def frame(data: bytes, *, id: bytes = b"", event: bytes = b"") -> bytes:  # noqa: A002
    """One event on the wire. The caller vouches that `id` and `event` hold no line end."""
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    head = b"id: " + id + b"\n" if id else b""
    if event:
        head += b"event: " + event + b"\n"
    return head + b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip and people read."""
    return b": " + " ".join(_LINE_END.split(text)).encode() + b"\n\n"


def retry(milliseconds: int) -> bytes:
    """Tells the client how long to wait before it reconnects."""
    return b"retry: %d\n\n" % milliseconds


class Parser:
    """Turns text as it arrives into events. `last_id` and `retry_ms` are the stream's state."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self._rest = ""
        self._data: list[str] = []
        self._event = ""
        self._begun = False

    def feed(self, text: str) -> Iterator[ServerSentEvent]:
        """Yields the events that `text` completes."""
        if not self._begun and text:
            self._begun = True
            text = text.removeprefix("\ufeff")
        text = self._rest + text
        # A carriage return at the very end may be the first half of one line end.
        cut = len(text) - 1 if text.endswith("\r") else len(text)
        *lines, last = _LINE_END.split(text[:cut])
        self._rest = last + text[cut:]
        for line in lines:
            if line:
                self._field(line)
            elif self._data or self._event:
                if self._data:
                    data = "\n".join(self._data)
                    yield ServerSentEvent(data, self._event or "message", self.last_id)
                self._data, self._event = [], ""

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self.last_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)
