"""The search with which a subscription with `tail` begins."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logpipe.continuity import Gap
from logpipe.fanout import look_back
from logpipe.fanout.history import SCAN_SEATS
from logpipe.fanout.hub import LOOK_BACKS, Hub
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import END, StreamId
from logpipe.messages import Batch, Bye, Hello, Item, Progress, Start
from logpipe.problems import Unavailable
from logpipe.stream import Append, RawEntry, Stream
from tests.helpers import wait_until
from tests.servers import Valkey
from tests.streams import NAME, add, address_of, plain, running

RARE = Filter("source:rare")
TIMEOUT_S = 15


class GatedStream(Stream):
    """A stream whose reads backwards wait while `open` is not set."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.open = asyncio.Event()
        self.open.set()
        self.failures = 0
        self.fails_at = 0
        """The read that fails, counted from 1."""
        self.begun = 0
        self.at_once = 0
        self.most_at_once = 0

    async def raw_range(
        self, low: StreamId, high: StreamId, count: int, *, newest_first: bool = False
    ) -> list[RawEntry]:
        if not newest_first or count == 1:
            return await super().raw_range(low, high, count, newest_first=newest_first)
        self.begun += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.open.wait()
            await asyncio.sleep(0)
            if self.failures or self.begun == self.fails_at:
                self.failures = max(0, self.failures - 1)
                raise Unavailable("away", "on purpose")
            return await super().raw_range(low, high, count, newest_first=newest_first)
        finally:
            self.at_once -= 1


class Gated(Hub):
    stream: GatedStream


@contextlib.asynccontextmanager
async def a_hub(valkey: Valkey, **more: Any) -> AsyncIterator[Any]:
    stream = GatedStream(address_of(valkey), NAME, maxlen=100_000, block_ms=50)
    try:
        async with running(stream, **more) as hub:
            await wait_until(lambda: hub.attached, "the hub has reached the stream")
            yield hub
    finally:
        await stream.aclose()


class Reading:
    """A subscription, what it has given, and the entries among that."""

    def __init__(self, hub: Hub, start: Start, chosen: Filter) -> None:
        self.subscription = HubSubscription(hub, start, chosen)
        self.items: list[Item] = []

    @property
    def ids(self) -> list[StreamId]:
        chosen = self.subscription.filter
        batches = [item for item in self.items if isinstance(item, Batch)]
        return [entry.id for batch in batches for entry in batch.matching(chosen)]

    async def next(self) -> list[Item]:
        async with asyncio.timeout(TIMEOUT_S):
            items = list(await self.subscription.next() or ())
        self.items += items
        return items

    async def hello(self) -> Hello:
        (item,) = await self.next()
        assert isinstance(item, Hello)
        return item

    async def until(self, last: StreamId) -> list[StreamId]:
        """All ids, once the last of them has come."""
        while not self.ids or self.ids[-1] != last:
            await self.next()
        return self.ids


@contextlib.contextmanager
def reading(hub: Hub, start: Start, chosen: Filter = RARE) -> Iterator[Reading]:
    made = Reading(hub, start, chosen)
    with made.subscription:
        yield made


def an_event(source: str, size: int = 1) -> bytes:
    return b'{"source":"%b","message":"%b"}' % (source.encode(), b"x" * size)


async def appended(stream: Stream, *sources: str, size: int = 1) -> list[StreamId]:
    """Appends an event of each source; their ids."""
    before = (await stream.bounds()).last
    await stream.append([Append([an_event(source, size) for source in sources])])
    return [id_ for id_, _ in await stream.range(before.after(), END, len(sources))]


async def rare_among(stream: Stream, often: int, rare: int = 1, size: int = 1) -> list[StreamId]:
    """Appends rare events, with so many others before, after and between; the ids of the rare."""
    run = ["often"] * often
    ids = await appended(stream, *run, *["rare", *run] * rare, size=size)
    return ids[often :: often + 1][:rare]


