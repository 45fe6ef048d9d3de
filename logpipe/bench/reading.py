"""The readers of a benchmark: which events each has received, and how late."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import httptools
import msgspec

from logpipe.bench.events import MARK_BYTES, marks
from logpipe.bench.sending import Address
from logpipe.client.connection import shown

SETTLE_S = 10.0
"""Limit for the heads of the answers, and for the last events after the last one was sent."""
QUIET_S = 0.2
"""After this time without a byte to any reader, all have received their greeting."""
TIMED = 20
"""Readers whose every event is timed; the events of the others are counted."""
CONNECTING_AT_ONCE = 100
RECEIVE_BYTES = 1 << 20
KEPT_BYTES = 16 << 20
"""Of pieces that other readers may still be sent."""


class Read(msgspec.Struct):
    """What all readers together have received."""

    connected: int = 0
    connect_s: float = 0.0
    delivered: int = 0
    missing: int = 0
    doubled: int = 0
    received_bytes: int = 0
    latency_ms: list[float] = []
    """From when an event was due until a reader had it, of the readers that are timed."""
    cpu_s: float = 0.0
    """Of this process, the publisher included."""
    broken: Counter[str] = msgspec.field(default_factory=Counter)
    """Readers that ended early, by reason."""


class Piece(NamedTuple):
    """Bytes of a stream, and of the events whose marks end there the numbers and due times."""

    body: bytes
    numbers: tuple[int, ...]
    due_us: tuple[int, ...]


class Reader(asyncio.BufferedProtocol):
    """A subscriber."""

    def __init__(self, crowd: "Crowd", *, timed: bool = False) -> None:
        self.begun = False
        """Whether the head of its answer has come, with status 200."""
        self.broken = ""
        """Why it ended early."""
        self.count = 0
        """The number of its events."""
        self.numbers: list[tuple[int, ...]] = []
        """The numbers of its events, by piece."""
        self._crowd, self._timed = crowd, timed
        self._chunked = False
        self._reason = self._chunk = self._tail = b""
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(str(exc or "closed by the server"))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._crowd.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._crowd.received(nbytes)
        self.feed(self._crowd.buffer[:nbytes])

    def feed(self, data: memoryview) -> None:
        """Takes bytes of the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.end(f"not HTTP: {error}")

    def on_status(self, reason: bytes) -> None:
        """Called by the parser, as the next five."""
        self._reason += reason

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self.begun = status == 200
        if not self.begun:
            version, reason = self._parser.get_http_version(), self._reason.decode("latin-1")
            self.end(f"HTTP/{version} {status} {reason}")

    def on_chunk_header(self) -> None:
        self._chunked = True

    def on_body(self, body: bytes) -> None:
        if self._chunked:
            self._chunk = self._chunk + body if self._chunk else body
        else:
            self.take(body)

    def on_chunk_complete(self) -> None:
        self.take(self._chunk)
        self._chunk = b""

    def on_message_complete(self) -> None:
        self.end("the server has ended the stream")

    def end(self, reason: str) -> None:
        """Closes it; the first reason counts."""
        self.broken = self.broken or reason
        self.transport.abort()

    def take(self, body: bytes) -> None:
        """Counts the events in bytes of the stream."""
        if not self._crowd.armed or self.broken:
            return
        piece = self._crowd.piece(self._tail, body)
        self._tail = (self._tail + body if len(body) < MARK_BYTES else body)[1 - MARK_BYTES :]
        self.count += len(piece.numbers)
        self.numbers.append(piece.numbers)
        if self._timed:
            now_us = time.time_ns() // 1000
            self._crowd.read.latency_ms += [(now_us - due_us) / 1000 for due_us in piece.due_us]


class Crowd:
    """Readers that look for the events of one run."""

    def __init__(
        self, run: str, per_request: int, *, settle_s: float = SETTLE_S, quiet_s: float = QUIET_S
    ) -> None:
        self.armed = False
        """Whether what comes is counted; before, each reader gets a greeting of its own."""
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.read = Read(latency_ms=[])
        self._marks: re.Pattern[bytes] = marks(run)
        self._per_request = per_request
        self._settle_s, self._quiet_s = settle_s, quiet_s
        self._kept_bytes = 0
        self._pieces: dict[tuple[bytes, bytes, int], Piece] = {}
        self._readers: list[Reader] = []
        self._received_at = self._cpu_s = 0.0

    def received(self, size: int) -> None:
        """Counts bytes of any reader."""
        self._received_at = time.monotonic()
        if self.armed:
            self.read.received_bytes += size

    def piece(self, tail: bytes, body: bytes) -> Piece:
        """The marks that end in `body`, which follows `tail`.

        Most readers are sent the same pieces, and to compare is much faster than to search: so one
        process keeps up with hundreds of megabytes per second.
        """
        key = tail, body[:MARK_BYTES], len(body)
        known = self._pieces.get(key)
        if known is not None and known.body != body:
            self._kept_bytes -= len(self._pieces.pop(key).body)
            known = None
        if known is None:
            found = self._marks.findall(tail + body)
            numbers = (int(request) * self._per_request + int(i) for i, request, _ in found)
            known = Piece(body, tuple(numbers), tuple(int(due_us) for *_, due_us in found))
            self._pieces[key] = known
            self._kept_bytes += len(body)
            while self._kept_bytes > KEPT_BYTES:
                oldest = next(iter(self._pieces))
                self._kept_bytes -= len(self._pieces.pop(oldest).body)
        return known

    async def connect(
        self, address: Address, requests: Sequence[bytes], count: int, kind: type[Reader] = Reader
    ) -> None:
        """Connects so many readers, which send the requests in turn, and waits for the heads of
        their answers."""
        seats = asyncio.Semaphore(CONNECTING_AT_ONCE)

        async def connect(number: int) -> None:
            reader = kind(self, timed=number < TIMED)
            async with seats:
                try:
                    await address.connect(reader)
                except OSError as error:
                    self.read.broken[shown(error)] += 1
                else:
                    self._readers.append(reader)
                    reader.transport.write(requests[number % len(requests)])

        started = time.monotonic()
        await asyncio.gather(*map(connect, range(count)))
        await self._until(lambda one: one.begun)
        self.read.connected = sum(one.begun for one in self._readers)
        self.read.connect_s = time.monotonic() - started

    async def arm(self) -> None:
        """From now on what comes is counted. A stream that others use may never be quiet."""
        await self._until(lambda _: time.monotonic() - self._received_at > self._quiet_s)
        self.armed = True
        self._cpu_s = time.process_time()

    async def finish(self, expected: set[int]) -> Read:
        """Waits until all readers have as many events as are expected, and compares."""
        await self._until(lambda one: one.count >= len(expected))
        read = self.read
        read.cpu_s = time.process_time() - self._cpu_s
        for one in self._readers:
            distinct = set().union(*one.numbers)
            read.delivered += one.count
            read.missing += len(expected - distinct)
            read.doubled += one.count - len(distinct)
            if one.broken:
                read.broken[one.broken] += 1
        return read

    async def aclose(self) -> None:
        """Closes the connections."""
        for one in self._readers:
            one.transport.abort()

    async def _until(self, done: Callable[[Reader], bool]) -> None:
        """Waits until it is true of each reader that is not broken."""
        deadline = time.monotonic() + self._settle_s
        while (  # noqa: ASYNC110 - any of thousands of readers may change it
            time.monotonic() < deadline
            and not all(one.broken or done(one) for one in self._readers)
        ):
            await asyncio.sleep(0.01)
