"""Who judges a run: pure, and ignorant of logpipe's code.

Events are numbered from 0 in the order in which they were sent; an id is (milliseconds, sequence).
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Id = tuple[int, int]
MAX_SHOWN = 5


def parse_id(text: str) -> Id:
    """`1710000000000-3`."""
    ms, _, seq = text.partition("-")
    return int(ms), int(seq)


class Gap(NamedTuple):
    """What a reader was told of: nothing between two ids, so many events or an unknown number."""

    reason: str
    after: Id
    before: Id
    missing: int | None


class Ledger:
    """The ids of all events that were acknowledged, by their numbers."""

    def __init__(self) -> None:
        self.ids: list[Id] = []

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.ids)

    def acknowledged(self, first: Id, last: Id, count: int) -> None:
        """Takes a batch, whose events one script call has appended: their ids follow each other."""
        ids = [(first[0], first[1] + n) for n in range(count)]
        assert ids[-1] == last, f"a batch from {first} to {last} has not {count} ids"
        assert not self.ids or self.ids[-1] < first, "ids that do not rise"
        self.ids += ids

    def between(self, after: Id, before: Id) -> range:
        """The numbers of the events between two ids, both exclusive."""
        return range(bisect_right(self.ids, after), bisect_left(self.ids, before))


class History(NamedTuple):
    """What one reader received and was told, over all its connections.

    `begin` is the id after which its first connection began; `wants` says by its number whether
    its filter takes an event.
    """

    name: str
    wants: Callable[[int], bool]
    received: list[tuple[Id, int]]
    gaps: list[Gap]
    begin: list[Id]


def offences(history: History, ledger: Ledger) -> Iterator[str]:
    """What is wrong with a reader's history; nothing when the promise was kept."""
    if not history.begin:
        yield "never had a hello"
        return
    yield from _wrong_entries(history, ledger)
    yield from wrong_counts(history.gaps, ledger)
    told = {number for gap in history.gaps for number in ledger.between(gap.after, gap.before)}
    got = {number for _, number in history.received}
    first = bisect_right(ledger.ids, history.begin[0])
    missing = [
        number
        for number in range(first, len(ledger.ids))
        if history.wants(number) and number not in got and number not in told
    ]
    if missing:
        yield f"{len(missing)} neither received nor told as missing: {_some(missing, ledger)}"


def _wrong_entries(history: History, ledger: Ledger) -> Iterator[str]:
    before: Id = (-1, 0)
    for id_, number in history.received:
        if id_ <= before:
            yield f"event {number} ({id_}) twice or out of order, after {before}"
        if number >= len(ledger.ids) or ledger.ids[number] != id_:
            yield f"event {number} came with the id {id_}, which is not its own"
        elif not history.wants(number):
            yield f"event {number} though the filter rejects it"
        before = id_


def wrong_counts(gaps: Iterable[Gap], ledger: Ledger) -> Iterator[str]:
    """Gaps that count what they tell, and count wrong."""
    for gap in gaps:
        really = len(ledger.between(gap.after, gap.before))
        if gap.missing is not None and gap.missing != really:
            yield f"{gap} counts {gap.missing} where {really} are missing"


def group_offences(received: Counter[int], gaps: list[Gap], ledger: Ledger) -> Iterator[str]:
    """What is wrong with what all workers of a group had together: at least once, or told."""
    told = {number for gap in gaps for number in ledger.between(gap.after, gap.before)}
    missing = [n for n in range(len(ledger.ids)) if n not in received and n not in told]
    if missing:
        yield f"{len(missing)} neither received nor told as missing: {_some(missing, ledger)}"


def _some(numbers: list[int], ledger: Ledger) -> str:
    shown = ", ".join(f"{n} ({ledger.ids[n][0]}-{ledger.ids[n][1]})" for n in numbers[:MAX_SHOWN])
    return shown + (", …" if len(numbers) > MAX_SHOWN else "")
