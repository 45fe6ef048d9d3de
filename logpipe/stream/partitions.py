"""The streams of one log that is spread over several keys, as PARTITIONS says.

Keys of different partitions lie in different slots, so that the nodes of a Cluster share the work.
Which partition an event is in depends on its source alone: so the order of a source is kept.
"""

import asyncio
import itertools
import zlib
from collections.abc import Sequence
from functools import lru_cache

from redis.crc import key_slot

from logpipe.continuity import Bounds
from logpipe.event import Entry
from logpipe.ids import START, StreamId
from logpipe.positions import MAX_PARTITIONS, EventId, event_id
from logpipe.stream.append import Append
from logpipe.stream.health import Kind, RedisHealth
from logpipe.stream.stream import Stream

SLOTS = 16_384
"""Of a Cluster."""

_SOURCE = len(b'{"source":"')
"""Where the source begins in an event as `event.encode` makes it."""


@lru_cache(maxsize=MAX_PARTITIONS)
def partition_key(name: str, number: int, partitions: int) -> str:
    """The key of a partition's stream.

    It names how many there are: what was spread in another way is another log, never mixed up. Its
    hash tag puts it into its part of the slots, so that nodes that share these evenly share the
    partitions; names that differ in a digit alone often lie side by side.
    """
    part = SLOTS / partitions
    tag = next(
        tag
        for tag in itertools.count()
        if abs(key_slot(b"%d" % tag) - (number + 0.5) * part) < part / 4
    )
    return f"{name}:{number}-of-{partitions}:{{{tag}}}"


def partition_of(event: bytes, partitions: int) -> int:
    """The partition of an encoded event: CRC-32 of its source, as it is in JSON.

    Of a source with a quote in it only what is before that: the same for each of its events.
    """
    return zlib.crc32(event[_SOURCE : event.index(b'"', _SOURCE)]) % partitions


def spread(request: Append, partitions: int) -> dict[int, Append]:
    """What each partition gets of a request: its events in order, and the key."""
    events: dict[int, list[bytes]] = {}
    for event in request.events:
        events.setdefault(partition_of(event, partitions), []).append(event)
    return {
        partition: Append(some, request.once, request.receipt) for partition, some in events.items()
    }


class PartitionsHealth(RedisHealth):
    """The state of all partitions: that of the worst."""

    def __init__(self, parts: Sequence[RedisHealth]) -> None:
        self._parts = parts

    @property
    def _worst(self) -> RedisHealth:
        def well(health: RedisHealth) -> tuple[bool, bool]:
            return health.serves(writes=False), health.serves(writes=True)

        return min(self._parts, key=well)

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """That of the worst."""
        return self._worst.kind

    @property
    def detail(self) -> str:  # type: ignore[override]
        """What ails the worst."""
        return self._worst.detail

    async def recovered(self, timeout: float) -> None:
        """Returns when all are ok, or after `timeout` seconds."""
        await asyncio.gather(*(health.recovered(timeout) for health in self._parts))


class Partitions:
    """The streams, read back as one in the order of (ms, seq, partition)."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams
        self.health = PartitionsHealth([stream.health for stream in streams])

    async def monitor(self) -> None:
        """Keeps the health of each true, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for stream in self.streams:
                tasks.create_task(stream.monitor())

    async def aclose(self) -> None:
        """Closes all connections."""
        for stream in self.streams:
            await stream.aclose()

    async def bounds(self) -> Bounds:
        """First and last id, and the sums of the counters; not of one moment."""
        return joined(await asyncio.gather(*(stream.bounds() for stream in self.streams)))

    async def range(
        self, low: StreamId, high: StreamId, count: int, *, newest_first: bool = False
    ) -> list[tuple[StreamId, Entry | None]]:
        """As `Stream.range`; the bounds are `EventId`s, or count in each partition."""
        pages = await asyncio.gather(
            *(
                stream.range(
                    low.least_in(number) if isinstance(low, EventId) else low,
                    high.greatest_in(number) if isinstance(high, EventId) else high,
                    count,
                    newest_first=newest_first,
                )
                for number, stream in enumerate(self.streams)
            )
        )
        rows = [
            (event_id(id_, number), named(entry, number) if entry else None)
            for number, page in enumerate(pages)
            for id_, entry in page
        ]
        rows.sort(key=lambda row: row[0], reverse=newest_first)
        return [*rows[:count]]


def named(entry: Entry, partition: int) -> Entry:
    """An entry of a partition under its id in the whole log."""
    id_ = event_id(entry.id, partition)
    return Entry(id_, renamed(entry, partition), entry.event)


def renamed(entry: Entry, partition: int) -> bytes:
    """The JSON of an entry with its id in the whole log."""
    own = len(b'{"id":"%d-%d' % entry.id)
    return b"%b-%d%b" % (entry.json[:own], partition, entry.json[own:])


def joined(parts: Sequence[Bounds]) -> Bounds:
    """The bounds of the whole log, by those of its partitions."""
    firsts = [event_id(bounds.first, number) for number, bounds in enumerate(parts) if bounds.first]
    counts = [bounds.added for bounds in parts if bounds.added is not None]
    last = max(event_id(bounds.last, number) for number, bounds in enumerate(parts))
    return Bounds(
        first=min(firsts, default=None),
        last=last if last.ms or last.seq else START,
        added=sum(counts) if len(counts) == len(parts) else None,
        length=sum(bounds.length for bounds in parts),
        deleted=max(bounds.deleted for bounds in parts),
    )
