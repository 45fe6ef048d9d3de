"""From one term of a filter to functions of an event.

The cost of a term's `quick` function is small whatever the event is: it raises `Costly` where a
value is large. The term's `counted` function judges such a value, and takes steps.
"""

import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from logpipe.event import RANK, StoredEvent, level_rank
from logpipe.filters.reading import regex
from logpipe.filters.tree import LEVEL, MESSAGE, ORDERS, Compare, Match, Pattern, Regex, Text
from logpipe.filters.values import (
    MISSING,
    Costly,
    Steps,
    descend,
    fitting,
    fitting_steps,
    number,
    number_steps,
    take_written,
    written,
)

Predicate = Callable[[StoredEvent], bool]
Counted = Callable[[StoredEvent, Steps], bool]

REGEX_CHARACTERS = 16_384
"""So much of a text a regular expression looks at."""

REGEX_WORK = 32
"""RE2 instructions times bytes of text in one step. RE2 falls back to its NFA where a text leads to
many states; it then takes 2 to 6 ns for each live instruction at each byte (measured)."""

QUICK_REGEX_STEPS = 4_096
"""The steps that the regular expressions of a filter may take together without being counted."""

QUICK_TEXT = 256
"""Characters of a value that are compared with wildcards, or read as a number, uncounted."""

QUICK_LIST = 16
"""Values of a list, times parts of a pattern, that are looked at uncounted."""

QUICK_DOTS = 4
"""Dots of a path that are followed uncounted."""

Leaf = Text | Match | Regex | Compare


class Term(NamedTuple):
    """The functions of a term.

    `alone` makes a predicate of the only term of a filter, from one for the events for which
    `quick` raises. `counted` and `alone` are None where `quick` never raises.
    """

    quick: Predicate
    counted: Counted | None = None
    alone: Callable[[Predicate], Predicate] | None = None


def term_of(leaf: Leaf, *, few: bool, regexes: int) -> Term:
    """The functions of a term.

    `few` says whether the filter has few words, `regexes` how many regular expressions it has.
    """
    match leaf:
        case Text(pattern):
            return Term(_text(tuple(part.casefold() for part in pattern), few))
        case Regex(field, expression):
            return _regex(field, expression, regexes)
        case Match(field, pattern):
            return _match(field, pattern)
        case Compare(field, sign, value):
            return _compare(field, ORDERS[sign], value)


# -- the message -----------------------------------------------------------------------------------


def _text(parts: Pattern, few: bool) -> Predicate:
    if len(parts) > 1:
        fits = fitting(("", *parts, ""))
        if few:
            return lambda event: fits(event.message.casefold())
        return lambda event: fits(_folded(event.message))
    wanted = parts[0]
    if few:
        return lambda event: wanted in event.message.casefold()
    return lambda event: wanted in _folded(event.message)


def in_linear_time(word: Text) -> Term:
    """The functions of a word that take a time which is linear in the message."""
    parts = [part.casefold() for part in word.pattern if part]
    searches = [re.compile(re.escape(part)).search for part in parts]

    def found(event: StoredEvent) -> bool:
        text, at = _folded(event.message), 0
        for search in searches:
            place = search(text, at)
            if place is None:
                return False
            at = place.end()
        return True

    return Term(found)


_folded = lru_cache(maxsize=1)(str.casefold)
"""A message without case: kept for the next word of a filter, which looks at the same message."""


# -- regular expressions ---------------------------------------------------------------------------


