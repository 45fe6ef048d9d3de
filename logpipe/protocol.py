"""HTTP/1.1 by httptools, with bounds for how a request comes."""

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
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


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which alone takes a request of any size at any pace.

    A request that comes whole in one read, as most do, costs no timer.
    """

    _unread = 0  # bytes since the last that told something: a head, a piece of a body
    _deadline: asyncio.TimerHandle | None = None
    _awaited = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._state = cast("BoundedState", self.server_state)
        if len(self.connections) > self._state.most_connections:
            self._count("connections")
            transport.abort()
            return
        self._await("head", HEAD_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_longer_await()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
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
        self._unread = 0
        super().on_headers_complete()
        # The request's task has been made and has not begun.
        wire = Wire(self.cycle, self.transport)
        self.cycle.transport = wire  # type: ignore[assignment]
        self.scope["extensions"] = {EXTENSION: wire}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)
