"""The monitor: looks at Redis, so that its health is known also when nothing is sent."""

import asyncio
import contextlib
import logging
import math
import time
from typing import Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from logpipe.problems import BUSY, Unavailable
from logpipe.stream.connections import Connections
from logpipe.stream.disk import Disk, Room, Use, use_of
from logpipe.stream.errors import NO_ANSWER, Stopwatch
from logpipe.stream.failovers import failovers_key
from logpipe.stream.health import Kind, Servers
from logpipe.stream.primary import Primary
from logpipe.stream.replicas import in_sync

log = logging.getLogger("logpipe.redis")

ROOM_AGAIN = 0.05
"""The part of its memory that a full Redis must have free to be no longer full."""


class Intervals(NamedTuple):
    """Seconds between two looks at Redis."""

    healthy_s: float = 1.0
    troubled_s: float = 0.2
    refused_s: float = 5.0
    """After a refused password or user: to go on trying would only fill the log of Redis."""
    primary_s: float = 0.2
    """Between two looks for another primary. One that is frozen, or does not know of its successor
    yet, gives no reason to look; the latter even acknowledges what will be lost."""


INTERVALS = Intervals()


class Memory(NamedTuple):
    """Bytes that Redis uses, and may use (0: no limit); NaN where it does not say."""

    used: float = math.nan
    limit: float = math.nan


class Keeping(NamedTuple):
    """Whether Redis may evict keys without an expiry, as the stream is, and whether it has an
    append-only file: 1 or 0, NaN where it does not say."""

    evicts: float = math.nan
    append_only: float = math.nan


class Monitor:
    """Looks at one Redis and reports what it finds to `connections.health`.

    `disk` is the one that Redis writes to, where it is known; Redis has `check_s` for an answer.
    """

    def __init__(
        self,
        connections: Connections,
        key: str,
        *,
        check_s: float,
        disk: Disk | None = None,
        intervals: Intervals | None = None,
    ) -> None:
        self._redis = connections
        self._key = key
        self._check_s = check_s
        self._disk = disk
        self._intervals = intervals or INTERVALS
        self.memory = Memory()
        """As of the last look; so is `keeping`."""
        self.keeping = Keeping()
        self.no_room = ""
        """Why nothing may be appended though Redis would take it; empty where it may."""
        self._clock_ahead_s = math.nan
        """What `time.monotonic` is behind the clock of Redis, as of the last look."""

    @property
    def now_ms(self) -> int:
        """As `Stream.now_ms`."""
        if math.isnan(self._clock_ahead_s):
            return time.time_ns() // 1_000_000
        return int((time.monotonic() + self._clock_ahead_s) * 1000)

    async def run(self) -> None:
        """Look at Redis without an end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._redis.held_up.measure())
            tasks.create_task(self._look_again_and_again())
            if self._redis.primary is not None:
                tasks.create_task(self._watch(self._redis.primary))

    async def _watch(self, primary: Primary) -> None:
        """Look for another primary until cancelled."""
        while True:
            await asyncio.sleep(self._intervals.primary_s)
            with contextlib.suppress(RedisError, OSError):
                await primary.look()
            self._look_at_servers(self._redis.health.servers.replicas_in_sync)

    def _look_at_servers(self, replicas_in_sync: int | None) -> None:
        found = Servers(replicas_in_sync=replicas_in_sync)
        if (primary := self._redis.primary) is not None:
            found = found._replace(
                primary=str(primary.latest or ""),
                failovers=primary.failovers,
                sentinels=primary.reach().sentinels,
                sentinels_reachable=primary.reach().reachable,
            )
        self._redis.health.report_servers(found)

    def _in_sync(self, info: Any) -> int | None:
        """How many replicas are; None where that is not known, or none is expected."""
        if isinstance(info, Exception):
            return None
        expected = self._redis.primary is not None or self._redis.replicas is not None
        return in_sync(info) or (0 if expected else None)

    async def _look_again_and_again(self) -> None:
        silent_s = 0.0
        while True:
            watch = Stopwatch(self._redis.held_up)
            try:
                await self.check()
            except Unavailable as error:
                # One check that this process delayed proves nothing; several count once Redis had
                # as long as one check in all.
                silent_s = silent_s + watch.turned_s if error.kind == BUSY else 0.0
                if silent_s >= self._check_s:
                    self._redis.health.report("away", NO_ANSWER)
                refused = self._redis.health.kind == "auth"
                intervals = self._intervals
                await asyncio.sleep(intervals.refused_s if refused else intervals.troubled_s)
            else:
                silent_s = 0.0
                await asyncio.sleep(self._intervals.healthy_s)

    async def check(self) -> None:
        """Raises `Unavailable` when Redis cannot do what logpipe needs; sets `health`."""
        failures = self._redis.health.failures
        try:
            info = await self._ask()
            if self._redis.health.failures > failures:
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
        self._redis.health.report(*(trouble or ("ok",)))
        if trouble:
            raise self._redis.health.unavailable()

    async def _ask(self) -> Any:
        """The answer to INFO, which may be an error. Raises `Unavailable`."""
        async with self._redis.translated(trying=True):
            async with self._redis.upkeep.pipeline(transaction=False) as pipe:
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
                self._redis.failovers.heard(ends)
            return info

    async def _look_at(self, disk: Disk, use: Use) -> None:
        """Finds out whether the disk has room; has Redis rewrite its file where that gives some.
        Raises `Unavailable`."""
        if disk.as_commands:
            async with self._redis.translated():
                use = use._replace(entries=await self._redis.upkeep.xlen(self._key))
        room = Room()
        with contextlib.suppress(OSError):  # the folder is gone: the engine's own error says it
            room = disk.look(use)
        self.no_room = room.trouble
        if room.rewrite:
            log.warning(
                "%s; the append-only file is rewritten, which gives some back", self.no_room
            )
            async with self._redis.translated():
                with contextlib.suppress(ResponseError):  # another process may have asked before
                    await self._redis.upkeep.bgrewriteaof()

    def _trouble_in(self, info: dict[str, Any]) -> tuple[Kind, str] | None:
        trouble = _trouble_in(info, self._redis.health.kind)
        replicas = self._redis.replicas
        if trouble is None and replicas and (missing := replicas.missing(info)):
            return "replicas", missing
        return trouble


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
