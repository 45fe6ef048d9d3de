"""Who the primary is now, where that may change: behind Sentinels, and in a Cluster.

All keys of a stream lie in one slot, so at any time one node is the primary of all that logpipe
asks for. Connections ask `Primary` where to go, tell it what made them doubt, and are cut off when
another node has taken over; so commands, pools and pipelines are the same as with one Redis.
"""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from logpipe.redis_address import Node

ASK_PAUSE_S = 0.05
"""The least time between two questions that found none."""
FOLLOW_S = 1.5
"""How long a command goes after a slot that is on its way to another node: as long as a write may
wait for its answer."""
FOLLOW_PAUSE_S = 0.02

T = TypeVar("T")

_DOUBTFUL = (
    ReadOnlyError,
    ClusterDownError,
    BusyLoadingError,
    RedisConnectionError,
    RedisTimeoutError,
    OSError,
)
"""Errors after which another node may be the primary."""

_REFUSALS: dict[str, type[ResponseError]] = {
    "MOVED": MovedError,
    "ASK": AskError,
    "TRYAGAIN": TryAgainError,
    "CLUSTERDOWN": ClusterDownError,
    "READONLY": ReadOnlyError,
}


def refusal(error: ResponseError) -> ResponseError:
    """An error of hiredis', of redis-py's class for it where it says that the primary is another
    node."""
    word, _, rest = str(error).partition(" ")
    kind = _REFUSALS.get(word)
    return kind(rest) if kind else error


class Connected(Protocol):
    """A connection that `Primary` may cut off."""

    node: Node | None

    def cut_off(self) -> None:
        """Ends it, and with an error what waits for its answer."""


class Primary:
    """The node to connect to, which `ask` finds; it raises `RedisError` or OSError.

    `grace_s`: how long an earlier one may go on with what it was asked.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[Node]],
        aclose: Callable[[], Awaitable[None]],
        *,
        grace_s: float,
    ) -> None:
        self._ask = ask
        self._aclose = aclose
        self._grace_s = grace_s
        self.generation = 0
        """Grows when it may be another node, or the same one with another past."""
        self._known: Node | None = None
        self._asking: asyncio.Task[Node] | None = None
        self._cutting: asyncio.TimerHandle | None = None
        self._connections: weakref.WeakSet[Connected] = weakref.WeakSet()

    async def where(self) -> Node:
        """The primary as last heard of. Raises as `ask` does."""
        return self._known or await self.look()

    async def look(self) -> Node:
        """The primary as of now; all who wonder at the same time share one answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._find())
        return await asyncio.shield(self._asking)

    async def _find(self) -> Node:
        try:
            node = await self._ask()
        except (RedisError, OSError):
            await asyncio.sleep(ASK_PAUSE_S)
            raise
        self.moved(node)
        return node

    async def aclose(self) -> None:
        """Ends what asks."""
        if self._cutting is not None:
            self._cutting.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self._aclose()

    def moved(self, node: Node) -> None:
        """Takes note of the primary; connections to any other node are over, soon."""
        if node == self._known:
            return
        self._known = node
        self.generation += 1
        if self._cutting is not None:
            self._cutting.cancel()
        loop = asyncio.get_running_loop()
        self._cutting = loop.call_later(self._grace_s, self._cut_off_others)

    def _cut_off_others(self) -> None:
        for connection in list(self._connections):
            if connection.node != self._known is not None:
                connection.cut_off()

    def connected(self, connection: Connected) -> None:
        """Takes note of a connection, so that it ends with its node's time."""
        self._connections.add(connection)

    def learn(self, node: Node | None, error: BaseException) -> None:
        """What an error of a connection to `node` says of the primary."""
        if isinstance(error, MovedError):
            self.moved(Node(error.host or (node.host if node else ""), error.port))
        elif isinstance(error, _DOUBTFUL) and node == self._known:
            self._known = None  # the next one asks
            self.generation += 1

    async def followed(self, send: Callable[[Node | None], Awaitable[T]]) -> T:
        """What `send` answers, once it is not refused because the slot is elsewhere.

        What is refused so was not executed, so it may be sent again: to the new owner; to the node
        that is about to be it, which `send` is given and has to tell ASKING; or a little later.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FOLLOW_S
        asked: Node | None = None
        while True:
            try:
                return await send(asked)
            except (AskError, TryAgainError) as error:
                if loop.time() > deadline:
                    raise
                if asked is not None or isinstance(error, TryAgainError):
                    await asyncio.sleep(FOLLOW_PAUSE_S)
                asked = await self._asked(error)

    async def _asked(self, error: ResponseError) -> Node | None:
        if isinstance(error, MovedError) or not isinstance(error, AskError):
            return None  # MOVED, of which redis-py makes a kind of ASK, was taken note of
        return Node(error.host or (await self.where()).host, error.port)
