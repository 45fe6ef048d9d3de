import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random
from typing import NamedTuple, cast

import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from logpipe.listening import bind
from logpipe.serving import protocol as module
from logpipe.serving.admission import MAX_HEADS_BYTES, BoundedState
from logpipe.serving.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_OPEN, BoundedProtocol
from logpipe.serving.server import Server
from tests.helpers import retry_after, wait_until
from tests.raw import Connection, connected, request
from tests.servers import Valkey
from tests.servers import serving as role_serving

GET = request(start="GET / HTTP/1.1")
FORM = b"\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"


class Served(NamedTuple):
    url: str
    state: ServerState
    limited: Counter[str]
    stop: Callable[[], None]


@contextlib.asynccontextmanager
async def serving(
    most_connections: int = 1000, app: ASGIApp | None = None
) -> AsyncIterator[Served]:
    """A server for `ok`, or for another application."""
    listener = bind("127.0.0.1", 0)
    limited: Counter[str] = Counter()
    server = Server(app or ok, lambda: None, limited.update, most_connections)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Served(url, server.server_state, limited, server.stop)
    finally:
        server.stop()
        await task


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of headers, after the body."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"%02d" % len(scope["headers"])})


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET / HTTP/1.1\r\nX: ", b"x" * 100_000),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 15_000),
        (b"GET /", b"x" * 100_000),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
            b"x" * 100_000,
        ),
    ],
    ids=["one header", "many headers", "address", "chunk"],
)
async def test_a_head_without_end_is_refused(start: bytes, more: bytes) -> None:
    async with serving() as served, connected(served.url) as connection:
        await connection.send(start)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await connection.send(more)
        await wait_until(lambda: not served.state.connections, "it is closed")
        assert served.limited == {"head": 1}


async def test_heads_of_a_common_size_and_bodies_of_any_are_taken_one_after_the_other() -> None:
    async with serving() as served, connected(served.url) as connection:
        large = request(b"x" * 3_000_000, "X: " + "x" * 60_000, start="POST / HTTP/1.1")
        small = request(b"", "X: " + "x" * 8_000, start="GET / HTTP/1.1")
        chunked = request(b"", "Transfer-Encoding: chunked", start="POST / HTTP/1.1").replace(
            b"Content-Length: 0\r\n", b""
        )
        chunks = b"7\r\n1234567\r\n" * 50_000 + b"0\r\n\r\n"
        for _ in range(3):
            for data in (large, small * 12, chunked + chunks):
                await connection.send(data)
                for _ in range(12 if data[:3] == b"GET" else 1):
                    assert (await connection.answer()).status == 200


async def test_a_head_that_does_not_come_to_its_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 1.0)
    async with (
        serving() as served,
        connected(served.url) as silent,
        connected(served.url) as slow,
        connected(served.url) as second,
    ):
        await slow.send(GET[:5])
        await second.send(GET)
        assert (await second.answer()).status == 200
        await second.send(GET[:5])
        for connection in (silent, slow, second):
            assert await connection.rest() == b""
        # One that says nothing at all may just have been opened in advance.
        assert served.limited == {"head_time": 2}


async def test_who_has_sent_a_head_may_take_longer_for_the_body_and_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.8)
    chunked = request(b"", "Transfer-Encoding: chunked", start="POST / HTTP/1.1").replace(
        b"Content-Length: 0\r\n", b""
    )
    async with serving() as served, connected(served.url) as connection:
        for _ in range(2):
            await connection.send(chunked)
            for piece in (b"5\r\n", b"hel", b"lo\r\n", b"0\r\n\r\n"):
                await asyncio.sleep(0.25)  # each is on time for a head, all together are not
                await connection.send(piece)
            assert (await connection.answer()).status == 200


async def test_a_body_that_stops_coming_is_not_waited_for_longer_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BODY_S", 0.2)
    async with serving() as served, connected(served.url) as connection:
        await connection.send(request(b"x" * 100, start="POST / HTTP/1.1")[:-50])
        answer = await connection.answer()
        assert answer.status == 408
        assert json.loads(answer.body)["detail"].startswith("The body was not there")
        assert await connection.rest() == b""
        await wait_until(lambda: not served.state.tasks, "the request is over")
        assert served.limited == {"body_time": 1}


