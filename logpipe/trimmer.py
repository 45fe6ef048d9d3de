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
from logpipe.stream.trimming import AT_ONCE, StreamTrimming

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
            for _ in range(STEPS):
                gone = await self._step()
                if not gone:
                    return
                self._metrics.count_limited({"stream_bytes": gone})

    async def _step(self) -> int:
        """How many entries went; 0 when it is small enough, or one node."""
        size = await self._trimming.size()
        excess = size.bytes - self._max_bytes
        if excess <= 0:
            return 0
        needed = math.ceil(excess / max(1.0, size.oldest))
        step = min(needed, max(NODE_ENTRIES, int(size.entries * STEP)), AT_ONCE)
        gone = 0
        while not gone and step < size.entries:
            gone = await self._trimming.keep_newest(size.entries - step, max(step, NODE_ENTRIES))
            step *= 4  # only whole nodes go, and the first one has more than that
        return gone
