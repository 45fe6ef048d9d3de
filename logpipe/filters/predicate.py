"""From the tree of a filter to a function of an event: closures, each of which does one thing.

The cost of a filter for one event is bounded: a term that would take more than the steps that are
left is neither true nor false, but unknown, and an event for which the whole filter is unknown is
taken and counted. Words are never unknown, nor sources and levels but for regular expressions.
"""

from collections.abc import Callable, Mapping

from logpipe.event import StoredEvent
from logpipe.filters.terms import Leaf, Predicate, Term, in_linear_time, term_of
from logpipe.filters.tree import And, Node, Not, Or, Regex, Text, leaves
from logpipe.filters.values import Costly, Steps

MAX_STEPS = 32_768
"""Steps that the terms of a filter take for one event: 3 to 4 ms."""

LEAST_STEPS = 8_192
"""Steps that are left for other terms by words that look through a long message."""

WORD_CHARACTERS = 64
"""Characters that a word looks through in one step, in the worst case."""

FEW_WORDS = 4
"""A filter of more words folds a message once, and looks through a long one once."""

LONG_MESSAGE = 4_096
"""Characters of a long message."""

LINEAR_WORDS = 16
LINEAR_CHARACTERS = 512
"""In a filter of more words, or of more characters in words of at most 100, each is looked for in
long messages by `re`, which takes 1.7 ns for a character of the message in the worst case; `str`
takes 2 to 10 ns."""

LINEAR_PARTS = 192
"""Not in a filter whose words have more parts between wildcards: `re` takes 25 us to make each."""

Verdict = Callable[[StoredEvent, Steps], bool | None]
"""Whether an event matches; None where finding out costs too much."""


class Exceeded:
    """The events, one for each filter, that were taken because their cost exceeded the bound."""

    def __init__(self) -> None:
        self.events = 0
        self.listener: Callable[[], None] | None = None
        """Called for each of them: that of the metrics which this process made last."""

    def count(self) -> None:
        """Counts an event."""
        self.events += 1
        if self.listener is not None:
            self.listener()


EXCEEDED = Exceeded()
"""Those of this process."""


def predicate_of(node: Node) -> Predicate:
    """Whether an event matches."""
    words = [leaf for leaf in leaves(node) if isinstance(leaf, Text)]
    few = len(words) <= FEW_WORDS
    terms = _terms(node)
    quick = _quick(node, terms)
    for_long = _linear(terms)
    if for_long is terms and all(term.counted is None for term in terms.values()):
        return quick
    verdict = _verdict(node, for_long)

    def in_steps(event: StoredEvent) -> bool:
        for_words = len(words) * len(event.message) // WORD_CHARACTERS
        decided = verdict(event, Steps(max(LEAST_STEPS, MAX_STEPS - for_words)))
        if decided is None:
            EXCEEDED.count()
            return True
        return decided

    if not isinstance(node, (And, Or, Not)) and (alone := terms[node].alone) is not None:
        return alone(in_steps)

    def accepts(event: StoredEvent) -> bool:
        try:
            return quick(event)
        except Costly:
            return in_steps(event)

    if few:
        return accepts
    return lambda event: (accepts if len(event.message) < LONG_MESSAGE else in_steps)(event)


def verdict_of(node: Node) -> Verdict:
    """The same in counted steps, for a large event."""
    return _verdict(node, _linear(_terms(node)))


def _terms(node: Node) -> dict[Leaf, Term]:
    found = list(leaves(node))
    few = sum(isinstance(leaf, Text) for leaf in found) <= FEW_WORDS
    regexes = sum(isinstance(leaf, Regex) for leaf in found)
    return {leaf: term_of(leaf, few=few, regexes=regexes) for leaf in found}


def _linear(terms: dict[Leaf, Term]) -> dict[Leaf, Term]:
    """The terms for long messages: the same where the words are few and short."""
    words = [leaf for leaf in terms if isinstance(leaf, Text)]
    parts = [part for word in words for part in word.pattern]
    characters = sum(min(len(part), 100) for part in parts)
    many = len(words) > LINEAR_WORDS or (len(words) > 1 and characters > LINEAR_CHARACTERS)
    if not many or len(parts) > LINEAR_PARTS:
        return terms
    return terms | {word: in_linear_time(word) for word in words}


# -- two values: raises `Costly` -------------------------------------------------------------------


def _quick(node: Node, terms: Mapping[Leaf, Term]) -> Predicate:
    match node:
        case And(inner):
            return _all([_quick(each, terms) for each in inner])
        case Or(inner):
            return _any([_quick(each, terms) for each in inner])
        case Not(term):
            opposite = _quick(term, terms)
            return lambda event: not opposite(event)
        case _:
            return terms[node].quick


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


# -- three values ----------------------------------------------------------------------------------


def _verdict(node: Node, terms: Mapping[Leaf, Term]) -> Verdict:
    match node:
        case And(inner):
            return _unless([_verdict(each, terms) for each in inner], decisive=False)
        case Or(inner):
            return _unless([_verdict(each, terms) for each in inner], decisive=True)
        case Not(term):
            return _opposite(_verdict(term, terms))
        case _:
            return _judged(terms[node])


def _unless(verdicts: list[Verdict], *, decisive: bool) -> Verdict:
    """The decisive value where one term has it, else unknown where one is, else the opposite."""

    def verdict(event: StoredEvent, steps: Steps) -> bool | None:
        otherwise: bool | None = not decisive
        for each in verdicts:
            decided = each(event, steps)
            if decided is decisive:
                return decisive
            if decided is None:
                otherwise = None
        return otherwise

    return verdict


def _opposite(verdict: Verdict) -> Verdict:
    def opposite(event: StoredEvent, steps: Steps) -> bool | None:
        decided = verdict(event, steps)
        return None if decided is None else not decided

    return opposite


def _judged(term: Term) -> Verdict:
    quick, counted = term.quick, term.counted
    if counted is None:
        return lambda event, _: quick(event)

    def verdict(event: StoredEvent, steps: Steps) -> bool | None:
        try:
            return quick(event)
        except Costly:
            pass
        try:
            return counted(event, steps)
        except Costly:
            return None

    return verdict
