"""Every metric of logpipe, in one registry per process."""

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    values,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from logpipe import __version__, limits
from logpipe.continuity import Reason
from logpipe.filters.predicate import EXCEEDED
from logpipe.stream.health import Servers

# One series more for each counter, that nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

MAX_LABELS = 64
"""Consumer groups with a series of their own."""
OTHER_GROUPS = "(other)"

OF_THE_STREAM = frozenset(
    f"logpipe_{name}"
    for name in (
        "feed_events",
        "unreadable_entries",
        "redis_failovers",
        "canary_received",
        "canary_lost",
        "canary_latency_seconds",
    )
)
"""What each worker counts of the whole stream: shown as the first worker has counted it."""

GaugeMode = Literal["livemax", "livesum", "livemostrecent"]

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def keep_in_files(name: str) -> None:
    """Has the values of metrics kept in files of this name, in which those of an earlier worker of
    that name go on. It begins with the worker's number, from 0."""
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics, by what they measure; labels take a bounded number of values."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # The library itself looks at this variable; `workers.py` sets it.
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if self._folder is None:
            ProcessCollector(namespace="logpipe", registry=self.registry)
        self._group_labels: set[str] = set()
        self._servers = Servers()
        self._make_process()
        self._make_intake()
        self._make_readers()
        self._make_groups()
        self._make_redis()
        self._make_canary()
        limited = self._counter(
            "limited_total",
            "Times that a limit has rejected or trimmed something, by limit: docs/limits.md.",
            "limit",
        )
        self._limited = {limit: limited.labels(limit) for limit in limits.NAMES}
        EXCEEDED.listener = self._limited["filter_steps"].inc

    def _make_process(self) -> None:
        self._gauge("build_info", "Always 1.", "version", mode="livemax").labels(__version__).set(1)
        self._gauge("workers", "Processes that serve this port.", mode="livesum").set(1)
        self.workers_wanted = self._gauge(
            "workers_wanted", "Processes that are to serve it (WORKERS).", mode="livemax"
        )
        self.redis_up = self._gauge(
            "redis_up", "1 while Redis serves; NaN where none is needed.", mode="livemostrecent"
        )
        self.ready = self._gauge("ready", "1 while /healthz says so.", mode="livemostrecent")
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds",
            "How late a timer of the event loop is, ten times a second.",
            (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )

    def _make_intake(self) -> None:
        self.requests = self._counter("ingest_requests_total", "Ingest requests.", "status")
        self.requests_accepted = self.requests.labels(202)
        self.requests.labels(503)  # alert rules find the series before the first one
        events = self._counter(
            "ingest_events_total", "Events by outcome: accepted, rejected, repeated.", "outcome"
        )
        self.events_accepted = events.labels("accepted")
        self.events_rejected = events.labels("rejected")
        self.events_repeated = events.labels("repeated")
        self.wrong_tokens = self._counter(
            "wrong_tokens_total",
            "Requests with a token that is wrong or of another scope, by route.",
            "route",
        )
        self.receiver_requests = self._counter(
            "receiver_requests_total",
            "Requests in the protocols of other shippers.",
            "protocol",
            "status",
        )
        self.receiver_events = self._counter(
            "receiver_events_total",
            "Events of these requests by outcome: accepted, repeated, rejected, failed.",
            "protocol",
            "outcome",
        )
        self.body_bytes = self._counter("ingest_bytes_total", "Body bytes, decompressed.")
        self.append_seconds = self._histogram(
            "append_seconds",
            "Time of one append, for all requests that shared it.",
            (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2),
        )
        self.append_events = self._histogram(
            "append_events",
            "Events of one append.",
            (1, 2, 5, 10, 50, 100, 500, 1000, 5000, 10000, 100000),
        )

    def _make_readers(self) -> None:
        self.subscribers = self._gauge(
            "subscribers", "Connected subscribers.", "delivery", mode="livesum"
        )
        self.delivered_bytes = self._counter(
            "delivered_bytes_total", "Bytes written to subscribers."
        )
        self.delivered_events = self._counter(
            "delivered_events_total", "Events written to subscribers."
        )
        self.gaps = self._counter("gaps_total", "Gaps sent to subscribers.", "reason")
        self.gap_events = self._counter(
            "gap_events_total",
            "Entries reported missing in gaps, where the count is known.",
            "reason",
        )
        for reason in get_args(Reason):  # else `increase` misses the first one
            self.gaps.labels(reason)
            self.gap_events.labels(reason)
        self.feed_events = self._counter("feed_events_total", "Entries read into the window.")
        self.feed_lag_events = self._gauge(
            "feed_lag_events",
            "Entries of the stream that are not in the window yet; NaN where not known.",
            mode="livemax",
        )
        self.feed_lag_seconds = self._gauge(
            "feed_lag_seconds",
            "Seconds between the newest entries of the stream and of the window; NaN while empty.",
            mode="livemax",
        )
        self.unreadable = self._counter(
            "unreadable_entries_total", "Entries of the stream that hold no event."
        )
        self.window_reads = self._counter(
            "window_reads_total", "Reads that subscribers made from the window."
        )
        self.catchup_reads = self._counter(
            "catchup_reads_total", "Reads for subscribers behind the window."
        )
        self.window_events = self._gauge("window_events", "Events in the window.", mode="livemax")
        self.window_bytes = self._gauge(
            "window_bytes",
            "Bytes of JSON in the window; more where events take over 2.4 times as much memory.",
            mode="livemax",
        )

    def _make_groups(self) -> None:
        self.group_pending = self._gauge(
            "group_pending",
            "Entries of a group, on all replicas, that are delivered and not acknowledged.",
            "group",
            mode="livemax",
        )
        self.group_in_flight = self._gauge(
            "group_in_flight",
            "Entries delivered to members of this process and not acknowledged.",
            "group",
            mode="livesum",
        )
        self.group_in_flight_seconds = self._gauge(
            "group_in_flight_seconds",
            "Age of the oldest of these deliveries.",
            "group",
            mode="livemax",
        )
        self.group_lag = self._gauge(
            "group_lag_events",
            "Entries that a group has not read yet, as of its last read by this process.",
            "group",
            mode="livemax",
        )
        self.group_claimed = self._counter(
            "group_claimed_total", "Pending entries taken over from other consumers.", "group"
        )
        self.group_lost = self._counter(
            "group_lost_total",
            "Entries of a group trimmed before they were read or while pending.",
            "group",
        )
        self.group_rejected = self._counter(
            "group_rejected_total",
            "Entries that the group's filter rejects: acknowledged and not delivered.",
            "group",
        )
        self.group_redelivered = self._counter(
            "group_redelivered_total",
            "Entries redelivered because their member did not acknowledge them in time.",
            "group",
        )

    def _make_redis(self) -> None:
        """Make the metrics of the stream and of its Redis, which are the same in all processes."""
        self.stream_entries = self._common("stream_entries", "Entries in the stream.")
        self.stream_max_entries = self._common(
            "stream_max_entries", "Entries at which a collector trims the stream, about."
        )
        self.stream_bytes = self._common(
            "stream_bytes", "Memory of the stream in Redis, estimated from some entries."
        )
        self.redis_replicas = self._common(
            "redis_replicas_in_sync", "Replicas that have caught up, or nearly."
        )
        self.redis_sentinels = self._common("redis_sentinels", "Sentinels of REDIS_ADDR.")
        self.redis_sentinels_reachable = self._common(
            "redis_sentinels_reachable", "Sentinels that have answered the last query."
        )
        self.redis_primary = self._gauge(
            "redis_primary_info",
            "1 for the node that is the primary, 0 for earlier ones.",
            "node",
            mode="livemostrecent",
        )
        self.redis_failovers = self._counter(
            "redis_failovers_total", "Times that another node has become the primary."
        )
        self.redis_memory_bytes = self._common(
            "redis_memory_bytes", "Memory that Redis uses, for everything in it."
        )
        self.redis_max_memory_bytes = self._common(
            "redis_max_memory_bytes", "Memory that Redis may use; 0: no limit."
        )
        self.redis_evicts = self._common(
            "redis_evicts", "1 where Redis may evict the stream (allkeys-...), else 0."
        )
        self.redis_append_only = self._common(
            "redis_append_only", "1 where Redis has an append-only file, else 0."
        )
        self.disk_free_bytes = self._common(
            "disk_free_bytes", "Free bytes of the disk that the embedded engine writes to."
        )
        self.disk_needed_bytes = self._common(
            "disk_needed_bytes", "Free bytes of that disk below which events are rejected."
        )

    def _make_canary(self) -> None:
        self.canary_sent = self._counter(
            "canary_sent_total",
            "Canaries that this collector has appended and Redis has confirmed.",
        )
        self.canary_received = self._counter(
            "canary_received_total", "Canaries of all collectors received by this distributor."
        )
        self.canary_lost = self._counter(
            "canary_lost_total",
            "Canaries that were confirmed and not received, though a later one was.",
        )
        self.canary_latency_seconds = self._histogram(
            "canary_latency_seconds",
            "Age of a canary when received, by the clocks of both processes.",
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"logpipe_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str, mode: GaugeMode) -> Gauge:
        """Make a gauge; `mode` says what several workers show of it."""
        return Gauge(
            f"logpipe_{name}", text, labels, multiprocess_mode=mode, registry=self.registry
        )

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"logpipe_{name}", text, buckets=buckets, registry=self.registry)

    def _common(self, name: str, text: str) -> Gauge:
        """Make a gauge that any process may set; NaN where the value is not known."""
        gauge = self._gauge(name, text, mode="livemostrecent")
        gauge.set(math.nan)
        return gauge

    @property
    def shared(self) -> bool:
        """Whether several processes count together."""
        return self._folder is not None

    def count_limited(self, hits: Mapping[str, int]) -> None:
        """Add to the counts of limits, by their names in `limits.NAMES`."""
        for limit, count in hits.items():
            self._limited[limit].inc(count)

    def servers(self, servers: Servers) -> None:
        """Set what is known of the servers behind the address of Redis."""
        before, self._servers = self._servers, servers
        in_sync = servers.replicas_in_sync
        self.redis_replicas.set(math.nan if in_sync is None else in_sync)
        if servers.sentinels:
            self.redis_sentinels.set(servers.sentinels)
            self.redis_sentinels_reachable.set(servers.sentinels_reachable)
        self.redis_failovers.inc(servers.failovers - before.failovers)
        if before.primary and before.primary != servers.primary:
            self.redis_primary.labels(before.primary).set(0)
        if servers.primary:
            self.redis_primary.labels(servers.primary).set(1)

    def disk(self, free: int, needed: int) -> None:
        """Set the free bytes of the embedded engine's disk, and how many it needs."""
        self.disk_free_bytes.set(free)
        self.disk_needed_bytes.set(needed)

    def count_wrong_token(self, route: str) -> None:
        """Count a wrong token sent to a route."""
        self.wrong_tokens.labels(route).inc()

    def group(self, name: str) -> "GroupMetrics":
        """The metrics of a consumer group. Clients name groups, so only the first `MAX_LABELS` have
        a label of their own."""
        if name not in self._group_labels and len(self._group_labels) < MAX_LABELS:
            self._group_labels.add(name)
        return GroupMetrics(self, name if name in self._group_labels else OTHER_GROUPS)

    def exposition(self) -> bytes:
        """Return the text that Prometheus scrapes, of all workers together."""
        if self._folder is None:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        together.register(_Workers(self._folder))
        return generate_latest(together)


