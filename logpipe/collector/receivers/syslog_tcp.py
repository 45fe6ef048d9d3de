"""Syslog over TCP, where SYSLOG_TCP asks for it.

The protocol knows no answer: what was read and cannot be stored yet is kept and tried again, and
nothing more is read meanwhile, so that it waits with the sender.
"""

import asyncio
import contextlib
import logging
import socket
import time
import uuid
from collections.abc import Sequence
from typing import cast

from logpipe.collector.ingest import Bounds
from logpipe.collector.receivers import syslog
from logpipe.collector.receivers.intake import Process
from logpipe.collector.receivers.packing import pack
from logpipe.collector.receivers.rejections import Rejections
from logpipe.event import Event
from logpipe.limits import client_of
from logpipe.problems import Problem
from logpipe.stream import Append, Once, Rule, digest_of

log = logging.getLogger("logpipe.syslog")

MAX_CONNECTIONS = 512
"""Open at a time; one more is closed at once. Each may hold one read and one message in memory."""

EVENTS_AT_ONCE = 1_000
"""Of one append: between two, the others have their turn."""

PAUSE_S = 0.2
"""Before what Redis did not take is tried again."""

RECOVERY_S = 1.0
"""What is waited at most to hear that Redis is back, before it is tried all the same."""

CLOSE_S = 1.0
"""What connections may take at the end, beyond the time that requests have."""

NAME = "syslog-tcp"
"""In metrics and in idempotency keys."""


class SyslogListener:
    """The connections to one listening socket, each read as fast as Redis takes."""

    def __init__(self, process: Process, listener: socket.socket) -> None:
        self.process = process
        self.port: int = listener.getsockname()[1]
        self.stopping = asyncio.Event()
        self.rejections = Rejections(NAME)
        self._listener = listener
        self._open: set[_Connection] = set()
        self._full = False
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), sock=self._listener)
        settings = self.process.settings
        log.info("syslog is taken at tcp://%s:%d", settings.host, self.port)
        if settings.exposed or settings.ingest_tokens:
            log.warning("syslog knows no tokens: whoever reaches port %d can send", self.port)

    def stop(self) -> None:
        """Ends what is open, once what was read is stored."""
        self.stopping.set()
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.stop()

    async def aclose(self) -> None:
        """Waits for the connections, a moment."""
        self.stop()
        tasks = [connection.task for connection in self._open]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def admit(self, connection: "_Connection") -> bool:
        """Whether there is room for one more; said once when there no longer is."""
        if len(self._open) < MAX_CONNECTIONS and not self.stopping.is_set():
            self._open.add(connection)
            self._full = False
            return True
        self.process.metrics.count_limited({"syslog_connections": 1})
        if not self._full and not self.stopping.is_set():
            log.warning("%d syslog connections are open; more are closed", MAX_CONNECTIONS)
            self._full = True
        return False

    def forget(self, connection: "_Connection") -> None:
        """It has ended, and stored what it had read."""
        self._open.discard(connection)


class _Connection(asyncio.Protocol):
    """One sender: a read, an append, the next read."""

    task: "asyncio.Task[None]"

    def __init__(self, listener: SyslogListener) -> None:
        self._listener = listener
        self._settings, _, self._appender, self._metrics, self._rates = listener.process
        # What comes at once is no request, which MAX_BATCH_EVENTS bounds.
        self._bounds = Bounds.of(self._settings)._replace(events=EVENTS_AT_ONCE)
        self._frames = syslog.Frames(self._settings.max_message_bytes)
        self._ready: list[syslog.Frame] = []
        self._woken = asyncio.Event()
        self._ended = False
        self._key = f"{NAME}\n{uuid.uuid4()}"
        self._appends = 0

    # -- what the loop calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if peer else "?"
        if self._listener.admit(self):
            self.task = asyncio.create_task(self._work())
        else:
            self._ended = True
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._transport.pause_reading()
        self._ready += self._frames.feed(data)
        self._woken.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._end(cut=False)

    # -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Reads no more: what is still on its way is not taken, and not confirmed either."""
        if not self._ended:
            self._transport.pause_reading()
        self._end(cut=True)

    def _end(self, *, cut: bool) -> None:
        if not self._ended:
            self._ended = True
            self._ready += self._frames.end(cut=cut)
            self._woken.set()

    async def _work(self) -> None:
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                ended = self._ended
                await self._store_ready()
                if ended:
                    return
                if not self._ended:
                    self._transport.resume_reading()
        finally:
            self._tell_lost(len(self._ready))
            self._transport.close()
            self._listener.forget(self)

    async def _store_ready(self) -> None:
        """Stores what was read, some at a time; what is not stored at the end stays there."""
        while self._ready:
            some = self._ready[:EVENTS_AT_ONCE]
            if not await self._store([self._event(frame) for frame in some]):
                return
            del self._ready[: len(some)]

    def _event(self, frame: syslog.Frame) -> Event:
        event = syslog.event_of(frame)
        event.metadata.setdefault("host.name", self._peer)
        return event

    async def _store(self, events: Sequence[Event]) -> bool:
        """Whether they are stored: False only when the process ends before Redis takes them."""
        body = self._bounds.bytes * EVENTS_AT_ONCE
        packed = pack(events, self._bounds, body, time.time_ns() // 1_000_000)
        rejected = [problem for problem in packed.problems if problem]
        if rejected:
            self._metrics.receiver_events.labels(NAME, "rejected").inc(len(rejected))
            self._metrics.events_rejected.inc(len(rejected))
            self._listener.rejections.add(rejected)
        if not await self._within_rate(len(events)):
            return False
        if not packed.events:
            return True
        self._appends += 1
        once = Once(self._key, digest_of(b"%d" % self._appends), Rule.STORE)
        append = Append(packed.events, once)
        while not await self._appended(append):
            if self._listener.stopping.is_set():
                return False
            await asyncio.sleep(PAUSE_S)
            await self._appender.health.recovered(RECOVERY_S)
        self._metrics.receiver_events.labels(NAME, "accepted").inc(len(packed.events))
        return True

    async def _within_rate(self, events: int) -> bool:
        """Waits until this sender may send; False when the process ends before."""
        if self._rates is None:
            return True
        sender = client_of(self._peer)
        while wait_s := self._rates.wait_s(sender):
            self._metrics.count_limited({"rate": 1})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._listener.stopping.wait(), wait_s)
            if self._listener.stopping.is_set():
                return False
        self._rates.spend(sender, events)
        return True

    async def _appended(self, append: Append) -> bool:
        """Whether it was: by the connection's key, so that one whose confirmation was lost is not
        made twice; without it where it has no room, so that keys of others hold up nothing."""
        try:
            await self._appender.append(append)
        except Problem as problem:
            if "keys" not in problem.hits:
                return False
            self._metrics.count_limited(problem.hits)
            return await self._appended(Append(append.events))
        return True

    def _tell_lost(self, count: int) -> None:
        if count:
            self._metrics.receiver_events.labels(NAME, "failed").inc(count)
            log.warning("%d messages of %s were read and not stored", count, self._peer)
