"""The connections to Redis: their number, their time limits, and what their errors mean.

Behind Sentinels and in a Cluster, all of them go where `primary` says.
"""

import asyncio
import contextlib
import logging
import math
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import redis.asyncio as aioredis
import redis.exceptions
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
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from logpipe.problems import BUSY, Unavailable
from logpipe.redis_address import RedisAddress
from logpipe.stream.direct import Direct
from logpipe.stream.disk import Disk, Room, Use, use_of
from logpipe.stream.failovers import Failovers, Topology, failovers_key, replication_id
from logpipe.stream.finding import primary_of
from logpipe.stream.following import (
    FollowingClient,
    FollowingConnection,
    FollowingTLSConnection,
)
from logpipe.stream.health import HeldUp, Kind, RedisHealth, Servers
from logpipe.stream.primary import Primary
from logpipe.stream.replicas import Replicas, in_sync

log = logging.getLogger("logpipe.redis")

CONNECT_TIMEOUT_S = 1.0
WRITE_TIMEOUT_S = 1.5
"""A POST is answered within two seconds, whatever Redis does."""
READ_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 80
"""Of each kind that requests share; a command that needs one more waits. More than
`groups.MAX_GROUPS`, each of which holds one to wait for entries, and the feed, which holds another.
"""
UPKEEP_CONNECTIONS = 4
"""For what the process does on its own account, one command after the other each: the monitor, the
trimmer and the measurements."""
CONNECTION_WAIT_S = 1.5
"""How long a command waits for a connection: as long as a write may wait for its answer."""
MONITOR_S = 1.0
"""Between two looks at a healthy Redis."""
TROUBLED_S = 0.2
"""Between two looks at one that is in trouble."""
ROOM_AGAIN = 0.05
"""The part of its memory that a full Redis must have free to be no longer full."""
WATCH_S = 0.2
"""Between two looks for another primary. One that is frozen, or not told yet of its successor,
gives no reason to look; the latter even acknowledges what will be lost."""
AUTH_RETRY_S = 5.0
"""After a refused password or user: trying on at once would only fill Redis' log."""


class Memory(NamedTuple):
    """Bytes that Redis uses, and may use (0: no limit); NaN where it does not say."""

    used: float = math.nan
    limit: float = math.nan


class Keeping(NamedTuple):
    """Whether Redis may evict keys without an expiry, as the stream is, and whether it has an
    append-only file: 1 or 0, NaN where it does not say."""

    evicts: float = math.nan
    append_only: float = math.nan


