"""Live readers without a hub; their wires are a test's own."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from logpipe.continuity import Cursor
from logpipe.event import StoredEvent, read_entry
from logpipe.fanout.live import PROGRESS_S, WRITES_AT_ONCE, Live
from logpipe.fanout.streaming import NDJSON, SSE
from logpipe.filters import EVERYTHING, Filter, Predicate
from logpipe.filters.index import SLICE_BYTES, FilterIndex
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Encoder, Progress
from logpipe.metrics import Metrics
from logpipe.turns import Turns
from tests.scripted_stream import Pipe, a_page, at

RED = Filter("source:red")


class Reader:
    """A `live.Reader` that has had all up to the batch with number 0."""

    def __init__(self, chosen: Filter) -> None:
        self.filter = chosen
        self.cursor = Cursor(START)
        self.number: int | None = 0


@contextlib.asynccontextmanager
async def following(
    *filters: Filter, pipes: Sequence[Pipe] = ()
) -> AsyncIterator[tuple[Live, list[Reader], list[Pipe], list[asyncio.Task[None]]]]:
    """Readers that follow, each with its wire."""
    live, readers = Live(Metrics()), [Reader(each) for each in filters]
    wires = list(pipes) or [Pipe() for _ in filters]
    for wire in wires:
        wire.written_at = time.monotonic()
    tasks = [
        asyncio.create_task(live.follow(reader, pipe))
        for reader, pipe in zip(readers, wires, strict=True)
    ]
    await asyncio.sleep(0)
    try:
        yield live, readers, wires, tasks
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)


def colours(*names: str, after: int = 0) -> Batch:
    """An event of each source, one a millisecond."""
    entries = [
        entry
        for ms, name in enumerate(names, after + 1)
        if (entry := read_entry(StreamId(ms, 0), b'{"source":"%b","message":"m"}' % name.encode()))
    ]
    return Batch(at(after), at(after + len(names)), entries)


def lines(pipe: Pipe) -> list[bytes]:
    return b"".join(pipe.chunks).splitlines(keepends=True)


async def test_an_event_that_was_written_is_the_newest_that_is_told() -> None:
    """A progress below it would have a reader go back."""
    async with following(RED) as (live, [reader], [pipe], _):
        passed: list[StreamId | None] = []
        for number, batch in enumerate([colours("blue", "blue"), colours("blue", "red", after=2)]):
            await live.carry(batch, number)
            passed.append(pipe.passed)
        assert passed == [StreamId(2, 0), None]
        assert (reader.cursor, reader.number) == (at(4), 2)
        live.beat(0)
        assert lines(pipe)[-1] == NDJSON.heartbeat


async def test_what_follows_an_event_that_was_written_is_told_by_a_progress() -> None:
    async with following(RED) as (live, _, [pipe], _):
        await live.carry(colours("red", "blue"), 0)
        assert pipe.passed == StreamId(2, 0)
        live.beat(0)
        assert lines(pipe)[-1] == NDJSON.message(Progress(StreamId(2, 0)))
        live.beat(0)
        assert lines(pipe)[-1] == NDJSON.heartbeat  # the progress was sent


async def test_a_reader_is_counted_while_it_follows() -> None:
    async with following(EVERYTHING, EVERYTHING, RED) as (live, _, _, tasks):
        assert live.count == 3
        live.dismiss()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert live.count == 0
        assert not live._followers
        assert not len(live._index)


async def test_readers_of_one_filter_leave_one_by_one() -> None:
    async with following(RED, RED, EVERYTHING) as (live, _, pipes, tasks):
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert live.count == 2
        await live.carry(colours("red"), 0)
        assert [pipe.events for pipe in pipes] == [0, 1, 1]


async def test_each_event_is_counted_for_each_reader() -> None:
    async with following(EVERYTHING, EVERYTHING, RED) as (live, _, pipes, _):
        await live.carry(colours("red", "blue", "red"), 0)
        metrics = live._metrics
        assert metrics.delivered_events._value.get() == 3 + 3 + 2
        assert metrics.window_reads._value.get() == 3
        written = sum(len(b"".join(pipe.chunks)) for pipe in pipes)
        assert metrics.delivered_bytes._value.get() == written


async def test_a_reader_that_is_elsewhere_is_not_written_to() -> None:
    async with following(EVERYTHING, EVERYTHING) as (live, readers, pipes, _):
        readers[0].number = 1
        await live.carry(colours("red"), 0)
        assert [pipe.events for pipe in pipes] == [0, 1]
        assert readers[0].cursor == Cursor(START)


class Ending(Pipe):
    """A wire whose first write has all readers go on by themselves."""

    def __init__(self, live: list[Live]) -> None:
        super().__init__()
        self.live = live

    def write(self, part: bytes) -> bool:
        for each in self.live:
            each.dismiss()
        return super().write(part)


async def test_who_goes_on_by_itself_during_a_batch_is_not_written_the_rest() -> None:
    """It may read the same batch meanwhile."""
    count, lives = 3 * WRITES_AT_ONCE, list[Live]()
    pipes = [Ending(lives) for _ in range(count)]
    async with following(*[EVERYTHING] * count, pipes=pipes) as (live, readers, _, tasks):
        lives.append(live)
        await live.carry(colours("red"), 0)
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert sum(pipe.events for pipe in pipes) == WRITES_AT_ONCE
        for reader, pipe in zip(readers, pipes, strict=True):
            assert (reader.number, reader.cursor) == ((1, at(1)) if pipe.events else (0, at(0)))


async def test_a_reader_whose_wire_is_full_goes_on_by_itself() -> None:
    async with following(EVERYTHING, EVERYTHING, pipes=[Pipe(room=1), Pipe()]) as (
        live, readers, pipes, tasks,
    ):  # fmt: skip
        await live.carry(colours("red"), 0)
        await asyncio.wait_for(tasks[0], 5)
        assert (readers[0].number, readers[0].cursor) == (1, at(1))
        await live.carry(colours("red", after=1), 1)
        assert [pipe.events for pipe in pipes] == [1, 2]
        assert not tasks[1].done()


async def test_formats_and_chunks_are_kept_apart() -> None:
    pipes = [Pipe(), Pipe(chunked=False), Pipe()]
    pipes[2].encoder = SSE
    async with following(*[EVERYTHING] * 3, pipes=pipes) as (live, _, _, _):
        batch = colours("red")
        await live.carry(batch, 0)
        expected: list[Encoder] = [NDJSON, NDJSON, SSE]
        assert [b"".join(pipe.chunks) for pipe in pipes] == [
            encoder.entries(batch.entries) for encoder in expected
        ]
        live.beat(0)
        assert [pipe.chunks[-1] for pipe in pipes] == [each.heartbeat for each in expected]


@pytest.mark.parametrize(("quiet_s", "told"), [(0.0, False), (PROGRESS_S + 1, True)])
async def test_a_filter_that_takes_nothing_is_reported_now_and_then(
    quiet_s: float, told: bool
) -> None:
    async with following(RED) as (live, [reader], [pipe], _):
        pipe.written_at = time.monotonic() - quiet_s
        await live.carry(colours("blue"), 0)
        assert (reader.cursor, reader.number) == (at(1), 1)
        assert lines(pipe) == [NDJSON.message(Progress(StreamId(1, 0)))] * told
        assert pipe.passed == (None if told else StreamId(1, 0))
        assert live._metrics.delivered_bytes._value.get() == len(b"".join(pipe.chunks))
        assert live._metrics.window_reads._value.get() == 0


@pytest.mark.parametrize(
    ("quiet_s", "passed", "told"),
    [
        (9.0, None, []),
        (11.0, None, [NDJSON.heartbeat]),
        (PROGRESS_S - 1, StreamId(7, 0), []),
        (PROGRESS_S + 1, StreamId(7, 0), [NDJSON.message(Progress(StreamId(7, 0)))]),
    ],
)
async def test_a_beat_writes_to_who_has_had_nothing_for_long(
    quiet_s: float, passed: StreamId | None, told: list[bytes]
) -> None:
    async with following(EVERYTHING) as (live, _, [pipe], _):
        pipe.written_at = time.monotonic() - quiet_s
        pipe.passed = passed
        live.beat(10)
        assert lines(pipe) == told
        live.beat(10)
        assert lines(pipe) == told
        assert live._metrics.delivered_bytes._value.get() == len(b"".join(pipe.chunks))


async def test_a_batch_without_entries_moves_the_cursors() -> None:
    page = a_page(at(0), end=at(4), unreadable=1)
    async with following(EVERYTHING) as (live, [reader], [pipe], _):
        await live.carry(Batch(page.start, page.end, page.entries), 0)
        assert (reader.cursor, reader.number, pipe.chunks) == (at(4), 1, [])


async def test_others_have_their_turn_behind_each_batch() -> None:
    async with following(EVERYTHING) as (live, _, _, _):
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        await live.carry(colours("red"), 0)
        assert turns


# -- filters that cost much ------------------------------------------------------------------------


class Costs:
    """A clock that goes on only by what filters cost; all filters take every event."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.of: dict[str, float] = {}
        """Seconds that filters take for an event, by their text."""

    def clock(self) -> float:
        return self.seconds

    def predicate(self, chosen: Filter) -> Predicate | None:
        def accepts(_: StoredEvent) -> bool:
            self.seconds += self.of.get(chosen.query, 0.0)
            return True

        return accepts if chosen.query else None


