"""The canary: a small event that goes all the way, from a collector to a subscriber.

Each collector process appends one every CANARY_S, numbered; each distributor process notes how old
they are when its live readers have had them, and which do not come.
They are events of the users' stream like others: `-source:logpipe.canary` hides them.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec

from logpipe.event import Event, StoredEvent, encode
from logpipe.fanout.hub import Hub
from logpipe.metrics import Metrics
from logpipe.problems import Problem
from logpipe.stream import Append, Appended

SOURCE = "logpipe.canary"

MAX_INSTANCES = 256
"""Collector processes whose numbers are remembered; those heard of longest ago are forgotten."""
MAX_AGE_MS = 86_400_000
"""No canary is taken to be older, whatever it says itself; nor from the future: clocks differ."""


class Mark(msgspec.Struct):
    """What tells one canary from another: the collector process that sent it, and its number."""

    instance: Annotated[str, msgspec.Meta(max_length=64)]
    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]


def canary(mark: Mark) -> bytes:
    """The event, as the stream holds it."""
    event = Event(SOURCE, f"canary {mark.number}", "TRACE", metadata=msgspec.to_builtins(mark))
    return encode([event], time.time_ns() // 1_000_000)[0]


async def send_canaries(
    append: Callable[[Append], Awaitable[Appended]], metrics: Metrics, every_s: float
) -> None:
    """Sends one now and then, for ever.

    A number is used up when the append was confirmed: only what was acknowledged can be lost.
    """
    mark = Mark(secrets.token_hex(8), 1)
    while True:
        try:
            await append(Append([canary(mark)]))
        except Problem:  # Redis is away, or takes nothing: told elsewhere
            pass
        else:
            metrics.canary_sent.inc()
            mark.number += 1
        await asyncio.sleep(every_s)


async def await_canaries(hub: Hub, metrics: Metrics) -> None:
    """Notes, for ever, the canaries that come by the feed of this process.

    It reads the window behind the live readers, when they have been written to, and never the
    stream: a distributor that is behind has no more to do for being measured. (A window smaller
    than one read, SUBSCRIBER_QUEUE_LEN below BATCH_COUNT, may hide some.)
    """
    heard = Heard(metrics)
    number = hub.window.next_number
    while True:
        change = hub.change
        number = max(number, hub.window.first_number)
        now_ms = time.time_ns() // 1_000_000
        while (batch := hub.window.get(number)) is not None:
            for entry in batch.entries:
                if entry.event.source == SOURCE:
                    heard.note(entry.event, now_ms)
            number += 1
        await change.wait()


class Heard:
    """The last number of each collector process, and what the metrics say of it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last: OrderedDict[str, int] = OrderedDict()

    def note(self, event: StoredEvent, now_ms: int) -> None:
        """Takes note of a canary. The first of a process says nothing of those before it; one that
        comes again, because its append was confirmed to nobody, counts once."""
        try:
            mark = msgspec.convert(event.metadata, Mark)
        except msgspec.ValidationError:  # anyone may use the source
            return
        last = self._last.get(mark.instance, mark.number - 1)
        if mark.number <= last:
            return
        self._metrics.canary_received.inc()
        self._metrics.canary_lost.inc(mark.number - last - 1)
        age_ms = now_ms - (event.ts_unix_ms or now_ms)
        self._metrics.canary_latency_seconds.observe(min(max(0, age_ms), MAX_AGE_MS) / 1000)
        self._last[mark.instance] = mark.number
        self._last.move_to_end(mark.instance)
        if len(self._last) > MAX_INSTANCES:
            self._last.popitem(last=False)
