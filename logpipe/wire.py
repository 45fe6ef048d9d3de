"""A request and its response past ASGI's messages, for what is asked a million times.

uvicorn's messages cost a third of a small request: two coroutines, their dictionaries, checks of
each header, and a system call each for head and body. `protocol.BoundedProtocol` offers a `Wire` as
an ASGI extension; who finds none, as in a test or under another server, uses the messages.
"""

import array
import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
import weakref
from collections.abc import Awaitable, Callable
from typing import cast

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

EXTENSION = "logpipe.wire"

TLS_RECORD_BYTES = 16 * 1024
"""The most that TLS encrypts as one (RFC 8446, 5.1)."""

LATER = "logpipe.later"
"""Key of a scope: a list to which an application adds what sends the rest of its response."""

Rest = Callable[[Receive, Send], Awaitable[None]]
"""Sends the rest of a response that has begun, after the application has returned: a stream does
not keep what the application made of its request."""

SIOCOUTQ = termios.TIOCOUTQ if sys.platform == "linux" else None
"""Asks for the bytes that a socket has sent and the other end has not confirmed (tcp(7)). Other
systems have no such question."""

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: to close is to reset (socket(7))."""


def framed(data: bytes) -> bytes:
    """One chunk of a body whose transfer coding is chunked (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def reset_at_close(transport: asyncio.Transport) -> None:
    """Has a connection end with a reset when it is closed."""
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # the client has reset the connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def wire_of(scope: Scope) -> "Wire | None":
    """The wire of a request, where the server has one."""
    return cast("Wire | None", scope.get("extensions", {}).get(EXTENSION))


class Wire:
    """One request and its response; stands between uvicorn's cycle and the transport."""

    __slots__ = (
        "_corked",
        "_cycle",
        "_head",
        "_left",
        "_next",
        "_transport",
        "release",
        "unfinished",
    )

    def __init__(self, cycle: RequestResponseCycle, transport: asyncio.Transport) -> None:
        # The cycle refers to this wire, and lives for as long as its request's task: a reference
        # back would leave both to the garbage collector.
        self._cycle = weakref.ref(cycle)
        self._next: weakref.ref[RequestResponseCycle] | None = None
        self._transport = transport
        # The response to HEAD ends with its head.
        self._corked = cycle.scope["method"] != "HEAD"
        self._head = b""
        self._left: int | None = None
        """What was not confirmed when the connection ended; None while it goes on."""
        self.release: Callable[[], None] | None = None
        """Ends the counting of the head of the request, where it is counted."""
        self.unfinished = False
        """Whether the end of the connection would be taken for the end of a body that goes on: to
        close is then to reset."""

    # -- what uvicorn's cycle does with a transport -------------------------------------------

    def write(self, data: bytes) -> None:
        """Writes; the head of a response waits for the first of its body. What comes too late for
        the connection is dropped: uvloop fails at it."""
        if self._transport.is_closing():
            return
        if not self._corked or data.startswith(b"HTTP/1.1 100 "):
            self._transport.write(data)
        elif self._head:
            self._corked = False
            self._transport.write(self._head + data)
        else:
            self._head = data

    def close(self) -> None:
        """Closes the connection, once what was written has gone."""
        if not self._transport.is_closing():
            self._uncork()
            if self.unfinished:
                self._reset_at_close()
        self._transport.close()

    def _reset_at_close(self) -> None:
        reset_at_close(self._transport)

    def is_closing(self) -> bool:
        """Whether the connection closes."""
        return self._transport.is_closing()

    def _uncork(self) -> None:
        if self._corked:
            self._corked = False
            self._transport.write(self._head)

    @property
    def waiting(self) -> int:
        """Bytes that were written and that the kernel has not taken."""
        return self._transport.get_write_buffer_size()

    def bound_unsent(self, size: int) -> None:
        """Has the kernel take about so many bytes beyond those that are on their way, so that what
        it takes from here says what the client takes, and a slow client holds little memory."""
        option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if option and not self._transport.is_closing():
            connection = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the client has reset the connection
                connection.setsockopt(socket.IPPROTO_TCP, option, size)

    def bound_send_buffer(self, size: int) -> None:
        """Bounds, to about `size` bytes, what the kernel keeps that the client has not taken."""
        connection = self._transport.get_extra_info("socket")
        if connection is not None and not self._transport.is_closing():
            with contextlib.suppress(OSError):  # the client has reset the connection
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    @property
    def ended(self) -> bool:
        """Whether the connection has ended: what is written then is dropped."""
        return self._left is not None

    def end(self) -> None:
        """Notes the end of the connection, while its socket can still be asked."""
        self._left = self.unconfirmed

    @property
    def unconfirmed(self) -> int:
        """Bytes that were written and that the kernel of the client, or of a proxy before it, has
        not confirmed, or had not when the connection ended. Where the system cannot say, those that
        this kernel has not taken."""
        if self._left is not None:
            return self._left
        waiting = self.waiting
        connection = self._transport.get_extra_info("socket")
        if SIOCOUTQ is not None and connection is not None:
            sent = array.array("i", [0])
            try:
                fcntl.ioctl(connection.fileno(), SIOCOUTQ, sent)
            except (OSError, ValueError):  # it is closed: nothing more will be confirmed
                return max(1, waiting)
            waiting += sent[0]
        return waiting

    def cut(self) -> None:
        """Ends the connection at once; what was written and not sent is dropped."""
        if not self._transport.is_closing():
            self._reset_at_close()
        self._transport.abort()
        self._disconnect()

    def give_up(self) -> None:
        """Closes the connection, once what was written has gone, in the middle of a response."""
        self.close()
        self._disconnect()

    def _disconnect(self) -> None:
        """Has uvicorn take the end of the response for the client's doing, and not for an error of
        the application."""
        cycle = self._cycle()
        if cycle is not None:
            cycle.disconnected = True

    def followed_by(self, cycle: RequestResponseCycle) -> None:
        """Sets the next request of the connection."""
        self._next = weakref.ref(cycle)

    @property
    def superseded(self) -> bool:
        """Whether the response to the connection's next request has begun: what is `waiting` may
        then be part of that one."""
        if self._next is None:
            return False
        cycle = self._next()
        return cycle is None or cycle.response_started

    def shed(self) -> None:
        """Forgets what the client sent in the head of the request: up to 64 KB, and three times as
        much of memory. Nothing needs it once a stream has begun or a response has ended."""
        cycle = self._cycle()
        if cycle is not None:
            cycle.scope["headers"] = []
            cycle.scope["path"] = ""
            cycle.scope["raw_path"] = cycle.scope["query_string"] = b""
        self.no_longer_count()

    def no_longer_count(self) -> None:
        """Ends the counting of the head."""
        if self.release is not None:
            self.release()
            self.release = None

    # -- around the messages ------------------------------------------------------------------

    def body(self) -> bytes | None:
        """The request's body, where all of it has come already; else it is to be received."""
        cycle = self._cycle()
        if cycle is None or cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def respond(self, status: int, media_type: bytes, body: bytes) -> None:
        """A whole response, in place of the two messages; nothing can be done with it after."""
        cycle = self._cycle()
        if cycle is None:
            return
        if cycle.disconnected or self._transport.is_closing():
            cycle.disconnected = True
            return
        fields = [b"%b: %b\r\n" % field for field in cycle.default_headers]
        if not cycle.keep_alive:
            fields.append(b"connection: close\r\n")
        self._corked = False
        self._transport.write(
            b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b"
            % (STATUS_LINE[status], media_type, len(body), b"".join(fields), body)
        )
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._transport.close()
        cycle.on_response()

    def begin_stream(self) -> None:
        """Writes the head of a response; from now on nothing is buffered behind one's back.

        What waits for a slow reader waits in the window, shared, and not here; and to have been
        written means to have left this process.
        """
        if self._transport.is_closing():
            return  # the reader has left meanwhile
        self._uncork()
        # With TLS a transport is full once it holds as much, not more: 0 would always be.
        self._transport.set_write_buffer_limits(high=1 if self._encrypted else 0)

    def pieces(self, body: bytes) -> list[bytes]:
        """What to send of a body, each once the one before has been written. TLS takes a part whole
        while the connection below it has 64 KiB to write at most (asyncio's limit, out of reach
        from here): in one part all of the body would wait there and be called written."""
        if not self._encrypted:
            return [body]
        size = TLS_RECORD_BYTES
        return [body[at : at + size] for at in range(0, len(body), size)]

    @property
    def _encrypted(self) -> bool:
        return self._transport.get_extra_info("sslcontext") is not None

    @property
    def idle(self) -> bool:
        """Whether the kernel has all that was written, and would take more."""
        return not self._transport.is_closing() and self._transport.get_write_buffer_size() == 0

    @property
    def chunked(self) -> bool:
        """Whether the body is sent in chunks, as `framed` makes them; not with HTTP/1.0."""
        cycle = self._cycle()
        return cycle is not None and bool(cycle.chunked_encoding)

    def send(self, part: bytes) -> bool:
        """Writes a part of the body, framed where it is `chunked`; False when the kernel left some
        of it."""
        if self._transport.is_closing():
            return False
        self._transport.write(part)
        return self._transport.get_write_buffer_size() == 0
