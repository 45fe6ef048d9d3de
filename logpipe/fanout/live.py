"""The live readers: those that have had all of the window, written to in one loop.

To wake a task, let it find its entries and write them costs three times the write itself. So who
keeps up leaves its task asleep and is handed each batch as it comes; who does not, or has to be
told more than entries, goes on by itself from its cursor (`subscription.py`).
"""

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from logpipe.continuity import Cursor
from logpipe.filters import Filter
from logpipe.ids import StreamId
from logpipe.messages import Batch, Encoder, Progress
from logpipe.metrics import Metrics
from logpipe.wire import framed

PROGRESS_S = 5.0
"""While the filter rejects everything, the cursor is told this often."""

WRITES_AT_ONCE = 250
"""Then everything else has its turn: some milliseconds."""


class Reader(Protocol):
    """A cursor on the window, as the loop moves it."""

    filter: Filter
    cursor: Cursor
    number: int | None
    """That of the batch that it reads next."""


class Writer(Protocol):
    """Where a reader's bytes go."""

    encoder: Encoder
    passed: StreamId | None
    """The newest id read, where none that was written tells it."""
    written_at: float
    """When something was written last, by the monotonic clock."""

    @property
    def chunked(self) -> bool:
        """Whether what `write` takes is a chunk, as `wire.framed` makes it."""

    def write(self, part: bytes) -> bool:
        """Writes a part of the body; False when some of it has to wait."""


class _Kind(NamedTuple):
    """What readers have in common who are written the same bytes."""

    encoder: Encoder
    chosen: Filter
    chunked: bool


class _Follower:
    __slots__ = ("done", "reader", "writer")

    def __init__(self, reader: Reader, writer: Writer, done: "asyncio.Future[None]") -> None:
        self.reader = reader
        self.writer = writer
        self.done = done

    def write(self, part: bytes, now: float) -> None:
        writer = self.writer
        writer.written_at = now
        writer.passed = None
        if not writer.write(part):
            self.dismiss()

    def dismiss(self) -> None:
        """Its task goes on."""
        if not self.done.done():
            self.done.set_result(None)


class Live:
    """All live readers of a hub, by what they are written: their format and filter."""

    def __init__(self, metrics: Metrics) -> None:
        self.count = 0
        self._metrics = metrics
        self._followers: dict[_Kind, set[_Follower]] = {}

    async def follow(self, reader: Reader, writer: Writer) -> None:
        """Returns when the reader has to go on by itself; it has had all of the window."""
        follower = _Follower(reader, writer, asyncio.get_running_loop().create_future())
        kind = _Kind(writer.encoder, reader.filter, writer.chunked)
        self._followers.setdefault(kind, set()).add(follower)
        self.count += 1
        try:
            await follower.done
        finally:
            self.count -= 1
            self._leave(kind, follower)

    def _leave(self, kind: _Kind, follower: _Follower) -> None:
        same = self._followers[kind]
        same.discard(follower)
        if not same:
            del self._followers[kind]

    async def carry(self, batch: Batch, number: int) -> None:
        """Writes a batch that the window has just got, as `number`, to all of them."""
        for kind, followers in list(self._followers.items()):
            chunk = batch.chunk(kind.encoder, kind.chosen)
            part = framed(chunk) if chunk and kind.chunked else chunk
            waiting = [each for each in followers if each.reader.number == number]
            for at in range(0, len(waiting), WRITES_AT_ONCE):
                now = time.monotonic()
                some = [each for each in waiting[at : at + WRITES_AT_ONCE] if not each.done.done()]
                if part:
                    self._write(some, batch, number, part, now)
                    self._metrics.delivered_bytes.inc(len(chunk) * len(some))
                else:
                    self._pass(some, batch, number, now)
                await asyncio.sleep(0)

    def _write(
        self, followers: list[_Follower], batch: Batch, number: int, part: bytes, now: float
    ) -> None:
        end, following = batch.end, number + 1
        for each in followers:
            reader = each.reader
            reader.cursor = end
            reader.number = following
            each.write(part, now)
        count = len(followers)
        if followers:
            found = batch.matching(followers[0].reader.filter)
            if found[-1].id != end.id:
                for each in followers:
                    each.writer.passed = end.id
            self._metrics.delivered_events.inc(len(found) * count)
            self._metrics.window_reads.inc(count)

    def _pass(self, followers: Iterable[_Follower], batch: Batch, number: int, now: float) -> None:
        """The filter takes none of it: only the cursors move."""
        for each in followers:
            each.reader.cursor = batch.end
            each.reader.number = number + 1
            each.writer.passed = batch.end.id
            if now - each.writer.written_at >= PROGRESS_S:
                self._tell(each, now)

    def beat(self, heartbeat_s: float) -> None:
        """Says to each that has had nothing for long that the stream is alive."""
        now = time.monotonic()
        for followers in list(self._followers.values()):
            for each in list(followers):
                idle = now - each.writer.written_at
                if idle >= heartbeat_s or (each.writer.passed and idle >= PROGRESS_S):
                    self._tell(each, now)

    def _tell(self, follower: _Follower, now: float) -> None:
        """How far it has read, where that is not known, or just a heartbeat."""
        encoder, passed = follower.writer.encoder, follower.writer.passed
        said = encoder.message(Progress(passed)) if passed else encoder.heartbeat
        follower.write(framed(said) if follower.writer.chunked else said, now)
        self._metrics.delivered_bytes.inc(len(said))

    def dismiss(self) -> None:
        """All go on by themselves: what follows has to be explained, or nothing follows."""
        for followers in self._followers.values():
            for each in followers:
                each.dismiss()
