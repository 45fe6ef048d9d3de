from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logpipe.continuity import NO_STREAM, Bounds, Cursor, Gap, gap_after
from logpipe.ids import START, StreamId


def at(ms: int, seq: int = 0) -> StreamId:
    return StreamId(ms, seq)


def kept(first: int, last: int, *, added: int | None, deleted: StreamId = START) -> Bounds:
    """A stream that keeps one entry for each millisecond from `first` to `last`."""
    return Bounds(at(first), at(last), added, last - first + 1, deleted)


class Written(NamedTuple):
    life: int
    position: int
    id: StreamId


class ModelStream:
    """A stream as Redis keeps it. A flush begins another life, whose ids no other life has had."""

    def __init__(self) -> None:
        self.history: list[Written] = []
        self.life = 0
        self._begin(at(1000))

    def _begin(self, last: StreamId) -> None:
        self.kept: list[Written] = []
        self.added = 0
        self._last = last

    def add(self, step: int) -> None:
        seq = self.life * 1000
        if step == 0 and self.added:
            seq = self._last.seq + 1
        self._last = StreamId(self._last.ms + (step if self.added else max(step, 1)), seq)
        self.added += 1
        written = Written(self.life, self.added, self._last)
        self.history.append(written)
        self.kept.append(written)

    def trim(self, count: int) -> None:
        del self.kept[:count]

    def flush(self, skew: int) -> None:
        self.life += 1
        self._begin(at(self._last.ms + skew))

    def bounds(self, *, counts_entries: bool) -> Bounds:
        if not self.added:
            return NO_STREAM
        first = self.kept[0].id if self.kept else None
        added = self.added if counts_entries else None
        return Bounds(first, self._last, added, len(self.kept), START)


def run(operations: list[tuple[str, int]]) -> ModelStream:
    stream = ModelStream()
    for name, amount in operations:
        getattr(stream, name)(amount)
    return stream


adds = st.tuples(st.just("add"), st.integers(0, 3))
trims = st.tuples(st.just("trim"), st.integers(1, 4))
flushes = st.tuples(st.just("flush"), st.integers(-30, 30))
lives = st.lists(st.one_of(adds, adds, adds, trims), max_size=20)
added = st.just([("add", 1)])
one_life = st.builds(run, lives)
many_lives = st.builds(
    lambda *parts: run([operation for part in parts for operation in part]),
    added,
    st.lists(st.one_of(adds, adds, trims, flushes), max_size=20),
    flushes.map(lambda flush: [flush]),
    lives,
    added,
)


@settings(max_examples=200)
@given(
    one_life,
    st.data(),
    st.booleans(),
    st.booleans(),
)
def test_a_gap_is_told_exactly_when_entries_behind_the_cursor_are_missing(
    stream: ModelStream, data: st.DataObject, knows_position: bool, counts_entries: bool
) -> None:
    gone = stream.history[: len(stream.history) - len(stream.kept)]
    read = data.draw(st.sampled_from([Written(0, 0, START), *gone]))
    known = knows_position or read.id == START
    bounds = stream.bounds(counts_entries=counts_entries)
    gap = gap_after(Cursor(read.id, read.position if knows_position else None), bounds)

    if not stream.kept:
        assert gap is None
        return
    first = stream.kept[0]
    missing = first.position - read.position - 1
    if missing:
        count = missing if known and counts_entries else None
        assert gap == Gap("trimmed", read.id, first.id, count, first.id.before())
    elif known and counts_entries:
        assert gap is None
    else:  # rather one word too many than silence
        assert gap in (None, Gap("trimmed", read.id, first.id, None, first.id.before()))


@settings(max_examples=200)
@given(
    many_lives,
    st.data(),
    st.booleans(),
    st.booleans(),
)
def test_a_reader_of_a_stream_that_was_flushed_is_never_left_in_silence(
    stream: ModelStream, data: st.DataObject, knows_position: bool, counts_entries: bool
) -> None:
    before = [written for written in stream.history if written.life != stream.life]
    read = data.draw(st.sampled_from(before))
    bounds = stream.bounds(counts_entries=counts_entries)
    # Positions of two lives cannot be told apart once the second was trimmed.
    position = read.position if knows_position and not bounds.trimmed else None
    gap = gap_after(Cursor(read.id, position), bounds)

    assert gap is not None
    assert gap.count is None
    assert (gap.after, gap.before) == (read.id, stream.kept[0].id)
    assert gap.resume == stream.kept[0].id.before()
    if read.id > stream.kept[0].id or not bounds.trimmed:
        assert gap.reason == "reset"


def test_a_reader_that_was_told_a_gap_is_not_told_it_again() -> None:
    bounds = kept(50, 60, added=60)
    gap = gap_after(Cursor(at(10), 10), bounds)
    assert gap is not None
    assert gap.count == 39
    assert gap_after(Cursor(gap.resume), bounds) is None


def test_a_reader_of_everything_is_told_nothing() -> None:
    assert gap_after(Cursor(at(60)), kept(50, 60, added=60)) is None


