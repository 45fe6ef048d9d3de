"""What /metrics shows: every metric of logpipe, in one registry a process."""

import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

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

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def keep_in_files(name: str) -> None:
    """Has the values of metrics kept in files of this name, in which those of an earlier worker of
    that name go on. It begins with the worker's number, from 0."""
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics, by what they measure; labels take a bounded number of values."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # The library itself looks at this variable; `workers.py` sets it.
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if self._folder is None:
            ProcessCollector(namespace="logpipe", registry=registry)
        Gauge(
            "logpipe_build_info",
            "Always 1.",
            ["version"],
            multiprocess_mode="livemax",
            registry=registry,
        ).labels(__version__).set(1)
        Gauge(
            "logpipe_workers",
            "Processes that serve this port.",
            multiprocess_mode="livesum",
            registry=registry,
        ).set(1)
        self.workers_wanted = Gauge(
            "logpipe_workers_wanted",
            "WORKERS: how many processes are to serve it.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.redis_up = Gauge(
            "logpipe_redis_up",
            "1 while Redis serves; NaN where none is needed.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.ready = Gauge(
            "logpipe_ready",
            "1 while /healthz says so.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.event_loop_lag_seconds = Histogram(
            "logpipe_event_loop_lag_seconds",
            "How late a timer of the event loop is, ten times a second.",
            buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )

        self.requests = Counter(
            "logpipe_ingest_requests_total", "Ingest requests.", ["status"], registry=registry
        )
        self.requests_accepted = self.requests.labels(202)
        self.requests.labels(503)  # what alerts ask for is there before it happens
        events = Counter(
            "logpipe_ingest_events_total",
            "Events by outcome: accepted, rejected, repeated.",
            ["outcome"],
            registry=registry,
        )
        self.events_accepted = events.labels("accepted")
        self.events_rejected = events.labels("rejected")
        self.events_repeated = events.labels("repeated")
        self.wrong_tokens = Counter(
            "logpipe_wrong_tokens_total",
            "Requests with a token that is wrong or of another scope, by route.",
            ["route"],
            registry=registry,
        )
        self.receiver_requests = Counter(
            "logpipe_receiver_requests_total",
            "Requests in the protocols of other shippers.",
            ["protocol", "status"],
            registry=registry,
        )
        self.receiver_events = Counter(
            "logpipe_receiver_events_total",
            "Events of such requests by outcome: accepted, repeated, rejected, failed.",
            ["protocol", "outcome"],
            registry=registry,
        )
        self.body_bytes = Counter(
            "logpipe_ingest_bytes_total", "Body bytes, decompressed.", registry=registry
        )
        self.append_seconds = Histogram(
            "logpipe_append_seconds",
            "Time of one append, for all requests that shared it.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2),
            registry=registry,
        )
        self.append_events = Histogram(
            "logpipe_append_events",
            "Events of one append.",
            buckets=(1, 2, 5, 10, 50, 100, 500, 1000, 5000, 10_000, 100_000),
            registry=registry,
        )

        self.subscribers = Gauge(
            "logpipe_subscribers",
            "Connected subscribers.",
            ["delivery"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.delivered_bytes = Counter(
            "logpipe_delivered_bytes_total", "Bytes written to subscribers.", registry=registry
        )
        self.delivered_events = Counter(
            "logpipe_delivered_events_total", "Events written to subscribers.", registry=registry
        )
        self.gaps = Counter(
            "logpipe_gaps_total", "Gaps told to subscribers.", ["reason"], registry=registry
        )
        self.gap_events = Counter(
            "logpipe_gap_events_total",
            "Entries that gaps told as missing, as far as they were counted.",
            ["reason"],
            registry=registry,
        )
        for reason in get_args(Reason):  # the first would be none to `increase` else
            self.gaps.labels(reason)
            self.gap_events.labels(reason)
        self.feed_events = Counter(
            "logpipe_feed_events_total", "Entries read into the window.", registry=registry
        )
        self.feed_lag_events = Gauge(
            "logpipe_feed_lag_events",
            "Entries of the stream that are not in the window yet; NaN where not known.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.feed_lag_seconds = Gauge(
            "logpipe_feed_lag_seconds",
            "Time between the newest entry of the stream and that of the window; NaN before it has"
            " any.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.unreadable = Counter(
            "logpipe_unreadable_entries_total",
            "Entries of the stream that hold no event.",
            registry=registry,
        )
        self.window_reads = Counter(
            "logpipe_window_reads_total",
            "Reads that subscribers made from the window.",
            registry=registry,
        )
        self.catchup_reads = Counter(
            "logpipe_catchup_reads_total", "Reads for subscribers behind the window.",
            registry=registry,
        )  # fmt: skip
        self.window_events = Gauge(
            "logpipe_window_events",
            "Events in the window.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.window_bytes = Gauge(
            "logpipe_window_bytes",
            "Their bytes as JSON, or more where they take over 2.4 times as much memory.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.group_pending = Gauge(
            "logpipe_group_pending",
            "Entries of a group, on all replicas, that are delivered and not acknowledged.",
            ["group"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.group_in_flight = Gauge(
            "logpipe_group_in_flight",
            "Entries that members here were given and that are not acknowledged.",
            ["group"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.group_in_flight_seconds = Gauge(
            "logpipe_group_in_flight_seconds",
            "The longest time for which a member here has had such an entry.",
            ["group"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.group_lag = Gauge(
            "logpipe_group_lag_events",
            "Entries that a group has not read yet, as of its last read here.",
            ["group"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.group_claimed = Counter(
            "logpipe_group_claimed_total",
            "Pending entries taken over from other consumers.",
            ["group"],
            registry=registry,
        )
        self.group_lost = Counter(
            "logpipe_group_lost_total",
            "Entries trimmed before they were read, or while they were pending.",
            ["group"],
            registry=registry,
        )
        self.group_rejected = Counter(
            "logpipe_group_rejected_total",
            "Entries that the group's filter rejects: acknowledged and not delivered.",
            ["group"],
            registry=registry,
        )
        self.group_redelivered = Counter(
            "logpipe_group_redelivered_total",
            "Entries taken back from a member that has not acknowledged them in time.",
            ["group"],
            registry=registry,
        )
        # Of the stream and of its Redis; all processes see the same ones.
        limited = Counter(
            "logpipe_limited_total",
            "What a limit has refused, or trimmed, by limit: docs/limits.md.",
            ["limit"],
            registry=registry,
        )
        self._limited = {limit: limited.labels(limit) for limit in limits.NAMES}
        EXCEEDED.listener = self._limited["filter_steps"].inc
        self.stream_entries = self._common("logpipe_stream_entries", "Entries in the stream.")
        self.stream_max_entries = self._common(
            "logpipe_stream_max_entries", "Entries at which a collector trims the stream, about."
        )
        self.stream_bytes = self._common(
            "logpipe_stream_bytes", "Memory of the stream in Redis, estimated from some entries."
        )
        self.redis_replicas = self._common(
            "logpipe_redis_replicas_in_sync", "Replicas that have all, or are a moment behind."
        )
        self.redis_sentinels = self._common("logpipe_redis_sentinels", "Sentinels of REDIS_ADDR.")
        self.redis_sentinels_reachable = self._common(
            "logpipe_redis_sentinels_reachable", "Sentinels that have answered the last question."
        )
        self.redis_primary = Gauge(
            "logpipe_redis_primary_info",
            "1 for the node that is the primary, 0 for earlier ones.",
            ["node"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.redis_failovers = Counter(
            "logpipe_redis_failovers_total",
            "How often another node has become the primary.",
            registry=registry,
        )
        self._servers = Servers()
        self.redis_memory_bytes = self._common(
            "logpipe_redis_memory_bytes", "Memory that Redis uses, for everything in it."
        )
        self.redis_max_memory_bytes = self._common(
            "logpipe_redis_max_memory_bytes", "Memory that Redis may use; 0: no limit."
        )
        self.redis_evicts = self._common(
            "logpipe_redis_evicts", "1 where Redis may evict the stream (allkeys-...), else 0."
        )
        self.redis_append_only = self._common(
            "logpipe_redis_append_only", "1 where Redis has an append-only file, else 0."
        )
        self.disk_free_bytes = self._common(
            "logpipe_disk_free_bytes",
            "Free bytes of the disk that the embedded engine writes to.",
        )
        self.disk_needed_bytes = self._common(
            "logpipe_disk_needed_bytes",
            "Bytes that have to be free there; with less, events are refused.",
        )
        self._group_labels: set[str] = set()

        self.canary_sent = Counter(
            "logpipe_canary_sent_total",
            "Canaries that this collector has appended, as Redis has confirmed.",
            registry=registry,
        )
        self.canary_received = Counter(
            "logpipe_canary_received_total",
            "Canaries of all collectors that came to this distributor.",
            registry=registry,
        )
        self.canary_lost = Counter(
            "logpipe_canary_lost_total",
            "Canaries that were confirmed and did not come, though a later one did.",
            registry=registry,
        )
        self.canary_latency_seconds = Histogram(
            "logpipe_canary_latency_seconds",
            "Age of a canary when it comes, by the clocks of both processes.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )

    def _common(self, name: str, text: str) -> Gauge:
        """A gauge that any process may set; NaN where it is not known."""
        gauge = Gauge(name, text, multiprocess_mode="livemostrecent", registry=self.registry)
        gauge.set(math.nan)
        return gauge

    @property
    def shared(self) -> bool:
        """Whether several processes count together."""
        return self._folder is not None

    def count_limited(self, hits: Mapping[str, int]) -> None:
        """Limits of `limits.NAMES` were hit, so many times each."""
        for limit, count in hits.items():
            self._limited[limit].inc(count)

    def servers(self, servers: Servers) -> None:
        """Sets what is known of the servers behind the address of Redis."""
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
        """Sets the free bytes of the disk of the embedded engine, and how many have to be free."""
        self.disk_free_bytes.set(free)
        self.disk_needed_bytes.set(needed)

    def count_wrong_token(self, route: str) -> None:
        """A wrong token was sent to a route."""
        self.wrong_tokens.labels(route).inc()

    def group(self, name: str) -> "GroupMetrics":
        """The metrics of a consumer group. Clients name groups, so only the first `MAX_LABELS` have
        a label of their own."""
        if name not in self._group_labels and len(self._group_labels) < MAX_LABELS:
            self._group_labels.add(name)
        return GroupMetrics(self, name if name in self._group_labels else OTHER_GROUPS)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes: of all workers together, where there are several."""
        if self._folder is None:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        together.register(_Workers(self._folder))
        return generate_latest(together)


class _Workers(Collector):
    """Adds up what all workers have written into a folder."""

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
        """So many entries are pending."""
        self._metrics.group_pending.labels(self._label).set(count)

    def in_flight(self, count: int, seconds: float) -> None:
        """Sets how many entries members here were given, and how long one has had its first."""
        self._metrics.group_in_flight.labels(self._label).set(count)
        self._metrics.group_in_flight_seconds.labels(self._label).set(seconds)

    def lag(self, count: int | None) -> None:
        """So many are not read yet, where that is known."""
        self._metrics.group_lag.labels(self._label).set(math.nan if count is None else count)

    def claimed(self, count: int) -> None:
        """So many were taken over."""
        self._claimed.inc(count)

    def lost(self, count: int | None) -> None:
        """So many are lost, as far as that is known."""
        self._lost.inc(count or 0)

    def rejected(self, count: int) -> None:
        """Counts entries that the group's filter rejects."""
        self._rejected.inc(count)

    def redelivered(self, count: int) -> None:
        """Counts entries that were not acknowledged in time."""
        self._redelivered.inc(count)

    def unreadable(self, count: int) -> None:
        """So many entries hold no event."""
        self._metrics.unreadable.inc(count)

    def forget(self) -> None:
        """The group is no longer read here: what is pending is no longer known."""
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
