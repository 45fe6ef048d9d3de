"""Syslog over TCP, where SYSLOG_TCP asks for it.

The protocol knows no answer: what was read and cannot be stored yet is kept and tried again, and
nothing more is read meanwhile, so that it waits with the sender.
"""

import asyncio
import contextlib
import logging
import math
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple, cast

from logpipe.collector.ingest import Bounds
from logpipe.collector.receivers import syslog
from logpipe.collector.receivers.intake import Process
from logpipe.collector.receivers.packing import Packed, pack
from logpipe.collector.receivers.rejections import Rejections
from logpipe.event import Event
from logpipe.limits import client_of
from logpipe.listening import BACKLOG
from logpipe.problems import Problem
from logpipe.stream import Append, Once, Rule, digest_of

log = logging.getLogger("logpipe.syslog")

MAX_CONNECTIONS = 512
"""Open at a time; one more is closed at once. Each may hold one read (256 KiB with uvloop), one
message (MAX_MESSAGE_BYTES) and `EVENTS_AT_ONCE` events in memory."""

CROWDED = 0.8
"""The part of MAX_CONNECTIONS from which on each new connection ends another: of the address that
has the most idle ones, the oldest. None is ended before: a sender may be silent for hours."""

MOST_OF_ONE = 0.25
"""The part of MAX_CONNECTIONS from which on an address that has none idle then loses the one whose
message began longest ago."""

MESSAGE_S = 30.0
"""What a message may take from its first byte to its end while the connection is read, however
slowly its bytes come."""

SWEEP_S = 1.0
"""Between two looks for messages that took too long."""

EVENTS_AT_ONCE = 1_000
"""Of one append, at the most."""

STEP_EVENTS = 250
"""Made without a pause, in 3 ms. Between two such steps everything else has its turn, and of all
connections and requests one at a time has its step: else their times would add up."""

FEW_EVENTS = 8
"""So many are made at once, without waiting for that."""

PAUSE_S = 0.2
"""Before what Redis did not take is tried again."""

RECOVERY_S = 1.0
"""What is waited at most to hear that Redis is back, before it is tried all the same."""

CLOSE_S = 1.0
"""What connections may take at the end, beyond the time that requests have."""

NAME = "syslog-tcp"
"""In metrics and in idempotency keys."""


class Limits(NamedTuple):
    """The limits of one listening socket."""

    connections: int = MAX_CONNECTIONS
    message_s: float = MESSAGE_S
    sweep_s: float = SWEEP_S


LIMITS = Limits()


