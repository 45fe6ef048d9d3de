"""Subscriptions over a scripted stream: what proves a cursor, what happens between two reads."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from logpipe.continuity import Bounds, Cursor, Gap
from logpipe.fanout.hub import CATCHUP_READERS, STARTS, Hub
from logpipe.fanout.subscription import HubSubscription
from logpipe.fanout.window import BATCH_BYTES
from logpipe.filters import EVERYTHING
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Bye, Hello, Item, Notice, Start
from logpipe.problems import Unavailable
from logpipe.stream import Page
from tests.helpers import wait_until
from tests.scripted_stream import (
    Pipe,
    ScriptedStream,
    a_gap,
    a_page,
    a_scripted_hub,
    an_entry,
    at,
    behind,
    ids_of,
)

LIMIT_S = 5


async def next_of(subscription: HubSubscription) -> list[Item]:
    async with asyncio.timeout(LIMIT_S):
        return list(await subscription.next() or ())


async def next_of_or_nothing(reader: HubSubscription) -> None:
    """Has a subscription try once; nothing need come of it."""
    trying = asyncio.create_task(reader.next())
    for _ in range(10):
        await asyncio.sleep(0)
    trying.cancel()
    await asyncio.wait((trying,))


async def a_reader(hub: Hub, start: Start | None = None) -> HubSubscription:
    """A subscription that has been greeted."""
    subscription = HubSubscription(hub, start or Start(), EVERYTHING)
    hello = (await next_of(subscription))[0]
    assert isinstance(hello, Hello)
    return subscription


async def a_reader_behind(hub: Hub, cursor: Cursor) -> HubSubscription:
    """One that has read up to a cursor in this era, and has yet to look where it goes on."""
    subscription = await a_reader(hub)
    subscription.cursor = cursor
    subscription.number = None
    return subscription


async def a_hub_that_read(*numbers: int, **more: Any) -> tuple[ScriptedStream, Hub]:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream, **more)
    await hub._take(a_page(hub.window.end, *numbers))
    return stream, hub


async def begin_an_era(hub: Hub, *numbers: int) -> None:
    """The feed finds another stream with these entries."""
    await hub._take(behind(a_gap(hub.window.end.id.ms, numbers[0]), *numbers, position=0))


# -- the window, or the stream itself --------------------------------------------------------------


async def test_a_reader_of_an_earlier_era_between_entries_asks_the_stream() -> None:
    stream, hub = await a_hub_that_read(5)
    reader = await a_reader(hub)
    await begin_an_era(hub, 3, 9)
    reader.number = None
    gap = a_gap(5, 3)
    stream.answers = [behind(gap, 3, 9)]
    assert (await next_of(reader))[0] == gap
    assert [asked.after for asked in stream.asked] == [at(5)]


async def test_a_reader_of_an_earlier_era_goes_on_at_its_own_entry_in_the_window() -> None:
    stream, hub = await a_hub_that_read(5)
    reader = await a_reader(hub)
    await begin_an_era(hub, 3, 5, 9)
    reader.number = None
    hub.failover_era = 4
    assert ids_of(await next_of(reader)) == [9]
    assert stream.asked == []
    assert reader.cursor == at(9, 3)
    assert reader.behind(Bounds(None, StreamId(10, 0), 5, 5, START)) == 2  # counted in this era
    reader.number = None
    await begin_an_era(hub, 70)
    stream.answers = [behind(a_gap(9, 70), 70)]
    await next_of(reader)
    assert stream.asked[0].failover_era == 4


async def test_a_reader_that_has_caught_up_reads_from_the_window_again() -> None:
    stream, hub = await a_hub_that_read(1)
    hub.window.restart(at(20, 20))
    await hub._take(a_page(hub.window.end, 21, 22))
    reader = await a_reader_behind(hub, at(18, 18))
    reader.number = hub.window.first_number - 1
    stream.answers = [a_page(at(18, 18), 19, 20)]
    assert ids_of(await next_of(reader)) == [19, 20]
    assert ids_of(await next_of(reader)) == [21, 22]
    assert len(stream.asked) == 1


async def test_an_unproven_id_between_entries_of_the_window_asks_the_stream() -> None:
    stream, hub = await a_hub_that_read(1, 3, 9)
    reader = await a_reader(hub, Start(resume=StreamId(5, 0)))
    stream.answers = [behind(a_gap(5, 1), 1, 3, 9)]
    assert isinstance((await next_of(reader))[0], Gap)


async def test_a_reader_that_read_in_this_era_goes_on_between_entries_of_the_window() -> None:
    stream, hub = await a_hub_that_read(1, 3, 9)
    reader = await a_reader_behind(hub, at(5))
    assert ids_of(await next_of(reader)) == [9]
    assert stream.asked == []


@pytest.mark.parametrize(
    ("read_in", "fed_in", "lows", "asks"),
    [
        (0, 0, [], False),
        (0, 0, [3], True),
        (0, 1, [3], True),  # the feed has read since, and the reader has not
        (1, 0, [3], True),  # the reader has read since, and the feed has not
        (1, 1, [3], False),
        (0, 1, [None], False),  # an end that was removed parts nothing
        (None, 1, [3], False),  # nothing was read before it
    ],
)
async def test_after_a_failover_an_id_in_the_window_proves_nothing(
    read_in: int | None, fed_in: int, lows: list[int | None], asks: bool
) -> None:
    """Of an earlier era of the hub, so that the entry itself has to prove the cursor."""
    stream, hub = await a_hub_that_read(1, 5, 9)
    reader = await a_reader_behind(hub, at(5))
    hub.era += 1
    reader._failover_era = read_in
    hub.failover_era = fed_in
    stream.lows = [None if low is None else StreamId(low, 0) for low in lows]
    stream.answers = [a_page(at(5), 6)]
    assert ids_of(await next_of(reader)) == ([6] if asks else [9])
    assert [asked.failover_era for asked in stream.asked] == ([read_in] if asks else [])


async def test_a_page_of_the_window_is_bounded_and_counted() -> None:
    _, hub = await a_hub_that_read(1)
    reader = await a_reader(hub)
    for number in range(2, 8):
        await hub._take(a_page(hub.window.end, number, size=BATCH_BYTES // 2))
    assert ids_of(await next_of(reader)) == [2, 3]
    assert ids_of(await next_of(reader)) == [4, 5]
    assert hub.metrics.window_reads._value.get() == 2
    assert reader.number == hub.window.next_number - 2
    assert reader.cursor == at(5, 5)


async def test_a_reader_that_had_all_of_the_window_is_not_counted_as_reading_it() -> None:
    _, hub = await a_hub_that_read(1, heartbeat_s=0.01)
    reader = await a_reader(hub)
    hub._wake()
    waiting = asyncio.create_task(next_of(reader))
    await asyncio.sleep(0.02)
    hub._wake()
    assert await waiting == []
    assert hub.metrics.window_reads._value.get() == 0


# -- what a read of the stream is asked, and what it proves ----------------------------------------


async def test_a_read_names_the_position_the_newest_entry_and_the_failover_era() -> None:
    stream, hub = await a_hub_that_read(20, 21)
    reader = await a_reader_behind(hub, at(5, 4))
    reader._failover_era = 3
    stream.answers = [a_page(at(5, 4), 6, failover_era=7)]
    assert ids_of(await next_of(reader)) == [6]
    [asked] = stream.asked
    assert (asked.after, asked.witness, asked.failover_era) == (at(5, 4), StreamId(21, 0), 3)
    assert reader.cursor == at(6, 5)
    assert hub.metrics.catchup_reads._value.get() == 1
    await next_of_or_nothing(reader)
    assert (stream.asked[1].after, stream.asked[1].failover_era) == (at(6, 5), 7)


async def test_a_position_of_an_earlier_era_counts_nothing() -> None:
    stream, hub = await a_hub_that_read(5)
    reader = await a_reader(hub)
    assert reader.cursor.position == 1
    await begin_an_era(hub, 30, 31)
    stream.answers = [behind(a_gap(5, 30), 30, 31)]
    assert isinstance((await next_of(reader))[0], Gap)
    assert stream.asked[0].after == at(5)


async def test_an_era_that_begins_while_a_reader_waits_for_its_seat_is_noticed() -> None:
    stream, hub = await a_hub_that_read(90)
    reader = await a_reader_behind(hub, at(5, 1))
    async with contextlib.AsyncExitStack() as seats:
        for _ in range(CATCHUP_READERS):
            await seats.enter_async_context(hub.catching_up.seat("other"))
        trying = asyncio.create_task(next_of(reader))
        await asyncio.sleep(0)
        assert not stream.asked
        hub.era += 1
        stream.answers = [a_page(at(5), 6)]
    assert ids_of(await trying) == [6]
    assert stream.asked[0].after == at(5)


async def test_an_empty_page_proves_nothing() -> None:
    """As after a flush: the stream that comes may be another one."""
    stream, hub = await a_hub_that_read(5)
    reader = await a_reader(hub)
    hub.era += 1
    hub.window.restart(at(9))
    stream.answers = [a_page(at(5, 7), failover_era=4), behind(a_gap(5, 30), 30)]
    await next_of_or_nothing(reader)
    assert isinstance((await next_of(reader))[0], Gap)
    assert [(asked.after, asked.failover_era) for asked in stream.asked] == [(at(5), 0)] * 2


async def test_a_gap_without_entries_behind_it_proves_where_it_leads() -> None:
    stream, hub = await a_hub_that_read(90)
    reader = await a_reader_behind(hub, at(5, 1))
    gap = a_gap(5, 30)
    stream.answers = [behind(gap, position=29, failover_era=4), a_page(Cursor(gap.resume, 29), 30)]
    hub.era += 1
    assert await next_of(reader) == [gap]
    assert ids_of(await next_of(reader)) == [30]
    assert stream.asked[1].after == Cursor(gap.resume, 29)
    assert stream.asked[1].failover_era == 4


async def test_the_position_that_an_empty_stream_tells_is_kept() -> None:
    """The id that a reader resumes at may be the last of a stream that was trimmed wholly."""
    stream, hub = await a_hub_that_read(90)
    reader = await a_reader(hub, Start(resume=StreamId(5, 0)))
    stream.answers = [a_page(at(5, 5)), a_page(at(5, 5), 6)]
    await next_of_or_nothing(reader)
    assert ids_of(await next_of(reader)) == [6]
    assert [asked.after for asked in stream.asked] == [at(5), at(5, 5)]


@pytest.mark.parametrize("start", [Start(), Start(resume=START)])
async def test_a_reader_that_had_nothing_in_an_earlier_era_asks_by_no_beginning(
    start: Start,
) -> None:
    stream, hub = await a_hub_that_read()
    reader = await a_reader(hub, start)
    await begin_an_era(hub, 3)
    gap = Gap("reset", START.after(), StreamId(3, 0), None, StreamId(3, 0).before())
    stream.answers = [behind(gap, 3)]
    assert (await next_of(reader))[0] == gap
    assert stream.asked[0].after == Cursor(START.after())


async def test_after_an_error_a_position_counts_nothing() -> None:
    """Another stream may come back, and have entries from before the cursor to behind it."""
    stream, hub = await a_hub_that_read(90)
    reader = await a_reader_behind(hub, at(5, 1))
    stream.answers = [Unavailable("away", "on purpose"), a_page(at(5), 6)]
    trying = asyncio.create_task(next_of(reader))
    await wait_until(lambda: len(stream.asked) == 1, "the first read has failed")
    hub._wake()
    assert ids_of(await trying) == [6]
    assert [asked.after for asked in stream.asked] == [at(5, 1), at(5)]


async def test_a_read_that_failed_is_tried_again_though_nothing_changes() -> None:
    stream, hub = await a_hub_that_read(90)
    reader = await a_reader_behind(hub, at(5, 1))
    stream.answers = [Unavailable("away", "on purpose"), a_page(at(5), 6)]
    assert ids_of(await next_of(reader)) == [6]


async def test_the_pages_of_a_reader_are_as_large_as_one_write() -> None:
    stream, hub = await a_hub_that_read(90_000, batch_count=300)
    reader = await a_reader_behind(hub, at(1))
    stream.answers = [
        a_page(at(1), 2, 3, size=1_000),
        a_page(at(3), 4, 5, size=10),
        a_page(at(5), 6, size=BATCH_BYTES // 2),
        a_page(at(6), 7, size=BATCH_BYTES * 2),
        a_page(at(7), 8),
    ]
    for _ in range(5):
        await next_of(reader)
    assert [asked.most for asked in stream.asked] == [16, BATCH_BYTES // 1_000, 300, 2, 1]


async def test_a_page_larger_than_one_write_is_cut_and_read_on_from_there() -> None:
    stream, hub = await a_hub_that_read(90)
    reader = await a_reader_behind(hub, at(5, 1))
    stream.answers = [a_page(at(5, 1), 6, 7, 8, size=BATCH_BYTES // 2), a_page(at(7, 3), 8)]
    assert ids_of(await next_of(reader)) == [6, 7]
    assert ids_of(await next_of(reader)) == [8]
    assert stream.asked[1].after == at(7, 3)


class RestingHub(Hub):
    """A hub that keeps how long it was asked to rest."""

    rested: list[int]

    async def rest(self, entries: int) -> None:
        self.rested.append(entries)


async def test_each_page_is_followed_by_a_rest_for_the_live_readers() -> None:
    stream, hub = await a_hub_that_read(90, kind=RestingHub)
    assert isinstance(hub, RestingHub)
    hub.rested = []
    reader = await a_reader_behind(hub, at(5, 1))
    stream.answers = [a_page(at(5, 1), 6, 7, 8)]
    await next_of(reader)
    assert hub.rested == [3]


# -- pages that readers share ----------------------------------------------------------------------


async def test_readers_at_one_id_read_it_once_together() -> None:
    stream, hub = await a_hub_that_read(90)
    readers = [await a_reader_behind(hub, at(5, 1)) for _ in range(20)]
    stream.open.clear()
    stream.answers = [a_page(at(5, 1), 6, 7)]
    trying = [asyncio.create_task(next_of(reader)) for reader in readers]
    for _ in range(5):
        await asyncio.sleep(0)
    stream.open.set()
    assert [ids_of(items) for items in await asyncio.gather(*trying)] == [[6, 7]] * 20
    assert len(stream.asked) == 1
    assert not hub.reading
    assert {reader.cursor for reader in readers} == {at(7, 3)}
    assert hub.metrics.catchup_reads._value.get() == 1


async def test_readers_go_on_when_the_one_that_reads_for_them_leaves() -> None:
    stream, hub = await a_hub_that_read(90)
    first, second = [await a_reader_behind(hub, at(5, 1)) for _ in range(2)]
    stream.open.clear()
    reading = asyncio.create_task(next_of(first))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(next_of(second))
    await asyncio.sleep(0)
    assert len(stream.asked) == 1
    reading.cancel()
    await asyncio.wait((reading,))
    stream.answers = [a_page(at(5, 1), 6)]
    stream.open.set()
    assert ids_of(await waiting) == [6]
    assert not hub.reading
    assert hub.catching_up.free == CATCHUP_READERS


async def on_the_shelf(
    stream: ScriptedStream, hub: Hub, answer: Page | Callable[[], Page], cursor: Cursor
) -> bool:
    """Whether a page that one reader reads is kept for the next one at the same cursor."""
    stream.answers = [answer, a_page(cursor, 99)]
    first, second = [await a_reader_behind(hub, cursor) for _ in range(2)]
    await next_of(first)
    asked = len(stream.asked)
    await next_of(second)
    return len(stream.asked) == asked


async def test_a_page_is_kept_for_those_who_come_the_same_way() -> None:
    stream, hub = await a_hub_that_read(90)
    assert await on_the_shelf(stream, hub, a_page(at(5, 1), 6, 7), at(5, 1))
    reader = await a_reader_behind(hub, at(6, 2))
    assert ids_of(await next_of(reader)) == [7]
    assert reader.cursor == at(7, 3)


async def test_a_page_behind_a_gap_is_not_kept() -> None:
    """Whoever comes to where it begins may have had other entries before."""
    stream, hub = await a_hub_that_read(90)
    gap = a_gap(5, 30, 24)
    stream.answers = [behind(gap, 30, 31)]
    await next_of(await a_reader_behind(hub, at(5, 1)))
    assert hub.shelf.bytes == 0


async def test_a_page_that_was_read_while_an_era_began_is_not_kept() -> None:
    stream, hub = await a_hub_that_read(90)

    def read_meanwhile() -> Page:
        hub.era += 1
        return a_page(at(5, 1), 6, 7)

    assert not await on_the_shelf(stream, hub, read_meanwhile, at(5, 1))


async def test_a_reader_that_counts_takes_no_page_that_does_not() -> None:
    stream, hub = await a_hub_that_read(90)
    stream.answers = [a_page(at(5), 6), a_page(at(5, 1), 6)]
    for _ in range(2):
        assert ids_of(await next_of(await a_reader_behind(hub, at(5)))) == [6]
    assert len(stream.asked) == 1
    reader = await a_reader_behind(hub, at(5, 1))
    await next_of(reader)
    assert reader.cursor == at(6, 2)
    assert len(stream.asked) == 2
    uncounted = await a_reader_behind(hub, at(5))
    await next_of(uncounted)
    assert len(stream.asked) == 2
    assert uncounted.cursor == at(6, 2)


async def test_a_page_of_the_shelf_proves_its_readers_cursor() -> None:
    stream, hub = await a_hub_that_read(90)
    stream.answers = [a_page(at(5, 1), 6)]
    await next_of(await a_reader_behind(hub, at(5, 1)))
    hub.era += 1
    hub.failover_era = 4
    reader = await a_reader(hub, Start(resume=StreamId(5, 0)))
    await next_of(reader)
    stream.answers = [a_page(at(6, 2), 7)]
    await next_of(reader)
    assert stream.asked[-1].after == at(6, 2)
    assert stream.asked[-1].failover_era == 4


async def test_after_a_failover_no_page_of_the_shelf_proves_an_id() -> None:
    stream, hub = await a_hub_that_read(90)
    reader = await a_reader_behind(hub, at(5, 1))
    stream.answers = [a_page(at(5, 1), 6), a_page(at(4), 8)]
    await next_of(await a_reader_behind(hub, at(5, 1)))
    stream.lows = [StreamId(4, 0)]
    assert ids_of(await next_of(reader)) == [8]


async def test_the_beginning_on_the_shelf_is_not_that_of_an_earlier_era() -> None:
    """One that had nothing yet lacks what the stream had before it was flushed."""
    stream, hub = await a_hub_that_read()
    early = await a_reader(hub)
    await begin_an_era(hub, 3)
    late = await a_reader(hub, Start(resume=START))
    stream.answers = [a_page(Cursor(START, 0), 3), behind(a_gap(1, 3), 3)]
    assert ids_of(await next_of(late)) == [3]
    assert isinstance((await next_of(early))[0], Gap)
    assert stream.asked[1].after == Cursor(START.after())


async def test_an_era_that_begins_while_another_reads_is_noticed_before_the_shelf() -> None:
    stream, hub = await a_hub_that_read()
    early = await a_reader(hub)
    early.number = None
    first = await a_reader_behind(hub, Cursor(START, 0))
    hub.window.restart(at(50))
    stream.open.clear()
    reading = asyncio.create_task(next_of(first))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(next_of(early))
    await asyncio.sleep(0)
    await begin_an_era(hub, 60)
    hub.shelf.put(Batch(Cursor(START, 0), at(60, 1), [an_entry(60)]))
    stream.answers = [behind(a_gap(1, 60), 60)] * 2
    stream.open.set()
    assert isinstance((await waiting)[0], Gap)
    await reading


async def test_others_have_their_turn_between_pages_of_the_shelf() -> None:
    stream, hub = await a_hub_that_read(90)
    stream.answers = [a_page(at(5, 1), 6)]
    await next_of(await a_reader_behind(hub, at(5, 1)))
    reader = await a_reader_behind(hub, at(5, 1))
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    assert ids_of(await next_of(reader)) == [6]
    assert turns
    assert len(stream.asked) == 1


async def test_few_readers_read_at_the_same_time() -> None:
    stream, hub = await a_hub_that_read(90)
    readers = [await a_reader_behind(hub, at(number)) for number in range(5, 45)]
    stream.answers = [a_page(at(number), 80) for number in range(5, 45)]
    stream.open.clear()
    trying = [asyncio.create_task(next_of(reader)) for reader in readers]
    await wait_until(lambda: stream.at_once == CATCHUP_READERS, "as many read as may")
    stream.open.set()
    await asyncio.gather(*trying)
    assert stream.most_at_once == CATCHUP_READERS
    assert len(stream.asked) == len(readers)


# -- skipping --------------------------------------------------------------------------------------


async def a_reader_that_skips(hub: Hub, cursor: Cursor) -> HubSubscription:
    """One that has to go on before what the window still has."""
    reader = await a_reader(hub, Start(on_lag="skip"))
    reader.cursor, reader.number = cursor, hub.window.first_number - 1
    return reader


@pytest.mark.parametrize(
    ("reader_at", "window_at", "count"), [(4, 9, 5), (None, 9, None), (4, None, None)]
)
async def test_a_skip_is_counted_where_both_positions_are_known(
    reader_at: int | None, window_at: int | None, count: int | None
) -> None:
    _, hub = await a_hub_that_read(1)
    hub.window.restart(at(20, window_at))
    await hub._take(a_page(hub.window.end, 22, 23))
    reader = await a_reader_that_skips(hub, at(5, reader_at))
    gap = Gap("slow", StreamId(5, 0), StreamId(22, 0), count, StreamId(20, 0))
    assert await next_of(reader) == [gap]
    assert reader.cursor == at(20, window_at)
    assert ids_of(await next_of(reader)) == [22, 23]


async def test_a_reader_does_not_skip_to_a_batch_without_entries() -> None:
    stream, hub = await a_hub_that_read(1)
    await hub._take(a_page(hub.window.end, end=at(9), unreadable=1))
    reader = await a_reader_that_skips(hub, at(1, 1))
    stream.answers = [a_page(at(1, 1), 2)]
    assert ids_of(await next_of(reader)) == [2]


async def test_a_reader_does_not_skip_where_the_window_is_empty() -> None:
    stream, hub = await a_hub_that_read(1)
    hub.window.restart(at(20))
    reader = await a_reader_that_skips(hub, at(1, 1))
    stream.answers = [a_page(at(1, 1), 2)]
    assert ids_of(await next_of(reader)) == [2]


async def test_a_reader_that_resumes_behind_the_window_reads_what_it_lacks() -> None:
    """It lags no more than any other that was away, and has skipped nothing yet."""
    stream, hub = await a_hub_that_read(1)
    hub.window.restart(at(20, 20))
    await hub._take(a_page(hub.window.end, 21, 22))
    reader = await a_reader(hub, Start(resume=StreamId(5, 0), on_lag="skip"))
    stream.answers = [a_page(at(5), 6), a_page(at(6), 7)]
    assert ids_of(await next_of(reader)) == [6]
    assert ids_of(await next_of(reader)) == [7]


async def test_a_reader_of_an_earlier_era_is_told_a_gap_rather_than_skips() -> None:
    stream, hub = await a_hub_that_read(5)
    reader = await a_reader(hub, Start(on_lag="skip"))
    await begin_an_era(hub, 30)
    gap = a_gap(5, 30)
    stream.answers = [behind(gap, 30)]
    assert (await next_of(reader))[0] == gap


async def test_a_reader_that_does_not_skip_reads_all_that_it_is_behind() -> None:
    stream, hub = await a_hub_that_read(5)
    reader = await a_reader(hub, Start(on_lag="catchup"))
    reader.cursor, reader.number = at(1), hub.window.first_number - 1
    stream.answers = [a_page(at(1), 2)]
    assert ids_of(await next_of(reader)) == [2]


# -- where it begins -------------------------------------------------------------------------------


async def test_the_hello_names_the_newest_id_that_is_known() -> None:
    stream, hub = await a_hub_that_read(5)
    for last, told in ((3, 5), (8, 8)):
        stream.now = Bounds(StreamId(2, 0), StreamId(last, 0), 3, 3, START)
        [hello] = await next_of(HubSubscription(hub, Start(), EVERYTHING))
        assert isinstance(hello, Hello)
        assert (hello.id, hello.first, hello.last) == (StreamId(5, 0), *ids(2, told))


def ids(*numbers: int) -> list[StreamId]:
    return [StreamId(number, 0) for number in numbers]


async def test_the_hello_of_a_stream_that_never_had_an_entry_names_no_last() -> None:
    _, hub = await a_hub_that_read()
    [hello] = await next_of(HubSubscription(hub, Start(), EVERYTHING))
    assert isinstance(hello, Hello)
    assert (hello.id, hello.first, hello.last) == (START, None, None)


async def test_an_era_that_begins_while_the_first_id_is_looked_up_is_noticed() -> None:
    stream, hub = await a_hub_that_read(5, 6)
    stream.rows = ids(5)
    stream.open.clear()
    subscription = HubSubscription(hub, Start(since=StreamId(6, 0)), EVERYTHING)
    beginning = asyncio.create_task(next_of(subscription))
    await wait_until(lambda: stream.at_once, "it looks")
    await begin_an_era(hub, 3, 9)
    stream.lows = [StreamId(3, 0)]
    stream.open.set()
    await beginning
    stream.answers = [behind(a_gap(5, 3), 3, 9)]
    assert isinstance((await next_of(subscription))[0], Gap)
    assert stream.asked[0].failover_era == 0


async def test_few_readers_look_up_their_first_id_at_the_same_time() -> None:
    stream, hub = await a_hub_that_read(5, 6)
    stream.rows = ids(5)
    stream.open.clear()
    beginning = [
        asyncio.create_task(next_of(HubSubscription(hub, Start(since=StreamId(6, 0)), EVERYTHING)))
        for _ in range(3 * STARTS)
    ]
    await wait_until(lambda: stream.at_once == STARTS, "as many look as may")
    for _ in range(5):
        await asyncio.sleep(0)
    assert stream.at_once == STARTS
    stream.open.set()
    await asyncio.gather(*beginning)
    assert hub.starting.free == STARTS


async def test_a_subscriber_before_the_feed_has_begun_hears_once_why_it_waits() -> None:
    stream = ScriptedStream()
    hub = a_scripted_hub(stream, heartbeat_s=0.02)
    hub.attached = False
    subscription = HubSubscription(hub, Start(), EVERYTHING)
    assert await next_of(subscription) == []  # the state is that of a process that begins
    stream.health.report("away", "cannot be reached")
    assert await next_of(subscription) == [Notice("cannot be reached")]
    assert await next_of(subscription) == []
    assert subscription.reached is None
    stream.now = Bounds(StreamId(1, 0), StreamId(1, 0), 1, 1, START)
    stream.rows = [StreamId(subscription.connected_ms - 1, 0)]
    hub.attached = True
    [hello] = await next_of(subscription)
    assert isinstance(hello, Hello)
    # What was sent since it connected is new to it.
    assert hello.id == stream.rows[0]


async def test_a_reader_that_was_greeted_hears_nothing_of_errors() -> None:
    stream, hub = await a_hub_that_read(90, heartbeat_s=0.02)
    reader = await a_reader_behind(hub, at(5))
    stream.answers = [Unavailable("away", "on purpose")]
    assert await next_of(reader) == []


async def test_an_unknown_id_begins_with_all_that_is_kept() -> None:
    stream, hub = await a_hub_that_read(5)
    stream.now = Bounds(StreamId(3, 0), StreamId(5, 0), 9, 2, START)
    subscription = HubSubscription(hub, Start(unknown=True), EVERYTHING)
    hello, gap = await next_of(subscription)
    assert isinstance(hello, Hello)
    assert hello.id == START
    assert gap == Gap("reset", START, StreamId(3, 0), None, StreamId(3, 0).before())
    assert subscription.reached == StreamId(3, 0).before()


def test_a_subscriber_connected_when_it_was_made() -> None:
    hub = a_scripted_hub(ScriptedStream())
    made = HubSubscription(hub, Start(), EVERYTHING)
    assert abs(made.connected_ms - time.time() * 1000) < 60_000
    assert (made.client, made.confirms, made.reached) == ("", False, None)
    assert made.behind(Bounds(StreamId(1, 0), StreamId(9, 0), 9, 3, START)) is None


# -- how far it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cursor", "last", "added", "era", "behind"),
    [
        (at(5, 3), 9, 8, 0, 5),
        (at(5, 3), 5, 8, 0, 0),
        (at(5), 5, None, 1, 0),
        (at(5), 9, 8, 0, None),
        (at(5, 3), 9, None, 0, None),
        (at(5, 3), 9, 8, 1, None),
        (at(5, 9), 9, 8, 0, 0),
    ],
)
async def test_how_far_a_reader_is_behind_is_known_by_positions_of_its_era(
    cursor: Cursor, last: int, added: int | None, era: int, behind: int | None
) -> None:
    _, hub = await a_hub_that_read(1)
    reader = await a_reader(hub)
    reader.cursor = cursor
    hub.era = era
    assert reader.behind(Bounds(StreamId(1, 0), StreamId(last, 0), added, 3, START)) == behind
    assert reader.reached == cursor.id


@pytest.mark.parametrize(
    ("number", "closing", "follows"), [(1, False, False), (2, True, False), (2, False, True)]
)
async def test_a_reader_that_had_all_of_the_window_follows_until_the_hub_closes(
    number: int, closing: bool, follows: bool
) -> None:
    _, hub = await a_hub_that_read(1)
    assert hub.window.next_number == 2
    reader = await a_reader(hub)
    assert reader.number == 2
    reader.number, hub.closing = number, closing
    following = asyncio.create_task(reader.follow(Pipe()))
    await asyncio.wait((following,), timeout=0.05 if follows else LIMIT_S)
    assert following.done() != follows
    assert hub.live.count == follows
    hub.live.dismiss()
    await asyncio.wait_for(following, LIMIT_S)


async def test_a_search_that_is_under_way_ends_with_its_subscription() -> None:
    stream, hub = await a_hub_that_read(1, heartbeat_s=0.02)
    stream.now = Bounds(StreamId(1, 0), StreamId(1, 0), 1, 1, START)
    with HubSubscription(hub, Start(tail=3), EVERYTHING) as subscription:
        await next_of(subscription)
        assert subscription.reached is None
        for cursor in (at(0), at(1, 1)):  # where `since` begins, entries may be skipped
            subscription.cursor = cursor
            assert subscription.behind(Bounds(None, StreamId(9, 0), 9, 0, START)) is None
        stream.open.clear()
        assert await next_of(subscription) == []
        assert len(hub.searches) == 1
    await wait_until(lambda: not hub.searches, "the search has ended")
    assert subscription.reached is None


async def test_a_farewell_is_the_last_word() -> None:
    _, hub = await a_hub_that_read(1)
    reader = await a_reader(hub)
    hub.close()
    assert [type(item) for item in await next_of(reader)] == [Bye]
    assert await reader.next() is None