@pytest.mark.parametrize(("size", "status"), [(MAX_HEAD_BYTES, 200), (MAX_HEAD_BYTES + 1, 400)])
async def test_a_head_may_have_its_bytes_and_none_more(size: int, status: int) -> None:
    async with serving() as served, connected(served.url) as connection:
        start = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "
        # All but the last bytes first: what comes together with the end may be more.
        await connection.send(start + b"x" * (size - len(start)))
        if status == 200:
            await asyncio.sleep(0)
            await connection.send(b"\r\n\r\n")
        assert (await connection.answer()).status == status
        assert served.limited["head"] == (status != 200)


async def test_a_head_of_one_byte_a_second_has_the_same_time_as_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 1.0)
    async with serving() as served, connected(served.url) as connection:
        with contextlib.suppress(ConnectionError):
            for byte in GET * 100:
                await connection.send(bytes([byte]))
                if connection.reader.at_eof():
                    break
                await asyncio.sleep(0.05)
        await wait_until(lambda: not served.state.connections, "it is closed")
        assert served.limited["head_time"] == 1


async def test_a_body_of_one_byte_a_second_has_the_same_time_as_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BODY_S", 0.5)
    async with serving() as served, connected(served.url) as connection:
        await connection.send(request(b"x" * 1000, start="POST / HTTP/1.1")[:-1000])
        with contextlib.suppress(ConnectionError):
            while not connection.reader.at_eof():
                await connection.send(b"x")
                await asyncio.sleep(0.05)
        await wait_until(lambda: not served.state.connections, "it is closed")
        assert served.limited == {"body_time": 1}


@pytest.mark.parametrize("kind", ["head", "body"])
async def test_a_time_limit_is_of_one_request(kind: str) -> None:
    """Pieces of a request do not extend it; the next request has a time limit of its own."""
    if kind == "head":
        whole, cut = GET, 10
    else:
        whole = CHUNKED + b"1\r\nx\r\n0\r\n\r\n"
        cut = len(whole) - 6
    async with serving() as served, connected(served.url) as connection:
        await wait_until(lambda: served.state.connections, "it is connected")
        (protocol,) = cast("set[BoundedProtocol]", served.state.connections)
        await connection.send(whole[:cut])
        await wait_until(lambda: protocol.begun or protocol._open, "part of it has come")
        deadlines = list[asyncio.TimerHandle | None]([None])
        for _ in range(3):
            await wait_until(lambda: protocol._deadline not in deadlines, "it has a time limit")
            deadlines.append(protocol._deadline)
            received = protocol._unread
            await connection.send(whole[cut : cut + 1])
            await wait_until(lambda n=received: protocol._unread > n, "a byte more has come")  # type: ignore[misc]
            assert protocol._deadline is deadlines[-1]
            await connection.send(whole[cut + 1 :] + whole[:cut])
            assert (await connection.answer()).status == 200


async def unfinished(stack: contextlib.AsyncExitStack, served: Served) -> Connection:
    """A connection with part of a request: one byte of its body, a "b", has not come."""
    open_before = len(served.state.tasks)
    connection = await stack.enter_async_context(connected(served.url))
    await connection.send(request(b"ab", start="POST / HTTP/1.1")[:-1])
    await wait_until(lambda: len(served.state.tasks) > open_before, "its request is under way")
    return connection


async def busy(stack: contextlib.AsyncExitStack, served: Served, gate: "Gate") -> Connection:
    """A connection whose request has come and is answered when the gate opens."""
    begun = gate.begun
    connection = await stack.enter_async_context(connected(served.url))
    await connection.send(GET)
    await wait_until(lambda: gate.begun > begun, "its request is under way")
    return connection


async def test_one_connection_too_many_is_closed_and_the_others_go_on() -> None:
    gate = Gate()
    async with (
        serving(app=gate, most_connections=2) as served,
        contextlib.AsyncExitStack() as stack,
    ):
        one, two = [await busy(stack, served, gate) for _ in range(2)]
        for _ in range(2):
            async with connected(served.url) as third:
                assert await third.rest() == b""
        assert served.limited == {"connections": 2}
        one.writer.close()
        await wait_until(lambda: len(served.state.connections) == 1, "one has left")
        gate.open.set()
        async with connected(served.url) as third:
            await third.send(GET)
            assert (await third.answer()).status == 200
        assert (await two.answer()).status == 200


