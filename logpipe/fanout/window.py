"""The window: the newest part of the stream, held once in memory for all subscribers.

A run of batches without a gap between them, numbered upward for ever. Bounded by entries and by
bytes; what falls out at its old end is served from the stream.
"""

from collections import deque

from logpipe.continuity import Cursor
from logpipe.event import Entry
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Keepers

MAX_BYTES = 64 * 1024 * 1024
"""The most that the window holds, by `event.weight_of`, whatever SUBSCRIBER_QUEUE_LEN allows:
10,000 events of 64 KiB would be ten times that."""

BATCH_BYTES = 256 * 1024
"""A batch is cut at this size: it is what one write to one subscriber carries."""

KEPT_CHUNKS = 32
"""Batches that keep encoded chunks: those that readers used last, wherever in the window they are.
Each keeps up to `messages.MAX_CHUNK_BYTES`."""


def bytes_for(entries: int, event_bytes: int) -> int:
    """The bytes that a window of `entries` may hold: a quarter more than the JSON of as many events
    of the greatest size, whose metadata may weigh more than their JSON."""
    return min(MAX_BYTES, entries * (event_bytes * 5 // 4 + 500))


class Window:
    """Batches `first_number` to `next_number` - 1; `end` is the cursor after the last of them."""

    def __init__(self, max_entries: int, max_bytes: int = MAX_BYTES) -> None:
        self.end = Cursor(START)
        self.entries = 0
        self.bytes = 0
        self.first_number = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._batches: deque[Batch] = deque()
        self._keepers = Keepers(KEPT_CHUNKS)

    @property
    def next_number(self) -> int:
        """The number of the batch that comes next."""
        return self.first_number + len(self._batches)

    @property
    def newest(self) -> Batch | None:
        """The last batch."""
        return self._batches[-1] if self._batches else None

    def append(self, batch: Batch) -> None:
        """Adds what follows `end`, and drops the oldest batches over the bounds."""
        self._batches.append(batch)
        self.end = batch.end
        self.entries += len(batch.entries)
        self.bytes += batch.weight
        self._keepers.add(batch)
        # Batches are counted, too: one of entries that hold no event adds nothing to the others.
        while (
            max(self.entries, len(self._batches)) > self._max_entries
            or self.bytes > self._max_bytes
        ):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._batches.popleft()
        self._keepers.remove(oldest)
        self.first_number += 1
        self.entries -= len(oldest.entries)
        self.bytes -= oldest.weight

    def restart(self, end: Cursor) -> None:
        """Empties the window; it goes on after `end`, which does not follow what it held.

        A number is skipped, so that a reader that had read everything notices it, too.
        """
        self.first_number = self.next_number + 1
        for batch in self._batches:
            self._keepers.remove(batch)
        self._batches.clear()
        self.entries = self.bytes = 0
        self.end = end

    def get(self, number: int) -> Batch | None:
        """The batch of a number; None when it is not there yet, or no longer."""
        index = number - self.first_number
        return self._batches[index] if 0 <= index < len(self._batches) else None

    def locate(self, after: StreamId) -> int | None:
        """The number of the batch that holds the first entry after an id; None when behind.

        The id must be of this stream: see `holds`.
        """
        if after == self.end.id:
            return self.next_number
        if not self._batches or not self._batches[0].start.id <= after < self.end.id:
            return None
        if self._batches[0].start.id < after < self._first_known:
            return None
        # From the newest: that is where most readers are.
        number = self.next_number - 1
        for batch in reversed(self._batches):
            if batch.start.id <= after:
                break
            number -= 1
        return number

    @property
    def _first_known(self) -> StreamId:
        """Below it lies what a feed that began with nothing cannot vouch for: a stream that came
        and went before its first entry."""
        first = self._batches[0]
        if first.start.id != START:
            return first.start.id
        return (first.entries[0].id if first.entries else first.end.id).before()

    def holds(self, id_: StreamId) -> bool:
        """Whether an entry with this id is in the window, or was the last before it."""
        number = self.locate(id_)
        if number is None:
            return False
        batch = self.get(number)
        return (
            batch is None
            or id_ == batch.start.id
            or any(entry.id == id_ for entry in batch.entries)
        )


def rest_of(batch: Batch, after: StreamId) -> Batch:
    """The part of a batch that follows an id within it."""
    if after <= batch.start.id:
        return batch
    entries = [entry for entry in batch.entries if entry.id > after]
    return Batch(Cursor(after), batch.end, entries)


def cut(start: Cursor, end: Cursor, entries: list[Entry], max_bytes: int) -> list[Batch]:
    """Consecutive batches of at most `max_bytes` each, or of one entry that is larger."""
    batches: list[Batch] = []
    run: list[Entry] = []
    size = 0
    # Entries that hold no event are counted in `end` alone; positions between are unknown then.
    exact = start.position is not None and end.position == start.position + len(entries)
    for entry in entries:
        if run and size + len(entry.json) > max_bytes:
            position = start.position + len(run) if exact and start.position is not None else None
            batches.append(Batch(start, start := Cursor(run[-1].id, position), run))
            run, size = [], 0
        run.append(entry)
        size += len(entry.json)
    batches.append(Batch(start, end, run))
    return batches
