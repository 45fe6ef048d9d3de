"""Pages that readers behind the window have read, kept a while for those who come the same way.

After a restart a thousand readers come back with nearly the same last id: each reading the stream
for itself would take longer than new entries take to come, and no one would ever catch up.
"""

import bisect
import time
from collections.abc import Callable

from logpipe.ids import StreamId
from logpipe.messages import Batch, Keepers

MAX_BYTES = 16 * 1024 * 1024
"""Of events, as in `window.MAX_BYTES`: a stream of TRIM_MAXLEN common events."""

KEPT_CHUNKS = 8
"""Pages that keep encoded chunks, as `window.KEPT_CHUNKS`."""

KEPT_S = 10.0
"""A page that nobody has asked for is let go after this."""


class Shelf:
    """Batches by where they start; what they say was true when they were read."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, max_bytes: int = MAX_BYTES
    ) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._clock = clock
        self._keepers = Keepers(KEPT_CHUNKS)
        self._starts: list[StreamId] = []
        self._batches: dict[StreamId, Batch] = {}
        self._used: dict[StreamId, float] = {}  # the one used longest ago first

    def put(self, batch: Batch) -> None:
        """Keeps a batch that has entries, and lets go of others where there are too many."""
        start = batch.start.id
        if start in self._batches:
            self._drop(start)
        bisect.insort(self._starts, start)
        self._batches[start] = batch
        self._used[start] = self._clock()
        self.bytes += batch.weight
        self._keepers.add(batch)
        while self.bytes > self._max_bytes and len(self._batches) > 1:
            self._drop(next(iter(self._used)))

    def get(self, after: StreamId) -> Batch | None:
        """The batch that goes on after an id, which is its start or one of its entries."""
        index = bisect.bisect_right(self._starts, after) - 1
        if index < 0:
            return None
        start = self._starts[index]
        batch = self._batches[start]
        if after >= batch.end.id:
            return None
        if after != start and not any(entry.id == after for entry in batch.entries):
            return None
        del self._used[start]
        self._used[start] = self._clock()
        return batch

    def let_go(self) -> None:
        """Drops what nobody has asked for lately."""
        oldest = self._clock() - KEPT_S
        for start in [start for start, used in self._used.items() if used < oldest]:
            self._drop(start)

    def clear(self) -> None:
        """Drops all: the stream may be another one."""
        for start in list(self._starts):
            self._drop(start)

    def _drop(self, start: StreamId) -> None:
        batch = self._batches.pop(start)
        self.bytes -= batch.weight
        self._keepers.remove(batch)
        del self._used[start]
        del self._starts[bisect.bisect_left(self._starts, start)]
