"""The predicates of filters, kept while they are used and as long as their memory is bounded."""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from logpipe.filters.predicate import Predicate, predicate_of
from logpipe.filters.reading import REGEX_MEMORY, parse
from logpipe.filters.tree import Node, Regex, leaves

MAX_BYTES = 64 * 1024 * 1024
"""Estimated memory of all predicates that are kept. Beyond it those that were used longest ago are
made again where they are used, which takes up to 5 ms."""

IDLE_BYTES = 4 * 1024 * 1024
"""The part of it that filters may have which nobody uses any more."""

FILTER_BYTES = 2_048
TERM_BYTES = 2_048
CHARACTER_BYTES = 16
"""Memory of a filter, of each of its terms and of each of its characters (measured, rounded up)."""


class _Kept(NamedTuple):
    predicate: Predicate | None
    bytes: int


class Predicates:
    """Predicates by the text of their filter; `in_use` says whether a filter has a user."""

    def __init__(
        self,
        in_use: Callable[[str], bool],
        max_bytes: int = MAX_BYTES,
        idle_bytes: int = IDLE_BYTES,
    ) -> None:
        self.bytes = 0
        """Estimated memory of what is kept."""
        self._in_use = in_use
        self._max_bytes = max_bytes
        self._idle_bytes = idle_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, query: str) -> Predicate | None:
        """The predicate of a filter; None for one that takes every event.

        Raises `FilterSyntaxError`.
        """
        kept = self._kept.get(query)
        if kept is None:
            node = parse(query)
            if node is None:
                return None
            kept = _Kept(predicate_of(node), memory_of(query, node))
            self._make_room(kept.bytes)
            self._kept[query] = kept
            self.bytes += kept.bytes
        else:
            self._kept.move_to_end(query)
        return kept.predicate

    def _make_room(self, wanted: int) -> None:
        """Forgets what was used longest ago: first of the filters without a user."""
        if self.bytes + wanted > self._idle_bytes:
            for query in [query for query in self._kept if not self._in_use(query)]:
                if self.bytes + wanted <= self._idle_bytes:
                    break
                self._forget(query)
        while self._kept and self.bytes + wanted > self._max_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, query: str) -> None:
        self.bytes -= self._kept.pop(query).bytes


def memory_of(query: str, node: Node) -> int:
    """About the bytes of a filter's predicate, with the most that RE2 may use."""
    terms = list(leaves(node))
    regexes = sum(isinstance(term, Regex) for term in terms)
    size = FILTER_BYTES + TERM_BYTES * len(terms) + CHARACTER_BYTES * len(query)
    return size + REGEX_MEMORY * regexes