class Crowd:
    """Live readers without a hub, each with a filter of its own."""

    def __init__(self, costs: Costs, *filters: Filter) -> None:
        index = FilterIndex(clock=costs.clock, cpu_clock=costs.clock)
        self.live = Live(Metrics(), index, Turns(costs.clock))
        self.readers = [Reader(each) for each in filters]
        self.pipes = [Pipe() for _ in filters]
        self.tasks = [
            asyncio.create_task(self.live.follow(reader, pipe))
            for reader, pipe in zip(self.readers, self.pipes, strict=True)
        ]

    async def __aenter__(self) -> "Crowd":
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self.tasks:
            each.cancel()
        await asyncio.wait(self.tasks)


def a_batch(count: int, start: int = 1) -> Batch:
    """Events so large that each is a step of its own for a filter."""
    raw = b'{"source":"api","message":"%b"}' % (b"m" * SLICE_BYTES)
    entries = [
        entry
        for number in range(start, start + count)
        if (entry := read_entry(StreamId(number, 0), raw))
    ]
    return Batch(Cursor(StreamId(start - 1, 0)), Cursor(entries[-1].id), entries)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    costs = Costs()
    monkeypatch.setattr(Filter, "predicate", property(costs.predicate))
    return costs


async def test_a_slow_filter_does_not_hold_up_other_readers(costs: Costs) -> None:
    costs.of["slow"] = 0.01
    async with Crowd(costs, Filter("slow"), Filter("fast"), EVERYTHING) as crowd:
        batch = a_batch(500)
        await crowd.live.carry(batch, 0)
        assert costs.seconds < 0.03
        slow, *others = crowd.readers
        await asyncio.wait_for(crowd.tasks[0], 5)  # it goes on by itself, with the same batch
        assert slow.number == 0
        assert slow.cursor == Cursor(START)
        assert [pipe.events for pipe in crowd.pipes] == [0, 500, 500]
        assert {(each.number, each.cursor) for each in others} == {(1, batch.end)}
        assert not any(task.done() for task in crowd.tasks[1:])


