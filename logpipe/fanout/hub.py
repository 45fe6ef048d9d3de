"""The hub: follows the stream once a process into the window that all subscribers share."""

import asyncio
import contextlib
import math
import random
import time
from contextvars import Context
from typing import Any, NamedTuple

from logpipe.continuity import NO_STREAM, Bounds, Cursor
from logpipe.fanout.history import Budget, Scan, ScanSeats
from logpipe.fanout.live import Live
from logpipe.fanout.shelf import Shelf
from logpipe.fanout.window import BATCH_BYTES, Window, bytes_for, cut
from logpipe.filters import Filter
from logpipe.ids import START, StreamId
from logpipe.limits import FairSeats
from logpipe.messages import Subscription
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.stream import Page, Stream

PAUSE_S = 10e-6
CROWD_PAUSE_S = 20e-9
MAX_PAUSE_S = 0.2
"""Between two reads of the feed, the event loop gets the most of `PAUSE_S` for each subscriber and
`CROWD_PAUSE_S` for each pair of them. One write costs 5 to 15 us whatever its size, so a hundred
subscribers are written to a thousand times a second, and thousands get larger batches instead."""

CATCHUP_READERS = 8
"""How many subscribers read from the stream at the same time; the others wait their turn."""
STARTS = 4
"""Subscriptions whose first id is looked up in the stream at the same time: one small read each,
apart from catch-up, so that a new reader is greeted at once."""
LOOK_BACKS = 2
"""Of the seats for scans, those that subscriptions with `tail` may take: one is left for pages of
the history."""

CATCHUP_SHARE = 0.15
"""The part of the event loop that reading for those who are behind may take, all together, while
most are live; without a bound, eight of them made a hundred live ones wait ten times as long. Where
more are behind, as after a restart, it is their part of all, or they would never catch up."""
CATCHUP_PAGE_S = 300e-6
CATCHUP_ENTRY_S = 4e-6
"""What a page costs, and each of its entries: read, decoded, encoded and written."""
CATCHUP_PAGE = 100
"""Entries of a page meanwhile: what one turn of it may hold up the others."""


class Pauses(NamedTuple):
    """How long the feed, its readers and its measurements wait, in seconds."""

    outage_s: float = 0.05
    """The least time between two attempts of the feed; jitter doubles it."""
    recovery_s: float = 1.0
    """How long the feed waits until the monitor reports that Redis is back, before it tries."""
    retry_s: float = 1.0
    """How long a reader waits after an error that the feed may not have met."""
    measure_s: float = 1.0
    """Between two looks at how far the feed is behind, and at the size of the stream."""


PAUSES = Pauses()


