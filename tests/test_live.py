"""Live readers over a real hub and Valkey; their wires are a test's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from logpipe.continuity import Cursor
from logpipe.event import StoredEvent, read_entry
from logpipe.fanout import live as module
from logpipe.fanout.hub import Hub
from logpipe.fanout.live import Live
from logpipe.fanout.streaming import NDJSON
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import EVERYTHING, Filter, Predicate
from logpipe.filters.index import SLICE_BYTES, FilterIndex
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Hello, Start
from logpipe.metrics import Metrics
from logpipe.stream import Append
from logpipe.turns import Turns
from tests.helpers import wait_until
from tests.scripted_stream import Pipe
from tests.servers import Valkey
from tests.streams import add, address_of, events, running, stream_at

NOTHING = Filter("message:nowhere")


class Follower:
    """A subscription that has been greeted, and its pipe."""

    def __init__(
        self,
        hub: Hub,
        chosen: Filter = EVERYTHING,
        room: int = 1_000_000,
        *,
        chunked: bool = True,
    ) -> None:
        self.subscription = HubSubscription(hub, Start(), chosen)
        self.pipe = Pipe(room, chunked=chunked)
        self.task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                items = await self.subscription.next()
        assert items is not None and isinstance(items[0], Hello)
        self.task = asyncio.create_task(self.subscription.follow(self.pipe))
        await asyncio.sleep(0)
        assert not self.task.done()


@contextlib.asynccontextmanager
async def a_hub(valkey: Valkey, heartbeat_s: float = 60.0) -> AsyncIterator[Hub]:
    async with (
        stream_at(address_of(valkey), block_ms=50) as stream,
        running(stream, heartbeat_s=heartbeat_s) as hub,
    ):
        await wait_until(lambda: hub.attached, "the feed has begun")
        await add(stream)
        await wait_until(lambda: hub.window.entries == 1, "the feed has the first entry")
        yield hub


async def test_live_readers_are_written_what_comes_without_being_woken(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        followers = [Follower(hub) for _ in range(module.WRITES_AT_ONCE + 10)]
        for each in followers:
            await each.begin()
        for _ in range(3):
            await add(hub.stream, 2)
        await wait_until(lambda: all(each.pipe.events == 6 for each in followers), "all have it")
        assert {each.subscription.cursor for each in followers} == {hub.window.end}
        assert not any(each.task is None or each.task.done() for each in followers)
        hub.close()
        for each in followers:
            assert each.task is not None
            await asyncio.wait_for(each.task, 5)


async def test_one_that_does_not_keep_up_goes_on_by_itself_from_where_it_is(
    valkey: Valkey,
) -> None:
    async with a_hub(valkey) as hub:
        slow, quick = Follower(hub, room=1), Follower(hub)
        for each in (slow, quick):
            await each.begin()
        await add(hub.stream, 3)
        assert slow.task is not None
        await asyncio.wait_for(slow.task, 5)
        await add(hub.stream, 4)
        await wait_until(lambda: quick.pipe.events == 7, "the other has all")
        assert slow.pipe.events == 3
        left = 0
        while left < 4:
            items = await asyncio.wait_for(slow.subscription.next(), 5)
            left += sum(len(item.entries) for item in items or () if isinstance(item, Batch))
        assert left == 4
        assert slow.subscription.cursor == quick.subscription.cursor


async def test_who_is_not_at_the_end_of_the_window_is_not_taken(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        behind = HubSubscription(hub, Start(since=StreamId(1, 0)), EVERYTHING)
        await behind.next()
        await asyncio.wait_for(behind.follow(Pipe()), 10)
        hub.closing = True
        ahead = HubSubscription(hub, Start(), EVERYTHING)
        ahead.number = hub.window.next_number
        await asyncio.wait_for(ahead.follow(Pipe()), 10)


async def test_a_filter_that_takes_nothing_moves_the_cursor_and_says_so(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_S", 0.0)
    async with a_hub(valkey) as hub:
        follower = Follower(hub, NOTHING)
        await follower.begin()
        await add(hub.stream, 2)

        def told() -> bool:
            end = str(hub.window.end.id).encode()
            chunks = follower.pipe.chunks
            return any(b'"event":"progress"' in chunk and end in chunk for chunk in chunks)

        await wait_until(told, "it is told")
        assert follower.subscription.cursor == hub.window.end


async def test_rejected_entries_behind_a_match_are_told_with_the_next_beat(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_S", 0.05)
    async with a_hub(valkey, heartbeat_s=0.2) as hub:
        follower = Follower(hub, Filter('"number 0"'))
        await follower.begin()
        await hub.stream.append([Append(events(3))])

        def reported() -> bool:
            end = str(hub.window.end.id).encode()
            news = follower.pipe.news
            return any(b'"event":"progress"' in each and end in each for each in news)

        await wait_until(reported, "the progress is reported")
        assert follower.pipe.events == 1


async def test_an_idle_live_reader_has_heartbeats(valkey: Valkey) -> None:
    async with a_hub(valkey, heartbeat_s=0.2) as hub:
        follower = Follower(hub)
        await follower.begin()
        await wait_until(lambda: len(follower.pipe.chunks) >= 2, "two heartbeats")
        assert set(follower.pipe.chunks) == {NDJSON.heartbeat}


async def test_readers_with_and_without_chunks_have_the_same_bytes(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        readers = [Follower(hub, chunked=chunked) for chunked in (True, False, True)]
        for each in readers:
            await each.begin()
        await add(hub.stream, 3)
        await wait_until(lambda: all(each.pipe.events == 3 for each in readers), "all have it")
        written = [b"".join(each.pipe.chunks) for each in readers]
        assert len({each.replace(NDJSON.heartbeat, b"") for each in written}) == 1
        # The chunks are HTTP's and not counted; heartbeats are.
        assert hub.metrics.delivered_bytes._value.get() == sum(map(len, written))


async def test_after_a_flush_each_goes_on_by_itself_and_is_told(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        follower = Follower(hub)
        await follower.begin()
        valkey.client.flushall()
        await add(hub.stream, 2)
        assert follower.task is not None
        await asyncio.wait_for(follower.task, 5)
        seen: list[str] = []
        while "Batch" not in seen:
            items = await asyncio.wait_for(follower.subscription.next(), 5)
            seen += [type(item).__name__ for item in items or ()]
        assert seen[0] == "Gap"


async def test_one_that_leaves_is_forgotten(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        follower, other = Follower(hub), Follower(hub)
        for each in (follower, other):
            await each.begin()
        assert follower.task is not None
        follower.task.cancel()
        await asyncio.wait((follower.task,))
        await add(hub.stream)
        await wait_until(lambda: other.pipe.events == 1, "the other goes on")
        assert not follower.pipe.news
        assert follower.subscription.cursor != Cursor(hub.window.end.id)


# -- filters that cost much ------------------------------------------------------------------------


class Reader:
    """A `live.Reader` that has had all up to the batch with number 0."""

    def __init__(self, chosen: Filter) -> None:
        self.filter = chosen
        self.cursor = Cursor(START)
        self.number: int | None = 0


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
