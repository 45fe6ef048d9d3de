"""The live stream as the page takes it: a few bundles of rows a second, each with its tally.

Above what a person can read it gives a sample, counted, and the way to the rest.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any, Self
from urllib.parse import urlencode

import msgspec
from starlette.types import Send

from logpipe import sse
from logpipe.continuity import Gap
from logpipe.event import Entry, level_rank
from logpipe.fanout.live import Writer
from logpipe.fanout.streaming import Revoking, StreamResponse, finding, named_frame
from logpipe.filters import Filter
from logpipe.ids import START, StreamId
from logpipe.limits import Seats
from logpipe.messages import Batch, Hello, Item, Message, Notice, Progress, Subscription, named
from logpipe.metrics import Metrics
from logpipe.ui.rows import View, gap_row, left_out_row, look_back_row, row
from logpipe.ui.volume import Volume

BUNDLE_READ_BYTES = 2 * 1024 * 1024
BUNDLE_READ_EVENTS = 10_000
"""Events of one bundle, shown or not: a page that catches up has more bundles, not larger ones.
To count ten thousand by time and source takes some milliseconds."""
TICK_S = 0.25
"""Between two bundles of one page; the first after a silence comes at once."""
ROWS_A_SECOND = 200
"""More than this nobody reads."""
BURST_ROWS = 1_000
"""So many rows at once are shown whole: what came while the page was paused or away."""
BUNDLE_BYTES = 512 * 1024
"""The events of one bundle that are shown as rows; a sample of larger ones has fewer."""
ONCE_S = 1.0
"""How long a stream that is asked for once waits for what it has seen to be there, once the search
of `tail` is over, which has limits of its own (`look_back`)."""
MAX_SOURCES = 200
"""Names of sources that one stream tells, for the page to choose from."""
ERROR_RANK = level_rank("ERROR")


class Paced:
    """A subscription whose items come in bundles, `TICK_S` apart at the least.

    With `once` it ends when it has given what was there at its beginning: the page asks again.
    """

    confirms = False

    def __init__(self, inner: Subscription, *, once: bool = False) -> None:
        self.connected_ms = inner.connected_ms
        self._inner = inner
        self._once = once
        self._begun = False
        self._over = False
        self._searching = False
        """Whether the search of `tail` goes on: from the hello, which has no id then, to an id."""
        self._last: StreamId | None = None
        self._given_at = 0.0
        self._pending: asyncio.Task[Sequence[Item] | None] | None = None

    @property
    def filter(self) -> Filter:
        """That of the subscription itself."""
        return self._inner.filter

    @property
    def client(self) -> str:
        """The address of who reads."""
        return self._inner.client

    @client.setter
    def client(self, address: str) -> None:
        self._inner.client = address

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pending is not None:
            self._pending.cancel()
            self._pending.add_done_callback(_forget)
        self._inner.__exit__(*error)

    async def sent(self) -> None:
        """Nothing: a broadcast is not acknowledged."""

    async def follow(self, writer: Writer) -> None:
        """Never: a page is given bundles."""

    async def next(self) -> Sequence[Item] | None:
        """The next bundle; as `Subscription.next`."""
        if self._over:
            return None
        hurried = self._once and self._begun and not self._searching
        first = await self._more(ONCE_S if hurried else None)
        if not first:
            # A heartbeat, or the end. During a search, a page that asks again would begin anew.
            return None if self._once and not self._searching else first
        items = list(first)
        due = self._given_at + TICK_S
        while (rest := due - time.monotonic()) > 0 and not _full(items):
            more = await self._more(rest)
            if more is None:
                break  # nothing more in time, or the end, which the next call finds again
            items += more
        self._begun = True
        self._over = self._once and any(self._has_all(item) for item in items)
        self._given_at = time.monotonic()
        return items

    def _has_all(self, item: Item) -> bool:
        """Whether this leads to what was the last id at the beginning, or nothing more does."""
        match item:
            case Hello(id, last=last):
                self._last, at = last or START, id or START
                self._searching = id is None
                return at >= self._last
            case Batch():
                at = item.end.id
            case Gap(resume=at) | Progress(at):
                pass
            case _:
                return True
        self._searching = False
        return self._last is not None and at >= self._last

    async def _more(self, patience: float | None) -> Sequence[Item] | None:
        """What the subscription gives next; None at its end, or when it takes longer.

        It is not cancelled then, but waited for by the next call: it could lose what it has read.
        """
        if self._pending is None:
            self._pending = asyncio.create_task(self._next())
        done, _ = await asyncio.wait({self._pending}, timeout=patience)
        if not done:
            return None
        items = self._pending.result()
        if items is not None:
            self._pending = None
        return items

    async def _next(self) -> Sequence[Item] | None:
        return await self._inner.next()


def _forget(task: "asyncio.Task[Sequence[Item] | None]") -> None:
    """Retrieves the exception of a cancelled task, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def _full(items: Sequence[Item]) -> bool:
    """Whether a bundle has read enough."""
    batches = [item for item in items if isinstance(item, Batch)]
    size, events = sum(each.size for each in batches), sum(len(each.entries) for each in batches)
    return size >= BUNDLE_READ_BYTES or events >= BUNDLE_READ_EVENTS


