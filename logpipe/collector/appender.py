"""The appender: requests that arrive while an append is under way share the next one.

An idle collector appends at once, a busy one appends for many requests by one step on the
server: twice the rate at 64 connections, without any delay of its own.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import cast

from logpipe.collector.inflight import Inflight
from logpipe.limits import STREAM_SHARE
from logpipe.metrics import Metrics
from logpipe.problems import BUSY, Problem, Unavailable
from logpipe.stream import Append, Appended, Declined, RedisHealth, Stream

log = logging.getLogger("logpipe.collector")

MAX_SHARED_BYTES = 256 * 1024
"""One append takes requests up to this size together; a larger request goes alone. Few enough that
Redis adds some while this process reads the next: with 4 MiB they waited for each other."""

LANES = 2
"""Appends under way at a time: Redis finds the next when it is done with one. With one lane, a
tenth fewer single events came in and a fifth fewer in batches; a third lane changed nothing."""

SMALL_BYTES = 64 * 1024
"""A request that takes up to so much memory is small. Small requests wait for each other, and for
one append of others at most, however many batches wait."""

LARGE_EVENTS = 10_000
"""A request with more events is large: Redis serves no other client while it appends them, 15 to
25 ms for 10,000 events, and 0.3 s for 199,000 (measured). Large requests are appended one at a
time."""

LARGE_BYTES = 4 * 1024 * 1024
"""A request that takes more memory is large as well: Redis takes about 8 ms for so much, and this
process as long to write it (measured)."""

EVENT_BYTES = 56
"""Memory of an event besides its JSON: an object's header, its place in a list, and rounding up."""

ANSWER_WITHIN_S = 1.8
"""A request that Redis has not confirmed by then is answered 503."""

NO_ROOM_S = 10
"""After a key that had no room: room comes as keys expire, which is a minute's at a time."""

WARNED_EVERY_S = 60.0
"""Between two lines of the log that say that keys have no room."""


LATE_S = 0.1
"""A timer that runs so much later was held up with everything else."""
GRACE_S = 0.1
"""What answers then get: longer than the grace of the append itself."""


class _Waiting:
    __slots__ = ("done", "large", "request", "size")

    def __init__(
        self, request: Append, size: int, large: bool, done: "asyncio.Future[Appended]"
    ) -> None:
        self.request = request
        self.size = size
        self.large = large
        self.done = done


