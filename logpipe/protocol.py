"""HTTP/1.1 by httptools, with bounds for how a request comes, and a way to write around ASGI."""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from logpipe.problems import MEDIA_TYPE, Problem
from logpipe.streaming import WIRE

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together, give or take one read."""

HEAD_S = 15.0
"""What a request line and headers may take to come, from the first byte or the connection on."""

BODY_S = 60.0
"""What a body may take to come: what holds memory for longer is not a sender."""


class Cork:
    """A response's way to its connection: the head waits for the first of the body.

    uvicorn writes them one after the other, and each write is a system call of its own.
    """

    __slots__ = ("_corked", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._corked = True
        self._head = b""

    def write(self, data: bytes) -> None:
        if not self._corked or data.startswith(b"HTTP/1.1 100 "):
            self._transport.write(data)
        elif self._head:
            self._corked = False
            self._transport.write(self._head + data)
        else:
            self._head = data

    def flush(self) -> None:
        if self._corked:
            self._corked = False
            self._transport.write(self._head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Wire:
    """A connection as a stream sees it: what is not the kernel's yet is told at once."""

    def __init__(self, protocol: "BoundedProtocol") -> None:
        self._protocol = protocol
        self._transport = protocol.transport

    def begin(self) -> None:
        """Writes the head of the response; from now on nothing is buffered behind one's back.

        What waits for a slow reader waits in the window, shared, and not here; and to have been
        written means to have left this process.
        """
        self._protocol.uncork()
        self._transport.set_write_buffer_limits(high=0)

    @property
    def idle(self) -> bool:
        """Whether the kernel has all that was written, and would take more."""
        return not self._transport.is_closing() and self._transport.get_write_buffer_size() == 0

    def write(self, chunk: bytes) -> bool:
        """Writes a chunk as `messages.framed` makes it; False when the kernel left some of it."""
        if self._transport.is_closing():
            return False
        self._transport.write(chunk)
        return self._transport.get_write_buffer_size() == 0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which alone takes a request of any size at any pace.

    A request that comes whole in one read, as most do, costs no timer.
    """

    _unread = 0  # bytes since the last that told something: a head, a piece of a body
    _deadline: asyncio.TimerHandle | None = None
    _awaited = ""
    _cork: Cork | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._extensions = {WIRE: Wire(self)}
        self._await("head", HEAD_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_longer_await()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            self._await("head", HEAD_S, self.transport.close)
        elif cycle.more_body:
            self._await("body", BODY_S, self._body_is_late)
        else:
            self._unread = 0
            if self._deadline is not None:
                self._no_longer_await()
            return
        if self._unread > MAX_HEAD_BYTES and not self.transport.is_closing():
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

    def _body_is_late(self) -> None:
        """Answers 408, where no answer has begun, and closes."""
        if not self.cycle.response_started:
            problem = Problem(408, f"The body was not there after {BODY_S:.0f} s.").body()
            head = b"content-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[408] + head % (MEDIA_TYPE.encode(), len(problem)))
            self.transport.write(problem)
        self.transport.close()

    def on_headers_complete(self) -> None:
        self._unread = 0
        scope = self.scope
        scope["extensions"] = self._extensions  # type: ignore[typeddict-item]
        super().on_headers_complete()
        if scope["method"] != "HEAD":  # whose response ends with its head
            self._cork = Cork(self.transport)
            self.cycle.transport = self._cork  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def uncork(self) -> None:
        """Writes the head of the response that has begun, and what follows as it comes."""
        if self._cork is not None:
            self._cork.flush()
