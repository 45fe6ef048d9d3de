import pytest

from logpipe.collector.ingest import Bounds
from logpipe.collector.receivers.packing import appends_of, pack
from logpipe.event import Event
from logpipe.problems import Problem
from tests.streams import once

EVENT = Event("a", "b")
SMALL = 65_536
BOUNDS = Bounds(SMALL, keys=1_000, events=100)


def test_each_item_has_its_outcome_in_its_place() -> None:
    problem = Problem(400, "no")
    packed = pack([EVENT, problem, EVENT], BOUNDS, SMALL, 7)
    assert packed.problems == [None, problem, None]
    assert (
        packed.events
        == [b'{"source":"a","message":"b","level":"INFO","ts_unix_ms":7,"metadata":{}}'] * 2
    )


@pytest.mark.parametrize(("count", "taken"), [(100, True), (101, False)])
def test_a_request_has_a_bounded_number_of_events(count: int, taken: bool) -> None:
    if taken:
        assert len(pack([EVENT] * count, BOUNDS, SMALL, 0).events) == count
    else:
        with pytest.raises(Problem, match="may have 100") as caught:
            pack([EVENT] * count, BOUNDS, SMALL, 0)
        assert caught.value.status == 413


def test_what_many_events_share_is_bounded_by_their_sum() -> None:
    shared = Event("a", "b", metadata={"k": "x" * 1024 * 1024})
    with pytest.raises(Problem, match="together") as caught:
        pack((shared for _ in range(100_000)), BOUNDS._replace(events=100_000), SMALL, 0)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "text", ["\n" * 2000, "é" * 1000, "🎉" * 500, '"\\' * 900, "\x00" * 500, "a" * 700 + "\n" * 700]
)
def test_a_cut_event_fits_whatever_is_escaped_in_it(text: str) -> None:
    (event,) = pack([Event("a", text)], BOUNDS._replace(bytes=1000), SMALL, 0).events
    assert 980 < len(event) <= 1000


def test_runs_without_a_key_are_appended_together() -> None:
    events = [b"%d" % number for number in range(6)]
    x, y, z, k = map(once, "xyzk")
    keys = [None, None, x, y, None, z]
    found = [(list(each.events), each.once) for each in appends_of(events, keys, None)]
    assert found == [
        ([b"0", b"1"], None), ([b"2"], x), ([b"3"], y), ([b"4"], None), ([b"5"], z),
    ]  # fmt: skip
    keyed = [each.once for each in appends_of(events, keys, k)]
    assert keyed == [once("k\n0"), x, y, once("k\n1"), z]
    (together,) = appends_of(events, (), k)
    assert (list(together.events), together.once) == (events, k)