class SyslogListener:
    """The connections to one listening socket, each read as fast as Redis takes."""

    def __init__(self, process: Process, listener: socket.socket, limits: Limits = LIMITS) -> None:
        self.process = process
        self._limits = limits
        self.port: int = listener.getsockname()[1]
        self.stopping = asyncio.Event()
        self.rejections = Rejections(NAME)
        self._listener = listener
        self._open: set[_Connection] = set()
        self._full = False
        self._crowded = False
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), sock=self._listener, backlog=BACKLOG
        )
        self._sweeping = asyncio.create_task(self._sweep())
        settings = self.process.settings
        log.info("syslog is taken at tcp://%s:%d", settings.host, self.port)
        if settings.exposed or settings.ingest_tokens:
            log.warning("syslog knows no tokens: whoever reaches port %d can send", self.port)

    def stop(self) -> None:
        """Ends what is open, once what was read is stored."""
        self.stopping.set()
        if self._server is not None:
            self._server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
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

    async def _sweep(self) -> None:
        """Ends connections whose message takes too long, for ever."""
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            least = time.monotonic() - self._limits.message_s
            for connection in list(self._open):
                if connection.message_since < least:
                    self.process.metrics.count_limited({"syslog_time": 1})
                    connection.stop()

    def admit(self, connection: "_Connection") -> bool:
        """Whether there is room for one more, which another connection may have to give; logged
        once when there no longer is."""
        if self.stopping.is_set():
            return False
        most = self._limits.connections
        if len(self._open) < most * CROWDED:
            self._crowded = False
        elif victim := self._victim():
            self._end_early(victim)
        if len(self._open) < most:
            self._open.add(connection)
            self._full = False
            return True
        self.process.metrics.count_limited({"syslog_connections": 1})
        if not self._full:
            log.warning("%d syslog connections are open; more are closed", most)
            self._full = True
        return False

    def _victim(self) -> "_Connection | None":
        """The connection that is ended so that another finds room."""
        idle = [each for each in self._open if each.idle]
        for client, count in Counter(each.client for each in idle).most_common(1):
            if count > 1 or len(self._open) >= self._limits.connections:
                return min(
                    (each for each in idle if each.client == client),
                    key=lambda one: one.quiet_since,
                )
        for client, count in Counter(each.client for each in self._open).most_common(1):
            begun = [each for each in self._open if each.begun and each.client == client]
            if begun and count > self._limits.connections * MOST_OF_ONE:
                return min(begun, key=lambda one: one.message_since)
        return None

    def _end_early(self, victim: "_Connection") -> None:
        self.process.metrics.count_limited({"syslog_connections": 1})
        if not self._crowded:
            self._crowded = True
            log.warning(
                "%d of %d syslog connections are open; idle ones of %s are closed",
                len(self._open),
                self._limits.connections,
                victim.client,
            )
        if victim.idle:
            self._open.discard(victim)  # it has nothing to store
        victim.stop()

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
        self._coming: Iterator[syslog.Frame] = iter(())
        """The messages of the last read, each made when it is taken: together they may take a
        hundred times the bytes that were read."""
        self._ready: list[syslog.Frame] = []
        """Those that are being stored."""
        self._messages_before = 0
        self._reads = True
        self._cut = False
        self.message_since = math.inf
        """When the message began that has not ended yet, without the time in which the connection
        is not read; infinite where there is none, or the connection is not read now."""
        self.quiet_since = time.monotonic()
        """When the connection was last resumed, after everything read before had been stored."""
        self._message_began = math.inf
        self._woken = asyncio.Event()
        self._ended = False
        self._key = f"{NAME}\n{uuid.uuid4()}"
        self._appends = 0

    @property
    def idle(self) -> bool:
        """Whether it is read and in the middle of nothing."""
        return self._reads and not self._ended and self.message_since == math.inf

    @property
    def begun(self) -> bool:
        """Whether it is read and in the middle of a message."""
        return self.message_since < math.inf

    # -- what the loop calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if peer else "?"
        self.client = client_of(self._peer)
        if self._listener.admit(self):
            self.task = asyncio.create_task(self._work())
        else:
            self._ended = True
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._pause()
        self._coming = chain(self._coming, self._frames.each(data))
        self._woken.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._end(cut=False)

    # -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Reads no more: what is still on its way is not taken, and not confirmed either."""
        if not self._ended:
            self._pause()
        self._end(cut=True)

    def _end(self, *, cut: bool) -> None:
        if not self._ended:
            self._ended, self._cut = True, cut
            self._reads, self.message_since = False, math.inf
            self._woken.set()

    def _pause(self) -> None:
        self._transport.pause_reading()
        self._reads, self.message_since = False, math.inf
        self._paused_at = time.monotonic()

    def _resume(self) -> None:
        """Reads on, after all that was read is stored."""
        now = time.monotonic()
        if not self._frames.begun:
            self._message_began = math.inf
        elif self._frames.ended != self._messages_before or self._message_began == math.inf:
            self._message_began = now
        else:
            self._message_began += now - self._paused_at
        self._messages_before = self._frames.ended
        self._reads, self.message_since, self.quiet_since = True, self._message_began, now
        self._transport.resume_reading()

    async def _work(self) -> None:
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                ended = self._ended
                if await self._store_all(self._coming) and not ended:
                    self._coming = iter(())
                if ended:
                    await self._store_all(self._last())
                    return
                if not self._ended:
                    self._resume()
        finally:
            self._tell_lost(len(self._ready) + sum(1 for _ in self._last()))
            self._transport.close()
            self._listener.forget(self)

    def _last(self) -> Iterator[syslog.Frame]:
        """What is left to store when nothing more is read."""
        yield from self._coming
        yield from self._frames.end(cut=self._cut)

    async def _store_all(self, frames: Iterator[syslog.Frame]) -> bool:
        """Stores messages, some at a time; False when the process ends before."""
        if self._ready:
            return False
        while (packed := await self._made(frames)).problems:
            if not await self._store(packed):
                return False
            self._ready.clear()
        return True

    async def _made(self, frames: Iterator[syslog.Frame]) -> Packed:
        """The next events, made in steps; their messages are `_ready`."""
        self._ready += islice(frames, FEW_EVENTS)
        packed = self._packed(self._ready)
        more = len(self._ready) == FEW_EVENTS
        while more and len(self._ready) <= EVENTS_AT_ONCE - STEP_EVENTS:
            async with self._appender.inflight.seat:
                await asyncio.sleep(0)
                some = list(islice(frames, STEP_EVENTS))
                step = self._packed(some)
            self._ready += some
            packed.events.extend(step.events)
            packed.problems.extend(step.problems)
            more = len(some) == STEP_EVENTS
        return packed

    def _packed(self, frames: Sequence[syslog.Frame]) -> Packed:
        body = self._bounds.bytes * EVENTS_AT_ONCE
        events = [self._event(frame) for frame in frames]
        return pack(events, self._bounds, body, time.time_ns() // 1_000_000)

    def _event(self, frame: syslog.Frame) -> Event:
        event = syslog.event_of(frame)
        event.metadata.setdefault("host.name", self._peer)
        return event

    async def _store(self, packed: Packed) -> bool:
        """Whether they are stored: False only when the process ends before Redis takes them."""
        rejected = [problem for problem in packed.problems if problem]
        if rejected:
            self._metrics.receiver_events.labels(NAME, "rejected").inc(len(rejected))
            self._metrics.events_rejected.inc(len(rejected))
            self._listener.rejections.add(rejected)
        if not await self._within_rate(len(packed.problems)):
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
