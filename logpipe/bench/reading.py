"""The readers of a benchmark: which events each has received, and how late.

Readers with the same request are sent the same bytes. A reference keeps these bytes and finds the
marks in them; a reader is only compared with it, until its bytes differ. So one process keeps up
with hundreds of megabytes per second.
"""

import asyncio
import bisect
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

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


class Reference:
    """A stream of bytes, and the marks in it."""

    def __init__(self, pattern: re.Pattern[bytes], per_request: int, data: bytes = b"") -> None:
        self.data = bytearray()
        self.base = 0
        """The offset of `data` in the stream."""
        self.ends: list[int] = []
        """The offset after each mark."""
        self.marks: list[tuple[int, int]] = []
        """The number of the event, counted from 0, and its due time in us."""
        self.pattern = pattern
        self.per_request = per_request
        self.extend(data)

    def extend(self, more: bytes) -> None:
        """Appends bytes and finds the marks that they complete."""
        searched = len(self.data) - MARK_BYTES
        self.data += more
        start = max(0, searched, self.ends[-1] - self.base if self.ends else 0)
        for found in self.pattern.finditer(self.data, start):
            self.ends.append(self.base + found.end())
            number = int(found[2]) * self.per_request + int(found[1])
            self.marks.append((number, int(found[3])))

    def forget(self) -> None:
        """Drops all bytes but those that may begin a mark."""
        gone = max(0, len(self.data) - MARK_BYTES)
        del self.data[:gone]
        self.base += gone


class Reader(asyncio.BufferedProtocol):
    """A subscriber."""

    def __init__(self, crowd: "Crowd", reference: Reference, *, timed: bool) -> None:
        self.begun = False
        """Whether the head of its answer has come, with status 200."""
        self.broken = ""
        """Why it ended early."""
        self.shared: list[tuple[int, int]] = []
        """The marks before its bytes differed."""
        self.reference = reference
        self.offset = 0
        self._crowd = crowd
        self._timed = timed
        self._differs = False
        self._seen = 0
        self._reason = b""
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
        """Called by the parser, as the next three."""
        self._reason += reason

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 200:
            self.begun = True
        else:
            self.end(
                f"HTTP/{self._parser.get_http_version()} {status} {self._reason.decode('latin-1')}"
            )

    def on_body(self, body: bytes) -> None:
        if self._crowd.armed and not self.broken:
            self.take(body)

    def on_message_complete(self) -> None:
        self.end("the server has ended the stream")

    def end(self, reason: str) -> None:
        """Closes it; the first reason counts."""
        self.broken = self.broken or reason
        self.transport.abort()

    def take(self, body: bytes) -> None:
        """Takes bytes of the stream."""
        reference = self.reference
        at = self.offset - reference.base
        known = min(len(body), len(reference.data) - at)
        if known and not reference.data.startswith(body[:known], at):
            self._leave(at)
            reference, known = self.reference, 0
        if known < len(body):
            reference.extend(body[known:])
        self.offset += len(body)
        if self._timed:
            now_us = time.time_ns() // 1000
            seen, self._seen = self._seen, bisect.bisect_right(reference.ends, self.offset)
            self._crowd.read.latency_ms += [
                (now_us - due_us) / 1000 for _, due_us in reference.marks[seen : self._seen]
            ]
        if self._differs:
            reference.forget()

    def _leave(self, at: int) -> None:
        """From here on its bytes are searched by themselves, with a mark that has begun before."""
        reference, self._differs = self.reference, True
        self.shared = reference.marks[: bisect.bisect_right(reference.ends, self.offset)]
        last_end = self.reference.ends[len(self.shared) - 1] - reference.base if self.shared else 0
        begun = bytes(reference.data[max(0, last_end, at - MARK_BYTES) : at])
        self.reference = Reference(reference.pattern, reference.per_request, begun)
        self.offset, self._seen = len(begun), 0

    @property
    def count(self) -> int:
        """The number of its events."""
        return len(self.shared) + bisect.bisect_right(self.reference.ends, self.offset)

    def numbers(self) -> list[int]:
        """Its events."""
        own = self.reference.marks[: self.count - len(self.shared)]
        return [number for number, _ in (*self.shared, *own)]


class Crowd:
    """Readers that look for the events of one run."""

    def __init__(
        self, run: str, per_request: int, *, settle_s: float = SETTLE_S, quiet_s: float = QUIET_S
    ) -> None:
        self.armed = False
        """Whether what comes is counted; before, each reader gets a greeting of its own."""
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.read = Read(latency_ms=[])
        self._run, self._per_request = run, per_request
        self._settle_s, self._quiet_s = settle_s, quiet_s
        self._readers: list[Reader] = []
        self._received_at = 0.0
        self._cpu_s = 0.0

    def received(self, size: int) -> None:
        """Counts bytes of any reader."""
        self._received_at = time.monotonic()
        if self.armed:
            self.read.received_bytes += size

    async def connect(
        self, address: Address, requests: Sequence[bytes], count: int, kind: type[Reader] = Reader
    ) -> None:
        """Connects so many readers, which send the requests in turn, and waits for the heads of
        their answers."""
        references = [Reference(marks(self._run), self._per_request) for _ in requests]
        seats = asyncio.Semaphore(CONNECTING_AT_ONCE)

        async def connect(number: int) -> None:
            turn = number % len(requests)
            reader = kind(self, references[turn], timed=number < TIMED)
            async with seats:
                try:
                    await address.connect(reader)
                except OSError as error:
                    self.read.broken[shown(error)] += 1
                else:
                    self._readers.append(reader)
                    reader.transport.write(requests[turn])

        started = time.monotonic()
        await asyncio.gather(*map(connect, range(count)))
        await self._until(lambda: all(one.begun or one.broken for one in self._readers))
        self.read.connected = sum(one.begun for one in self._readers)
        self.read.connect_s = time.monotonic() - started

    async def arm(self) -> None:
        """From now on what comes is counted. A stream that others use may never be quiet."""
        await self._until(lambda: time.monotonic() - self._received_at > self._quiet_s)
        self.armed = True
        self._cpu_s = time.process_time()

    async def finish(self, expected: set[int]) -> Read:
        """Waits until all readers have as many events as are expected, and compares."""
        await self._until(
            lambda: all(one.broken or one.count >= len(expected) for one in self._readers)
        )
        read = self.read
        read.cpu_s = time.process_time() - self._cpu_s
        same: dict[tuple[int, int], tuple[int, int]] = {}
        for one in self._readers:
            key = (id(one.reference), one.count)
            if key not in same:
                distinct = set(one.numbers())
                same[key] = len(expected - distinct), one.count - len(distinct)
            missing, doubled = same[key]
            read.delivered += one.count
            read.missing += missing
            read.doubled += doubled
            if one.broken:
                read.broken[one.broken] += 1
        return read

    async def aclose(self) -> None:
        """Closes the connections."""
        for one in self._readers:
            one.transport.abort()

    async def _until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._settle_s
        while not done() and time.monotonic() < deadline:  # noqa: ASYNC110 - any reader may change it
            await asyncio.sleep(0.01)
