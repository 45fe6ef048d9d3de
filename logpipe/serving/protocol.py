"""HTTP/1.1 by httptools, with bounds for how a request comes."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

import httptools
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from logpipe.problems import MEDIA_TYPE, Problem
from logpipe.wire import EXTENSION, Wire

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together, give or take one read."""

HEAD_S = 15.0
"""What a request line and headers may take to come, from the first byte or the connection on."""

BODY_S = 60.0
"""What a body may take to come: what holds memory for longer is not a sender."""


Limited = Callable[[Mapping[str, int]], None]
"""Is told which of `limits.NAMES` was hit, and how often."""


class BoundedState(ServerState):
    """What the connections of a server share."""

    def __init__(self, limited: Limited, most_connections: int) -> None:
        super().__init__()
        self.limited = limited
        self.most_connections = most_connections


class UnframedCycle(RequestResponseCycle):
    """Answers HTTP/1.0, which knows neither chunks (RFC 9112, 6.1) nor `100 Continue` (RFC 9110,
    10.1.1): a body without a Content-Length ends with the connection. One that breaks off ends with
    a reset, because an orderly end would say that it is complete."""

    _unsized = False

    async def send(self, message: ASGISendEvent) -> None:
        goes_on = bool(message.get("more_body"))
        if message["type"] == "http.response.start":
            names = [name.lower() for name, _ in message.get("headers", ())]
            if b"content-length" not in names:
                self._unsized = goes_on = True
                self.chunked_encoding = False
        elif message["type"] == "http.response.body" and self._unsized:
            self.expected_content_length = len(message.get("body", b""))
        cast("Wire", self.transport).unfinished = self._unsized and goes_on
        await super().send(message)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which alone takes a request of any size at any pace; of several requests
    at once it knows the last, and takes the body of one that would upgrade for the next request.

    A request that comes whole in one read, as most do, costs no timer.
    """

    _unread = 0  # bytes since the last that told something: a head, a piece of a body
    _deadline: asyncio.TimerHandle | None = None
    _awaited = ""
    _refusal = ""  # why nothing after the open requests can be read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._open: deque[RequestResponseCycle] = deque()  # not answered yet, in order
        self._state = cast("BoundedState", self.server_state)
        if len(self.connections) > self._state.most_connections:
            self._count("connections")
            transport.abort()
            return
        self._await("head", HEAD_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_longer_await()
        for cycle in self._open:
            _leave(cycle)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal:
            return
        self._unread += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            self._await("head", HEAD_S, self._head_is_late)
        elif cycle.more_body:
            self._await("body", BODY_S, self._body_is_late)
        else:
            self._unread = 0
            if self._deadline is not None:
                self._no_longer_await()
            return
        if self._unread > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._count("head")
            self.send_400_response(f"A request's head may have {MAX_HEAD_BYTES} bytes.")

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _stay(self, rest: bytes) -> None:
        """Reads a request again without its wish for another protocol, which a server may ignore
        (RFC 9110, 7.8); the parser takes all that follows for that protocol, the body included."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self.send_400_response("This is no proxy.")
            return
        kept = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(kept))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(head + rest)

    def send_400_response(self, msg: str) -> None:
        """Refuses what cannot be read: the body of the last request, or what is behind it. All that
        came before is answered first, since answers are told apart by their order alone."""
        last = self._open[-1] if self._open else None
        if last is not None and last.more_body:
            if last.response_started:  # its answer is there, or has begun
                self.transport.close()
                return
            self._open.pop()
            _leave(last)
            if self._open:
                self.pipeline.popleft()  # it has not begun
        if self._open:
            self._refusal = msg
        else:
            super().send_400_response(msg)

    def on_response_complete(self) -> None:
        self._open.popleft()
        super().on_response_complete()
        if self._refusal and not self._open and not self.transport.is_closing():
            super().send_400_response(self._refusal)

    def _await(self, what: str, seconds: float, otherwise: Callable[[], None]) -> None:
        """A request has come in part: the rest has a time limit from here on."""
        if self._deadline is None or self._awaited != what:
            self._no_longer_await()
            self._awaited = what
            self._deadline = self.loop.call_later(seconds, otherwise)

    def _no_longer_await(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _count(self, limit: str) -> None:
        self._state.limited({limit: 1})

    def _head_is_late(self) -> None:
        if self._unread:  # else it was opened in advance, as browsers do
            self._count("head_time")
        self.transport.close()

    def _body_is_late(self) -> None:
        """Answers 408, where no answer has begun, and closes."""
        self._count("body_time")
        if not self.cycle.response_started:
            problem = Problem(408, f"The body was not there after {BODY_S:.0f} s.").body()
            head = b"content-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[408] + head % (MEDIA_TYPE.encode(), len(problem)))
            self.transport.write(problem)
        self.transport.close()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it is read again
        self._unread = 0
        super().on_headers_complete()
        self._open.append(self.cycle)
        # The request's task has been made and has not begun.
        if self.parser.get_http_version() != "1.1":
            self.cycle.__class__ = UnframedCycle  # uvicorn creates it, of its own class
            self.cycle.keep_alive = self.cycle.waiting_for_100_continue = False
        wire = Wire(self.cycle, self.transport)
        self.cycle.transport = wire  # type: ignore[assignment]
        self.scope["extensions"] = {EXTENSION: wire}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()


def _leave(cycle: RequestResponseCycle) -> None:
    """Tells a request's task that nobody waits for its answer."""
    cycle.disconnected = True
    cycle.message_event.set()
