"""From the tree of a filter to a function of an event: closures, each of which does one thing."""

import operator
from collections.abc import Callable
from typing import Any

from logpipe.event import RANK, StoredEvent, level_rank
from logpipe.filters.reading import regex
from logpipe.filters.tree import (
    LEVEL,
    MESSAGE,
    And,
    Compare,
    Match,
    Node,
    Not,
    Or,
    Pattern,
    Regex,
    Text,
)

Predicate = Callable[[StoredEvent], bool]
Fits = Callable[[str], bool]

REGEX_CHARACTERS = 16_384
"""So much of a text a regular expression looks at: one event then takes at most some ten
milliseconds, whatever the expression and the text are."""

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
MISSING: Any = object()
"""Stands for the value of a field that is not there."""


def predicate_of(node: Node) -> Predicate:
    """Whether an event matches."""
    match node:
        case And(terms):
            return _all([predicate_of(term) for term in terms])
        case Or(terms):
            return _any([predicate_of(term) for term in terms])
        case Not(term):
            inner = predicate_of(term)
            return lambda event: not inner(event)
        case Text(pattern):
            return _text(pattern)
        case Regex(field, expression):
            return _on_text(field, _found(expression))
        case Match(field, pattern):
            return _match(field, pattern)
        case Compare(field, sign, value):
            return _compare(field, _ORDER[sign], value)


def _all(terms: list[Predicate]) -> Predicate:
    first, *rest = terms
    if not rest:
        return first
    others = _all(rest)
    return lambda event: first(event) and others(event)


def _any(terms: list[Predicate]) -> Predicate:
    first, *rest = terms
    if not rest:
        return first
    others = _any(rest)
    return lambda event: first(event) or others(event)


# -- texts -------------------------------------------------------------------------------------


def _text(pattern: Pattern) -> Predicate:
    folded = tuple(part.casefold() for part in pattern)
    if len(folded) == 1:
        wanted = folded[0]
        return lambda event: wanted in event.message.casefold()
    contains = fitting(("", *folded, ""))
    return lambda event: contains(event.message.casefold())


def fitting(pattern: Pattern) -> Fits:
    """Whether a whole text fits a pattern, in one pass: a regex would try every split."""
    if len(pattern) == 1:
        return pattern[0].__eq__
    head, *middle, tail = pattern
    parts = [part for part in middle if part]

    def fits(text: str) -> bool:
        at, end = len(head), len(text) - len(tail)
        if at > end or not (text.startswith(head) and text.endswith(tail)):
            return False
        for part in parts:  # the first place for each leaves the most room for the next
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return fits


def _found(expression: str) -> Fits:
    search = regex(expression).search
    return lambda text: search(text[:REGEX_CHARACTERS].encode(errors="replace")) is not None


# -- fields ------------------------------------------------------------------------------------


def _match(field: str, pattern: Pattern) -> Predicate:
    fits = fitting(pattern)
    match field:
        case "source":
            return lambda event: fits(event.source)
        case "level":
            return lambda event: fits(event.level)
        case _:
            return _on_value(field, _value_fits(pattern))


def _on_text(field: str, fits: Fits) -> Predicate:
    match field:
        case "message":
            return lambda event: fits(event.message)
        case "source":
            return lambda event: fits(event.source)
        case "level":
            return lambda event: fits(event.level)
        case _:
            return _on_value(field, lambda value: value is not MISSING and fits(written(value)))


def _compare(field: str, ordered: Callable[[Any, Any], bool], value: float | str) -> Predicate:
    if field == LEVEL:
        rank = RANK[str(value)]
        return lambda event: ordered(level_rank(event.level), rank)

    def fits(found: Any) -> bool:
        if found.__class__ is str:
            found = _number(found)
        return found.__class__ in (int, float) and ordered(found, value)

    return _on_value(field, _some(fits))


def _on_value(field: str, fits: Callable[[Any], bool]) -> Predicate:
    """A predicate on a field's value: of any type in the metadata, `MISSING` for none."""
    if field in (MESSAGE, "source", "ts_unix_ms"):
        return lambda event: fits(getattr(event, field))
    path = field.removeprefix("metadata.")
    if "." not in path:
        return lambda event: fits(event.metadata.get(path, MISSING))
    return lambda event: fits(looked_up(event.metadata, path))


def looked_up(outer: dict[str, Any], path: str) -> Any:
    """The value at a path. A dot descends, or belongs to a key: the longest key that leads to a
    value wins, as in `{"http.status": 500}`."""
    if path in outer:
        return outer[path]
    at = path.rfind(".")
    while at > 0:
        inner = outer.get(path[:at])
        if inner.__class__ is dict:
            found = looked_up(inner, path[at + 1 :])
            if found is not MISSING:
                return found
        at = path.rfind(".", 0, at)
    return MISSING


def _value_fits(pattern: Pattern) -> Callable[[Any], bool]:
    if pattern == ("", ""):
        return lambda value: value is not MISSING and value is not None
    fits = fitting(pattern)
    number = _number(pattern[0]) if len(pattern) == 1 else None

    def value_fits(value: Any) -> bool:
        kind = value.__class__
        if kind is str:
            return fits(value)
        if kind is dict or value is MISSING:
            return False
        return fits(written(value)) or (number is not None and kind is not bool and value == number)

    return _some(value_fits)


def _some(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Of a list, one of its values has to fit."""

    def some(value: Any) -> bool:
        if value.__class__ is list:
            return any(fits(each) for each in value)
        return fits(value)

    return some


def written(value: Any) -> str:
    """A value of the metadata as a filter writes it."""
    if value is None:
        return "null"
    if value.__class__ is bool:
        return "true" if value else "false"
    return str(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
