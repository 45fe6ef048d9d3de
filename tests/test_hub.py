import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from logpipe.continuity import Bounds, Cursor, Gap
from logpipe.fanout import hub as hub_module
from logpipe.fanout.hub import Hub, lag_of
from logpipe.fanout.subscription import HubSubscription
from logpipe.fanout.window import BATCH_BYTES
from logpipe.filters import EVERYTHING
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Start
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.stream import Append, Page, Stream
from tests.helpers import fair_time, wait_until
from tests.servers import Valkey
from tests.streams import NAME, add, address_of, event, plain, running, stream_at


@contextlib.asynccontextmanager
async def a_hub(valkey: Valkey, **more: Any) -> AsyncIterator[Hub]:
    given = {"queue_len": 1000, "batch_count": 100, **more}
    async with stream_at(address_of(valkey)) as stream, running(stream, **given) as hub:
        yield hub


async def in_step(hub: Hub, last: StreamId) -> None:
    await wait_until(lambda: hub.window.end.id == last, "the feed has read everything")


def held(hub: Hub) -> list[StreamId]:
    """The ids in the window."""
    numbers = range(hub.window.first_number, hub.window.next_number)
    batches = [hub.window.get(number) for number in numbers]
    return [entry.id for batch in batches if batch is not None for entry in batch.entries]


