"""The live stream as the page takes it: bundles, samples, tallies."""

import asyncio
import contextlib
import gc
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logpipe import sse
from logpipe.continuity import Cursor, Gap
from logpipe.event import level_rank
from logpipe.filters import EVERYTHING, Filter, parse_filter
from logpipe.ids import START, StreamId
from logpipe.limits import Returns, Seats
from logpipe.messages import Batch, Bye, Hello, Item, Notice, Progress
from logpipe.metrics import Metrics
from logpipe.turns import TURN_S, Turns
from logpipe.ui import feed
from logpipe.ui.feed import (
    BUNDLE_BYTES,
    BURST_ROWS,
    ERROR_RANK,
    MAX_SOURCES,
    ROWS_A_SECOND,
    Budget,
    FeedResponse,
    Paced,
    RowEncoder,
    sample,
)
from logpipe.ui.rows import View, gap_row, row
from tests.helpers import wait_until
from tests.servers import Service, Valkey, free_port, serving
from tests.ui.pieces import COMPOSITIONS, entry, ids_of, numbered, page_at, streaming

ROWS = RowEncoder(View())


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(feed, "time", clock)
    return clock


# -- the encoder ------------------------------------------------------------------------------


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_rows_come_through_the_framing_as_one_message(texts: list[str]) -> None:
    entries = [entry(StreamId(5, n), message=text) for n, text in enumerate(texts)]
    (message,) = sse.Parser().feed(ROWS.entries(entries).decode())
    assert message.data == "".join(row(each) for each in entries)
    assert message.event == "message"
    assert message.id == f"5-{len(texts) - 1}"


def test_messages_are_named_events_and_move_the_cursor() -> None:
    def told(message: Any) -> sse.ServerSentEvent:
        (found,) = sse.Parser().feed(ROWS.message(message).decode())
        return found

    hello = told(Hello(StreamId(1, 2), None, StreamId(3, 4), "broadcast", "1.2.3"))
    assert (hello.event, hello.id) == ("hello", "1-2")
    assert json.loads(hello.data)["version"] == "1.2.3"
    assert told(Progress(StreamId(5, 6)))[1:] == ("progress", "5-6")
    assert told(Notice("away\n\nid: 1-1"))[1:] == ("notice", "")
    assert told(Bye("ends", 700))[1:] == ("bye", "")
    assert b"\nretry: 700\ndata: " in ROWS.message(Bye("ends", 700))
    gap = Gap("slow", StreamId(1, 2), StreamId(3, 4), 1, StreamId(3, 3))
    assert told(gap) == sse.ServerSentEvent(gap_row(gap), "message", "3-3")
    assert next(iter(sse.Parser().feed(ROWS.heartbeat.decode()))).event == "heartbeat"


# -- budget and sample ------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3_000), st.floats(0, 30)), max_size=50))
def test_a_budget_gives_no_more_than_its_burst_and_its_rate(steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    began = clock.now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "time", clock)
        budget = Budget()
        taken = 0
        for wanted, seconds in steps:
            got = budget.take(wanted)
            assert 0 <= got <= wanted
            taken += got
            assert taken <= BURST_ROWS + (clock.now - began) * ROWS_A_SECOND + 1e-6
            clock.now += seconds


def test_a_budget_that_was_spent_fills_up_again(clock: Clock) -> None:
    budget = Budget()
    assert budget.take(5_000) == BURST_ROWS
    assert budget.take(1) == 0
    clock.now += 1
    assert budget.take(5_000) == ROWS_A_SECOND
    clock.now += 3600
    assert budget.take(5_000) == BURST_ROWS


levels = st.sampled_from(["DEBUG", "INFO", "ERROR", "FATAL", "AUDIT"])


