import itertools
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from logpipe.continuity import Cursor
from logpipe.event import Entry, StoredEvent
from logpipe.fanout.streaming import NDJSON, SSE
from logpipe.fanout.window import KEPT_CHUNKS, Window, cut, rest_of
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import START, StreamId
from logpipe.messages import Batch

MAX_ENTRIES = 12
MAX_BYTES = 900


def an_id(ms: int) -> StreamId:
    return StreamId(ms, 0)


def an_entry(ms: int, size: int = 10) -> Entry:
    return Entry(an_id(ms), b"x" * size, StoredEvent())


class Held(NamedTuple):
    """The model's batch: ids between two ids, the first exclusive."""

    start: StreamId
    end: StreamId
    ids: tuple[StreamId, ...]
    size: int


class WindowMachine(RuleBasedStateMachine):
    """A window against a list of all batches that it ever had since its last restart."""

    @initialize()
    def begin(self) -> None:
        self.window = Window(MAX_ENTRIES, MAX_BYTES)
        self.now = 0
        self.restarts = 0
        self.batches: list[Held] = []
        self.batch_of: dict[int, Batch] = {}
        self.begins_at = 0
        self.end = START

    def _next_ms(self, step: int) -> int:
        self.now += step
        return self.now

    @rule(
        sizes=st.lists(st.integers(1, 120), max_size=8),
        steps=st.integers(1, 3),
        unreadable=st.integers(0, 2),
    )
    def append(self, sizes: list[int], steps: int, unreadable: int) -> None:
        start = self.window.end
        entries = [an_entry(self._next_ms(steps), size) for size in sizes]
        end = entries[-1].id if entries else start.id
        if unreadable or not entries:
            end = an_id(self._next_ms(1))
        batch = Batch(start, Cursor(end), entries)
        self.batch_of[self.window.next_number] = batch
        self.window.append(batch)
        ids = tuple(entry.id for entry in entries)
        self.batches.append(Held(start.id, end, ids, batch.weight))
        self.end = end

    @rule(back=st.integers(-5, 5))
    def restart(self, back: int) -> None:
        old = self.window.next_number
        self.now = max(1, self.now + back)
        self.end = an_id(self.now)
        self.window.restart(Cursor(self.end, 7))
        assert self.window.end == Cursor(self.end, 7)
        assert self.window.first_number > old  # who had read all notices, too
        self.batches.clear()
        self.batch_of.clear()
        self.begins_at = self.window.first_number

    def _held(self) -> list[Held]:
        """The newest batches that fit the bounds."""
        held: list[Held] = []
        for batch in reversed(self.batches):
            more = [batch, *held]
            if (
                sum(len(each.ids) for each in more) > MAX_ENTRIES
                or sum(each.size for each in more) > MAX_BYTES
                or len(more) > MAX_ENTRIES
            ):
                break
            held = more
        return held

    @invariant()
    def it_holds_the_newest_batches_that_fit(self) -> None:
        held = self._held()
        assert self.window.entries == sum(len(batch.ids) for batch in held)
        assert self.window.bytes == sum(batch.size for batch in held)
        assert self.window.next_number == self.begins_at + len(self.batches)
        assert self.window.first_number == self.window.next_number - len(held)
        assert self.window.end.id == self.end
        newest = self.window.newest
        assert newest is (self.batch_of[self.window.next_number - 1] if held else None)

    @invariant()
    def a_number_gives_its_batch_while_it_is_held(self) -> None:
        for number in range(self.window.next_number + 3):
            held = self.window.first_number <= number < self.window.next_number
            assert self.window.get(number) is (self.batch_of[number] if held else None)

    @invariant()
    def an_id_is_located_before_what_follows_it(self) -> None:
        held = self._held()
        for ms in range(self.now + 3):
            for id_ in (an_id(ms), StreamId(ms, 5)):
                self._check_place(id_, held)

    def _is_unknown(self, id_: StreamId, first: Held) -> bool:
        """Whether an id lies before all that a window has seen which began with nothing."""
        seen = (first.ids or (first.end,))[0]
        return first.start == START and START < id_ < seen.before()

    def _check_place(self, id_: StreamId, held: list[Held]) -> None:
        number = self.window.locate(id_)
        if id_ == self.end:
            assert number == self.window.next_number
        elif not held or not held[0].start <= id_ < self.end or self._is_unknown(id_, held[0]):
            assert number is None
        else:
            assert number is not None
            batch = held[number - self.window.first_number]
            assert batch.start <= id_ < batch.end
        known = {held[0].start if held else self.end, self.end}
        for batch in held:
            known |= {batch.start, *batch.ids}
        assert self.window.holds(id_) is (id_ in known)


WindowMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestWindow = WindowMachine.TestCase

sizes_of_entries = st.lists(st.integers(1, 60), max_size=30)


