"""Filters: which events a subscriber wants.

`grammar.lark` is the language, `tree.py` what a filter means, `reading.py` the way from text to
tree, `predicate.py` the way from tree to a function of an event.

A `Filter` is the canonical text of its tree, so that equal filters of many subscribers share one
evaluation and one encoded chunk, however each of them was written.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from logpipe.event import level_name
from logpipe.filters.predicate import Predicate, predicate_of
from logpipe.filters.raw import MayMatch, may_match_of
from logpipe.filters.reading import FilterSyntaxError, level, parse
from logpipe.filters.tree import LEVEL, Compare, Match, Node, Text, all_of, any_of

__all__ = ["EVERYTHING", "PARAMETERS", "Filter", "FilterError", "Predicate", "parse_filter"]

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


class Filter(msgspec.Struct, frozen=True):
    """A filter by its canonical text; `Filter()` takes every event."""

    query: str = ""

    @property
    def predicate(self) -> Predicate | None:
        """A function that says whether an event matches; None when every event does."""
        return _compiled(self.query)

    @property
    def may_match(self) -> MayMatch | None:
        """A function of an event's JSON as the stream holds it: False only where the predicate
        would reject the event. None where only the predicate can tell."""
        return _on_raw(self.query)

    def explain(self) -> str:
        """What it takes, in a sentence."""
        node = parse(self.query)
        return f"events where {node.explain()}" if node else "every event"


EVERYTHING = Filter()


def parse_filter(parameters: Mapping[str, str]) -> Filter:
    """The filter in a query string's parameters, all of them ANDed. Raises `FilterError`."""
    given = tuple(parameters.get(name, "").strip() for name in PARAMETERS)
    return _parsed(given) if any(given) else EVERYTHING


@lru_cache(maxsize=1024)
def _parsed(given: tuple[str, ...]) -> Filter:
    terms: list[Node] = []
    for parameter, text in zip(PARAMETERS, given, strict=True):
        try:
            node = _READERS[parameter](text) if text else None
        except FilterSyntaxError as error:
            at = error.position if parameter == "q" else None
            raise FilterError(parameter, error.what, at, error.hint) from None
        if node is not None:
            terms.append(node)
    chosen = Filter(str(all_of(terms)))
    try:
        _compiled(chosen.query)  # the bounds hold for all parameters together
    except FilterSyntaxError as error:
        raise FilterError("q", error.what, None, error.hint) from None
    return chosen


@lru_cache(maxsize=1024)
def _compiled(query: str) -> Predicate | None:
    node = parse(query)
    return predicate_of(node) if node else None


@lru_cache(maxsize=1024)
def _on_raw(query: str) -> MayMatch | None:
    node = parse(query)
    return may_match_of(node) if node else None


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
