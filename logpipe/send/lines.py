"""Bytes into lines, and a line into an event's JSON, in bounded memory. Pure."""

import re
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from logpipe.decoding import decode_ndjson
from logpipe.event import NOT_DECODED, RANK, Event, level_name

MAX_LINE_BYTES = 1024 * 1024
"""Kept of one line; what follows is counted and thrown away."""

Kind = Literal["auto", "text", "json"]

MAX_TEXT_BYTES = 60_000
"""Of a message made of a line, as JSON: with the other fields within the 65,536 bytes that a
collector takes by default. A longer one is cut, and says of itself how long it was."""

_encode = msgspec.json.Encoder().encode
_event = msgspec.json.Decoder(Event)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LEADING = re.compile(
    r"(?P<before>(?:[^A-Za-z]|(?<=\d)[TZ](?![A-Za-z])){0,48})(?P<word>[A-Za-z]{3,13})(?![\w-])(?P<after>.?)"
)


class Line(NamedTuple):
    """A line without its end, at most `MAX_LINE_BYTES` of it, and the bytes that it took."""

    text: bytes
    size: int


class Splitter:
    """Takes bytes as they come and gives the lines that are whole; however the bytes are cut, the
    lines are the same, and their sizes add up to all bytes but those `pending`."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self.pending = 0
        """Bytes of the line that has begun."""
        self._limit = limit
        self._begun = b""

    def feed(self, data: bytes) -> list[Line]:
        first, *others = data.split(b"\n")
        if not others:
            self._hold(first)
            return []
        *others, rest = others
        lines = [self._whole(first, 1)]
        lines += [Line(self._text(text), len(text) + 1) for text in others]
        self._hold(rest)
        return lines

    def rest(self) -> list[Line]:
        """The line that has begun, if any, as its end will not come."""
        return [self._whole(b"", 0)] if self.pending else []

    def _hold(self, data: bytes) -> None:
        self.pending += len(data)
        room = self._limit + 1 - len(self._begun)  # one more, which may be the CR of a line end
        if room > 0:
            self._begun += data[:room]

    def _whole(self, data: bytes, end: int) -> Line:
        self._hold(data)
        line = Line(self._text(self._begun), self.pending + end)
        self.pending = 0
        self._begun = b""
        return line

    def _text(self, text: bytes) -> bytes:
        return text.removesuffix(b"\r")[: self._limit]


class NotAnEventError(ValueError):
    """The reason why a line is no event."""


class Shaper:
    """Makes events of lines. JSON events stay as they are, but for a source where they lack one;
    other lines are messages with `level`, or with the level they begin with if that is asked for.
    """

    def __init__(self, kind: Kind = "auto", level: str = "INFO", *, detect: bool = False) -> None:
        self._kind = kind
        self._level = level_name(level)
        self._detect = detect
        self.cut = 0
        """Lines that were too long."""

    def event(self, line: Line, source: str, now_ms: int) -> bytes:
        """The event's JSON on one line; empty for a blank line. Raises `NotAnEventError`."""
        text = line.text.strip()
        if not text:
            return b""
        if self._kind == "json":
            return _sourced(_whole(line, text), source)
        if self._kind == "auto" and text[:1] == b"{" and (event := _as_event(text, source)):
            return event
        return self._message(line, source, now_ms)

    def _message(self, line: Line, source: str, now_ms: int) -> bytes:
        text = line.text.decode(errors="replace")
        level = (leading_level(text) if self._detect else None) or self._level
        message = _encode(text)
        head = _head(source, level)
        if len(message) <= MAX_TEXT_BYTES:
            return b'%b%d,"message":%b}' % (head, now_ms, message)
        self.cut += 1
        message = _encode(_fitting(text, message) + "…")
        told = b'{"cut_from_bytes":%d}' % line.size
        return b'%b%d,"message":%b,"metadata":%b}' % (head, now_ms, message, told)


@lru_cache(maxsize=256)
def _head(source: str, level: str) -> bytes:
    return b'{"source":%b,"level":%b,"ts_unix_ms":' % (_encode(source), _encode(level))


def _fitting(text: str, encoded: bytes) -> str:
    while len(encoded) > MAX_TEXT_BYTES:
        text = text[: len(text) * MAX_TEXT_BYTES // len(encoded)]
        encoded = _encode(text)
    return text


def _as_event(text: bytes, source: str) -> bytes | None:
    """The event that a line is, or None: then it is text like any other."""
    try:
        text = _sourced(text, source)
        _event.decode(text)
    except (NotAnEventError, *NOT_DECODED):
        return None
    return text


def _whole(line: Line, text: bytes) -> bytes:
    if line.size > MAX_LINE_BYTES:
        raise NotAnEventError(f"the line has {line.size} bytes, over {MAX_LINE_BYTES}")
    return text


def _sourced(text: bytes, source: str) -> bytes:
    """A JSON object with a source, in UTF-8. The collector judges the rest."""
    if not text.isascii():
        text = text.decode(errors="replace").encode()
    try:
        fields = _fields.decode(text)
    except NOT_DECODED:
        refusals = decode_ndjson(text, list)[1]
        raise NotAnEventError(refusals[0].error if refusals else "not a JSON object") from None
    if "source" in fields:
        return text
    rest = text[1:].lstrip()
    return b'{"source":%b%b%b' % (_encode(source), b"" if rest[:1] == b"}" else b",", rest)


def leading_level(text: str) -> str | None:
    """The level that a line begins with, after a time and brackets: in capitals, in brackets or
    before a colon, because `error` may also begin a sentence."""
    match = _LEADING.match(text)
    if match is None:
        return None
    word = match["word"]
    marked = match["before"].endswith("[") or match["after"] in ("]", ":")
    level = level_name(word)
    return level if (word.isupper() or marked) and level in RANK else None