@given(st.lists(levels, max_size=60), st.integers(0, 70))
def test_a_sample_has_its_size_keeps_the_order_and_prefers_errors(
    names: list[str], size: int
) -> None:
    entries = [entry(StreamId(1, n), level=name) for n, name in enumerate(names)]
    taken = sample(entries, size)
    assert len(taken) == min(size, len(entries))
    assert [each.id for each in taken] == sorted({each.id for each in taken})
    severe = [each for each in entries if level_rank(each.event.level) >= ERROR_RANK]
    kept = [each for each in taken if level_rank(each.event.level) >= ERROR_RANK]
    assert len(kept) >= min(len(severe), size // 2)


def test_a_sample_is_spread_evenly() -> None:
    entries = [entry(StreamId(1, n)) for n in range(100)]
    assert [each.id.seq for each in sample(entries, 5)] == [0, 20, 40, 60, 80]


# -- a subscription by hand -------------------------------------------------------------------


class Scripted:
    """A subscription that gives what it is told to: items, or an error."""

    confirms = False
    client = ""
    connected_ms = 5

    def __init__(self, *script: Sequence[Item] | Exception | None) -> None:
        self.filter: Filter = EVERYTHING
        self.queue: asyncio.Queue[Sequence[Item] | Exception | None] = asyncio.Queue()
        self.entered = 0
        self.cancelled = 0
        for each in script:
            self.queue.put_nowait(each)

    def __enter__(self) -> "Scripted":
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.entered -= 1

    async def next(self) -> Sequence[Item] | None:
        try:
            given = await self.queue.get()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(given, Exception):
            raise given
        return given

    async def sent(self) -> None:
        raise AssertionError("a page confirms nothing")

    async def follow(self, writer: Any) -> None:
        raise AssertionError("a page is not written to")


class Failing(Scripted):
    """One that cannot even be left without an error."""

    async def next(self) -> Sequence[Item] | None:
        try:
            return await super().next()
        except asyncio.CancelledError:
            raise RuntimeError("of nobody's interest any more") from None


def batch(first: int, last: int, **event: Any) -> Batch:
    entries = [entry(StreamId(1, n), message=str(n), **event) for n in range(first, last)]
    return Batch(Cursor(StreamId(1, first - 1)), Cursor(StreamId(1, last - 1)), entries)


def hello(begin: int, last: int | None) -> Hello:
    return Hello(
        StreamId(1, begin), None, None if last is None else StreamId(1, last), "broadcast", "1"
    )


async def test_a_paced_subscription_is_the_one_within() -> None:
    inner = Scripted()
    paced = Paced(inner)
    paced.client = "1.2.3.4"
    assert (inner.client, paced.client) == ("1.2.3.4", "1.2.3.4")
    assert paced.filter is inner.filter
    assert (paced.connected_ms, paced.confirms) == (5, False)
    with paced:
        assert inner.entered == 1
        await paced.sent()
        await paced.follow(None)  # type: ignore[arg-type]
    assert inner.entered == 0


async def test_the_first_items_after_a_silence_come_at_once_and_the_next_in_bundles(
    clock: Clock,
) -> None:
    inner = Scripted([batch(1, 2)])
    with Paced(inner) as paced:
        assert len(await paced.next() or ()) == 1
        for n in range(2, 5):
            inner.queue.put_nowait([batch(n, n + 1)])
        inner.queue.put_nowait(None)
        assert len(await paced.next() or ()) == 3
        assert await paced.next() is None
        assert await paced.next() is None


async def test_a_bundle_is_no_larger_than_is_read_for_one(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "BUNDLE_READ_BYTES", 3 * batch(2, 3).size)
    inner = Scripted([batch(1, 2)], *[[batch(n, n + 1)] for n in range(2, 9)], None)
    with Paced(inner) as paced:
        sizes = []
        while (items := await paced.next()) is not None:
            sizes.append(len(items))
        assert sizes == [1, 3, 3, 1]


def test_a_hello_without_an_id_has_no_cursor_for_the_page() -> None:
    hello = Hello(None, StreamId(1, 1), StreamId(1, 3), "broadcast", "1")
    (told,) = sse.Parser().feed(encoded(feed_of(), [hello]).decode())
    assert (told.event, told.id) == ("hello", "")
    assert json.loads(told.data)["cursor"] is None


@pytest.mark.parametrize("rows", [True, False])
def test_the_page_shows_how_far_a_limited_search_looked_back(rows: bool) -> None:
    limited = Progress(StreamId(1_710_000_000_123, 4), StreamId(1_710_000_000_123, 4))
    told = list(sse.Parser().feed(encoded(feed_of(rows=rows), [limited]).decode()))
    assert [each.event for each in told] == ["progress", "message"][: 1 + rows]
    assert {each.id for each in told} == {"1710000000123-4"}
    if rows:
        said = "Looked back as far as 2024-03-09 16:00:00.123 UTC; older matches are not shown."
        assert said in told[1].data


def test_a_bundle_has_no_more_events_than_are_counted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "BUNDLE_READ_EVENTS", 3)
    assert not feed._full([batch(1, 3)])
    assert feed._full([batch(1, 3), batch(3, 4)])


