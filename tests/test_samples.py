"""What two samples of a process say of the time between."""

import gc
import math
import tracemalloc

import pytest

from logpipe.metrics import Metrics
from logpipe.samples import (
    STARTED,
    Point,
    Sample,
    changes,
    increase,
    levels,
    quantile,
    quantile_of,
    rate,
    read_sample,
    runs,
)

EXPOSITION = """
# HELP in_total Events.
# TYPE in_total counter
in_total{outcome="accepted"} 10
in_total{outcome="rejected"} 2
# TYPE lag gauge
lag NaN
# TYPE depth gauge
depth{group="a \\"b\\""} 3
depth{group="c"} NaN
"""


def sample(at: float, text: str, started: float = 1.0) -> Sample:
    return read_sample(f"{STARTED} {started}\n{text}\n", at)


def test_a_sample_is_read_by_name_and_labels() -> None:
    found = read_sample(EXPOSITION, 5.0)
    assert found.at == 5.0
    assert found.value("in_total") == 12
    assert found.value("in_total", outcome="rejected") == 2
    assert found.value("in_total", outcome="other") is None
    assert found.value("nothing") is None
    assert found.value("lag") is None
    assert found.by("depth", "group") == {'a "b"': 3}
    assert found.by("depth", "other") == {}


def test_a_page_open_for_long_keeps_samples_of_its_processes_in_little_memory() -> None:
    exposition = Metrics().exposition().decode()
    first = read_sample(exposition, 0.0)
    tracemalloc.start()
    try:
        kept = [read_sample(exposition, float(at)).sharing(first) for at in range(20)]
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < len(kept) * 4_096


def test_a_series_more_makes_no_other_sample_s_numbers_wrong() -> None:
    samples = [sample(0, "n 1"), sample(1, 'm{a="b"} 5\nn 2'), sample(2, "n 3")]
    assert [each.value("n") for each in samples] == [1, 2, 3]
    assert [each.value("m") for each in samples] == [None, 5, None]


@pytest.mark.parametrize("text", ["<html>", "{", "a b c d", 'a{b="x", ="y"} 1'])
def test_what_is_no_exposition_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_sample(text, 0.0)


def test_a_rate_is_the_difference_over_the_time() -> None:
    samples = [sample(0, "n 10"), sample(2, "n 14"), sample(2, "n 15"), sample(12, "n 15")]
    assert changes(samples, rate("n")) == [Point(2, 2.0), Point(2, None), Point(12, 0.0)]
    assert changes(samples[:1], rate("n")) == []
    assert changes(samples[:2], rate("missing")) == [Point(2, None)]


def test_a_restart_or_another_replica_makes_a_hole_and_no_rate() -> None:
    """Counters that begin again, or are those of another process, would make rates of nothing."""
    before = sample(0, "n 10")
    assert increase(before, sample(2, "n 500", started=2.0), "n") is None
    assert increase(before, sample(2, "n 4"), "n") is None
    assert increase(before, sample(2, "n 10"), "n") == 0


def test_a_label_that_is_new_began_at_zero() -> None:
    before, after = sample(0, 'n{a="1"} 5'), sample(2, 'n{a="1"} 5\nn{a="2"} 7')
    assert increase(before, after, "n", a="2") == 7


def test_quantiles_lie_within_their_bucket() -> None:
    buckets = [(0.001, 0.0), (0.01, 50.0), (0.1, 100.0), (math.inf, 100.0)]
    assert quantile_of(0.5, buckets) == pytest.approx(0.01)
    assert quantile_of(0.25, buckets) == pytest.approx(0.0055)
    assert quantile_of(0.75, buckets) == pytest.approx(0.055)
    assert quantile_of(1.0, buckets) == pytest.approx(0.1)
    assert quantile_of(0.5, [(0.001, 4.0), (math.inf, 4.0)]) == pytest.approx(0.0005)


def test_above_the_last_bound_a_quantile_is_that_bound() -> None:
    assert quantile_of(0.99, [(1.0, 5.0), (2.0, 5.0), (math.inf, 10.0)]) == 2.0


@pytest.mark.parametrize("buckets", [[], [(1.0, 0.0), (math.inf, 0.0)]])
def test_of_nothing_there_is_no_quantile(buckets: list[tuple[float, float]]) -> None:
    assert quantile_of(0.5, buckets) is None


def test_a_quantile_between_samples_is_of_what_came_in_between() -> None:
    """Else an hour of quick appends would hide a minute of slow ones."""
    buckets = 'h_bucket{{le="0.1"}} {}\nh_bucket{{le="1.0"}} {}\nh_bucket{{le="+Inf"}} {}'
    quick = sample(0, buckets.format(1000, 1000, 1000))
    slow = sample(2, buckets.format(1000, 1010, 1010))
    assert quantile(0.5, "h")(quick, slow) == pytest.approx(0.55)
    assert quantile(0.5, "h")(slow, slow._replace(at=4)) is None
    assert quantile(0.5, "missing")(quick, slow) is None


def test_holes_part_a_curve() -> None:
    points = levels([sample(0, "g 1"), sample(2, "g NaN"), sample(4, "g 2"), sample(6, "g 3")], "g")
    assert list(runs(points)) == [[(0, 1.0)], [(4, 2.0), (6, 3.0)]]