class RowEncoder:
    """An `Encoder` of the page: a bundle is one message of rows, so that the rows and the cursor
    that they move arrive together or not at all; the rest are named events."""

    media_type = sse.MEDIA_TYPE
    heartbeat = b"event: heartbeat\ndata:\n\n"
    """Not a comment: the page watches for it, to notice a connection that died in silence."""

    def __init__(self, view: View) -> None:
        self._view = view

    def entries(self, entries: Sequence[Entry]) -> bytes:
        """The rows of a batch, with the last entry's id."""
        return self.rows([self.row(entry) for entry in entries], entries[-1].id)

    def row(self, entry: Entry) -> str:
        """The row of one entry."""
        return row(entry, self._view)

    def rows(self, rows: Sequence[str], cursor: StreamId) -> bytes:
        """Some rows, with the id that they lead to."""
        return sse.frame("".join(rows).encode(), id=str(cursor).encode())

    def message(self, message: Message) -> bytes:
        """A gap is a row like any other; the rest are named events with JSON."""
        if isinstance(message, Gap):
            return self.rows([gap_row(message)], message.resume)
        if isinstance(message, Notice):
            return sse.frame(msgspec.json.encode({"reason": message.reason}), event=b"notice")
        return named_frame(message)

    def named(self, name: str, data: dict[str, Any], cursor: StreamId | None = None) -> bytes:
        """A named event with JSON; it moves the cursor where it has one."""
        id_ = str(cursor).encode() if cursor is not None else b""
        return sse.frame(msgspec.json.encode(data), id=id_, event=name.encode())


class Budget:
    """How many rows may still be shown: `BURST_ROWS` at once, `ROWS_A_SECOND` in the long run."""

    def __init__(self) -> None:
        self._left = float(BURST_ROWS)
        self._at = time.monotonic()

    def take(self, wanted: int) -> int:
        """So many of the wanted ones; they are spent."""
        now = time.monotonic()
        self._left = min(BURST_ROWS, self._left + (now - self._at) * ROWS_A_SECOND)
        self._at = now
        taken = min(wanted, int(self._left))
        self._left -= taken
        return taken