class _Answers:
    """The answers that are owed, each within its time: one timer, for the oldest."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._owed: deque[tuple[float, asyncio.Future[Appended]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def promise(self, within_s: float) -> "asyncio.Future[Appended]":
        """An answer to wait for; it is `Unavailable` when none has come within that time, which is
        never shorter than that of an earlier answer."""
        future: asyncio.Future[Appended] = self._loop.create_future()
        self._owed.append((self._loop.time() + within_s, future))
        if self._timer is None:
            self._timer = self._loop.call_at(self._owed[0][0], self._refuse_overdue)
        return future

    def forget_given(self) -> None:
        """Lets go of the oldest answers that were given."""
        while self._owed and self._owed[0][1].done():
            self._owed.popleft()

    def _refuse_overdue(self, *, late: bool = False) -> None:
        """Refuses those whose time is over. A timer that is late itself first leaves the event
        loop the time to read the confirmations that have come meanwhile."""
        self._timer = None
        now = self._loop.time()
        if not late and self._owed and now - self._owed[0][0] > LATE_S:
            self._timer = self._loop.call_later(GRACE_S, partial(self._refuse_overdue, late=True))
            return
        kind = BUSY if self._stream.health.kind == "ok" else "away"
        while self._owed and (self._owed[0][1].done() or self._owed[0][0] <= now):
            _refuse(self._owed.popleft()[1], kind, "no confirmation in time")
        if self._owed:
            self._timer = self._loop.call_at(self._owed[0][0], self._refuse_overdue)

    def refuse_all(self) -> None:
        """Nobody is left waiting when the process ends."""
        if self._timer is not None:
            self._timer.cancel()
        for _, future in self._owed:
            _refuse(future, "away", "no confirmation before the end of this process")


def _refuse(future: "asyncio.Future[Appended]", kind: str, why: str) -> None:
    if not future.done():
        future.set_exception(Unavailable(kind, why))


def _no_room() -> Problem:
    return Problem(
        503,
        "There is no room for another Idempotency-Key until some expire, within ten minutes; the"
        " same without a key would be stored.",
        headers={"Retry-After": str(NO_ROOM_S)},
        hits={"keys": 1},
    )


def size_of(events: Sequence[bytes]) -> int:
    """The bytes of memory that events take while they wait."""
    return sum(map(len, events)) + EVENT_BYTES * len(events)


def _too_much(size: int, most: int) -> Problem:
    return Problem(
        413,
        f"The events take {size} bytes together: a request may have {most} (a quarter of"
        " TRIM_MAXBYTES). Send smaller batches.",
        hits={"batch": 1},
        limit=most,
    )


def _other_body() -> Problem:
    return Problem(
        422,
        "This Idempotency-Key came with another body within the last ten minutes: nothing of this"
        " one is stored. Each request needs a key of its own; only its repetition has the same.",
    )


class Appender:
    """The only writer of a process."""

    def __init__(
        self,
        stream: Stream,
        metrics: Metrics,
        inflight: Inflight,
        stream_bytes: Callable[[], float] = lambda: 0,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        """`stream_bytes` returns what the stream may take in Redis now; 0: any. A request that
        Redis has not confirmed within `answer_within_s` is answered 503."""
        self.inflight = inflight
        self.answer_within_s = answer_within_s
        self._stream_bytes = stream_bytes
        self._stream = stream
        self._metrics = metrics
        self._small: deque[_Waiting] = deque()
        """Requests that wait; `_batches`: those that are neither small nor large."""
        self._batches: deque[_Waiting] = deque()
        self._large: deque[_Waiting] = deque()
        self._appending_large = False
        self._answers = _Answers(stream)
        self._lanes: set[asyncio.Task[None]] = set()
        self._warned_at = -math.inf

    @property
    def health(self) -> RedisHealth:
        """What Redis was like when it was last asked."""
        return self._stream.health

    def require_share(self, events: Sequence[bytes]) -> None:
        """Raises a 413 `Problem` for the events of one request that would push too much out of the
        stream; a single event is always accepted."""
        size = size_of(events)
        most = self._stream_bytes() / STREAM_SHARE
        if 0 < most < size and len(events) > 1:
            raise _too_much(size, int(most))

    async def append(self, request: Append) -> Appended:
        """Appends a request's events; returns when Redis has confirmed them.

        Raises `Unavailable` when it has not, within two seconds, a 503 `Problem` where there is no
        room for them or for their key now, and a 422 one for a key that is another body's.
        """
        count = len(request.events)
        size = size_of(request.events)
        large = count > LARGE_EVENTS or size > LARGE_BYTES
        self.inflight.require(size, large=large)
        done = self._answers.promise(self.answer_within_s)
        waiting = _Waiting(request, size, large, done)
        if size <= SMALL_BYTES:
            self._small.append(waiting)
        else:
            (self._large if large else self._batches).append(waiting)
        del waiting
        self.inflight.bytes += size
        if len(self._lanes) < LANES:
            # For many requests: what it logs is not of the one that began it.
            self._lanes.add(asyncio.create_task(self._work(), context=Context()))
        try:
            return await done
        finally:
            del done  # an error holds this frame, which would hold the error: a cycle

    def _fail(self, batch: Sequence[_Waiting], error: Exception) -> None:
        for each in batch:
            self.inflight.bytes -= each.size
            if not each.done.done():
                each.done.set_exception(error)

    async def _work(self) -> None:
        """Appends until nothing waits that may be appended now: small requests and others by
        turns, so that neither keep out the other."""
        small_first = True
        while batch := self._next(small_first=small_first):
            small_first = batch[0].size > SMALL_BYTES
            started = time.perf_counter()
            try:
                outcomes = await self._stream.append([each.request for each in batch])
            except Exception as error:  # noqa: BLE001 - handed to everyone who waits for it
                self._fail(batch, error)
                self._answers.forget_given()
                continue
            finally:
                if batch[0].large:
                    self._appending_large = False
            self._metrics.append_seconds.observe(time.perf_counter() - started)
            for each, outcome in zip(batch, outcomes, strict=True):
                self.inflight.bytes -= each.size
                if isinstance(outcome, Declined):
                    self._decline(each, outcome)
                elif not each.done.done():
                    each.done.set_result(outcome)
            self._answers.forget_given()
            self._count(batch, outcomes)
        # At once: who comes after the last look must not rely on a lane that ends.
        self._lanes.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _decline(self, waiting: _Waiting, why: Declined) -> None:
        if why is Declined.NO_ROOM:
            self._warn_of_no_room()
        if not waiting.done.done():
            waiting.done.set_exception(_no_room() if why is Declined.NO_ROOM else _other_body())

    def _warn_of_no_room(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARNED_EVERY_S:
            self._warned_at = now
            log.warning(
                "idempotency keys take all the memory that they may (docs/limits.md): requests with"
                " a new key are answered 503 until some expire"
            )

    def _count(self, batch: Sequence[_Waiting], outcomes: Sequence[Appended | Declined]) -> None:
        """Once an append, not once a request."""
        added = repeated = 0
        for each, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Appended):
                added += len(each.request.events) * (not outcome.repeated)
                repeated += len(each.request.events) * outcome.repeated
        self._metrics.append_events.observe(added)
        self._metrics.events_accepted.inc(added)
        if repeated:
            self._metrics.events_repeated.inc(repeated)

    def _next(self, *, small_first: bool) -> list[_Waiting]:
        """The requests of the next append."""
        if small_first and (batch := self._shared(self._small)):
            return batch
        return self._next_large() or self._shared(self._batches) or self._shared(self._small)

    def _next_large(self) -> list[_Waiting]:
        """The large request that waits longest; none while another lane appends one."""
        while self._large and not self._appending_large:
            each = self._large.popleft()
            if not each.done.done():
                self._appending_large = True
                return [each]
            self.inflight.bytes -= each.size
        return []

    def _shared(self, waiting: deque[_Waiting]) -> list[_Waiting]:
        """The first of the requests that wait, up to the size of one append; without those given
        up."""
        batch: list[_Waiting] = []
        size = 0
        while waiting and (not batch or size + waiting[0].size <= MAX_SHARED_BYTES):
            each = waiting.popleft()
            if each.done.done():
                self.inflight.bytes -= each.size
            else:
                batch.append(each)
                size += each.size
        return batch

    async def aclose(self) -> None:
        """Waits for the appends under way."""
        try:
            if self._lanes:
                await asyncio.wait(self._lanes, timeout=self.answer_within_s)
        finally:
            self._answers.refuse_all()
            await asyncio.sleep(0)  # who waited has its answer before what it needs is closed