async def test_hello_comes_before_the_search_and_without_an_id(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await rare_among(hub.stream, 10, 3)
        hub.stream.open.clear()
        with reading(hub, Start(tail=2)) as reader:
            hello = await reader.hello()
            assert (hello.id, hub.stream.begun) == (None, 0)
            assert hello.first is not None and hello.last is not None
            assert hello.first < ids[0] and hello.last > ids[-1]
            hub.stream.open.set()
            assert await reader.until(ids[-1]) == ids[1:]


async def test_heartbeats_and_bye_come_while_it_searches(valkey: Valkey) -> None:
    async with a_hub(valkey, heartbeat_s=0.05) as hub:
        await rare_among(hub.stream, 10)
        hub.stream.open.clear()
        with reading(hub, Start(tail=2)) as reader:
            await reader.hello()
            assert await reader.next() == []
            assert await reader.next() == []
            assert hub.stream.begun == 1
            hub.close()
            (bye,) = await reader.next()
            assert isinstance(bye, Bye)
            assert await reader.subscription.next() is None
        await wait_until(lambda: not hub.stream.at_once, "the search has ended")


async def test_a_client_that_leaves_ends_its_search_within_a_step(valkey: Valkey) -> None:
    async with a_hub(valkey, heartbeat_s=0.05) as hub:
        await rare_among(hub.stream, 1000)
        hub.stream.open.clear()
        with reading(hub, Start(tail=2)) as reader:
            await reader.hello()
            await reader.next()
        hub.stream.open.set()
        await wait_until(lambda: not hub.searches, "the search has ended")
        assert hub.stream.begun == 1
        assert hub.looking_back._value == LOOK_BACKS
        assert hub.kept_bytes == 0


async def test_searches_keep_no_other_reader_waiting(valkey: Valkey) -> None:
    async with a_hub(valkey, queue_len=5) as hub:
        ids = await add(hub.stream, 60)
        await wait_until(lambda: hub.window.end.id == ids[-1], "the hub has read everything")
        hub.stream.open.clear()
        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(reading(hub, Start(tail=2))) for _ in range(20)]
            for each in many:
                await each.hello()
            waiting = [asyncio.create_task(each.next()) for each in many]
            await wait_until(lambda: hub.stream.at_once == LOOK_BACKS, "they search")
            with reading(hub, Start(resume=ids[0]), EVERYTHING) as other:
                assert await other.until(ids[-1]) == ids[1:]
            with reading(hub, Start(since=ids[1]), EVERYTHING) as other:
                assert (await other.hello()).id == ids[0]
            # And there is a seat left for a page of the history.
            assert hub.stream.most_at_once == LOOK_BACKS < SCAN_SEATS
            hub.scan_seats.require()
            hub.stream.open.set()
            await asyncio.gather(*waiting)