def _regex(field: str, expression: str, regexes: int) -> Term:
    compiled = regex(expression)
    search, program = compiled.search, max(1, compiled.programsize)
    # A character has at most four bytes.
    quick_most = min(
        REGEX_CHARACTERS, QUICK_REGEX_STEPS * REGEX_WORK // (4 * program * max(1, regexes))
    )

    def quick(text: str) -> bool:
        if len(text) > quick_most:
            raise Costly
        return search(text.encode(errors="replace")) is not None

    def counted(text: str, steps: Steps) -> bool:
        data = text[:REGEX_CHARACTERS].encode(errors="replace")
        steps.take(1 + len(data) * program // REGEX_WORK)
        return search(data) is not None

    def quick_value(value: Any) -> bool:
        if value.__class__ is str:
            return quick(value)
        return value is not MISSING and quick(_quickly_written(value))

    def counted_value(value: Any, steps: Steps) -> bool:
        if value.__class__ is str:
            return counted(value, steps)
        if value is MISSING:
            return False
        take_written(value, steps)
        return counted(written(value), steps)

    return _on_value(field, quick_value, counted_value)


# -- fields ----------------------------------------------------------------------------------------


def _match(field: str, pattern: Pattern) -> Term:
    fits = fitting(pattern)
    match field:
        case "source":
            return Term(lambda event: fits(event.source))
        case "level":
            return Term(lambda event: fits(event.level))
    if pattern == ("", ""):
        return _present(field)
    if len(pattern) == 1:
        return _equal(field, pattern[0])
    return _like(field, pattern)


def _present(field: str) -> Term:
    def there(value: Any) -> bool:
        return value is not MISSING and value is not None

    term = _on_value(field, there, lambda value, _: there(value))
    return term if field.count(".") > QUICK_DOTS else Term(term.quick)


def _equal(field: str, wanted: str) -> Term:
    """A value of the metadata is a text, or its number; of a list, one of its values."""
    integer = int(wanted) if re.fullmatch("-?[1-9][0-9]*", wanted) else None
    numbers = (number(wanted), integer)

    def same(value: Any) -> bool:
        kind = value.__class__
        if kind is str:
            return bool(value == wanted)
        if kind is int or kind is float:
            return value in numbers
        if kind is list:
            raise Costly
        return kind is not dict and value is not MISSING and written(value) == wanted

    def quick(value: Any) -> bool:
        if value.__class__ is str:
            return bool(value == wanted)
        if value.__class__ is list:
            _require_short(value, 1)
            return any(map(same, value))
        return same(value)

    def counted(value: Any, steps: Steps) -> bool:
        steps.take(2)
        if value.__class__ is not list:
            return same(value)
        take_written(value, steps)
        return written(value) == wanted

    return _on_value(field, quick, _some(counted))


def _like(field: str, pattern: Pattern) -> Term:
    """A value of the metadata fits wildcards; of a list, one of its values."""
    fits, steps_of, parts = fitting(pattern), fitting_steps(pattern), len(pattern)

    def fits_quickly(value: Any) -> bool:
        if value.__class__ is dict or value is MISSING:
            return False
        text = value if value.__class__ is str else _quickly_written(value)
        if len(text) > QUICK_TEXT:
            raise Costly
        return fits(text)

    def quick(value: Any) -> bool:
        if value.__class__ is str and len(value) <= QUICK_TEXT:
            return fits(value)
        if value.__class__ is list:
            _require_short(value, parts)
            return any(map(fits_quickly, value))
        return fits_quickly(value)

    def counted(value: Any, steps: Steps) -> bool:
        steps.take(2)
        if value.__class__ is dict or value is MISSING:
            return False
        if value.__class__ is not str:
            take_written(value, steps)
            value = written(value)
        steps.take(steps_of(value))
        return fits(value)

    return _on_value(field, quick, _some(counted))


def _compare(field: str, ordered: Callable[[Any, Any], bool], value: float | str) -> Term:
    if field == LEVEL:
        rank = RANK[str(value)]
        return Term(lambda event: ordered(level_rank(event.level), rank))

    def quick(found: Any) -> bool:
        if found.__class__ is list:
            _require_short(found, 1)
            return any(map(one, found))
        return one(found)

    def one(found: Any) -> bool:
        if found.__class__ is str:
            if len(found) > QUICK_TEXT:
                raise Costly
            found = number(found)
        return found.__class__ in (int, float) and ordered(found, value)

    def counted(found: Any, steps: Steps) -> bool:
        if found.__class__ is str:
            steps.take(number_steps(found))
            found = number(found)
        else:
            steps.take(2)
        return found.__class__ in (int, float) and ordered(found, value)

    return _on_value(field, quick, _some(counted))


def _on_value(
    field: str, quick: Callable[[Any], bool], counted: Callable[[Any, Steps], bool]
) -> Term:
    """A term on a field's value: of any type in the metadata, `MISSING` for none."""
    if field in (MESSAGE, "source", LEVEL, "ts_unix_ms"):
        return _on_own(operator.attrgetter(field), quick, counted)
    path = field.removeprefix("metadata.")
    dots = path.count(".")
    if dots:

        def quick_at(event: StoredEvent) -> bool:
            if dots > QUICK_DOTS and path not in event.metadata:
                raise Costly
            return quick(descend(event.metadata, path))

        return Term(
            quick_at, lambda event, steps: counted(descend(event.metadata, path, steps), steps)
        )

    def alone(otherwise: Predicate) -> Predicate:
        def accepts(event: StoredEvent) -> bool:
            try:
                return quick(event.metadata.get(path, MISSING))
            except Costly:
                return otherwise(event)

        return accepts

    return Term(
        lambda event: quick(event.metadata.get(path, MISSING)),
        lambda event, steps: counted(event.metadata.get(path, MISSING), steps),
        alone,
    )


def _on_own(
    own: Callable[[StoredEvent], Any],
    quick: Callable[[Any], bool],
    counted: Callable[[Any, Steps], bool],
) -> Term:
    def alone(otherwise: Predicate) -> Predicate:
        def accepts(event: StoredEvent) -> bool:
            try:
                return quick(own(event))
            except Costly:
                return otherwise(event)

        return accepts

    return Term(
        lambda event: quick(own(event)), lambda event, steps: counted(own(event), steps), alone
    )


def _some(counted: Callable[[Any, Steps], bool]) -> Callable[[Any, Steps], bool]:
    """Of a list, one of its values has to fit."""

    def some(value: Any, steps: Steps) -> bool:
        if value.__class__ is list:
            return any(counted(each, steps) for each in value)
        return counted(value, steps)

    return some


def _require_short(values: list[Any], parts: int) -> None:
    if len(values) * parts > QUICK_LIST and len(values) > 1:
        raise Costly


def _quickly_written(value: Any) -> str:
    kind = value.__class__
    if kind is list or kind is dict or (kind is int and value.bit_length() > 64):
        raise Costly
    return written(value)