@pytest.mark.parametrize("role", ["collector", "distributor", "ui"])
async def test_heads_and_bodies_are_bounded_on_every_role(
    valkey: Valkey, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 1.5)
    monkeypatch.setattr(module, "BODY_S", 0.3)
    path = {"collector": "/ingest", "distributor": "/events", "ui": "/ui/send"}[role]
    async with (
        role_serving(redis_addr=valkey.url, role=role) as service,
        connected(service.url) as flood,
        connected(service.url) as slow,
        connected(service.url) as stopped,
    ):
        with contextlib.suppress(ConnectionError):
            await flood.send(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
        await slow.send(GET[:-2])
        head = request(b"x" * 1000, start=f"POST {path} HTTP/1.1")[:-500]
        await stopped.send(head.replace(b"\r\n\r\n", FORM, 1))
        for connection in (flood, slow, stopped):
            await connection.rest()
        text = (await service.http.get("/metrics")).text
        for limit in ("head", "head_time", "body_time"):
            assert f'logpipe_limited_total{{limit="{limit}"}} 1.0' in text


EVENT = b'{"source":"a","message":"b"}'


def statuses(answers: bytes) -> list[bytes]:
    """Of all answers that came on a connection."""
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
@pytest.mark.parametrize("at", [0, 5, len(EVENT)], ids=["body apart", "in two", "whole"])
async def test_a_client_that_would_rather_speak_another_protocol_is_served_in_this_one(
    valkey: Valkey, upgrade: str, at: int
) -> None:
    """Java's client and `curl --http2` ask so with every first request, also with a body."""
    wish = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: x")
    head, body = request(b"", *wish).split(b"0\r\n", 1)[0] + b"%d\r\n" % len(EVENT), EVENT
    head += request(b"", *wish).split(b"Content-Length: 0\r\n", 1)[1]
    async with (
        role_serving(redis_addr=valkey.url, role="collector") as service,
        connected(service.url) as connection,
    ):
        for _ in range(2):
            await connection.send(head + body[:at])
            await asyncio.sleep(0.02)
            await connection.send(body[at:])
            assert (await connection.answer()).status == 202
    assert valkey.client.xlen("logs") == 2


async def test_the_body_of_a_request_that_would_upgrade_is_not_read_as_a_request() -> None:
    hidden = request(start="GET /hidden HTTP/1.1")
    wish = ("Connection: Upgrade", "Upgrade: h2c")
    async with serving() as served, connected(served.url) as connection:
        whole = request(hidden, *wish, start="POST / HTTP/1.1")
        await connection.send(whole[: -len(hidden)])
        await asyncio.sleep(0.02)
        await connection.send(hidden + request(b"", "Connection: close", start="GET / HTTP/1.1"))
        assert statuses(await connection.rest()) == [b"200", b"200"]


async def test_connect_is_refused() -> None:
    async with serving() as served:
        for target in ("example.org:443", "/", "*"):
            async with connected(served.url) as connection:
                await connection.send(request(start=f"CONNECT {target} HTTP/1.1") + b"\x16\x03\x01")
                assert statuses(await connection.rest()) == [b"400"]


CHUNKED = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("unreadable", [b"\xff\xff\r\n\r\n", CHUNKED + b"no size\r\n"])
async def test_what_came_before_a_request_that_cannot_be_read_is_answered_before_it(
    valkey: Valkey, unreadable: bytes
) -> None:
    """Else the first of them, which is stored, is taken for the one that was refused."""
    async with (
        role_serving(redis_addr=valkey.url, role="collector") as service,
        connected(service.url) as connection,
    ):
        await connection.send(request(EVENT) * 3 + unreadable)
        assert statuses(await connection.rest()) == [b"202", b"202", b"202", b"400"]
        await wait_until(lambda: not service.server.server_state.tasks, "nothing is left")


async def test_a_body_that_cannot_be_read_is_refused_once(valkey: Valkey) -> None:
    refused = CHUNKED.replace(b"chunked", b"chunked\r\nContent-Encoding: unknown")
    async with role_serving(redis_addr=valkey.url, role="collector") as service:
        for head, status in ((CHUNKED, b"400"), (refused, b"415")):
            async with connected(service.url) as connection:
                await connection.send(head + b"5\r\nabcde\r\n")
                if status == b"415":
                    assert (await connection.answer()).status == 415
                await connection.send(b"no size\r\n")
                rest = await connection.rest()
                assert statuses(rest) == ([] if status == b"415" else [b"400"])


@pytest.mark.parametrize("path", ["/subscribe", "/ui/stream"])
async def test_a_stream_with_a_request_behind_it_ends_when_its_reader_leaves(
    valkey: Valkey, path: str
) -> None:
    async with role_serving(redis_addr=valkey.url) as service:
        async with connected(service.url) as connection:
            await connection.send(request(start=f"GET {path} HTTP/1.1") + GET)
            assert b" 200 OK" in await connection.reader.readuntil(b"\r\n\r\n")
        await wait_until(lambda: not service.server.server_state.tasks, "the stream has ended")


@pytest.mark.parametrize("turns", [1, 10])
async def test_a_request_behind_a_body_that_nobody_reads_is_answered(turns: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await Response(scope["path"])(scope, receive, send)

    chunks = (b"3e8\r\n" + b"x" * 1000 + b"\r\n") * 240 + b"0\r\n\r\n"
    async with serving(app=app) as served, connected(served.url) as connection:
        await connection.send(CHUNKED + chunks)
        assert (await connection.answer()).body == b"/ingest"
        (protocol,) = served.state.connections
        await wait_until(lambda: not protocol.cycle.more_body, "all of the body has come")  # type: ignore[union-attr]
        await connection.send(GET)
        assert (await connection.answer()).body == b"/"


# -- several requests of one connection ----------------------------------------------------------


class Gate:
    """An application that answers with the path of a request, once it is open."""

    def __init__(self, body: bytes = b"") -> None:
        self.open = asyncio.Event()
        self.begun = 0
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun += 1
        await self.open.wait()
        length = 0
        while True:
            message = await receive()
            length += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = self._body or f"{scope['path']} {length}".encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def numbered(count: int) -> bytes:
    """Requests for /0, /1 and so on."""
    return b"".join(request(start=f"GET /{number} HTTP/1.1") for number in range(count))


async def test_no_more_than_sixteen_requests_are_parsed_ahead() -> None:
    gate = Gate()
    async with serving(app=gate) as served, connected(served.url) as connection:
        connection.writer.write(numbered(20_000))
        await wait_until(lambda: served.limited["pipeline"], "the parser has stopped")
        (protocol,) = served.state.connections
        assert len(protocol.pipeline) == MAX_OPEN - 1  # type: ignore[union-attr]
        assert gate.begun == 1
        gate.open.set()
        for number in range(20_000):
            assert (await connection.answer()).body == b"/%d 0" % number
        assert served.limited == {"pipeline": served.limited["pipeline"]}


@pytest.mark.parametrize("kind", ["bodies", "header lines"])
async def test_memory_of_requests_parsed_ahead_is_bounded(kind: str) -> None:
    if kind == "bodies":
        one = request(b"x" * 60_000, start="POST / HTTP/1.1")
    else:
        one = request(b"", *["a: b"] * 900, start="GET / HTTP/1.1")
    gate = Gate()
    async with serving(app=gate) as served, connected(served.url) as connection:
        connection.writer.write(one * 100)
        await wait_until(lambda: served.limited["pipeline"], "the parser has stopped")
        (protocol,) = served.state.connections
        assert len(protocol.pipeline) < 4  # type: ignore[union-attr]
        gate.open.set()
        for _ in range(100):
            assert (await connection.answer()).status == 200


async def test_no_answer_is_begun_while_the_client_takes_none() -> None:
    gate = Gate(b"x" * 100_000)
    gate.open.set()
    async with serving(app=gate) as served, connected(served.url) as connection:
        transport = connection.writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]
        connection.writer.write(numbered(500))
        await wait_until(lambda: served.limited["pipeline"], "the parser has stopped")
        (protocol,) = served.state.connections
        assert protocol.transport.get_write_buffer_size() < 300_000
        assert gate.begun < 400
        transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(500):
            assert len((await connection.answer()).body) == 100_000


async def test_no_answer_is_begun_for_single_untaken_requests() -> None:
    """They come one by one, each in a read of its own."""
    gate = Gate(b"x" * 100_000)
    gate.open.set()
    async with serving(app=gate) as served, connected(served.url) as connection:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for number in range(400):
            if served.limited["pipeline"]:
                break
            await connection.send(numbered(1))
            await wait_until(lambda n=number: served.limited["pipeline"] or gate.begun > n, "begun")  # type: ignore[misc]
        assert served.limited["pipeline"]
        (protocol,) = served.state.connections
        assert protocol.transport.get_write_buffer_size() < 300_000


async def test_a_client_that_leaves_while_it_is_not_read_from_is_noticed() -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with serving(app=app) as served:
        async with connected(served.url) as connection:
            await connection.send(numbered(200))
            await wait_until(lambda: served.limited["pipeline"], "the parser has stopped")
        async with asyncio.timeout(10):
            await gone.wait()
        await wait_until(lambda: not served.state.connections, "the connection has gone")


async def test_a_client_that_leaves_with_a_request_waiting_is_noticed() -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with serving(app=app) as served:
        async with connected(served.url) as connection:
            await connection.send(numbered(1))
            await wait_until(lambda: served.state.tasks, "the first is begun")
            await connection.send(numbered(2))
            await wait_until(pipelined(served, 2), "two wait")
        async with asyncio.timeout(10):
            await gone.wait()


def pipelined(served: Served, count: int) -> Callable[[], bool]:
    """Whether so many requests of the one connection wait."""

    def wait() -> bool:
        (protocol,) = served.state.connections
        return len(protocol.pipeline) == count  # type: ignore[union-attr]

    return wait


async def test_a_server_that_stops_answers_what_it_has_parsed() -> None:
    gate = Gate()
    async with serving(app=gate) as served, connected(served.url) as connection:
        connection.writer.write(numbered(20_000))
        await wait_until(lambda: served.limited["pipeline"], "the parser has stopped")
        (protocol,) = served.state.connections
        served.stop()
        await wait_until(lambda: not protocol.cycle.keep_alive, "it is told")  # type: ignore[union-attr]
        gate.open.set()
        answers = [await connection.answer() for _ in range(MAX_OPEN)]
        assert [each.body for each in answers] == [b"/%d 0" % n for n in range(MAX_OPEN)]
        assert answers[-1].headers["connection"] == "close"


@pytest.mark.parametrize("seed", range(8))
async def test_requests_in_any_pieces_have_the_same_answers(seed: int) -> None:
    random = Random(seed)
    sent, expected = [], []
    ends = b"\r\n\r\n" * 30
    for number in range(200):
        start = f"POST /{number} HTTP/1.1"
        body = random.choice([b"", b"x", ends, b"x" * 40_000, ends * 40])
        kind = random.choice(["length", "chunked", "upgrade", "spaces"])
        lines = ("Connection: Upgrade", "Upgrade: h2c") if kind == "upgrade" else ()
        whole = request(body, *lines, start=start)
        if kind == "chunked":
            size = random.choice([1_000, 7, 30])
            parts = [body[at : at + size] for at in range(0, len(body[:5_000]), size)]
            body = b"".join(parts)
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
            whole = b"%b\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (
                start.encode(),
                chunks,
            )
        elif kind == "spaces":
            whole = b"\r\n" + whole
        sent.append(whole)
        expected.append(b"/%d %d" % (number, len(body)))
    data, at = b"".join(sent), 0
    gate = Gate()
    gate.open.set()
    async with serving(app=gate) as served, connected(served.url) as connection:

        async def write() -> None:
            nonlocal at
            while at < len(data):
                size = random.choice([1, 3, 50, 5_000, 300_000])
                await connection.send(data[at : at + size])
                at += size
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        assert [(await connection.answer()).body for _ in expected] == expected
        await writing
        assert not served.limited.keys() - {"pipeline"}