async def test_the_feed_begins_with_the_newest_and_follows(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        assert not hub.attached
        old = await add(hub.stream, 5)
        await wait_until(lambda: hub.attached, "attached")
        await in_step(hub, old[-1])
        begun = held(hub)
        new = await add(hub.stream, 250)
        await in_step(hub, new[-1])
        assert held(hub)[len(begun) :] == new
        assert hub.window.end.position == 255
        assert hub.metrics.feed_events._value.get() == len(begun) + 250
        assert hub.metrics.window_events._value.get() == hub.window.entries


async def test_the_feed_is_told_of_an_event_at_once(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        hub.stream._block_ms = 5000
        [last] = await add(hub.stream)
        await in_step(hub, last)
        await asyncio.sleep(0.05)
        started = fair_time()
        [last] = await add(hub.stream)
        await in_step(hub, last)
        assert fair_time() - started < 0.5


@pytest.mark.parametrize(
    ("end", "added", "behind"),
    [
        (Cursor(StreamId(5_000, 0), 7), 9, (2, 1.5)),
        (Cursor(StreamId(5_000, 0), 9), 7, (0, 1.5)),
        (Cursor(StreamId(5_000, 0)), 9, (math.nan, 1.5)),
        (Cursor(StreamId(5_000, 0), 7), None, (math.nan, 1.5)),
        (Cursor(StreamId(6_500, 3)), 9, (0, 0)),
        (Cursor(START, 0), 9, (9, math.nan)),
        (Cursor(START), 9, (math.nan, math.nan)),
    ],
)
def test_how_far_the_feed_is_behind_is_told_as_far_as_it_is_known(
    end: Cursor, added: int | None, behind: tuple[float, float]
) -> None:
    bounds = Bounds(StreamId(1, 0), StreamId(6_500, 3), added, 3, START)
    assert lag_of(end, bounds) == pytest.approx(behind, nan_ok=True)


async def test_a_change_wakes_all_who_took_it_before_they_looked(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        await wait_until(lambda: hub.attached, "attached")
        change = hub.change
        waiting = [asyncio.create_task(change.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not change.is_set()
        await add(hub.stream)
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert hub.change is not change


async def test_the_window_is_bounded_and_the_feed_reads_on(valkey: Valkey) -> None:
    async with a_hub(valkey, queue_len=20, batch_count=7) as hub:
        await wait_until(lambda: hub.attached, "attached")
        ids = await add(hub.stream, 300)
        await in_step(hub, ids[-1])
        assert 0 < hub.window.entries <= 20
        assert held(hub) == ids[-hub.window.entries :]


async def test_large_events_are_cut_into_batches_of_one_write(valkey: Valkey) -> None:
    large = b'{"source":"api","message":"%b"}' % (b"x" * 60_000)
    async with a_hub(valkey) as hub:
        await wait_until(lambda: hub.attached, "attached")
        await hub.stream.append([Append([large] * 30)])
        await wait_until(lambda: hub.window.entries == 30, "all read")
        for number in range(hub.window.first_number, hub.window.next_number):
            batch = hub.window.get(number)
            assert batch is not None and batch.size <= BATCH_BYTES


async def test_entries_that_hold_no_event_are_passed_and_counted(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        await wait_until(lambda: hub.attached, "attached")
        for _ in range(3):
            await plain(hub.stream).xadd(NAME, {"junk": b"\xff"})
        [last] = await add(hub.stream)
        await in_step(hub, last)
        assert held(hub) == [last]
        assert hub.window.end.position == 4
        assert hub.metrics.unreadable._value.get() == 3


async def test_a_flush_restarts_the_window_in_a_new_era(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        old = await add(hub.stream, 10)
        await in_step(hub, old[-1])
        era, number = hub.era, hub.window.next_number
        await plain(hub.stream).flushall()
        new = await add(hub.stream, 3)
        await in_step(hub, new[-1])
        assert hub.era == era + 1
        assert held(hub) == new
        assert hub.window.first_number > number
        assert hub.window.end == Cursor(new[-1], 3)


async def test_trimming_that_overtakes_the_feed_starts_a_new_era_for_want_of_proof(
    valkey: Valkey,
) -> None:
    async with a_hub(valkey) as hub:
        old = await add(hub.stream, 10)
        await in_step(hub, old[-1])
        era = hub.era
        with valkey.client.pipeline(transaction=True) as pipe:
            for number in range(50):
                pipe.xadd(NAME, {"event": event(number)})
            pipe.xtrim(NAME, maxlen=5, approximate=False)
            pipe.execute()
        await wait_until(lambda: hub.window.entries == 5, "the feed has read what is kept")
        assert hub.era == era + 1
        assert hub.window.end.position == 60


async def test_a_feed_that_was_at_the_very_beginning_can_still_count(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        await wait_until(lambda: hub.attached, "attached")
        with valkey.client.pipeline(transaction=True) as pipe:
            for number in range(50):
                pipe.xadd(NAME, {"event": event(number)})
            pipe.xtrim(NAME, maxlen=5, approximate=False)
            pipe.execute()
        await wait_until(lambda: hub.window.entries == 5, "the feed has read what is kept")
        assert hub.era == 0
        page = await hub.stream.read(Cursor(START), 10, witness=hub.window.end.id)
        assert page.gap is not None and page.gap.count == 45


async def test_the_feed_survives_cut_connections_in_the_same_era(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await add(hub.stream, 3)
        await in_step(hub, ids[-1])
        begun = len(held(hub))
        written: list[bytes | str] = []
        chance = random.Random(1)
        for _ in range(15):
            written.append(valkey.client.xadd(NAME, {"event": event()}))
            if chance.random() < 0.5:
                valkey.client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(chance.choice([0, 0.005]))
        await wait_until(lambda: len(held(hub)) == begun + 15, "all of them")
        assert [str(id_).encode() for id_ in held(hub)[begun:]] == written
        assert hub.era == 0


async def test_the_feed_goes_on_after_a_restart_and_after_a_loss(valkey: Valkey) -> None:
    with Valkey.started("--save", "") as server:
        async with a_hub(server) as hub:
            ids = await add(hub.stream, 3)
            await in_step(hub, ids[-1])
            server.kill()
            await wait_until(lambda: hub.stream.health.kind == "away", "noticed")
            change = hub.change
            server.start()
            await asyncio.wait_for(change.wait(), 5)  # who waits for Redis is woken
            assert hub.era == 0  # an empty stream has no other side yet
            await wait_until(lambda: hub.stream.health.kind == "ok", "back")
            new = await add(hub.stream, 2)
            await in_step(hub, new[-1])
            assert held(hub)[-2:] == new
            assert hub.era == 1


async def test_a_hub_without_redis_is_not_attached_and_knows_no_bounds(valkey: Valkey) -> None:
    with Valkey.started("--save", "") as server:
        server.kill()
        async with a_hub(server) as hub:
            assert (await hub.bounds()).first is None
            assert not hub.attached
            server.start()
            await wait_until(lambda: hub.attached, "attached")


async def test_the_bounds_are_remembered_while_redis_is_away(own_valkey: Valkey) -> None:
    async with a_hub(own_valkey) as hub:
        ids = await add(hub.stream, 3)
        assert (await hub.bounds()).last == ids[-1]
        own_valkey.kill()
        assert (await hub.bounds()).last == ids[-1]


async def test_those_who_ask_for_the_bounds_together_share_one_look(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_hub(valkey) as hub:
        await wait_until(lambda: hub.attached, "attached")
        look, looks = hub.stream.bounds, 0

        async def counted() -> Bounds:
            nonlocal looks
            looks += 1
            return await look()

        monkeypatch.setattr(hub.stream, "bounds", counted)
        found = await asyncio.gather(*(hub.bounds() for _ in range(500)))
        assert len(set(found)) == 1
        assert looks == 1
        ids = await add(hub.stream)
        looks = 0
        assert (await hub.bounds()).last == ids[-1]


async def test_one_who_gives_up_does_not_spoil_the_look_for_the_others(valkey: Valkey) -> None:
    async with a_hub(valkey) as hub:
        ids = await add(hub.stream)
        asking = [asyncio.create_task(hub.bounds()) for _ in range(3)]
        await asyncio.sleep(0)
        asking[0].cancel()
        found = await asyncio.gather(*asking[1:])
        assert {bounds.last for bounds in found} == {ids[-1]}


async def test_many_subscribers_get_larger_batches_but_are_not_kept_waiting(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_hub(valkey) as hub:
        await wait_until(lambda: hub.attached, "attached")
        hub.subscribers = range(1_000_000)  # type: ignore[assignment]
        started = fair_time()
        for _ in range(5):
            [last] = await add(hub.stream)
        await in_step(hub, last)
        assert fair_time() - started < 3 * hub_module.MAX_PAUSE_S + 0.5
        assert hub.window.next_number - hub.window.first_number < 5


async def test_an_error_that_is_no_outage_ends_the_feed(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stream_at(address_of(valkey)) as stream:
        hub = Hub(stream, Metrics(), queue_len=10, batch_count=10, heartbeat_s=1)

        async def broken(*_: Any, **__: Any) -> Page:
            raise ZeroDivisionError

        monkeypatch.setattr(stream, "follow", broken)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(hub.run(), 5)


async def test_a_gap_that_the_feed_meets_leaves_no_batch_from_before_it(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey)) as stream:
        hub = Hub(stream, Metrics(), queue_len=10, batch_count=10, heartbeat_s=1)
        gap = Gap("reset", StreamId(9, 0), StreamId(3, 0), None, StreamId(2, 7))
        start = Cursor(gap.resume, 0)
        change = hub.change
        await hub._take(Page(gap, start, start, [], 0))
        assert hub.window.end == start
        assert hub.window.locate(StreamId(9, 0)) is None
        assert hub.era == 1
        assert change.is_set()


async def test_reads_that_fail_for_a_while_lose_nothing(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(2)
    read = Stream.read

    async def flaky(self: Stream, *args: Any, **more: Any) -> Page:
        page = await read(self, *args, **more)
        if chance.random() < 0.5:
            raise Unavailable("away", "a fault on purpose")
        return page

    monkeypatch.setattr(Stream, "read", flaky)
    async with a_hub(valkey) as hub:
        await wait_until(lambda: hub.attached, "attached")
        ids: list[StreamId] = []
        for _ in range(20):
            ids += await add(hub.stream, 5)
            await asyncio.sleep(0)
        await in_step(hub, ids[-1])
        assert held(hub) == ids
        assert hub.era == 0


async def test_readers_that_come_back_together_share_what_they_read(valkey: Valkey) -> None:
    """After a restart all are behind the window; each reading for itself would never catch up."""
    async with (
        stream_at(address_of(valkey), maxlen=100_000) as stream,
    ):
        first = (await add(stream, 3_000))[0]
        async with running(stream) as hub:
            await wait_until(lambda: hub.attached, "the feed has begun")

            async def read() -> int:
                had = 0
                with HubSubscription(hub, Start(resume=first), EVERYTHING) as subscription:
                    while had < 2_999:
                        items = await subscription.next()
                        assert items is not None
                        had += sum(len(i.entries) for i in items if isinstance(i, Batch))
                return had

            assert set(await asyncio.gather(*(read() for _ in range(50)))) == {2_999}
            reads = hub.metrics.catchup_reads._value.get()
            assert reads < 2 * 3_000 / hub.batch_count
