import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from logpipe import protocol as module
from logpipe.server import Server, bind
from tests.helpers import wait_until
from tests.raw import connected, request

GET = request(start="GET / HTTP/1.1")


class Served(NamedTuple):
    url: str
    state: ServerState


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    """A server for `ok`."""
    listener = bind("127.0.0.1", 0)
    server = Server(ok, lambda: None)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", server.server_state)
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
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"x" * 100_000),
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
    monkeypatch.setattr(module, "HEAD_S", 0.3)
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
            assert await connection.rest(timeout=3) == b""


async def test_who_has_sent_a_head_may_take_longer_for_the_body_and_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.2)
    chunked = request(b"", "Transfer-Encoding: chunked", start="POST / HTTP/1.1").replace(
        b"Content-Length: 0\r\n", b""
    )
    async with serving() as served, connected(served.url) as connection:
        for _ in range(2):
            await connection.send(chunked)
            for piece in (b"5\r\n", b"hel", b"lo\r\n", b"0\r\n\r\n"):
                await asyncio.sleep(0.12)  # each is on time for a head, all together are not
                await connection.send(piece)
            assert (await connection.answer()).status == 200
            await asyncio.sleep(0.3)


async def test_a_body_that_stops_coming_is_not_waited_for_longer_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BODY_S", 0.2)
    async with serving() as served, connected(served.url) as connection:
        await connection.send(request(b"x" * 100, start="POST / HTTP/1.1")[:-50])
        answer = await connection.answer(timeout=3)
        assert answer.status == 408
        assert json.loads(answer.body)["detail"].startswith("The body was not there")
        assert await connection.rest(timeout=3) == b""
        await wait_until(lambda: not served.state.tasks, "the request is over")