# -- heads that two servers may read differently -------------------------------------------------

HOSTS: tuple[tuple[str, list[str], bytes], ...] = (
    ("1.1", [], b"400"),
    ("1.1", ["a"], b"200"),
    ("1.1", ["a", "a"], b"400"),
    ("1.1", ["a", "b"], b"400"),
    ("1.1", [""], b"200"),
    ("1.1", ["a:80"], b"200"),
    ("1.1", ["[::1]:80"], b"200"),
    ("1.1", ["my_service.example"], b"200"),
    ("1.1", ["a@b"], b"400"),
    ("1.1", ["a, b"], b"400"),
    ("1.1", ["a/b"], b"400"),
    ("1.1", ["[::1"], b"400"),
    ("1.1", ["a:b"], b"400"),
    ("1.1", ["a b"], b"400"),
    ("1.0", [], b"200"),
    ("1.0", ["a"], b"200"),
    ("1.0", ["a", "b"], b"400"),
    ("0.9", ["a"], b"400"),
    ("2.0", ["a"], b"400"),
)


@pytest.mark.parametrize(("version", "hosts", "status"), HOSTS)
async def test_a_request_names_one_host(version: str, hosts: list[str], status: bytes) -> None:
    lines = [f"GET / HTTP/{version}", *(f"Host: {host}" for host in hosts), "Connection: close"]
    async with serving() as served, connected(served.url) as connection:
        await connection.send("\r\n".join([*lines, "", ""]).encode())
        assert statuses(await connection.rest()) == [status]


