"""How many events came when."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from logpipe.event import LEVELS
from logpipe.ids import StreamId
from logpipe.ui.volume import KINDS, MAX_BUCKETS, STEPS_MS, Volume
from tests.ui.pieces import entry

levels = st.sampled_from([*LEVELS, "AUDIT"])


def totals(rows: list[list[Any]]) -> list[int]:
    return [sum(counts[n] for _, counts in rows) for n in range(len(KINDS))]


def test_events_are_counted_by_second_and_level() -> None:
    entries = [
        entry(StreamId(5_000, 0), level="ERROR"),
        entry(StreamId(5_999, 7), level="INFO"),
        entry(StreamId(5_999, 8), level="X"),
        entry(StreamId(7_000, 0), level="INFO"),
    ]
    assert Volume.of(entries).rows() == [
        [5_000, [0, 0, 1, 0, 1, 0, 1]],
        [7_000, [0, 0, 1, 0, 0, 0, 0]],
    ]
    assert Volume.of([]).rows() == []
    assert json.dumps(Volume.of(entries).rows())


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 10**9), levels), max_size=40), max_size=40),
    st.sampled_from([1, 1_000, 50_000]),
)
def test_nothing_is_lost_when_the_buckets_grow_wider(
    batches: list[list[tuple[int, str]]], scale: int
) -> None:
    volume = Volume()
    sent: list[str] = []
    for batch in batches:
        volume.add([entry(StreamId(ms * scale // 1000, 1), level=level) for ms, level in batch])
        sent += [level for _, level in batch]
        assert totals(volume.rows()) == [
            *(sent.count(level) for level in LEVELS),
            sent.count("AUDIT"),
        ]
        assert volume.step_ms in STEPS_MS
        assert all(at % volume.step_ms == 0 for at, _ in volume.rows())
        times = [at for at, _ in volume.rows()]
        assert times == sorted(set(times))


def test_the_least_width_is_taken_that_is_enough() -> None:
    volume = Volume()
    volume.add([entry(StreamId(n * 1_000, 0)) for n in range(MAX_BUCKETS)])
    assert (volume.step_ms, len(volume.counts)) == (1_000, MAX_BUCKETS)
    volume.add([entry(StreamId(MAX_BUCKETS * 1_000, 0))])
    assert (volume.step_ms, len(volume.counts)) == (2_000, MAX_BUCKETS // 2 + 1)
    volume.add([entry(StreamId(n * 60_000, 0)) for n in range(MAX_BUCKETS)])
    assert volume.step_ms == 60_000
    assert sum(totals(volume.rows())) == 2 * MAX_BUCKETS + 1


def test_beyond_years_the_buckets_are_days() -> None:
    volume = Volume()
    for day in range(MAX_BUCKETS * 2):
        volume.add([entry(StreamId(day * 86_400_000, 0))])
    assert volume.step_ms == STEPS_MS[-1]
    assert sum(totals(volume.rows())) == MAX_BUCKETS * 2