@given(sizes_of_entries, st.integers(1, 100), st.integers(0, 3), st.booleans())
def test_cutting_loses_nothing_and_keeps_to_the_size(
    sizes: list[int], max_bytes: int, unreadable: int, positioned: bool
) -> None:
    entries = [an_entry(ms, size) for ms, size in enumerate(sizes, 1)]
    start = Cursor(START, 40 if positioned else None)
    position = 40 + len(entries) + unreadable if positioned else None
    last = an_id(len(sizes) + unreadable)
    batches = cut(start, Cursor(last, position), entries, max_bytes)

    assert [entry for batch in batches for entry in batch.entries] == entries
    assert batches[0].start == start
    assert batches[-1].end == Cursor(last, position)
    for before, after in itertools.pairwise(batches):
        assert before.end == after.start
        assert before.end.id == before.entries[-1].id
        # The next entry did not fit.
        assert before.size + len(after.entries[0].json) > max_bytes
    for batch in batches:
        assert batch.size <= max_bytes or len(batch.entries) == 1
        if batch.end.position is not None and batch is not batches[-1]:
            read = sum(entry.id <= batch.end.id for entry in entries)
            assert batch.end.position == 40 + read


def test_positions_within_a_cut_are_not_guessed_where_entries_hold_no_event() -> None:
    entries = [an_entry(1), an_entry(4), an_entry(5)]
    first, *_ = cut(Cursor(START, 0), Cursor(an_id(5), 5), entries, 10)
    assert first.end == Cursor(an_id(1), None)


@given(sizes_of_entries, st.integers(0, 40))
def test_the_rest_of_a_batch_is_what_follows_the_id(sizes: list[int], ms: int) -> None:
    entries = [an_entry(2 * n, size) for n, size in enumerate(sizes, 1)]
    batch = Batch(Cursor(START, 0), Cursor(an_id(100), 50), entries)
    rest = rest_of(batch, an_id(ms))
    assert rest.entries == [entry for entry in entries if entry.id > an_id(ms)]
    assert rest.end == batch.end
    assert rest.start.id == an_id(ms)


def test_a_reader_at_a_batch_s_start_shares_the_batch_itself() -> None:
    batch = Batch(Cursor(an_id(3), 3), Cursor(an_id(5), 5), [an_entry(4), an_entry(5)])
    assert rest_of(batch, an_id(3)) is batch
    assert rest_of(batch, an_id(2)) is batch


def test_entries_that_hold_no_event_do_not_pile_up_for_ever() -> None:
    window = Window(5)
    for ms in range(1, 1000):
        window.append(Batch(window.end, Cursor(an_id(ms)), []))
    assert window.next_number - window.first_number == 5
    assert window.end.id == an_id(999)


def test_a_batch_larger_than_the_window_leaves_it_empty_and_numbered_on() -> None:
    window = Window(3)
    window.append(Batch(window.end, Cursor(an_id(9)), [an_entry(ms) for ms in range(1, 10)]))
    assert (window.entries, window.bytes, window.newest) == (0, 0, None)
    assert window.first_number == window.next_number == 1
    assert window.locate(an_id(9)) == 1
    assert window.locate(an_id(5)) is None


def test_only_the_newest_batches_keep_their_chunks() -> None:
    window = Window(10_000)
    chosen = EVERYTHING
    batches = []
    for ms in range(1, KEPT_CHUNKS + 10):
        batch = Batch(window.end, Cursor(an_id(ms)), [an_entry(ms)])
        batch.chunk(SSE, chosen)
        batches.append(batch)
        window.append(batch)
    kept = [bool(batch._chunks) for batch in batches]
    assert kept == [False] * 9 + [True] * KEPT_CHUNKS
    assert batches[0].chunk(SSE, chosen) == batches[0].chunk(SSE, chosen) != b""


def test_readers_behind_share_chunks_of_few_batches() -> None:
    window = Window(10_000)
    batches = [Batch(Cursor(an_id(ms)), Cursor(an_id(ms + 1)), [an_entry(ms)]) for ms in range(300)]
    for batch in batches:
        window.append(batch)
    for batch in batches:
        batch.chunk(SSE, EVERYTHING)
        batch.chunk(SSE, Filter("-nothing"))
        assert sum(bool(each._chunks or each._matching) for each in batches) <= KEPT_CHUNKS
    assert batches[-1]._chunks


def test_a_batch_that_was_dropped_is_not_held() -> None:
    window = Window(3)
    batches = [Batch(Cursor(an_id(ms)), Cursor(an_id(ms + 1)), [an_entry(ms)]) for ms in range(10)]
    for batch in batches:
        window.append(batch)
        batch.chunk(SSE, EVERYTHING)
    batches[0].chunk(NDJSON, EVERYTHING)
    assert list(window._keepers._batches) == batches[-3:]
    window.restart(Cursor(an_id(20)))
    batches[-1].chunk(NDJSON, EVERYTHING)
    assert not window._keepers._batches
