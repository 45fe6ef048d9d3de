"""How many events came when, by level: what the page draws above its rows."""

from collections.abc import Iterable
from typing import Any, Self

from logpipe.event import LEVELS, RANK, Entry

KINDS = (*LEVELS, "other")
"""The counts of one bucket, in this order; the last is for levels of one's own."""
_OTHER = len(LEVELS)

MAX_BUCKETS = 600
STEPS_MS = (
    1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000,
    10_800_000, 43_200_000, 86_400_000,
)  # fmt: skip
"""Widths of a bucket, of which the least is taken that needs no more than `MAX_BUCKETS`."""


class Volume:
    """Counts by time (of the stream's ids) and kind of level, in buckets of `step_ms`."""

    def __init__(self, step_ms: int = STEPS_MS[0]) -> None:
        self.step_ms = step_ms
        self.counts: dict[int, list[int]] = {}

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """The volume of some entries, by the second."""
        volume = cls()
        volume.add(entries)
        return volume

    def add(self, entries: Iterable[Entry]) -> None:
        """Counts some more entries; the buckets grow wider when they become too many."""
        for entry in entries:
            bucket = entry.id.ms - entry.id.ms % self.step_ms
            counts = self.counts.get(bucket)
            if counts is None:
                counts = self.counts[bucket] = [0] * len(KINDS)
            counts[RANK.get(entry.event.level, _OTHER)] += 1
        if len(self.counts) > MAX_BUCKETS:
            self._widen()

    def _widen(self) -> None:
        span = max(self.counts) - min(self.counts)
        wide = [step for step in STEPS_MS if step > self.step_ms]
        self.step_ms = next((step for step in wide if span / step < MAX_BUCKETS), STEPS_MS[-1])
        narrow, self.counts = self.counts, {}
        for at, counts in narrow.items():
            bucket = self.counts.setdefault(at - at % self.step_ms, [0] * len(KINDS))
            for kind, count in enumerate(counts):
                bucket[kind] += count

    def rows(self) -> list[list[Any]]:
        """`[[ms, counts], …]` in order of time, as the page takes it."""
        return [[at, counts] for at, counts in sorted(self.counts.items())]
