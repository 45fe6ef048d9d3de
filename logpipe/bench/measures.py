"""The measurements: how fast events go in, how many come out, how late, and whether all did."""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from logpipe.bench.events import Template
from logpipe.bench.readers import Crowd, Read, reading
from logpipe.bench.senders import Recipe, Sent, sender
from logpipe.bench.target import Target, Wrap

WARM_UP_S = 0.5
PUBLISHERS = 16
"""Connections of a paced publisher: more than are under way at a time, so that none has to wait."""
PUBLISH_HZ = 100
"""Requests a second of a paced publisher at the most; beyond, they carry several events each."""
READERS_A_PROCESS = 2_000

Tick = Callable[[float], None]
"""Told now and then how much of a measurement is done, from 0 to 1."""


class Spread(msgspec.Struct):
    """A distribution, in milliseconds."""

    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Nearest rank."""
        if not values:
            return cls()
        ordered = sorted(values)
        p50, p99 = (ordered[(len(ordered) * share + 99) // 100 - 1] for share in (50, 99))
        return cls(p50, p99, ordered[-1])


class Used(msgspec.Struct):
    """What a server's processes used meanwhile, where it can be known: cores, and bytes at the
    end."""

    cores: float | None = None
    rss_bytes: int | None = None


class Usage(NamedTuple):
    """What a server's processes have used: CPU seconds so far, and bytes right now."""

    cpu_s: float
    rss_bytes: int


Meter = Callable[[], Usage | None]


class Ingest(msgspec.Struct, tag="ingest", tag_field="measure"):
    """How fast events go in; each was acknowledged."""

    target: str
    connections: int
    per_request: int
    events_per_s: float
    answer_ms: Spread
    refused: dict[str, int]
    used: Used
    last: str
    """The last acknowledgement."""


class FanOut(msgspec.Struct, tag="fan-out", tag_field="measure"):
    """How many events come out, and when."""

    target: str
    readers: int
    rate: float
    """Events a second that were to be sent."""
    connected: int
    connects_per_s: float
    sent: int
    delivered: int
    delivered_per_s: float
    missing: int
    doubled: int
    latency_ms: Spread
    """From when an event was due, so that a publisher that is held up shows."""
    bytes_a_reader: float | None
    """Of the server's memory."""
    received_bytes: int
    broken: dict[str, int]
    refused: dict[str, int]
    """Requests of the publisher that the server has not taken."""
    used: Used
    readers_cpu: float
    """Cores that the reading side took: near one a process, it is what was measured."""


Measure = Ingest | FanOut


def ingest(
    target: Target,
    wrap: Wrap,
    *,
    connections: int,
    per_request: int,
    size: int,
    seconds: float,
    rate: float | None = None,
    meter: Meter = lambda: None,
    tick: Tick = lambda _: None,
) -> Ingest:
    """Sends for so many seconds, at full rate or at `rate` events a second. Where the server
    refuses the batches as too large, sends again, the largest that it accepts. Raises OSError."""
    again = partial(
        ingest,
        target,
        wrap,
        connections=connections,
        size=size,
        seconds=seconds,
        rate=rate,
        meter=meter,
        tick=tick,
    )
    template = Template(_run(), wrap, per_request=per_request, size=size)
    recipe = Recipe(target.ingest, template, target.answers)
    if rate is None:
        with sender(recipe, connections) as warming:
            most = warming.at_full_rate(min(WARM_UP_S, seconds)).max_events
        if 0 < most < per_request:
            return again(per_request=most)
    started = time.monotonic()

    def progress(_: int) -> None:
        tick(min(1.0, (time.monotonic() - started) / seconds))

    with sender(recipe, connections) as sending, _metered(meter) as used:
        if rate is None:
            sent = sending.at_full_rate(seconds, progress)
        else:
            sent = sending.at_pace(rate / per_request, seconds, progress)
    if not sent.events and 0 < sent.max_events < per_request:
        return again(per_request=sent.max_events)
    return Ingest(
        target.name,
        connections,
        per_request,
        sent.events_per_s,
        Spread.of(sent.answer_ms),
        sent.refused,
        used,
        sent.last.decode("utf-8", "replace"),
    )


def fan_out(
    target: Target,
    *,
    readers: int,
    rate: float,
    size: int,
    seconds: float,
    requests: Sequence[bytes] = (),
    batch: bool = True,
    meter: Meter = lambda: None,
    tick: Tick = lambda _: None,
) -> FanOut:
    """So many readers, and `rate` events a second for so many seconds. Raises OSError.

    `requests` are what the readers send to subscribe, in turn; by default all the target's own.
    """
    assert target.distributor is not None
    many = target.batch if batch and rate > PUBLISH_HZ and target.batch else None
    wrap = many or target.single
    assert wrap is not None
    per_request = max(1, round(rate / PUBLISH_HZ)) if many else 1
    run = _run()
    crowd = Crowd(
        target.distributor,
        tuple(requests) or (target.subscribe,),
        run,
        readers,
        per_request=per_request,
        http=target.http,
    )
    before = meter()
    processes = max(1, min(os.cpu_count() or 1, readers // READERS_A_PROCESS))
    template = Template(run, wrap, per_request=per_request, size=size)
    recipe = Recipe(target.ingest, template, target.answers)
    with reading(crowd, processes) as crowds:
        connected = crowds.connected
        after = meter()
        crowds.arm()
        started = time.monotonic()

        def progress(_: int) -> None:
            tick(min(1.0, (time.monotonic() - started) / seconds))

        with sender(recipe, PUBLISHERS) as sending, _metered(meter) as used:
            sent = sending.at_pace(rate / per_request, seconds, progress)
        read = crowds.finish(_numbers(sent, per_request))
    grown = after.rss_bytes - before.rss_bytes if before and after else None
    return _fan_out(target, readers, rate, connected, sent, read, grown, used)


def _fan_out(
    target: Target,
    readers: int,
    rate: float,
    connected: Read,
    sent: Sent,
    read: Read,
    grown: int | None,
    used: Used,
) -> FanOut:
    broken: dict[str, int] = {}
    for reason in [*connected.broken, *read.broken]:
        broken[reason] = broken.get(reason, 0) + 1
    return FanOut(
        target.name,
        readers,
        rate,
        connected.connected,
        connected.connected / connected.connect_s if connected.connect_s else 0.0,
        sent.events,
        read.delivered,
        read.delivered / sent.seconds,
        read.missing,
        read.doubled,
        Spread.of(read.latency_ms),
        grown / readers if grown is not None else None,
        read.received_bytes,
        broken,
        sent.refused,
        used,
        read.cpu_s / sent.seconds,
    )


def _numbers(sent: Sent, per_request: int) -> list[int]:
    return [number * per_request + index for number in sent.numbers for index in range(per_request)]


def _run() -> str:
    return uuid.uuid4().hex[:8]


@contextlib.contextmanager
def _metered(meter: Meter) -> Iterator[Used]:
    used = Used()
    started, before = time.monotonic(), meter()
    yield used
    after = meter()
    if before is not None and after is not None:
        used.cores = (after.cpu_s - before.cpu_s) / (time.monotonic() - started)
        used.rss_bytes = after.rss_bytes
