"""Filters: which events a subscriber wants.

`grammar.lark` is the language, `tree.py` what a filter means, `reading.py` the way from text to
tree, `predicate.py` the way from tree to a function of an event, of the functions of its terms
(`terms.py`) on values (`values.py`). `compiled.py` keeps these functions.

A `Filter` is the canonical text of its tree, so that equal filters of many subscribers share one
evaluation and one encoded chunk, however each of them was written.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from weakref import WeakValueDictionary

import msgspec

from logpipe.event import level_name
from logpipe.filters.compiled import Compiled
from logpipe.filters.highlight import Highlight, Span, marks_something
from logpipe.filters.raw import MayMatch
from logpipe.filters.reading import MAX_QUERY, FilterSyntaxError, level, parse
from logpipe.filters.terms import Predicate
from logpipe.filters.tree import LEVEL, Compare, Match, Node, Text, all_of, any_of, ordered

__all__ = [
    "EVERYTHING",
    "PARAMETERS",
    "Filter",
    "FilterError",
    "Highlight",
    "Predicate",
    "parse_filter",
]

PARAMETERS = ("q", "level", "source", "text")
"""The query parameters that make a filter: the language, and its short forms."""


class FilterError(ValueError):
    """A filter that cannot be read; `parameter` names where it stood, `position` (0-based) where
    in it, as far as that can be said, and `hint` what to write instead."""

    def __init__(
        self, parameter: str, detail: str, position: int | None = None, hint: str = ""
    ) -> None:
        super().__init__(detail)
        self.parameter = parameter
        self.position = position
        self.hint = hint


class Filter(msgspec.Struct, frozen=True, weakref=True):
    """A filter by its canonical text; `Filter()` takes every event."""

    query: str = ""

    @property
    def predicate(self) -> Predicate | None:
        """A function that says whether an event matches; None when every event does."""
        return _COMPILED.predicate(self.query)

    @property
    def may_match(self) -> MayMatch | None:
        """A function of an event's JSON as the stream holds it: False only where the predicate
        would reject the event. None where only the predicate can tell."""
        return _COMPILED.may_match(self.query)

    def compile(self) -> Iterator[None]:
        """Makes `predicate` and `may_match` before they are used, as work for `Turns`."""
        _COMPILED.predicate(self.query)
        yield
        _COMPILED.may_match(self.query)
        yield

    def ordered(self) -> "Filter":
        """The filter with its terms in one order: the same for filters that differ in it."""
        text = self.query
        for _ in range(MAX_ROUNDS):  # an `Or` of one term, for instance, becomes part of another
            node = parse(text)
            again = str(ordered(node)) if node is not None else text
            if again == text:
                break
            text = again
        return parse_filter({"q": text})

    @property
    def highlight(self) -> Highlight | None:
        """A function from a text to the spans, in order and apart, of what the words and regular
        expressions find in it; None where there are none."""
        node = parse(self.query)
        if node is None or not marks_something(node):
            return None

        def spans(text: str) -> list[Span]:
            return _COMPILED.highlight(self.query)(text)  # not kept here: its memory is bounded

        return spans

    def explain(self) -> str:
        """What it takes, in a sentence."""
        node = parse(self.query)
        return f"events where {node.explain()}" if node else "every event"


EVERYTHING = Filter()

_IN_USE: WeakValueDictionary[str, Filter] = WeakValueDictionary()
"""The filters that were parsed and are still used, by their text: one instance of each."""

_COMPILED = Compiled(_IN_USE.__contains__)

MAX_ROUNDS = 10
"""In which the terms of a filter are put in order; two or three are enough for any that was found.
"""

PARSED = 256
"""Sets of parameters whose filter is kept, each of 20 KB at most."""


def parse_filter(parameters: Mapping[str, str]) -> Filter:
    """The filter in a query string's parameters, all of them ANDed. Raises `FilterError`."""
    given = tuple(parameters.get(name, "").strip() for name in PARAMETERS)
    if not any(given):
        return EVERYTHING
    for parameter, text in zip(PARAMETERS, given, strict=True):
        if len(text) > MAX_QUERY:
            at = MAX_QUERY if parameter == "q" else None
            raise FilterError(parameter, f"a filter has at most {MAX_QUERY} characters", at)
    query = _parsed(given)
    chosen = _IN_USE.get(query)
    if chosen is None:
        chosen = _IN_USE[query] = Filter(query)
    return chosen


@lru_cache(maxsize=PARSED)
def _parsed(given: tuple[str, ...]) -> str:
    terms: list[Node] = []
    for parameter, text in zip(PARAMETERS, given, strict=True):
        try:
            node = _READERS[parameter](text) if text else None
        except FilterSyntaxError as error:
            at = error.position if parameter == "q" else None
            raise FilterError(parameter, error.what, at, error.hint) from None
        if node is not None:
            terms.append(node)
    query = str(all_of(terms))
    try:
        parse(query)  # the bounds hold for all parameters together
    except FilterSyntaxError as error:
        raise FilterError("q", error.what, None, error.hint) from None
    return query


def _level(text: str) -> Node | None:
    """`level=error`, `level=warn,error` or `level=>=warn`."""
    if text.startswith(">="):
        return Compare(LEVEL, ">=", level(text[2:].strip(), 2))
    return any_of([Match(LEVEL, (level_name(name),)) for name in _names(text)])


def _source(text: str) -> Node | None:
    """`source=api`, `source=api*,worker`."""
    return any_of([Match("source", _split(name)) for name in _names(text)])


def _text(text: str) -> Node | None:
    """`text=connection reset`, taken literally."""
    return Text((text,))


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise FilterSyntaxError(0, "names nothing", "like a,b")
    return names


def _split(name: str) -> tuple[str, ...]:
    head, *rest = name.split("*")
    return (head, *(part for part in rest[:-1] if part), *rest[-1:])


_READERS: Mapping[str, Callable[[str], Node | None]] = {
    "q": parse,
    "level": _level,
    "source": _source,
    "text": _text,
}
