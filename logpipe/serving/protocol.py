"""HTTP/1.1 by httptools, with bounds for how requests come and for how many wait."""

import asyncio
import re
import socket
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from logpipe.limits import client_of
from logpipe.problems import MEDIA_TYPE, Problem
from logpipe.serving.admission import LAST_S, BoundedState
from logpipe.wire import EXTENSION, Wire, reset_at_close

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together, give or take one slice or read."""

MAX_HEADERS = 1_000
"""Header lines of one request: each takes `HEADER_BYTES` of memory, however short it is."""

HEAD_S = 15.0
"""What a request line and headers may take to come, from the first byte or the connection on."""

BODY_S = 60.0
"""Seconds within which a body has to come, from the end of its head on."""

MAX_OPEN = 16
"""Requests of one connection that have been parsed and not been answered. The rest of what was
received is kept unparsed, and no more is read."""

MAX_QUEUED_BYTES = 128 * 1024
"""Memory of the requests that are parsed behind the one that is being answered, one slice more or
less: bodies, heads, and `HEADER_BYTES` a header line."""

FEW_HEADERS = 64
"""Header lines of a request whose head is not large, if it has few bytes."""

HEADER_BYTES = 130
"""Memory of a header line beside its text: two byte strings, a tuple, a place in a list."""

LARGE_HEAD_BYTES = 16 * 1024
"""Memory of a head, by its bytes and `HEADER_BYTES` a header line, from which on it is counted."""

SLICE_BYTES = 32 * 1024
"""What is parsed in one step, where its structure is not known: at the most 6,500 header lines or
5,400 chunks, which take 3 ms. Of a body whose length is known all that has come is one step."""

LOOK_S = 1.0
"""Seconds between two looks at whether a client has left from which nothing is read."""

HEAD_END = b"\n\r\n"
"""Ends every head: the parser takes no bare line feed for the end of a line."""

_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.]+\]|[\w.~!$&'()*+,;=%-]*)(?::\d*)?", re.ASCII)
"""uri-host and port (RFC 9110, 7.2; RFC 3986, 3.2.2). An empty one is allowed: a client whose
target has no authority sends it."""

_CHECKED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})

_GONE = frozenset({7, 8})
"""TCP_CLOSE (after a reset) and TCP_CLOSE_WAIT (after an end), of Linux's tcp_states.h."""

INVALID = Problem(400, "Invalid HTTP request received.")
NO_PROXY = Problem(400, "This is no proxy.")
LONG_HEAD = Problem(
    400, f"A request's head may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} lines."
)
NOT_ONE_HOST = Problem(
    400, "A request has exactly one Host header; of HTTP/1.0 it may also have none."
)
BAD_HOST = Problem(400, "The Host header must be a name or an address, with or without a port.")
BAD_VERSION = Problem(400, "The versions of HTTP that are supported are 1.1 and 1.0.")
MANY_HEADS = Problem(
    503,
    "Too many requests with large heads are under way here; try again later.",
    headers={"Retry-After": "1"},
)
BAD_CODING = Problem(501, "The only Transfer-Encoding that is supported is chunked.")


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


