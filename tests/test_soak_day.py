"""The judge of `make soak-day`, on courses made by hand."""

import pytest

from tests.soak.course import Batches, Course, Shares
from tests.soak.judge import Gap
from tests.soak.measures import memory_slope


@pytest.fixture
def batches() -> Batches:
    """Ten events: five with the ids 1-0 to 1-4, five with 2-3 to 2-7."""
    made = Batches()
    made.acknowledged((1, 0), (1, 4), 5)
    made.acknowledged((2, 3), (2, 7), 5)
    return made


IDS = [*((1, n) for n in range(5)), *((2, n) for n in range(3, 8))]


def read(course: Course, *numbers: int) -> None:
    for number in numbers:
        course.event(IDS[number], number)


def test_ids_are_mapped_to_numbers_by_their_batches(batches: Batches) -> None:
    assert [batches.upto(id_) for id_ in IDS] == [*range(1, 11)]
    assert [batches.upto(id_) for id_ in ((0, 9), (1, 9), (2, 0), (9, 0))] == [0, 5, 5, 10]
    assert batches.between((1, 1), (2, 5)) == range(2, 7)


def test_a_reader_that_had_everything_is_well(batches: Batches) -> None:
    course = Course("all")
    read(course, *range(10))
    assert not [*course.offences(batches)]


def test_a_filter_takes_every_nth(batches: Batches) -> None:
    course = Course("odd", 1, 2)
    read(course, 1, 3, 5, 7, 9)
    assert not [*course.offences(batches)]


def test_what_is_missing_or_twice_or_late_is_found(batches: Batches) -> None:
    for numbers, word in (
        ((0, 1, 3), "event 3 where 2"),
        ((0, 1, 1), "twice or out of order"),
        ((0, 1), "no further than 2 of 10"),
    ):
        course = Course("reader")
        read(course, *numbers)
        assert word in "\n".join(course.offences(batches))


def test_several_gaps_between_two_events_tell_together(batches: Batches) -> None:
    course = Course("reader")
    read(course, 0)
    course.gap(Gap("trimmed", (1, 0), (1, 3), 2))
    course.gap(Gap("trimmed", (1, 2), (2, 4), 3))
    read(course, 7, 8, 9)
    assert "6 did not come" in "\n".join(course.offences(batches))
    course.gap(Gap("trimmed", (2, 7), (2, 9), None))
    assert len([*course.offences(batches)]) == 1


def test_a_group_must_have_each_at_least_once(batches: Batches) -> None:
    shares = Shares(10)
    for number in (0, 1, 2, 3, 4, 5, 6, 7, 7):
        shares.event(number)
    assert (shares.twice, shares.missing(batches, [])) == (1, 2)
    assert shares.missing(batches, [Gap("trimmed", (2, 5), (2, 9), 2)]) == 0


def test_the_slope_is_that_of_the_samples_after_the_beginning() -> None:
    rising = [(n * 100_000, 50_000_000 + n * 200_000) for n in range(20)]
    assert memory_slope(rising, 500_000) == pytest.approx(2.0)
    assert memory_slope([(0, 1), *((n, 90_000_000) for n in range(1, 9))], 1) == 0


def test_one_step_is_no_slope_and_many_are() -> None:
    once = [(n * 100_000, 90_000_000 + 40_000_000 * (n > 8)) for n in range(40)]
    assert memory_slope(once, 0) == 0
    often = [(n * 100_000, 90_000_000 + 2_000_000 * (n // 8)) for n in range(40)]
    assert memory_slope(often, 0) == pytest.approx(2.5, abs=0.2)
