"""Where in a message a filter has found what it looks for, so that people see it at once."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import re2

from logpipe.filters.reading import parse, regex
from logpipe.filters.terms import REGEX_CHARACTERS
from logpipe.filters.tree import MESSAGE, And, Node, Or, Regex, Text

MAX_MARKS = 200
"""Places that are marked in one message."""

_CONTINUATION = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that begin no character."""

Span = tuple[int, int]
Highlight = Callable[[str], list[Span]]


@lru_cache(maxsize=256)
def highlight(query: str) -> Highlight | None:
    """A function from a text to the spans, in order and apart, of what the words and regular
    expressions of a filter (by its canonical text) find in it; None where it looks for none."""
    node = parse(query)
    expressions = [regex(each) for each in _expressions(node)] if node else []
    return (lambda text: _spans(expressions, text)) if expressions else None


def _expressions(node: Node) -> Iterator[str]:
    """What may be found; what must be absent is not there to be marked."""
    match node:
        case And(terms) | Or(terms):
            for term in terms:
                yield from _expressions(term)
        case Text(pattern) if any(pattern):
            yield "(?s:.*?)".join(re2.escape(part) for part in pattern if part)
        case Regex(field, expression) if field == MESSAGE:
            yield expression


def _spans(expressions: list[Any], text: str) -> list[Span]:
    data = text[:REGEX_CHARACTERS].encode(errors="replace")
    found = sorted(
        match.span()
        for expression in expressions
        for match in islice(expression.finditer(data), MAX_MARKS)
        if match.end() > match.start()
    )
    spans = list(_merged(found))
    if len(data) == len(text[:REGEX_CHARACTERS]):
        return spans  # one byte a character
    return list(_in_characters(data, spans))


def _merged(spans: list[Span]) -> Iterator[Span]:
    low, high = -1, -1
    for start, end in spans[:MAX_MARKS]:
        if start > high:
            if high > low:
                yield low, high
            low, high = start, end
        high = max(high, end)
    if high > low:
        yield low, high


def _in_characters(data: bytes, spans: list[Span]) -> Iterator[Span]:
    """The same spans, counted in characters: in bytes that do not continue one."""
    at = characters = 0
    for low, high in spans:
        start = characters + len(data[at:low].translate(None, _CONTINUATION))
        at, characters = high, start + len(data[low:high].translate(None, _CONTINUATION))
        if characters > start:
            yield start, characters
