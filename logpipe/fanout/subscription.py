"""Subscriptions: a subscriber is a cursor on an ordered log.

It reads on from its cursor: from the window while it is there, from the stream itself while it is
behind (catch-up), and is told by a `Gap` what the stream no longer holds. Resume, `since`, `tail`
and catch-up differ only in where the cursor starts.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from logpipe import __version__
from logpipe.continuity import Bounds, Cursor, Gap
from logpipe.fanout.history import before
from logpipe.fanout.hub import Hub
from logpipe.fanout.live import Writer
from logpipe.fanout.look_back import LookBack
from logpipe.fanout.window import BATCH_BYTES, cut, rest_of
from logpipe.filters import Filter
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Bye, Hello, Item, Notice, Start
from logpipe.problems import Unavailable
from logpipe.stream import Page

STARTING = ("connecting", "ok")
"""States of Redis in which a feed that has not begun is about to: nothing to tell of."""

UNKNOWN_EVENT_BYTES = 16 * 1024
"""What an event is taken to measure until the first ones were seen: a first page of 16."""


class HubSubscription:
    """One subscriber's way through the log."""

    confirms = False

    def __init__(self, hub: Hub, start: Start, chosen: Filter) -> None:
        self.filter = chosen
        self.client = ""
        self.cursor = Cursor(START)
        self.connected_ms = time.time_ns() // 1_000_000
        self._hub = hub
        self.number: int | None = None
        """That of the batch of the window that it reads next; None while it reads elsewhere."""
        self._start = start
        self._era: int | None = None
        self._failover_era: int | None = None
        self._begun = False
        self._waited = False
        self._noticed = False
        self._ended = False
        self._average = 0
        self._look_back: LookBack | None = None
        self._gap: Gap | None = None
        """What is missing where it begins at `since`, until the search of `tail` is over."""

    def __enter__(self) -> Self:
        self._hub.subscribers.add(self)
        self._hub.metrics.subscribers.labels("broadcast").inc()
        return self

    def __exit__(self, *_: object) -> None:
        if self._look_back is not None:
            self._look_back.cancel()
        self._hub.subscribers.discard(self)
        self._hub.metrics.subscribers.labels("broadcast").dec()

    @property
    def reached(self) -> StreamId | None:
        """The id up to which it has read; None before it has begun."""
        return self.cursor.id if self._begun and self._look_back is None else None

    def behind(self, newest: Bounds) -> int | None:
        """How many entries lie between its cursor and the newest; None where that is not known."""
        if self._look_back is not None:
            return None
        if self.cursor.id == newest.last:
            return 0
        if self._era != self._hub.era or self.cursor.position is None or newest.added is None:
            return None
        return max(0, newest.added - self.cursor.position)

    async def sent(self) -> None:
        """Nothing: a broadcast is not acknowledged."""

    async def follow(self, writer: Writer) -> None:
        """Among the live readers, as long as it has had all of the window."""
        if self.number == self._hub.window.next_number and not self._hub.closing:
            await self._hub.live.follow(self, writer)

    async def next(self) -> Sequence[Item] | None:
        """The next items: none when a heartbeat is due, None when the subscription is over."""
        due = time.monotonic() + self._hub.heartbeat_s
        while not self._ended:
            change = self._hub.change
            if self._hub.closing:
                self._ended = True
                return [Bye("the server is stopping")]
            patience = None
            try:
                if not self._begun:
                    items = await self._begin()
                elif self._look_back is not None:
                    items = await self._search(self._look_back, due)
                else:
                    items = await self._read_on()
            except Unavailable as error:
                items = self._notice(error)
                patience = self._hub.pauses.retry_s
                self.cursor = Cursor(self.cursor.id)  # it may be another stream that comes back
            if items or time.monotonic() >= due:
                return items
            if self._look_back is not None and patience is None:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await change.wait()
        return None

    async def _read_on(self) -> Sequence[Item]:
        window = self._hub.window
        # An id that was not read in this era may lie between the window's and yet be unknown.
        known = self._era == self._hub.era or (
            self._in_the_stream_of_the_window and window.holds(self.cursor.id)
        )
        if self.number is None and known:
            self.number = window.locate(self.cursor.id)
        if self.number is not None and self.number >= window.first_number:
            return self._from_window(self.number)
        if self.number is not None and self._start.on_lag == "skip" and (gap := self._skip()):
            return [gap]
        return await self._catch_up()

    @property
    def _in_the_stream_of_the_window(self) -> bool:
        """Whether an entry of the window with the id of the cursor is the one that was read."""
        if self._failover_era is None:
            return True
        earlier = min(self._failover_era, self._hub.failover_era)
        return self._hub.stream.parted_since(earlier) is None

    def _from_window(self, number: int) -> Sequence[Item]:
        """All that the window has for this cursor, up to the size of one write."""
        items: list[Item] = []
        size = 0
        while size < BATCH_BYTES and (batch := self._hub.window.get(number)) is not None:
            items.append(rest_of(batch, self.cursor.id))
            self.cursor = batch.end
            size += batch.size
            number += 1
        if items:
            self._hub.metrics.window_reads.inc()
        self.number = number
        self._era, self._failover_era = self._hub.era, self._hub.failover_era
        return items

    async def _catch_up(self) -> Sequence[Item]:
        """The next page from the stream itself, with the gap before it."""
        self.number = None
        if (reading := self._hub.reading.get(self.cursor.id)) is not None:
            await reading.wait()  # another is just about to find out
        self._drop_stale_proof()
        if self._in_the_stream_of_the_window and (batch := self._from_shelf()) is not None:
            await asyncio.sleep(0)  # a reader that takes all at once must not keep the others out
            return [batch]
        at = self.cursor.id
        reading = self._hub.reading.setdefault(at, asyncio.Event())
        try:
            async with self._hub.catching_up.seat(self.client):
                era = self._hub.era
                self._drop_stale_proof()
                page = await self._hub.stream.read(
                    self.cursor,
                    self._page_count(),
                    witness=self._hub.window.end.id,
                    failover_era=self._failover_era,
                )
                await self._hub.rest(len(page.entries))
            return self._read(page, era)
        finally:
            self._hub.reading.pop(at, None)
            reading.set()

    def _drop_stale_proof(self) -> None:
        """Makes a cursor of an earlier era one that has to prove itself."""
        if self._era is not None and self._era != self._hub.era:
            self.cursor = self.cursor.unproven()

    def _read(self, page: Page, era: int) -> Sequence[Item]:
        """What a page of the stream has to say."""
        self._hub.metrics.catchup_reads.inc()
        self.cursor = page.end
        if page.gap is not None or page.end != page.start:
            # An empty answer, as after a flush, proves nothing of the cursor.
            self._era, self._failover_era = era, page.failover_era
        items: list[Item] = []
        if page.gap is not None:
            items.append(page.gap)
        if page.end != page.start:
            # Where entries grow larger, a page may be many times one write: the rest is read again.
            batch = cut(page.start, page.end, page.entries, BATCH_BYTES)[0]
            self.cursor = batch.end
            self._average = batch.size // max(1, len(batch.entries))
            items.append(batch)
            of_the_feed = (era, page.failover_era) == (self._hub.era, self._hub.failover_era)
            if page.gap is None and of_the_feed:
                self._hub.shelf.put(batch)
        return items

    def _from_shelf(self) -> Batch | None:
        """What another reader has found behind this cursor a moment ago."""
        batch = self._hub.shelf.get(self.cursor.id)
        if batch is None or (self.cursor.position is not None and batch.end.position is None):
            return None
        rest = rest_of(batch, self.cursor.id)
        self.cursor, self._era = rest.end, self._hub.era
        self._failover_era = self._hub.failover_era
        return rest

    def _page_count(self) -> int:
        """So many entries that a page is about as large as one write."""
        average = self._average or UNKNOWN_EVENT_BYTES
        return max(1, min(self._hub.catchup_page(), BATCH_BYTES // average))

    def _skip(self) -> Gap | None:
        """Jumps to the newest batch and says what was left out; None where it cannot."""
        newest = self._hub.window.newest
        if self._era != self._hub.era or newest is None or not newest.entries:
            return None
        known = self.cursor.position is not None and newest.start.position is not None
        count = (newest.start.position or 0) - (self.cursor.position or 0) if known else None
        gap = Gap("slow", self.cursor.id, newest.entries[0].id, count, newest.start.id)
        self.cursor, self.number = newest.start, None
        return gap

    def _notice(self, error: Unavailable) -> Sequence[Item]:
        """Says once, before the first entry, why nothing comes; later outages need no word."""
        if self._begun:
            return []
        self._waited = True
        if self._noticed or error.kind in STARTING:
            return []
        self._noticed = True
        return [Notice(error.reason)]

    # -- where it begins ----------------------------------------------------------------------

    async def _begin(self) -> Sequence[Item]:
        """Finds the first cursor, by one small read at the most, and says hello.

        The hello has the id of that cursor, so that a reader that has had no entry yet can resume;
        with `tail` it has none, and the search begins after it.
        """
        gap = None
        if not self._hub.attached:
            raise self._hub.stream.health.unavailable()
        start = self._start
        if start.unknown:
            bounds = await self._hub.stream.bounds()
            self.cursor = Cursor(bounds.first.before() if bounds.first else START)
            if bounds.first:
                gap = Gap("reset", START, bounds.first, None, self.cursor.id)
        elif start.resume is not None:
            self.cursor = Cursor(start.resume)
            # The beginning is that of the stream as it is now; other ids have to prove themselves.
            self._era = self._hub.era if start.resume == START else None
        elif start.since is not None or start.tail is not None or self._waited:
            async with self._hub.starting.seat(self.client):
                era, failover_era = self._hub.era, self._hub.stream.failover_era
                gap = await self._find_start()
            self._era, self._failover_era = era, failover_era
        else:
            self.cursor = self._hub.window.end
            self.number = self._hub.window.next_number
            self._era, self._failover_era = self._hub.era, self._hub.failover_era
        begin = None
        if self._look_back is None:
            begin = gap.after if gap else self.cursor.id
        else:
            self._gap, gap = gap, None
        hello = await self._hello(begin)
        self._begun = True
        return [hello, gap] if gap else [hello]

    async def _hello(self, begin: StreamId | None) -> Hello:
        bounds = await self._hub.bounds()
        last = max(bounds.last, self._hub.window.end.id)
        return Hello(begin, bounds.first, last if last > START else None, "broadcast", __version__)

    async def _find_start(self) -> Gap | None:
        """The cursor of `since`, and the search of `tail` for one that is later."""
        since = self._start.since
        if since is None and self._start.tail is None:
            # It connected while Redis was away: what was sent since then is new to it.
            since = StreamId(self.connected_ms, 0)
        gap = None
        if since is not None:
            self.cursor, gap = await before(self._hub.stream, since)
        if self._start.tail is not None:
            first = self.cursor if since is not None else None
            bounds = await self._hub.stream.bounds()
            end = Cursor(bounds.last, bounds.added)
            self._look_back = LookBack(self._hub, self.filter, self._start.tail, first, end)
        return gap

    async def _search(self, look_back: LookBack, due: float) -> Sequence[Item]:
        """What is found before the time that a heartbeat is due: nothing, or how it begins."""
        items = await look_back.items(max(0.0, due - time.monotonic()), self._gap)
        if items:
            self._look_back = None
            self.cursor = look_back.cursor
        return items or ()