async def test_a_request_line_without_a_version_is_refused() -> None:
    async with serving() as served:
        for line in (b"GET /\r\n\r\n", b"GET /\r\nHost: localhost\r\n\r\n"):
            async with connected(served.url) as connection:
                await connection.send(line)
                assert statuses(await connection.rest()) == [b"400"]


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        ("chunked", b"200"),
        ("Chunked", b"200"),
        ("gzip, chunked", b"501"),
        ("gzip\r\nTransfer-Encoding: chunked", b"501"),
        ("gzip", b"501"),
        ("identity", b"501"),
        ("xchunked", b"501"),
        ("chunked, gzip", b"400"),
        ("chunked\r\nContent-Length: 5", b"400"),
    ],
)
async def test_the_one_transfer_coding_is_chunked(coding: str, status: bytes) -> None:
    """What is behind a body that cannot be read is not taken for a request."""
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {coding}\r\n\r\n".encode()
    last = request(b"", "Connection: close", start="GET / HTTP/1.1")
    async with serving() as served, connected(served.url) as connection:
        await connection.send(GET + head + b"5\r\nabcde\r\n0\r\n\r\n" + last)
        expected = [b"200", b"200", b"200"] if status == b"200" else [b"200", status]
        assert statuses(await connection.rest()) == expected