async def test_a_slow_filter_that_comes_back_is_not_evaluated_again(costs: Costs) -> None:
    costs.of["slow"] = 0.01
    async with Crowd(costs, Filter("slow"), EVERYTHING) as crowd:
        await crowd.live.carry(a_batch(100), 0)
        await asyncio.wait_for(crowd.tasks[0], 5)
        crowd.readers[0].number = 1
        again = asyncio.create_task(crowd.live.follow(crowd.readers[0], crowd.pipes[0]))
        await asyncio.sleep(0)
        before = costs.seconds
        await crowd.live.carry(a_batch(100, 101), 1)
        assert costs.seconds == before
        await asyncio.wait_for(again, 5)
        assert [pipe.events for pipe in crowd.pipes] == [0, 200]


async def test_others_have_their_turn_while_a_batch_is_filtered(costs: Costs) -> None:
    filters = [Filter(f"-word{number}") for number in range(20)]
    costs.of.update({each.query: 0.003 for each in filters})
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with Crowd(costs, *filters) as crowd:
        other = asyncio.create_task(others())
        await crowd.live.carry(a_batch(2), 0)
        other.cancel()
        assert [pipe.events for pipe in crowd.pipes] == [2] * 20
    assert turns >= 15  # of 120 ms, each after 5 ms, and those that a step is longer


