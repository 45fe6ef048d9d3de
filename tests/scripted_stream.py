"""A stream that answers as a test says, and what a live reader writes to, without servers."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from logpipe.continuity import NO_STREAM, Bounds, Cursor, Gap
from logpipe.event import Entry, StoredEvent
from logpipe.fanout.hub import Hub
from logpipe.fanout.streaming import NDJSON
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Encoder
from logpipe.metrics import Metrics
from logpipe.stream import Page, RedisHealth
from tests.helpers import QUICK


class Asked(NamedTuple):
    """The arguments of a `read`."""

    after: Cursor
    most: int
    witness: StreamId
    failover_era: int | None


Answer = Page | Exception | Callable[[], Page]
"""A function is called when the read is answered: something else may happen first."""


class ScriptedStream:
    """Stands in for a `Stream`; keeps what its `read` was asked."""

    def __init__(self) -> None:
        self.health = RedisHealth("a script")
        self.memory = (11.0, 12.0)
        self.keeping = (1.0, 0.0)
        self.lows: list[StreamId | None] = []
        """Up to where the stream of each failover era is that of the next one."""
        self.asked: list[Asked] = []
        self.answers: list[Answer] = []
        """Of the next reads; once there is none, nothing follows a cursor."""
        self.followed: asyncio.Queue[Page | Exception] = asyncio.Queue()
        """The answers of `follow`, which waits where there is none."""
        self.now: Bounds | Exception = NO_STREAM
        """The answer of `bounds`."""
        self.rows: list[StreamId] = []
        """What `range` finds."""
        self.looks = 0
        """Calls of `range` and `bounds`."""
        self.open = asyncio.Event()
        """Reads and looks wait while this is not set."""
        self.open.set()
        self.at_once = 0
        self.most_at_once = 0
        """Reads and looks that have waited together."""

    @property
    def failover_era(self) -> int:
        return len(self.lows)

    def parted_since(self, failover_era: int) -> StreamId | None:
        return min((low for low in self.lows[failover_era:] if low is not None), default=None)

    async def _turn(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.open.wait()
        finally:
            self.at_once -= 1

    async def read(
        self,
        after: Cursor,
        count: int,
        witness: StreamId = START,
        *,
        failover_era: int | None = None,
    ) -> Page:
        self.asked.append(Asked(after, count, witness, failover_era))
        await self._turn()
        answer = self.answers.pop(0) if self.answers else a_page(after)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Page) else answer()

    async def follow(self, after: Cursor, count: int, witness: StreamId = START) -> Page:
        answer = await self.followed.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def bounds(self) -> Bounds:
        self.looks += 1
        await self._turn()
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    async def range(
        self, low: StreamId, high: StreamId, count: int, *, newest_first: bool = False
    ) -> list[tuple[StreamId, Entry | None]]:
        self.looks += 1
        await self._turn()
        rows: list[tuple[StreamId, Entry | None]] = [(id_, None) for id_ in self.rows]
        return [row for row in rows if low <= row[0] <= high][:count]

    async def raw_range(self, *_: Any, **__: Any) -> list[Any]:
        await self._turn()
        return []

    async def lost_between(self, after: StreamId, until: StreamId) -> bool:
        return False

    async def size(self) -> float:
        return 13.0


class Pipe:
    """A `live.Writer` that keeps what it is written; `room` is how many more writes it takes."""

    def __init__(self, room: int = 1_000_000, *, chunked: bool = True) -> None:
        self.chunked = chunked
        self.encoder: Encoder = NDJSON
        self.passed: StreamId | None = None
        self.written_at = 0.0
        self.chunks: list[bytes] = []
        self.room = room

    def write(self, chunk: bytes) -> bool:
        if self.chunked:
            size, _, chunk = chunk.partition(b"\r\n")
            assert int(size, 16) == len(chunk) - 2
            chunk = chunk[:-2]
        self.chunks.append(chunk)
        return len(self.chunks) < self.room

    @property
    def news(self) -> list[bytes]:
        """What it was written beside heartbeats, which may be due at any time."""
        return [chunk for chunk in self.chunks if chunk != NDJSON.heartbeat]

    @property
    def events(self) -> int:
        return b"".join(self.chunks).count(b'"source"')


def at(ms: int, position: int | None = None) -> Cursor:
    """A cursor behind the entry of a millisecond; 0 is the beginning."""
    return Cursor(StreamId(ms, 0), position)


def an_entry(ms: int, size: int = 10) -> Entry:
    return Entry(StreamId(ms, 0), b"x" * size, StoredEvent())


def a_page(
    after: Cursor,
    *numbers: int,
    gap: Gap | None = None,
    end: Cursor | None = None,
    size: int = 10,
    unreadable: int = 0,
    limited: bool = False,
    failover_era: int = 0,
) -> Page:
    """A page of one entry a millisecond; without an `end`, it ends at the last of them."""
    if end is None:
        position = None if after.position is None else after.position + len(numbers)
        end = at(numbers[-1], position) if numbers else after
    entries = [an_entry(ms, size) for ms in numbers]
    return Page(gap, after, end, entries, unreadable, limited, failover_era)


def a_gap(after: int, before: int, count: int | None = None) -> Gap:
    first = StreamId(before, 0)
    return Gap("reset" if count is None else "trimmed", StreamId(after, 0), first, count,
               first.before())  # fmt: skip


def behind(gap: Gap, *numbers: int, **more: Any) -> Page:
    """A page that follows a gap."""
    return a_page(Cursor(gap.resume, more.pop("position", None)), *numbers, gap=gap, **more)


def a_scripted_hub(stream: ScriptedStream, kind: type[Hub] = Hub, **more: Any) -> Hub:
    """A hub that has reached a stream which had nothing; its feed runs where a test runs it."""
    given = {"queue_len": 100, "batch_count": 500, "heartbeat_s": 60.0, "pauses": QUICK, **more}
    hub = kind(cast(Any, stream), Metrics(), **given)
    hub.attached = True
    hub.window.restart(Cursor(START, 0))
    return hub


def ids_of(batches: object) -> list[int]:
    """The milliseconds of the entries of all batches among some items."""
    items = cast("list[object]", batches or [])
    found = [entry for item in items if isinstance(item, Batch) for entry in item.entries]
    return [entry.id.ms for entry in found]