class _Workers(Collector):
    """Merges the metrics that all workers have written into a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def collect(self) -> Iterable[Metric]:
        first = {metric.name: metric for metric in self._of("*_0?.db")}
        for metric in self._of("*.db"):
            yield first.get(metric.name, metric) if metric.name in OF_THE_STREAM else metric

    def _of(self, files: str) -> Iterable[Metric]:
        paths = [str(path) for path in self._folder.glob(files) if _is_readable(path)]
        found: Iterable[Metric] = MultiProcessCollector.merge(paths)  # type: ignore[no-untyped-call]
        return found


def _is_readable(path: Path) -> bool:
    """Whether prometheus-client can read a file: not one that a worker has just made and that is
    still empty, nor one that was just removed."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


class GroupMetrics:
    """The metrics of one consumer group."""

    def __init__(self, metrics: Metrics, label: str) -> None:
        self._label = label
        self._metrics = metrics
        self._claimed = metrics.group_claimed.labels(label)
        self._lost = metrics.group_lost.labels(label)
        self._rejected = metrics.group_rejected.labels(label)
        self._redelivered = metrics.group_redelivered.labels(label)

    def pending(self, count: int) -> None:
        """Set how many entries are pending."""
        self._metrics.group_pending.labels(self._label).set(count)

    def in_flight(self, count: int, seconds: float) -> None:
        """Set how many entries members here hold, and the seconds since the oldest delivery."""
        self._metrics.group_in_flight.labels(self._label).set(count)
        self._metrics.group_in_flight_seconds.labels(self._label).set(seconds)

    def lag(self, count: int | None) -> None:
        """Set how many entries are not read yet; None where that is not known."""
        self._metrics.group_lag.labels(self._label).set(math.nan if count is None else count)

    def claimed(self, count: int) -> None:
        """Count entries taken over from other consumers."""
        self._claimed.inc(count)

    def lost(self, count: int | None) -> None:
        """Count lost entries; None where their number is not known."""
        self._lost.inc(count or 0)

    def rejected(self, count: int) -> None:
        """Count entries that the group's filter rejects."""
        self._rejected.inc(count)

    def redelivered(self, count: int) -> None:
        """Count entries that were not acknowledged in time."""
        self._redelivered.inc(count)

    def unreadable(self, count: int) -> None:
        """Count entries that hold no event."""
        self._metrics.unreadable.inc(count)

    def forget(self) -> None:
        """Remove the gauges of a group that this process no longer reads."""
        metrics = self._metrics
        for gauge in (
            *(metrics.group_pending, metrics.group_lag),
            *(metrics.group_in_flight, metrics.group_in_flight_seconds),
        ):
            if metrics.shared:
                gauge.labels(self._label).set(0)  # files of several processes forget nothing
            else:
                with contextlib.suppress(KeyError):
                    gauge.remove(self._label)