async def test_readers_that_leave_or_come_while_a_batch_is_filtered(costs: Costs) -> None:
    filters = [Filter(f"-word{number}") for number in range(30)]
    costs.of.update({each.query: 0.002 for each in filters})
    async with Crowd(costs, *filters) as crowd:
        batch, following = a_batch(3), a_batch(2, 4)
        carrying = asyncio.create_task(crowd.live.carry(batch, 0))
        async with asyncio.timeout(30):
            while not crowd.pipes[0].events:
                await asyncio.sleep(0)
        assert not crowd.pipes[-1].events
        crowd.tasks[-1].cancel()  # it leaves
        late = Reader(filters[5])
        late.number, late.cursor, pipe = 1, batch.end, Pipe()
        crowd.tasks.append(asyncio.create_task(crowd.live.follow(late, pipe)))
        await asyncio.wait_for(carrying, 30)
        assert [each.events for each in crowd.pipes] == [3] * 29 + [0]
        assert pipe.events == 0
        await asyncio.wait_for(crowd.live.carry(following, 1), 30)
        assert [each.events for each in crowd.pipes] == [5] * 29 + [0]
        assert pipe.events == 2
        for each in crowd.pipes[:29]:
            sent = [line for line in b"".join(each.chunks).split(b"\n") if line]
            assert [f'"id":"{number}-0"'.encode() in line for number, line in enumerate(sent, 1)]
        assert crowd.readers[-1].number == 0


async def test_readers_dismissed_during_a_batch_have_it_once(costs: Costs) -> None:
    filters = [Filter(f"-word{number}") for number in range(30)]
    costs.of.update({each.query: 0.002 for each in filters})
    async with Crowd(costs, *filters) as crowd:
        batch = a_batch(3)
        carrying = asyncio.create_task(crowd.live.carry(batch, 0))
        async with asyncio.timeout(30):
            while not crowd.pipes[0].events:
                await asyncio.sleep(0)
        crowd.live.dismiss()
        await asyncio.wait_for(carrying, 30)
        for reader, pipe in zip(crowd.readers, crowd.pipes, strict=True):
            had = pipe.events > 0
            assert (reader.number, pipe.events) == ((1, 3) if had else (0, 0))
        assert not crowd.pipes[-1].events


async def test_who_is_not_reached_in_one_batch_is_evaluated_for_the_next(costs: Costs) -> None:
    filters = [Filter(f"-word{number}") for number in range(60)]
    costs.of.update({each.query: 0.009 for each in filters})
    async with Crowd(costs, *filters) as crowd:
        first, second = a_batch(1), a_batch(1, 2)
        await crowd.live.carry(first, 0)
        late = [number for number, pipe in enumerate(crowd.pipes) if not pipe.events]
        assert 0 < len(late) < 60
        for number in late:  # each reads the batch by itself and comes back
            await asyncio.wait_for(crowd.tasks[number], 5)
            reader = crowd.readers[number]
            reader.number, reader.cursor = 1, first.end
            crowd.tasks[number] = asyncio.create_task(
                crowd.live.follow(reader, crowd.pipes[number])
            )
        await asyncio.sleep(0)
        costs.of.clear()
        await crowd.live.carry(second, 1)
        assert all(pipe.chunks for pipe in crowd.pipes)
        assert {reader.number for reader in crowd.readers} == {2}
