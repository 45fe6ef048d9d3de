"""Where in a message a filter has found what it looks for, so that people see it at once."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from typing import Any

from logpipe.filters.reading import regex
from logpipe.filters.terms import REGEX_CHARACTERS
from logpipe.filters.tree import MESSAGE, And, Node, Or, Pattern, Regex, Text
from logpipe.filters.values import Costly, Steps

MAX_MARKS = 200
"""Places that are marked in one message."""

MARK_STEPS = 8_192
"""Steps of looking for places in one message; beyond them no more are marked."""

MARK_WORK = 128
"""Characters of a text times those of a word, or bytes times RE2 instructions, in one step."""

_CONTINUATION = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that begin no character."""

Span = tuple[int, int]
Highlight = Callable[[str], list[Span]]


def marks_something(node: Node) -> bool:
    """Whether a filter has words or regular expressions that are found in messages."""
    return any(True for _ in _found(node))


def highlight_of(node: Node) -> Highlight:
    """A function from a text to the spans, in order and apart, of what the words and regular
    expressions of a filter find in it."""
    terms = list(dict.fromkeys(_found(node)))
    words = [_folded(term.pattern) for term in terms if isinstance(term, Text)]
    expressions = [regex(term.expression) for term in terms if isinstance(term, Regex)]
    return lambda text: _spans(words, expressions, text)


def _folded(pattern: Pattern) -> Pattern:
    return tuple(part.casefold() for part in pattern if part)


def _found(node: Node) -> Iterator[Text | Regex]:
    """What may be found; what must be absent is not there to be marked."""
    match node:
        case And(terms) | Or(terms):
            for term in terms:
                yield from _found(term)
        case Text(pattern) if any(pattern):
            yield node
        case Regex(field, _) if field == MESSAGE:
            yield node


def _spans(words: list[Pattern], expressions: list[Any], text: str) -> list[Span]:
    text, steps = text[:REGEX_CHARACTERS], Steps(MARK_STEPS)
    found: list[Span] = []
    try:
        if words:
            found.extend(_of_words(words, text, steps))
        if expressions:
            found.extend(_of_expressions(expressions, text, steps))
    except Costly:
        pass  # what was found before it stays
    return list(_merged(sorted(found)))


def _of_words(words: list[Pattern], text: str, steps: Steps) -> Iterator[Span]:
    folded = text.casefold()
    if len(folded) == len(text):  # each character is one still
        for word in words:
            yield from islice(_of_word(word, folded, steps), MAX_MARKS)
        return
    steps.take(len(text) // 4)
    starts = list(accumulate(map(len, map(str.casefold, text)), initial=0))
    for word in words:
        for low, high in islice(_of_word(word, folded, steps), MAX_MARKS):
            yield bisect_right(starts, low) - 1, bisect_left(starts, high)


def _of_word(parts: Pattern, folded: str, steps: Steps) -> Iterator[Span]:
    """Where all parts are found in their order, as close as possible to the first."""
    at = 0
    while True:
        low = end = -1
        for part in parts:
            start = folded.find(part, at)
            looked_at = (len(folded) if start < 0 else start + len(part)) - at
            steps.take(2 + looked_at * min(len(part), 100) // MARK_WORK)
            if start < 0:
                return
            low, at = (start if low < 0 else low), start + len(part)
            end = at
        yield low, end


def _of_expressions(expressions: list[Any], text: str, steps: Steps) -> Iterator[Span]:
    data = text.encode(errors="replace")
    for expression in expressions:
        spans = islice(_of_expression(expression, data, steps), MAX_MARKS)
        yield from spans if len(data) == len(text) else _in_characters(data, spans)


def _of_expression(expression: Any, data: bytes, steps: Steps) -> Iterator[Span]:
    at, program = 0, expression.programsize
    while at <= len(data):
        steps.take(2 + (len(data) - at) * program // MARK_WORK)
        match = expression.search(data, at)
        if match is None:
            return
        low, high = match.span()
        if high > low:
            yield low, high
        at = high if high > at else at + 1


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


def _in_characters(data: bytes, spans: Iterable[Span]) -> Iterator[Span]:
    """The same spans, counted in characters: in bytes that do not continue one."""
    at = characters = 0
    for low, high in spans:
        start = characters + len(data[at:low].translate(None, _CONTINUATION))
        at, characters = high, start + len(data[low:high].translate(None, _CONTINUATION))
        if characters > start:
            yield start, characters
