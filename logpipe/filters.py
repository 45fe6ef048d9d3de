"""Filters: which events a subscriber wants.

A filter is a frozen value, so equal filters of many subscribers share one evaluation. The terms
`level`, `source` and `text` are here; the language of `q` will compile to further terms of the
same kind, all of them ANDed.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from logpipe.event import RANK, StoredEvent, level_name, level_rank

Predicate = Callable[[StoredEvent], bool]


class FilterError(ValueError):
    """A filter that cannot be read; `parameter` names where it stood."""

    def __init__(self, parameter: str, detail: str) -> None:
        super().__init__(detail)
        self.parameter = parameter


class Filter(msgspec.Struct, frozen=True):
    """The terms of a filter, empty for none; `Filter()` takes every event.

    - `level`: names, comma-separated, any of them; or `>=name` for that level and above.
    - `source`: names, comma-separated, any of them; `*` stands for any characters.
    - `text`: looked for in the message, in any case.
    """

    level: str = ""
    source: str = ""
    text: str = ""

    @property
    def predicate(self) -> Predicate | None:
        """A function that says whether an event matches; None when every event does."""
        return _compile(self)


EVERYTHING = Filter()


def parse_filter(parameters: Mapping[str, str]) -> Filter:
    """The filter in a query string's parameters. Raises `FilterError`."""
    if parameters.get("q", "").strip():
        raise FilterError("q", "this version filters by level, source and text")
    chosen = Filter(*(parameters.get(name, "").strip() for name in Filter.__struct_fields__))
    if chosen.level.startswith(">=") and level_name(chosen.level[2:].strip()) not in RANK:
        raise FilterError("level", f"after >= comes one of {', '.join(RANK)}")
    return chosen


@lru_cache(maxsize=1024)
def _compile(chosen: Filter) -> Predicate | None:
    terms = [
        make(value)
        for make, value in (
            (_level, chosen.level),
            (_source, chosen.source),
            (_text, chosen.text),
        )
        if value
    ]
    if not terms:
        return None
    if len(terms) == 1:
        return terms[0]
    return lambda event: all(term(event) for term in terms)


def _level(value: str) -> Predicate:
    if value.startswith(">="):
        least = RANK[level_name(value[2:].strip())]
        return lambda event: level_rank(event.level) >= least
    names = frozenset(level_name(word.strip()) for word in value.split(","))
    return lambda event: event.level in names


def _source(value: str) -> Predicate:
    names = frozenset(name.strip() for name in value.split(","))
    exact = frozenset(name for name in names if "*" not in name)
    patterns = [_wildcard(name) for name in names - exact]
    return lambda event: event.source in exact or any(fits(event.source) for fits in patterns)


def _wildcard(pattern: str) -> Callable[[str], bool]:
    """Whether a name fits a pattern with `*`, in one pass: a regex would try every split."""
    head, *middle, tail = re.split(r"\*+", pattern)

    def fits(name: str) -> bool:
        at, end = len(head), len(name) - len(tail)
        if at > end or not (name.startswith(head) and name.endswith(tail)):
            return False
        for part in middle:  # the first place for each leaves the most room for the next
            found = name.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return fits


def _text(value: str) -> Predicate:
    wanted = value.casefold()
    return lambda event: wanted in event.message.casefold()
