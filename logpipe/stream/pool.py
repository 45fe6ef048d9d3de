"""Pools of connections to Redis for the commands of hot paths: appends and reads.

With redis-py an answer takes five turns of the event loop, three timers and, for each argument,
more Python than the rest of a collector, which can then take a third fewer requests (measured).
Here commands are packed by hiredis and written at once, and one callback takes their
answers.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from logpipe.redis_address import Node, RedisAddress
from logpipe.stream.primary import Primary, refusal

MAX_CONNECTIONS = 80
"""The most connections of a pool; a command that needs another one waits. Each of up to
`groups.MAX_GROUPS` groups, and the feed, hold one while they wait for entries."""
CONNECTION_WAIT_S = 1.5
"""How long a command waits for a connection: as long as an append may wait for its answer."""

ARGUMENTS_AT_ONCE = 5_000
"""The most arguments that one call packs, which takes some milliseconds."""

HELD_S = 1.3
"""How long an append waits for the end of a failover."""
LEAST_S = 0.5
"""The least time limit of an append after that wait. With `HELD_S` it is within the 1.8 s after
which a request is answered."""

LATE_S = 0.1
"""A time limit that expires later than this was delayed with the whole event loop, and the answer
may lie unread in the socket."""
GRACE_S = 0.05
"""The extra time after such a delay, so that the answer is read first."""

_ASKING = hiredis.pack_command(("ASKING",))


class PoolExhaustedError(Exception):
    """No connection of the pool became free within `CONNECTION_WAIT_S`."""


class PooledConnection(asyncio.Protocol):
    """One connection, which has at most one exchange under way."""

    transport: asyncio.Transport
    _limit: asyncio.TimerHandle

    def __init__(self) -> None:
        self._reader = hiredis.Reader(InvalidResponse, ResponseError)
        self._answers: list[Any] = []
        self._expected = 0
        self._done: asyncio.Future[list[Any]] | None = None
        self._error = ""
        """The error by which Redis says why it closes the connection."""
        self.lost = False
        self.node: Node | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has no class of asyncio

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._note_error()
        self._fail(exc if exc is not None and not self._error else self._end())

    def _note_error(self) -> None:
        errors = (str(each) for each in self._answers if isinstance(each, ResponseError))
        self._error = next(errors, self._error)

    def _end(self) -> RedisError:
        return (
            ResponseError(self._error) if self._error else RedisConnectionError("closed by Redis")
        )

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                self._answers.append(answer)
        except InvalidResponse as error:
            self._fail(error)
            self.cut_off()
            return
        if self._done is None:
            self._note_error()  # no command was sent: Redis closes the connection, or is no Redis
            self.cut_off()
        elif len(self._answers) >= self._expected and not self._done.done():
            self._done.set_result(self._answers)

    def cut_off(self) -> None:
        """Close the connection at once; an exchange under way raises."""
        self.lost = True
        self.transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    async def exchange(self, packed: Sequence[bytes], count: int, timeout_s: float) -> list[Any]:
        """Send packed commands and return their `count` answers, error answers among them.

        Raises OSError and RedisError; the connection is then closed, since answers are missing.
        """
        if self.lost:
            raise self._end()
        loop = asyncio.get_running_loop()
        self._done, self._answers, self._expected = loop.create_future(), [], count
        self._limit = loop.call_later(timeout_s, self._expire, time.monotonic() + timeout_s)
        try:
            self.transport.writelines(packed)
            return await self._done
        except BaseException:
            self.cut_off()
            raise
        finally:
            self._limit.cancel()
            self._done, self._answers = None, []

    async def ask(self, command: tuple[Any, ...], timeout_s: float) -> Any:
        """Return the answer to a command, which may be a `ResponseError`. Raises as `exchange`."""
        (answer,) = await self.exchange([hiredis.pack_command(command)], 1, timeout_s)
        if not isinstance(answer, ResponseError):
            return answer
        error = refusal(answer)
        if isinstance(error, ResponseError):
            return error
        raise error

    def _expire(self, due: float) -> None:
        if time.monotonic() - due > LATE_S:
            loop = asyncio.get_running_loop()
            self._limit = loop.call_later(GRACE_S, self._fail, TimeoutError())
        else:
            self._fail(TimeoutError())


Greet = Callable[[PooledConnection, float], Awaitable[None]]
"""What is done with each new connection before its first command; the second argument is the time
limit of an answer, in seconds. An error ends the connection."""


async def _packed(command: tuple[Any, ...]) -> list[bytes]:
    """Pack a command; a long one in pieces, with a turn of the event loop after each."""
    if len(command) <= ARGUMENTS_AT_ONCE:
        return [hiredis.pack_command(command)]
    pieces = [b"*%d\r\n" % len(command)]
    for at in range(0, len(command), ARGUMENTS_AT_ONCE):
        piece = hiredis.pack_command(command[at : at + ARGUMENTS_AT_ONCE])
        pieces.append(piece[piece.index(b"\n") + 1 :])
        await asyncio.sleep(0)
    return pieces


def _raise_refusal(answers: list[Any]) -> None:
    """Raise the error by which commands were refused because their slot is at another node.

    A transaction fails at its end, and its first error says why; commands that are sent together
    belong to one slot, so the last answers show it as well.
    """
    if not any(isinstance(answer, Exception) for answer in answers[-2:]):
        return
    first = next(answer for answer in answers if isinstance(answer, ResponseError))
    known = refusal(first)
    if known is not first:
        raise known


class Pool:
    """Up to `limit` connections to a Redis, made as they are needed, each for one exchange at a
    time.

    With a `primary` they go to the node that it names, instead of the address; with `holds`,
    exchanges wait for the end of a failover, because what a primary that is being replaced takes
    is lost. `greet` is awaited with each new connection.

    Each step has a time limit of its own: a free connection `wait_s`, connecting `connect_s`, an
    answer to the login or of `greet` `login_s`, the answers to an exchange `answer_s`.
    """

    def __init__(
        self,
        address: RedisAddress,
        connect_s: float,
        answer_s: float,
        primary: Primary | None = None,
        greet: Greet | None = None,
        *,
        holds: bool = False,
        login_s: float | None = None,
        limit: int = MAX_CONNECTIONS,
        wait_s: float = CONNECTION_WAIT_S,
    ) -> None:
        self._address = address
        self._connect_s = connect_s
        self._answer_s = answer_s
        self._primary = primary
        self._greet = greet
        self._holds = holds
        self._login_s = connect_s if login_s is None else login_s
        self._wait_s = wait_s
        self._free = asyncio.Semaphore(limit)
        self._idle: list[PooledConnection] = []

    async def call(self, *command: Any, then: Sequence[bytes] = ()) -> list[Any]:
        """Return the answer to a command, and those to packed commands that follow it on the same
        connection. Raises as `exchange`, and the first command's error."""
        answers = await self.exchange([*await _packed(command), *then], 1 + len(then))
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers

    async def call_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands together and return their answers. Raises as `exchange`, and the first
        error among the answers."""
        packed = [hiredis.pack_command(command) for command in commands]
        answers = await self.exchange(packed, len(packed))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def transact(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Execute commands as of one moment and return their answers, error answers among them.
        Raises as `exchange`, and the error by which Redis refused all of them."""
        packed = [hiredis.pack_command(each) for each in (("MULTI",), *commands, ("EXEC",))]
        answers = await self.exchange([b"".join(packed)], len(packed))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return cast(list[Any], answers[-1])

    def exchange(self, packed: list[bytes], count: int) -> Awaitable[list[Any]]:
        """Send packed commands and return their `count` answers, error answers among them.

        Raises OSError, RedisError, `PoolExhaustedError` and, with `holds`, `Unavailable`.
        """
        if self._primary is not None:
            return self._at_primary(self._primary, packed, count)
        return self._at(None, packed, count, self._answer_s)

    async def _at(
        self, node: Node | None, packed: list[bytes], count: int, answer_s: float
    ) -> list[Any]:
        await self._take_seat()
        try:
            connection = self._take_idle(node)
            if connection is None:
                connection = await self._connect(node)
                await self._begin(connection)
            answers = await connection.exchange(packed, count, answer_s)
            self._idle.append(connection)
            return answers
        finally:
            self._free.release()

    async def _take_seat(self) -> None:
        if not self._free.locked():
            await self._free.acquire()  # without a timer, as nearly always
            return
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise PoolExhaustedError from None

    async def _at_primary(self, primary: Primary, packed: list[bytes], count: int) -> list[Any]:
        """As `exchange`. Raises `Unavailable` where a failover takes too long."""
        answer_s = self._answer_s
        if self._holds:
            began = time.monotonic()
            await primary.settled(HELD_S)
            answer_s = max(LEAST_S, answer_s - (time.monotonic() - began))
        return await primary.followed(lambda asked: self._follow(packed, count, asked, answer_s))

    async def _follow(
        self, packed: list[bytes], count: int, asked: Node | None, answer_s: float
    ) -> list[Any]:
        """As `exchange`, at the primary, or at the node `asked`, which is about to own the slot.

        Raises the error by which commands were refused because they belong to another node; then
        none of them was executed.
        """
        assert self._primary is not None
        node = asked
        try:
            if asked is not None:
                answers = await self._ask(asked, packed, count)
            else:
                node = await self._primary.where()
                answers = await self._at(node, packed, count, answer_s)
            _raise_refusal(answers)
        except (RedisError, OSError) as error:
            self._primary.learn(node, error)
            raise
        return answers

    async def _ask(self, node: Node, packed: list[bytes], count: int) -> list[Any]:
        """As `exchange`, on a connection for this exchange alone: a slot moves seldom."""
        connection = await self._connect(node)
        try:
            await self._log_in(connection)
            if len(packed) != count:  # pieces of one command or of one transaction
                asked = await connection.exchange([_ASKING, *packed], count + 1, self._answer_s)
                return asked[1:]
            pairs = [piece for command in packed for piece in (_ASKING, command)]
            return (await connection.exchange(pairs, 2 * count, self._answer_s))[1::2]
        finally:
            connection.cut_off()

    def _take_idle(self, node: Node | None) -> PooledConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and connection.node == node:
                return connection
            connection.cut_off()
        return None

    async def _connect(self, node: Node | None) -> PooledConnection:
        address, loop = self._address, asyncio.get_running_loop()
        host, port = node or (address.host, address.port)
        async with asyncio.timeout(self._connect_s):
            if address.socket:
                _, connection = await loop.create_unix_connection(PooledConnection, address.socket)
            else:
                tls = ssl.create_default_context(cafile=address.authority) if address.tls else None
                _, connection = await loop.create_connection(PooledConnection, host, port, ssl=tls)
        connection.node = node
        return connection

    async def _begin(self, connection: PooledConnection) -> None:
        """Log in and greet; from here on the connection ends when another node is the primary."""
        if self._primary is not None:
            self._primary.connected(connection)
        try:
            await self._log_in(connection)
            if self._greet is not None:
                await self._greet(connection, self._login_s)
        except BaseException:
            connection.cut_off()
            raise

    async def _log_in(self, connection: PooledConnection) -> None:
        commands = [hiredis.pack_command(command) for command in self._login()]
        for answer in await connection.exchange(commands, len(commands), self._login_s):
            if isinstance(answer, ResponseError):  # the first says why the login is refused
                raise refusal(answer)

    def _login(self) -> list[tuple[Any, ...]]:
        address = self._address
        commands: list[tuple[Any, ...]] = []
        if address.username or address.password:
            commands.append(("AUTH", address.username or "default", address.password or ""))
        if address.db:
            commands.append(("SELECT", address.db))
        return [*commands, ("CLIENT", "SETNAME", "logpipe")]

    async def aclose(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()
