"""The hub over a scripted stream: what the feed does with a page, and what it leaves to others."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from logpipe.continuity import Bounds, Cursor
from logpipe.fanout.hub import CATCHUP_PAGE, MAX_PAUSE_S, Hub
from logpipe.fanout.shelf import KEPT_S
from logpipe.fanout.subscription import HubSubscription
from logpipe.fanout.window import BATCH_BYTES
from logpipe.filters import EVERYTHING
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Bye, Start
from logpipe.problems import Unavailable
from logpipe.request_ids import current, serve
from tests.helpers import fair_time, wait_until
from tests.scripted_stream import (
    Pipe,
    ScriptedStream,
    a_gap,
    a_page,
    a_scripted_hub,
    an_entry,
    at,
    behind,
)

LIMIT_S = 5


@contextlib.asynccontextmanager
async def task_of(coroutine: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """Has something run meanwhile."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class LiveReader:
    """A subscription among the live readers."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.subscription = HubSubscription(hub, Start(), EVERYTHING)
        self.pipe = Pipe()

    async def __aenter__(self) -> "LiveReader":
        self.subscription.__enter__()
        await self.subscription.next()
        self.task = asyncio.create_task(self.subscription.follow(self.pipe))
        await asyncio.sleep(0)
        assert not self.task.done()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.subscription.__exit__()
        self.task.cancel()
        await asyncio.wait((self.task,))


# -- the feed --------------------------------------------------------------------------------------


async def test_the_feed_begins_at_the_end_of_the_stream_and_wakes_who_waits() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    hub.attached = False
    stream.now = Bounds(StreamId(3, 0), StreamId(5, 0), 9, 3, START)
    change = hub.change
    async with task_of(hub.run()):
        await asyncio.wait_for(change.wait(), LIMIT_S)
        assert hub.attached
        assert hub.window.end == at(5, 9)


async def test_the_end_of_the_window_is_the_witness_of_the_feed() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream, batch_count=7)
    asked: list[Any] = []
    follow = stream.follow

    async def kept(after: Cursor, count: int, witness: StreamId = START) -> Any:
        asked.append((after, count, witness))
        return await follow(after, count, witness)

    stream.follow = kept  # type: ignore[method-assign]
    async with task_of(hub.run()):
        stream.followed.put_nowait(a_page(Cursor(START, 0), 4, 5))
        await wait_until(lambda: len(asked) == 2, "it reads on")
    assert asked == [(Cursor(START, 0), 7, START), (at(5, 2), 7, StreamId(5, 0))]


async def test_after_an_outage_who_waits_is_woken_once_though_nothing_came() -> None:
    """Nothing else wakes anyone here: no heart beats."""
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    async with task_of(hub.run()):
        await turns()
        change = hub.change
        stream.followed.put_nowait(a_page(hub.window.end))
        await turns()
        assert not change.is_set()  # without an outage there is nothing new
        stream.followed.put_nowait(Unavailable("away", "on purpose"))
        stream.followed.put_nowait(a_page(hub.window.end))
        await asyncio.wait_for(change.wait(), LIMIT_S)
        change = hub.change
        stream.followed.put_nowait(a_page(hub.window.end))
        await wait_until(stream.followed.empty, "the feed reads on")
        await turns()
        assert not change.is_set()


async def test_after_an_outage_the_feed_goes_on_where_it_was() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    stream.now = Bounds(StreamId(7, 0), StreamId(9, 0), 9, 3, START)
    async with task_of(hub.run()):
        stream.followed.put_nowait(a_page(hub.window.end, 4))
        stream.followed.put_nowait(Unavailable("away", "on purpose"))
        stream.followed.put_nowait(a_page(at(4, 1), 5))
        await wait_until(lambda: hub.window.end == at(5, 2), "it goes on")
    assert hub.window.entries == 2
    assert stream.looks == 0


async def test_the_feed_waits_for_redis_before_it_tries_again() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    hub.pauses = hub.pauses._replace(recovery_s=60.0)
    async with task_of(hub.run()):
        stream.followed.put_nowait(Unavailable("away", "on purpose"))
        await wait_until(stream.followed.empty, "it has failed")
        stream.followed.put_nowait(a_page(hub.window.end, 4))
        await asyncio.sleep(0.05)
        assert not stream.followed.empty()
        stream.health.report("ok")
        await wait_until(stream.followed.empty, "it tries again")


async def test_the_feed_pauses_between_attempts() -> None:
    """A Redis that answers the monitor and fails the feed is not asked without a pause."""
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    stream.health.report("ok")
    hub.pauses = hub.pauses._replace(outage_s=0.02)
    for _ in range(5):
        stream.followed.put_nowait(Unavailable("error", "on purpose"))
    began = time.monotonic()
    async with task_of(hub.run()):
        await wait_until(stream.followed.empty, "it has failed five times")
    assert time.monotonic() - began >= 4 * 0.02


async def test_the_end_of_the_feed_ends_a_look_at_the_bounds() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    stream.open.clear()
    async with task_of(hub.run()), task_of(hub.bounds()):
        await wait_until(lambda: stream.at_once, "someone looks")
    assert stream.at_once == 0
    async with task_of(a_scripted_hub(stream).run()) as feed:  # one that nobody has asked
        await turns()
    assert feed.cancelled()


async def test_the_feed_ends_only_once_a_look_at_the_bounds_has() -> None:
    """Its connection is closed with the others then."""
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    ended: list[int] = []

    async def bounds() -> Bounds:
        try:
            await asyncio.sleep(60)
        finally:
            await turns()
            ended.append(1)
        raise AssertionError

    stream.bounds = bounds  # type: ignore[method-assign]
    async with task_of(hub.bounds()):
        await turns()
        async with task_of(hub.run()):
            await turns()
        assert ended


async def test_a_page_goes_into_the_window_and_is_counted() -> None:
    hub = a_scripted_hub(ScriptedStream())
    change = hub.change
    page = a_page(Cursor(START, 0), 4, 5, 6, size=BATCH_BYTES // 2, unreadable=2, failover_era=3)
    await hub._take(page)
    assert (hub.window.end, hub.window.next_number, hub.failover_era) == (at(6, 3), 3, 3)
    metrics = hub.metrics
    assert metrics.feed_events._value.get() == 3
    assert metrics.unreadable._value.get() == 2
    assert metrics.window_events._value.get() == 3
    assert metrics.window_bytes._value.get() == hub.window.bytes > 0
    assert change.is_set()
    assert hub.era == 0


async def test_a_page_is_written_to_live_readers() -> None:
    hub = a_scripted_hub(ScriptedStream())
    async with LiveReader(hub) as reader:
        await hub._take(a_page(Cursor(START, 0), 4, 5, size=BATCH_BYTES))
        assert len(reader.pipe.chunks) == 2
        assert reader.subscription.cursor == at(5, 2)
        assert not reader.task.done()


async def test_a_page_with_nothing_changes_nothing_but_the_failover_era() -> None:
    hub = a_scripted_hub(ScriptedStream())
    number, change = hub.window.next_number, hub.change
    await hub._take(a_page(Cursor(START, 0), failover_era=3))
    assert hub.window.next_number == number
    assert hub.failover_era == 3
    assert not change.is_set()


@pytest.mark.parametrize(("count", "eras"), [(None, 1), (24, 0)])
async def test_behind_a_gap_the_window_begins_anew_and_the_shelf_is_empty(
    count: int | None, eras: int
) -> None:
    hub = a_scripted_hub(ScriptedStream())
    await hub._take(a_page(Cursor(START, 0), 5))
    hub.shelf.put(Batch(at(2), at(4), [an_entry(4)]))
    async with LiveReader(hub) as reader:
        await hub._take(behind(a_gap(5, 30, count), 30, position=29))
        await asyncio.wait_for(reader.task, LIMIT_S)
        assert not reader.pipe.chunks
    assert hub.era == eras
    assert hub.shelf.bytes == 0
    assert hub.window.entries == 1
    assert hub.window.end == at(30, 30)


async def test_a_gap_without_entries_behind_it_wakes_who_waits() -> None:
    hub = a_scripted_hub(ScriptedStream())
    change = hub.change
    await hub._take(behind(a_gap(5, 30), position=29))
    assert change.is_set()
    assert hub.window.end == Cursor(StreamId(30, 0).before(), 29)


# -- pauses ----------------------------------------------------------------------------------------


async def test_with_one_reader_the_feed_reads_on_at_once() -> None:
    hub = a_scripted_hub(ScriptedStream())
    async with LiveReader(hub):
        began = fair_time()
        for _ in range(20):
            await hub._pace()
        assert fair_time() - began < 5 * MAX_PAUSE_S


@pytest.mark.parametrize(("readers", "least_s"), [(100, 0.001), (2_000, 0.08)])
async def test_the_feed_pauses_for_each_reader_and_for_each_pair(
    readers: int, least_s: float
) -> None:
    hub = a_scripted_hub(ScriptedStream())
    hub.subscribers = range(readers)  # type: ignore[assignment]
    began = time.monotonic()
    await hub._pace()
    assert time.monotonic() - began >= least_s


async def test_a_crowd_has_its_time_between_two_reads_of_the_feed() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    hub.subscribers = range(2_000)  # type: ignore[assignment]
    stream.followed.put_nowait(a_page(Cursor(START, 0), 1))
    stream.followed.put_nowait(a_page(at(1, 1), 2))
    began = time.monotonic()
    async with task_of(hub.run()):
        await wait_until(lambda: hub.window.end == at(2, 2), "both are read")
    assert time.monotonic() - began >= 0.08


async def test_the_feed_reads_on_without_a_pause_while_more_is_there() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    hub.subscribers = range(1_000_000)  # type: ignore[assignment]
    end = hub.window.end
    for number in range(1, 21):
        page = a_page(end, number, limited=True)
        stream.followed.put_nowait(page)
        end = page.end
    began = fair_time()
    async with task_of(hub.run()):
        await wait_until(lambda: hub.window.end == end, "all are read")
    assert fair_time() - began < 5 * MAX_PAUSE_S


async def test_without_live_readers_a_page_is_followed_by_no_rest() -> None:
    hub = a_scripted_hub(ScriptedStream())
    await asyncio.wait_for(hub.rest(10**9), LIMIT_S)


async def test_while_most_are_live_those_behind_rest_most_of_the_time() -> None:
    """Two pages of 1,000 entries cost 9 ms; 15 % of the time is theirs."""
    hub = a_scripted_hub(ScriptedStream())
    async with LiveReader(hub):
        began = time.monotonic()
        await hub.rest(1_000)
        assert time.monotonic() - began >= 0.028
        await asyncio.gather(hub.rest(1_000), hub.rest(1_000))
        assert time.monotonic() - began >= 3 * 0.028
        for _ in range(3):  # a page costs something, however little there is on it
            await hub.rest(0)
        assert time.monotonic() - began >= 3 * 0.028 + 3 * 0.0019


async def test_while_most_are_behind_they_have_most_of_the_time() -> None:
    hub = a_scripted_hub(ScriptedStream())
    async with LiveReader(hub):
        for _ in range(9):
            hub.subscribers.add(HubSubscription(hub, Start(), EVERYTHING))
        began, fair = time.monotonic(), fair_time()
        await hub.rest(50_000)  # 200 ms
        assert time.monotonic() - began >= 0.22
        assert fair_time() - fair < 0.2 / 0.15 - 0.3


async def test_a_rest_is_not_owed_for_the_time_before_it() -> None:
    hub = a_scripted_hub(ScriptedStream())
    async with LiveReader(hub):
        await hub.rest(1)
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await hub.rest(5_000)
        assert time.monotonic() - began >= 0.13


async def test_pages_of_those_behind_are_short_while_most_are_live() -> None:
    hub = a_scripted_hub(ScriptedStream(), batch_count=500)
    assert hub.catchup_page() == 500
    async with LiveReader(hub):
        assert hub.catchup_page() == CATCHUP_PAGE
        hub.batch_count = 50
        assert hub.catchup_page() == 50
        hub.batch_count = 500
        hub.subscribers.add(HubSubscription(hub, Start(), EVERYTHING))
        assert hub.catchup_page() == 500  # half are behind
    assert hub.live.count == 0


# -- beats and measurements ------------------------------------------------------------------------


async def test_each_beat_wakes_who_waits_and_lets_go_of_old_pages() -> None:
    hub = a_scripted_hub(ScriptedStream(), heartbeat_s=0.04)
    hub.shelf._clock = lambda: now
    now = 0.0
    hub.shelf.put(Batch(at(2), at(4), [an_entry(4)]))
    change = hub.change
    async with LiveReader(hub) as reader, task_of(hub.beat()):
        await asyncio.wait_for(change.wait(), LIMIT_S)
        assert hub.shelf.bytes
        now = KEPT_S + 1
        await wait_until(lambda: not hub.shelf.bytes, "the page is let go")
        await wait_until(lambda: reader.pipe.chunks, "a live reader has a heartbeat")


async def test_a_heartbeat_is_at_most_a_quarter_late() -> None:
    hub = a_scripted_hub(ScriptedStream(), heartbeat_s=0.8)
    change = hub.change
    began, fair = time.monotonic(), fair_time()
    async with task_of(hub.beat()):
        await asyncio.wait_for(change.wait(), LIMIT_S)
    assert time.monotonic() - began >= 0.19
    assert fair_time() - fair < 0.7


async def test_how_far_the_feed_is_behind_is_shown() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    hub.window.restart(at(5_000, 7))
    stream.now = Bounds(StreamId(1, 0), StreamId(6_500, 0), 12, 4, START)
    metrics = hub.metrics
    async with task_of(hub.measure()):
        await wait_until(lambda: metrics.stream_bytes._value.get() == 13, "it is measured")
        assert metrics.feed_lag_events._value.get() == 5
        assert metrics.feed_lag_seconds._value.get() == 1.5
        assert metrics.stream_entries._value.get() == 4
        assert metrics.redis_memory_bytes._value.get() == 11
        assert metrics.redis_max_memory_bytes._value.get() == 12
        assert metrics.redis_evicts._value.get() == 1
        assert metrics.redis_append_only._value.get() == 0
        hub.window.restart(at(6_500, 12))
        await wait_until(lambda: metrics.feed_lag_events._value.get() == 0, "it is measured again")


async def test_the_feed_is_measured_now_and_then() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    hub.pauses = hub.pauses._replace(measure_s=60.0)
    async with task_of(hub.measure()):
        await turns()
        assert stream.looks == 0


async def test_measuring_goes_on_after_the_size_could_not_be_asked() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    answers = [Unavailable("away", "on purpose")]

    async def size() -> float:
        for error in answers:
            answers.clear()
            raise error
        return 14.0

    stream.size = size  # type: ignore[method-assign]
    async with task_of(hub.measure()):
        await wait_until(lambda: hub.metrics.stream_bytes._value.get() == 14, "it is measured")


# -- bounds ----------------------------------------------------------------------------------------


async def test_the_last_bounds_are_known_while_redis_is_away() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    known = stream.now = Bounds(StreamId(1, 0), StreamId(5, 0), 12, 4, START)
    assert await hub.bounds() == known
    stream.now = Unavailable("away", "on purpose")
    assert await hub.bounds() == known
    assert stream.looks == 2


async def test_those_who_ask_for_the_bounds_share_a_look_of_no_request() -> None:
    """What the look logs is not said to be of the request that happened to ask first."""
    stream = ScriptedStream()
    hub = a_scripted_hub(stream)
    seen: list[str] = []
    look = stream.bounds

    async def bounds() -> Bounds:
        seen.append(current())
        return await look()

    stream.bounds = bounds  # type: ignore[method-assign]
    serve({"headers": [(b"x-request-id", b"one")]})
    assert current() == "one"
    await asyncio.gather(hub.bounds(), hub.bounds())
    assert seen == [""]


# -- the end ---------------------------------------------------------------------------------------


async def test_a_live_reader_goes_on_by_itself_at_once_when_the_hub_closes() -> None:
    hub = a_scripted_hub(ScriptedStream())
    async with LiveReader(hub) as reader:
        hub.close()
        await asyncio.wait_for(reader.task, LIMIT_S)


async def test_a_waiting_reader_gets_its_farewell_at_once() -> None:
    hub = a_scripted_hub(ScriptedStream())
    subscription = HubSubscription(hub, Start(), EVERYTHING)
    await subscription.next()
    waiting = asyncio.create_task(subscription.next())
    await turns()
    hub.close()
    items = await asyncio.wait_for(waiting, LIMIT_S)
    assert [type(item) for item in items or ()] == [Bye]


async def test_a_hub_that_closes_ends_searches() -> None:
    hub = a_scripted_hub(ScriptedStream())
    async with task_of(asyncio.sleep(60)) as search:
        hub.searches.add(search)
        hub.close()
        await asyncio.wait((search,), timeout=LIMIT_S)
        assert search.cancelled()
