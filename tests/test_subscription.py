import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry
from logpipe.fanout.hub import CATCHUP_READERS, Hub
from logpipe.fanout.subscription import HubSubscription
from logpipe.fanout.window import BATCH_BYTES
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Bye, Hello, Item, Notice, Progress, Start, retry_ms
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.stream import Append, Page
from tests.helpers import fair_time, wait_until
from tests.servers import Valkey
from tests.streams import NAME, add, address_of, event, plain, running, stream_at


@contextlib.asynccontextmanager
async def a_hub(valkey: Valkey, **more: Any) -> AsyncIterator[Hub]:
    """A hub over the test's Valkey that has attached."""
    async with stream_at(address_of(valkey)) as stream, running(stream, **more) as hub:
        await wait_until(lambda: hub.attached, "the hub has reached the stream")
        yield hub


# -- where a subscription begins -------------------------------------------------------------------


class Reading:
    """A subscription as a test reads it."""

    def __init__(self, hub: Hub, start: Start, chosen: Filter = EVERYTHING) -> None:
        self.subscription = HubSubscription(hub, start, chosen)
        self.filter = chosen
        self.items: list[Item] = []

    async def next(self) -> Item:
        """The next item; heartbeats are passed over."""
        while not self.items:
            found = await asyncio.wait_for(self.subscription.next(), 5)
            assert found is not None, "the subscription has ended"
            self.items += found
        return self.items.pop(0)

    async def hello(self) -> Hello:
        item = await self.next()
        assert isinstance(item, Hello)
        return item

    async def begin(self) -> StreamId:
        """The id of the hello."""
        begin = (await self.hello()).id
        assert begin is not None
        return begin

    async def gap(self) -> Gap:
        """The next item but empty batches is a gap."""
        while True:
            item = await self.next()
            if isinstance(item, Gap):
                return item
            assert isinstance(item, Batch) and not item.entries, f"{item} is no gap"

    async def ids(self, count: int) -> list[StreamId]:
        """The ids of exactly the next `count` entries."""
        return [entry.id for entry in await self.entries(count)]

    async def entries(self, count: int) -> list[Entry]:
        found: list[Entry] = []
        while len(found) < count:
            item = await self.next()
            if isinstance(item, Progress):
                continue
            assert isinstance(item, Batch), f"{item} is no batch"
            found += item.matching(self.filter)
        assert len(found) == count
        return found


@contextlib.contextmanager
def reading(hub: Hub, start: Start, chosen: Filter = EVERYTHING) -> Iterator[Reading]:
    made = Reading(hub, start, chosen)
    with made.subscription:
        yield made


async def in_step(hub: Hub) -> None:
    """The hub has read all that there is."""
    last = (await hub.stream.bounds()).last
    await wait_until(lambda: hub.window.end.id == last, "the hub has read everything")