class Flow(FlowControl):
    """uvicorn's flow control, which resumes reading for each body that is asked for and after each
    answer; not while the connection is held."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds. uvicorn's own would take a request of any size at any pace,
    and any number of requests at once; of several it knows only the last, and it takes the body of
    a request that asks for another protocol for the next request.

    What was received is one step when it holds one request or part of one, as it mostly does. Else
    it is the backlog: it is parsed in slices that begin one request at the most, each a step of
    `Turns`. While there is a backlog nothing is read, and it waits while `MAX_OPEN` requests are
    not answered. A request is begun when the answer to the one before has been written, and when
    the client has taken answers down to the transport's mark.
    """

    _address = ""  # as `limits.client_of` gives it
    _unread = 0  # bytes since the last that meant something: a head, a piece of a body
    _fed = 0  # bytes that the parser is being fed
    _left = 0  # bytes of a body of known length that have not come
    _backlog = b""  # received and, from `_at` on, not parsed
    _at = 0
    _queued = 0  # memory of the requests behind the one that is being answered
    _has_turn = False
    _waits = False  # the backlog has waited for answers, and that has been counted
    _held = 0  # memory of the head that is coming, where that is counted
    _deadline: asyncio.TimerHandle | None = None
    _awaited = ""
    _idle_since = 0.0
    _look: asyncio.TimerHandle | None = None
    _host = b""  # the last one that was valid
    _fault: Problem | None = None  # why a callback of the parser failed
    _refusal = b""  # the answer to what cannot be read behind the open requests

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: Flow = Flow(transport)
        self._open: deque[RequestResponseCycle] = deque()  # not answered yet, in order
        self._state = cast("BoundedState", self.server_state)
        if self.client is not None:
            self._address = client_of(self.client[0])
        self._unused = self._state.join(self._address).unused
        if not self._state.has_room():
            self._count("connections")
            transport.abort()
            return
        self._unused[self] = None
        self._await("head", HEAD_S, self._head_is_late)
        if self._state.ending:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_longer_await()
        self._no_longer_look()
        self._unset_keepalive_if_required()
        for cycle in self._open:
            _leave(cycle)
            wire = cast("Wire", cycle.transport)
            wire.no_longer_count()
            wire.end()
        self._forget_what_comes()
        super().connection_lost(exc)
        # A request refers to its protocol: no reference back, so that the end of its task frees it.
        self.cycle = self.scope = None  # type: ignore[assignment]
        self._open.clear()
        self.pipeline.clear()
        self._drop_backlog()
        self._state.leave(self, self._address)

    def eof_received(self) -> None:
        """Closes the connection: a client that has shut down its sending side cannot be told from
        one that has left, for which nothing is to be done any more."""
        self._close()

    # -- whether it may be closed for another one ------------------------------------------------

    @property
    def begun(self) -> int:
        """How much of a request has come: 0 for nothing, 1 for part of a head, 2 for part of a
        body."""
        return 2 if self._open else int(self._unread > 0)

    def close_for_room(self) -> None:
        """Closes it at once, whatever the client has not taken of its answers."""
        self.cut()

    # -- its end ---------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Closes the connection after the answers that are under way, or after that to a request
        that comes within `LAST_S`."""
        if self._open:
            super().shutdown()
        else:
            self.loop.call_later(LAST_S, super().shutdown)

    def cut(self) -> None:
        """Ends the connection at once; what was written and not sent is dropped. What ends in the
        middle of an answer ends with a reset."""
        if self._is_unfinished() or self.transport.get_write_buffer_size():
            reset_at_close(self.transport)
        self.transport.abort()

    def _close(self) -> None:
        """Closes the connection once what was written has gone."""
        if self._is_unfinished():
            reset_at_close(self.transport)
        self.transport.close()

    def _is_unfinished(self) -> bool:
        """Whether a client would take the end of the connection for the end of the answer that is
        under way."""
        return bool(self._open) and cast("Wire", self._open[0].transport).unfinished

    # -- what is received ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._refusal:
            return
        size = len(data)
        # One step: the rest of a body, or what begins one request at the most.
        one = size <= self._left if self._left else size <= SLICE_BYTES and data.count(HEAD_END) < 2
        if one and len(self._open) < 2 and not (self._backlog or self.flow.write_paused):
            self._feed(data)
            self._judge()
            if self.flow.read_paused:
                self._resume()
            return
        self._backlog = self._backlog[self._at :] + data
        self._at = 0
        if not self._has_turn:
            self._step()

    def _step(self) -> None:
        """Begins the next request or parses a slice; asks for a turn when there is more to do."""
        self._has_turn = False
        if self.transport.is_closing():
            self._drop_backlog()
            return
        if self._may_begin():
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            elif self._backlog:
                self._parse_some()
        elif self._backlog and not self._is_full():
            self._parse_some()
        self._go_on()

    def _go_on(self) -> None:
        """Asks for a turn, or holds the connection until an answer is written or taken; without a
        backlog, reads on."""
        if self._may_begin():
            if self.pipeline or self._backlog:
                self._ask_for_turn()
        elif self._backlog and not self._is_full():
            self._ask_for_turn()
        if self._backlog:
            self._hold()
        else:
            self._waits = self.flow.held = False
            self._no_longer_look()
            self._resume()
            if not self._open:
                self._unused[self] = None

    def _hold(self) -> None:
        """Stops reading until there is no backlog; what has come in part has no time limit then."""
        if not (self._has_turn or self._waits):
            self._waits = True
            self._count("pipeline")
        self.flow.held = True
        self.flow.pause_reading()
        self._no_longer_await()
        if self._look is None and sys.platform == "linux":
            self._look = self.loop.call_later(LOOK_S, self._look_for_client)

    def _may_begin(self) -> bool:
        """Whether no request is being answered, and answers have been taken."""
        return len(self._open) == len(self.pipeline) and not self.flow.write_paused

    def _is_full(self) -> bool:
        """Whether nothing more is parsed before an answer is written or taken."""
        if len(self._open) < 2:
            # The rest of a body may be what the one request waits for.
            return not self._open and self.flow.write_paused
        return len(self._open) >= MAX_OPEN or self._queued > MAX_QUEUED_BYTES

    def _ask_for_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self._state.turns.add(self._step, self._address)

    def _parse_some(self) -> None:
        """Parses a slice, and another one where the first ends with the head of a request with a
        body: what is refused is refused before its task has begun."""
        opened = len(self._open)
        self._parse_slice()
        if self._backlog and len(self._open) > opened and self._open[-1].more_body:
            self._parse_slice()

    def _parse_slice(self) -> None:
        at, opened = self._at, len(self._open)
        if self._left:
            end = at + (self._left if opened < 2 else min(self._left, SLICE_BYTES))
        else:
            # From two bytes before: an end that began in the last slice ends in this one.
            found = self._backlog.find(HEAD_END, max(0, at - 2), at + SLICE_BYTES)
            end = found + len(HEAD_END) if found >= 0 else at + SLICE_BYTES
        data = self._backlog[at:end]
        self._at = end
        if end >= len(self._backlog):
            self._drop_backlog()
        self._feed(data)
        self._judge()
        if len(self._open) < 2:
            self._queued = 0
        else:
            self._queued += len(data)
            if len(self._open) > opened:
                headers = cast("list[object]", self._open[-1].scope["headers"])
                self._queued += HEADER_BYTES * len(headers)

    def _drop_backlog(self) -> None:
        self._backlog, self._at = b"", 0

    def _resume(self) -> None:
        """Reads on, unless a request under way has not asked for what has come of its body:
        uvicorn pauses behind each request that has to wait, and would not notice that the client
        has left."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or len(cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _look_for_client(self) -> None:
        """Closes the connection when the client has left, which is not noticed without reading."""
        connection = self.transport.get_extra_info("socket")
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state in _GONE:
            self.cut()
        else:
            self._look = self.loop.call_later(LOOK_S, self._look_for_client)

    def _no_longer_look(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _feed(self, data: bytes) -> None:
        self._fed = len(data)
        self._unread += self._fed
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._fault or INVALID)

    def _judge(self) -> None:
        """Gives what has come in part a time limit; refuses it when it is too large."""
        if self._refusal:
            self._no_longer_await()
            return
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            self._await("head", HEAD_S, self._head_is_late)
        elif cycle.more_body:
            self._await("body", BODY_S, self._body_is_late)
            if len(self._open) == 1 and not cycle.response_started:
                self._unused[self] = None
        else:
            self._unread = 0
            if self._deadline is not None:
                self._no_longer_await()
            if not self._open:
                self._keep_alive()  # the rest of a body whose request was answered before
            return
        lines = len(self.headers or ())
        if self.transport.is_closing():
            return
        if self._unread > MAX_HEAD_BYTES or lines > MAX_HEADERS:
            self._count("head")
            self._refuse(LONG_HEAD)
        elif not self._holds(self._unread + HEADER_BYTES * lines):
            self._refuse(MANY_HEADS)

    def _holds(self, size: int) -> bool:
        """Counts the head, or the trailers, that are coming, where they are large; False where
        there is no room."""
        if size <= LARGE_HEAD_BYTES or size <= self._held:
            return True
        if not self._state.hold_head(size - self._held):
            return False
        self._held = size
        return True

    def _stay(self, rest: bytes) -> None:
        """Reads a request again without its wish for another protocol, which a server may ignore
        (RFC 9110, 7.8); the parser takes all that follows for that protocol, the body included."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(NO_PROXY)
            return
        kept = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(kept))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(head + rest)

    def _refuse(self, problem: Problem) -> None:
        """Refuses what cannot be read: the body of the last request, or what is behind it. All that
        came before is answered first, since answers are told apart by their order alone."""
        self._drop_backlog()
        last = self.cycle
        if last is not None and last.more_body and last.scope is self.scope:
            if last.response_started:  # its answer is there, or has begun
                self._close()
                return
            cast("Wire", self._open.pop().transport).no_longer_count()
            _leave(last)
            if self._open:
                self.pipeline.popleft()  # it has not begun
        self._no_longer_await()
        self._forget_what_comes()
        # Made now: after an answer, this is the context of its request.
        self._refusal = _last_answer(problem)
        if not self._open:
            self._end(self._refusal)

    def _forget_what_comes(self) -> None:
        """Of the head or the trailers that are coming."""
        self._state.release_head(self._held)
        self._held = 0
        if self.headers:
            self.headers.clear()

    def _end(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()

    def on_response_complete(self) -> None:
        cast("Wire", self._open.popleft().transport).shed()
        if not self._open:
            self._unused[self] = None
        if self.transport.is_closing():
            return
        if self._open or self._backlog:
            self._go_on()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self._refusal:
            self._end(self._refusal)
        else:
            self._keep_alive()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.pipeline or self._backlog:
            self._go_on()

    def _keep_alive(self) -> None:
        """Closes the connection when no request comes for `timeout_keep_alive` seconds. One timer
        serves many requests: to make one for each costs more than to parse a request."""
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_at_idle_time_in(self.timeout_keep_alive)

    def _look_at_idle_time_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def timeout_keep_alive_handler(self) -> None:
        """Closes the connection if it was idle for long enough."""
        self.timeout_keep_alive_task = None
        if self._open or self._backlog or self._deadline is not None:
            return  # the next answer makes a new timer
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._look_at_idle_time_in(left)
        else:
            self.transport.close()

    # -- what has come in part -------------------------------------------------------------------

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
        self._close()

    def _body_is_late(self) -> None:
        """Answers 408, where no answer has begun and none is due before, and closes."""
        self._count("body_time")
        if len(self._open) == 1 and not self.cycle.response_started:
            problem = Problem(408, f"The body was not there after {BODY_S:.0f} s.")
            self.transport.write(_last_answer(problem))
        self._close()

    # -- callbacks of the parser -----------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Begins a request, or has it wait for the one before; in place of uvicorn's own, which
        asks the parser for the same things again."""
        parser = self.parser
        if parser.should_upgrade():
            return  # it is read again
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._fail(BAD_VERSION)
        self._check_head(version)
        if self._fed > LARGE_HEAD_BYTES or self._held or len(self.headers) > FEW_HEADERS:
            size = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
            if not self._holds(size + HEADER_BYTES * len(self.headers)):
                self._fail(MANY_HEADS)
        self._unread = 0
        if self._deadline is not None:
            self._no_longer_await()
        target = httptools.parse_url(self.url)
        self.url = b""
        path = target.path.decode("ascii")
        scope = self.scope
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = target.path
        scope["query_string"] = target.query or b""
        framed = version == "1.1"
        cycle = (RequestResponseCycle if framed else UnframedCycle)(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self._state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=framed and self.expect_100_continue,
            keep_alive=framed and parser.should_keep_alive() and not self._state.draining,
            on_response=self.on_response_complete,
        )
        wire = Wire(cycle, self.transport)
        if self._held:
            wire.release = partial(self._state.release_head, self._held)
            self._held = 0
        cycle.transport = wire  # type: ignore[assignment]
        scope["extensions"] = {EXTENSION: wire}  # type: ignore[dict-item]
        if self.cycle is not None:
            cast("Wire", self.cycle.transport).followed_by(cycle)
        self.cycle = cycle
        self.headers = []  # trailers are none of the request's headers
        self._unused.pop(self, None)
        self._open.append(cycle)
        if len(self._open) == 1:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _check_head(self, version: str) -> None:
        """Refuses a head that a server in front may read differently: Host, coding, version."""
        hosts = length = 0
        for name, value in self.headers:
            if name in _CHECKED:
                if name == b"host":
                    hosts += 1
                    if value != self._host:
                        self._check_host(value)
                elif name == b"content-length":
                    length = int(value)
                elif name == b"expect":
                    self.expect_100_continue = value.lower() == b"100-continue"
                elif value.lower() != b"chunked":
                    self._fail(BAD_CODING)
        if hosts != 1 and (hosts or version == "1.1"):
            self._fail(NOT_ONE_HOST)
        if len(self.headers) > MAX_HEADERS:
            self._count("head")
            self._fail(LONG_HEAD)
        self._left = length

    def _check_host(self, value: bytes) -> None:
        if _HOST.fullmatch(value) is None:
            self._fail(BAD_HOST)
        self._host = value

    def _fail(self, problem: Problem) -> None:
        """Ends the parser, which raises an error of its own for any that a callback raises."""
        self._fault = problem
        raise httptools.HttpParserCallbackError

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        if self._left:
            self._left -= len(body)
        cycle = self.cycle
        if cycle.response_complete or self.parser.should_upgrade():
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if self._deadline is not None:
            self._no_longer_await()
            self._unused.pop(self, None)
        self._forget_what_comes()  # trailers
        self.cycle.more_body = False
        self.cycle.message_event.set()


def _leave(cycle: RequestResponseCycle) -> None:
    """Tells a request's task that nobody waits for its answer."""
    cycle.disconnected = True
    cycle.message_event.set()


def _last_answer(problem: Problem) -> bytes:
    """An answer after which the connection closes."""
    body = problem.body()
    fields = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(body)),
        "connection": "close",
        **problem.answered_headers(),
    }
    lines = [f"{name}: {value}\r\n" for name, value in fields.items()]
    return STATUS_LINE[problem.status] + "".join([*lines, "\r\n"]).encode() + body
