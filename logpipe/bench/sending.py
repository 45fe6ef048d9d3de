"""The senders of a benchmark: at full rate, or at a rate that does not wait for the server."""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools
import msgspec

from logpipe.bench.events import Template
from logpipe.client.connection import trusted
from logpipe.event import NOT_DECODED

ANSWER_S = 10.0
"""Limit for connecting, and for an answer that a sender waits for."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int
    tls: bool = False

    async def connect(self, protocol: asyncio.BaseProtocol) -> None:
        """Connects a protocol. Raises OSError."""
        context = trusted() if self.tls else None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(ANSWER_S):
            await loop.create_connection(lambda: protocol, self.host, self.port, ssl=context)


class Sent(msgspec.Struct):
    """The outcome of the requests of a run."""

    seconds: float = 0.0
    events: int = 0
    """Events in acknowledged requests."""
    numbers: list[int] = []
    """The acknowledged requests."""
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    """Requests that were not acknowledged, by status or reason."""
    answer_ms: list[float] = []
    """From when a request was due to its acknowledgement."""
    last: bytes = b""
    """The body of the last acknowledgement."""
    max_events: int = 0
    """The largest batch that the server accepts, if it rejected one and named the limit."""


class Connection(asyncio.Protocol):
    """A connection of a sender, with one request under way at a time."""

    def __init__(self, sender: "Sender") -> None:
        self.sender = sender
        self.number, self.due = 0, 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self.sender.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.sender.lost(self, str(exc or "closed"))

    def send(self, request: bytes) -> None:
        """Writes a request."""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.sender.lost(self, f"not HTTP: {data[:60]!r}")
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Called by the parser, as the next two."""
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status, kept = self._parser.get_status_code(), self._parser.should_keep_alive()
        self.sender.answered(self, status, self._body, kept=kept)


class Sender:
    """Sends the requests of a template over its connections and counts the answers."""

    def __init__(self, template: Template, answer_s: float = ANSWER_S) -> None:
        self.idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._template, self._answer_s = template, answer_s
        self._sent = Sent(numbers=[], answer_ms=[])
        self._next = 0
        self._end = 0.0
        self._changed = asyncio.Event()

    async def connect(
        self, address: Address, count: int, kind: type[Connection] = Connection
    ) -> None:
        """Opens so many connections. Raises OSError."""
        for _ in range(count):
            await address.connect(kind(self))

    async def aclose(self) -> None:
        """Closes the connections."""
        open_ = (*self.idle, *self._busy)
        self.idle.clear()
        self._busy.clear()
        for connection in open_:
            connection.transport.abort()

    async def at_full_rate(self, seconds: float) -> Sent:
        """Each connection sends its next request as soon as the last one is answered."""
        started = time.monotonic()
        self._end = started + seconds
        while self.idle:
            self._begin(started)
        await self._until(lambda: not self._busy, seconds)
        return await self._finish(started)

    async def at_rate(self, rate: float, seconds: float) -> Sent:
        """Sends `rate` requests per second, each due at its time whether or not the ones before it
        are answered; a request that has to wait for an idle connection is late."""
        started, count = time.monotonic(), round(rate * seconds)
        for due in (started + number / rate for number in range(count)):
            await _sleep_until(due)
            await self._until(lambda: self.idle or not self._busy, self._answer_s)
            if not self.idle:
                return await self._finish(started)
            self._begin(due)
        return await self._finish(started, max(1, count) / rate)

    def answered(self, connection: Connection, status: int, body: bytes, *, kept: bool) -> None:
        """Counts an answer; the connection is idle again, if the server keeps it."""
        if connection not in self._busy:
            return
        self._busy.remove(connection)
        now = time.monotonic()
        if status < 300:
            self._sent.answer_ms.append((now - connection.due) * 1000)
            self._sent.numbers.append(connection.number)
            self._sent.events += self._template.per_request
            self._sent.last = body
        else:
            self._refuse(status, body)
        if not kept:
            connection.transport.close()
        else:
            self.idle.append(connection)
            if now < self._end:
                self._begin(now)
                return
        self._changed.set()

    def lost(self, connection: Connection, reason: str) -> None:
        """Counts a connection that the server has closed or broken."""
        if connection in self._busy:
            self._busy.remove(connection)
        elif connection in self.idle:
            self.idle.remove(connection)
        else:
            return
        self._sent.refused[reason] += 1
        self._changed.set()

    def _begin(self, due: float) -> None:
        connection = self.idle.popleft()
        connection.number, connection.due = self._next, due
        self._next += 1
        self._busy.add(connection)
        late_us = int((time.monotonic() - due) * 1e6)
        connection.send(self._template.request(connection.number, time.time_ns() // 1000 - late_us))

    def _refuse(self, status: int, body: bytes) -> None:
        problem = _Problem()
        if status == 413:
            with contextlib.suppress(*NOT_DECODED):
                problem = msgspec.json.decode(body, type=_Problem)
        self._sent.max_events = problem.max_events or self._sent.max_events
        self._sent.refused[f"{status} {problem.detail}".strip()] += 1

    async def _until(self, done: Callable[[], object], seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not done():
                    self._changed.clear()
                    await self._changed.wait()

    async def _finish(self, started: float, least_s: float = 0.0) -> Sent:
        """The answers under way count, and so does their time; a rate takes its whole time."""
        self._end = 0.0
        await self._until(lambda: not self._busy, self._answer_s)
        self._sent.seconds = max(least_s, time.monotonic() - started)
        if self._busy:
            self._sent.refused[f"no answer within {self._answer_s:g} s"] += len(self._busy)
        return self._sent


async def _sleep_until(due: float) -> None:
    """Lets other tasks run at least once. Timers are whole milliseconds, and may be early."""
    rest = max(0.0, due - time.monotonic())
    while rest >= 0:
        await asyncio.sleep(rest)
        rest = due - time.monotonic()


class _Problem(msgspec.Struct):
    detail: str = ""
    max_events: int = 0
