import gc
import weakref
from collections.abc import Sequence

import pytest

from logpipe import messages
from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry, read_entry
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import START, StreamId
from logpipe.messages import MAX_FILTERS, Batch, Bye, Hello, Message, Progress, Start, named


class CountingEncoder:
    media_type = "text/plain"
    heartbeat = b""

    def __init__(self) -> None:
        self.calls = 0

    def entries(self, entries: Sequence[Entry]) -> bytes:
        self.calls += 1
        return b"|".join(entry.json for entry in entries)

    def message(self, message: Message) -> bytes:
        return repr(message).encode()


def an_entry(ms: int, source: str) -> Entry:
    entry = read_entry(StreamId(ms, 0), b'{"source":"%s","message":"m"}' % source.encode())
    assert entry is not None
    return entry


@pytest.fixture
def batch() -> Batch:
    entries = [an_entry(1, "api"), an_entry(2, "web"), an_entry(3, "api")]
    return Batch(Cursor(START, 0), Cursor(StreamId(4, 0), 4), entries)


def test_a_batch_knows_its_cursors_and_its_size(batch: Batch) -> None:
    assert batch.start == Cursor(START, 0)
    assert batch.end == Cursor(StreamId(4, 0), 4)
    assert batch.size == sum(len(entry.json) for entry in batch.entries)
    assert Batch(batch.start, batch.end, []).size == 0


def test_without_a_filter_the_entries_are_the_batch_s_own(batch: Batch) -> None:
    assert batch.matching(EVERYTHING) is batch.entries
    assert batch.matching(Filter()) is batch.entries


def test_equal_filters_share_one_list(batch: Batch) -> None:
    found = batch.matching(Filter("source:api"))
    assert [entry.id.ms for entry in found] == [1, 3]
    assert batch.matching(Filter("source:api")) is found
    assert batch.matching(Filter("source:web")) is not found


def test_a_filter_that_takes_nothing_is_remembered_too(batch: Batch) -> None:
    found = batch.matching(Filter("source:nobody"))
    assert found == []
    assert batch.matching(Filter("source:nobody")) is found


def test_a_filter_that_has_no_predicate_takes_all(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Filter, "predicate", None)
    assert batch.matching(Filter("source:api")) == batch.entries


def test_a_chunk_is_encoded_once_a_format_and_filter(batch: Batch) -> None:
    encoder, other = CountingEncoder(), CountingEncoder()
    chunk = batch.chunk(encoder, Filter("source:api"))
    assert chunk == batch.entries[0].json + b"|" + batch.entries[2].json
    assert batch.chunk(encoder, Filter("source:api")) is chunk
    assert encoder.calls == 1
    assert batch.chunk(encoder, EVERYTHING) != chunk
    assert batch.chunk(other, Filter("source:api")) == chunk
    assert (encoder.calls, other.calls) == (2, 1)


def test_a_chunk_of_nothing_is_empty_and_never_encoded(batch: Batch) -> None:
    encoder = CountingEncoder()
    assert batch.chunk(encoder, Filter("source:nobody")) == b""
    assert batch.chunk(encoder, Filter("source:nobody")) == b""
    assert encoder.calls == 0


def test_chunks_that_were_forgotten_are_made_again(batch: Batch) -> None:
    encoder = CountingEncoder()
    chunk = batch.chunk(encoder, Filter("source:api"))
    batch.forget_chunks()
    assert batch.chunk(encoder, Filter("source:api")) == chunk
    assert encoder.calls == 2
    assert batch.matching(EVERYTHING) is batch.entries


def test_however_many_filters_readers_have_what_is_kept_for_them_is_bounded(batch: Batch) -> None:
    encoder = CountingEncoder()
    filters = [EVERYTHING, *(Filter(f"source:api -word{n}") for n in range(3 * MAX_FILTERS))]
    for each in filters:
        batch.chunk(encoder, each)
    assert [len(each) for each in (batch._chunks, batch._matching)] == [MAX_FILTERS] * 2
    assert encoder.calls == len(filters)
    batch.chunk(encoder, filters[-1])
    assert encoder.calls == len(filters)
    batch.chunk(encoder, EVERYTHING)
    assert encoder.calls == len(filters) + 1


