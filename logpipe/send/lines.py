"""Bytes into lines, in bounded memory. Pure."""

from typing import NamedTuple

MAX_LINE_BYTES = 1024 * 1024
"""Kept of one line; what follows is counted and thrown away."""


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
        """The lines that `data` completes."""
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