async def test_others_go_on_while_a_bundle_is_filtered_and_made_rows() -> None:
    chosen = parse_filter({"q": "/./"})
    response = feed_of(chosen, seats=slow_seats())
    passed = 0

    async def others() -> None:
        nonlocal passed
        while True:
            passed += 1
            await asyncio.sleep(0)

    going = asyncio.create_task(others())
    out = await response._encode([batch(n, n + 10) for n in range(1, 101, 10)])
    going.cancel()
    assert len(ids_of(out.decode())) == 100
    assert passed >= 200  # for each entry that is looked at, and for each row


async def test_a_heartbeat_comes_through_and_what_takes_longer_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TICK_S", 0.01)
    inner = Scripted([batch(1, 2)], [])
    with Paced(inner) as paced:
        assert len(await paced.next() or ()) == 1
        assert await paced.next() == []
        waiting = asyncio.create_task(paced.next())
        inner.queue.put_nowait([batch(2, 3)])
        assert len(await waiting or ()) == 1
        assert inner.cancelled == 0


async def test_who_leaves_leaves_no_task_and_no_error_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TICK_S", 0.01)
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    before = asyncio.all_tasks()
    for inner in (Scripted([batch(1, 2)], [batch(2, 3)]), Failing([batch(1, 2)], [batch(2, 3)])):
        with Paced(inner) as paced:
            await paced.next()
            await paced.next()
        await wait_until(lambda: asyncio.all_tasks() == before, "no task is left")
        assert inner.cancelled == 1
        del paced
        gc.collect()
    with Paced(Scripted()):
        pass  # it was never asked
    assert complaints == []


async def test_an_error_within_reaches_who_reads() -> None:
    with Paced(Scripted(RuntimeError("a bug"))) as paced:
        for _ in range(2):
            with pytest.raises(RuntimeError):
                await paced.next()


@pytest.mark.parametrize(
    ("script", "bundles"),
    [
        ([[hello(0, None)]], 1),
        ([[hello(3, 3)]], 1),
        ([[hello(0, 3)], [batch(1, 3)], [batch(3, 4)]], 3),
        ([[hello(0, 3)], [batch(1, 3)], [Progress(StreamId(1, 3))]], 3),
        ([[hello(0, 3), Gap("slow", START, StreamId(1, 4), 1, StreamId(1, 3))]], 1),
        ([[hello(0, 3)], [batch(1, 2)], [Notice("away")]], 3),
        ([[Notice("away")]], 1),
        ([[hello(0, 3)], [Bye("ends", 5)]], 2),
        ([[batch(1, 2)], []], 1),
        ([[]], 0),
        ([None], 0),
    ],
)
async def test_a_stream_that_is_asked_for_once_ends_with_what_was_there(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, script: list[Any], bundles: int
) -> None:
    monkeypatch.setattr(feed, "TICK_S", 0.0)
    inner = Scripted(*script)
    with Paced(inner, once=True) as paced:
        seen = 0
        while await paced.next() is not None:
            seen += 1
        assert seen == bundles


async def test_a_stream_that_is_asked_for_once_waits_no_longer_than_it_has_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "ONCE_S", 0.02)
    inner = Scripted([hello(0, 3)], [batch(1, 3)])
    with Paced(inner, once=True) as paced:
        assert await paced.next()
        assert await paced.next()
        assert await paced.next() is None


async def test_a_stream_that_is_asked_for_once_waits_for_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "ONCE_S", 0.0)
    searching = Hello(None, StreamId(1, 1), StreamId(1, 3), "broadcast", "1")
    inner = Scripted([searching], [])
    with Paced(inner, once=True) as paced:
        assert await paced.next() == [searching]
        assert await paced.next() == []  # a heartbeat
        waiting = asyncio.create_task(paced.next())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        found = batch(1, 3)
        inner.queue.put_nowait([found])
        assert await asyncio.wait_for(waiting, 5) == [found]
        assert await paced.next() is None  # nothing has come within `ONCE_S` of the search


