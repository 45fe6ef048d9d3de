"""The connections to Redis: their kinds, numbers and time limits.

Behind Sentinels and in a Cluster, all of them go where `primary` says.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.connection import (
    AbstractConnection,
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from logpipe.redis_address import RedisAddress
from logpipe.stream.errors import Translator
from logpipe.stream.failovers import Failovers, Topology, replication_id
from logpipe.stream.finding import primary_of
from logpipe.stream.following import (
    FollowingClient,
    FollowingConnection,
    FollowingTLSConnection,
)
from logpipe.stream.health import HeldUp, RedisHealth
from logpipe.stream.pool import (
    CONNECTION_WAIT_S,
    MAX_CONNECTIONS,
    Pool,
    PooledConnection,
)
from logpipe.stream.primary import Primary
from logpipe.stream.replicas import Replicas

log = logging.getLogger("logpipe.redis")

CONNECT_TIMEOUT_S = 1.0
WRITE_TIMEOUT_S = 1.5
"""A POST is answered within two seconds, whatever Redis does."""
READ_TIMEOUT_S = 5.0
UPKEEP_CONNECTIONS = 4
"""For what the process does on its own account, one command after the other each: the monitor, the
trimmer and the measurements."""


class Connections:
    """The connections to one Redis, apart by use: none waits for another's time limit, and what
    requests do takes none from appends and from the monitor.

    `trouble` and `count_limited` are as in `Translator`; `check_s` is how long Redis has for an
    answer to what the process asks on its own account.
    """

    def __init__(
        self,
        address: RedisAddress,
        key: str,
        block_ms: int,
        ack_replicas: int,
        trouble: Callable[[], str | None],
        count_limited: Callable[[Mapping[str, int]], None],
        check_s: float,
    ) -> None:
        self.health = RedisHealth(str(address))
        self.primary = primary = primary_of(address, key)
        topology: Topology = "one"
        if primary is not None:
            topology = "sentinel" if address.sentinels else "cluster"
        self.failovers = known = Failovers(key, topology)
        append = partial(Pool, address, CONNECT_TIMEOUT_S, greet=self._greet_to_append, holds=True)
        read = partial(
            Pool,
            address,
            CONNECT_TIMEOUT_S,
            greet=self._greet_to_read,
            login_s=READ_TIMEOUT_S,
        )
        self.appending = append(WRITE_TIMEOUT_S, primary)
        self.appending_many = append(READ_TIMEOUT_S, primary)
        """For appends of many events: Redis goes on with one whose request has ended, so the
        next must not begin before."""
        self.reading = read(READ_TIMEOUT_S, primary)
        self.blocking = read(block_ms / 1000 + READ_TIMEOUT_S, primary)
        self.writing = client(address, WRITE_TIMEOUT_S, primary, known)
        self.upkeep = client(address, check_s, primary, known, UPKEEP_CONNECTIONS)
        self.held_up = HeldUp()
        self.translated = Translator(
            self.health, self.held_up, key, trouble, count_limited
        ).translated
        self.replicas = Replicas(ack_replicas) if ack_replicas else None

    async def aclose(self) -> None:
        """Closes them all; one that does not close in time keeps none of the others open."""
        pools = (self.appending, self.appending_many, self.reading, self.blocking)
        for client in (*pools, self.writing, self.upkeep):
            with contextlib.suppress(RedisError, OSError):
                await client.aclose()
        if self.primary is not None:
            await self.primary.aclose()

    async def _greet_to_append(self, connection: PooledConnection, answer_s: float) -> None:
        """Record a loss of the stream's end before anything is appended after it."""
        if self.primary is not None:
            self.failovers.spared = await self.primary.spared()
        answer = await connection.ask(self.failovers.command, answer_s)
        self.failovers.noted(answer)

    async def _greet_to_read(self, connection: PooledConnection, answer_s: float) -> None:
        answer = await connection.ask(_REPLICATION, answer_s)
        _meet(self.failovers, answer)


def client(
    address: RedisAddress,
    timeout_s: float,
    primary: Primary | None,
    failovers: Failovers,
    connections: int = MAX_CONNECTIONS,
) -> aioredis.Redis:
    """A client that never repeats a command by itself: a repeated XADD would double an event.

    RESP2, because redis-py 8.1 does not notice closed idle connections over RESP3.
    """
    common: dict[str, Any] = {
        "max_connections": connections,
        "timeout": CONNECTION_WAIT_S,
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "client_name": "logpipe",
        "redis_connect_func": partial(_greet, failovers),
    }
    if address.authority:
        common["ssl_ca_certs"] = address.authority
    if primary is not None:
        return FollowingClient.of(
            primary,
            BlockingConnectionPool(
                connection_class=FollowingTLSConnection if address.tls else FollowingConnection,
                primary=primary,
                socket_keepalive=True,
                **common,
            ),
        )
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


_REPLICATION = ("INFO", "replication")


async def _greet(failovers: Failovers, connection: AbstractConnection) -> None:
    """Begin a connection of redis-py."""
    await connection.on_connect_check_health(check_health=False)
    await connection.send_command(*_REPLICATION)
    try:
        answer = await connection.read_response()
    except ResponseError as error:
        answer = error
    _meet(failovers, answer)


def _meet(failovers: Failovers, answer: Any) -> None:
    """Take the answer to `_REPLICATION` of a new connection; notice a primary with another past.

    Raises `ReadOnlyError` where a primary was expected: one that Sentinels have made a replica
    lacks the end of its stream, and not even the ids there say so.
    """
    info = b"" if isinstance(answer, ResponseError) else answer  # a user that may not call it
    failovers.met(replication_id(info))
    if failovers.topology == "sentinel" and b"\r\nrole:slave\r\n" in info:
        raise ReadOnlyError("a replica, not the primary")
