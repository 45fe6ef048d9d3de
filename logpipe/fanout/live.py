"""The live readers: those that have had all of the window, written to in one loop.

To wake a task, let it find its entries and write them costs three times the write itself. So who
keeps up leaves its task asleep and is handed each batch as it comes; who does not, or has to be
told more than entries, goes on by itself from its cursor (`subscription.py`).
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from logpipe.continuity import Cursor
from logpipe.event import Entry
from logpipe.filters import Filter
from logpipe.filters.index import FilterIndex, Result, Search
from logpipe.ids import StreamId
from logpipe.messages import Batch, Encoder, Progress
from logpipe.metrics import Metrics
from logpipe.turns import Turns
from logpipe.wire import framed

PROGRESS_S = 5.0
"""While the filter rejects everything, the cursor is told this often."""

WRITES_AT_ONCE = 100
"""Writes between two looks at the clock: 0.5 to 1.5 ms."""


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
    """What readers with the same filter have in common who are written the same bytes."""

    encoder: Encoder
    chunked: bool


_Kinds = dict[_Kind, "set[_Follower]"]


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
    """All live readers of a hub, by their filter and by what they are written."""

    def __init__(
        self, metrics: Metrics, index: FilterIndex | None = None, turns: Turns | None = None
    ) -> None:
        self.count = 0
        self._metrics = metrics
        self._index = FilterIndex() if index is None else index
        self._turns = turns or Turns()
        self._followers: dict[Filter, _Kinds] = {}

    async def follow(self, reader: Reader, writer: Writer) -> None:
        """Returns when the reader has to go on by itself; it has had all of the window."""
        follower = _Follower(reader, writer, asyncio.get_running_loop().create_future())
        chosen, kind = reader.filter, _Kind(writer.encoder, writer.chunked)
        self._index.add(chosen)
        self._followers.setdefault(chosen, {}).setdefault(kind, set()).add(follower)
        self.count += 1
        try:
            await follower.done
        finally:
            self.count -= 1
            self._leave(chosen, kind, follower)

    def _leave(self, chosen: Filter, kind: _Kind, follower: _Follower) -> None:
        self._index.remove(chosen)
        kinds = self._followers[chosen]
        same = kinds[kind]
        same.discard(follower)
        if not same:
            del kinds[kind]
        if not kinds:
            del self._followers[chosen]

    async def carry(self, batch: Batch, number: int) -> None:
        """Writes a batch that the window has just got, as `number`, to all of them.

        Readers whose filter takes too long go on by themselves, so that the others do not wait.
        """
        search = self._index.search(batch.entries)
        await self._turns.run(self._carrying(batch, number, search), search.cpu)
        if self._followers:
            await asyncio.sleep(0)

    def _carrying(self, batch: Batch, number: int, search: Search) -> Iterator[None]:
        for result in search.steps():
            if result is not None:
                yield from self._carrying_found(batch, number, result)
            yield

    def _carrying_found(self, batch: Batch, number: int, result: Result) -> Iterator[None]:
        """Writes what a filter takes of a batch to those who have this filter."""
        chosen, found = result
        if found:
            batch.keep(chosen, found)
        for kind, followers in list(self._followers.get(chosen, {}).items()):
            waiting = [each for each in followers if each.reader.number == number]
            chunk = batch.chunk(kind.encoder, chosen) if found else b""
            part = framed(chunk) if chunk and kind.chunked else chunk
            for at in range(0, len(waiting), WRITES_AT_ONCE):
                some = [each for each in waiting[at : at + WRITES_AT_ONCE] if not each.done.done()]
                now = time.monotonic()
                if found is None:
                    for each in some:
                        each.dismiss()
                elif found:
                    self._write(some, batch, number, part, now, found)
                    self._metrics.delivered_bytes.inc(len(chunk) * len(some))
                else:
                    self._pass(some, batch, number, now)
                yield

    def _write(
        self,
        followers: list[_Follower],
        batch: Batch,
        number: int,
        part: bytes,
        now: float,
        found: list[Entry],
    ) -> None:
        end, following = batch.end, number + 1
        for each in followers:
            reader = each.reader
            reader.cursor = end
            reader.number = following
            each.write(part, now)
        if found[-1].id != end.id:
            for each in followers:
                each.writer.passed = end.id
        self._metrics.delivered_events.inc(len(found) * len(followers))
        self._metrics.window_reads.inc(len(followers))

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
        for followers in self._all():
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
        for followers in self._all():
            for each in followers:
                each.dismiss()

    def _all(self) -> "list[set[_Follower]]":
        return [followers for kinds in self._followers.values() for followers in kinds.values()]
