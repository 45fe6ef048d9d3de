"""Ids and positions of a log that is spread over partitions: PARTITIONS above 1.

Each partition is a stream with ids of its own. An event's id names its partition too:
`1710000000000-3-2`; by (ms, seq, partition) all events have one order, which the history follows.
A live reader gets the partitions as they come, each in order, so where it is takes an id for each:
a position, `1710000000000-3.1710000000001-0.0-0`. Digits, `-` and `.` need no escape in a URL.
"""

from collections.abc import Sequence
from typing import Self

from logpipe.ids import StreamId, parse_id

MAX_PARTITIONS = 32
"""Each event that a live reader gets carries an id of 17 bytes or more for each partition."""


class EventId(StreamId):
    """The id of an event and its partition, ordered by time first; as text `ms-seq-partition`."""

    def __new__(cls, ms: int, seq: int, partition: int) -> Self:
        """The id of an entry `ms-seq` of a partition."""
        return tuple.__new__(cls, (ms, seq, partition))

    @property
    def partition(self) -> int:
        """The number of its partition, from 0."""
        partition: int = tuple.__getitem__(self, 2)
        return partition

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}-{self.partition}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self}')"

    def before(self) -> "EventId":
        """The greatest id below this one, in any partition."""
        if self.partition:
            return EventId(self.ms, self.seq, self.partition - 1)
        return EventId(*StreamId(self.ms, self.seq).before(), MAX_PARTITIONS - 1)

    def after(self) -> "EventId":
        """The least id above this one, in any partition."""
        if self.partition < MAX_PARTITIONS - 1:
            return EventId(self.ms, self.seq, self.partition + 1)
        return EventId(*StreamId(self.ms, self.seq).after(), 0)

    def least_in(self, partition: int) -> StreamId:
        """The least id of a partition's stream that is not below this one."""
        id_ = StreamId(self.ms, self.seq)
        return id_ if partition >= self.partition else id_.after()

    def greatest_in(self, partition: int) -> StreamId:
        """The greatest id of a partition's stream that is not above this one."""
        id_ = StreamId(self.ms, self.seq)
        return id_ if partition <= self.partition else id_.before()


class Position(EventId):
    """All up to an id of each partition has been read; `text` names them.

    As an id it is that of the event that was read last, or the newest one of them.
    """

    text: str

    @classmethod
    def after_entry(cls, id_: StreamId, partition: int, text: str) -> Self:
        """Right after an entry of a partition."""
        position = cls(id_.ms, id_.seq, partition)
        position.text = text
        return position

    @classmethod
    def of(cls, ids: Sequence[StreamId]) -> Self:
        """The position after an id of each partition."""
        newest = max(range(len(ids)), key=lambda partition: (ids[partition], partition))
        return cls.after_entry(ids[newest], newest, ".".join(map(str, ids)))

    def __str__(self) -> str:
        return self.text

    @property
    def event(self) -> EventId:
        """The id of the event that was read last."""
        return EventId(self.ms, self.seq, self.partition)


def event_id(id_: StreamId, partition: int) -> EventId:
    """The id of an entry of a partition."""
    return EventId(id_.ms, id_.seq, partition)


def parse_event_id(text: str, partitions: int) -> EventId:
    """`1710000000000-3-2`. ValueError for all else, and for a partition that is not there."""
    head, _, partition = text.rpartition("-")
    wrong = ValueError(
        f"not an event's id of a log with {partitions} partitions, which looks like"
        " 1710000000000-0-1"
    )
    if "-" not in head or not (partition.isascii() and partition.isdigit() and len(partition) < 4):
        raise wrong
    if int(partition) >= partitions:
        raise wrong
    return event_id(parse_id(head), int(partition))


def parse_position(text: str, partitions: int) -> list[StreamId]:
    """`1-0.5-3`: an id for each partition. ValueError for another number of them, and all else."""
    parts = text.split(".")
    if len(parts) != partitions or not all("-" in part for part in parts):
        raise ValueError(
            f"not a position in a log with {partitions} partitions, which is so many ids with"
            " dots between them"
        )
    return [parse_id(part) for part in parts]


def read_id(text: str) -> StreamId:
    """An id as any distributor gives it: of an entry, of an event in a partition, or a position.
    ValueError for all else."""
    if "." in text:
        return Position.of(parse_position(text, text.count(".") + 1))
    if text.count("-") == 2:
        return parse_event_id(text, MAX_PARTITIONS)
    return parse_id(text)


def read_position(text: str, event: str) -> Position:
    """The position after an event, and its own id, as a distributor tells them. ValueError."""
    id_ = parse_event_id(event, MAX_PARTITIONS)
    return Position.after_entry(id_, id_.partition, text)
