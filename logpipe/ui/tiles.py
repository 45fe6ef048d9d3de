"""The figures of the operator's page, each with how it was over the last minutes."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from logpipe.samples import Point, Sample, changes, levels, quantile, rate
from logpipe.stream import WRITES_ONLY
from logpipe.ui import figures
from logpipe.ui.charts import SPAN_S, Line, peak, sparkline
from logpipe.watch import Watched, of_role

Format = Callable[[float | None], str]


class Tile(NamedTuple):
    """A figure, what belongs to it, and how it was over the last minutes."""

    key: str
    label: str
    value: str
    notes: Sequence[str]
    chart: Markup
    peak: str


class _Curves:
    """The samples of one process, as figures of now and curves up to now."""

    def __init__(self, watched: Watched | None, now: float) -> None:
        self.now = now
        self.sample = watched.seen.sample if watched else None
        self.samples = list(watched.samples) if watched else []
        health = watched.seen.health if watched else None
        self.redis_away = health is not None and health.redis not in ("ok", *WRITES_ONLY)

    def value(self, name: str, **labels: str) -> float | None:
        return self.sample.value(name, **labels) if self.sample else None

    def levels(self, name: str) -> list[Point]:
        return levels(self.samples, name)

    def rates(self, name: str, **labels: str) -> list[Point]:
        return changes(self.samples, rate(name, **labels))

    def quantiles(self, q: float, name: str) -> list[Point]:
        return changes(self.samples, quantile(q, name))

    def latest(self, points: Sequence[Point]) -> float | None:
        """The last value of a curve; None while its process cannot be reached."""
        return points[-1].value if points and self.sample else None

    def overall(self, between: Callable[[Sample, Sample], float | None]) -> float | None:
        """What the first and the last sample of the chart's time say together."""
        recent = [each for each in self.samples if self.now - each.at <= SPAN_S]
        return between(recent[0], recent[-1]) if self.sample and len(recent) > 1 else None

    def chart(self, key: str, label: str, shown: Format, *lines: Line) -> tuple[Markup, str]:
        """A chart, and its peak in words."""
        highest = peak([point for line in lines for point in line.points], self.now)
        words = "no data yet" if highest is None else f"peak {shown(highest) if highest else 0}"
        text = f"The last {SPAN_S / 60:.0f} minutes; {words}."
        return sparkline(key, lines, self.now, label, text), words


def tiles_of(watched: Sequence[Watched], now: float) -> Iterator[Tile]:
    """The tiles, at a time (monotonic seconds)."""
    collector = _Curves(of_role(watched, "collector"), now)
    distributor = _Curves(of_role(watched, "distributor"), now)
    yield _events_in(collector)
    yield _append_latency(collector)
    yield _delivered(distributor)
    yield _feed_lag(distributor)
    yield _bytes("bytes-in", "Bytes in", collector, "logpipe_ingest_bytes_total")
    yield _bytes("bytes-out", "Bytes out", distributor, "logpipe_delivered_bytes_total")
    yield _stream(collector, distributor)
    yield _redis(distributor)
    yield from _primary(distributor if distributor.sample else collector)


def _events_in(curves: _Curves) -> Tile:
    name = "logpipe_ingest_events_total"
    points = curves.rates(name, outcome="accepted")
    rejected = curves.value(name, outcome="rejected")
    notes = [f"{figures.number(curves.value(name, outcome='accepted'))} accepted"]
    notes.append(f"{figures.number(rejected)} rejected")
    return _rate_tile("events-in", "Events in", curves, points, figures.per_second, notes)


def _delivered(curves: _Curves) -> Tile:
    points = curves.rates("logpipe_delivered_events_total")
    readers = curves.value("logpipe_subscribers")
    notes = [f"to {figures.number(readers or 0)} subscriber{'s' * (readers != 1)}"]
    return _rate_tile("delivered", "Delivered", curves, points, figures.per_second, notes)


