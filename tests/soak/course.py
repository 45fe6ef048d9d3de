"""The judge of long runs: the same promise in constant memory.

Events are numbered in the order of the stream; a reader's filter takes every `step`-th number.
"""

from bisect import bisect_right
from collections.abc import Iterator

from tests.soak.judge import Gap, Id

MAX_KEPT = 20
"""Offences of a reader that are kept."""


class Batches:
    """The ids of all events that were acknowledged: the first of each batch and its number."""

    def __init__(self) -> None:
        self._firsts: list[Id] = []
        self._numbers: list[int] = []
        self.last: Id = (0, 0)
        self.count = 0

    def acknowledged(self, first: Id, last: Id, count: int) -> None:
        """Takes a batch, whose events one script call has appended: their ids follow each other."""
        assert last == (first[0], first[1] + count - 1), f"{first} to {last} are not {count} ids"
        assert first > self.last, "ids that do not rise"
        self._firsts.append(first)
        self._numbers.append(self.count)
        self.last, self.count = last, self.count + count

    def upto(self, id_: Id) -> int:
        """How many events have this id or one before it."""
        at = bisect_right(self._firsts, id_) - 1
        if at < 0:
            return 0
        end = self._numbers[at + 1] if at + 1 < len(self._numbers) else self.count
        first = self._firsts[at]
        size = end - self._numbers[at]
        within = size if id_[0] > first[0] else min(id_[1] - first[1] + 1, size)
        return self._numbers[at] + within

    def between(self, after: Id, before: Id) -> range:
        """The numbers of the events between two ids, both exclusive."""
        return range(self.upto(after), self.upto((before[0], before[1] - 1)))


class Course:
    """What one reader has had: the number that it must get next, and what was wrong so far."""

    def __init__(self, name: str, first: int = 0, step: int = 1) -> None:
        self.name = name
        self.next = first
        self.received = 0
        self.gaps: list[Gap] = []
        self._step = step
        self._at: Id = (0, 0)
        self._told: list[tuple[list[Gap], range]] = []
        self._pending: list[Gap] = []
        self._wrong: list[str] = []

    def event(self, id_: Id, number: int) -> None:
        """It has got an event."""
        self.received += 1
        if id_ <= self._at:
            self._offence(f"event {number} ({id_}) twice or out of order, after {self._at}")
            return
        skipped = range(self.next, number, self._step)
        if self._pending:
            self._told.append((self._pending, skipped))
            self._pending = []
        elif skipped or number < self.next:
            self._offence(f"event {number} where {self.next} was to come")
        self._at, self.next = id_, number + self._step

    def gap(self, gap: Gap) -> None:
        """It was told of one."""
        self.gaps.append(gap)
        self._pending.append(gap)

    def _offence(self, text: str) -> None:
        if len(self._wrong) < MAX_KEPT:
            self._wrong.append(f"{self.name}: {text}")

    def offences(self, batches: Batches) -> Iterator[str]:
        """What is wrong once the last event was sent."""
        yield from self._wrong
        for gaps, skipped in self._told:
            told = [batches.between(gap.after, gap.before) for gap in gaps]
            if untold := [n for n in skipped if not any(n in numbers for numbers in told)]:
                yield f"{self.name}: {untold[0]} did not come, told was {gaps}"
        if not self._pending and self.next < batches.count:
            yield f"{self.name}: has come no further than {self.next} of {batches.count}"


class Shares:
    """What all workers of a group had together: at least once each."""

    def __init__(self, count: int) -> None:
        self._had = bytearray(count)
        self.twice = 0

    def event(self, number: int) -> None:
        """One of them has got an event."""
        if number >= len(self._had):
            self._had.extend(bytes(number - len(self._had) + 100_000))
        self.twice += self._had[number]
        self._had[number] = 1

    def missing(self, batches: Batches, gaps: list[Gap]) -> int:
        """How many events nobody had, and no gap told."""
        end = min(batches.count, len(self._had))
        told = {number for gap in gaps for number in batches.between(gap.after, gap.before)}
        had = self._had.count(1, 0, end) + sum(
            1 for number in told if number >= end or not self._had[number]
        )
        return batches.count - had
