"""What answers at Redis' address and is none, or is one that knows little."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ResponseError

from logpipe.problems import Unavailable
from logpipe.redis_address import Node, RedisAddress
from logpipe.stream import Append
from logpipe.stream.finding import primary_of
from logpipe.stream.pool import Pool, PooledConnection
from tests.helpers import wait_until
from tests.servers import Valkey
from tests.streams import address_of, event, stream_at

SLOTS = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n"
NO_SLOTS = b"*0\r\n"


class Fake:
    """A server that answers to the name of a connection and then with `answer`, whatever it is."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.port = 0
        self._open = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Fake"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await wait_until(lambda: not self._open, "all connections are closed")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while asked := await reader.read(65_536):
                if b"SETNAME" in asked:
                    writer.write(b"+OK\r\n")
                if b"SETNAME" not in asked or b"EVAL" in asked:
                    writer.write(self.answer)
        self._open -= 1


async def test_what_is_no_redis_is_said_to_be_none_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Fake(b"HTTP/1.1 400 Bad Request\r\n\r\n").running() as server:
        address = RedisAddress(host="127.0.0.1", port=server.port)
        async with stream_at(address) as stream:
            with pytest.raises(Unavailable, match="no Redis"):
                await stream.append([Append([event(1)])])
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


async def test_a_login_may_take_longer_than_a_connection(own_valkey: Valkey) -> None:
    pool = Pool(address_of(own_valkey), 0.05, 20, login_s=20)
    own_valkey.signal(signal.SIGSTOP)
    try:
        pinging = asyncio.create_task(pool.call("PING"))
        await asyncio.wait([pinging], timeout=0.3)
        assert not pinging.done()
    finally:
        own_valkey.signal(signal.SIGCONT)
    assert await pinging == [b"PONG"]
    await pool.aclose()


async def test_an_exchange_on_a_connection_that_has_ended_fails_at_once() -> None:
    """The error that Redis sent before it closed the connection is not lost."""

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR max number of clients reached\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    connection: PooledConnection
    _, connection = await asyncio.get_running_loop().create_connection(PooledConnection, host, port)
    await wait_until(lambda: connection.lost, "the connection has ended")
    with pytest.raises(ResponseError, match="max number of clients"):
        await asyncio.wait_for(connection.exchange([b"PING\r\n"], 1, 60), 5)
    server.close()


async def test_a_node_that_has_forgotten_its_cluster_makes_no_other_node_forgotten() -> None:
    async with Fake(NO_SLOTS).running() as first, Fake(b"").running() as owner:
        first.answer = SLOTS % owner.port
        owner.answer = SLOTS % owner.port
        primary = primary_of(RedisAddress(cluster=(Node("127.0.0.1", first.port),)), "logs")
        assert primary is not None
        try:
            assert await primary.look() == Node("127.0.0.1", owner.port)
            first.answer = NO_SLOTS
            for _ in range(8):  # the node that is asked first is chosen by chance
                assert await primary.look() == Node("127.0.0.1", owner.port)
        finally:
            await primary.aclose()
