"""The one response that streams: an encoder a format, one loop for all."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from logpipe import sse
from logpipe.continuity import Gap
from logpipe.event import Entry
from logpipe.fanout.live import PROGRESS_S
from logpipe.filters import Filter
from logpipe.ids import StreamId
from logpipe.limits import Seats
from logpipe.messages import (
    Batch,
    Bye,
    Encoder,
    Hello,
    Item,
    Message,
    Notice,
    Progress,
    Subscription,
    full,
    named,
    retry_ms,
)
from logpipe.metrics import Metrics
from logpipe.wire import LATER, Rest, Wire, wire_of

Revoking = Callable[[Callable[[str], None]], AbstractContextManager[None]]
"""Given how to end a stream: a context in which that is called once it is no longer allowed."""

SHARED_SEND_BUFFER = 128 * 1024
"""Bytes that the kernel keeps for a subscriber of a consumer group (Linux takes twice as many): an
event in a buffer can go to no other member."""

CONFIRMATION_S = (0.0005, 0.5)
"""The shortest and the longest pause between two looks at what a client's kernel has confirmed.
It doubles, so that a reader that takes nothing costs two looks a second."""


HEADERS = {
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


class SseEncoder:
    """Server-Sent Events: `id:` and `data:` an event, named events for the rest."""

    media_type = sse.MEDIA_TYPE
    heartbeat = sse.HEARTBEAT

    def entries(self, entries: Sequence[Entry]) -> bytes:
        """The frames of events; their JSON is on one line by `event.read_entry`."""
        return b"".join([b"id: %d-%d\ndata: %b\n\n" % (*entry.id, entry.json) for entry in entries])

    def message(self, message: Message) -> bytes:
        """The frame of a named event; a `Notice` is a comment, which clients skip."""
        if isinstance(message, Notice):
            return sse.comment(message.reason)
        return named_frame(message)


def named_frame(message: Hello | Gap | Progress | Bye) -> bytes:
    """A message as an event with its name, the cursor that it moves to, and JSON.

    A hello has a `retry:` as well: an EventSource would keep that of the last bye, which may be
    long, for every later loss of its connection."""
    name, cursor, data = named(message)
    id_ = str(cursor).encode() if cursor is not None else b""
    retry = None
    if isinstance(message, Bye):
        retry = message.retry_ms
    elif isinstance(message, Hello):
        retry = retry_ms()
    return sse.frame(msgspec.json.encode(data), id=id_, event=name.encode(), retry_ms=retry)


class NdjsonEncoder:
    """An event a line; a named message is an object with the name as `event`, which no event of
    the stream has."""

    media_type = "application/x-ndjson"
    heartbeat = b'{"event":"heartbeat"}\n'

    def entries(self, entries: Sequence[Entry]) -> bytes:
        """The lines of events."""
        return b"".join([entry.json + b"\n" for entry in entries])

    def message(self, message: Message) -> bytes:
        """The line of a named message; its cursor, where it moves one, is `id`."""
        if isinstance(message, Notice):
            return msgspec.json.encode({"event": "notice", "reason": message.reason}) + b"\n"
        name, cursor, data = named(message)
        head: dict[str, Any] = {"event": name}
        if cursor is not None:
            head["id"] = str(cursor)
        return msgspec.json.encode({**head, **data}) + b"\n"


SSE = SseEncoder()
NDJSON = NdjsonEncoder()


def encoder_for(accept: str) -> Encoder:
    """The format that an Accept header asks for: SSE unless it names NDJSON."""
    return NDJSON if NDJSON.media_type in accept.lower() else SSE


def finding(batch: Batch, chosen: Filter) -> Iterator[None]:
    """Finds what `batch.matching` then returns, as work for `Turns`: in steps of one entry, and one
    in which the filter is compiled."""
    if batch.kept(chosen) is not None:
        return
    accepts = chosen.predicate
    yield
    found: list[Entry] = []
    for entry in batch.entries:
        if accepts is None or accepts(entry.event):
            found.append(entry)
        yield
    batch.keep(chosen, found)


class StreamResponse(Response):
    """Sends what a subscription gives until it ends or the client leaves.

    It is the `live.Writer` of its subscription where the server lets it write around ASGI.
    """

    def __init__(
        self,
        subscription: Subscription,
        encoder: Encoder,
        metrics: Metrics,
        seats: Seats,
        revoking: Revoking = lambda _: nullcontext(),
    ) -> None:
        super().__init__(None, 200, HEADERS, encoder.media_type)
        del self.headers["content-length"]
        self.encoder = encoder
        self.passed: StreamId | None = None
        self.written_at = time.monotonic()
        self._subscription = subscription
        self._metrics = metrics
        self._seats = seats
        self._revoking = revoking
        self._revoked = ""
        self._wire: Wire | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        rest = partial(self._rest, scope)
        later: list[Rest] | None = scope.get(LATER)
        if later is None:
            await rest(receive, send)
        else:
            later.append(rest)

    async def _rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What comes behind the head."""
        client = scope.get("client")
        address = self._subscription.client = client[0] if client else ""
        if limit := self._seats.take(address):
            self._metrics.count_limited({limit: 1})
            told = self.encoder.message(full(self._seats.why(limit)))
            await send({"type": "http.response.body", "body": told})
            return
        try:
            await self._stream(scope, receive, send)
        finally:
            self._seats.leave(address)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._wire = wire_of(scope)
        if self._wire is not None:
            self._wire.begin_stream()
            if self._subscription.confirms:
                self._wire.bound_send_buffer(SHARED_SEND_BUFFER)
        task = asyncio.current_task()
        assert task is not None
        with self._subscription, self._revoking(partial(self._revoke, task)):
            # A loop that only sends never notices that its client has left.
            leaving = asyncio.create_task(_until_disconnect(receive, task))
            try:
                await self._pump(send)
            except asyncio.CancelledError:
                left = leaving.done() and not leaving.cancelled()
                expected = left + bool(self._revoked)
                if task.cancelling() != expected:
                    raise  # it was not the client and its token alone
                for _ in range(expected):
                    task.uncancel()
                if self._revoked and not left:
                    told = self._encoded(Bye(self._revoked))
                    await send({"type": "http.response.body", "body": told})
            finally:
                leaving.cancel()

    def _revoke(self, pump: asyncio.Task[None], why: str) -> None:
        if not self._revoked:
            self._revoked = why
            pump.cancel()

    @property
    def chunked(self) -> bool:
        """Whether what `write` takes is a chunk, as `wire.framed` makes it."""
        return self._wire is not None and self._wire.chunked

    def write(self, part: bytes) -> bool:
        """Writes a part of the body; False when some of it has to wait."""
        assert self._wire is not None
        return self._wire.send(part)

    def count_gap(self, gap: Gap) -> None:
        """Counts a gap that is told."""
        self._metrics.gaps.labels(gap.reason).inc()
        self._metrics.gap_events.labels(gap.reason).inc(gap.count or 0)

    async def _pump(self, send: Send) -> None:
        while (items := await self._subscription.next()) is not None:
            body = await self._encode(items)
            if body:
                # A reader that takes nothing is waited for here; the socket's own time limit
                # (listening.py) ends it when it is dead.
                for piece in self._pieces(body):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                self.written_at = time.monotonic()
                self._metrics.delivered_bytes.inc(len(body))
            if self._subscription.confirms and items:
                await self._until_confirmed()
            await self._subscription.sent()
            if self._wire is not None and self._wire.idle:
                await self._subscription.follow(self)
        await send({"type": "http.response.body", "body": b""})

    async def _until_confirmed(self) -> None:
        """Waits until the client's kernel has all that was written: what is lost in a network, or
        still in this kernel when the connection breaks, is given to another member. A client that
        leaves with all of it has had it."""
        wire = self._wire
        if wire is None:
            # A connection that ended in this very moment has taken nothing: this task is cancelled
            # here then.
            await asyncio.sleep(0)
            return
        pause, longest = CONFIRMATION_S
        dropped = wire.ended
        try:
            while dropped or wire.unconfirmed:
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
        except asyncio.CancelledError:
            if not dropped and not wire.unconfirmed:
                await self._subscription.sent()
            raise

    def _pieces(self, body: bytes) -> list[bytes]:
        """What is sent of a body, one after the other.

        A server takes a body and returns; before the next it waits until the last one is written.
        What a killed process had taken nobody would ever get: what is to be confirmed ends with an
        empty one.
        """
        if not self._subscription.confirms:
            return [body]
        return [*(self._wire.pieces(body) if self._wire is not None else [body]), b""]

    async def _encode(self, items: Sequence[Item]) -> bytes:
        """The bytes of some items; of none, a heartbeat."""
        parts: list[bytes] = []
        passed: Batch | None = None
        for item in items:
            if isinstance(item, Batch):
                found: list[Entry] = []
                encoding = self._encoding(item, found, parts)
                if item.kept(self._subscription.filter) is None:
                    await self._seats.in_turn(self._subscription.client, encoding)
                else:  # it is short, and need not wait for the filters of others
                    deque(encoding, maxlen=0)
                self._metrics.delivered_events.inc(len(found))
                passed = None if found and found[-1].id == item.end.id else item
            else:
                parts.append(self._encoded(item))
                if isinstance(item, Gap):
                    passed = None  # it leads further than any batch before it
                    self.count_gap(item)
        if parts:
            self.passed = passed.end.id if passed else None
            return b"".join(parts)
        if passed is not None:
            self.passed = passed.end.id
        return self._nothing_new(idle=not items)

    def _encoded(self, message: Message) -> bytes:
        """The bytes of a message; a `Bye` is given its time to come back."""
        if isinstance(message, Bye):
            message = Bye(message.reason, retry_ms(self._seats.returns.wait_s()))
        return self.encoder.message(message)

    def _encoding(self, batch: Batch, found: list[Entry], parts: list[bytes]) -> Iterator[None]:
        """Adds the matching entries of a batch, and their bytes where there are any."""
        chosen = self._subscription.filter
        yield from finding(batch, chosen)
        found += batch.matching(chosen)
        if found:
            parts.append(batch.chunk(self.encoder, chosen))

    def _nothing_new(self, *, idle: bool) -> bytes:
        """A word that the cursor moved on though nothing matched, or a heartbeat, when due."""
        waited = time.monotonic() - self.written_at
        if self.passed is not None and (idle or waited >= PROGRESS_S):
            told, self.passed = self.passed, None
            return self.encoder.message(Progress(told))
        return self.encoder.heartbeat if idle else b""


async def _until_disconnect(receive: Receive, pump: asyncio.Task[None]) -> None:
    """Ends the pump at once: a server takes what is sent after that, and drops it."""
    while (await receive())["type"] != "http.disconnect":
        pass
    pump.cancel()
