"""The trimmer: keeps the stream within TRIM_MAXBYTES and TRIM_MAXAGE, also while Redis is full.

Each collector process has one. Each trims by what it has just seen, to a size and not by an amount,
so that several do no more than one. A reader that is overtaken is told by a gap, as ever.
"""

import asyncio
import contextlib
import logging
import math
import random

from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.settings import StreamBytes
from logpipe.stream import Memory
from logpipe.stream.trimming import AT_ONCE, Size, StreamTrimming

log = logging.getLogger("logpipe")

TRIM_S = 1.0
"""Between two looks; jitter keeps those of several collectors apart."""

GROWING_S = 0.2
"""The same after a look that has trimmed by bytes: the stream grows, and faster than it may when it
grows by the rest of the memory of Redis between two looks."""

HIGH = 0.95
"""Part of the memory of Redis. Where all that Redis holds takes more, a stream that may take a
percentage is trimmed by the excess, though it is within its own budget: else Redis could stay full
for ever of what else it holds."""

LEAST = 0.5
"""Part of its budget that a stream keeps then, whatever else Redis holds."""

STEP = 0.05
"""The part of the entries that is trimmed before the size is looked at again: how large entries
further up are is not known."""

NODE_ENTRIES = 100
"""Of a node of the stream, at the most, unless Redis is configured otherwise."""

STEPS = 100
"""Of one look, at the most."""


class Trimmer:
    """The trimming of one stream, beyond what its appends do."""

    def __init__(
        self, trimming: StreamTrimming, metrics: Metrics, *, max_bytes: StreamBytes, max_age_ms: int
    ) -> None:
        self._trimming = trimming
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._max_age_ms = max_age_ms
        self._warned = False

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            growing = False
            with contextlib.suppress(Unavailable):
                growing = await self.trim()
            pause = GROWING_S if growing else TRIM_S
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311

    async def trim(self) -> bool:
        """Trims what is too old and too much now. Returns whether any of it was trimmed by bytes.
        Raises `Unavailable`."""
        if self._max_age_ms:
            while gone := await self._trimming.drop_older(self._max_age_ms):
                self._metrics.count_limited({"stream_age": gone})
        budget: float = self._max_bytes.bytes
        if self._max_bytes.percent:
            memory = await self._trimming.memory()
            self._warn_without_limit(memory)
            if memory.limit > 0:
                size = await self._trimming.size()
                budget = budget_of(self._max_bytes.percent, memory, size.bytes)
        return bool(budget) and await self._trim_to(budget)

    def _warn_without_limit(self, memory: Memory) -> None:
        """Logs once that a percentage is of nothing, and again after Redis had a limit."""
        if memory.limit > 0:
            self._warned = False
        elif not self._warned:
            self._warned = True
            why = "has no maxmemory" if memory.limit == 0 else "does not say its maxmemory (INFO)"
            log.warning(
                "TRIM_MAXBYTES=%d%%: Redis %s, so that the stream has no limit by bytes; give Redis"
                " a maxmemory, or TRIM_MAXBYTES a number of bytes",
                self._max_bytes.percent,
                why,
            )

    async def _trim_to(self, budget: float) -> bool:
        """Whether any entry was trimmed."""
        step, before, trimmed = 1, 0, 0
        for _ in range(STEPS):
            size = await self._trimming.size()
            if size.bytes <= budget:
                break
            # Only whole nodes go. Where none did, the first one has more entries than were tried;
            # unless there are fewer than before, because another collector was there first.
            least = step * 4 if 0 < before <= size.entries else 1
            step = max(least, _step(size, budget))
            if step >= size.entries:
                break
            gone = await self._trimming.keep_newest(size.entries - step, max(step, NODE_ENTRIES))
            self._metrics.count_limited({"stream_bytes": gone})
            before = 0 if gone else size.entries
            trimmed += gone
        return trimmed > 0


def budget_of(percent: int, memory: Memory, size: float) -> float:
    """Bytes that a stream of `size` bytes may take now: a percentage of the memory that Redis may
    use, less what all of it takes beyond `HIGH`, but for `LEAST` of that percentage."""
    budget = memory.limit * percent / 100
    excess = memory.used - HIGH * memory.limit
    return budget if excess <= 0 else max(LEAST * budget, min(budget, size - excess))


def _step(size: Size, budget: float) -> int:
    """How many of the oldest entries to trim before the next look."""
    needed = math.ceil((size.bytes - budget) / max(1.0, size.oldest))
    return min(needed, max(NODE_ENTRIES, int(size.entries * STEP)), AT_ONCE, size.entries - 1)