async def test_trailers_are_no_headers() -> None:
    chunked = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    async with serving() as served, connected(served.url) as connection:
        await connection.send(chunked + b"Authorization: x\r\nHost: y\r\n\r\n")
        assert (await connection.answer()).body == b"02"


@pytest.mark.parametrize(("lines", "status"), [(MAX_HEADERS - 2, 200), (MAX_HEADERS - 1, 400)])
async def test_a_head_may_have_so_many_lines(lines: int, status: int) -> None:
    gate = Gate()
    gate.open.set()
    async with serving(app=gate) as served, connected(served.url) as connection:
        await connection.send(request(b"", *["a: b"] * lines, start="GET / HTTP/1.1"))
        assert (await connection.answer()).status == status
        assert served.limited["head"] == (status != 200)


# -- idle connections ----------------------------------------------------------------------------


def _awaits_next(protocol: BoundedProtocol) -> bool:
    return protocol.timeout_keep_alive_task is not None


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    """The one timer of a connection ends while it is in use, early and on time."""
    gate = Gate()
    async with serving(app=gate) as served, connected(served.url) as connection:
        await connection.send(GET)
        await wait_until(lambda: gate.begun, "a request is under way")
        (protocol,) = cast("set[BoundedProtocol]", served.state.connections)
        protocol.timeout_keep_alive_handler()
        assert not _awaits_next(protocol)
        gate.open.set()
        await connection.answer()
        early = protocol.timeout_keep_alive_task
        assert early is not None
        protocol.timeout_keep_alive_handler()
        assert protocol.timeout_keep_alive_task not in (None, early)
        assert not protocol.transport.is_closing()
        early.cancel()
        protocol._idle_since -= protocol.timeout_keep_alive
        protocol.timeout_keep_alive_handler()
        assert await connection.rest() == b""


