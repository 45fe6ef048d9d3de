"""The connections to Redis: their time limits, and what their errors mean.

Sentinel and Cluster will enter here, by `_client`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.connection import (
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from logpipe.problems import Unavailable
from logpipe.settings import RedisAddress
from logpipe.stream.health import Kind, RedisHealth

CONNECT_TIMEOUT_S = 1.0
WRITE_TIMEOUT_S = 1.5
"""A POST is answered within two seconds, whatever Redis does."""
READ_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 80
"""Of each of the three kinds; who needs one more waits for one of these. More than the groups
that a process reads at the most, each of which holds one."""
MONITOR_S = 1.0
"""Between two looks at a healthy Redis."""
TROUBLED_S = 0.2
"""Between two looks at one that is in trouble."""
AUTH_RETRY_S = 5.0
"""After a refused password or user: trying on at once would only fill Redis' log."""


class Connections:
    """The connections to one Redis, apart by use, so that none waits for another's time limit.

    `trouble` may say why an embedded engine is down, in better words than the connection's error.
    """

    def __init__(
        self, address: RedisAddress, key: str, block_ms: int, trouble: Callable[[], str | None]
    ) -> None:
        self.health = RedisHealth()
        self.writing = _client(address, WRITE_TIMEOUT_S)
        self.blocking = _client(address, block_ms / 1000 + READ_TIMEOUT_S)
        self.reading = _client(address, READ_TIMEOUT_S)
        self._key = key
        self._where = str(address)
        self._trouble = trouble

    async def aclose(self) -> None:
        """Closes them all."""
        for client in (self.writing, self.blocking, self.reading):
            await client.aclose()

    async def monitor(self) -> None:
        """Looks at Redis for ever, so that `health` is true also when nothing is sent."""
        while True:
            try:
                await self.check()
            except Unavailable:
                await asyncio.sleep(AUTH_RETRY_S if self.health.kind == "auth" else TROUBLED_S)
            else:
                await asyncio.sleep(MONITOR_S)

    async def check(self) -> None:
        """Raises `Unavailable` when Redis cannot do what logpipe needs; sets `health`."""
        async with self.translated(trying=True):
            async with self.reading.pipeline(transaction=False) as pipe:
                pipe.ping()
                pipe.type(self._key)
                pipe.info("memory", "replication", "persistence")
                pong, kind, info = await pipe.execute(raise_on_error=False)
            if isinstance(pong, Exception):
                raise pong
            if kind not in (b"stream", b"none"):
                raise ResponseError("WRONGTYPE")
        # A user that may not call INFO can still use the stream.
        trouble = None if isinstance(info, Exception) else _trouble_in(info)
        self.health.report(*(trouble or ("ok",)))
        if trouble:
            raise self.health.unavailable()

    @asynccontextmanager
    async def translated(self, *, trying: bool = False) -> AsyncIterator[None]:
        """Turns every error of Redis into `Unavailable` and takes note of it.

        While the login is refused nothing is sent at all, except by the monitor.
        """
        if self.health.kind == "auth" and not trying:
            raise self.health.unavailable()
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            if str(error).startswith("NOGROUP"):
                raise NoGroupError(str(error)) from None
            self.health.report(*self._diagnose(error))
            raise self.health.unavailable() from error

    def _diagnose(self, error: Exception) -> tuple[Kind, str]:
        """The state that an error means, and a sentence without secrets."""
        word = str(error).partition(" ")[0]
        known = next((row for row in _BY_CLASS if isinstance(error, row[0])), None)
        if known is None and isinstance(error, ResponseError):
            known = (ResponseError, *_BY_WORD.get(word, ("error", str(error))))
        if known is not None:
            _, kind, detail = known
            return kind, detail.replace("{where}", self._where).replace("{key}", self._key)
        if trouble := self._trouble():
            return "away", trouble
        if isinstance(error, TimeoutError):
            return "away", f"no answer from {self._where}"
        return "away", f"cannot be reached at {self._where}"


class NoGroupError(Exception):
    """The consumer group is gone, as it is after a flush."""


_BY_CLASS: tuple[tuple[type[Exception], Kind, str], ...] = (
    (AuthenticationError, "auth", "the user or password is refused by {where}"),
    (NoPermissionError, "auth", "the user of {where} may not use the stream's commands"),
    (BusyLoadingError, "away", "loading its data at {where}"),
    (MaxConnectionsError, "clients", "{where} has no connection left (maxclients)"),
    (OutOfMemoryError, "full", "out of memory (maxmemory) at {where}"),
    (ReadOnlyError, "read-only", "{where} is a read-only replica"),
)
_BY_WORD: dict[str, tuple[Kind, str]] = {
    "WRONGTYPE": ("wrong-type", "the key {key} at {where} is not a stream"),
    "MISCONF": ("disk", "{where} cannot write to its disk (MISCONF)"),
    "OOM": ("full", "out of memory (maxmemory) at {where}"),
    "READONLY": ("read-only", "{where} is a read-only replica"),
    "NOAUTH": ("auth", "{where} wants a password"),
    "WRONGPASS": ("auth", "the user or password is refused by {where}"),
    "NOREPLICAS": ("read-only", "{where} has too few replicas to write (NOREPLICAS)"),
}
"""By the first word of an error that redis-py gives no class of its own."""


def _client(address: RedisAddress, timeout_s: float) -> aioredis.Redis:
    """A client that never repeats a command by itself: a repeated XADD would double an event.

    RESP2, because redis-py 8.1 does not notice closed idle connections over RESP3.
    """
    common: dict[str, Any] = {
        "max_connections": MAX_CONNECTIONS,
        "timeout": timeout_s,
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "client_name": "logpipe",
    }
    if address.socket:
        pool = BlockingConnectionPool(
            connection_class=UnixDomainSocketConnection, path=address.socket, **common
        )
    else:
        pool = BlockingConnectionPool(
            connection_class=SSLConnection if address.tls else Connection,
            host=address.host,
            port=address.port,
            socket_keepalive=True,
            **common,
        )
    return aioredis.Redis.from_pool(pool)


def _trouble_in(info: dict[str, Any]) -> tuple[Kind, str] | None:
    """What INFO says that would make the next append fail."""
    if info.get("loading"):
        return "away", "loading its data"
    limit = info.get("maxmemory", 0)
    counted = info.get("used_memory", 0) - info.get("mem_not_counted_for_evict", 0)
    if limit and counted > limit and info.get("maxmemory_policy") == "noeviction":
        return "full", f"out of memory: {counted} of {limit} bytes (maxmemory)"
    if info.get("role") == "slave" and info.get("slave_read_only"):
        return "read-only", "a read-only replica"
    if info.get("aof_last_write_status") == "err":
        return "disk", "cannot write its append-only file"
    return None
