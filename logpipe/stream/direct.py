"""Connections of logpipe's own, for the append alone.

redis-py's way to an answer takes five turns of the event loop, three timers and, for each
argument, more Python than the rest of the collector: a third of the requests of a busy one. Here a
command is packed by hiredis, written at once, and its answer is taken by one callback.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, cast

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from logpipe.redis_address import Node, RedisAddress
from logpipe.stream.primary import Primary, refusal

ARGUMENTS_AT_ONCE = 5_000
"""Packed by one call: some milliseconds."""


HELD_S = 1.3
"""How long an append waits for the end of a failover."""
LEAST_S = 0.5
"""What Redis has at least for one that has waited. With `HELD_S` no more than the 1.8 s after which
a request is answered."""

LATE_S = 0.1
"""A time limit that is noticed so much later was held up with everything else, and the answer may
lie unread in the socket."""
GRACE_S = 0.05
"""What it then gets, so that the answer is read first."""


class _Connection(asyncio.Protocol):
    """One connection; has at most one exchange under way."""

    transport: asyncio.Transport
    _limit: asyncio.TimerHandle

    def __init__(self) -> None:
        self._reader = hiredis.Reader(InvalidResponse, ResponseError)
        self._answers: list[Any] = []
        self._wanted = 0
        self._done: asyncio.Future[list[Any]] | None = None
        self.lost = False
        self.node: Node | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        said = next((each for each in self._answers if isinstance(each, ResponseError)), None)
        self._fail(said or exc or RedisConnectionError("closed by Redis"))

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
            self.cut_off()  # nobody has asked: it ends, or it is no Redis
        elif len(self._answers) >= self._wanted and not self._done.done():
            self._done.set_result(self._answers)

    def cut_off(self) -> None:
        """Ends it, and with an error what waits for its answers."""
        self.lost = True
        self.transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    async def exchange(self, packed: list[bytes], count: int, timeout_s: float) -> list[Any]:
        """The answers to so many commands, errors among them. Raises OSError and RedisError.

        A connection whose answers did not all come is closed.
        """
        loop = asyncio.get_running_loop()
        self._done, self._answers, self._wanted = loop.create_future(), [], count
        self._limit = loop.call_later(timeout_s, self._end_wait, time.monotonic() + timeout_s)
        try:
            self.transport.writelines(packed)
            return await self._done
        except BaseException:
            self.cut_off()
            raise
        finally:
            self._limit.cancel()
            self._done = None

    def _end_wait(self, due: float) -> None:
        if time.monotonic() - due > LATE_S:
            loop = asyncio.get_running_loop()
            self._limit = loop.call_later(GRACE_S, self._fail, TimeoutError())
        else:
            self._fail(TimeoutError())


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


def _raise_refusal(answers: list[Any]) -> None:
    """A transaction fails as a whole, at its end, and its first error says why."""
    if not any(isinstance(answer, Exception) for answer in answers[-2:]):
        return
    first = next(answer for answer in answers if isinstance(answer, ResponseError))
    known = refusal(first)
    if known is not first:
        raise known


class Question(Protocol):
    """What every new connection begins with."""

    spared: str
    """As `Primary.spared`."""

    @property
    def command(self) -> tuple[Any, ...]:
        """The command."""

    def noted(self, answer: Any) -> object:
        """Takes its answer, or the error of Redis, which it may raise: then the connection ends."""


class Direct:
    """Connections to a Redis as they are needed, each used by one command at a time.

    With a `primary`, they are to the node that it names, instead of the address. With a `question`,
    each begins with it.
    """

    def __init__(
        self,
        address: RedisAddress,
        connect_s: float,
        answer_s: float,
        primary: Primary | None = None,
        question: Question | None = None,
    ) -> None:
        self._address = address
        self._connect_s = connect_s
        self._answer_s = answer_s
        self._primary = primary
        self._question = question
        self._idle: list[_Connection] = []

    async def call(self, *command: Any, then: Sequence[bytes] = ()) -> list[Any]:
        """The answer to a command, and those to packed ones right after it on the same connection.
        Raises OSError, and RedisError also for the first one's."""
        answers = await self.exchange([*await _packed(command), *then], 1 + len(then))
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers

    def exchange(self, packed: list[bytes], count: int) -> Awaitable[list[Any]]:
        """The answers to so many packed commands, errors among them. Raises OSError and
        RedisError."""
        if self._primary is not None:
            return self._following(self._primary, packed, count)
        return self._at(None, packed, count, self._answer_s)

    async def _at(
        self, node: Node | None, packed: list[bytes], count: int, answer_s: float
    ) -> list[Any]:
        connection = self._take(node)
        if connection is None:
            connection = await self._connect(node, self._question)
            if self._primary is not None:
                self._primary.connected(connection)
        answers = await connection.exchange(packed, count, answer_s)
        self._idle.append(connection)
        return answers

    async def _following(self, primary: Primary, packed: list[bytes], count: int) -> list[Any]:
        """As `exchange`; what a primary that is being replaced took now would be lost. Raises
        `Unavailable` where that takes too long."""
        began = time.monotonic()
        await primary.settled(HELD_S)
        left_s = max(LEAST_S, self._answer_s - (time.monotonic() - began))
        return await primary.followed(lambda asked: self._follow(packed, count, asked, left_s))

    async def _follow(
        self, packed: list[bytes], count: int, asked: Node | None, answer_s: float
    ) -> list[Any]:
        """As `exchange`, at the primary, or at the node that is asked although it is not.

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
        """By a connection for this once: a slot moves seldom."""
        connection = await self._connect(node)
        try:
            asking = hiredis.pack_command(("ASKING",))
            return (await connection.exchange([asking, *packed], count + 1, self._answer_s))[1:]
        finally:
            connection.cut_off()

    def _take(self, node: Node | None) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and connection.node == node:
                return connection
            connection.cut_off()
        return None

    async def _connect(self, node: Node | None, question: Question | None = None) -> _Connection:
        address, loop = self._address, asyncio.get_running_loop()
        host, port = node or (address.host, address.port)
        if question is not None and self._primary is not None:
            question.spared = await self._primary.spared()
        async with asyncio.timeout(self._connect_s):
            if address.socket:
                _, connection = await loop.create_unix_connection(_Connection, address.socket)
            else:
                _, connection = await loop.create_connection(
                    _Connection,
                    host,
                    port,
                    ssl=_trusting(address.authority) if address.tls else None,
                )
        connection.node = node
        greeting = [*self._greeting(), *([question.command] if question else [])]
        packed = [hiredis.pack_command(command) for command in greeting]
        answers = await connection.exchange(packed, len(greeting), self._connect_s)
        asked = answers.pop() if question else None
        try:
            for answer in answers:  # of a refused login the first says why
                if isinstance(answer, ResponseError):
                    raise refusal(answer)
            if question is not None:
                question.noted(refusal(asked) if isinstance(asked, ResponseError) else asked)
        except ResponseError:
            connection.cut_off()
            raise
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


def _trusting(authority: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority or None)