def sample(entries: Sequence[Entry], size: int) -> Sequence[Entry]:
    """`size` of the entries, in order: half of them may be errors, the rest are spread evenly."""
    if size >= len(entries):
        return entries
    severe = [n for n, entry in enumerate(entries) if level_rank(entry.event.level) >= ERROR_RANK]
    chosen = set(_spread(severe, size // 2))
    others = [n for n in range(len(entries)) if n not in chosen]
    chosen.update(_spread(others, size - len(chosen)))
    return [entries[n] for n in sorted(chosen)]


def _spread(numbers: Sequence[int], size: int) -> Sequence[int]:
    if size >= len(numbers):
        return numbers
    return [numbers[n * len(numbers) // size] for n in range(size)]


class FeedResponse(StreamResponse):
    """Streams bundles of rows, each followed by its tally.

    A tally says how many events were read, how many match, how many are shown, when they came by
    level, and which sources are new. Without `rows` there are tallies alone: a page that is paused
    counts what waits. `query` is what led here, for links to what a sample leaves out.
    """

    encoder: RowEncoder

    def __init__(
        self,
        subscription: Subscription,
        chosen: Filter,
        view: View,
        metrics: Metrics,
        seats: Seats,
        revoking: Revoking = lambda _: nullcontext(),
        *,
        query: dict[str, str],
        rows: bool = True,
        once: bool = False,
    ) -> None:
        inner = Paced(subscription, once=once)
        super().__init__(inner, RowEncoder(view), metrics, seats, revoking)
        self._chosen = chosen
        self._query = query
        self._rows = rows
        self._budget = Budget()
        self._sources: set[str] = set()

    async def _pump(self, send: Send) -> None:
        # The first byte at once: a page that has none by then knows that a proxy holds it back.
        await send(
            {"type": "http.response.body", "body": self.encoder.heartbeat, "more_body": True}
        )
        await super()._pump(send)

    async def _encode(self, items: Sequence[Item]) -> bytes:
        parts: list[bytes] = []
        for are_batches, group in groupby(items, lambda item: isinstance(item, Batch)):
            if are_batches:
                batches = [item for item in group if isinstance(item, Batch)]
                await self._seats.in_turn(self._subscription.client, self._bundle(batches, parts))
            else:
                parts += [self._message(item) for item in group if not isinstance(item, Batch)]
        return b"".join(parts) or self.encoder.heartbeat

    def _message(self, message: Message) -> bytes:
        if isinstance(message, Gap):
            self.count_gap(message)
            gap = {"count": message.count, "reason": message.reason}
            missing = self.encoder.named("missing", gap, None if self._rows else message.resume)
            return (self.encoder.message(message) + missing) if self._rows else missing
        if isinstance(message, Hello):
            name, id_, data = named(message)
            cursor = None if id_ is None else str(id_)
            return self.encoder.named(name, {**data, "cursor": cursor}, id_)
        encoded = self._encoded(message)
        if isinstance(message, Progress) and message.looked_back_to and self._rows:
            encoded += self.encoder.rows([look_back_row(message.looked_back_to)], message.id)
        return encoded

    def _bundle(self, batches: Sequence[Batch], parts: list[bytes]) -> Iterator[None]:
        """Adds the rows of some batches and their tally, as work for `Turns`."""
        found: list[Entry] = []
        for batch in batches:
            yield from finding(batch, self._chosen)
            found += batch.matching(self._chosen)
        cursor = batches[-1].end.id
        shown: Sequence[Entry] = ()
        if found and self._rows:
            shown = sample(found, self._budget.take(_fitting(found)))
            yield
            rows: list[str] = []
            for entry in shown:
                rows.append(self.encoder.row(entry))
                yield
            rows.append(self._left_out(found, len(shown)))
            parts.append(self.encoder.rows(rows, cursor))
            self._metrics.delivered_events.inc(len(shown))
            yield
        volume = Volume.of(found).rows()
        yield
        tally = {
            "read": sum(len(batch.entries) for batch in batches),
            "found": len(found),
            "shown": len(shown),
            "volume": volume,
            "sources": self._new_sources(found),
        }
        parts.append(self.encoder.named("tally", tally, cursor))

    def _left_out(self, found: Sequence[Entry], shown: int) -> str:
        if shown == len(found):
            return ""
        first, last = found[0].id, found[-1].id
        span = {"since": str(first), "to": str(last)}
        return left_out_row(
            len(found) - shown, first, last, f"/?{urlencode({**self._query, **span})}"
        )

    def _new_sources(self, found: Sequence[Entry]) -> list[str]:
        if len(self._sources) >= MAX_SOURCES:
            return []
        new = {entry.event.source for entry in found} - self._sources
        self._sources |= new
        return sorted(new)[:MAX_SOURCES]


def _fitting(entries: Sequence[Entry]) -> int:
    """How many rows of such entries make one bundle."""
    size = sum(len(entry.json) for entry in entries)
    return len(entries) if size <= BUNDLE_BYTES else max(1, len(entries) * BUNDLE_BYTES // size)