async def test_events_that_come_during_the_search_follow_what_it_finds(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await rare_among(hub.stream, 10, 5)
        hub.stream.open.clear()
        with reading(hub, Start(tail=2)) as reader:
            await reader.hello()
            searching = asyncio.create_task(reader.next())
            ids += await rare_among(hub.stream, 1, 5)
            hub.stream.open.set()
            await searching
            assert await reader.until(ids[-1]) == ids[3:]


async def test_nothing_found_is_told_by_a_progress_with_an_id(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        [*_, last] = await add(hub.stream, 30)
        with reading(hub, Start(tail=2)) as reader:
            await reader.hello()
            assert await reader.next() == [Progress(last)]
            missed = await rare_among(hub.stream, 3, 2)
        with reading(hub, Start(resume=last)) as reader:
            assert await reader.until(missed[-1]) == missed


@pytest.mark.parametrize("found", [0, 1])
async def test_a_search_that_ends_at_its_limit_says_how_far_it_looked(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, found: int
) -> None:
    monkeypatch.setattr(look_back, "MAX_ENTRIES", 200)
    async with a_hub(valkey, batch_count=50) as hub:
        old = await rare_among(hub.stream, 500, 2)
        new = await rare_among(hub.stream, 100, found)
        end = (await hub.stream.bounds()).last
        with reading(hub, Start(tail=5)) as reader:
            await reader.hello()
            told, *batches = await reader.next()
            assert isinstance(told, Progress)
            assert told.looked_back_to is not None
            assert old[-1] < told.looked_back_to < end
            kept = await hub.stream.range(told.looked_back_to.after(), end, 1000)
            assert len(kept) == 200
            assert told.id == (told.looked_back_to if found else end)
            assert len(batches) == found
            new += await rare_among(hub.stream, 2, 1)
            assert await reader.until(new[-1]) == new
        assert "look_back" in hub.metrics._limited
        assert hub.metrics._limited["look_back"]._value.get() == 1


async def test_a_search_that_finds_all_or_reaches_the_end_tells_no_limit(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await rare_among(hub.stream, 50, 3)
        for wanted in (2, 3, 9):
            with reading(hub, Start(tail=wanted)) as reader:
                assert await reader.until(ids[-1]) == ids[-wanted:]
                assert not any(isinstance(item, Progress) for item in reader.items)
        assert hub.metrics._limited["look_back"]._value.get() == 0


@pytest.mark.parametrize("bound", ["BATCH_BYTES", "KEPT_BYTES"])
async def test_what_is_too_much_to_keep_is_read_again(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(look_back, bound, 5_000)
    async with a_hub(valkey, queue_len=5, batch_count=20) as hub:
        ids = await rare_among(hub.stream, 7, 20, size=1_000)
        with reading(hub, Start(tail=15)) as reader:
            await reader.hello()
            (told,) = await reader.next()
            assert isinstance(told, Progress) and told.id < ids[5]
            assert hub.kept_bytes == 0
            assert await reader.until(ids[-1]) == ids[5:]


async def test_it_begins_anew_after_redis_was_away(valkey: Valkey) -> None:
    async with a_hub(valkey, batch_count=20) as hub:
        ids = await rare_among(hub.stream, 30, 4)
        hub.stream.failures = 3
        with reading(hub, Start(tail=3)) as reader:
            await reader.hello()
            assert await reader.until(ids[-1]) == ids[1:]


async def test_what_it_found_before_redis_went_away_is_not_given_twice(valkey: Valkey) -> None:
    async with a_hub(valkey, batch_count=20) as hub:
        ids = await rare_among(hub.stream, 30, 4)
        hub.stream.fails_at = 3  # the newest was found in the second read
        with reading(hub, Start(tail=3)) as reader:
            await reader.hello()
            assert await reader.until(ids[-1]) == ids[1:]
        assert hub.stream.begun > 3


async def test_what_a_search_has_kept_is_given_back_at_its_end(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await rare_among(hub.stream, 10, 3)
        with reading(hub, Start(tail=2)) as reader:
            assert await reader.until(ids[-1]) == ids[1:]
        assert hub.kept_bytes == 0


async def test_a_client_that_leaves_before_its_search_begins_leaves_nothing(
    valkey: Valkey,
) -> None:
    async with a_hub(valkey) as hub:
        with reading(hub, Start(tail=2)) as reader:
            await reader.hello()
        assert not hub.searches


async def test_a_reader_whose_search_a_closing_hub_ends_has_its_farewell(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        await rare_among(hub.stream, 10)
        hub.stream.open.clear()
        with reading(hub, Start(tail=2)) as reader:
            await reader.hello()
            waiting = asyncio.create_task(reader.next())
            await wait_until(lambda: hub.stream.at_once, "it searches")
            hub.close()
            (bye,) = await waiting
            assert isinstance(bye, Bye)


async def test_it_looks_no_further_back_than_since(valkey: Valkey) -> None:
    async with a_hub(valkey, batch_count=20) as hub:
        ids = await rare_among(hub.stream, 30, 6)
        with reading(hub, Start(since=ids[4], tail=5)) as reader:
            assert (await reader.hello()).id is None
            assert await reader.until(ids[-1]) == ids[4:]
        with reading(hub, Start(since=ids[1], tail=2)) as reader:
            assert await reader.until(ids[-1]) == ids[4:]


async def test_it_tells_what_is_missing_since_a_trimmed_time(valkey: Valkey) -> None:
    async with a_hub(valkey, batch_count=20) as hub:
        ids = await rare_among(hub.stream, 3, 6)
        await plain(hub.stream).xtrim(NAME, minid=str(ids[3]), approximate=False)
        gap = Gap("trimmed", ids[1].before(), ids[3], None, ids[3].before())
        with reading(hub, Start(since=ids[1], tail=9)) as reader:
            await reader.hello()
            assert (await reader.next())[0] == gap
            assert await reader.until(ids[-1]) == ids[3:]
        with reading(hub, Start(since=ids[1], tail=2)) as reader:
            assert await reader.until(ids[-1]) == ids[4:]
            assert gap not in reader.items


async def test_of_a_stream_without_entries_it_begins_at_the_end(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        with reading(hub, Start(tail=5), EVERYTHING) as reader:
            await reader.hello()
            assert await reader.next() == [Progress(StreamId(0, 0))]
            ids = await add(hub.stream, 3)
            assert await reader.until(ids[-1]) == ids
        await plain(hub.stream).xtrim(NAME, maxlen=0, approximate=False)
        with reading(hub, Start(tail=5), EVERYTHING) as reader:
            await reader.hello()
            assert await reader.next() == [Progress(ids[-1])]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from("ab"), max_size=40), st.integers(0, 20), st.integers(1, 15))
def test_any_tail_gives_the_last_matching_events(
    valkey: Valkey, kinds: list[str], wanted: int, batch: int
) -> None:
    async def begin() -> None:
        valkey.client.flushall()
        async with a_hub(valkey, batch_count=batch) as hub:
            ids = await appended(hub.stream, *kinds) if kinds else []
            matching = [id_ for id_, kind in zip(ids, kinds, strict=True) if kind == "a"]
            with reading(hub, Start(tail=wanted), Filter("source:a")) as reader:
                await reader.hello()
                [live] = await appended(hub.stream, "a")
                assert await reader.until(live) == [
                    *matching[max(0, len(matching) - wanted) :],
                    live,
                ]

    asyncio.run(begin())