# -- the response, by hand --------------------------------------------------------------------


def feed_of(
    chosen: Filter = EVERYTHING, seats: Seats | None = None, **options: Any
) -> FeedResponse:
    return FeedResponse(
        Scripted(), chosen, View(), Metrics(), seats or Seats(1), query={"q": "a b"}, **options
    )


def slow_seats() -> Seats:
    """Seats on a machine on which each piece of work takes as long as a turn."""
    ticks = itertools.count()
    seats = Seats(1)
    seats.turns = Turns(clock=lambda: next(ticks) * 2 * TURN_S)
    return seats


def encoded(response: FeedResponse, items: Sequence[Item]) -> bytes:
    """The bytes of some items."""
    return asyncio.run(response._encode(items))


def test_a_page_is_asked_to_come_back_in_its_turn() -> None:
    seats = Seats(1)
    seats.returns = Returns(0.1)
    seats.returns.wait_s()  # another stream has ended before
    (bye,) = sse.Parser().feed(encoded(feed_of(seats=seats), [Bye("stopping")]).decode())
    assert bye.event == "bye"
    assert 10_000 <= json.loads(bye.data)["retry_ms"] <= 13_000


class Wire:
    """What a page makes of the bytes."""

    def __init__(self) -> None:
        self.parser = sse.Parser()
        self.rows: list[str] = []
        self.left_out = 0
        self.tallies: list[dict[str, Any]] = []
        self.missing: list[dict[str, Any]] = []
        self.cursors: list[StreamId] = [START]

    def take(self, data: bytes) -> None:
        for event in self.parser.feed(data.decode()):
            ms, _, seq = event.id.partition("-")
            if event.id:
                self.cursors.append(StreamId(int(ms), int(seq)))
            if event.event == "message":
                self.rows += ids_of(event.data)
                self.left_out += sum(
                    int(n.replace(",", "")) for n in re.findall(r">([\d,]+) more", event.data)
                )
            elif event.event == "tally":
                self.tallies.append(json.loads(event.data))
            elif event.event == "missing":
                self.missing.append(json.loads(event.data))

    def total(self, name: str) -> int:
        return sum(tally[name] for tally in self.tallies)


bundles = st.lists(
    st.lists(
        st.tuples(st.integers(1, 400), st.sampled_from(["one", "two"]), levels)
        | st.just("gap")
        | st.just("progress"),
        max_size=5,
    ),
    max_size=8,
)


def items_of(script: list[Any], at: int) -> Iterator[Item]:
    for each in script:
        if each == "gap":
            yield Gap("slow", StreamId(1, at), StreamId(1, at + 5), 4, StreamId(1, at + 4))
            at += 4
        elif each == "progress":
            yield Progress(StreamId(1, at))
        else:
            count, message, level = each
            yield Batch(
                Cursor(StreamId(1, at)),
                Cursor(StreamId(1, at + count)),
                [
                    entry(StreamId(1, n), message=message, level=level, source=message)
                    for n in range(at + 1, at + count + 1)
                ],
            )
            at += count


@settings(max_examples=40, deadline=None)
@given(bundles, st.sampled_from(["", "one", "level>=ERROR", "one -two", "never"]), st.booleans())
def test_nothing_disappears_on_the_way_to_the_page(
    scripts: list[list[Any]], query: str, rows: bool
) -> None:
    chosen = parse_filter({"q": query})
    response, wire = feed_of(chosen, rows=rows), Wire()
    read = found = gaps = at = 0
    for script in scripts:
        items = list(items_of(script, at))
        wire.take(encoded(response, items))
        batches = [item for item in items if isinstance(item, Batch)]
        read += sum(len(each.entries) for each in batches)
        found += sum(len(each.matching(chosen)) for each in batches)
        gaps += sum(isinstance(item, Gap) for item in items)
        at += sum(4 if each == "gap" else each[0] for each in script if each != "progress")
        assert wire.cursors == sorted(wire.cursors)
        if at and script:
            assert wire.cursors[-1] == StreamId(1, at)
    assert wire.total("read") == read
    assert wire.total("found") == found
    assert wire.total("shown") == len(wire.rows)
    assert sum(sum(counts) for t in wire.tallies for _, counts in t["volume"]) == found
    assert len(wire.missing) == gaps
    assert len(set(wire.rows)) == len(wire.rows)
    if rows:
        assert len(wire.rows) + wire.left_out == found
    else:
        assert (len(wire.rows), wire.left_out) == (0, 0)


