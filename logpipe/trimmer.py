"""The trimmer: keeps the stream within TRIM_MAXBYTES and TRIM_MAXAGE.

Each collector process has one. Each trims by what it has just seen, to a size and not by an amount,
so that several do no more than one. A reader that is overtaken is told by a gap, as ever.
"""

import asyncio
import contextlib
import math
import random

from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.stream.trimming import AT_ONCE, Size, StreamTrimming

TRIM_S = 1.0
"""Between two looks; jitter keeps those of several collectors apart."""

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
        self, trimming: StreamTrimming, metrics: Metrics, *, max_bytes: int, max_age_ms: int
    ) -> None:
        self._trimming = trimming
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._max_age_ms = max_age_ms

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            with contextlib.suppress(Unavailable):
                await self.trim()
            await asyncio.sleep(TRIM_S * random.uniform(0.75, 1.25))  # noqa: S311

    async def trim(self) -> None:
        """Trims what is too old and too much now. Raises `Unavailable`."""
        if self._max_age_ms:
            while gone := await self._trimming.drop_older(self._max_age_ms):
                self._metrics.count_limited({"stream_age": gone})
        if self._max_bytes:
            await self._trim_to_budget()

    async def _trim_to_budget(self) -> None:
        step, before = 1, 0
        for _ in range(STEPS):
            size = await self._trimming.size()
            if size.bytes <= self._max_bytes:
                return
            # Only whole nodes go. Where none did, the first one has more entries than were tried;
            # unless there are fewer than before, because another collector was there first.
            least = step * 4 if 0 < before <= size.entries else 1
            step = max(least, self._step(size))
            if step >= size.entries:
                return
            gone = await self._trimming.keep_newest(size.entries - step, max(step, NODE_ENTRIES))
            self._metrics.count_limited({"stream_bytes": gone})
            before = 0 if gone else size.entries

    def _step(self, size: Size) -> int:
        """How many of the oldest entries to trim before the next look."""
        needed = math.ceil((size.bytes - self._max_bytes) / max(1.0, size.oldest))
        return min(needed, max(NODE_ENTRIES, int(size.entries * STEP)), AT_ONCE, size.entries - 1)
