"""Many filters over the same events: what they have in common is evaluated once.

Each filter is listed under one of its clauses (`needed.py`): under the words, regular expressions,
values or levels of which an event must have one before the filter can take it. All words are looked
for together, and so are the regular expressions; values are looked up. Only the filters that this
finds are then evaluated for the event, so that the result is that of their predicates.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import re2

from logpipe.event import Entry, level_rank
from logpipe.filters import Filter
from logpipe.filters.needed import (
    SMALL_BYTES,
    Clause,
    Leaf,
    clauses,
    is_definite,
    is_light,
    levels_of,
    rating,
)
from logpipe.filters.reading import parse, regex
from logpipe.filters.tree import MESSAGE, Compare, Match, Regex, Text
from logpipe.turns import CpuTime

_OWN_FIELDS = ("source", "level", "message", "ts_unix_ms")

FEW = 8
"""Filters up to which each is evaluated by itself: that costs less than the index does."""

WORD_BYTES = 16
"""Bytes of a word that are looked for, its last ones: they decide nearly always."""
SET_WORDS = 128
SET_INSTRUCTIONS = 1024
"""What one set has: words, or instructions of regular expressions (RE2's measure). Both bound the
time that one text can take to some milliseconds."""
SET_MEMORY = 1024 * 1024
"""Bytes that the automaton of one set may take."""
MAX_SETS = 32
"""Sets of words, and as many of regular expressions. Filters beyond are evaluated by themselves."""
FRESH = 16
"""New patterns of which a set is made; the filters of fewer are evaluated by themselves."""
CANDIDATES_AT_ONCE = 500
"""Candidates that are added in one step: 0.1 ms."""
SLICE_BYTES = 2048
"""Bytes of a text in which words are looked for in one step, and of the events for which a filter
is evaluated in one step."""

FILTER_S = 0.01
"""CPU time in seconds that one filter may take for one batch."""
SEARCH_S = 0.25
"""CPU time in seconds that all filters may take for one batch, at most half of it to find which
entries each may take. The cheapest are evaluated first."""
SET_S = 0.05
"""CPU time in seconds that one set may take for one batch; its filters are then evaluated by
themselves. A new set first builds its automaton, which takes some milliseconds."""
SLOW_S = 5.0
"""Seconds for which a filter that took too long is not evaluated here."""


class Result(NamedTuple):
    """What a filter takes of a batch; `found` is None where finding out took too long."""

    chosen: Filter
    found: list[Entry] | None


class _Listed:
    """A filter in use."""

    __slots__ = ("chosen", "cost_s", "places", "users")

    def __init__(self, chosen: Filter, cost_s: float) -> None:
        self.chosen = chosen
        self.users = 0
        self.cost_s = cost_s
        """CPU time in seconds that it took for the last batch, or that is expected of the first."""
        self.places: dict[tuple[_Table, Hashable], None] = {}
        """Where it is listed; nowhere when it is evaluated for every event."""


_Filters = dict[_Listed, None]


class _Table:
    """Filters by a value that an event must have."""

    def __init__(self) -> None:
        self._filters: dict[Hashable, _Filters] = {}

    def add(self, key: Any, listed: _Listed) -> None:
        self._filters.setdefault(key, {})[listed] = None

    def remove(self, key: Any, listed: _Listed) -> None:
        filters = self._filters[key]
        del filters[listed]
        if not filters:
            del self._filters[key]

    def get(self, key: Hashable) -> Iterable[_Listed]:
        """The filters that are listed under a value."""
        return self._filters.get(key, ())


class _Set:
    """Patterns that RE2 looks for in one pass over a text."""

    def __init__(self, patterns: list[bytes], options: Any, *, literal: bool) -> None:
        self.patterns = patterns
        self.live = len(patterns)
        """Those that are still in use."""
        self._re2 = re2.Set.SearchSet(options)
        for pattern in patterns:
            self._re2.Add(re2.escape(pattern) if literal else pattern)
        # RE2 does not report that a text took too much memory: this pattern is then missing.
        self._end = self._re2.Add(rb"\z")
        try:
            self._re2.Compile()
        except re2.error:  # it takes more memory than the options allow
            self._re2 = None

    def find(self, text: bytes) -> list[bytes]:
        """The patterns that are found in a text, and maybe others."""
        found = (self._re2 and self._re2.Match(text)) or ()
        if self._end not in found:
            return self.patterns
        return [self.patterns[index] for index in found if index != self._end]


class _Patterns(_Table):
    """Filters by patterns of which a text must have one."""

    def __init__(self, most: int, options: Any, *, literal: bool) -> None:
        super().__init__()
        self.sets: list[_Set] = []
        self.fresh: dict[bytes, None] = {}
        """Patterns that are in no set yet."""
        self._most = most
        self._options = options
        self._literal = literal
        self._weights: dict[bytes, int] = {}
        self._weight = 0
        self._set_of: dict[bytes, _Set] = {}

    def has_room(self, weights: dict[bytes, int]) -> bool:
        """Whether these patterns can be added, each with its part in what a set may have."""
        new = sum(weight for key, weight in weights.items() if key not in self._filters)
        return self._weight + new <= self._most * MAX_SETS // 2  # most sets are half full or more

    def add_weighed(self, key: bytes, listed: _Listed, weight: int) -> None:
        """Lists a filter under a pattern."""
        if key not in self._filters:
            self.fresh[key] = None
            self._weights[key] = weight
            self._weight += weight
        self.add(key, listed)

    def remove(self, key: bytes, listed: _Listed) -> None:
        super().remove(key, listed)
        if key in self._filters:
            return
        self._weight -= self._weights.pop(key)
        self.fresh.pop(key, None)
        if found := self._set_of.pop(key, None):
            found.live -= 1
            if found.live <= len(found.patterns) // 2:
                self._take_apart(found)

    def _take_apart(self, old: _Set) -> None:
        self.sets.remove(old)
        for key in old.patterns:
            if self._set_of.get(key) is old:
                del self._set_of[key]
                self.fresh[key] = None

    def make_sets(self) -> Iterator[None]:
        """Makes sets of the fresh patterns when there are many, one a step."""
        while len(self.fresh) >= FRESH and len(self.sets) < MAX_SETS:
            if self.sets and self._weight_of(self.sets[-1]) <= self._most // 2:
                self._take_apart(self.sets[-1])  # it has room for more
            chosen: list[bytes] = []
            weight = 0
            for key in self.fresh:
                weight += self._weights[key]
                if chosen and weight > self._most:
                    break
                chosen.append(key)
            for key in chosen:
                del self.fresh[key]
            made = _Set(chosen, self._options, literal=self._literal)
            self.sets.append(made)
            self._set_of.update(dict.fromkeys(chosen, made))
            yield

    def _weight_of(self, found: _Set) -> int:
        return sum(self._weights[key] for key in found.patterns if self._set_of.get(key) is found)

    def filters_of(self, patterns: Iterable[bytes]) -> list[_Listed]:
        """The filters that are listed under some patterns."""
        return [listed for key in patterns for listed in self.get(key)]


class FilterIndex:
    """The filters in use, each as often as it was added.

    `filter_s`, `search_s` and `set_s` bound the CPU time of a search in seconds, as `FILTER_S`,
    `SEARCH_S` and `SET_S` say; `cpu_clock` measures it, and `clock` measures time.
    """

    def __init__(
        self,
        *,
        filter_s: float = FILTER_S,
        search_s: float = SEARCH_S,
        set_s: float = SET_S,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.filter_s = filter_s
        self.search_s = search_s
        self.set_s = set_s
        self.clock = clock
        self.cpu_clock = cpu_clock
        self.listed: dict[Filter, _Listed] = {}
        self._slow_until: dict[str, float] = {}
        """The texts of filters that took too long, and the time until which they are not evaluated.
        Some have no users now: readers that go on by themselves come back."""
        self._alone: _Filters = {}
        self._new: _Filters = {}
        """Those of `_alone` that have not been placed yet, which may take 1 ms each."""
        self._not_definite: _Filters = {}
        """Filters of which a large event may be taken whatever they are listed under."""
        self._sources = _Table()
        self._levels = _Table()
        self._ranks = _Table()
        self._values = _Table()
        """By the last part of a field's name, and the value: as text, or as a number."""
        self.words = _Patterns(SET_WORDS, _word_options(), literal=True)
        self.expressions = _Patterns(SET_INSTRUCTIONS, _expression_options(), literal=False)

    def __len__(self) -> int:
        return len(self.listed)

    def add(self, chosen: Filter) -> None:
        """Counts a user of the filter."""
        listed = self.listed.get(chosen)
        if listed is None:
            listed = self.listed[chosen] = _Listed(chosen, self.filter_s)
            self._alone[listed] = self._new[listed] = None
        listed.users += 1

    def remove(self, chosen: Filter) -> None:
        """Counts a user less, and forgets the filter after the last one."""
        listed = self.listed[chosen]
        listed.users -= 1
        if not listed.users:
            del self.listed[chosen]
            self.evaluate_alone(listed)
            del self._alone[listed]
            self._new.pop(listed, None)

    def is_slow(self, chosen: Filter) -> bool:
        """Whether a filter is not evaluated now, because it took too long."""
        return self.clock() < self._slow_until.get(chosen.query, 0.0)

    def took_too_long(self, chosen: Filter) -> None:
        """Has a filter not evaluated for `SLOW_S`."""
        now = self.clock()
        for each in [each for each, until in self._slow_until.items() if until < now]:
            del self._slow_until[each]
        self._slow_until[chosen.query] = now + SLOW_S

    # -- where a filter is listed ----------------------------------------------------------------

    def place_new(self) -> Iterator[None]:
        """Lists the filters that were added, one a step."""
        while self._new:
            listed, _ = self._new.popitem()
            self._place(listed)
            yield

    def _place(self, listed: _Listed) -> None:
        node = parse(listed.chosen.query)
        if node is not None:
            light = is_light(node)

            def rate(leaf: Leaf) -> int:
                return _rate(leaf) if light or is_definite(leaf) else 0

            found = clauses(node, rate)
            if found and self._list(listed, max(found, key=lambda each: rating(each, rate))):
                del self._alone[listed]

    def _list(self, listed: _Listed, clause: Clause) -> bool:
        """Lists a filter under all leaves of a clause; False where there is no room."""
        words = {_word(leaf): 1 for leaf in clause if isinstance(leaf, Text)}
        expressions = {
            leaf.expression.encode(): int(regex(leaf.expression).programsize)
            for leaf in clause
            if isinstance(leaf, Regex)
        }
        for patterns, weights in ((self.words, words), (self.expressions, expressions)):
            if not patterns.has_room(weights):
                return False
        for patterns, weights in ((self.words, words), (self.expressions, expressions)):
            for key, weight in weights.items():
                patterns.add_weighed(key, listed, weight)
                listed.places[patterns, key] = None
        for leaf in clause:
            for table, value in self._lookups(leaf):
                table.add(value, listed)
                listed.places[table, value] = None
        if not all(map(is_definite, clause)):
            self._not_definite[listed] = None
        return True

    def _lookups(self, leaf: Leaf) -> Iterator[tuple[_Table, Hashable]]:
        match leaf:
            case Match("source", (name,)):
                yield self._sources, name
            case Match("level", (name,)):
                yield self._levels, name
            case Compare("level"):
                for name in levels_of(leaf):
                    yield self._ranks, level_rank(name)
            case Match(field, (text,)):
                key = field.rpartition(".")[2]
                yield self._values, (key, text)
                with contextlib.suppress(ValueError):
                    yield self._values, (key, float(text))

    def evaluated_alone(self) -> list[_Listed]:
        """The filters that are to be evaluated for every event."""
        fresh = self.words.filters_of(self.words.fresh)
        fresh += self.expressions.filters_of(self.expressions.fresh)
        return list(dict.fromkeys((*self._alone, *fresh)))

    def evaluate_alone(self, listed: _Listed) -> None:
        """Has a filter evaluated for every event from now on."""
        for table, key in listed.places:
            table.remove(key, listed)
        listed.places.clear()
        self._not_definite.pop(listed, None)
        self._alone[listed] = None

    # -- what filters take -----------------------------------------------------------------------

    def search(self, entries: list[Entry]) -> "Search":
        """The search for what each filter takes of some entries."""
        return Search(self, entries)

    def by_fields(self, entry: Entry) -> Iterator[Iterable[_Listed]]:
        """The filters that may take an entry because of other fields than its message, by field."""
        event = entry.event
        yield self._sources.get(event.source)
        yield self._levels.get(event.level)
        yield self._ranks.get(level_rank(event.level))
        if len(entry.json) > SMALL_BYTES:
            yield self._not_definite
        elif event.metadata:
            for key in dict.fromkeys(_values(event.metadata)):
                yield self._values.get(key)


class Search:
    """What each filter of an index takes of some entries.

    The index may change meanwhile: the search is for the filters that were in use when it began,
    and there is one at a time.
    """

    def __init__(self, index: FilterIndex, entries: list[Entry]) -> None:
        self.cpu = CpuTime(index.cpu_clock)
        """Of the search, whose turns whoever runs it begins and ends."""
        self.spent_s = 0.0
        """CPU time in seconds that was spent on what is complete."""
        self._index = index
        self._entries = entries
        self._candidates: defaultdict[_Listed, list[int]] = defaultdict(list)
        """The entries that a filter may take, by their position; one may come two or three
        times."""
        self._slow: list[_Listed] = []
        """The filters of sets that took too long."""

    def steps(self) -> Iterator[Result | None]:
        """The result for each filter; None between two steps that belong together.

        No step takes longer than compiling a filter, or evaluating it for one event or for
        `SLICE_BYTES` of them.
        """
        index = self._index
        listed = list(index.listed.values())
        alone = listed
        if len(listed) > FEW:
            yield from index.place_new()
            yield from index.words.make_sets()
            yield from index.expressions.make_sets()
            listed = list(index.listed.values())
            alone = index.evaluated_alone()
            yield None
            complete = yield from self._find_candidates()
            yield None
            if not complete:
                alone = listed
        for each in alone:
            self._candidates.pop(each, None)
        yield None
        slices = list(_slices_of(self._entries))
        evaluated = dict.fromkeys((*alone, *self._candidates))
        yield None
        in_order = sorted(evaluated, key=lambda each: each.cost_s)
        yield None
        for each in in_order:
            yield from self._evaluate(each, self._slices_for(each, slices))
        for each in listed:
            if each not in evaluated:
                yield Result(each.chosen, [])

    def _evaluate(
        self, listed: _Listed, slices: Sequence[Sequence[Entry]]
    ) -> Iterator[Result | None]:
        """Evaluates a filter for some of the entries, the others are not taken."""
        index, chosen = self._index, listed.chosen
        if not chosen.query:
            yield Result(chosen, self._entries)
            return
        if index.is_slow(chosen) or self.spent_s > index.search_s:
            yield Result(chosen, None)
            return
        began_s = self.cpu.now()
        accepts = chosen.predicate  # not kept here: its memory is bounded
        yield None
        began = index.clock()
        found: list[Entry] = []
        late = False
        for part in slices:
            found += [entry for entry in part if accepts is None or accepts(entry.event)]
            yield None
            # The clock of the CPU takes a system call.
            if index.clock() - began > index.filter_s and self.cpu.now() - began_s > index.filter_s:
                late = True
                index.took_too_long(chosen)
                break
        listed.cost_s = self.cpu.now() - began_s
        self.spent_s += listed.cost_s
        yield Result(chosen, None if late else found)

    def _slices_for(
        self, listed: _Listed, slices: Sequence[Sequence[Entry]]
    ) -> Sequence[Sequence[Entry]]:
        """The entries for which a filter is to be evaluated: all slices, or its candidates."""
        positions = self._candidates.get(listed)
        if positions is None or len(positions) >= len(self._entries) // 2:
            return slices
        return [(self._entries[at],) for at in sorted(set(positions))]

    def _find_candidates(self) -> Generator[None, None, bool]:
        """Finds which filters may take which of the entries; returns whether for all of them."""
        index = self._index
        most_s = index.search_s / 2
        began, began_s = index.clock(), self.cpu.now()
        complete = True
        for _ in self._finding_candidates():
            yield
            if index.clock() - began > most_s and self.cpu.now() - began_s > most_s:
                complete = False
                break
        for listed in self._slow:
            if listed.users:
                index.evaluate_alone(listed)
                yield
        self.spent_s = self.cpu.now() - began_s
        return complete

    def _finding_candidates(self) -> Iterator[None]:
        index, entries = self._index, self._entries
        word_sets, expression_sets = list(index.words.sets), list(index.expressions.sets)
        for at, entry in enumerate(entries):
            yield from self._may_take(at, index.by_fields(entry))
        if word_sets:
            texts: list[tuple[int, list[bytes]]] = []
            for at, entry in enumerate(entries):
                texts.append((at, _parts(entry.event.message.casefold())))
                yield
            yield from self._by_patterns(index.words, word_sets, texts)
        if expression_sets:
            texts = [
                (at, [entry.event.message.encode(errors="replace")])
                for at, entry in enumerate(entries)
                if len(entry.json) <= SMALL_BYTES
            ]
            yield from self._by_patterns(index.expressions, expression_sets, texts)

    def _by_patterns(
        self, patterns: _Patterns, sets: list[_Set], texts: list[tuple[int, list[bytes]]]
    ) -> Iterator[None]:
        for each in sets:
            began_s = self.cpu.now()
            for at, parts in texts:
                keys: dict[bytes, None] = {}
                for number, part in enumerate(parts):
                    if number:
                        yield
                    keys.update(dict.fromkeys(each.find(part)))
                yield from self._may_take(at, map(patterns.get, keys))
            if self.cpu.now() - began_s > self._index.set_s:
                self._slow += patterns.filters_of(each.patterns)

    def _may_take(self, at: int, groups: Iterable[Iterable[_Listed]]) -> Iterator[None]:
        """Adds an entry to those that filters may take."""
        candidates = self._candidates
        count = 0
        for filters in groups:
            for listed in tuple(filters):  # they may change between two steps
                positions = candidates[listed]
                if not positions or positions[-1] != at:
                    positions.append(at)
                count += 1
                if not count % CANDIDATES_AT_ONCE:
                    yield
        yield


def _rate(leaf: Leaf) -> int:
    """How rarely a leaf holds, as a guess; 0 where it cannot be listed."""
    match leaf:
        case Match("level", (_,)) | Compare("level"):
            return 1
        case Regex(field, _):
            return 3 if field == MESSAGE else 0
        case Text():
            size = len(_word(leaf))
            return min(size, 2 if size < 3 else 5)
        case Match("source", (_,)):
            return 4
        case Match(field, (_,)) if field not in _OWN_FIELDS:
            return 6
        case _:
            return 0


def _word(leaf: Text) -> bytes:
    """The end of the longest word of a pattern, in its case folding."""
    return max((part.casefold().encode(errors="replace") for part in leaf.pattern), key=len)[
        -WORD_BYTES:
    ]


def _parts(folded: str) -> list[bytes]:
    """Parts of a text such that each of its words is in one of them."""
    text = folded.encode(errors="replace")
    if len(text) <= SLICE_BYTES:
        return [text]
    return [text[at : at + SLICE_BYTES + WORD_BYTES - 1] for at in range(0, len(text), SLICE_BYTES)]


def _slices_of(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """The entries in runs of `SLICE_BYTES`, or of one that is larger."""
    first = size = 0
    for at, entry in enumerate(entries):
        size += len(entry.json)
        if size > SLICE_BYTES and at > first:
            yield entries[first:at]
            first, size = at, len(entry.json)
    yield entries[first:]


def _values(metadata: dict[str, Any]) -> Iterator[tuple[str, str | float]]:
    """The values of metadata, on all levels, each with the last part of its key's name.

    A number comes as a text and as a number.
    """
    pending: list[tuple[str, Any]] = list(metadata.items())
    for name, value in pending:  # which grows
        kind = value.__class__
        if kind is dict:
            pending += value.items()
        elif kind is list:
            pending += [(name, each) for each in value]
            yield name.rpartition(".")[2], str(value)  # as an element of another list
        elif kind is str:
            yield name.rpartition(".")[2], value
        elif kind is bool:
            yield name.rpartition(".")[2], "true" if value else "false"
        elif value is None:
            yield name.rpartition(".")[2], "null"
        else:
            yield name.rpartition(".")[2], str(value)
            yield name.rpartition(".")[2], value


def _word_options() -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # any bytes
    options.max_mem = SET_MEMORY
    options.never_capture = True
    options.log_errors = False
    return options


def _expression_options() -> Any:
    """Those of `reading.regex`, but for the memory."""
    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = SET_MEMORY
    options.never_capture = True
    options.log_errors = False
    return options
