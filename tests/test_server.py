import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from logpipe import listening
from logpipe.listening import PortTakenError, bind
from logpipe.serving import server as module
from logpipe.serving.server import Server
from tests.helpers import fair_time, wait_until
from tests.raw import connected, request

GET = request(start="GET / HTTP/1.1")

# -- the listening socket ----------------------------------------------------------------------


def test_a_port_that_is_in_use_is_named_with_what_to_do() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            bind("127.0.0.1", port)
    assert str(caught.value).startswith(f"PORT={port}: in use on 127.0.0.1;")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["no.such.host.invalid", "a" * 100, "a..b", "\udc80", "256.1.1.1", "a\nb"]
)
def test_a_host_that_is_none_is_named(host: str) -> None:
    with pytest.raises(PortTakenError) as caught:
        bind(host, 0)
    assert str(caught.value).startswith("HOST=")
    assert "\n" not in str(caught.value)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(PortTakenError) as caught:
        bind("192.0.2.1", 4711)
    assert "192.0.2.1:4711" in str(caught.value)


def test_a_port_can_be_taken_again_right_after_its_server_has_ended() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.setblocking(True)
            listener.accept()[0].close()  # this side closes first and keeps the port in TIME_WAIT
            assert client.recv(1) == b""
    with bind("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


def test_dead_readers_are_noticed_by_the_kernel() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            limit = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert limit == listening.DEAD_READER_MS


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="is named otherwise here")
def test_connections_on_which_nothing_is_sent_are_probed_and_gone_within_a_minute_too() -> None:
    """They have from the listening socket what it was told."""
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, every, probes, limit = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )
            )
        assert (idle, every) == (listening.IDLE_S, listening.PROBE_S)
        assert idle + every * probes <= 90
        assert limit == listening.DEAD_READER_MS


def test_many_connections_are_accepted_in_one_iteration() -> None:
    """libuv accepts one from each listening socket."""
    count = 4 * listening.ACCEPTED_AT_ONCE

    async def iterations() -> int:
        async with serving(Streams(), lambda: None) as served:
            await wait_until(lambda: served.server.started, "it listens")
            address = served.server.servers[0].sockets[0].getsockname()
            with contextlib.ExitStack() as clients:
                for _ in range(count):  # the kernel completes them, without the server
                    clients.enter_context(socket.create_connection(address))
                needed = 0
                while len(served.server.server_state.connections) < count:
                    await asyncio.sleep(0)
                    needed += 1
                    assert needed < 10_000
                return needed

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(iterations()) < count / 4


async def test_all_its_listening_sockets_are_closed_at_the_end() -> None:
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with serving(Streams(), lambda: None) as served:
        await wait_until(lambda: served.server.started, "it listens")
        address = served.server.servers[0].sockets[0].getsockname()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


# -- the end -----------------------------------------------------------------------------------


class Served(NamedTuple):
    url: str
    server: Server
    task: "asyncio.Task[None]"


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, farewell: Callable[[], None]) -> AsyncIterator[Served]:
    """A server for this app, which is not told to stop."""
    listener = bind("127.0.0.1", 0)
    server = Server(app, farewell)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", server, task)
    finally:
        server.stop()
        server.stop()
        await task


class Streams:
    """An app that streams `chunk` as fast as it is taken, until the farewell and then `bye`."""

    def __init__(self, chunk: bytes = b"", *, deaf: bool = False) -> None:
        self.chunk = chunk
        self.deaf = deaf
        self.enough: Callable[[], bool] = lambda: False
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        while not self.ended.is_set():
            if self.chunk and not self.enough():
                await send({"type": "http.response.body", "body": self.chunk, "more_body": True})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), 0.001)
        if self.deaf:
            while (await receive())["type"] != "http.disconnect":
                pass
        await send({"type": "http.response.body", "body": b"bye"})