async def test_the_first_word_is_hello_with_the_ids_that_are_kept(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        with reading(hub, Start()) as reader:
            assert await reader.hello() == Hello(START, None, None, "broadcast", "0.1.0")
        ids = await add(hub.stream, 3)
        await in_step(hub)
        with reading(hub, Start()) as reader:
            assert await reader.hello() == Hello(ids[2], ids[0], ids[2], "broadcast", "0.1.0")
            new = await add(hub.stream, 2)
            assert await reader.ids(2) == new


async def test_a_reader_that_had_only_the_hello_resumes_at_its_id(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        await add(hub.stream, 3)
        await in_step(hub)
        with reading(hub, Start()) as reader:
            begin = await reader.begin()
        missed = await add(hub.stream, 4)
        with reading(hub, Start(resume=begin)) as reader:
            assert (await reader.hello()).id == begin
            assert await reader.ids(4) == missed


async def test_a_reader_resumes_after_any_id_it_had_on_any_replica(valkey: Valkey) -> None:
    async with a_hub(valkey, queue_len=10) as one:
        ids = await add(one.stream, 30)
        async with a_hub(valkey) as other:
            for hub, number in itertools.product((one, other), (0, 5, 19, 25, 28)):
                with reading(hub, Start(resume=ids[number])) as reader:
                    await reader.hello()
                    assert await reader.ids(29 - number) == ids[number + 1 :]


async def test_earliest_is_everything_that_is_kept_without_a_gap(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await add(hub.stream, 10)
        await plain(hub.stream).xtrim(NAME, maxlen=6, approximate=False)
        with reading(hub, Start(since=START)) as reader:
            assert (await reader.hello()).id == ids[4].before()
            assert await reader.ids(6) == ids[4:]


async def test_since_begins_with_the_first_entry_that_is_not_older(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await add(hub.stream, 10)
        for since, first in (
            (ids[4], 4),
            (ids[4].after(), 5),
            (StreamId(ids[0].ms - 5, 0), 0),
        ):
            with reading(hub, Start(since=since)) as reader:
                await reader.hello()
                assert await reader.ids(10 - first) == ids[first:]


async def test_since_a_time_that_was_trimmed_tells_the_gap(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await add(hub.stream, 10)
        await plain(hub.stream).xtrim(NAME, maxlen=4, approximate=False)
        with reading(hub, Start(since=ids[2])) as reader:
            assert (await reader.hello()).id == ids[2].before()
            assert await reader.gap() == Gap(
                "trimmed", ids[2].before(), ids[6], None, ids[6].before()
            )
            assert await reader.ids(4) == ids[6:]


async def test_since_a_time_of_which_nothing_is_kept_tells_the_gap_with_the_next_event(
    valkey: Valkey,
) -> None:
    async with a_hub(valkey, queue_len=1) as hub:
        ids = await add(hub.stream, 10)
        await in_step(hub)  # and the window holds none of them
        await plain(hub.stream).xtrim(NAME, maxlen=0, approximate=False)
        with reading(hub, Start(since=ids[7])) as reader:
            assert (await reader.hello()).id == ids[7].before()
            [new] = await add(hub.stream)
            assert await reader.gap() == Gap("trimmed", ids[7].before(), new, None, new.before())
            assert await reader.ids(1) == [new]


async def test_tail_gives_the_last_matching_events_and_then_what_comes(valkey: Valkey) -> None:
    async with a_hub(valkey, batch_count=7) as hub:
        await add(hub.stream, 5)
        errors = b'{"source":"db","message":"bad"}'
        for _ in range(12):
            await add(hub.stream, 9)
            await hub.stream.append([Append([errors])])
        with reading(hub, Start(tail=5), Filter("source:db")) as reader:
            await reader.hello()
            await reader.entries(5)
            await hub.stream.append([Append([event(), errors])])
            [live] = await reader.entries(1)
            assert live.event.source == "db"
        with reading(hub, Start(tail=1000), Filter("source:db")) as reader:
            await reader.hello()
            await reader.entries(13)
        with reading(hub, Start(tail=0)) as reader:
            await reader.hello()
            [new] = await add(hub.stream)
            assert await reader.ids(1) == [new]


async def test_of_since_and_tail_the_later_one_counts(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await add(hub.stream, 10)
        with reading(hub, Start(since=ids[2], tail=3)) as reader:
            await reader.hello()
            assert await reader.ids(3) == ids[7:]
        with reading(hub, Start(since=ids[8], tail=3)) as reader:
            await reader.hello()
            assert await reader.ids(2) == ids[8:]


async def test_an_id_that_is_none_gets_all_that_is_kept_after_a_reset(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        with reading(hub, Start(unknown=True)) as reader:
            assert (await reader.hello()).id == START
        ids = await add(hub.stream, 3)
        with reading(hub, Start(unknown=True)) as reader:
            assert (await reader.hello()).id == START
            assert await reader.gap() == Gap("reset", START, ids[0], None, ids[0].before())
            assert await reader.ids(3) == ids


async def test_an_id_that_lies_between_those_in_the_window_but_is_unknown_is_told_reset(
    valkey: Valkey,
) -> None:
    """As after a failover that has lost the entry, on a machine whose clock is behind."""
    async with a_hub(valkey) as hub:
        await plain(hub.stream).xadd(NAME, {"event": event()}, id="5-0")
        await in_step(hub)
        for ms in (10, 20, 30):
            await plain(hub.stream).xadd(NAME, {"event": event()}, id=f"{ms}-0")
        await in_step(hub)
        with reading(hub, Start(resume=StreamId(25, 0))) as reader:
            await reader.hello()
            first = StreamId(5, 0)
            assert await reader.gap() == Gap("reset", StreamId(25, 0), first, None, first.before())
            assert [id_.ms for id_ in await reader.ids(4)] == [5, 10, 20, 30]


async def test_an_id_of_a_stream_that_is_gone_is_told_reset_by_a_replica_that_began_with_nothing(
    valkey: Valkey,
) -> None:
    """What it has read began after the flush: it must not take the id for one of its own."""
    async with a_hub(valkey, heartbeat_s=0.1) as hub:
        with reading(hub, Start(resume=StreamId(25, 0))) as reader:
            await reader.hello()
            assert await reader.subscription.next() == []  # nothing to prove the id by
            for ms in (30, 40):
                await plain(hub.stream).xadd(NAME, {"event": event()}, id=f"{ms}-0")
            await in_step(hub)
            first = StreamId(30, 0)
            assert await reader.gap() == Gap("reset", StreamId(25, 0), first, None, first.before())
            assert [id_.ms for id_ in await reader.ids(2)] == [30, 40]


async def test_an_id_ahead_of_the_stream_is_told_reset_at_once(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await add(hub.stream, 2)
        ahead = StreamId(ids[-1].ms + 3_600_000, 0)
        with reading(hub, Start(resume=ahead)) as reader:
            await reader.hello()
            assert (await reader.gap()).reason == "reset"
            assert await reader.ids(2) == ids


async def test_a_reader_ahead_of_a_replica_that_lags_is_served_from_the_stream(
    valkey: Valkey,
) -> None:
    async with stream_at(address_of(valkey)) as stream:
        hub = Hub(stream, Metrics(), queue_len=100, batch_count=100, heartbeat_s=0.05)
        beat = asyncio.create_task(hub.beat())
        ids = await add(stream, 10)
        hub.attached = True
        hub.window.restart(Cursor(ids[1], 2))  # and it reads no further yet
        with reading(hub, Start(resume=ids[5])) as reader:
            await reader.hello()
            assert await reader.ids(4) == ids[6:]
            ids += await add(stream, 2)
            assert await reader.ids(2) == ids[10:]
            feed = asyncio.create_task(hub.run())
            await in_step(hub)
            ids += await add(stream, 2)
            assert await reader.ids(2) == ids[12:]
            reads = hub.metrics.catchup_reads._value.get()
            ids += await add(stream, 2)
            assert await reader.ids(2) == ids[14:]
            assert hub.metrics.catchup_reads._value.get() == reads  # from the window by now
        for task in (beat, feed):
            task.cancel()
        await asyncio.wait((beat, feed))


# -- reading on ------------------------------------------------------------------------------------


async def test_a_slow_reader_gets_everything_that_the_stream_still_holds(valkey: Valkey) -> None:
    async with a_hub(valkey, queue_len=5, batch_count=3) as hub:
        with reading(hub, Start()) as reader:
            await reader.hello()
            ids = await add(hub.stream, 100)
            await in_step(hub)
            assert await reader.ids(100) == ids


async def test_a_slow_reader_is_told_exactly_how_much_was_trimmed(valkey: Valkey) -> None:
    async with a_hub(valkey, queue_len=5, batch_count=3) as hub:
        await add(hub.stream, 7)
        await in_step(hub)
        with reading(hub, Start()) as reader:
            begin = await reader.begin()
            ids = await add(hub.stream, 100)
            await in_step(hub)
            await plain(hub.stream).xtrim(NAME, maxlen=10, approximate=False)
            assert await reader.gap() == Gap("trimmed", begin, ids[90], 90, ids[90].before())
            assert await reader.ids(10) == ids[90:]


async def test_a_reader_that_skips_jumps_to_the_newest_and_is_told_how_much(
    valkey: Valkey,
) -> None:
    async with a_hub(valkey, queue_len=5, batch_count=3) as hub:
        await add(hub.stream)
        await in_step(hub)
        with reading(hub, Start(on_lag="skip")) as reader:
            begin = await reader.begin()
            ids = await add(hub.stream, 100)
            await in_step(hub)
            gap = await reader.gap()
            assert (gap.reason, gap.after) == ("slow", begin)
            assert gap.count is not None and 90 < gap.count < 100
            assert gap.before == ids[gap.count]
            assert await reader.ids(100 - gap.count) == ids[gap.count :]


async def test_a_burst_larger_than_the_window_reaches_a_reader_that_skips_at_once(
    valkey: Valkey,
) -> None:
    async with a_hub(valkey, queue_len=5) as hub:
        await add(hub.stream)
        await in_step(hub)
        with reading(hub, Start(on_lag="skip")) as reader:
            await reader.hello()
            ids = await add(hub.stream, 50)
            assert await reader.ids(50) == ids  # the heartbeat that would help is 15 s away


async def test_a_reader_that_skips_is_told_of_a_flush_not_of_being_slow(valkey: Valkey) -> None:
    async with a_hub(valkey, queue_len=50) as hub:
        await add(hub.stream, 20)
        await in_step(hub)
        with reading(hub, Start(on_lag="skip")) as reader:
            await reader.hello()
            await add(hub.stream, 5)
            await in_step(hub)
            await plain(hub.stream).flushall()
            ids = await add(hub.stream, 3)
            await in_step(hub)
            gap = await reader.gap()
            assert (gap.reason, gap.count) == ("reset", None)
            assert await reader.ids(3) == ids


async def test_a_reader_in_step_is_told_of_a_flush_and_gets_the_new_stream(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        old = await add(hub.stream, 20)
        await in_step(hub)
        with reading(hub, Start()) as reader:
            await reader.hello()
            await plain(hub.stream).flushall()
            ids = await add(hub.stream, 3)
            gap = await reader.gap()
            assert gap == Gap("reset", old[-1], ids[0], None, ids[0].before())
            assert await reader.ids(3) == ids


async def test_a_reader_is_told_of_a_flush_whose_new_ids_are_behind_the_old_ones(
    valkey: Valkey,
) -> None:
    async with a_hub(valkey) as hub:
        await add(hub.stream, 5)
        await in_step(hub)
        with reading(hub, Start()) as reader:
            await reader.hello()
            await plain(hub.stream).flushall()
            for ms in (5, 6):
                await plain(hub.stream).xadd(NAME, {"event": event()}, id=f"{ms}-0")
            assert (await reader.gap()).reason == "reset"
            assert [id_.ms for id_ in await reader.ids(2)] == [5, 6]


@pytest.mark.parametrize("start", [Start(), Start(since=START), Start(resume=START)])
async def test_a_reader_that_had_nothing_yet_is_told_when_what_was_sent_is_flushed(
    valkey: Valkey, start: Start
) -> None:
    async with a_hub(valkey) as hub:
        with reading(hub, start) as reader:
            assert (await reader.hello()).id == START
            await add(hub.stream, 5)
            await in_step(hub)  # and the reader stalls
            await plain(hub.stream).flushall()
            ids = await add(hub.stream, 2)
            await in_step(hub)
            gap = await reader.gap()
            assert (gap.reason, gap.before, gap.count) == ("reset", ids[0], None)
            assert await reader.ids(2) == ids


async def test_a_flush_hidden_by_trimming_is_not_counted_by_old_positions(valkey: Valkey) -> None:
    async with a_hub(valkey, queue_len=500) as hub:
        await add(hub.stream, 10)
        await in_step(hub)
        with reading(hub, Start()) as reader:
            begin = await reader.begin()
            with valkey.client.pipeline(transaction=True) as pipe:
                pipe.flushall()
                for _ in range(30):
                    pipe.xadd(NAME, {"event": event()})
                pipe.xtrim(NAME, maxlen=20, approximate=False)
                pipe.execute()
            # As many were trimmed as there were before: by positions, nothing is missing.
            gap = await reader.gap()
            assert (gap.after, gap.count) == (begin, None)
            assert len(await reader.ids(20)) == 20


async def test_entries_that_hold_no_event_move_a_reader_on(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        with reading(hub, Start()) as reader:
            await reader.hello()
            for _ in range(5):
                await plain(hub.stream).xadd(NAME, {"junk": b"\xff"})
            [good] = await add(hub.stream)
            assert await reader.ids(1) == [good]
            assert reader.subscription.cursor.id == good
            assert hub.metrics.unreadable._value.get() == 5


async def test_a_filter_that_takes_nothing_moves_the_cursor_on(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        with reading(hub, Start(), Filter("source:nobody")) as reader:
            await reader.hello()
            *_, last = await add(hub.stream, 10)
            item = await reader.next()
            assert isinstance(item, Batch)
            assert item.matching(reader.filter) == []
            assert item.end.id == last


async def test_an_idle_reader_gets_its_heartbeat_in_time(valkey: Valkey) -> None:
    async with a_hub(valkey, heartbeat_s=0.2) as hub:
        with reading(hub, Start()) as reader:
            await reader.hello()
            for _ in range(3):
                started, fair = time.monotonic(), fair_time()
                assert await reader.subscription.next() == []
                assert time.monotonic() - started >= 0.19
                assert fair_time() - fair < 0.5


async def test_all_readers_get_a_farewell_when_the_hub_closes_and_new_ones_too(
    valkey: Valkey,
) -> None:
    async with a_hub(valkey) as hub:
        with reading(hub, Start()) as one, reading(hub, Start()) as other:
            await one.hello()
            waiting = asyncio.create_task(one.next())
            await asyncio.sleep(0)
            hub.close()
            farewell = await waiting
            assert isinstance(farewell, Bye)
            assert isinstance(await other.next(), Bye)
            assert await one.subscription.next() is None
            assert await one.subscription.next() is None


def test_farewells_ask_readers_to_come_back_at_different_times() -> None:
    times = {retry_ms() for _ in range(50)}
    assert len(times) > 10
    assert all(500 <= each <= 3000 for each in times)


async def test_subscribers_are_counted_while_they_are_there(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        gauge = hub.metrics.subscribers.labels("broadcast")
        with reading(hub, Start()), reading(hub, Start()):
            assert (len(hub.subscribers), gauge._value.get()) == (2, 2)
        assert (len(hub.subscribers), gauge._value.get()) == (0, 0)


async def test_few_readers_catch_up_at_the_same_time(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = most = 0

    async with a_hub(valkey, queue_len=5) as hub:
        ids = await add(hub.stream, 60)
        await in_step(hub)
        read, range_ = hub.stream.read, hub.stream.range

        async def counted(verb: Any, *args: Any, **more: Any) -> Any:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            try:
                return await verb(*args, **more)
            finally:
                now -= 1

        monkeypatch.setattr(hub.stream, "read", lambda *a, **m: counted(read, *a, **m))
        monkeypatch.setattr(hub.stream, "range", lambda *a, **m: counted(range_, *a, **m))

        async def catch_up(start: Start) -> list[StreamId]:
            with reading(hub, start) as reader:
                await reader.hello()
                return await reader.ids(59)

        starts = [Start(resume=ids[0]), Start(tail=59), Start(since=ids[1])] * 30
        found = await asyncio.gather(*map(catch_up, starts))
        assert all(each == ids[1:] for each in found)
        assert 2 < most <= CATCHUP_READERS + 1  # and the feed


async def test_pages_for_a_reader_that_catches_up_are_bounded_by_bytes(valkey: Valkey) -> None:
    size = 64 * 1024
    large = b'{"source":"api","message":"%b"}' % (b"x" * (size - 40))
    async with a_hub(valkey, queue_len=5) as hub:
        await hub.stream.append([Append([large] * 100)])
        await in_step(hub)
        with reading(hub, Start(since=START)) as reader:
            await reader.hello()
            pages: list[Batch] = []
            while sum(len(page.entries) for page in pages) < 100:
                item = await reader.next()
                assert isinstance(item, Batch)
                pages.append(item)
        assert pages[0].size <= BATCH_BYTES + size
        assert max(page.size for page in pages) <= BATCH_BYTES + size


async def test_a_page_of_growing_entries_is_cut_and_loses_nothing(
    valkey: Valkey,
) -> None:
    large = b'{"source":"api","message":"%b"}' % (b"x" * 40_000)
    async with a_hub(valkey, queue_len=5) as hub:
        small = await add(hub.stream, 300)
        await hub.stream.append([Append([large] * 100)])
        more = await add(hub.stream, 50)
        await in_step(hub)
        with reading(hub, Start(since=START)) as reader:
            await reader.hello()
            found: list[Entry] = []
            while len(found) < 450:
                item = await reader.next()
                assert isinstance(item, Batch)
                assert item.size <= BATCH_BYTES + 50_000
                assert item.start.id < item.entries[0].id
                found += item.entries
            ids = [entry.id for entry in found]
            assert (ids[:300], ids[400:]) == (small, more)
            assert ids == sorted(set(ids))
            assert reader.subscription.cursor.position == 450


async def test_what_is_written_at_once_from_the_window_is_bounded_by_bytes(valkey: Valkey) -> None:
    large = b'{"source":"api","message":"%b"}' % (b"x" * 60_000)
    async with a_hub(valkey) as hub:
        with reading(hub, Start()) as reader:
            await reader.hello()
            await hub.stream.append([Append([large] * 40)])
            await in_step(hub)
            total = 0
            while total < 40:
                items = await reader.subscription.next()
                assert items
                batches = [item for item in items if isinstance(item, Batch)]
                assert sum(batch.size for batch in batches) <= 2 * BATCH_BYTES
                total += sum(len(batch.entries) for batch in batches)


# -- outages ---------------------------------------------------------------------------------------


async def test_a_reader_that_connects_while_redis_is_away_is_told_and_misses_nothing() -> None:
    with Valkey.started("--save", "") as server:
        server.kill()
        async with stream_at(address_of(server)) as stream, running(stream) as hub:
            with reading(hub, Start()) as reader:
                item = await reader.next()
                assert isinstance(item, Notice)
                server.start()
                server.client.xadd(NAME, {"event": event(7)})
                begin = await reader.begin()
                [entry] = await reader.entries(1)
                assert entry.event.message == "number 7"
                assert begin < entry.id


async def test_a_reader_that_connects_before_the_feed_has_begun_is_greeted_first(
    valkey: Valkey,
) -> None:
    """The first moment of a process is no trouble that anyone need hear of."""
    async with stream_at(address_of(valkey)) as stream:
        hub = Hub(stream, Metrics(), queue_len=100, batch_count=100, heartbeat_s=15)
        with reading(hub, Start()) as reader:
            first = asyncio.create_task(reader.next())
            await asyncio.sleep(0)
            feed = asyncio.create_task(hub.run())
            assert isinstance(await first, Hello)
        feed.cancel()
        await asyncio.wait((feed,))


async def test_a_reader_with_an_id_that_connects_while_redis_is_away_goes_on_from_it(
    own_valkey: Valkey,
) -> None:
    async with stream_at(address_of(own_valkey)) as stream:
        ids = await add(stream, 5)
        own_valkey.kill()
        async with running(stream) as hub:
            with reading(hub, Start(resume=ids[1])) as reader:
                assert isinstance(await reader.next(), Notice)
                own_valkey.start()
                await reader.hello()
                assert await reader.ids(3) == ids[2:]


async def test_readers_outlive_a_restart_of_redis(own_valkey: Valkey) -> None:
    async with a_hub(own_valkey, queue_len=5) as hub:
        ids = await add(hub.stream, 20)
        await in_step(hub)
        with reading(hub, Start()) as fast, reading(hub, Start(resume=ids[0])) as slow:
            assert (await fast.hello()).id == ids[-1]
            await slow.hello()
            own_valkey.kill()
            await wait_until(lambda: hub.stream.health.kind == "away", "the hub has noticed")
            own_valkey.start()
            await wait_until(lambda: hub.stream.health.kind == "ok", "it is back")
            new = await add(hub.stream, 3)
            assert await fast.ids(3) == new
            assert await slow.ids(22) == ids[1:] + new


async def test_a_redis_that_comes_back_empty_is_told_as_a_gap_without_a_count(
    valkey: Valkey,
) -> None:
    with Valkey.started("--save", "") as server:
        async with a_hub(server, queue_len=5) as hub:
            ids = await add(hub.stream, 20)
            await in_step(hub)
            with reading(hub, Start()) as fast, reading(hub, Start(resume=ids[3])) as slow:
                await fast.hello()
                await slow.hello()
                server.kill()
                server.start()
                with server.client.pipeline(transaction=True) as pipe:
                    for _ in range(60):
                        pipe.xadd(NAME, {"event": event()}, maxlen=10, approximate=False)
                    pipe.execute()
                for reader, after in ((fast, ids[-1]), (slow, ids[3])):
                    gap = await reader.gap()
                    assert (gap.after, gap.count) == (after, None)
                    assert len(await reader.ids(10)) == 10


async def test_a_reader_goes_on_after_an_error_that_only_its_own_read_met(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_hub(valkey, queue_len=5) as hub:
        ids = await add(hub.stream, 20)
        await in_step(hub)
        read = hub.stream.read
        failures = iter([Unavailable("away", "once"), Unavailable("away", "twice")])

        async def failing(*args: Any, **more: Any) -> Page:
            for error in failures:
                raise error
            return await read(*args, **more)

        with reading(hub, Start(resume=ids[0])) as reader:
            await reader.hello()
            monkeypatch.setattr(hub.stream, "read", failing)
            assert await reader.ids(19) == ids[1:]  # though the feed has noticed nothing


async def test_a_thousand_readers_that_come_back_at_once_are_all_served(valkey: Valkey) -> None:
    async with a_hub(valkey, queue_len=10) as hub:
        ids = await add(hub.stream, 30)
        await in_step(hub)

        async def come_back() -> list[StreamId]:
            with reading(hub, Start(resume=ids[4])) as reader:
                await reader.hello()
                return await reader.ids(25)

        found = await asyncio.gather(*(come_back() for _ in range(1000)))
        assert all(each == ids[5:] for each in found)
        assert hub.stream.health.kind == "ok"