def test_however_large_chunks_are_few_bytes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch.of([an_entry(1, "a" * 200)])
    monkeypatch.setattr(messages, "MAX_CHUNK_BYTES", 1000)
    filters = [Filter(f"-word{n}") for n in range(20)]
    for each in filters:
        batch.chunk(CountingEncoder(), each)
    kept = sum(map(len, batch._chunks.values()))
    assert 0 < kept == batch._chunk_bytes <= 1000


def test_lists_of_what_filters_take_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_FOUND", 10)
    batch = Batch.of([an_entry(ms, "api") for ms in range(1, 5)])
    for n in range(20):
        assert batch.matching(Filter(f"-word{n}")) == batch.entries
        assert sum(map(len, batch._matching.values())) == batch._found <= 10


def test_what_a_batch_keeps_does_not_keep_a_filter_in_use(batch: Batch) -> None:
    chosen = Filter("source:api -leaving")
    batch.chunk(CountingEncoder(), chosen)
    reference = weakref.ref(chosen)
    del chosen
    gc.collect()
    assert reference() is None


def test_what_was_kept_is_looked_up_without_compiling_the_filter(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Filter, "predicate")
    assert batch.kept(EVERYTHING) is batch.entries
    assert batch.kept(Filter("source:api")) is None
    batch.keep(Filter("source:api"), [])
    assert batch.kept(Filter("source:api")) == []


def test_a_subscription_begins_with_the_next_entry_and_catches_up() -> None:
    assert Start() == Start(resume=None, unknown=False, since=None, tail=None, on_lag="catchup")


def test_hello_names_the_ends_of_the_stream_and_moves_to_where_it_begins() -> None:
    hello = Hello(StreamId(5, 1), StreamId(2, 0), StreamId(5, 1), "broadcast", "1.0")
    assert named(hello) == (
        "hello",
        StreamId(5, 1),
        {"first_id": "2-0", "last_id": "5-1", "delivery": "broadcast", "version": "1.0"},
    )


def test_hello_before_the_search_of_a_tail_moves_to_no_id() -> None:
    name, id_, data = named(Hello(None, StreamId(2, 0), StreamId(5, 1), "broadcast", "1.0"))
    assert (name, id_) == ("hello", None)
    assert data["last_id"] == "5-1"


def test_progress_says_how_far_a_limited_search_looked_back() -> None:
    assert named(Progress(StreamId(5, 1))) == ("progress", StreamId(5, 1), {"id": "5-1"})
    assert named(Progress(StreamId(5, 1), StreamId(3, 0))) == (
        "progress",
        StreamId(5, 1),
        {"id": "5-1", "looked_back_to": "3-0"},
    )


def test_entries_that_were_found_elsewhere_are_kept_for_a_filter() -> None:
    entries = [an_entry(ms, "api") for ms in (1, 2, 3)]
    batch, chosen = Batch.of(entries), Filter("nothing")
    assert batch.kept(chosen) is None
    assert batch.kept(EVERYTHING) == entries
    batch.keep(chosen, entries[1:])
    assert batch.kept(chosen) == batch.matching(chosen) == entries[1:]


def test_hello_of_an_empty_stream_names_no_ends() -> None:
    _, id_, data = named(Hello(START, None, None, "shared", "1.0"))
    assert id_ == START
    assert data == {"first_id": None, "last_id": None, "delivery": "shared", "version": "1.0"}


@pytest.mark.parametrize("count", [None, 0, 7])
def test_a_gap_tells_what_is_missing_and_moves_behind_it(count: int | None) -> None:
    gap = Gap("trimmed", StreamId(1, 0), StreamId(9, 0), count, StreamId(9, 0).before())
    assert named(gap) == (
        "gap",
        StreamId(9, 0).before(),
        {"reason": "trimmed", "after": "1-0", "before": "9-0", "count": count},
    )


def test_progress_moves_the_cursor_to_its_id() -> None:
    assert named(Progress(StreamId(7, 2))) == ("progress", StreamId(7, 2), {"id": "7-2"})


def test_bye_says_when_to_come_back_and_leaves_the_cursor() -> None:
    data = {"reason": "closing", "retry_ms": 1500}
    assert named(Bye("closing", 1500)) == ("bye", None, data)
