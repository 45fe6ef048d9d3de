"""Live readers over a real hub and Valkey; their wires are a test's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from logpipe.continuity import Cursor
from logpipe.fanout import live as module
from logpipe.fanout.hub import Hub
from logpipe.fanout.streaming import NDJSON
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import StreamId
from logpipe.messages import Batch, Hello, Start
from logpipe.stream import Append
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
