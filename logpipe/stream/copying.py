"""A copy of a stream, with its ids, counters, consumer groups and companion keys, in another Redis.

Entries are copied in order, so a copy that was interrupted goes on behind the last one. Everything
else is copied anew each time, and what the source no longer has is removed; so a second run brings
what has changed since the first.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import redis.asyncio as aioredis
from redis.exceptions import ResponseError

from logpipe.ids import END, START, StreamId, from_wire
from logpipe.redis_address import RedisAddress
from logpipe.stream.connections import client
from logpipe.stream.failovers import Failovers
from logpipe.stream.finding import primary_of
from logpipe.stream.scripts import companion_key, companions

PAGE_BYTES = 1024 * 1024
MAX_PAGE = 1_000
"""A page of entries has about `PAGE_BYTES`, and no more entries than `MAX_PAGE`."""
PENDING_PAGE = 1_000
KEYS_PAGE = 1_000
ANSWER_S = 30.0
NOT_COPIED = ("primary", "consumer", "copied")
"""Kinds of companion keys that hold for one Redis or one process alone."""


@asynccontextmanager
async def opened(address: RedisAddress, stream: str) -> AsyncIterator[aioredis.Redis]:
    """A client for the server that has a stream, or is to have it."""
    primary = primary_of(address, stream)
    redis = client(address, ANSWER_S, primary, Failovers(stream, "one"))
    try:
        yield redis
    finally:
        await redis.aclose()
        if primary is not None:
            await primary.aclose()


class Copied(NamedTuple):
    """What a copy has moved, and whether the two streams are the same."""

    entries: int
    """Of this run."""
    length: int
    groups: int
    pending: int
    keys: int
    newer: int
    """Entries that the source has taken since."""
    same: bool
    """Whether the entries that both have are the same, and none is missing between them."""
    complete: bool
    """Whether both are the same in all else, too: the source has not changed meanwhile."""


class NotCopiedError(Exception):
    """The target cannot take the stream; the sentence says why, and what to do."""


class StreamCopy:
    """A stream at its source and where it is to be copied."""

    def __init__(self, source: aioredis.Redis, target: aioredis.Redis, stream: str) -> None:
        self._source: Any = source
        self._target: Any = target
        self._stream = stream

    async def run(self, progress: Callable[[int, int], None]) -> Copied:
        """Copies; `progress` is called with the entries that are copied so far, and the length of
        the stream. Raises `NotCopiedError`, and the errors of redis-py."""
        if await _run_id(self._source) == await _run_id(self._target):
            raise NotCopiedError("source and target are the same server")
        info = await _info(self._source, self._stream)
        if info is None:
            raise NotCopiedError(f"there is no stream {self._stream!r} at the source")
        behind, entries = await self._copied_before(info), 0
        async for page in self._pages(self._source, behind):
            behind = await self._add(page)
            entries += len(page)
            progress(entries, info["length"])
        keys = await self._copy_companions()
        # What has come since: the counters are those of one moment, up to which all is copied.
        info = await _info(self._source, self._stream)
        if info is None:
            raise NotCopiedError(f"the stream {self._stream!r} has left the source meanwhile")
        async for page in self._pages(self._source, behind, from_wire(info["last-generated-id"])):
            await self._add(page)
            entries += len(page)
        await self._take_counters(info)
        groups, pending = await self._copy_groups(info)
        newer, same, complete = await self._compare()
        length = await self._target.xlen(self._stream)
        return Copied(entries, length, groups, pending, keys, newer, same, complete)

    async def _add(self, page: list[Any]) -> StreamId:
        """Adds entries to the target; the last of them."""
        async with self._target.pipeline(transaction=False) as pipe:
            for id_, fields in page:
                pipe.xadd(self._stream, fields, id=id_)
            await pipe.execute()
        return from_wire(page[-1][0])

    async def _copied_before(self, source: Mapping[str, Any]) -> StreamId:
        """The last entry that an earlier run has copied. Raises `NotCopiedError` where the target
        has a stream of another origin, or one to which was appended."""
        newest = await _newest(self._target, self._stream)
        if newest is None:
            return START
        (id_, fields) = newest
        if await self._source.xrange(self._stream, id_, id_) == [(id_, fields)]:
            return from_wire(id_)
        target = await _info(self._target, self._stream)
        is_a_copy = target and await self._target.get(self._copied_key) == _state(target)
        first = source["first-entry"]
        if is_a_copy and (first is None or from_wire(id_) < from_wire(first[0])):
            return from_wire(id_)  # the source has trimmed what was copied last
        raise NotCopiedError(
            f"the target has a stream {self._stream!r} that is no copy of the source's: remove it"
            " with DEL, or choose another database"
        )

    @property
    def _copied_key(self) -> str:
        """Where the state of the target at the end of a copy is kept, by which it is known to be
        one."""
        return companion_key(self._stream, "copied", "")

    async def _pages(
        self, redis: Any, after: StreamId, upto: StreamId = END
    ) -> AsyncIterator[list[Any]]:
        count = 100
        while page := await redis.xrange(self._stream, str(after.after()), str(upto), count):
            yield page
            after = from_wire(page[-1][0])
            size = sum(len(value) for _, fields in page for value in fields.values())
            count = max(1, min(MAX_PAGE, PAGE_BYTES * len(page) // max(1, size)))

    async def _take_counters(self, info: Mapping[str, Any]) -> None:
        """Gives the target the last id, the number of entries ever added and the greatest deleted
        id of the source, by which positions and gaps are counted; and trims what the source has."""
        first = info["first-entry"]
        await self._target.xgroup_create(self._stream, _MADE, "0", mkstream=True)
        await self._target.xgroup_destroy(self._stream, _MADE)
        await self._target.xtrim(
            self._stream, **({"minid": first[0]} if first else {"maxlen": 0}), approximate=False
        )
        counters = []
        if "entries-added" in info:
            counters = ["ENTRIESADDED", info["entries-added"]]
            counters += ["MAXDELETEDID", info["max-deleted-entry-id"]]
        await self._target.execute_command(
            "XSETID", self._stream, info["last-generated-id"], *counters
        )
        if target := await _info(self._target, self._stream):
            await self._target.set(self._copied_key, _state(target))

    async def _copy_groups(self, info: Mapping[str, Any]) -> tuple[int, int]:
        """How many groups, and how many of their entries are pending."""
        groups = await self._source.xinfo_groups(self._stream)
        wanted = {group["name"] for group in groups}
        for other in await self._target.xinfo_groups(self._stream):
            if other["name"] not in wanted:
                await self._target.xgroup_destroy(self._stream, other["name"])
        total = 0
        for group in groups:
            name, last, read = group["name"], group["last-delivered-id"], group.get("entries-read")
            try:
                await self._target.xgroup_create(self._stream, name, last, entries_read=read)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
                await self._target.xgroup_setid(self._stream, name, last, entries_read=read)
            total += await self._copy_pending(name, info["last-generated-id"])
        return len(groups), total

    async def _copy_pending(self, group: bytes, last: bytes) -> int:
        """Gives the target's group what is pending in the source's, with consumers, idle times and
        numbers of deliveries. What is gone from the source is recorded as a loss to be reported,
        what is newer than the copy is left for the next run."""
        lost = companion_key(self._stream, "lost", group.decode())
        pending = {entry["message_id"]: entry async for entry in self._pending(self._source, group)}
        async for entry in self._pending(self._target, group):
            if entry["message_id"] not in pending:
                await self._target.xack(self._stream, group, entry["message_id"])
        ids = [id_ for id_ in pending if from_wire(id_) <= from_wire(last)]
        for at in range(0, len(ids), PENDING_PAGE):
            some = ids[at : at + PENDING_PAGE]
            for id_, claimed in zip(some, await self._claimed(group, pending, some), strict=True):
                if not claimed:
                    await self._target.hset(lost, id_, 0)
        return len(ids)

    async def _claimed(self, group: bytes, pending: Mapping[bytes, Any], ids: list[bytes]) -> Any:
        """Makes entries pending in the target; for each whether it is there."""
        async with self._target.pipeline(transaction=False) as pipe:
            for id_ in ids:
                entry = pending[id_]
                pipe.xclaim(
                    *(self._stream, group, entry["consumer"], 0, [id_]),
                    idle=entry["time_since_delivered"],
                    retrycount=entry["times_delivered"],
                    force=True,
                    justid=True,
                )
            return await pipe.execute()

    async def _pending(self, redis: Any, group: bytes) -> AsyncIterator[dict[str, Any]]:
        low = "-"
        while page := await redis.xpending_range(self._stream, group, low, "+", PENDING_PAGE):
            for entry in page:
                yield entry
            low = f"({page[-1]['message_id'].decode()}"

    async def _copy_companions(self) -> int:
        """How many keys beside the stream were copied; the target has no others then."""
        copied: set[bytes] = set()
        async for keys in self._companions(self._source):
            copied.update(await self._copy_keys(keys))
        async for keys in self._companions(self._target):
            if gone := [key for key in keys if key not in copied]:
                await self._target.delete(*gone)
        return len(copied)

    async def _companions(self, redis: Any) -> AsyncIterator[list[bytes]]:
        """The keys beside the stream that are copied, in pages."""
        prefix = companions(self._stream, "")
        cursor = None
        while cursor != 0:
            cursor, found = await redis.scan(cursor or 0, f"{_escaped(prefix)}*", KEYS_PAGE)
            kinds = [key.decode().removeprefix(prefix).partition(":")[0] for key in found]
            if keys := [k for k, kind in zip(found, kinds, strict=True) if kind not in NOT_COPIED]:
                yield keys

    async def _copy_keys(self, keys: list[bytes]) -> list[bytes]:
        """Copies keys of the kinds that logpipe has; those that were still there."""
        async with self._source.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.type(key)
                pipe.pttl(key)
            found = await pipe.execute()
        rows = [
            (key, kind.decode(), expires_ms)
            for key, kind, expires_ms in zip(keys, found[::2], found[1::2], strict=True)
            if kind.decode() in _KINDS
        ]
        async with self._source.pipeline(transaction=False) as pipe:
            for key, kind, _ in rows:
                _read(pipe, key, kind)
            values = await pipe.execute()
        copied = []
        async with self._target.pipeline(transaction=True) as pipe:
            pipe.delete(*keys)
            for (key, kind, expires_ms), value in zip(rows, values, strict=True):
                if value:  # else it has expired meanwhile
                    _write(pipe, key, kind, value)
                    if expires_ms > 0:
                        pipe.pexpire(key, expires_ms)
                    copied.append(key)
            await pipe.execute()
        return copied

    async def _compare(self) -> tuple[int, bool, bool]:
        """How many newer entries the source has, whether those that both have are the same, and
        whether the counters are."""
        infos = [await _info(redis, self._stream) for redis in (self._source, self._target)]
        if None in infos:
            return 0, False, False
        ends = [(each["first-entry"], each["last-entry"]) for each in infos if each]
        if any(first is None for first, _ in ends):
            low, high = START, START
        else:
            low = max(from_wire(first[0]) for first, _ in ends)
            high = min(from_wire(last[0]) for _, last in ends)
        digests = [await self._digest(redis, low, high) for redis in (self._source, self._target)]
        newer = 0
        async for page in self._pages(self._source, high):
            newer += len(page)
        counters = [each and {name: each.get(name) for name in _COUNTERS} for each in infos]
        return newer, digests[0] == digests[1], counters[0] == counters[1] and not newer

    async def _digest(self, redis: Any, low: StreamId, high: StreamId) -> bytes:
        digest = hashlib.sha256()
        async for page in self._pages(redis, low.before(), high):
            for id_, fields in page:
                digest.update(repr((id_, fields)).encode())
        return digest.digest()


_MADE = "logpipe-copy"
"""A group by which a stream without entries is made; it is removed at once."""

_KINDS = {"string", "hash", "zset", "list"}
"""Of keys beside the stream."""

_COUNTERS = ("length", "last-generated-id", "entries-added", "max-deleted-entry-id")


async def _info(redis: Any, stream: str) -> dict[str, Any] | None:
    try:
        return dict(await redis.xinfo_stream(stream))
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
        return None


def _read(pipe: Any, key: bytes, kind: str) -> None:
    """Asks for all of a key."""
    match kind:
        case "hash":
            pipe.hgetall(key)
        case "zset":
            pipe.zrange(key, 0, -1, withscores=True)
        case "list":
            pipe.lrange(key, 0, -1)
        case _:
            pipe.get(key)


def _write(pipe: Any, key: bytes, kind: str, value: Any) -> None:
    """Writes what `_read` has asked for."""
    match kind:
        case "hash":
            pipe.hset(key, mapping=value)
        case "zset":
            pipe.zadd(key, dict(value))
        case "list":
            pipe.rpush(key, *value)
        case _:
            pipe.set(key, value)


def _state(target: Mapping[str, Any]) -> bytes:
    """What changes with every append to a stream."""
    return b"%b %d" % (target["last-generated-id"], target.get("entries-added", 0))


async def _run_id(redis: Any) -> Any:
    """What tells one server from another; they may also differ by database."""
    database = redis.connection_pool.connection_kwargs.get("db", 0)
    return (await redis.info("server"))["run_id"], database


async def _newest(redis: Any, stream: str) -> Any:
    rows = await redis.xrevrange(stream, "+", "-", 1)
    return rows[0] if rows else None


def _escaped(text: str) -> str:
    return "".join(f"\\{each}" if each in "*?[]\\" else each for each in text)