def test_each_source_is_told_once_and_no_more_than_so_many() -> None:
    response, wire = feed_of(), Wire()
    for n in range(3):
        wire.take(encoded(response, [batch(10 * n + 1, 10 * n + 4, source=f"s{n % 2}")]))
    assert [tally["sources"] for tally in wire.tallies] == [["s0"], ["s1"], []]
    many = [entry(StreamId(9, n), source=f"x{n:03}") for n in range(500)]
    wire.take(encoded(response, [Batch(Cursor(START), Cursor(StreamId(9, 499)), many)]))
    wire.take(encoded(response, [batch(1000, 1001, source="later")]))
    assert [len(tally["sources"]) for tally in wire.tallies[3:]] == [MAX_SOURCES, 0]


def test_what_a_sample_leaves_out_has_a_link_with_the_filter_and_the_span() -> None:
    response = feed_of()
    out = encoded(response, [batch(1, BURST_ROWS + 501)]).decode()
    assert ">500 more events between" in out
    assert f'href="/?q=a+b&amp;since=1-1&amp;to=1-{BURST_ROWS + 500}"' in out


def test_of_large_events_fewer_are_shown() -> None:
    response, wire = feed_of(), Wire()
    large = [entry(StreamId(1, n), message="x" * 60_000) for n in range(1, 41)]
    wire.take(encoded(response, [Batch(Cursor(START), Cursor(StreamId(1, 40)), large)]))
    assert 0 < len(wire.rows) <= BUNDLE_BYTES // 60_000
    assert len(wire.rows) + wire.left_out == 40


def test_one_event_is_shown_however_large_it_is() -> None:
    response, wire = feed_of(), Wire()
    large = [entry(StreamId(1, 1), message="x" * 2 * BUNDLE_BYTES)]
    wire.take(encoded(response, [Batch(Cursor(START), Cursor(StreamId(1, 1)), large)]))
    assert len(wire.rows) == 1


def test_nothing_to_say_is_a_heartbeat() -> None:
    assert encoded(feed_of(), []) == RowEncoder.heartbeat


def test_a_gap_is_a_row_and_a_figure_and_for_a_paused_page_the_figure_alone() -> None:
    gap = Gap("trimmed", StreamId(1, 2), StreamId(3, 4), 7, StreamId(3, 3))
    out = encoded(feed_of(), [gap]).decode()
    assert gap_row(gap) in out
    wire = Wire()
    wire.take(encoded(feed_of(rows=False), [gap]))
    assert wire.missing == [{"count": 7, "reason": "trimmed"}]
    assert wire.cursors[-1] == StreamId(3, 3)


# -- over HTTP --------------------------------------------------------------------------------

PAGES = pytest.mark.parametrize("composition", COMPOSITIONS)


@PAGES
async def test_the_stream_gives_all_events_and_then_the_live_ones(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 150))
        async with streaming(page) as bundles:
            await bundles.read(150)
            await others.post({"source": "a", "message": "live"})
            await bundles.read(151)
            assert bundles.messages == [*map(str, range(150)), "live"]
            assert bundles.total("found") == bundles.total("shown") == 151
            headers = bundles.reader.response.headers
            assert headers["content-type"].startswith("text/event-stream")
            assert headers["x-accel-buffering"] == "no"