class Hub:
    """The feed, its window, and the subscriptions that read from them."""

    def __init__(
        self,
        stream: Stream,
        metrics: Metrics,
        *,
        queue_len: int,
        batch_count: int,
        heartbeat_s: float,
        event_bytes: int = 64 * 1024,
        pauses: Pauses = PAUSES,
    ) -> None:
        self.stream = stream
        self.metrics = metrics
        self.window = Window(queue_len, bytes_for(queue_len, event_bytes))
        self.live = Live(metrics)
        self.shelf = Shelf()
        self.reading: dict[StreamId, asyncio.Event] = {}
        """The ids behind which a subscriber is just reading; set when it is done."""
        self.batch_count = batch_count
        self.heartbeat_s = heartbeat_s
        self.pauses = pauses
        self.attached = False
        """Whether the feed has ever reached the stream: before, there is no `latest`."""
        self.era = 0
        """Grows when the feed cannot prove that the stream is still the same one; positions of
        an earlier era mean nothing."""
        self.failover_era = 0
        """That of the page which was taken last; the window has entries of that stream."""
        self.closing = False
        self.subscribers: set[Subscription] = set()
        self.catching_up = FairSeats(CATCHUP_READERS)
        self.starting = FairSeats(STARTS)
        self.scan_seats = ScanSeats(limited=metrics.count_limited)
        self.looking_back = asyncio.Semaphore(LOOK_BACKS)
        self.searches: set[asyncio.Task[Any]] = set()
        """The searches of subscriptions with `tail` that are under way."""
        self.kept_bytes = 0
        """Bytes of events that they keep."""
        self._rested_at = 0.0
        self._bounds = NO_STREAM
        self._looking: asyncio.Task[Bounds] | None = None
        self._changed = asyncio.Event()

    # -- the feed -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Follows the stream for ever; the one loop that reconnects."""
        outage = False
        try:
            while True:
                try:
                    await self._follow(after_outage=outage)
                except Unavailable:
                    outage = True
                    await asyncio.sleep(self.pauses.outage_s * (1 + random.random()))  # noqa: S311
                    await self.stream.health.recovered(self.pauses.recovery_s)
        finally:
            if self._looking is not None:  # its connection is to be closed with the others
                self._looking.cancel()
                await asyncio.wait((self._looking,))

    async def _follow(self, *, after_outage: bool) -> None:
        if not self.attached:
            self._bounds = await self.stream.bounds()
            self.failover_era = self.stream.failover_era  # nothing is awaited until `follow` begins
            self.window.restart(Cursor(self._bounds.last, self._bounds.added))
            self.attached = True
            self._wake()
        while True:
            end = self.window.end
            page = await self.stream.follow(end, self.batch_count, witness=end.id)
            await self._take(page)
            if after_outage:
                self._wake()
                after_outage = False
            if not page.limited:
                await self._pace()

    async def _take(self, page: Page) -> None:
        """Puts a page into the window, hands it to the live readers and wakes the others."""
        if page.failover_era != self.failover_era:
            self.shelf.clear()  # so that all its pages are of the feed's era
        self.failover_era = page.failover_era
        if page.gap is not None:
            # Only a feed that was at the very beginning can still count. To any other, trimming
            # that overtook it and a flush followed by many entries look the same.
            if page.gap.count is None:
                self.era += 1
            self.live.dismiss()
            self.shelf.clear()
            self.window.restart(page.start)
        if page.end == page.start and page.gap is None:
            return
        for batch in cut(page.start, page.end, page.entries, BATCH_BYTES):
            number = self.window.next_number
            self.window.append(batch)
            await self.live.carry(batch, number)
        self.metrics.feed_events.inc(len(page.entries))
        self.metrics.unreadable.inc(page.unreadable)
        self.metrics.window_events.set(self.window.entries)
        self.metrics.window_bytes.set(self.window.bytes)
        self._wake()

    async def _pace(self) -> None:
        count = len(self.subscribers)
        await asyncio.sleep(min(max(count * PAUSE_S, count**2 * CROWD_PAUSE_S), MAX_PAUSE_S))

    async def beat(self) -> None:
        """Wakes the subscribers now and then, for ever, so that idle ones send a heartbeat."""
        while True:
            await asyncio.sleep(self.heartbeat_s / 4)
            self.live.beat(self.heartbeat_s)
            self.shelf.let_go()
            self._wake()

    async def measure(self) -> None:
        """Shows now and then, for ever, how far the feed is behind the stream, and their sizes."""
        while True:
            await asyncio.sleep(self.pauses.measure_s)
            bounds = await self.bounds()
            entries, seconds = lag_of(self.window.end, bounds)
            self.metrics.feed_lag_events.set(entries)
            self.metrics.feed_lag_seconds.set(seconds)
            self.metrics.stream_entries.set(bounds.length)
            await self._measure_memory()

    async def _measure_memory(self) -> None:
        used, limit = self.stream.memory
        evicts, append_only = self.stream.keeping
        self.metrics.redis_evicts.set(evicts)
        self.metrics.redis_append_only.set(append_only)
        self.metrics.redis_memory_bytes.set(used)
        self.metrics.redis_max_memory_bytes.set(limit)
        with contextlib.suppress(Unavailable):
            self.metrics.stream_bytes.set(await self.stream.size())

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @property
    def change(self) -> asyncio.Event:
        """Set when the window has changed, a heartbeat may be due, or the hub closes.

        Each change has an event of its own: take it before you look, wait for it after.
        """
        return self._changed

    # -- subscribers --------------------------------------------------------------------------

    async def bounds(self) -> Bounds:
        """The stream's bounds, or the last ones known while Redis is away.

        Subscribers that ask at the same time share one answer: thousands may come back at once.
        """
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), context=Context())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Bounds:
        with contextlib.suppress(Unavailable):
            self._bounds = await self.stream.bounds()
        return self._bounds

    def scan(
        self,
        chosen: Filter,
        low: StreamId,
        high: StreamId,
        *,
        newest_first: bool,
        budget: Budget | None = None,
    ) -> Scan:
        """A search of the stream that shares this process's seats for scans."""
        return Scan(
            self.stream,
            self.scan_seats,
            chosen,
            low,
            high,
            self.batch_count,
            newest_first=newest_first,
            budget=budget,
        )

    def catchup_page(self) -> int:
        """How many entries one page of a catch-up may have."""
        few = self._part_behind < 0.5
        return min(self.batch_count, CATCHUP_PAGE) if few else self.batch_count

    @property
    def _part_behind(self) -> float:
        """Which part of the subscribers is not live."""
        return 1 - self.live.count / max(1, len(self.subscribers))

    async def rest(self, entries: int) -> None:
        """Leaves the event loop to the live readers for a while, after a page of a catch-up."""
        if not self.live.count:
            return
        now = time.monotonic()
        cost_s = CATCHUP_PAGE_S + entries * CATCHUP_ENTRY_S
        share = max(CATCHUP_SHARE, self._part_behind)
        self._rested_at = max(now, self._rested_at) + cost_s / share
        await asyncio.sleep(self._rested_at - now)

    def close(self) -> None:
        """Ends all subscriptions with a `Bye`, and those to come."""
        self.closing = True
        self.live.dismiss()
        for search in self.searches:
            search.cancel()
        self._wake()


def lag_of(end: Cursor, bounds: Bounds) -> tuple[float, float]:
    """How many entries, and seconds, a window with this end is behind; NaN where not known, as of
    the time where it has had nothing yet."""
    if end.id >= bounds.last:
        return 0, 0
    counted = end.position is not None and bounds.added is not None
    entries = max(0, (bounds.added or 0) - (end.position or 0)) if counted else math.nan
    return entries, (bounds.last.ms - end.id.ms) / 1000 if end.id > START else math.nan
