"""Ids of events in partitions, positions in all of them, and where events go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from logpipe.event import Event, encode
from logpipe.ids import END, START, StreamId
from logpipe.positions import (
    MAX_PARTITIONS,
    EventId,
    Position,
    parse_event_id,
    parse_position,
    read_id,
    read_position,
)
from logpipe.stream.append import Append
from logpipe.stream.partitions import SLOTS, partition_key, partition_of, spread

halves = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))
stream_ids = st.builds(StreamId, halves, halves)
event_ids = st.builds(EventId, halves, halves, st.integers(0, MAX_PARTITIONS - 1))
few = st.builds(EventId, st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))


@given(event_ids)
def test_an_events_id_is_read_as_it_is_written(id_: EventId) -> None:
    assert parse_event_id(str(id_), MAX_PARTITIONS) == read_id(str(id_)) == id_
    assert read_id(str(id_)).__class__ is EventId


def test_an_id_can_be_shown_to_who_looks_for_an_error() -> None:
    """As what it is; of a plain id's text, with one number less, Python would raise."""
    assert repr(EventId(7, 1, 2)) == "EventId('7-1-2')"
    assert repr(Position.of([StreamId(7, 1), START])) == "Position('7-1.0-0')"


@given(st.lists(stream_ids, min_size=2, max_size=5))
def test_a_position_is_read_as_it_is_written(ids: list[StreamId]) -> None:
    position = Position.of(ids)
    assert parse_position(str(position), len(ids)) == ids
    assert str(read_id(str(position))) == str(position)
    assert StreamId(position.ms, position.seq) == max(ids) == ids[position.partition]


def test_a_position_after_an_event_is_known_by_the_events_own_id() -> None:
    position = read_position("5-0.7-0", "5-0-0")
    assert (position.event, str(position)) == (EventId(5, 0, 0), "5-0.7-0")


def test_an_id_of_one_stream_stays_what_it_is() -> None:
    assert read_id("5-1") == StreamId(5, 1)
    assert read_id("5-1").__class__ is StreamId


@given(few, few)
def test_events_have_one_order_by_time_and_then_partition(a: EventId, b: EventId) -> None:
    assert (a < b) == ((a.ms, a.seq, a.partition) < (b.ms, b.seq, b.partition))
    assert a.before() < a < a.after() or a == EventId(0, 0, 0)
    assert not a < b < a.after()
    within = StreamId(b.ms, b.seq)
    assert (b >= a) == (within >= a.least_in(b.partition))
    assert (b <= a) == (within <= a.greatest_in(b.partition)) or within == START


def test_the_first_and_the_last_id_stay_within_bounds() -> None:
    assert EventId(0, 0, 0).before().ms == 0
    assert EventId(*END, MAX_PARTITIONS - 1).after().ms == END.ms


@pytest.mark.parametrize(
    "text", ["", "5", "5-0", "5-0-2", "5-0-x", "-0-0", "5-0-\u0660", "5-0-0-0"]
)
def test_what_is_no_id_of_an_event_here_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a"):
        parse_event_id(text, 2)


@pytest.mark.parametrize("text", ["", "5-0", "5-0.6-0.7-0", "5-0.", "5.6", "5-0.x-0", "5-0,6-0"])
def test_what_is_no_position_here_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a"):
        parse_position(text, 2)


# Where events go


@pytest.mark.parametrize("count", range(2, MAX_PARTITIONS + 1))
def test_partitions_lie_evenly_over_the_slots_of_a_cluster(count: int) -> None:
    slots = [key_slot(partition_key("logs", each, count).encode()) for each in range(count)]
    assert [slot * count // SLOTS for slot in slots] == list(range(count))


sources = st.text(min_size=1, max_size=20)


@given(sources, st.text(max_size=5), st.text(max_size=5), st.integers(2, MAX_PARTITIONS))
def test_all_events_of_a_source_go_to_one_partition(
    source: str, one: str, other: str, count: int
) -> None:
    events = encode([Event(source, one), Event(source, other, "WARN", 5, {"source": one})], 1)
    assert len({partition_of(event, count) for event in events}) == 1


def test_a_sources_partition_never_changes() -> None:
    """By another one, the order of a source would be lost over an update."""
    events = encode([Event("api", ""), Event("web", ""), Event("dienst-ü", "")], 1)
    assert [partition_of(event, 4) for event in events] == [3, 1, 3]


@given(st.lists(st.sampled_from("abcdef"), max_size=30))
def test_a_request_is_split_whole_and_in_order(of: list[str]) -> None:
    events = encode([Event(source, str(n)) for n, source in enumerate(of)], 1) if of else []
    parts = spread(Append(events, "key", b"receipt"), 3)
    for partition, part in parts.items():
        assert part.events == [each for each in events if partition_of(each, 3) == partition]
        assert (part.once, part.receipt) == ("key", b"receipt")
    assert sum(len(part.events) for part in parts.values()) == len(events)
