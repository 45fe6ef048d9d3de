"""A stream's consumer groups."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from logpipe.event import Entry
from logpipe.ids import START, StreamId, from_wire
from logpipe.stream.connections import Connections
from logpipe.stream.entries import decoded
from logpipe.stream.errors import NoGroupError
from logpipe.stream.failovers import failovers_key
from logpipe.stream.group_records import NO_GENERATION, GroupRecords
from logpipe.stream.group_scripts import (
    ACKNOWLEDGE,
    CLAIM,
    CREATE,
    HOLD,
    LET_GO,
    LOSE,
    MOVE,
    OWN,
    READ,
    SWEEP,
    group_read,
)
from logpipe.stream.scripts import companion_key
from logpipe.turns import Turns

AT_ONCE = 1000
"""Ids of one call of a script; Lua unpacks some thousands at the most."""

READ_BYTES = 1024 * 1024
READ_ENTRIES = 32
"""A read of new entries ends once it has so many bytes, which is looked at after so many entries:
with events of 64 KiB at 3 MiB."""


class Claimed(NamedTuple):
    """What a consumer was handed: entries, ids that were trimmed while they were pending, and ids
    of entries that hold no event."""

    entries: list[Entry]
    lost: list[StreamId]
    unreadable: list[StreamId]
    end: StreamId = START
    """How far that goes: of a read, the last entry that the group was given; of a claim, where the
    next one goes on to look, `START` when all was looked at."""
    losses: Sequence[str] = ()
    """Records of what was trimmed before the group had read it, or went with a failover, and of
    other losses that a process was given to tell and has not; see `gap_of`. For one of the group's
    consumers only."""
    lag: int | None = None
    """Of a read: how many entries the group has not read yet, where that is known."""


class Moved(NamedTuple):
    """Ids that changed their consumer, and those that were trimmed, which are lost."""

    moved: list[StreamId]
    trimmed: list[StreamId]


class FilterChangedError(Exception):
    """The group has another filter than the one by which its entries were to be judged."""


class StreamGroups:
    """The verbs of consumer groups. They raise `Unavailable`, and `NoGroupError` when the group is
    gone, as it is after a flush."""

    def __init__(self, redis: Connections, stream: str, turns: Turns) -> None:
        self._redis = redis
        self._stream = stream
        self._turns = turns
        self.records = GroupRecords(redis, stream)

    async def create(
        self,
        group: str,
        after: StreamId | None,
        *,
        from_the_first: bool = False,
        may_end: bool = False,
        go_back: bool = False,
    ) -> list[str]:
        """Creates a group that begins after an id (None: the newest), unless it exists. A group
        that has ended goes on where it was; where the stream was flushed since then, the record of
        that loss is returned.

        `from_the_first`: after `START` it begins with the first entry that the stream ever had, not
        with the first that is kept; what was trimmed meanwhile is missed. `may_end`: it is noted as
        made by logpipe, and ends when it has no members for long. `go_back`: a group that is there
        already and has read further goes back to `after`.
        """
        start = "$" if after is None else str(after)
        records = self.records
        async with self._redis.translated():
            lost = await CREATE.run(
                self._redis.writing,
                [*self._keys(group), records.key(group), records.made, records.ended],
                *(group, start, int(from_the_first), int(may_end), int(go_back and start != "$")),
            )
        return [record.decode() for record in lost]

    async def read(
        self, group: str, consumer: str, count: int, generation: str = NO_GENERATION
    ) -> Claimed:
        """Up to `count` new entries of a group, about `READ_BYTES` at the most; none when there are
        none. Raises `FilterChangedError` where the group's filter is of another generation."""
        async with self._redis.translated():
            answer = await READ.run(
                self._redis.writing,
                [*self._keys(group), failovers_key(self._stream), self.records.key(group)],
                group,
                consumer,
                count,
                int(self._redis.replicas is None),
                READ_BYTES,
                READ_ENTRIES,
                generation,
            )
        if answer == 0:
            raise FilterChangedError
        read = group_read(answer)
        claimed = await self._claimed(read.entries, [])
        return claimed._replace(end=read.end, losses=read.missed, lag=read.lag)

    async def history(self, group: str, consumer: str, count: int, after: StreamId) -> Claimed:
        """What is pending for this consumer, from an id on."""
        async with self._redis.translated():
            (answer,) = await self._redis.reading.call(
                *("XREADGROUP", "GROUP", group, consumer, "COUNT", count),
                *("STREAMS", self._stream, str(after)),
            )
        return await self._claimed(answer[0][1] if answer else [], [])

    async def acknowledge(self, group: str, ids: Iterable[StreamId]) -> None:
        """Takes ids off the group's pending list."""
        async with self._redis.translated():
            await self._redis.writing.xack(self._stream, group, *map(str, ids))

    async def keep(self, group: str, consumer: str, ids: Iterable[StreamId]) -> None:
        """Sets the idle time of pending entries to zero, so that no other consumer claims them."""
        await self._own(group, consumer, "", ids)

    async def release(self, group: str, consumer: str, ids: Iterable[StreamId]) -> None:
        """Lets any consumer claim pending entries at once; those trimmed meanwhile a little later,
        by the claim that names them."""
        await self._own(group, consumer, "0", ids)

    async def _own(
        self, group: str, consumer: str, idle_since: str, ids: Iterable[StreamId]
    ) -> None:
        for some in _some(list(ids)):
            async with self._redis.translated():
                await OWN.run(
                    self._redis.writing, [self._stream], group, consumer, idle_since, *some
                )

    async def move(
        self, group: str, before: str, after: str, ids: Iterable[StreamId], *, idle: bool = False
    ) -> Moved:
        """Moves entries that are pending for one consumer to another, or renews the consumer's hold
        on them where it is the same. `idle`: any consumer may claim them at once.

        Entries that are not pending for it were acknowledged or claimed meanwhile, and stay where
        they are. Those that were trimmed are recorded as lost.
        """
        done = Moved([], [])
        for some in _some(list(ids)):
            async with self._redis.translated():
                moved, trimmed = await MOVE.run(
                    self._redis.writing,
                    self._keys(group),
                    *(group, before, after, "0" if idle else "", *some),
                )
            done.moved.extend(map(from_wire, moved))
            done.trimmed.extend(map(from_wire, trimmed))
        return done

    async def acknowledge_of(
        self, group: str, consumer: str, ids: Sequence[StreamId]
    ) -> list[StreamId]:
        """Acknowledges those of the entries that are pending for a consumer; which these are."""
        done: list[StreamId] = []
        for some in _some(ids):
            async with self._redis.translated():
                answer = await ACKNOWLEDGE.run(
                    self._redis.writing, [self._stream], group, consumer, *some
                )
            done += map(from_wire, answer)
        return done

    async def holdings(self, group: str) -> dict[str, int]:
        """How many entries are pending for each consumer of a group that has any."""
        async with self._redis.translated():
            summary = await self._redis.writing.xpending(self._stream, group)
        return {one["name"].decode(): one["pending"] for one in summary["consumers"]}

    async def lag(self, group: str) -> int | None:
        """How many entries the group has not read yet; None where Redis does not know it."""
        async with self._redis.translated():
            groups: Any = await self._redis.writing.xinfo_groups(self._stream)
        found: Any = next((each for each in groups if each["name"] == group.encode()), {})
        lag: int | None = found.get("lag")
        return lag

    async def held(self, group: str, consumer: str, most: int) -> set[StreamId]:
        """The ids that are pending for a consumer, the `most` first ones."""
        async with self._redis.translated():
            rows: Any = await self._redis.writing.xpending_range(
                self._stream, group, "-", "+", most, consumername=consumer
            )
        return {from_wire(row["message_id"]) for row in rows}

    async def claim(
        self,
        group: str,
        consumer: str,
        idle_ms: int,
        count: int,
        *,
        after: StreamId = START,
        generation: str = NO_GENERATION,
    ) -> Claimed:
        """Takes over what has been pending for longer than `idle_ms`, whoever read it.

        Redis looks at ten times `count` pending entries a call, from `after` on.

        XAUTOCLAIM is XPENDING and XCLAIM in one step. Plain XCLAIM drops trimmed entries without
        a word; this one names them, to exactly one of the consumers that ask (Redis 7). Raises
        `FilterChangedError` as `read` does.
        """
        async with self._redis.translated():
            answer = await CLAIM.run(
                self._redis.writing,
                [*self._keys(group), self.records.key(group)],
                group,
                consumer,
                idle_ms,
                str(after),
                count,
                generation,
            )
        if answer == 0:
            raise FilterChangedError
        end, raw, trimmed, late = answer
        claimed = await self._claimed(raw, [from_wire(id_) for id_ in trimmed])
        return claimed._replace(end=from_wire(end), losses=[record.decode() for record in late])

    async def lose(self, group: str, ids: Sequence[StreamId]) -> None:
        """Takes trimmed ids off the pending list and records them as losses to be told."""
        for some in _some(ids):
            async with self._redis.translated():
                await LOSE.run(self._redis.writing, self._keys(group), group, *some)

    async def told(self, group: str, records: Iterable[str]) -> None:
        """Forgets losses of which a subscriber was told."""
        async with self._redis.translated():
            await self._redis.writing.hdel(self._keys(group)[1], *records)

    async def hand_back(self, group: str, records: Iterable[str]) -> None:
        """Leaves losses to the next who claims."""
        async with self._redis.translated():
            await self._redis.writing.hset(
                self._keys(group)[1], mapping=dict.fromkeys(records, "0")
            )

    async def pending(self, group: str) -> int:
        """How many entries of the group are delivered and not acknowledged."""
        async with self._redis.translated():
            (summary,) = await self._redis.reading.call("XPENDING", self._stream, group)
        return int(summary[0])

    async def sweep(self, group: str, consumer: str, idle_ms: int) -> int:
        """Removes other consumers that have nothing pending and were idle for so long. How many.

        One that is alive after all comes back with its next read.
        """
        async with self._redis.translated():
            removed = await SWEEP.run(
                self._redis.writing, [self._stream], group, consumer, 0, idle_ms
            )
        return int(removed)

    async def leave(self, group: str, consumer: str) -> None:
        """Removes this consumer, unless it has entries pending."""
        async with self._redis.translated():
            await SWEEP.run(self._redis.writing, [self._stream], group, consumer, 1, 0)

    async def hold(self, consumer: str, holder: str, lease_ms: int) -> bool:
        """Takes or keeps a consumer's name for so long; False when another holder has it."""
        async with self._redis.translated():
            held = await HOLD.run(self._redis.writing, [self._key(consumer)], holder, lease_ms)
        return bool(held)

    async def let_go(self, consumer: str, holder: str) -> None:
        """Gives a consumer's name back."""
        async with self._redis.translated():
            await LET_GO.run(self._redis.writing, [self._key(consumer)], holder)

    async def lose_trimmed(self, idle_ms: int) -> None:
        """Records as losses, in all groups, entries that were trimmed while they were pending, and
        idle for so long. An engine that loads commands, not a snapshot, knows them no longer as
        pending."""
        async with self._redis.translated():
            client: Any = self._redis.upkeep
            try:
                groups = await client.xinfo_groups(self._stream)
            except ResponseError as error:
                if "no such key" not in str(error):
                    raise
                return
            first = await client.xrange(self._stream, "-", "+", 1)
        end = f"({first[0][0].decode()}" if first else "+"
        for group in groups:
            name = group["name"].decode()
            with contextlib.suppress(NoGroupError):  # it was removed meanwhile
                async with self._redis.translated():
                    while pending := await client.xpending_range(
                        self._stream, name, "-", end, AT_ONCE, idle=idle_ms
                    ):
                        await self.lose(name, [from_wire(each["message_id"]) for each in pending])

    async def _claimed(self, raw: list[Any], lost: list[StreamId]) -> Claimed:
        """Sorts what a group handed out; an entry without fields was trimmed while pending."""
        claimed = Claimed([], lost, [])
        pairs = await decoded(raw, self._turns)
        for (where, entry), (_, fields) in zip(pairs, raw, strict=True):
            if entry is not None:
                claimed.entries.append(entry)
            else:
                (claimed.unreadable if fields else claimed.lost).append(where)
        return claimed

    def _keys(self, group: str) -> list[str]:
        return [self._stream, companion_key(self._stream, "lost", group)]

    def _key(self, consumer: str) -> str:
        return companion_key(self._stream, "consumer", consumer)


def _some(ids: Sequence[StreamId]) -> Iterator[list[str]]:
    for first in range(0, len(ids), AT_ONCE):
        yield [str(id_) for id_ in ids[first : first + AT_ONCE]]