@PAGES
async def test_the_first_byte_comes_at_once_and_then_the_hello_with_its_cursor(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        last = (await others.post({"source": "a", "message": "b"})).json()["id"]
        async with streaming(page, "/ui/stream") as bundles:
            assert (await bundles.next()).event == "heartbeat"
            event = await bundles.until("hello")
            data = json.loads(event.data)
            assert data["cursor"] == event.id
            assert data["last_id"] == last
            assert data["version"]


async def test_the_first_byte_does_not_wait_for_redis(own_valkey: Valkey) -> None:
    async with serving(redis_addr=own_valkey.url) as service:
        own_valkey.kill()
        async with streaming(service) as bundles:
            assert (await bundles.next()).event == "heartbeat"


@PAGES
async def test_the_stream_resumes_after_the_last_id_whatever_the_url_says(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        first = (await others.post({"source": "a", "message": "one"})).json()["id"]
        await others.post([{"source": "a", "message": m} for m in ("two", "three")])
        async with streaming(page, Last_Event_ID=first) as bundles:
            await bundles.read(2)
            assert bundles.messages == ["two", "three"]
        async with streaming(page, f"/ui/stream?since=1d&last_event_id={first}") as bundles:
            await bundles.read(2)
            assert bundles.messages == ["two", "three"]


@PAGES
async def test_what_the_filter_rejects_is_counted(valkey: Valkey, composition: str) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post([*numbered(0, 40), *numbered(40, 50, level="ERROR")])
        async with streaming(page, "/ui/stream?since=earliest&level=error&text=4") as bundles:
            await bundles.read(50)
            assert bundles.total("read") == 50
            assert bundles.total("found") == bundles.total("shown") == 10
            assert bundles.messages == [str(n) for n in range(40, 50)]
            assert bundles.rows.count("<mark>4") == 10


@PAGES
async def test_without_rows_the_same_is_counted(valkey: Valkey, composition: str) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post([*numbered(0, 300), *numbered(300, 320, source="b", level="ERROR")])
        seen = []
        for rows in ("1", "0"):
            path = f"/ui/stream?since=earliest&q=-7&rows={rows}"
            async with streaming(page, path) as bundles:
                await bundles.read(320)
                sources = [name for tally in bundles.tallies for name in tally["sources"]]
                volume = [sum(c) for tally in bundles.tallies for _, c in tally["volume"]]
                seen.append((bundles.total("read"), bundles.total("found"), sources, sum(volume)))
                assert bool(bundles.rows) is (rows == "1")
                assert bundles.total("shown") == (bundles.total("found") if rows == "1" else 0)
                assert bundles.cursors == sorted(bundles.cursors)
        assert seen[0] == seen[1]
        assert seen[0][0] == 320


@PAGES
async def test_a_sample_says_what_it_leaves_out_and_its_link_leads_to_all_of_it(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 5_000))
        async with streaming(page) as bundles:
            await bundles.read(5_000)
            left = re.findall(r">([\d,]+) more events? between", bundles.rows)
            left_out = sum(int(each.replace(",", "")) for each in left)
            assert left_out > 0
            assert len(bundles.messages) + left_out == 5_000
            assert bundles.total("shown") == len(bundles.messages)
            (href, *_) = re.findall(r'href="/(\?since=[^"]*)"', bundles.rows)
            query = href.replace("&amp;", "&")
            assert (await page.http.get(f"/{query}")).status_code == 200
            rows = (await page.http.get(f"/ui/rows{query}")).text
            assert len(ids_of(rows)) == 100


@PAGES
async def test_a_stream_that_is_asked_for_once_ends_by_itself(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        async with streaming(page, "/ui/stream?since=earliest&once=1") as bundles:
            await bundles.end()
            assert bundles.told[-1].event == "hello"
        await others.post(numbered(0, 300))
        async with streaming(page, "/ui/stream?since=earliest&once=1") as bundles:
            await bundles.end()
            assert bundles.messages == [str(n) for n in range(300)]
        async with streaming(
            page, f"/ui/stream?once=1&last_event_id={bundles.cursors[-1]}"
        ) as rest:
            await rest.end()
            assert rest.rows == ""


@contextlib.asynccontextmanager
async def steady(service: Service) -> AsyncIterator[Callable[[], int]]:
    """A sender that never stops; how often it has sent."""
    count = 0

    async def send() -> None:
        nonlocal count
        while True:
            await service.post(numbered(count, count + 1))
            count += 1

    task = asyncio.create_task(send())
    try:
        yield lambda: count
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@PAGES
async def test_a_stream_that_is_asked_for_once_ends_under_steady_load_too(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others), steady(others) as count:
        await wait_until(lambda: count() > 10, "some are sent")
        async with streaming(page, "/ui/stream?since=earliest&once=1") as bundles:
            await bundles.end()
        assert len(bundles.messages) >= 10


@PAGES
async def test_a_stream_that_is_asked_for_once_ends_with_redis_away_too(
    own_valkey: Valkey, composition: str
) -> None:
    settings = {"heartbeat_s": 0.2}
    async with page_at(composition, own_valkey, **settings) as (page, _):
        async with streaming(page) as bundles:
            await bundles.until("hello")
        own_valkey.kill()
        async with streaming(page, "/ui/stream?once=1") as bundles:
            await bundles.end()
            assert bundles.rows == ""


@PAGES
async def test_a_gap_reaches_the_page_as_a_row_and_a_figure(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (_, others):
        first = (await others.post(numbered(0, 20))).json()["first_id"]
        valkey.client.xtrim("logs", maxlen=5, approximate=False)
        async with page_at(composition, valkey) as (fresh, _):
            async with streaming(fresh, Last_Event_ID=first) as bundles:
                await bundles.read(5)
                assert "events are missing" in bundles.rows
                assert first in bundles.rows
                assert bundles.messages == [str(n) for n in range(15, 20)]
                (missing,) = [e for e in bundles.told if e.event == "missing"]
                assert json.loads(missing.data) == {"count": None, "reason": "trimmed"}
            async with streaming(fresh, "/ui/stream?rows=0", Last_Event_ID=first) as bundles:
                await bundles.read(5)
                assert bundles.rows == ""
                assert "missing" in [event.event for event in bundles.told]


@PAGES
async def test_a_server_that_stops_says_bye_and_when_to_come_back(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, _), streaming(page) as bundles:
        await bundles.until("hello")
        page.server.stop()
        assert json.loads((await bundles.until("bye")).data)["retry_ms"] > 0


@PAGES
async def test_an_idle_stream_beats_and_a_filtered_one_moves_on(
    valkey: Valkey, composition: str
) -> None:
    async with (
        page_at(composition, valkey, heartbeat_s=0.1) as (page, others),
        streaming(page, "/ui/stream?text=never") as bundles,
    ):
        await bundles.until("hello")
        await bundles.until("heartbeat")
        last = (await others.post({"source": "a", "message": "b"})).json()["id"]
        tally = await bundles.until("tally")
        assert tally.id == last
        assert json.loads(tally.data) == {
            "read": 1, "found": 0, "shown": 0, "volume": [], "sources": []
        }  # fmt: skip


async def test_redis_away_at_first_is_told_and_then_it_goes_on(own_valkey: Valkey) -> None:
    own_valkey.kill()
    async with serving(redis_addr=own_valkey.url) as service, streaming(service) as bundles:
        notice = await bundles.until("notice")
        assert "Redis" in notice.data or "reached" in notice.data
        own_valkey.start()
        await bundles.until("hello")


async def test_a_distributor_away_is_told() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    async with (
        serving(role="ui", distributor_url=away, collector_url=away) as page,
        streaming(page) as bundles,
    ):
        notice = await bundles.until("notice")
        assert "the distributor cannot be reached" in notice.data


@PAGES
async def test_a_page_that_is_closed_leaves_no_subscriber_and_no_task(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others), steady(others):
        for _ in range(5):
            async with streaming(page, "/ui/stream") as bundles:
                await bundles.until("tally")

        def streams() -> list[Any]:
            names = ("Paced._next", "RemoteSubscription._follow", "FeedResponse")
            return [t for t in asyncio.all_tasks() if any(n in repr(t) for n in names)]

        async def alone() -> bool:
            metrics = (await others.http.get("/metrics")).text
            return 'logpipe_subscribers{delivery="broadcast"} 0.0' in metrics and not streams()

        await wait_until(alone, "no subscriber and no task is left")


@pytest.mark.parametrize(
    "query",
    ["q=level:%20x", "level=%3E%3Dbananas", "since=yesterday", "tail=many",
     "cols=" + ",".join(f"c{n}" for n in range(9)), "last_event_id=x", "on_lag=never"],
)  # fmt: skip
async def test_a_wrong_parameter_of_the_stream_is_told(valkey: Valkey, query: str) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.get(f"/ui/stream?{query}")
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"


async def test_head_of_the_stream_reads_nothing(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.head("/ui/stream")
        assert (answer.status_code, answer.content) == (200, b"")
