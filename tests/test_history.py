import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry, read_entry
from logpipe.fanout import history as history_module
from logpipe.fanout.history import before, before_last, history
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import END, START, StreamId
from logpipe.stream import Append, Stream
from tests.servers import Valkey
from tests.streams import NAME, add, address_of, plain, stream_at


@pytest.fixture
async def stream(valkey: Valkey) -> AsyncIterator[Stream]:
    async with stream_at(address_of(valkey)) as made:
        yield made


def an_event(source: str) -> bytes:
    return b'{"source":"%b","message":"m"}' % source.encode()


class Listed(Stream):
    """A stream that is a list: `None` stands for an entry that holds no event."""

    def __init__(self, rows: list[tuple[StreamId, Entry | None]]) -> None:
        self.rows = rows
        self.reads = 0

    async def range(
        self, low: StreamId, high: StreamId, count: int, *, newest_first: bool = False
    ) -> list[tuple[StreamId, Entry | None]]:
        self.reads += 1
        rows = [row for row in self.rows if low <= row[0] <= high]
        return (rows[::-1] if newest_first else rows)[:count]


def listed(kinds: list[str]) -> Listed:
    rows: list[tuple[StreamId, Entry | None]] = []
    for number, kind in enumerate(kinds):
        id_ = StreamId(1 + number // 3, number % 3)
        rows.append((id_, read_entry(id_, an_event(kind)) if kind else None))
    return Listed(rows)


async def test_looking_back_leaves_the_others_their_turn_however_long_a_filter_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history_module, "TURN_S", -1.0)
    stream = listed(["a"] * 40)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    going = asyncio.create_task(others())
    page = await history(stream, EVERYTHING, START, END, 100, 100, newest_first=True)
    assert len(page.entries) == 40
    assert turns > 30
    turns = 0
    await before_last(stream, Filter("source:b"), 1, 100)
    assert turns > 30
    going.cancel()


async def test_a_page_without_a_filter_reads_no_more_than_it_gives() -> None:
    stream = listed(["a"] * 40)
    asked: list[int] = []
    read = stream.range

    async def noted(low: StreamId, high: StreamId, count: int, **more: bool) -> Any:
        asked.append(count)
        return await read(low, high, count, **more)

    stream.range = noted  # type: ignore[method-assign]
    page = await history(stream, EVERYTHING, START, END, 5, 100, newest_first=True)
    assert (len(page.entries), asked) == (5, [6])
    assert page.next == stream.rows[-6][0]


@given(
    st.lists(st.sampled_from(["a", "b", ""]), max_size=30),
    st.booleans(),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from([EVERYTHING, Filter("source:a")]),
)
async def test_the_pages_of_the_history_are_all_that_matches_once_and_in_order(
    kinds: list[str],
    newest_first: bool,
    limit: int,
    count: int,
    low_ms: int,
    high_ms: int,
    chosen: Filter,
) -> None:
    stream = listed(kinds)
    low, high = StreamId(low_ms, 0), StreamId(high_ms, 2)
    wanted = [
        id_
        for id_, entry in stream.rows
        if entry is not None
        and low <= id_ <= high
        and (chosen == EVERYTHING or entry.event.source == "a")
    ]
    found: list[StreamId] = []
    for _ in range(len(kinds) + 2):
        page = await history(stream, chosen, low, high, limit, count, newest_first=newest_first)
        assert len(page.entries) <= limit
        found += [entry.id for entry in page.entries]
        if page.next is None:
            break
        low, high = (low, page.next) if newest_first else (page.next, high)
    else:
        raise AssertionError("the pages do not end")
    assert found == (wanted[::-1] if newest_first else wanted)


async def test_a_page_ends_at_its_size_and_goes_on_after_it(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "PAGE_BYTES", 200)
    ids = await add(stream, 20)
    page = await history(stream, EVERYTHING, START, END, 100, 7, newest_first=False)
    assert 0 < len(page.entries) < 20
    assert page.next == ids[len(page.entries)]