@pytest.mark.parametrize("kind", ["silent", "answered", "part of a head"])
async def test_an_address_loses_idle_connections_for_new_ones(kind: str) -> None:
    """Neither a request that is under way nor a new connection is refused."""
    async with serving(most_connections=50) as served, contextlib.AsyncExitStack() as stack:
        under_way = await unfinished(stack, served)
        for _ in range(120):
            connection = await stack.enter_async_context(connected(served.url))
            if kind == "answered":
                await connection.send(GET)
                assert (await connection.answer()).status == 200
            elif kind == "part of a head":
                await connection.send(GET[:9])
        async with connected(served.url) as honest:
            await honest.send(GET)
            assert (await honest.answer()).status == 200
        await under_way.send(b"b")
        assert (await under_way.answer()).status == 200
        assert served.limited.keys() == {"idle_connections"}
        assert served.limited["idle_connections"] >= 80
        assert len(served.state.connections) <= 42


async def test_an_address_loses_unfinished_bodies_for_new_connections() -> None:
    async with serving(most_connections=50) as served, contextlib.AsyncExitStack() as stack:
        for _ in range(120):
            connection = await stack.enter_async_context(connected(served.url))
            await connection.send(request(b"ab", start="POST / HTTP/1.1")[:-1])
        await wait_until(lambda: len(served.state.tasks) >= 30, "bodies have come in part")
        async with connected(served.url) as honest:
            await honest.send(GET)
            assert (await honest.answer()).status == 200
        assert served.limited.keys() == {"idle_connections"}
        assert len(served.state.connections) <= 42


async def test_a_body_that_has_come_keeps_its_connection() -> None:
    gate = Gate()
    async with serving(app=gate) as served, contextlib.AsyncExitStack() as stack:
        connection = await unfinished(stack, served)
        (protocol,) = cast("set[BoundedProtocol]", served.state.connections)
        assert protocol in protocol._unused
        await connection.send(b"b")
        await wait_until(lambda: protocol not in protocol._unused, "all of it has come")
        gate.open.set()
        assert (await connection.answer()).status == 200


@pytest.mark.parametrize("closing", [False, True])
async def test_a_connection_with_untaken_answers_is_closed_for_others(closing: bool) -> None:
    gate = Gate(b"x" * 60_000)
    gate.open.set()
    async with serving(app=gate) as served, connected(served.url) as connection:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await wait_until(lambda: served.state.connections, "it is connected")
        (protocol,) = cast("set[BoundedProtocol]", served.state.connections)
        while not protocol.transport.get_write_buffer_size():
            answered = gate.begun
            await connection.send(GET)
            await wait_until(lambda n=answered: gate.begun > n, "it is begun")  # type: ignore[misc]
            await wait_until(lambda: not served.state.tasks, "it is answered")
        if closing:
            protocol.transport.close()
            assert protocol.transport.is_closing()
        protocol.close_for_room()
        await wait_until(lambda: not served.state.connections, "it is closed")


LINES = [f"X-{n}: {'y' * 40}" for n in range(900)]
LARGE = request(b"", *LINES, start="GET / HTTP/1.1")
LARGE_BYTES = 162_000
"""What its head counts."""


def counted(served: Served) -> int:
    """Memory of large heads, as it is counted."""
    return cast("BoundedState", served.state).heads_bytes


def counted_reaches(served: Served, size: int) -> bool:
    return counted(served) >= size


async def empty(_: Scope, __: Receive, send: Send) -> None:
    """Answers without a body."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body"})


async def after_the_body(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without a body, when that of the request has come."""
    while (await receive()).get("more_body"):
        pass
    await empty(scope, receive, send)


