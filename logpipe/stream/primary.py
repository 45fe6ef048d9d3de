"""Who the primary is now, where that may change: behind Sentinels, and in a Cluster.

All keys of a stream lie in one slot, so at any time one node is the primary of all that logpipe
asks for. Connections ask `Primary` where to go, tell it what made them doubt, and are cut off when
another node has taken over; so commands, pools and pipelines are the same as with one Redis.
"""

import asyncio
import logging
import math
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

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

from logpipe.problems import Unavailable
from logpipe.redis_address import Node

log = logging.getLogger("logpipe.redis")

ASK_PAUSE_S = 0.05
"""The least time between two questions that found none."""
HOLD_S = 4.0
"""How long appends are held in one failover. One that succeeds takes one to two seconds, one that
cannot takes Sentinel's failover-timeout, and meanwhile the primary is well."""
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

_REFUSALS: dict[str, type[RedisError]] = {
    "MOVED": MovedError,
    "ASK": AskError,
    "TRYAGAIN": TryAgainError,
    "CLUSTERDOWN": ClusterDownError,
    "READONLY": ReadOnlyError,
    "LOADING": BusyLoadingError,
}


def refusal(error: ResponseError) -> RedisError:
    """Return an error of hiredis as redis-py's class for it where it says that the primary is
    another node, or is loading its data; else as it is."""
    word, _, rest = str(error).partition(" ")
    kind = _REFUSALS.get(word)
    return kind(rest) if kind else error


class Found(NamedTuple):
    """A primary, and whether another node is just about to replace it."""

    node: Node
    failing_over: bool = False


class Reach(NamedTuple):
    """How many Sentinels there are, and how many have answered the last question."""

    sentinels: int = 0
    reachable: int = 0


class Connected(Protocol):
    """A connection that `Primary` may cut off."""

    node: Node | None

    def cut_off(self) -> None:
        """Ends it, and with an error what waits for its answer."""


class Primary:
    """The node to connect to, which `ask` finds; it raises `RedisError` or OSError.

    `grace_s`: how long an earlier one may go on with what it was asked. `compare` returns the
    replication ids of an earlier and a later one, if the later one has all that the earlier one
    had. `reach` returns how many Sentinels there are and have answered.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[Found]],
        aclose: Callable[[], Awaitable[None]],
        *,
        grace_s: float,
        compare: Callable[[Node, Node], Coroutine[Any, Any, str]],
        reach: Callable[[], Reach] = Reach,
        hold_s: float = HOLD_S,
    ) -> None:
        self._hold_s = hold_s
        self.reach = reach
        self.failovers = 0
        """How often another node has become the primary."""
        self._compare = compare
        self._comparing: asyncio.Task[str] | None = None
        self._comparisons: set[asyncio.Task[str]] = set()
        self.latest: Node | None = None
        """The primary as last heard of, whether or not it can be reached."""
        self._ask = ask
        self._aclose = aclose
        self._grace_s = grace_s
        self.generation = 0
        """Grows when it may be another node, or the same one with another past."""
        self._known: Node | None = None
        self._asking: asyncio.Task[Node] | None = None
        self._cutting: asyncio.TimerHandle | None = None
        self._connections: weakref.WeakSet[Connected] = weakref.WeakSet()
        self._settled = asyncio.Event()
        self._settled.set()
        self._held_since = math.inf

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
            found = await self._ask()
        except (RedisError, OSError):
            self._hold(failing_over=False)  # no one is left to say when it is over
            await asyncio.sleep(ASK_PAUSE_S)
            raise
        self.moved(found.node)
        self._hold(failing_over=found.failing_over)
        return found.node

    def _hold(self, *, failing_over: bool) -> None:
        now = asyncio.get_running_loop().time()
        if not failing_over:
            self._held_since = math.inf
        elif self._held_since == math.inf:
            self._held_since = now
        if now - self._held_since >= self._hold_s or not failing_over:
            self._settled.set()
        else:
            self._settled.clear()

    async def settled(self, timeout_s: float) -> None:
        """Returns once no other node is about to replace the primary, which would lack what is
        still appended there. Raises `Unavailable` after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError:
            raise Unavailable("away", "a failover is in progress") from None

    async def aclose(self) -> None:
        """Ends what asks."""
        if self._cutting is not None:
            self._cutting.cancel()
        for comparing in self._comparisons:
            comparing.cancel()
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
        if self.latest is None:
            log.info("the primary is %s", node)
        elif node != self.latest:
            log.info("the primary is %s now; it was %s", node, self.latest)
            self.failovers += 1
            self._comparing = asyncio.create_task(self._compare(self.latest, node))
            self._comparisons.add(self._comparing)
            self._comparing.add_done_callback(self._comparisons.discard)
        self.latest = node
        if self._cutting is not None:
            self._cutting.cancel()
        loop = asyncio.get_running_loop()
        self._cutting = loop.call_later(self._grace_s, self._cut_off_others)

    async def spared(self) -> str:
        """The replication ids of the primary before this one and of this one, which it took over
        with, if it has all that the other had; else empty, also where that is not known. Raises as
        `where` does."""
        while True:
            await self.where()  # else it is found only by the connection that needs the answer
            comparing = self._comparing
            found = await asyncio.shield(comparing) if comparing is not None else ""
            if comparing is self._comparing:
                return found

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
