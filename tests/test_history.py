import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.continuity import Cursor, Gap
from logpipe.fanout import history as history_module
from logpipe.fanout.history import (
    Budget,
    HistoryPage,
    Scan,
    ScanSeats,
    before,
    page_of,
)
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import END, START, StreamId
from logpipe.problems import Problem
from logpipe.stream import RawEntry, Stream
from logpipe.turns import TURN_S, Turns
from tests.helpers import wait_until
from tests.servers import Valkey
from tests.streams import NAME, add, address_of, plain, stream_at


@pytest.fixture
async def stream(valkey: Valkey) -> AsyncIterator[Stream]:
    async with stream_at(address_of(valkey)) as made:
        yield made


def an_event(source: str) -> bytes:
    return b'{"source":"%b","message":"m"}' % source.encode()


Row = tuple[StreamId, bytes | None]


class Listed(Stream):
    """A stream that is a list: `None` stands for an entry that holds no event."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.asked: list[int] = []

    async def raw_range(
        self, low: StreamId, high: StreamId, count: int, *, newest_first: bool = False
    ) -> list[RawEntry]:
        self.asked.append(count)
        rows = [row for row in self.rows if low <= row[0] <= high]
        return [
            (str(id_).encode(), (b"event", raw) if raw is not None else (b"other", b"x"))
            for id_, raw in (rows[::-1] if newest_first else rows)[:count]
        ]


def listed(kinds: list[str]) -> Listed:
    return Listed(
        [
            (StreamId(1 + number // 3, number % 3), an_event(kind) if kind else None)
            for number, kind in enumerate(kinds)
        ]
    )


def scan_of(
    stream: Stream,
    chosen: Filter,
    low: StreamId = START,
    high: StreamId = END,
    count: int = 100,
    *,
    newest_first: bool = True,
    budget: Budget | None = None,
    seats: ScanSeats | None = None,
) -> Scan:
    return Scan(
        stream,
        seats or ScanSeats(),
        chosen,
        low,
        high,
        count,
        newest_first=newest_first,
        budget=budget,
    )


def short_turns() -> Turns:
    """Turns that are over wherever work can be interrupted."""
    looks = itertools.count()
    return Turns(clock=lambda: next(looks) * 2 * TURN_S)


async def history(
    stream: Stream,
    chosen: Filter,
    low: StreamId,
    high: StreamId,
    limit: int,
    count: int,
    *,
    newest_first: bool,
) -> HistoryPage:
    return await page_of(
        scan_of(stream, chosen, low, high, count, newest_first=newest_first), limit
    )


async def test_a_scan_leaves_others_their_turn_however_long_a_filter_takes() -> None:
    seats = ScanSeats(turns=short_turns())
    stream = listed(["a"] * 40)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    going = asyncio.create_task(others())
    page = await page_of(scan_of(stream, EVERYTHING, seats=seats), 100)
    assert len(page.entries) == 40
    assert turns > 30
    going.cancel()


async def test_scans_together_hold_the_loop_for_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, most = 0, 0

    def accepts(_: object) -> bool:
        nonlocal judged
        judged += 1
        return True

    async def others() -> None:
        nonlocal most
        while True:
            before = judged
            await asyncio.sleep(0)
            most = max(most, judged - before)

    monkeypatch.setattr(Filter, "predicate", property(lambda _: accepts))
    seats = ScanSeats(turns=short_turns())
    going = asyncio.create_task(others())
    scans = [scan_of(listed(["a"] * 40), Filter("source:a"), seats=seats) for _ in range(3)]
    pages = await asyncio.gather(*(page_of(scan, 100) for scan in scans))
    going.cancel()
    assert [len(page.entries) for page in pages] == [40] * 3
    assert (judged, most) == (120, 1)


async def test_a_step_finds_no_more_than_its_bytes() -> None:
    small, large = an_event("a"), b'{"source":"a","message":"%b"}' % (b"x" * 65_000)
    rows = [(StreamId(n, 0), large if n < 1_000 else small) for n in range(1_400)]
    scan = scan_of(Listed([*rows]), EVERYTHING, count=10_000, budget=Budget.unlimited())
    found = 0
    while not scan.over:
        entries = await scan.step(10_000, 8 * history_module.STEP_BYTES)
        found += len(entries)
        assert sum(len(entry.json) for entry in entries) < history_module.STEP_BYTES + 66_000
    assert found == len(rows)


async def test_a_page_without_a_filter_reads_no_more_than_it_gives() -> None:
    stream = listed(["a"] * 40)
    page = await history(stream, EVERYTHING, START, END, 5, 100, newest_first=True)
    assert (len(page.entries), stream.asked) == (5, [6])
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
        for id_, raw in stream.rows
        if raw is not None and low <= id_ <= high and (chosen == EVERYTHING or raw == an_event("a"))
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


async def test_a_page_ends_at_its_size_and_goes_on_after_it(stream: Stream) -> None:
    ids = await add(stream, 20)
    page = await page_of(scan_of(stream, EVERYTHING, newest_first=False), 100, 200)
    assert 0 < len(page.entries) < 20
    assert page.next == ids[len(page.entries)]
    assert page.searched_to == page.entries[-1].id


async def test_a_page_looks_at_a_bounded_number_of_entries(stream: Stream) -> None:
    ids = await add(stream, 25)
    page = await page_of(scan_of(stream, Filter("source:nobody"), count=7, budget=Budget(10)), 5)
    assert page == ([], ids[14], ids[15])


async def test_a_page_ends_when_its_bytes_or_its_time_are_spent() -> None:
    for budget in (Budget(size=1_000), Budget(seconds=1e-9)):
        stream = listed(["a"] * 300)
        scan = scan_of(stream, Filter("source:b"), budget=budget)
        page = await page_of(scan, 5)
        assert page.entries == []
        assert page.next is not None
        assert page.searched_to is not None
        assert page.next < page.searched_to
        assert len(stream.asked) == 1


async def test_steps_grow_with_small_entries_and_shrink_with_large_ones() -> None:
    small, large = an_event("a"), b'{"source":"a","message":"%b"}' % (b"x" * 65_000)
    rows = [(StreamId(n, 0), large if n < 1_000 else small) for n in range(3_000)]
    stream = Listed([*rows])
    scan = scan_of(stream, Filter("source:b"), count=10_000, budget=Budget.unlimited())
    while not scan.over:
        await scan.step(1)
    first, *others = stream.asked
    assert first == history_module.FIRST_COUNT
    assert max(others) <= history_module.MAX_STEP_COUNT
    assert others[-1] <= history_module.STEP_BYTES // 65_000


async def test_a_step_ends_after_its_time_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history_module, "STEP_S", -1.0)
    stream = listed(["a", "b", "b"] * 10)
    budget = Budget.unlimited()
    seats = ScanSeats(turns=short_turns())
    scan = scan_of(stream, Filter("source:a"), newest_first=False, budget=budget, seats=seats)
    sources, steps = [], 0
    while not scan.over:
        sources += [entry.event.source for entry in await scan.step(100)]
        steps += 1
    assert sources == ["a"] * 10
    assert steps >= 10  # one for each that the JSON does not reject


async def test_the_raw_json_decides_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Filter, "may_match", property(lambda _: lambda raw: b'"a"' in raw))
    stream = listed(["a", "b", ""] * 4)
    page = await page_of(scan_of(stream, Filter("source:b OR source:a")), 100)
    assert [entry.event.source for entry in page.entries] == ["a"] * 4


class Slow(Listed):
    """A stream whose reads wait until they are let go on."""

    def __init__(self) -> None:
        super().__init__(listed(["a"] * 40).rows)
        self.go = asyncio.Event()
        self.reading = 0

    async def raw_range(self, *args: Any, **more: Any) -> list[RawEntry]:
        self.reading += 1
        try:
            await self.go.wait()
            return await super().raw_range(*args, **more)
        finally:
            self.reading -= 1


async def test_so_many_steps_run_at_a_time_and_others_wait() -> None:
    stream, hits = Slow(), Counter[str]()
    seats = ScanSeats(2, 3, hits.update)
    pages = []
    for _ in range(5):
        seats.require()
        pages.append(asyncio.create_task(page_of(scan_of(stream, EVERYTHING, seats=seats), 100)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert (stream.reading, seats.waiting) == (2, 3)
    with pytest.raises(Problem) as refused:
        seats.require()
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "2")
    assert hits == {"scans": 1}
    stream.go.set()
    assert [len(page.entries) for page in await asyncio.gather(*pages)] == [40] * 5
    seats.require()


async def test_a_cancelled_scan_gives_its_seat_and_its_place_back() -> None:
    stream = Slow()
    seats = ScanSeats(1, 1)
    going = [
        asyncio.create_task(page_of(scan_of(stream, EVERYTHING, seats=seats), 100))
        for _ in range(2)
    ]
    await wait_until(lambda: (stream.reading, seats.waiting) == (1, 1), "one reads, one waits")
    for task in reversed(going):
        task.cancel()
    await asyncio.wait(going)
    assert (stream.reading, seats.waiting) == (0, 0)
    stream.go.set()
    page = await page_of(scan_of(stream, EVERYTHING, seats=seats), 100)
    assert len(page.entries) == 40


async def test_the_history_of_nothing_is_empty(stream: Stream) -> None:
    page = await history(stream, EVERYTHING, START, END, 5, 7, newest_first=True)
    assert page == ([], None, None)


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