class Connections:
    """The connections to one Redis, apart by use: none waits for another's time limit, and what
    requests do takes none from appends and from the monitor.

    `trouble` may say why an embedded engine is down, in better words than the connection's error;
    `disk` is the one that Redis writes to, where it is known;
    `count_limited` counts how often a limit was hit; `check_s` is what the monitor leaves Redis for
    an answer.
    """

    def __init__(
        self,
        address: RedisAddress,
        key: str,
        block_ms: int,
        ack_replicas: int,
        trouble: Callable[[], str | None],
        count_limited: Callable[[Mapping[str, int]], None],
        disk: Disk | None = None,
        check_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.health = RedisHealth(str(address))
        self.primary = primary = primary_of(address, key)
        topology: Topology = "one"
        if primary is not None:
            topology = "sentinel" if address.sentinels else "cluster"
        self.failovers = known = Failovers(key, topology)
        self.appending = Direct(address, CONNECT_TIMEOUT_S, WRITE_TIMEOUT_S, primary, known)
        self.appending_many = Direct(address, CONNECT_TIMEOUT_S, READ_TIMEOUT_S, primary, known)
        """For appends of many events: Redis goes on with one whose request has ended, so the
        next must not begin before."""
        self.writing = client(address, WRITE_TIMEOUT_S, primary, known)
        self.blocking = client(address, block_ms / 1000 + READ_TIMEOUT_S, primary, known)
        self.reading = client(address, READ_TIMEOUT_S, primary, known)
        self.upkeep = client(address, check_s, primary, known, UPKEEP_CONNECTIONS)
        self.held_up = HeldUp()
        self.replicas = Replicas(ack_replicas) if ack_replicas else None
        self.memory = Memory()
        """As of the monitor's last look; so is `keeping`."""
        self.keeping = Keeping()
        self._clock_ahead_s = math.nan
        """What `time.monotonic` is behind the clock of Redis, as of the monitor's last look."""
        self._key = key
        self.no_room = ""
        """Why nothing may be appended though Redis would take it; empty where it may."""
        self._disk = disk
        self._trouble = trouble
        self._count_limited = count_limited
        self._check_s = check_s

    @property
    def now_ms(self) -> int:
        """As `Stream.now_ms`."""
        if math.isnan(self._clock_ahead_s):
            return time.time_ns() // 1_000_000
        return int((time.monotonic() + self._clock_ahead_s) * 1000)

    async def aclose(self) -> None:
        """Closes them all; one that does not close in time keeps none of the others open."""
        for client in (
            *(self.appending, self.appending_many),
            *(self.writing, self.blocking, self.reading, self.upkeep),
        ):
            with contextlib.suppress(RedisError, OSError):
                await client.aclose()
        if self.primary is not None:
            await self.primary.aclose()

    async def monitor(self) -> None:
        """Looks at Redis for ever, so that `health` is true also when nothing is sent."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.held_up.measure())
            tasks.create_task(self._monitor())
            if self.primary is not None:
                tasks.create_task(self._watch(self.primary))

    async def _watch(self, primary: Primary) -> None:
        """Looks for another primary, for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            with contextlib.suppress(RedisError, OSError):
                await primary.look()
            self._look_at_servers(self.health.servers.replicas_in_sync)

    def _look_at_servers(self, replicas_in_sync: int | None) -> None:
        found = Servers(replicas_in_sync=replicas_in_sync)
        if (primary := self.primary) is not None:
            found = found._replace(
                primary=str(primary.latest or ""),
                failovers=primary.failovers,
                sentinels=primary.reach().sentinels,
                sentinels_reachable=primary.reach().reachable,
            )
        self.health.report_servers(found)

    def _in_sync(self, info: Any) -> int | None:
        """How many replicas are; None where that is not known, or none is expected."""
        if isinstance(info, Exception):
            return None
        expected = self.primary is not None or self.replicas is not None
        return in_sync(info) or (0 if expected else None)

    async def _monitor(self) -> None:
        silent_s = 0.0
        while True:
            watch = _Stopwatch(self.held_up)
            try:
                await self.check()
            except Unavailable as error:
                # One check that this process delayed proves nothing; several count once Redis had
                # as long as one check in all.
                silent_s = silent_s + watch.turned_s if error.kind == BUSY else 0.0
                if silent_s >= self._check_s:
                    self.health.report("away", NO_ANSWER)
                await asyncio.sleep(AUTH_RETRY_S if self.health.kind == "auth" else TROUBLED_S)
            else:
                silent_s = 0.0
                await asyncio.sleep(MONITOR_S)

    async def check(self) -> None:
        """Raises `Unavailable` when Redis cannot do what logpipe needs; sets `health`."""
        failures = self.health.failures
        try:
            info = await self._ask()
            if self.health.failures > failures:
                # Redis may have answered before it was lost, and the loss have been reported first.
                info = await self._ask()
        except Unavailable as error:
            if error.kind != BUSY:
                self._look_at_servers(None)
            raise
        # A user that may not call INFO can still use the stream.
        self.memory = Memory() if isinstance(info, Exception) else _memory_in(info)
        self.keeping = Keeping() if isinstance(info, Exception) else _keeping_in(info)
        self._look_at_servers(self._in_sync(info))
        self._clock_ahead_s = math.nan if isinstance(info, Exception) else _clock_ahead_in(info)
        trouble = None if isinstance(info, Exception) else self._trouble_in(info)
        if not isinstance(info, Exception) and self._disk is not None:
            await self._look_at(self._disk, use_of(info))
            trouble = trouble or (("disk", self.no_room) if self.no_room else None)
        self.health.report(*(trouble or ("ok",)))
        if trouble:
            raise self.health.unavailable()

    async def _ask(self) -> Any:
        """The answer to INFO, which may be an error. Raises `Unavailable`."""
        async with self.translated(trying=True):
            async with self.upkeep.pipeline(transaction=False) as pipe:
                pipe.type(self._key)
                pipe.ping()
                pipe.info("memory", "replication", "persistence", "server")
                pipe.lrange(failovers_key(self._key), 0, -1)
                kind, pong, info, ends = await pipe.execute(raise_on_error=False)
            for answer in (pong, kind):
                if isinstance(answer, Exception):
                    raise answer
            if kind not in (b"stream", b"none"):
                raise ResponseError("WRONGTYPE")
            if not isinstance(ends, Exception):  # a user that may not read them can use one server
                self.failovers.heard(ends)
            return info

    async def _look_at(self, disk: Disk, use: Use) -> None:
        """Finds out whether the disk has room; has Redis rewrite its file where that gives some.
        Raises `Unavailable`."""
        if disk.as_commands:
            async with self.translated():
                use = use._replace(entries=await self.upkeep.xlen(self._key))
        room = Room()
        with contextlib.suppress(OSError):  # the folder is gone: the engine's own error says it
            room = disk.look(use)
        self.no_room = room.trouble
        if room.rewrite:
            log.warning(
                "%s; the append-only file is rewritten, which gives some back", self.no_room
            )
            async with self.translated():
                with contextlib.suppress(ResponseError):  # another process may have asked before
                    await self.upkeep.bgrewriteaof()

    def _trouble_in(self, info: dict[str, Any]) -> tuple[Kind, str] | None:
        trouble = _trouble_in(info, self.health.kind)
        if trouble is None and self.replicas and (missing := self.replicas.missing(info)):
            return "replicas", missing
        return trouble

    @asynccontextmanager
    async def translated(self, *, trying: bool = False) -> AsyncIterator[None]:
        """Turns every error of Redis into `Unavailable` and takes note of it.

        Where this process has no connection left, or was held up for most of the time that the
        command had, the error is `BUSY` and no state of Redis. While the login is refused nothing
        is sent at all, except by the monitor.
        """
        if self.health.kind == "auth" and not trying:
            raise self.health.unavailable()
        watch = _Stopwatch(self.held_up)
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            try:
                yield
            finally:
                # Python 3.11's `wait_for`, by which redis-py sends, may swallow a cancellation:
                # then an endless loop would never end, nor the process that waits for it.
                swallowed = task is not None and task.cancelling() > cancelled
                task = None  # it keeps the exception that ends it, which refers to this frame
                if swallowed:
                    raise asyncio.CancelledError
        except (RedisError, OSError, TimeoutError) as error:
            if str(error).startswith("NOGROUP"):
                raise NoGroupError(str(error)) from None
            if why := self._busy(error, watch):
                raise Unavailable(BUSY, why) from error
            self.health.report(*self._diagnose(error))
            raise self.health.unavailable() from error

    def _busy(self, error: Exception, watch: "_Stopwatch") -> str:
        """Why this process's own load is to blame for an error; empty where it is not."""
        if str(error) == _NO_CONNECTION_LEFT:
            self._count_limited({"redis_connections": 1})
            return "all connections of this process to Redis are in use"
        if watch.held_s > watch.turned_s and _timed_out(error):
            return "this process did not come to read the answer of Redis in time"
        return ""

    def _diagnose(self, error: Exception) -> tuple[Kind, str]:
        """The state that an error means, and a sentence that anyone may read."""
        while isinstance(error.__cause__, RedisError):
            error = error.__cause__  # of a greeting over a unix socket redis-py tells only that
        known = next((row[1:] for row in _BY_CLASS if isinstance(error, row[0])), None)
        known = known or _BY_WORD.get(str(error).removeprefix("ERR ").partition(" ")[0])
        if known is None and isinstance(error, ResponseError):
            # Of a command that it does not know Redis repeats the arguments: passwords, events.
            said, _, _ = str(error).partition(", with args beginning with")
            known = ("error", " ".join(said.split()))
        if known is not None:
            kind, detail = known
            return kind, detail.replace("{key}", self._key)
        if trouble := self._trouble():
            return "away", trouble
        if tls := _tls_trouble(error):
            return "away", tls
        if isinstance(error, _TIMEOUTS):
            return "away", NO_ANSWER
        return "away", "cannot be reached"


class _Stopwatch:
    """The time since it was made, and how much of it the event loop turned."""

    def __init__(self, held_up: HeldUp) -> None:
        self._held_up = held_up
        self._began = time.monotonic()
        self._held_before = held_up.seconds

    @property
    def held_s(self) -> float:
        return self._held_up.seconds - self._held_before

    @property
    def turned_s(self) -> float:
        return time.monotonic() - self._began - self.held_s


def _timed_out(error: BaseException | None) -> bool:
    """Whether a time limit is what an error goes back to."""
    while error is not None and not isinstance(error, _TIMEOUTS):
        error = error.__cause__
    return error is not None


class NoGroupError(Exception):
    """The consumer group is gone, as it is after a flush."""


NO_ANSWER = "no answer"

_NO_CONNECTION_LEFT = "No connection available."
"""What redis-py's pool says, in a plain `ConnectionError`, once the wait for a connection is over.
"""

_TIMEOUTS = (TimeoutError, redis.exceptions.TimeoutError)

_BY_CLASS: tuple[tuple[type[Exception], Kind, str], ...] = (
    (AuthenticationError, "auth", "the user or password is refused"),
    (NoPermissionError, "auth", "the user may not use the stream's commands"),
    (BusyLoadingError, "away", "loading its data"),
    (OutOfMemoryError, "full", "out of memory (maxmemory)"),
    (ReadOnlyError, "read-only", "a read-only replica"),
    (ClusterDownError, "away", "the Cluster does not serve the stream's slot (CLUSTERDOWN)"),
    (AskError, "away", "the stream's slot is on its way to another node"),
    (TryAgainError, "away", "the stream's slot is on its way to another node"),
    (InvalidResponse, "away", "what answers there is no Redis"),
)
_BY_WORD: dict[str, tuple[Kind, str]] = {
    "WRONGTYPE": ("wrong-type", "the key {key} is not a stream"),
    "MISCONF": ("disk", "cannot write to its disk (MISCONF)"),
    "OOM": ("full", "out of memory (maxmemory)"),
    "READONLY": ("read-only", "a read-only replica"),
    "NOAUTH": ("auth", "a password is wanted"),
    "WRONGPASS": ("auth", "the user or password is refused"),
    "ACL": ("auth", "the user may not use the stream's commands"),
    "LOADING": ("away", "loading its data"),
    "NOPERM": ("auth", "the user may not use the stream's commands"),
    "max": ("clients", "no connection left (maxclients)"),
    "NOREPLICAS": ("read-only", "too few replicas to write (NOREPLICAS)"),
}
"""By the first word of an error that redis-py gives no class of its own."""


def _tls_trouble(error: BaseException | None) -> str | None:
    """What is wrong with the encryption, where that is what an error goes back to."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "TLS fails; is it a rediss:// port?"
    return None


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
        "redis_connect_func": partial(_meet, failovers),
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


async def _meet(failovers: Failovers, connection: AbstractConnection) -> None:
    """Begins a connection, and notices a primary with another past.

    Raises `ReadOnlyError` where a primary was expected: one that Sentinels have made a replica
    lacks the end of its stream, and not even the ids there say so.
    """
    await connection.on_connect_check_health(check_health=False)
    await connection.send_command("INFO", "replication")
    info = b""
    with contextlib.suppress(ResponseError):  # a user that may not call it can use the stream
        info = await connection.read_response()
    failovers.met(replication_id(info))
    if failovers.topology == "sentinel" and b"\r\nrole:slave\r\n" in info:
        raise ReadOnlyError("a replica, not the primary")


def _memory_in(info: dict[str, Any]) -> Memory:
    return Memory(info.get("used_memory", math.nan), info.get("maxmemory", math.nan))


def _keeping_in(info: dict[str, Any]) -> Keeping:
    policy = info.get("maxmemory_policy")
    evicts = math.nan if policy is None else float(str(policy).startswith("allkeys"))
    return Keeping(evicts, float(info.get("aof_enabled", math.nan)))


def _clock_ahead_in(info: dict[str, Any]) -> float:
    """What `time.monotonic` is behind the clock of Redis, late by the way of the answer."""
    return float(info.get("server_time_usec", math.nan)) / 1_000_000 - time.monotonic()


def _trouble_in(info: dict[str, Any], before: Kind) -> tuple[Kind, str] | None:
    """What INFO says that would make the next append fail.

    Once full, Redis is taken for full until it has some room: else the state would change with
    every event that just fits.
    """
    if info.get("loading"):
        return "away", "loading its data"
    limit = info.get("maxmemory", 0)
    counted = info.get("used_memory", 0) - info.get("mem_not_counted_for_evict", 0)
    bound = limit * (1 - ROOM_AGAIN) if before == "full" else limit
    if limit and counted > bound and info.get("maxmemory_policy") == "noeviction":
        return "full", f"out of memory: {counted} of {limit} bytes (maxmemory)"
    if info.get("role") == "slave" and info.get("slave_read_only"):
        return "read-only", "a read-only replica"
    if info.get("aof_last_write_status") == "err":
        return "disk", "cannot write its append-only file"
    return None
