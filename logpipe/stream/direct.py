"""Connections of logpipe's own, for the append alone.

redis-py's way to an answer takes five turns of the event loop, three timers and, for each
argument, more Python than the rest of the collector: a third of the requests of a busy one. Here a
command is packed by hiredis, written at once, and its answer is taken by one callback.
"""

import asyncio
import ssl
from typing import Any, cast

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from logpipe.redis_address import RedisAddress

ARGUMENTS_AT_ONCE = 5_000
"""Packed by one call: some milliseconds."""


class _Connection(asyncio.Protocol):
    """One connection; has at most one exchange under way."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._answers: list[Any] = []
        self._wanted = 0
        self._done: asyncio.Future[list[Any]] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._fail(exc or RedisConnectionError("closed by Redis"))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            self._answers.append(answer)
        if self._done is None:
            self.transport.abort()  # nobody has asked: it ends, or it is no Redis
        elif len(self._answers) >= self._wanted and not self._done.done():
            self._done.set_result(self._answers)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    async def exchange(self, packed: list[bytes], count: int, timeout_s: float) -> list[Any]:
        """The answers to so many commands, errors among them. Raises OSError and RedisError.

        A connection whose answers did not all come is closed.
        """
        loop = asyncio.get_running_loop()
        self._done, self._answers, self._wanted = loop.create_future(), [], count
        limit = loop.call_later(timeout_s, self._fail, TimeoutError())
        self.transport.writelines(packed)
        try:
            return await self._done
        except BaseException:
            self.lost = True
            self.transport.abort()
            raise
        finally:
            limit.cancel()
            self._done = None


async def _packed(command: tuple[Any, ...]) -> list[bytes]:
    """A command on the wire; a long one in pieces, between which everything else has its turn."""
    if len(command) <= ARGUMENTS_AT_ONCE:
        return [hiredis.pack_command(command)]
    pieces = [b"*%d\r\n" % len(command)]
    for at in range(0, len(command), ARGUMENTS_AT_ONCE):
        some = hiredis.pack_command(command[at : at + ARGUMENTS_AT_ONCE])
        pieces.append(some[some.index(b"\n") + 1 :])
        await asyncio.sleep(0)
    return pieces


class Direct:
    """Connections to a Redis as they are needed, each used by one command at a time."""

    def __init__(self, address: RedisAddress, connect_s: float, answer_s: float) -> None:
        self._address = address
        self._connect_s = connect_s
        self._answer_s = answer_s
        self._idle: list[_Connection] = []

    async def call(self, *command: Any) -> Any:
        """The answer to a command. Raises OSError and RedisError."""
        (answer,) = await self.exchange(await _packed(command), 1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def exchange(self, packed: list[bytes], count: int) -> list[Any]:
        """The answers to so many packed commands, errors among them. Raises OSError and
        RedisError."""
        connection = self._take() or await self._connect()
        answers = await connection.exchange(packed, count, self._answer_s)
        self._idle.append(connection)
        return answers

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost:
                return connection
        return None

    async def _connect(self) -> _Connection:
        address, loop = self._address, asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_s):
            if address.socket:
                _, connection = await loop.create_unix_connection(_Connection, address.socket)
            else:
                _, connection = await loop.create_connection(
                    _Connection,
                    address.host,
                    address.port,
                    ssl=ssl.create_default_context() if address.tls else None,
                )
        # A login that is refused is told by every command after it.
        greeting = self._greeting()
        packed = [hiredis.pack_command(command) for command in greeting]
        answers = await connection.exchange(packed, len(greeting), self._connect_s)
        for answer in answers:
            if isinstance(answer, Exception):
                connection.transport.abort()
                raise answer
        return connection

    def _greeting(self) -> list[tuple[Any, ...]]:
        address = self._address
        commands: list[tuple[Any, ...]] = []
        if address.username or address.password:
            commands.append(("AUTH", address.username or "default", address.password or ""))
        if address.db:
            commands.append(("SELECT", address.db))
        return [*commands, ("CLIENT", "SETNAME", "logpipe")]

    async def aclose(self) -> None:
        """Closes the connections."""
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()
