"""Where the values of a body begin and end that is not one JSON text.

Pure. A value is found by its brackets and strings alone; whether it is JSON is left to its decoder.
The time is linear in the body, whatever it holds.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from logpipe.turns import pause

_scanner = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
_TOKEN = re.compile(
    rb'[^"\[\]{}\n]{0,65536}+'  # all else, of which no match is long
    rb'(?:("[^"\\\n]*+(?:\\[^\n][^"\\\n]*+){0,1000000}+"'  # a string, without a line end in it
    rb'|"|[\[{]++|[\]}]++'
    rb"|\n[ \t]*+(?=[\[{]))"  # a line that begins with an opening bracket
    rb"|\n)?+"
)
_SCALAR = re.compile(rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+){0,1000000}+"|[^\s"\[\]{},]++')
_SPACE = re.compile(rb"[ \t\r\n]*+")
_BLANKS = re.compile(rb"[ \t\r]*+")
_CLOSED = re.compile(rb"[\]}]++[ \t\r]*+,?+[ \t\r]*+")
_AFTER_OBJECT: tuple[bytes, ...] = (b"", b"\n", b"{", b"[", b'"')
_AFTER_OTHER: tuple[bytes, ...] = (b"", b"\n")
_AFTER_ELEMENT: tuple[bytes, ...] = (b"", b",", b"]")
_OPENING = bytes.maketrans(b"]}", b"[{")

WINDOW_BYTES = 256 * 1024
"""Of a line so much is read by one call, during which no other thread has a turn. For the same
reason a string of which the end is looked for has at most a million escapes: 25 ms."""

MAX_INDENT = 100
"""Columns of indentation by which lines are distinguished."""


class Piece(NamedTuple):
    """A value, or text in its place that is malformed.

    `unread_from` is the byte of the body at which malformed text begins that goes to the end of its
    line and may hold more than one value: it does not begin its line, or has a second brace.
    """

    text: bytes
    unread_from: int | None = None


def split(body: bytes, *, array: bool = True) -> Iterator[Piece]:
    """The elements of an array, or values one after another with or without white space between;
    with `array` false, a body that begins with a bracket is taken for the latter.

    Malformed text is a piece as well. It ends with its line; where its line has nothing but an
    opening bracket, as printers write one, it goes on in the lines that are indented deeper and
    ends with the closing bracket below it. A value that begins a line is not looked for in another.
    """
    return _Splitter(body).pieces(array=array)


class _Splitter:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._in_array = False
        self._line = (0, -1)  # the part of a line whose end was found last
        self._scannable = True  # no value of it was malformed or over WINDOW_BYTES
        self._window = ""  # a part of it as text, of which a character is a byte
        self._window_start = 0
        self._wasted = 0  # bytes of other lines that were read for values which did not end

    def pieces(self, *, array: bool) -> Iterator[Piece]:
        at = self._after(_SPACE, 0)
        first_line_end = -1
        if array and self._starts(at, b"["):
            self._in_array = True
            first_line_end = self._line_end(at)
            at = self._after(_SPACE, at + 1)
        malformed = False
        while at < len(self._body):
            pause()
            if self._in_array and self._starts(at, b"]"):
                self._in_array = False
                at = self._after(_SPACE, at + 1)
                continue
            end = self._end_of_value(at)
            malformed = end is None
            if end is None:
                end, resumed = self._end_of_malformed(at)
                text = self._body[at:end].rstrip(b" \t\r\n")
                several = not self._is_line(at) or (
                    end == self._line_end(at) and text.find(b"{", 1) > 0
                )
                yield Piece(text, at if several else None)
                if at < first_line_end and text.endswith(b"]"):
                    self._in_array = False  # the array began and ended on this line
                at = self._after(_SPACE, resumed)
            else:
                yield Piece(self._body[at:end])
                at = self._after(_SPACE, end)
            if self._in_array and self._starts(at, b","):
                at = self._after(_SPACE, at + 1)
        if self._in_array and not malformed:
            yield Piece(b"", len(self._body))  # the array has no end

    def _starts(self, at: int, byte: bytes) -> bool:
        return self._body.startswith(byte, at)

    def _after(self, pattern: re.Pattern[bytes], at: int) -> int:
        found = pattern.match(self._body, at)
        return found.end() if found else at

    def _line_end(self, at: int) -> int:
        start, end = self._line
        if not start <= at <= end:
            end = self._body.find(b"\n", at)
            end = len(self._body) if end < 0 else end
            self._line = (at, end)
            self._scannable = True
            self._window = ""
        return end

    def _line_start(self, at: int) -> int:
        return self._body.rfind(b"\n", 0, at) + 1

    def _is_line(self, at: int) -> bool:
        """Whether what begins there is the first of its line."""
        before = self._body[self._line_start(at) : at]
        return not before.strip(b" \t\r[," if self._in_array else b" \t\r")

    def _indent(self, at: int) -> int:
        start = self._line_start(at)
        line = self._body[start : start + MAX_INDENT]
        return len(line) - len(line.lstrip(b" \t"))

    def _end_of_value(self, at: int) -> int | None:
        """The end of the value that begins there, or None for malformed text."""
        first = self._body[at : at + 1]
        if first in (b"{", b"["):
            end = self._end_in_line(at) or self._end_of_brackets(at)
        else:
            found = _SCALAR.match(self._body, at)
            end = found.end() if found else None
        if end is None:
            return None
        if self._in_array:
            after, followers = self._after(_SPACE, end), _AFTER_ELEMENT
        else:
            after = self._after(_BLANKS, end)
            followers = _AFTER_OBJECT if first in (b"{", b'"') else _AFTER_OTHER
        if self._body[after : after + 1] in followers:
            return end
        self._wasted += max(0, end - self._line_end(at))
        return None

    def _end_in_line(self, at: int) -> int | None:
        """The end of a value that ends in its line: most do, and C finds it faster."""
        end = self._line_end(at)
        while self._scannable:
            start = self._window_start
            try:
                return start + _scanner.raw_decode(self._window, at - start)[1]
            except (ValueError, RecursionError):
                if start == at and self._window:
                    self._scannable = False
                    return None
            self._window_start = at
            self._window = self._body[at : min(end, at + WINDOW_BYTES)].decode("latin-1")
        return None

    def _end_of_brackets(self, at: int) -> int | None:
        may_span = self._wasted <= len(self._body)
        limit = len(self._body) if may_span else self._line_end(at)
        indent = None
        stack = bytearray()
        scanned = limit
        for token in filter(itemgetter(1), _TOKEN.finditer(self._body, at, limit)):
            pause()
            kind = self._body[token.start(1)]
            if kind in b"[{":
                stack += token[1]
            elif kind in b"]}":
                closing = token[1][: len(stack)].translate(_OPENING)[::-1]
                if not stack.endswith(closing):
                    scanned = token.end()
                    break
                del stack[-len(closing) :]
                if not stack:
                    return token.start(1) + len(closing)
            elif kind == ord("\n"):
                indent = self._indent(at) if indent is None else indent
                if token.end() - token.start(1) - 1 <= indent:
                    scanned = token.end()
                    break
            elif len(token[1]) == 1:  # a string that its line does not close
                scanned = token.end()
                break
        if may_span:
            self._wasted += max(0, scanned - self._line_end(at))
        return None

    def _end_of_malformed(self, at: int) -> tuple[int, int]:
        """The end of malformed text, and where reading continues."""
        end = self._line_end(at)
        if self._body[at:end].strip(b" \t\r") not in (b"{", b"["):
            return end, end
        indent = self._indent(at)
        while found := _line_within(indent).search(self._body, end):
            end = found.end()
            closed = _CLOSED.match(self._body, end)
            if closed is None or found.end() - found.start() - 1 < indent:
                return found.start(), end
            if closed.end() < self._line_end(end):
                return closed.end(), closed.end()
            end = closed.end()
        return len(self._body), len(self._body)


@lru_cache(maxsize=MAX_INDENT + 1)
def _line_within(indent: int) -> re.Pattern[bytes]:
    """Matches up to the first character of a line that is indented so far at most."""
    return re.compile(rb"\n[ \t]{0,%d}+(?![ \t\r\n])(?=.)" % indent, re.DOTALL)
