"""The judge of `make soak`, on histories made by hand."""

import random
from collections import Counter

import pytest

from tests.soak.judge import Gap, History, Id, Ledger, group_offences, offences, parse_id
from tests.soak.judge import wrong_counts as wrong
from tests.soak.readers import Plan, Reader, Worker

ALL = (0, 0)


@pytest.fixture
def ledger() -> Ledger:
    """Ten events: five with the ids 1-0 to 1-4, five with 2-3 to 2-7."""
    made = Ledger()
    made.acknowledged((1, 0), (1, 4), 5)
    made.acknowledged((2, 3), (2, 7), 5)
    return made


def history(
    ledger: Ledger, numbers: list[int], *gaps: Gap, even: bool = False, begin: Id = ALL
) -> History:
    received = [(ledger.ids[number], number) for number in numbers]
    wants = (lambda n: n % 2 == 0) if even else (lambda _: True)
    return History("reader", wants, received, list(gaps), [begin])


def found(ledger: Ledger, judged: History) -> str:
    return "\n".join(offences(judged, ledger))


def test_a_reader_that_had_everything_is_well(ledger: Ledger) -> None:
    assert not found(ledger, history(ledger, list(range(10))))


def test_what_a_gap_told_is_not_missing(ledger: Ledger) -> None:
    gap = Gap("trimmed", (1, 1), (2, 5), 5)
    assert not found(ledger, history(ledger, [0, 1, 7, 8, 9], gap))


def test_what_came_before_the_beginning_is_not_missing(ledger: Ledger) -> None:
    assert not found(ledger, history(ledger, [8, 9], begin=(2, 5)))


def test_what_the_filter_rejects_is_not_missing_and_must_not_come(ledger: Ledger) -> None:
    assert not found(ledger, history(ledger, [0, 2, 4, 6, 8], even=True))
    assert "though the filter rejects it" in found(
        ledger, history(ledger, [0, 1, 2, 4, 6, 8], even=True)
    )


def test_missing_events_are_found(ledger: Ledger) -> None:
    told = found(ledger, history(ledger, [0, 1, 2, 4, 5, 6, 7, 9]))
    assert told == "2 neither received nor told as missing: 3 (1-3), 8 (2-6)"


def test_events_that_come_twice_or_out_of_order_are_found(ledger: Ledger) -> None:
    assert "twice or out of order" in found(ledger, history(ledger, [0, 1, 1, *range(2, 10)]))
    assert "twice or out of order" in found(ledger, history(ledger, [1, 0, *range(2, 10)]))


def test_an_event_under_another_s_id_is_found(ledger: Ledger) -> None:
    judged = history(ledger, list(range(10)))
    judged.received[3] = ((1, 3), 4)
    assert "which is not its own" in found(ledger, judged)


def test_a_gap_that_counts_wrong_is_found(ledger: Ledger) -> None:
    assert "counts 4 where 5" in found(
        ledger, history(ledger, [0, 1, 7, 8, 9], Gap("trimmed", (1, 1), (2, 5), 4))
    )
    assert not list(wrong([Gap("trimmed", (1, 1), (2, 5), None)], ledger))


def test_a_reader_without_a_hello_is_found(ledger: Ledger) -> None:
    judged = history(ledger, [])
    judged.begin.clear()
    assert found(ledger, judged) == "never had a hello"


def test_a_group_s_events_may_come_twice_but_must_come(ledger: Ledger) -> None:
    received = Counter([*range(9), 3, 4])
    assert list(group_offences(received, [Gap("trimmed", (2, 6), (2, 8), 1)], ledger)) == []
    [offence] = group_offences(received, [], ledger)
    assert "9 (2-7)" in offence


def test_a_batch_whose_ids_do_not_follow_each_other_is_no_batch(ledger: Ledger) -> None:
    with pytest.raises(AssertionError):
        ledger.acknowledged((3, 0), (3, 3), 3)
    with pytest.raises(AssertionError):
        ledger.acknowledged((1, 9), (1, 9), 1)


EVENT = b'{"id":"5-1","source":"a","message":"m","metadata":{"n":7}}'
GAP = b'{"reason":"trimmed","after":"1-0","before":"4-0","count":3}'


@pytest.mark.parametrize("ndjson", [False, True])
def test_readers_understand_both_formats(ndjson: bool) -> None:
    reader = Reader("r", Plan({}, lambda _: True, ndjson), [], random.Random(1))
    frames = [
        b'id: 1-0\nevent: hello\ndata: {"version":"x"}',
        b"id: 3-9\nevent: gap\ndata: " + GAP,
        b"id: 5-1\ndata: " + EVENT,
        b":",
        b'id: 6-0\nevent: progress\ndata: {"id":"6-0"}',
    ]
    lines = [
        b'{"event":"hello","id":"1-0","version":"x"}',
        b'{"event":"gap","id":"3-9",' + GAP[1:],
        EVENT,
        b'{"event":"heartbeat"}',
        b'{"event":"progress","id":"6-0"}',
    ]
    for each in lines if ndjson else frames:
        reader.take(each)
    assert reader.history.begin == [(1, 0)]
    assert reader.history.gaps == [Gap("trimmed", (1, 0), (4, 0), 3)]
    assert reader.history.received == [((5, 1), 7)]
    assert reader.at == parse_id("6-0")


def test_a_worker_has_no_position_of_its_own() -> None:
    worker = Worker("w", Plan({}, lambda _: True), [], random.Random(1))
    worker.take(b"id: 5-1\ndata: " + EVENT)
    assert worker.received == Counter([7])
    assert worker.cursor == ""
