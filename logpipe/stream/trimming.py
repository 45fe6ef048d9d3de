"""Trimming beyond what an append does: by the stream's bytes and by its entries' age.

Also while Redis is full, when appends, which trim by the number of entries, are refused.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoPermissionError, ResponseError

from logpipe.ids import from_wire
from logpipe.stream.connections import Connections
from logpipe.stream.monitor import Memory

log = logging.getLogger("logpipe")

SIZE_NODES = 100_000
"""Nodes of the stream whose size is asked for, from its front: all, unless it has more. 60 ns each
(measured); a node holds 4 KiB of small entries, or one large one."""

FRONT_ENTRIES = 10
"""The oldest entries that are looked at, to know how many to trim."""

PLACES = 8
"""Where between the oldest and the newest entry some are looked at, for an estimate."""

ENTRY_BYTES = 20
"""What an entry takes besides its event, about (measured)."""

AT_ONCE = 10_000
"""Entries that one call trims: some milliseconds of Redis."""


class Size(NamedTuple):
    """Of a stream: its bytes, its entries, and the bytes of one of the oldest."""

    bytes: float
    entries: int
    oldest: float


class StreamTrimming:
    """What trims one stream."""

    def __init__(self, redis: Connections, key: str) -> None:
        self._redis = redis
        self._key = key
        self._estimates = False

    async def size(self) -> Size:
        """As of now; estimated from some entries where this user may not ask for MEMORY USAGE."""
        async with self._redis.translated():
            async with self._redis.upkeep.pipeline(transaction=False) as pipe:
                pipe.xlen(self._key)
                pipe.xrange(self._key, "-", "+", FRONT_ENTRIES)
                pipe.memory_usage(self._key, samples=SIZE_NODES)
                entries, front, size = await pipe.execute(raise_on_error=False)
            for answer in (entries, front):
                if isinstance(answer, Exception):
                    raise answer
            oldest = _mean(front)
            if isinstance(size, ResponseError):
                self._say_once(size)
                size = entries * await self._mean_of_all(front)
        return Size(size or 0, entries, oldest)

    def _say_once(self, error: ResponseError) -> None:
        if not self._estimates:
            self._estimates = True
            why = "may not" if isinstance(error, NoPermissionError) else "cannot"
            log.warning("this user %s ask for MEMORY USAGE: the stream's size is estimated", why)

    async def _mean_of_all(self, front: Sequence[Any]) -> float:
        """The mean size of an entry, of some that are spread over the time of the stream."""
        if not front:
            return 0.0
        first = from_wire(front[0][0]).ms
        async with self._redis.upkeep.pipeline(transaction=False) as pipe:
            pipe.xrevrange(self._key, "+", "-", FRONT_ENTRIES)
            (newest,) = await pipe.execute()
            if not newest:
                return _mean(front)  # flushed meanwhile
            step = (from_wire(newest[0][0]).ms - first) / (PLACES + 1)
            for place in range(1, PLACES + 1):
                pipe.xrange(self._key, str(int(first + place * step)), "+", FRONT_ENTRIES)
            between = await pipe.execute()
        return _mean([*front, *newest, *(entry for some in between for entry in some)])

    async def memory(self) -> Memory:
        """The memory of Redis as of now; NaN where this user may not call INFO."""
        async with self._redis.translated():
            try:
                return _counted(await self._redis.upkeep.info("memory"))
            except ResponseError:
                return Memory()

    async def keep_newest(self, entries: int, at_most: int) -> int:
        """Trims the oldest entries up to so many, whole nodes only; how many went."""
        return await self._trim("MAXLEN", "~", max(0, entries), "LIMIT", at_most)

    async def drop_older(self, age_ms: int) -> int:
        """Trims entries older than this, by the clock of Redis, which made their ids; how many
        went. No more at a time than Redis has done in some milliseconds."""
        async with self._redis.translated():
            try:
                seconds, micros = await self._redis.upkeep.time()
                now_ms = seconds * 1000 + micros // 1000
            except NoPermissionError:
                now_ms = time.time_ns() // 1_000_000
        least = max(0, now_ms - age_ms)
        gone = await self._trim("MINID", "~", least, "LIMIT", AT_ONCE)
        # A node goes when its newest entry is old enough; where few events come, that takes long.
        return gone or await self._trim("MINID", "=", least)

    async def _trim(self, *how: str | int) -> int:
        async with self._redis.translated():
            redis: Any = self._redis.upkeep
            return int(await redis.execute_command("XTRIM", self._key, *how))


def _counted(info: Mapping[str, Any]) -> Memory:
    """The memory in an answer to INFO, as Redis compares it with its limit."""
    used = info.get("used_memory", math.nan) - info.get("mem_not_counted_for_evict", 0)
    return Memory(used, info.get("maxmemory", math.nan))


def _mean(entries: Sequence[Any]) -> float:
    sizes = [sum(map(len, fields.values())) + ENTRY_BYTES for _, fields in entries]
    return sum(sizes) / len(sizes) if sizes else 0.0
