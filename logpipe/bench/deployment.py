"""A running deployment: what it holds, what it uses, and the measurements made on it."""

import re
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import msgspec

from logpipe.bench.http import Address, BrokenError, get
from logpipe.bench.measures import FanOut, Ingest, Measure, Usage, fan_out, ingest
from logpipe.bench.target import Target, bearer

Name = Literal["single", "batch", "fan-out", "latency"]
T = TypeVar("T")
NAMES: tuple[Name, ...] = ("single", "batch", "fan-out", "latency")

MAX_TOLD = 200
"""Bytes of an answer that an error repeats."""
LATENCY_READERS = 100
LATENCY_RATES = (10.0, 1000.0)

_CPU = re.compile(rb"^logpipe_process_cpu_seconds_total (\S+)$", re.MULTILINE)
_RSS = re.compile(rb"^logpipe_process_resident_memory_bytes (\S+)$", re.MULTILINE)


class Plan(msgspec.Struct, frozen=True):
    """What to measure, and how much of it."""

    names: tuple[Name, ...] = NAMES
    seconds: float = 5.0
    connections: int = 64
    batch: int = 1000
    rate: float = 1000.0
    readers: int = 1000
    size: int = 200
    ingest_rate: float | None = None
    """Events a second of single and batch; None for as many as go in."""


class UnfitError(Exception):
    """The deployment cannot be measured; says why."""


def foreign_events(target: Target, token: str) -> bool:
    """Whether the stream holds events that a benchmark would push out. Raises `UnfitError`."""
    assert target.distributor is not None
    path = query = "/events?limit=1&q=-source:bench"
    while True:
        page = _page(target.distributor, path, token)
        if page.events or page.next is None:
            return bool(page.events)
        path = f"{query}&cursor={page.next}"


def measure(
    target: Target, plan: Plan, progress: Callable[[str, float], None], read_token: str
) -> Iterator[Measure]:
    """One measurement after the other; `progress` is told its name and how much of it is done.

    Raises `UnfitError` for a deployment that cannot be reached, and one that has not stored what
    it has acknowledged.
    """
    try:
        for name in plan.names:
            yield from _measure(name, target, plan, progress, read_token)
    except OSError as error:
        raise UnfitError(f"the connection fails: {error}") from None


def _measure(
    name: Name,
    target: Target,
    plan: Plan,
    progress: Callable[[str, float], None],
    read_token: str,
) -> Iterator[Measure]:
    assert target.single is not None and target.batch is not None
    assert target.distributor is not None
    at_collector = lambda: usage(target.ingest, target.admin_token)  # noqa: E731
    if name in ("single", "batch"):
        single = name == "single"
        taken = ingest(
            target,
            target.single if single else target.batch,
            connections=plan.connections if single else max(1, plan.connections // 8),
            per_request=1 if single else plan.batch,
            size=plan.size,
            seconds=plan.seconds,
            rate=plan.ingest_rate,
            meter=at_collector,
            tick=lambda part: progress(name, part),
        )
        _require_stored(taken, target.distributor, read_token)
        yield taken
        return
    pairs = [(plan.readers, plan.rate)]
    if name == "latency":
        pairs = [(LATENCY_READERS, rate) for rate in LATENCY_RATES]
    for readers, rate in pairs:
        yield _fan_out(target, plan, readers, rate, lambda part: progress(name, part))


def _fan_out(
    target: Target, plan: Plan, readers: int, rate: float, tick: Callable[[float], None]
) -> FanOut:
    assert target.distributor is not None
    distributor = target.distributor
    return fan_out(
        target,
        readers=readers,
        rate=rate,
        size=plan.size,
        seconds=plan.seconds,
        # A thousand readers are measured by what reaches them, a hundred by how soon.
        batch=readers > LATENCY_READERS,
        meter=lambda: usage(distributor, target.admin_token),
        tick=tick,
    )


def _require_stored(taken: Ingest, distributor: Address, token: str) -> None:
    """The last event that was acknowledged has to be there: it cannot have been trimmed."""
    if not taken.last:
        return
    answer = _decode(taken.last.encode(), _Acknowledged)
    last = answer.id or answer.last_id
    if not _page(distributor, f"/events?from={last}&to={last}", token).events:
        raise UnfitError(
            f"the event {last} was acknowledged and is not at the distributor: do both use the"
            " same Redis and STREAM_NAME?"
        )


def usage(address: Address, token: str = "") -> Usage | None:
    """What the process at an address has used, by its /metrics; None where it does not say."""
    try:
        text = get(address, "/metrics", bearer(token)).body
    except (OSError, BrokenError):
        return None
    cpu, rss = _CPU.search(text), _RSS.search(text)
    if cpu is None or rss is None:
        return None
    return Usage(float(cpu[1]), int(float(rss[1])))


class _Acknowledged(msgspec.Struct):
    """Of one event, or of a batch."""

    id: str = ""
    last_id: str = ""

    def __post_init__(self) -> None:
        if not self.id and not self.last_id:
            raise ValueError("no event was taken")


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    next: str | None


def _page(address: Address, path: str, token: str) -> _Page:
    return _decode(_get(address, path, token), _Page)


def _decode(answer: bytes, of: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=of)
    except msgspec.DecodeError as error:
        told = answer[:MAX_TOLD].decode("utf-8", "replace")
        raise UnfitError(f"this is no answer of logpipe: {told} ({error})") from None


def _get(address: Address, path: str, token: str) -> bytes:
    try:
        answer = get(address, path, bearer(token))
    except (OSError, BrokenError) as error:
        raise UnfitError(f"{address.host}:{address.port} does not answer: {error}") from None
    if answer.status != 200:
        told = answer.body[:MAX_TOLD].decode("utf-8", "replace")
        raise UnfitError(f"GET {path} is answered {answer.status}: {told}")
    return answer.body