async def test_a_stream_hears_the_farewell_and_ends_clean(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Streams()
    caplog.set_level(logging.INFO, "logpipe")
    async with (
        serving(app, app.ended.set) as served,
        connected(served.url) as one,
        connected(served.url) as two,
    ):
        for connection in (one, two):
            await connection.send(GET)
            await connection.reader.readuntil(b"hello\r\n")
        served.server.stop()
        for connection in (one, two):
            assert [chunk async for chunk in connection.chunks()] == [b"bye"]
            assert await connection.rest() == b""
        async with asyncio.timeout(2):
            await served.task
    (line,) = [record.getMessage() for record in caplog.records if record.name == "logpipe"]
    assert line == "stopping: ending 2 open requests and streams"


@pytest.mark.parametrize("end", ["server stops", "client has sent all"])
async def test_an_answer_of_http_1_0_that_is_cut_ends_with_a_reset(end: str) -> None:
    """An orderly end would say that it is complete."""
    app = Streams(deaf=True)
    async with serving(app, lambda: None) as served, connected(served.url) as connection:
        await connection.send(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
        await connection.reader.readuntil(b"hello")
        if end == "server stops":
            served.server.stop()
            served.server.stop()
        else:
            connection.writer.write_eof()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(10):
                await connection.reader.read()
        app.ended.set()


async def test_a_request_under_way_is_finished_and_its_connection_closed() -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"done"})

    async with serving(app, lambda: None) as served, connected(served.url) as connection:
        await connection.send(GET)
        await wait_until(lambda: served.server.server_state.tasks, "the request is under way")
        served.server.stop()
        await wait_until(lambda: not served.server.servers[0].is_serving(), "it accepts no more")
        with pytest.raises(OSError):
            async with connected(served.url):
                pass
        go.set()
        answer = await connection.answer()
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        assert await connection.rest() == b""
        async with asyncio.timeout(2):
            await served.task


async def test_a_request_that_comes_when_it_ends_is_answered() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"done"})

    async with (
        serving(app, lambda: None) as served,
        connected(served.url) as used,
        connected(served.url) as new,
    ):
        await used.send(GET)
        assert (await used.answer()).headers.get("connection") != "close"
        await wait_until(lambda: len(served.server.server_state.connections) == 2, "both are open")
        served.server.stop()
        await wait_until(lambda: not served.server.servers[0].is_serving(), "it accepts no more")
        for connection in (used, new):
            await connection.send(GET)
            answer = await connection.answer()
            assert (answer.body, answer.headers["connection"]) == (b"done", "close")
            assert await connection.rest() == b""
        await served.task


async def test_connections_without_a_request_are_closed_soon() -> None:
    async with (
        serving(Streams(), lambda: None) as served,
        connected(served.url) as silent,
        connected(served.url) as half,
    ):
        await half.send(GET[:20])
        await wait_until(lambda: len(served.server.server_state.connections) == 2, "both are open")
        started = fair_time()
        served.server.stop()
        assert await silent.rest() == await half.rest() == b""
        await served.task
        assert fair_time() - started < 1


@pytest.mark.parametrize("kind", ["blocked", "buffered", "deaf"])
async def test_a_reader_that_takes_nothing_does_not_hold_up_the_end(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.3)
    app = Streams({"blocked": b"x" * 300_000, "buffered": b"x" * 20_000, "deaf": b""}[kind])
    app.deaf = kind == "deaf"
    async with serving(app, app.ended.set) as served, connected(served.url) as stalled:
        await stalled.send(GET)
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        state = served.server.server_state

        def waiting() -> int:
            return sum(each.transport.get_write_buffer_size() for each in state.connections)

        if kind == "buffered":
            # Less than would stop the writer: the request ends, the connection cannot.
            app.enough = lambda: waiting() > 0
            await wait_until(lambda: 0 < waiting() <= 60_000, "some of it is not taken")
        elif kind == "blocked":
            await wait_until(lambda: waiting() > 100_000, "much of it is not taken")
        else:
            await wait_until(lambda: state.tasks, "the request is under way")
        started = fair_time()
        served.server.stop()
        async with asyncio.timeout(5):
            await served.task
        assert fair_time() - started < 1.5
        assert not state.connections
        assert not state.tasks
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_asked_a_second_time_it_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 30.0)
    app = Streams(deaf=True)
    async with serving(app, app.ended.set) as served, connected(served.url) as connection:
        await connection.send(GET)
        await wait_until(lambda: served.server.server_state.tasks, "the request is under way")
        served.server.stop()
        await wait_until(app.ended.is_set, "farewell was said")
        assert not served.task.done()
        started = fair_time()
        served.server.stop()
        await served.task
        assert fair_time() - started < 1


async def test_what_goes_wrong_in_the_app_is_a_500_without_a_word_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret detail")

    async with serving(app, lambda: None) as served, connected(served.url) as connection:
        await connection.send(GET)
        answer = await connection.answer()
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert "server" not in answer.headers
    assert "secret detail" in caplog.text
