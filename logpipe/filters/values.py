"""The values that a filter looks at: how they are found and compared, and what steps that costs.

A step is about 0.1 us of work. Steps are counted, not timed, so that a filter gives the same answer
for the same event in every process.
"""

from collections.abc import Callable
from typing import Any

from logpipe.filters.tree import Pattern

Fits = Callable[[str], bool]

MISSING: Any = object()
"""Stands for the value of a field that is not there."""

LOOKUPS = 250
"""Keys that `looked_up` tries for one path."""


class Costly(Exception):  # noqa: N818 - a signal between functions, not an error
    """Raised where a term would cost more steps than are left."""


class Steps:
    """The steps that may still be taken."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        """Takes steps before the work is done. Raises `Costly` where too few are left."""
        if count > self.left:
            raise Costly
        self.left -= count


# -- texts -----------------------------------------------------------------------------------------


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


def fitting_steps(pattern: Pattern) -> Callable[[str], int]:
    """The steps of comparing a text with a pattern.

    `str.find` compares each part of up to about 100 characters at each place of the text in the
    worst case, 300 characters in a step.
    """
    parts = len(pattern)
    longest = min(100, max(map(len, pattern))) if parts > 1 else 0
    return lambda text: parts + len(text) * longest // 256


def number(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None


def number_steps(text: str) -> int:
    """The steps of `number`: it raises for most texts, and looks at each character."""
    return 8 + len(text) // 32


# -- values of metadata ----------------------------------------------------------------------------


def written(value: Any) -> str:
    """A value of the metadata as a filter writes it."""
    if value is None:
        return "null"
    if value.__class__ is bool:
        return "true" if value else "false"
    return str(value)


def take_written(value: Any, steps: Steps) -> None:
    """Takes the steps of `written`. Raises `Costly`."""
    pending = [value]
    while pending:
        value = pending.pop()
        kind = value.__class__
        if kind is str:
            steps.take(1 + len(value) // 8)
        elif kind is int:  # the time to write an integer grows with the square of its digits
            steps.take(1 + (value.bit_length() // 64) ** 2 // 20)
        elif kind is float:
            steps.take(12)
        elif kind is list:
            steps.take(2 + len(value))
            pending += value
        elif kind is dict:
            steps.take(2 + 2 * len(value))
            pending += value
            pending += value.values()
        else:
            steps.take(1)


def descend(outer: dict[str, Any], path: str, steps: Steps | None = None) -> Any:
    """The value at a path, or `MISSING`. A dot descends, or belongs to a key: the longest key that
    leads to a value wins, as in `{"http.status": 500}`. Raises `Costly` where steps are given."""
    if path in outer:
        return outer[path]
    at = path.rfind(".")
    while at > 0:
        if steps is not None:
            steps.take(2 + at // 256)
        inner = outer.get(path[:at])
        if inner.__class__ is dict:
            found = descend(inner, path[at + 1 :], steps)
            if found is not MISSING:
                return found
        at = path.rfind(".", 0, at)
    return MISSING


def looked_up(outer: dict[str, Any], path: str) -> Any:
    """The value at a path as `descend` finds it; `MISSING` also beyond `LOOKUPS` keys."""
    try:
        return descend(outer, path, Steps(2 * LOOKUPS))
    except Costly:
        return MISSING
