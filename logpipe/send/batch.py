"""Events on their way: what one request carries, and where its lines came from. Pure."""

import gzip
import itertools
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from logpipe.send.lines import Line, NotAnEventError, Shaper
from logpipe.send.position import Position

REQUEST_EVENTS = 1_000
"""Events of one request, at the most: what a collector accepts whatever RATE_PER_TOKEN is."""
BATCH_EVENTS = 800
BATCH_BYTES = 512 * 1024
"""A batch is full with so many events or bytes of JSON; the chunk that fills it is still taken, and
a batch with more than `REQUEST_EVENTS` then goes in several requests."""

_LEVEL = 1
"""Of gzip: a third of the time of its default, and a tenth more bytes."""


class Chunk(NamedTuple):
    """Lines of one input that were read at once, of which the first has the number `first`."""

    name: str
    source: str
    first: int
    lines: Sequence[Line]


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Events of a batch that are consecutive lines of one input."""

    name: str
    first: int
    count: int


class Batch(msgspec.Struct, frozen=True):
    """One request. It is kept as JSON as well, in a resume file or a spool, so that whoever finds
    it there sends the very same under the same key."""

    key: str
    events: int
    size: int
    """Bytes of the input that its events were read from."""
    runs: list[Run]
    positions: list[Position]
    """Of all files, after the batch."""
    body: bytes
    """NDJSON in gzip."""

    def place(self, index: int) -> str:
        """Where the event of this index came from."""
        for run in self.runs:
            if index < run.count:
                return f"{run.name}:{run.first + index}"
            index -= run.count
        return "?"


def parts(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in so many parts, under keys of their own that are the same each time."""
    lines = [line + b"\n" for line in gzip.decompress(batch.body).split(b"\n")[:-1]]
    edges = [len(lines) * part // count for part in range(count + 1)]
    for part, (start, end) in enumerate(itertools.pairwise(edges)):
        yield Batch(
            key=f"{batch.key}.{part}",
            events=end - start,
            size=0,
            runs=list(_cut(batch.runs, start, end)),
            positions=[],
            body=packed(lines[start:end]),
        )


def _cut(runs: Sequence[Run], start: int, end: int) -> Iterator[Run]:
    at = 0
    for run in runs:
        first, last = max(start, at), min(end, at + run.count)
        if first < last:
            yield Run(run.name, run.first + first - at, last - first)
        at += run.count


def packed(lines: Sequence[bytes]) -> bytes:
    return gzip.compress(b"".join(lines), _LEVEL, mtime=0)


class Builder:
    def __init__(self, shaper: Shaper) -> None:
        self._shaper = shaper
        self._clear()

    def _clear(self) -> None:
        self._lines: list[bytes] = []
        self._runs: list[Run] = []
        self._bytes = 0
        self.size = 0

    @property
    def full(self) -> bool:
        return len(self._lines) >= BATCH_EVENTS or self._bytes >= BATCH_BYTES

    def add(self, chunk: Chunk, now_ms: int) -> list[tuple[int, str]]:
        """Takes the lines; gives number and reason of those that are no events and have to be."""
        refused = []
        for number, line in enumerate(chunk.lines, chunk.first):
            self.size += line.size
            try:
                event = self._shaper.event(line, chunk.source, now_ms)
            except NotAnEventError as error:
                refused.append((number, str(error)))
                continue
            if event:
                self._lines.append(event + b"\n")
                self._bytes += len(event) + 1
                self._count(chunk.name, number)
        return refused

    def _count(self, name: str, number: int) -> None:
        if self._runs:
            last = self._runs[-1]
            if last.first + last.count == number and last.name == name:
                self._runs[-1] = Run(name, last.first, last.count + 1)
                return
        self._runs.append(Run(name, number, 1))

    def take(self, positions: list[Position]) -> Batch:
        """What was gathered, which may be no event at all: its positions count."""
        batch = Batch(
            key=str(uuid.uuid4()),
            events=len(self._lines),
            size=self.size,
            runs=self._runs,
            positions=positions,
            body=packed(self._lines),
        )
        self._clear()
        return batch
