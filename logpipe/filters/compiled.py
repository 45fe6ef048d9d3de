"""The functions of filters, kept while they are used and within a bound on their memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from logpipe.filters.highlight import Highlight, highlight_of
from logpipe.filters.predicate import predicate_of
from logpipe.filters.raw import MayMatch, may_match_of
from logpipe.filters.reading import REGEX_MEMORY, parse
from logpipe.filters.terms import Predicate
from logpipe.filters.tree import Node, Regex, leaves

MAX_BYTES = 64 * 1024 * 1024
"""Estimated memory of all functions that are kept. Beyond it those that were used longest ago are
made again where they are used, which takes up to 5 ms."""

IDLE_BYTES = 4 * 1024 * 1024
"""The part of it that filters may have which nobody uses any more."""

LOOKS = 8
"""Functions of filters in use that are passed over, for each new one, in the search for those of
filters without a user. Before all are passed an eighth as many new ones may be added."""

FILTER_BYTES = 2_048
TERM_BYTES = 4_096
CHARACTER_BYTES = 32
"""Memory of a filter, of each of its terms and of each of its characters (measured, rounded up)."""


class Compiled:
    """Functions of filters by the text of the filter; `in_use` says whether a filter has a user."""

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
        self._kept: OrderedDict[tuple[str, Hashable], tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def predicate(self, query: str) -> Predicate | None:
        """The predicate of a filter; None for one that takes every event.

        Raises `FilterSyntaxError`.
        """
        found: Predicate | None = self._function(query, predicate_of) if query else None
        return found

    def may_match(self, query: str) -> MayMatch | None:
        """What rejects the JSON of events that a filter rejects; None where no event
        can be rejected before it is decoded."""
        found: MayMatch | None = self._function(query, may_match_of) if query else None
        return found

    def highlight(self, query: str) -> Highlight:
        """What finds the words and regular expressions of a filter that has some."""
        found: Highlight = self._function(query, highlight_of)
        return found

    def _function(self, query: str, make: Callable[[Node], Any]) -> Any:
        key = (query, make)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept[0]
        node = parse(query)
        if node is None:
            return None
        function, size = make(node), memory_of(query, node)
        self._make_room(size)
        self._kept[key] = function, size
        self.bytes += size
        return function

    def _make_room(self, wanted: int) -> None:
        """Forgets what was used longest ago: first of the filters without a user.

        Of those with a user it looks at `LOOKS`, which then are the last in order: so its time does
        not grow with their number, and all have been looked at after a few new filters.
        """
        looks = 0
        while self._kept and self.bytes + wanted > self._idle_bytes and looks < LOOKS:
            key = next(iter(self._kept))
            if self._in_use(key[0]):
                self._kept.move_to_end(key)
                looks += 1
            else:
                self.bytes -= self._kept.pop(key)[1]
        while self._kept and self.bytes + wanted > self._max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1][1]


def memory_of(query: str, node: Node) -> int:
    """About the bytes of one function of a filter, with the most that RE2 may use."""
    terms = list(leaves(node))
    regexes = sum(isinstance(term, Regex) for term in terms)
    size = FILTER_BYTES + TERM_BYTES * len(terms) + CHARACTER_BYTES * len(query)
    return size + REGEX_MEMORY * regexes
