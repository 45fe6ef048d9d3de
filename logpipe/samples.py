"""The metrics of a process as of one moment, and what two of them say of the time between."""

import itertools
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from prometheus_client.parser import text_string_to_metric_families

STARTED = "logpipe_process_start_time_seconds"

Labels = frozenset[tuple[str, str]]
Places = Mapping[str, Mapping[Labels, int]]
"""By name and labels, where the number of a series stands in a sample."""

MAX_PLACES = 64
"""Sets of series that are remembered for samples to come: each process has one, until it gets a
series more."""


class Point(NamedTuple):
    """A value at a time (monotonic seconds); None where it is not known."""

    at: float
    value: float | None


class Sample(NamedTuple):
    """What one exposition said, at a time (monotonic seconds): `numbers`, and which of them is the
    value of which series, by the metric's name and the labels."""

    at: float
    series: Mapping[str, Mapping[Labels, int]]
    numbers: Sequence[float]

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the series that carry these labels; None where there is none, or no number."""
        wanted = labels.items()
        series = self.series.get(name, {})
        found = [self.numbers[place] for carried, place in series.items() if wanted <= carried]
        total = math.fsum(found) if found else math.nan
        return None if math.isnan(total) else total

    def by(self, name: str, label: str) -> dict[str, float]:
        """The series of a metric by the value of one label; those without a number are left out."""
        series = self.series.get(name, {}).items()
        found = {dict(k)[label]: self.numbers[place] for k, place in series if label in dict(k)}
        return {named: value for named, value in found.items() if not math.isnan(value)}

    def sharing(self, other: Self) -> Self:
        """This sample, with the other's names and labels where they are the same: of the fifty
        kilobytes that a sample of one process takes, that is all but two."""
        return self._replace(series=other.series) if self.series == other.series else self


def read_sample(exposition: str, at: float) -> Sample:
    """A sample of Prometheus' text format. Raises ValueError for what is none."""
    series: dict[str, dict[Labels, int]] = {}
    numbers = array("d")
    try:
        for family in text_string_to_metric_families(exposition):
            for name, labels, value, *_ in family.samples:
                series.setdefault(name, {})[frozenset(labels.items())] = len(numbers)
                numbers.append(value)
    except LookupError as error:  # what the parser does with some of what it cannot read
        raise ValueError("not understood") from error
    return Sample(at, series, numbers)


def increase(before: Sample, after: Sample, name: str, **labels: str) -> float | None:
    """By how much a counter grew; None where that cannot be told: it is missing, or the process is
    not the one it was before (a restart, or another replica that answers at the same address)."""
    started, now = before.value(STARTED), after.value(STARTED)
    value = after.value(name, **labels)
    if started != now or value is None:
        return None
    grown = value - (before.value(name, **labels) or 0)  # a label that is new began at zero
    return grown if grown >= 0 else None


def rate(name: str, **labels: str) -> Callable[[Sample, Sample], float | None]:
    """How much a counter grows a second, as a function of two samples."""

    def between(before: Sample, after: Sample) -> float | None:
        grown = increase(before, after, name, **labels)
        seconds = after.at - before.at
        return None if grown is None or seconds <= 0 else grown / seconds

    return between


def quantile(q: float, name: str) -> Callable[[Sample, Sample], float | None]:
    """A quantile of what a histogram counted between two samples; None where it counted nothing."""

    def between(before: Sample, after: Sample) -> float | None:
        bounds = after.by(f"{name}_bucket", "le")
        grown = {le: increase(before, after, f"{name}_bucket", le=le) for le in bounds}
        counts = [(float(le), count) for le, count in grown.items() if count is not None]
        return quantile_of(q, sorted(counts))

    return between


def quantile_of(q: float, buckets: Sequence[tuple[float, float]]) -> float | None:
    """A quantile from cumulative buckets (upper bound, count), ascending, the last one +Inf.

    As Prometheus' `histogram_quantile`: linear within a bucket, from 0 in the first; what lies
    above the last finite bound is told as that bound.
    """
    if not buckets or not buckets[-1][1]:
        return None
    rank = q * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            return (
                low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
            )
        low, below = (low if math.isinf(bound) else bound), count
    return low


def levels(samples: Sequence[Sample], name: str, **labels: str) -> list[Point]:
    """A gauge over time."""
    return [Point(sample.at, sample.value(name, **labels)) for sample in samples]


def changes(
    samples: Sequence[Sample], between: Callable[[Sample, Sample], float | None]
) -> list[Point]:
    """What each sample and the one before say, over time."""
    return [
        Point(after.at, between(before, after)) for before, after in itertools.pairwise(samples)
    ]


def runs(points: Sequence[Point]) -> Iterator[list[tuple[float, float]]]:
    """The parts of a curve that have no hole in them."""
    for known, part in itertools.groupby(points, lambda point: point.value is not None):
        if known:
            yield [(at, value) for at, value in part if value is not None]