@pytest.mark.parametrize("ended", [True, False])
async def test_too_many_large_heads_at_a_time_are_refused(ended: bool) -> None:
    go_on = asyncio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        if len(scope["headers"]) > 100:
            await go_on.wait()
        await empty(scope, receive, send)

    async with serving(app=waiting) as served, contextlib.AsyncExitStack() as stack:

        async def sent(data: bytes) -> Connection:
            connection = await stack.enter_async_context(connected(served.url))
            await connection.send(data)
            return connection

        first = []
        while counted(served) + LARGE_BYTES < MAX_HEADS_BYTES:
            enough = counted(served) + LARGE_BYTES // 2
            first.append(await sent(LARGE if ended else LARGE[:-2]))
            await wait_until(partial(counted_reaches, served, enough), "it is counted")
        refused = await (await sent(LARGE)).answer()
        assert refused.status == 503
        assert refused.headers["retry-after"] in retry_after(1)
        assert served.limited["heads"] >= 1
        assert (await (await sent(GET)).answer()).status == 200
        if ended:
            go_on.set()
            assert {(await each.answer()).status for each in first} == {200}
        else:
            for each in first:
                each.writer.transport.abort()
        await wait_until(lambda: counted(served) == 0, "none is counted any more")
        go_on.set()
        assert (await (await sent(LARGE)).answer()).status == 200


async def test_large_heads_behind_each_other_are_counted_off() -> None:
    async with serving(app=empty) as served:
        async with connected(served.url) as connection:
            await connection.send(LARGE * 5)
            assert [(await connection.answer()).status for _ in range(5)] == [200] * 5
            assert counted(served) == 0
            await connection.send(LARGE * 3 + LARGE[:30_000])
            await connection.answer()
        await wait_until(lambda: counted(served) == 0, "the client has left")


LARGE_CHUNKED = request(b"", *LINES, "Transfer-Encoding: chunked").replace(
    b"Content-Length: 0\r\n", b""
)
TRAILERS = b"".join(f"{line}\r\n".encode() for line in LINES)


@pytest.mark.parametrize(
    "data",
    [
        LARGE_CHUNKED + b"ZZ\r\n",
        LARGE + LARGE_CHUNKED + b"ZZ\r\n",
        LARGE_CHUNKED + b"0\r\n" + TRAILERS * 2,
        LARGE[:-2] + b"bad header\r\n\r\n",
        GET + LARGE[:-2] + b"bad header\r\n\r\n",
    ],
    ids=["chunk", "chunk behind", "trailers", "header", "header behind"],
)
async def test_a_large_head_that_is_refused_is_no_longer_counted(data: bytes) -> None:
    async with serving(app=after_the_body) as served:
        async with connected(served.url) as connection:
            await connection.send(data)
            assert b" 400 " in await connection.rest()
        await wait_until(lambda: counted(served) == 0, "nothing is counted")


async def test_a_head_refused_behind_a_stream_is_forgotten() -> None:
    go_on = asyncio.Event()

    async def streaming(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"ended"})

    async with serving(app=streaming) as served, connected(served.url) as connection:
        await connection.send(GET)
        await connection.reader.readuntil(b"begun")
        await connection.send(LARGE[:-2])
        await wait_until(lambda: counted(served) > 0, "it is counted")
        await connection.send(b"bad header\r\n\r\n")
        await wait_until(lambda: counted(served) == 0, "it is forgotten")
        (protocol,) = served.state.connections
        assert cast("BoundedProtocol", protocol)._deadline is None
        go_on.set()
        rest = await connection.rest()
        assert b"ended" in rest
        assert b" 400 " in rest


async def test_trailers_are_counted_and_forgotten() -> None:
    async with serving(app=empty) as served, connected(served.url) as connection:
        small = request(b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        await connection.send(small + b"0\r\n" + TRAILERS)
        await wait_until(lambda: counted(served) > 100_000, "they are counted")
        await connection.send(b"\r\n")
        await wait_until(lambda: counted(served) == 0, "they are forgotten")
        (protocol,) = served.state.connections
        assert not cast("BoundedProtocol", protocol).headers
