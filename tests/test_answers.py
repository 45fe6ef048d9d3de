"""Large answers on real connections: in pieces, bounded, and ended with their client."""

import asyncio
import contextlib
import gc
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logpipe.access import Access
from logpipe.answers import (
    BYTES_A_SECOND,
    SHARE,
    SMALL_BYTES,
    STREAM_BYTES,
    Answers,
    Pace,
    StreamedResponse,
    while_connected,
)
from logpipe.listening import bind
from logpipe.problems import Problem
from logpipe.serving.server import Server
from logpipe.subapp import sub_app
from logpipe.wire import Wire, wire_of
from tests.helpers import retry_after, wait_until
from tests.raw import Connection, can_measure_memory, connected, peak_memory

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = 20 * 1024 * 1024
"""More than the kernel takes of an answer that nobody reads."""


class Served:
    """A server of one application, with `answers` around it."""

    def __init__(self, url: str, answers: Answers, hits: Counter[str]) -> None:
        self.url = url
        self.answers = answers
        self.hits = hits


@contextlib.asynccontextmanager
async def served(
    app: ASGIApp,
    *,
    most: int = 64 * 1024 * 1024,
    bytes_a_second: float = BYTES_A_SECOND,
    patience_s: float = 60.0,
) -> AsyncIterator[Served]:
    hits = Counter[str]()
    answers = Answers(hits.update, most=most, bytes_a_second=bytes_a_second, patience_s=patience_s)

    async def with_answers(scope: Scope, receive: Receive, send: Send) -> None:
        scope["answers"] = answers
        await app(scope, receive, send)

    inner = sub_app([])
    inner.router.default = with_answers
    listener = bind("127.0.0.1", 0)
    server = Server(Access(inner, answers), lambda: None)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", answers, hits)
    finally:
        server.stop()
        await task


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with as many bytes as the query says."""
    size = int(scope["query_string"] or LARGE)
    await Response(b"x" * size)(scope, receive, send)


class SlowReader:
    """A client whose kernel holds little, so that the server notices how it reads."""

    def __init__(self, server: Served) -> None:
        self._address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        self._socket.setblocking(False)

    async def __aenter__(self) -> "SlowReader":
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._address)
        await loop.sock_sendall(
            self._socket, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def take(self, size: int) -> int:
        """Reads this number of bytes; returns how many there were before the end. Raises
        ConnectionError."""
        left = size
        async with asyncio.timeout(20):
            while left:
                data = await asyncio.get_running_loop().sock_recv(self._socket, left)
                if not data:
                    break
                left -= len(data)
        return size - left

    async def trickle(self, size: int) -> None:
        """Reads at most this number of bytes every 20 ms. Raises ConnectionError."""
        while await self.take(size):
            await asyncio.sleep(0.02)


class Pieces:
    """Answers with pieces, and notes how many were made and how that ended."""

    def __init__(self, number: int, size: int, error: Exception | None = None) -> None:
        self.made = 0
        self.ended = ""
        self._number = number
        self._size = size
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = StreamedResponse(self.pieces(), scope["answers"], {}, "text/plain")
        await response(scope, receive, send)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(self._number):
                await asyncio.sleep(0)
                self.made += 1
                yield b"x" * self._size
            if self._error is not None:
                raise self._error
            self.ended = "end"
        finally:
            self.ended = self.ended or "cut"


def query(size: int) -> bytes:
    return GET.replace(b"/ ", b"/?%d " % size, 1)


async def read_head(connection: Connection) -> bytes:
    return await connection.reader.readuntil(b"\r\n\r\n")


# -- whole answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, 3_000_000])
async def test_an_answer_of_any_size_comes_whole(size: int) -> None:
    async with served(whole) as server, connected(server.url) as connection:
        for _ in range(2):
            await connection.send(query(size))
            answer = await connection.answer()
            assert answer.body == b"x" * size
        assert server.answers.under_way == 0


async def test_head_of_a_large_answer_has_its_length() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = Response(b"x" * LARGE)
        response.body = b""
        await response(scope, receive, send)

    async with served(app) as server, connected(server.url) as connection:
        await connection.send(GET.replace(b"GET", b"HEAD"))
        assert b"content-length: %d\r\n" % LARGE in await read_head(connection)


async def test_large_answers_are_refused_while_others_take_all_room() -> None:
    async with served(whole, most=LARGE) as server, connected(server.url) as first:
        await first.send(GET)
        await read_head(first)
        assert server.answers.under_way == LARGE
        async with connected(server.url) as second:
            await second.send(GET)
            answer = await second.answer()
            assert answer.status == 503
            assert answer.headers["retry-after"] in retry_after(2)
            assert server.hits == {"answers": 1}
            await second.send(query(SMALL_BYTES))  # a small one needs no room
            assert (await second.answer()).status == 200
        await first.reader.readexactly(LARGE)
        await wait_until(lambda: server.answers.under_way == 0, "the room is free again")


async def test_a_client_that_takes_nothing_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async with served(whole, patience_s=0.3) as server, connected(server.url) as connection:
        await connection.send(GET)
        await wait_until(lambda: server.hits["answer_rate"] == 1, "it is cut off")
        assert server.answers.under_way == 0
        with pytest.raises(ConnectionResetError):
            await connection.reader.read(-1)
    assert "ASGI callable" not in caplog.text


async def test_a_trickle_does_not_hold_an_answer() -> None:
    async with served(whole, patience_s=0.5) as server, connected(server.url) as connection:
        await connection.send(GET)

        async def trickle() -> bool:
            with contextlib.suppress(ConnectionError):
                await connection.reader.read(64)
            return bool(server.hits["answer_rate"])

        await wait_until(trickle, "it is cut off")
        assert server.answers.under_way == 0


async def test_small_answers_that_nobody_reads_end_as_well() -> None:
    async with (
        served(whole, bytes_a_second=1_000_000, patience_s=0.3) as server,
        connected(server.url) as connection,
    ):
        connection.writer.write(query(SMALL_BYTES) * 300)
        await wait_until(lambda: server.hits["answer_rate"] >= 1, "it is cut off")


async def test_a_client_that_takes_too_little_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """A hundredth of what it has to take."""
    pieces = Pieces(1_000, 1_000_000)
    async with (
        served(pieces, bytes_a_second=10_000_000, patience_s=1.0) as server,
        SlowReader(server) as reader,
    ):
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionError):
                await reader.trickle(2_000)
        assert server.hits == {"answer_rate": 1}
        await wait_until(lambda: server.answers.under_way == 0, "the room is free again")
        made = pieces.made
    assert pieces.made == made < 1_000
    assert "ASGI callable" not in caplog.text


async def test_pauses_below_the_patience_are_allowed() -> None:
    """Together they are longer: what is taken in between gives the time back."""
    patience_s, pause_s, size = 4.0, 0.4, 400_000
    pieces = Pieces(15, size)
    async with served(pieces, patience_s=patience_s) as server, SlowReader(server) as reader:
        paused_s = 0.0
        while await reader.take(size) == size:
            await asyncio.sleep(pause_s)
            paused_s += pause_s
        assert paused_s > patience_s
        assert pieces.ended == "end"
        assert server.hits == {}


async def test_a_wire_knows_whether_the_next_answer_has_begun() -> None:
    wires: list[Wire] = []
    seen: list[tuple[bool, bool]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        wire = wire_of(scope)
        assert wire is not None
        wires.append(wire)
        before = [each.superseded for each in wires]
        await Response(b"x")(scope, receive, send)
        seen.extend(zip(before, [each.superseded for each in wires], strict=True))

    async with served(app) as server, connected(server.url) as connection:
        await connection.send(GET + GET)
        await connection.answer()
        await connection.answer()
        assert seen == [(False, False), (False, True), (False, False)]


class UntakenWire:
    """A wire whose connection takes nothing."""

    waiting = 1_000
    superseded = False


async def test_an_answer_with_bytes_left_ends_when_the_next_one_begins() -> None:
    wire = UntakenWire()

    async def send(message: Message) -> None:
        assert not message.get("more_body")

    pace = Pace(send, cast("Wire", wire), Answers(patience_s=60.0))
    message = {"type": "http.response.body", "body": b""}
    ending = asyncio.create_task(pace.end(message, 0))
    await asyncio.sleep(0)
    assert not ending.done()
    wire.superseded = True
    async with asyncio.timeout(10):
        await ending
    assert not pace.cut


async def test_an_answer_is_over_when_the_next_one_begins() -> None:
    """However long the client takes for the next one."""
    first = 3_000_000
    async with (
        served(whole, most=SHARE * (first + LARGE)) as server,
        connected(server.url) as connection,
    ):
        await connection.send(query(first) + GET)
        assert len((await connection.answer()).body) == first
        await read_head(connection)
        await wait_until(lambda: server.answers.under_way == LARGE, "the first is over")
        assert len(await connection.reader.readexactly(LARGE)) == LARGE
        await wait_until(lambda: server.answers.under_way == 0, "the room is free again")
        assert server.hits == {}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of this host")
async def test_answers_to_one_address_leave_room_for_another() -> None:
    most = SHARE * 3 * STREAM_BYTES
    async with (
        served(Pieces(1_000, 1_000_000), most=most) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(3):
            one = await stack.enter_async_context(connected(server.url))
            await one.send(GET)
            await read_head(one)
        for _ in range(20):
            async with connected(server.url) as refused:
                await refused.send(GET)
                answer = await refused.answer()
                assert answer.status == 503
                assert answer.headers["retry-after"] in retry_after(2)
        assert server.hits == {"answers": 20}
        async with connected(server.url, "127.0.0.2") as other:
            await other.send(GET)
            assert b" 200 " in await read_head(other)


@pytest.mark.skipif(not can_measure_memory, reason="needs Linux")
async def test_answers_that_nobody_takes_leave_no_memory() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Pieces(40, STREAM_BYTES)(scope, receive, send)

    async with served(app, most=SHARE * 30 * STREAM_BYTES, patience_s=1.0) as server:
        before = peak_memory(os.getpid(), reset=True)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(30):
                connection = await stack.enter_async_context(connected(server.url))
                connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await connection.send(GET)
            await wait_until(lambda: server.hits["answer_rate"] == 30, "all are cut off", 20)
        gc.collect()
        assert server.answers.under_way == 0
        # A piece of each, once as it is made and once in the connection's buffer.
        assert peak_memory(os.getpid()) - before < 30 * 3 * STREAM_BYTES


# -- answers in pieces --------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_few_pieces_are_an_ordinary_answer(version: str) -> None:
    pieces = Pieces(3, 1_000)
    async with served(pieces) as server, connected(server.url) as connection:
        await connection.send(GET.replace(b"1.1", version.encode()))
        answer = await connection.answer()
        assert answer.headers["content-length"] == "3000"
        assert answer.body == b"x" * 3_000
        assert (pieces.ended, server.answers.under_way) == ("end", 0)


async def test_a_large_answer_is_made_as_it_is_taken() -> None:
    pieces = Pieces(100, 1_000_000)
    async with served(pieces) as server, connected(server.url) as connection:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await connection.send(GET)
        made = 0

        async def still() -> bool:
            nonlocal made
            before, made = made, pieces.made
            await asyncio.sleep(0.2)
            return 0 < before == pieces.made

        await wait_until(still, "the answer waits for its reader")
        assert made < 30
        assert server.answers.under_way == STREAM_BYTES
        connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
        answer = await connection.answer(30)
        assert answer.headers["transfer-encoding"] == "chunked"
        assert len(answer.body) == 100_000_000
        await wait_until(lambda: server.answers.under_way == 0, "the room is free again")


async def test_an_answer_in_pieces_needs_room_once_it_is_large() -> None:
    pieces = Pieces(1_000, 1_000_000)
    async with served(pieces, most=STREAM_BYTES) as server, connected(server.url) as first:
        await first.send(GET)
        await read_head(first)
        pieces.made = 0
        async with connected(server.url) as second:
            await second.send(GET)
            answer = await second.answer()
        assert answer.status == 503
        assert answer.headers["retry-after"] in retry_after(2)
        assert server.hits == {"answers": 1}
        assert pieces.made < 500


async def test_a_small_answer_in_pieces_needs_no_room() -> None:
    async with (
        served(Pieces(3, 1_000), most=1) as server,
        connected(server.url) as connection,
    ):
        with server.answers.counted(1, {"client": ("127.0.0.1", 1)}):
            await connection.send(GET)
            assert (await connection.answer()).status == 200


@pytest.mark.parametrize("number", [0, 5])
async def test_a_problem_is_answered_until_the_answer_begins(number: int) -> None:
    pieces = Pieces(number, 1_000, Problem(503, "gone"))
    async with served(pieces) as server, connected(server.url) as connection:
        await connection.send(GET)
        answer = await connection.answer()
        assert (answer.status, server.answers.under_way) == (503, 0)


async def test_a_later_problem_cuts_the_answer_off(caplog: pytest.LogCaptureFixture) -> None:
    pieces = Pieces(3, 100_000, Problem(503, "gone"))
    async with served(pieces) as server, connected(server.url) as connection:
        await connection.send(GET)
        await read_head(connection)
        with pytest.raises(asyncio.IncompleteReadError):
            async for _ in connection.chunks():
                pass
        assert "an answer is cut off: gone" in caplog.text
        assert "ASGI callable" not in caplog.text
        assert server.answers.under_way == 0


@pytest.mark.parametrize("after", [0, 300_000])
async def test_no_more_pieces_are_made_when_the_client_leaves(after: int) -> None:
    pieces = Pieces(1_000_000, 100_000 if after else 0)
    async with served(pieces) as server:
        async with connected(server.url) as connection:
            await connection.send(GET)
            if after:
                await connection.reader.readexactly(after)
            await wait_until(lambda: pieces.made > 0, "it has begun")
        await wait_until(lambda: pieces.ended == "cut", "it has ended")
        assert pieces.made < 1_000_000
        await wait_until(lambda: server.answers.under_way == 0, "the room is free again")


# -- work that ends with its client ---------------------------------------------------------------


class Work:
    """Answers when it is let go on."""

    def __init__(self) -> None:
        self.state = ""
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await while_connected(Request(scope, receive), self.work())
        await response(scope, receive, send)

    async def work(self) -> Response:
        self.state = "works"
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.state = "cancelled"
            raise
        return Response(b"done")


async def test_work_ends_when_its_client_leaves(caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    async with served(work) as server:
        async with connected(server.url) as connection:
            await connection.send(GET)
            await wait_until(lambda: work.state == "works", "it works")
        await wait_until(lambda: work.state == "cancelled", "it has ended")
    assert caplog.text == ""


async def test_work_is_answered_while_its_client_waits() -> None:
    work = Work()
    async with served(work) as server, connected(server.url) as connection:
        for _ in range(2):  # what watches the first request leaves the second alone
            await connection.send(GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nhi"))
            await wait_until(lambda: work.state == "works", "it works")
            work.go.set()
            assert (await connection.answer()).body == b"done"
            work.go.clear()
            work.state = ""


async def test_work_that_is_cancelled_otherwise_is_cancelled() -> None:
    scope = {"type": "http", "method": "GET", "headers": []}
    work = Work()

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(while_connected(Request(scope, receive), work.work()))
    await wait_until(lambda: work.state == "works", "it works")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
