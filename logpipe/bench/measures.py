"""The measurements: how fast events go in, how many come out, how late, and whether all arrive."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from logpipe.bench.events import Template, Wrap
from logpipe.bench.reading import Crowd, Reader
from logpipe.bench.sending import Address, Connection, Sender, Sent

WARM_UP_S = 0.5
PUBLISHERS = 16
"""Connections of a publisher: more than are under way at a time, so that no request has to wait."""
PUBLISH_HZ = 100
"""The most requests per second of a publisher of batches; beyond, each carries several events."""
TICK_S = 0.1

Tick = Callable[[float], None]
"""Called with the part of a measurement that is done, from 0 to 1."""


class Target(NamedTuple):
    """A server: where events go in and come out, and the requests for it. None for what it does not
    have."""

    name: str
    ingest: Address
    distributor: Address | None
    single: Wrap | None
    batch: Wrap | None
    subscribe: bytes = b""
    sends: type[Connection] = Connection
    reads: type[Reader] = Reader


class Spread(msgspec.Struct):
    """A distribution in milliseconds."""

    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """By nearest rank; zeros for no values."""
        if not values:
            return cls()
        ordered = sorted(values)
        p50, p99 = (ordered[(len(ordered) * share + 99) // 100 - 1] for share in (50, 99))
        return cls(p50, p99, ordered[-1])


class Usage(NamedTuple):
    """CPU seconds that the processes of a server have used so far, and their bytes in memory."""

    cpu_s: float
    rss_bytes: int


class Used(msgspec.Struct):
    """What a server used during a measurement: cores, and bytes at the end. None: unknown."""

    cores: float | None = None
    rss_bytes: int | None = None


Meter = Callable[[], Awaitable[Usage | None]]


class Ingest(msgspec.Struct, tag="ingest", tag_field="measure"):
    """How fast events go in; all that are counted were acknowledged."""

    target: str
    connections: int
    per_request: int
    events_per_s: float
    answer_ms: Spread
    refused: dict[str, int]
    used: Used
    last: str
    """The body of the last acknowledgement."""


class FanOut(msgspec.Struct, tag="fan-out", tag_field="measure"):
    """How many events come out, and when."""

    target: str
    readers: int
    rate: float
    """Events per second that were due."""
    connected: int
    connects_per_s: float
    sent: int
    delivered: int
    delivered_per_s: float
    missing: int
    doubled: int
    latency_ms: Spread
    """From when an event was due, so that a delay of the publisher is included."""
    bytes_a_reader: float | None
    """Of the server's memory."""
    received_bytes: int
    broken: dict[str, int]
    """Readers that ended early, by reason."""
    refused: dict[str, int]
    """Requests of the publisher that the server did not accept, by status or reason."""
    used: Used
    readers_cpu: float
    """Cores used by the measuring process; close to 1, that process is the bottleneck."""


Measure = Ingest | FanOut


async def _unknown() -> None:
    return None


async def ingest(
    target: Target,
    wrap: Wrap,
    *,
    connections: int,
    per_request: int,
    size: int,
    seconds: float,
    rate: float | None = None,
    meter: Meter = _unknown,
    tick: Tick = lambda _: None,
    warm_up_s: float = WARM_UP_S,
) -> Ingest:
    """Sends at full rate or at `rate` events per second. Where the server rejects batches as too
    large, it sends the largest that the server accepts. Raises OSError."""
    while True:
        template = Template(_run(), wrap, per_request=per_request, size=size)
        if rate is None:
            async with _sender(target, template, connections) as warming:
                most = (await warming.at_full_rate(min(warm_up_s, seconds))).max_events
            if 0 < most < per_request:
                per_request = most
                continue
        async with (
            _sender(target, template, connections) as sending,
            _metered(meter, seconds, tick) as used,
        ):
            if rate is None:
                sent = await sending.at_full_rate(seconds)
            else:
                sent = await sending.at_rate(rate / per_request, seconds)
        if sent.events or not 0 < sent.max_events < per_request:
            break
        per_request = sent.max_events
    return Ingest(
        target.name,
        connections,
        per_request,
        sent.events / sent.seconds,
        Spread.of(sent.answer_ms),
        dict(sent.refused),
        used,
        sent.last.decode("utf-8", "replace"),
    )


async def fan_out(
    target: Target,
    *,
    readers: int,
    rate: float,
    size: int,
    seconds: float,
    requests: Sequence[bytes] = (),
    batch: bool = True,
    meter: Meter = _unknown,
    tick: Tick = lambda _: None,
) -> FanOut:
    """So many readers, and `rate` events per second. Raises OSError.

    The readers send `requests` in turn to subscribe; by default all send the target's own.
    """
    assert target.distributor is not None
    many = target.batch if batch and rate > PUBLISH_HZ else None
    wrap = many or target.single
    assert wrap is not None
    per_request = max(1, round(rate / PUBLISH_HZ)) if many else 1
    run = _run()
    template = Template(run, wrap, per_request=per_request, size=size)
    before = await meter()
    async with contextlib.aclosing(Crowd(run, per_request)) as crowd:
        await crowd.connect(
            target.distributor, requests or (target.subscribe,), readers, target.reads
        )
        after = await meter()
        await crowd.arm()
        async with (
            _sender(target, template, PUBLISHERS) as sending,
            _metered(meter, seconds, tick) as used,
        ):
            sent = await sending.at_rate(rate / per_request, seconds)
        read = await crowd.finish(_events(sent, per_request))
    return FanOut(
        target.name,
        readers,
        rate,
        read.connected,
        read.connected / read.connect_s,
        sent.events,
        read.delivered,
        read.delivered / sent.seconds,
        read.missing,
        read.doubled,
        Spread.of(read.latency_ms),
        (after.rss_bytes - before.rss_bytes) / readers if before and after else None,
        read.received_bytes,
        dict(read.broken),
        dict(sent.refused),
        used,
        read.cpu_s / sent.seconds,
    )


def _events(sent: Sent, per_request: int) -> set[int]:
    return {number * per_request + index for number in sent.numbers for index in range(per_request)}


def _run() -> str:
    return uuid.uuid4().hex[:8]


@contextlib.asynccontextmanager
async def _sender(target: Target, template: Template, connections: int) -> AsyncIterator[Sender]:
    async with contextlib.aclosing(Sender(template)) as made:
        await made.connect(target.ingest, connections, target.sends)
        yield made


@contextlib.asynccontextmanager
async def _metered(meter: Meter, seconds: float, tick: Tick) -> AsyncIterator[Used]:
    """Fills in what the server uses during this context, and reports how much of it is over."""
    used = Used()
    before, started = await meter(), time.monotonic()
    ticking = asyncio.create_task(_tick(tick, started, seconds))
    try:
        yield used
    finally:
        ticking.cancel()
    took, after = time.monotonic() - started, await meter()
    if before is not None and after is not None:
        used.cores = (after.cpu_s - before.cpu_s) / took
        used.rss_bytes = after.rss_bytes


async def _tick(tick: Tick, started: float, seconds: float) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        tick(min(1.0, (time.monotonic() - started) / seconds))
