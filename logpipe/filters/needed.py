"""Conditions that an event must meet before a filter can take it.

They are cheaper to check than the filter: `raw.py` checks them on JSON that was not decoded, and
`index.py` checks those of many filters together.
"""

from collections.abc import Callable
from itertools import chain

from logpipe.event import RANK
from logpipe.filters.reading import regex
from logpipe.filters.tree import (
    LEVEL,
    MESSAGE,
    ORDERS,
    And,
    Compare,
    Match,
    Node,
    Or,
    Regex,
    Text,
    leaves,
)

Leaf = Text | Match | Regex | Compare
Clause = tuple[Leaf, ...]

SMALL_BYTES = 1024
"""An event whose JSON is at most this long never exceeds the bounds of a predicate, provided that
the filter is light: it takes fewer than 30,000 steps."""
LIGHT_TERMS = 3
"""Terms on metadata that a light filter has at most. The most costly values are numbers in a list:
17 steps for 4 bytes."""
LIGHT_PARTS = 3
"""Parts between wildcards in such a term, each of which is a step."""
LIGHT_DOTS = 3
"""Dots in the field of such a term: each splits a path in two, and all splits are tried."""
LIGHT_INSTRUCTIONS = 256
"""Instructions of all regular expressions (RE2's measure): 32 of them take a step for a byte."""
_SHORT = (MESSAGE, "source", LEVEL)
"""Fields whose text is no longer than the event's JSON. A list of the metadata may be written in
more characters than JSON has for it."""


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
    on_message = [leaf for leaf in others if isinstance(leaf, Regex) and leaf.field in _SHORT]
    on_metadata = [leaf for leaf in others if leaf not in on_message]
    instructions = sum(regex(leaf.expression).programsize for leaf in on_message)
    return (
        len(on_metadata) <= LIGHT_TERMS
        and instructions <= LIGHT_INSTRUCTIONS
        and all(map(_is_light, on_metadata))
    )


def _is_light(leaf: Leaf) -> bool:
    if isinstance(leaf, Match) and len(leaf.pattern) > LIGHT_PARTS:
        return False
    return (
        isinstance(leaf, Match | Compare)
        and leaf.field.removeprefix("metadata.").count(".") <= LIGHT_DOTS
    )


def levels_of(leaf: Compare) -> list[str]:
    """The names of levels for which a comparison of the level holds."""
    holds = ORDERS[leaf.operator]
    rank = RANK[str(leaf.value)]
    return [name for name in RANK if holds(RANK[name], rank)]
