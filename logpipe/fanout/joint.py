"""The partitions of a log as one: a hub for each; `joint_subscription.py` reads from all of them.

Whether something is missing is judged in each partition by itself, so no order between partitions
has to be kept, and two replicas may merge them differently.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from logpipe.continuity import Bounds, Cursor
from logpipe.event import Entry
from logpipe.fanout.hub import Hub
from logpipe.fanout.window import KEPT_CHUNKS
from logpipe.ids import StreamId
from logpipe.messages import Batch, Subscription
from logpipe.metrics import Metrics
from logpipe.positions import Position
from logpipe.stream import Stream
from logpipe.stream.partitions import Partitions, joined, renamed


class PartHub(Hub):
    """The hub of one partition, which wakes those who read from all."""

    on_wake: Callable[[], None]

    def _wake(self) -> None:
        super()._wake()
        self.on_wake()


class JointHub:
    """The hubs of all partitions, and who reads from them.

    `queue_len` is for all of them together.
    """

    def __init__(
        self,
        partitions: Partitions,
        metrics: Metrics,
        *,
        queue_len: int,
        batch_count: int,
        heartbeat_s: float,
    ) -> None:
        self.stream = partitions
        self.metrics = metrics
        self.batch_count = batch_count
        self.heartbeat_s = heartbeat_s
        self.closing = False
        self.subscribers: set[Subscription] = set()
        self.hubs = [
            self._hub(stream, part, queue_len, batch_count, heartbeat_s)
            for stream, part in zip(
                partitions.streams, metrics.of_parts(len(partitions.streams)), strict=True
            )
        ]
        self._changed = asyncio.Event()
        self._told: OrderedDict[tuple[Batch, str], Batch] = OrderedDict()

    def _hub(
        self, stream: Stream, metrics: Metrics, queue_len: int, batch_count: int, heartbeat_s: float
    ) -> PartHub:
        hub = PartHub(
            stream,
            metrics,
            queue_len=max(1, queue_len // len(self.stream.streams)),
            batch_count=batch_count,
            heartbeat_s=heartbeat_s,
        )
        hub.on_wake = self._wake
        return hub

    async def run(self) -> None:
        """Follows all partitions, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for hub in self.hubs:
                tasks.create_task(hub.run())

    async def beat(self) -> None:
        """As `Hub.beat`."""
        async with asyncio.TaskGroup() as tasks:
            for hub in self.hubs:
                tasks.create_task(hub.beat())

    async def measure(self) -> None:
        """As `Hub.measure`."""
        async with asyncio.TaskGroup() as tasks:
            for hub in self.hubs:
                tasks.create_task(hub.measure())

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @property
    def change(self) -> asyncio.Event:
        """As `Hub.change`, of any partition."""
        return self._changed

    async def bounds(self) -> Bounds:
        """The bounds of the whole log, as far as they are known."""
        return joined(await asyncio.gather(*(hub.bounds() for hub in self.hubs)))

    def close(self) -> None:
        """Ends all subscriptions with a `Bye`, and those to come."""
        self.closing = True
        for hub in self.hubs:
            hub.close()

    def told(self, batch: Batch, partition: int, ids: Sequence[StreamId]) -> Batch:
        """A batch of a partition as it is told to those who have read up to `ids`.

        Readers that keep up are at the same place, and share it with its encoded chunks.
        """
        at = Position.of(ids)
        key = (batch, at.text)
        told = self._told.get(key)
        if told is None:
            told = self._told[key] = _told(batch, partition, ids)
            if len(self._told) > KEPT_CHUNKS:
                self._told.popitem(last=False)
        return told


def _told(batch: Batch, partition: int, ids: Sequence[StreamId]) -> Batch:
    head = "".join(f"{id_}." for id_ in ids[:partition])
    rest = "".join(f".{id_}" for id_ in ids[partition + 1 :])

    def after(id_: StreamId) -> Position:
        return Position.after_entry(id_, partition, f"{head}{id_}{rest}")

    entries = [
        Entry(after(entry.id), renamed(entry, partition), entry.event) for entry in batch.entries
    ]
    return Batch(Cursor(after(batch.start.id)), Cursor(after(batch.end.id)), entries)