def test_a_reader_of_everything_is_told_nothing_though_all_was_trimmed() -> None:
    assert gap_after(Cursor(at(60)), Bounds(None, at(60), 60, 0, START)) is None


def test_an_empty_stream_has_no_other_side_yet() -> None:
    assert gap_after(Cursor(at(10), 10), NO_STREAM) is None
    assert gap_after(Cursor(at(10), 10), Bounds(None, at(60), 60, 0, START)) is None


def test_a_reader_right_before_the_first_entry_is_told_nothing() -> None:
    assert gap_after(Cursor(at(50).before()), kept(50, 60, added=60)) is None


def test_a_new_reader_of_a_whole_stream_is_told_nothing() -> None:
    assert gap_after(Cursor(START), kept(50, 60, added=11)) is None


def test_a_new_reader_of_a_trimmed_stream_is_told_how_much_has_gone() -> None:
    gap = gap_after(Cursor(START), kept(50, 60, added=60))
    assert gap == Gap("trimmed", START, at(50), 49, at(50).before())


def test_a_cursor_below_a_stream_that_never_lost_an_entry_is_of_another_stream() -> None:
    gap = gap_after(Cursor(at(10), 3), kept(50, 60, added=11))
    assert gap == Gap("reset", at(10), at(50), None, at(50).before())


def test_a_reader_ahead_of_the_stream_is_told_reset() -> None:
    gap = gap_after(Cursor(at(999), 999), kept(50, 60, added=60))
    assert gap == Gap("reset", at(999), at(50), None, at(50).before())


def test_an_id_between_the_entries_that_the_stream_never_had_is_told_reset() -> None:
    gap = gap_after(Cursor(at(55, 3)), kept(50, 60, added=60))
    assert gap == Gap("reset", at(55, 3), at(50), None, at(50).before())


def test_a_cursor_whose_entry_may_have_been_deleted_by_hand_is_told_nothing() -> None:
    assert gap_after(Cursor(at(55)), kept(50, 60, added=60, deleted=at(55))) is None
    assert gap_after(Cursor(at(55)), kept(50, 60, added=60, deleted=at(58))) is None


def test_a_cursor_above_all_that_was_deleted_by_hand_is_told_reset() -> None:
    gap = gap_after(Cursor(at(55, 1)), kept(50, 60, added=60, deleted=at(54)))
    assert gap is not None
    assert gap.reason == "reset"


def test_deletions_by_hand_make_the_count_unknown_but_not_silent() -> None:
    gap = gap_after(Cursor(at(10), 10), kept(50, 60, added=60, deleted=at(55)))
    assert gap == Gap("trimmed", at(10), at(50), None, at(50).before())


def test_a_position_beyond_what_has_gone_is_of_another_stream() -> None:
    gap = gap_after(Cursor(at(10), 5_000), kept(50, 60, added=60))
    assert gap is not None
    assert gap.reason == "reset"
    assert gap.count is None


def test_a_redis_that_does_not_count_is_told_of_without_a_number() -> None:
    gap = gap_after(Cursor(at(10), 10), kept(50, 60, added=None))
    assert gap == Gap("trimmed", at(10), at(50), None, at(50).before())


@pytest.mark.parametrize(
    ("bounds", "trimmed", "gone"),
    [
        (NO_STREAM, False, 0),
        (kept(50, 60, added=11), False, 0),
        (kept(50, 60, added=60), True, 49),
        (kept(50, 60, added=None), True, None),
        (kept(50, 60, added=60, deleted=at(52)), True, None),
    ],
)
def test_bounds_say_whether_and_how_many_entries_have_gone(
    bounds: Bounds, trimmed: bool, gone: int | None
) -> None:
    assert bounds.trimmed is trimmed
    assert bounds.position_before_first == gone


@pytest.mark.parametrize(
    ("witness", "spans"),
    [
        (START, True),
        (at(49), False),
        (at(50).before(), False),
        (at(50), True),
        (at(55), True),
        (at(60), True),
        (at(60).after(), False),
    ],
)
def test_a_stream_spans_what_lies_between_its_oldest_and_its_last_id(
    witness: StreamId, spans: bool
) -> None:
    assert kept(50, 60, added=60).spans(witness) is spans


def test_a_stream_without_entries_may_be_any() -> None:
    assert Bounds(None, at(60), 60, 0, START).spans(at(70))
    assert NO_STREAM.spans(at(70))


def test_an_unproven_cursor_has_no_position_and_no_beginning() -> None:
    assert Cursor(at(5), 3).unproven() == Cursor(at(5))
    assert Cursor(START.after(), 3).unproven() == Cursor(START.after())
    assert Cursor(START, 0).unproven() == Cursor(StreamId(0, 1))


def test_an_unproven_beginning_is_told_of_a_whole_stream() -> None:
    gap = gap_after(Cursor(START).unproven(), kept(50, 60, added=11))
    assert gap == Gap("reset", START.after(), at(50), None, at(50).before())
