"""TLS at the port: which connections count, which are closed, and what comes behind a handshake."""

import asyncio
import contextlib
import gc
import socket
import ssl
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, cast

import pytest
import trustme
import uvloop

from logpipe.serving import admission
from logpipe.serving.admission import BoundedState
from logpipe.serving.handshake import Handshake
from tests.helpers import wait_until

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on each kind of event loop; nothing may be reported to the loop."""

    def run(main: Coroutine[Any, Any, None]) -> None:
        reports = list[dict[str, Any]]()

        async def limited() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, about: reports.append(about))
            async with asyncio.timeout(20):
                await main

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(limited())
            gc.collect()  # a task that has failed is reported when it is freed
        assert reports == []

    return run


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certified(authority: trustme.CA) -> ssl.SSLContext:
    """The server's side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """The client's side."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


class Echo(asyncio.Protocol):
    """Says `hello`, then what it is sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(b"hello;")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Refusing(asyncio.Protocol):
    """Cuts the connection off at once, as the server's own does where there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()

    def data_received(self, data: bytes) -> None:
        raise AssertionError("the connection is closed")


class Serving(NamedTuple):
    """A server of `Echo` over TLS."""

    state: BoundedState
    limited: Counter[str]
    port: int
    made: list["weakref.ref[Handshake]"]

    def is_empty(self) -> bool:
        """Whether nothing is left of any connection but the test's own task."""
        state = self.state
        left = state.connections or state._peers or state.handshakes._count
        return not left and len(asyncio.all_tasks()) == 1

    async def silent(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that says nothing, counted."""
        before = len(self.made)
        opened = await asyncio.open_connection("127.0.0.1", self.port)
        await wait_until(lambda: len(self.made) > before, "it is accepted")
        return opened


@contextlib.asynccontextmanager
async def serving(
    certified: ssl.SSLContext,
    most: int = 1_000,
    seconds: float = 60.0,
    make: Callable[[], asyncio.Protocol] = Echo,
) -> AsyncIterator[Serving]:
    limited: Counter[str] = Counter()
    state = BoundedState(limited.update, most)
    made = list["weakref.ref[Handshake]"]()

    def handshake() -> Handshake:
        one = Handshake(certified, state, make, seconds)
        made.append(weakref.ref(one))
        return one

    server = await asyncio.get_running_loop().create_server(handshake, "127.0.0.1", 0)
    try:
        yield Serving(state, limited, server.sockets[0].getsockname()[1], made)
    finally:
        server.close()


class ByHand:
    """A client whose TLS is made by hand, so that the test decides what goes in which piece."""

    def __init__(self, trusting: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting.wrap_bio(self._in, self._out, server_hostname="localhost")

    def first(self) -> bytes:
        """The first message."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._out.read()

    def taken(self) -> bytes:
        """What is to be sent."""
        return self._out.read()

    async def last(self, reader: asyncio.StreamReader, data: bytes) -> bytes:
        """The last message of the handshake, and data of the application behind it."""
        while True:
            await self._receive(reader)
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        self.tls.write(data)
        return self._out.read()

    async def read(self, reader: asyncio.StreamReader, count: int) -> bytes:
        """So many bytes of the application."""
        got = b""
        while len(got) < count:
            try:
                got += self.tls.read(65_536)
            except ssl.SSLWantReadError:
                await self._receive(reader)
        return got

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        data = await reader.read(65_536)
        if not data:
            raise EOFError("the server has closed the connection")
        self._in.write(data)


async def echoed(trusting: ssl.SSLContext, port: int, data: bytes = b"abc") -> bytes:
    """What an honest client gets."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=trusting, server_hostname="localhost"
    )
    try:
        writer.write(data)
        return await reader.readexactly(len(b"hello;") + len(data))
    finally:
        writer.transport.abort()


def test_a_client_and_the_protocol_behind_it_meet(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with serving(certified) as server:
            assert await echoed(trusting, server.port) == b"hello;abc"
            large = bytes(1_000_000)
            assert await echoed(trusting, server.port, large) == b"hello;" + large
            await wait_until(server.is_empty, "nothing is left of them")

    run(main())


class Pausing(asyncio.Protocol):
    """Reads no more from the beginning on."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        self.transport.write(b"hello;")


@pytest.mark.parametrize("others", [0, 200])
def test_a_protocol_that_does_not_read_stops_its_client(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext, others: int
) -> None:
    made = list[Pausing]()

    def make() -> Pausing:
        made.append(Pausing())
        return made[-1]

    async def main() -> None:
        async with serving(certified, make=make) as server:
            turns = server.state.turns

            def other() -> None:  # so that a step is waiting when the handshake ends
                if not writer.transport.is_closing():
                    turns.add(other, "127.0.0.1", urgent=True)

            reader, writer = await server.silent()
            client, sent = ByHand(trusting), 0
            writer.write(client.first())
            data = await client.last(reader, bytes(1_000_000))
            for _ in range(others):
                other()
            with contextlib.suppress(TimeoutError):
                while sent < 64_000_000:
                    writer.write(data)
                    sent += len(data)
                    async with asyncio.timeout(1):
                        await writer.drain()
                    client.tls.write(bytes(1_000_000))
                    data = client.taken()
            assert sent < 16_000_000  # the kernel takes some megabytes
            for transport in (writer.transport, made[0].transport):
                transport.abort()
            await wait_until(server.is_empty, "nothing is left of it")

    run(main())


def test_a_client_is_told_that_it_writes_too_fast_and_goes_on(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with serving(certified) as server:
            data = bytes(8_000_000)  # all of it is echoed
            assert len(await echoed(trusting, server.port, data)) == len(data) + 6

    run(main())


def test_six_hundred_clients_of_one_address_are_all_served(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    assert admission.MAX_HANDSHAKES < 600

    async def main() -> None:
        async with serving(certified) as server:
            every = [echoed(trusting, server.port) for _ in range(600)]
            assert set(await asyncio.gather(*every)) == {b"hello;abc"}
            assert server.limited == {}

    run(main())


@pytest.mark.parametrize("size", [1, 100])
def test_a_handshake_may_come_in_small_pieces(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext, size: int
) -> None:
    async def main() -> None:
        async with serving(certified) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = ByHand(trusting)

            async def send(data: bytes) -> None:
                for at in range(0, len(data), size):
                    writer.write(data[at : at + size])
                    await writer.drain()

            await send(client.first())
            await send(await client.last(reader, b"abc"))
            assert await client.read(reader, 9) == b"hello;abc"
            writer.transport.abort()

    run(main())


def test_what_comes_with_the_last_message_of_a_handshake_is_read(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with serving(certified) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client, data = ByHand(trusting), b"x" * 300_000
            writer.write(client.first())
            writer.write(await client.last(reader, data))
            assert await client.read(reader, 300_006) == b"hello;" + data
            writer.transport.abort()

    run(main())


@pytest.mark.parametrize("size", [3, 300_000])
def test_the_protocol_may_close_the_connection_at_once(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext, size: int
) -> None:
    async def main() -> None:
        async with serving(certified, make=Refusing) as server:
            reader, writer = await server.silent()
            client = ByHand(trusting)
            writer.write(client.first())
            writer.write(await client.last(reader, bytes(size)))
            with contextlib.suppress(ConnectionError):
                while await reader.read(65_536):
                    pass
            writer.transport.abort()
            await wait_until(server.is_empty, "nothing is left of it")

    run(main())


def test_silent_connections_are_closed_for_others(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with serving(certified, most=20) as server:
            silent = [await server.silent() for _ in range(40)]
            assert await echoed(trusting, server.port) == b"hello;abc"
            assert len(server.state.connections) <= 20
            assert server.limited["idle_connections"] >= 20
            assert server.limited["connections"] == 0
            for _, writer in silent:
                writer.transport.abort()
            await wait_until(server.is_empty, "nothing is left of them")

    run(main())


def test_those_that_have_begun_are_closed_after_the_silent(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with serving(certified, most=20) as server:
            reader, writer = await server.silent()
            client = ByHand(trusting)
            writer.write(client.first())
            last = await client.last(reader, b"abc")
            silent = [await server.silent() for _ in range(30)]
            writer.write(last)
            assert await client.read(reader, 9) == b"hello;abc"
            for _, other in [(reader, writer), *silent]:
                other.transport.abort()

    run(main())


@pytest.mark.parametrize("begun", [False, True])
def test_a_handshake_has_a_time_limit(
    run: Run, certified: ssl.SSLContext, trusting: ssl.SSLContext, begun: bool
) -> None:
    async def main() -> None:
        async with serving(certified, seconds=0.1) as server:
            reader, writer = await server.silent()
            if begun:
                writer.write(ByHand(trusting).first()[:50])
            assert await reader.read() == b""
            assert server.limited == {"handshake_time": 1}
            writer.close()
            await wait_until(server.is_empty, "nothing is left of it")

    run(main())


async def _plain(_: Serving, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A client that speaks no TLS."""
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        await reader.read()


async def _gone(_: Serving, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A client that leaves in the middle of its first message."""
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    writer.write_eof()


async def _reset(server: Serving, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A client that is cut off in the middle of its first message."""
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    await wait_until(lambda: any(one.begun for one in _open(server)), "it has come")
    writer.transport.abort()


def _open(server: Serving) -> list[Handshake]:
    return [one for one in server.state.connections if isinstance(one, Handshake)]


@pytest.mark.parametrize("end", [_plain, _gone, _reset])
def test_nothing_is_left_of_a_handshake_that_fails(
    run: Run,
    certified: ssl.SSLContext,
    end: Callable[[Serving, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async def main() -> None:
        async with serving(certified) as server:
            reader, writer = await server.silent()
            await end(server, reader, writer)
            await wait_until(server.is_empty, "it is gone")
            writer.transport.abort()

    run(main())


@pytest.mark.parametrize("iterations", range(6))
@pytest.mark.parametrize("close", [Handshake.close_for_room, Handshake.shutdown, Handshake.cut])
def test_nothing_is_left_of_a_handshake_that_is_closed_as_it_begins(
    run: Run,
    certified: ssl.SSLContext,
    trusting: ssl.SSLContext,
    iterations: int,
    close: Callable[[Handshake], None],
) -> None:
    async def main() -> None:
        async with serving(certified) as server:
            _, writer = await server.silent()
            (one,) = _open(server)
            writer.write(ByHand(trusting).first())
            while not one.begun:
                await asyncio.sleep(0)
            for _ in range(iterations):
                await asyncio.sleep(0)
            close(one)
            del one
            await wait_until(server.is_empty, "it is gone")
            writer.transport.abort()

    run(main())


def test_a_protocol_that_cannot_be_made_ends_its_connection(
    certified: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    def fail() -> asyncio.Protocol:
        raise RuntimeError("no protocol")

    async def main() -> None:
        reports = list[str]()
        asyncio.get_running_loop().set_exception_handler(
            lambda _, about: reports.append(repr(about.get("exception")))
        )
        async with serving(certified, make=fail) as server, asyncio.timeout(10):
            with pytest.raises((OSError, EOFError)):
                await echoed(trusting, server.port)
            await wait_until(server.is_empty, "it is gone")
        gc.collect()
        assert reports == ["RuntimeError('no protocol')"]

    asyncio.run(main())


async def _served(server: Serving, trusting: ssl.SSLContext) -> None:
    assert await echoed(trusting, server.port) == b"hello;abc"


async def _left_silent(server: Serving, _: ssl.SSLContext) -> None:
    opened = await server.silent()
    opened[1].transport.abort()


async def _left_after_the_answer(server: Serving, trusting: ssl.SSLContext) -> None:
    reader, writer = await server.silent()
    writer.write(ByHand(trusting).first())
    assert await reader.read(65_536)
    writer.transport.abort()


async def _failed(server: Serving, _: ssl.SSLContext) -> None:
    reader, writer = await server.silent()
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.transport.abort()


@pytest.mark.parametrize("visit", [_served, _left_silent, _left_after_the_answer, _failed])
def test_no_cycle_is_left_of_a_handshake(
    run: Run,
    certified: ssl.SSLContext,
    trusting: ssl.SSLContext,
    visit: Callable[[Serving, ssl.SSLContext], Awaitable[None]],
) -> None:
    async def main() -> None:
        async with serving(certified) as server:
            gc.disable()
            try:
                await visit(server, trusting)
                await wait_until(lambda: not any(one() for one in server.made), "it is freed")
            finally:
                gc.enable()

    run(main())
