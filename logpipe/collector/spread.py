"""The appender of a log with partitions: an appender each, and requests that are split for them."""

import asyncio
import sys
from collections.abc import Iterable, Mapping

from logpipe.collector.appender import Appender
from logpipe.collector.inflight import Inflight
from logpipe.metrics import Metrics
from logpipe.stream.append import Append, Appended
from logpipe.stream.health import RedisHealth
from logpipe.stream.partitions import Partitions, partition_of, spread

UNREFUSED = sys.maxsize
"""Room of a partition's own: the whole request was given room, and is not refused in parts."""


class SpreadAppender:
    """As `Appender`. A request is appended whole or not at all in each of its partitions alone.

    With an idempotency key, what a partition has of it is appended there once: a request of which
    some partitions have confirmed nothing is repeated as it is.
    """

    def __init__(self, partitions: Partitions, metrics: Metrics, inflight: Inflight) -> None:
        self.inflight = inflight
        self.health: RedisHealth = partitions.health
        self._streams = partitions.streams
        self._appenders = [
            Appender(stream, metrics, Inflight(UNREFUSED)) for stream in partitions.streams
        ]

    async def append(self, request: Append) -> Appended:
        """As `Appender.append`; the ids name the partitions. Where one of several partitions is
        known to take nothing now, the others get nothing either."""
        size = sum(map(len, request.events))
        self.inflight.require(size)
        parts = spread(request, len(self._appenders))
        if len(parts) > 1:
            self._require_all(parts)
        self.inflight.bytes += size
        try:
            outcomes = await self._append(parts)
        finally:
            self.inflight.bytes -= size
        return _outcome(request, outcomes, len(self._appenders))

    def _require_all(self, parts: Iterable[int]) -> None:
        for partition in parts:
            health = self._streams[partition].health
            if not health.serves(writes=True):
                raise health.unavailable()

    async def _append(self, parts: Mapping[int, Append]) -> dict[int, Appended]:
        if len(parts) == 1:
            ((partition, part),) = parts.items()
            return {partition: await self._appenders[partition].append(part)}
        # All are waited for: the answer to one must not come while others are under way.
        appends = (self._appenders[partition].append(part) for partition, part in parts.items())
        done = await asyncio.gather(*appends, return_exceptions=True)
        outcomes: dict[int, Appended] = {}
        for partition, outcome in zip(parts, done, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes[partition] = outcome
        return outcomes

    async def aclose(self) -> None:
        """Waits for the appends under way."""
        await asyncio.gather(*(appender.aclose() for appender in self._appenders))


def _outcome(request: Append, outcomes: Mapping[int, Appended], partitions: int) -> Appended:
    """The outcome of a request, by those of its parts."""
    if not outcomes:
        return Appended("0-0", "0-0", request.receipt, False)
    first = partition_of(request.events[0], partitions)
    last = partition_of(request.events[-1], partitions)
    return Appended(
        f"{outcomes[first].first}-{first}",
        f"{outcomes[last].last}-{last}",
        outcomes[first].receipt,
        all(outcome.repeated for outcome in outcomes.values()),
    )


AnyAppender = Appender | SpreadAppender
"""What appends the events of a process, whatever PARTITIONS is."""
