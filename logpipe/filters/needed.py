"""Conditions that an event must meet before a filter can take it.

They are cheaper to check than the filter: `raw.py` checks them on JSON that was not decoded, and
`index.py` checks those of many filters together.
"""

import operator
from collections.abc import Callable
from itertools import chain
from typing import Any

from logpipe.event import RANK
from logpipe.filters.tree import LEVEL, And, Compare, Match, Node, Or, Regex, Text, leaves

Leaf = Text | Match | Regex | Compare
Clause = tuple[Leaf, ...]

SMALL_BYTES = 2048
"""An event whose JSON is at most this long never exceeds the bounds of a predicate, provided that
the filter is light."""
LIGHT_TERMS = 8
"""Terms on metadata and regular expressions that a light filter has at most. 8 terms on 2,048 bytes
take fewer than 10,000 steps, a step being one element of a list."""
LIGHT_DOTS = 3
"""Dots in a field of a light filter: each splits a path in two, and all splits are tried."""

_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def clauses(node: Node, rate: Callable[[Leaf], int]) -> list[Clause]:
    """Alternatives of which at least one holds for every event that the filter takes.

    Each clause is such a set of alternatives. They consist only of leaves that `rate` gives more
    than 0; where there is a choice, the clause with the highest rating is taken.
    """
    match node:
        case And(terms):
            return [clause for term in terms for clause in clauses(term, rate)]
        case Or(terms):
            choices = [clauses(term, rate) for term in terms]
            if not all(choices):
                return []
            best = [max(choice, key=lambda clause: rating(clause, rate)) for choice in choices]
            return [tuple(dict.fromkeys(chain.from_iterable(best)))]
        case Text() | Match() | Regex() | Compare():
            return [(node,)] if rate(node) else []
        case _:
            return []


def rating(clause: Clause, rate: Callable[[Leaf], int]) -> int:
    """The rating of a clause: that of its worst leaf."""
    return min(map(rate, clause))


def is_definite(leaf: Leaf) -> bool:
    """Whether the predicate decides this leaf for every event, whatever the event's size.

    The others may be left undecided for a large event, which is then taken.
    """
    return isinstance(leaf, Text) or (
        isinstance(leaf, Match | Compare) and leaf.field in ("source", LEVEL)
    )


def is_light(node: Node) -> bool:
    """Whether the predicate decides every leaf of the filter for events of `SMALL_BYTES`."""
    others = [leaf for leaf in leaves(node) if not isinstance(leaf, Text) and not is_definite(leaf)]
    return len(others) <= LIGHT_TERMS and all(
        leaf.field.count(".") <= LIGHT_DOTS for leaf in others
    )


def levels_of(leaf: Compare) -> list[str]:
    """The names of levels for which a comparison of the level holds."""
    holds = _SIGNS[leaf.operator]
    rank = RANK[str(leaf.value)]
    return [name for name in RANK if holds(RANK[name], rank)]