async def test_a_page_looks_at_a_bounded_number_of_entries(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "PAGE_SCAN", 10)
    ids = await add(stream, 25)
    page = await history(stream, Filter("source:nobody"), START, END, 5, 7, newest_first=True)
    assert page.entries == []
    assert page.next == ids[14]


async def test_the_history_of_nothing_is_empty(stream: Stream) -> None:
    page = await history(stream, EVERYTHING, START, END, 5, 7, newest_first=True)
    assert page == ([], None)


async def test_before_an_id_is_the_entry_below_it(stream: Stream) -> None:
    ids = await add(stream, 5)
    assert await before(stream, ids[2]) == (Cursor(ids[1]), None)
    assert await before(stream, ids[4].after()) == (Cursor(ids[4]), None)
    assert await before(stream, END) == (Cursor(ids[4]), None)


async def test_before_the_first_entry_of_a_whole_stream_nothing_is_missing(
    stream: Stream,
) -> None:
    assert await before(stream, START) == (Cursor(START, 0), None)
    assert await before(stream, StreamId(5, 0)) == (Cursor(START, 0), None)
    ids = await add(stream, 5)
    for since in (START, StreamId(5, 0), ids[0]):
        assert await before(stream, since) == (Cursor(ids[0].before(), 0), None)


async def test_before_an_id_in_what_was_trimmed_something_may_be_missing(stream: Stream) -> None:
    ids = await add(stream, 5)
    await plain(stream).xtrim(NAME, maxlen=2, approximate=False)
    at = Cursor(ids[3].before(), 3)
    gap = Gap("trimmed", ids[1].before(), ids[3], None, ids[3].before())
    assert await before(stream, ids[1]) == (at, gap)
    assert await before(stream, START) == (at, None)  # all that is kept was asked for


async def test_before_an_id_in_a_wholly_trimmed_stream_is_where_the_gap_will_be_told(
    stream: Stream,
) -> None:
    ids = await add(stream, 5)
    await plain(stream).xtrim(NAME, maxlen=0, approximate=False)
    cursor, gap = await before(stream, ids[2])
    assert (cursor, gap) == (Cursor(ids[2].before()), None)
    assert await before(stream, START) == (Cursor(ids[4], 5), None)
    assert await before(stream, ids[4].after()) == (Cursor(ids[4], 5), None)
    [new] = await add(stream)
    page = await stream.read(cursor, 10)
    assert page.gap == Gap("trimmed", ids[2].before(), new, None, new.before())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=30),
    st.integers(0, 12),
    st.integers(1, 7),
)
async def test_the_last_matching_entries_follow_their_cursor(
    kinds: list[str], wanted: int, page: int
) -> None:
    stream = listed(kinds)
    cursor = await before_last(stream, Filter("source:a"), wanted, page)
    matching = [number for number, kind in enumerate(kinds) if kind == "a"]
    after = [number for number in matching if stream.rows[number][0] > cursor.id]
    assert after == matching[max(0, len(matching) - wanted) :]


async def test_the_last_entries_of_no_stream_begin_at_its_end(stream: Stream) -> None:
    assert await before_last(stream, EVERYTHING, 5, 10) == Cursor(START, 0)
    ids = await add(stream, 3)
    await plain(stream).xtrim(NAME, maxlen=0, approximate=False)
    assert await before_last(stream, EVERYTHING, 5, 10) == Cursor(ids[2], 3)


async def test_the_last_entries_are_found_among_many_that_do_not_match(stream: Stream) -> None:
    await stream.append([Append([an_event("rare")] + [an_event("often")] * 300)])
    cursor = await before_last(stream, Filter("source:rare"), 1, 20)
    page = await stream.read(cursor, 1)
    assert page.entries[0].event.source == "rare"
    assert page.gap is None