def _bytes(key: str, label: str, curves: _Curves, name: str) -> Tile:
    notes = [f"{figures.size(curves.value(name))} in all"]
    return _rate_tile(key, label, curves, curves.rates(name), figures.size_per_second, notes)


def _rate_tile(
    key: str,
    label: str,
    curves: _Curves,
    points: Sequence[Point],
    shown: Format,
    notes: Sequence[str],
) -> Tile:
    chart, highest = curves.chart(key, label, shown, Line(points))
    known = notes if curves.sample else ()
    measuring = curves.sample and len(points) == 0
    value = "measuring…" if measuring else shown(curves.latest(points))
    return Tile(key, label, value, known, chart, highest)


def _append_latency(curves: _Curves) -> Tile:
    name = "logpipe_append_seconds"
    high, middle = curves.quantiles(0.99, name), curves.quantiles(0.5, name)
    chart, highest = curves.chart(
        "append", "Append latency, p99 and p50", figures.latency, Line(high), Line(middle, "second")
    )
    p99, p50 = (curves.overall(quantile(q, name)) for q in (0.99, 0.5))
    value = "idle" if p99 is None and curves.sample else figures.latency(p99)
    notes = [f"p50 {figures.latency(p50)} (dashed)"] if p50 is not None else []
    return Tile("append", "Append latency, p99", value, notes, chart, highest)


def _feed_lag(curves: _Curves) -> Tile:
    name = "logpipe_feed_lag_seconds"
    notes = [f"{figures.number(curves.value('logpipe_feed_lag_events'))} entries behind"]
    return _level_tile("feed-lag", "Feed lag", curves, name, figures.lag, notes)


def _stream(collector: _Curves, distributor: _Curves) -> Tile:
    name = "logpipe_stream_entries"
    most = collector.value("logpipe_stream_max_entries")
    notes = [f"of about {figures.number(most)}"] if most else []
    if (held := distributor.value("logpipe_stream_bytes")) is not None:
        notes.append(figures.size(held))
    return _level_tile("stream", "Stream entries", distributor, name, figures.number, notes)


def _redis(curves: _Curves) -> Tile:
    name = "logpipe_redis_memory_bytes"
    used = curves.value(name)
    most = curves.value("logpipe_redis_max_memory_bytes")
    notes = ["without a limit"]
    if used and most:
        notes = [f"{figures.share(used / most)} of {figures.size(most)} (maxmemory)"]
    return _level_tile("redis", "Redis memory", curves, name, figures.size, notes)


def _primary(curves: _Curves) -> Iterator[Tile]:
    """Where the primary is, with the replicas in sync; none where the address is one server."""
    named = curves.sample.by("logpipe_redis_primary_info", "node") if curves.sample else {}
    node = next((node for node, is_now in named.items() if is_now), None)
    if node is None:
        return
    name = "logpipe_redis_replicas_in_sync"
    notes = [f"replicas in sync: {figures.number(curves.value(name))}"]
    if sentinels := curves.value("logpipe_redis_sentinels"):
        reachable = curves.value("logpipe_redis_sentinels_reachable")
        of = figures.number(sentinels)
        notes.append(f"Sentinels that answer: {figures.number(reachable)} of {of}")
    failovers = curves.value("logpipe_redis_failovers_total")
    notes.append(f"failovers: {figures.number(failovers)}")
    tile = _level_tile("primary", "Primary of Redis", curves, name, figures.number, notes)
    yield tile._replace(value=node)


def _level_tile(
    key: str, label: str, curves: _Curves, name: str, shown: Format, notes: Sequence[str]
) -> Tile:
    """What the stream or its Redis was like; without Redis, when it was last asked."""
    value = curves.value(name)
    chart, highest = curves.chart(key, label, shown, Line(curves.levels(name)))
    known = () if value is None else ["as last seen"] if curves.redis_away else notes
    return Tile(key, label, shown(value), known, chart, highest)
