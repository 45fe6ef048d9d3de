"""The rows of the operator's tables: processes, subscribers, groups, settings."""

import math
import time
from datetime import datetime
from typing import Any, NamedTuple

from logpipe.origins import Right, allowed_origins
from logpipe.samples import STARTED, changes, rate
from logpipe.settings import Settings, fields, without_credentials
from logpipe.subscribers import Subscriber
from logpipe.ui import figures
from logpipe.watch import Watched


class ProcessRow(NamedTuple):
    """One process; `trouble` is empty where nothing is wrong."""

    name: str
    roles: str
    state: str
    trouble: str
    redis: str
    version: str
    uptime: str
    cpu: str
    memory: str


class SubscriberRow(NamedTuple):
    """One subscriber; `behind` says whether it lags."""

    client: str
    reads: str
    filter: str
    lag: str
    lag_time: str
    in_flight: str
    in_flight_time: str
    connected: str
    behind: bool


class GroupRow(NamedTuple):
    """One consumer group."""

    name: str
    subscribers: str
    pending: str
    in_flight: str
    in_flight_time: str
    unread: str
    claimed: str
    lost: str


class SettingRow(NamedTuple):
    """One setting in force; `given` where it is not the default."""

    variable: str
    value: str
    given: bool
    help: str


def process_row(watched: Watched) -> ProcessRow:
    name, roles, health, sample, _, trouble = watched.seen
    started = sample.value(STARTED) if sample else None
    cpu = changes(list(watched.samples)[-2:], rate("logpipe_process_cpu_seconds_total"))
    detail = health.detail if health else ""
    state = "away" if health is None else "ready" if health.status == "ok" else "not ready"
    return ProcessRow(
        name=name,
        roles=", ".join(roles),
        state="ready, in part" if state == "ready" and trouble else state,
        trouble="; ".join(filter(None, (detail, trouble))),
        redis=health.redis if health else figures.NOT_KNOWN,
        version=health.version if health else figures.NOT_KNOWN,
        uptime=figures.span(time.time() - started if started else None),
        cpu=figures.share(cpu[-1].value if cpu and sample else None),
        memory=figures.size(sample.value("logpipe_process_resident_memory_bytes"))
        if sample
        else figures.NOT_KNOWN,
    )


def subscriber_rows(distributor: Watched | None) -> list[SubscriberRow] | None:
    """Those furthest behind in time first; None where they are not known."""
    if distributor is None or distributor.seen.subscribers is None:
        return None
    now = time.time()
    worst = sorted(distributor.seen.subscribers, key=_lag, reverse=True)
    return [
        SubscriberRow(
            client=one.client,
            reads=f"shared: {one.group}" if one.group else "broadcast",
            filter=one.filter or "everything",
            lag=figures.number(one.lag),
            lag_time=figures.lag(one.lag_s),
            in_flight=_of_shared(one, figures.number(one.in_flight)),
            in_flight_time=_of_shared(one, figures.lag(one.in_flight_s)),
            connected=figures.span(now - datetime.fromisoformat(one.connected_at).timestamp()),
            behind=bool(one.lag or one.lag_s),
        )
        for one in worst
    ]


def _of_shared(one: Subscriber, figure: str) -> str:
    """A figure that only a subscriber of a group has."""
    return figure if one.group else "-"


def _lag(one: Subscriber) -> tuple[float, int]:
    """Time and entries; the time is not known of one that waits for its first entry."""
    unknown = math.inf if one.lag else 0.0
    return one.lag_s if one.lag_s is not None else unknown, one.lag or 0


def group_rows(distributor: Watched | None) -> list[GroupRow]:
    if distributor is None or (sample := distributor.seen.sample) is None:
        return []
    forms = {
        "pending": figures.number,
        "in_flight": figures.number,
        "in_flight_seconds": figures.lag,
        "lag_events": figures.number,
        "claimed_total": figures.number,
        "lost_total": figures.number,
    }
    columns = [(sample.by(f"logpipe_group_{name}", "group"), form) for name, form in forms.items()]
    listed = distributor.seen.subscribers
    return [
        GroupRow(
            group,
            figures.number(None if listed is None else sum(one.group == group for one in listed)),
            *(form(column.get(group)) for column, form in columns),
        )
        for group in sorted({group for column, _ in columns for group in column})
    ]


def settings_in_force(settings: Settings) -> list[SettingRow]:
    """The settings of this process; of secrets only whether they are set."""
    return [
        SettingRow(
            field.variable,
            _shown(settings, field.name, secret=field.secret),
            getattr(settings, field.name) != field.default,
            field.help,
        )
        for field in fields()
    ]


def _shown(settings: Settings, name: str, *, secret: bool) -> str:
    value: Any = getattr(settings, name)
    match name:
        case "redis_addr":
            # The address as the log prints it, without user and password.
            return str(settings.redis) if settings.redis else "not used"
        case "port":
            return str(settings.listen_port)
        case "data_dir":
            return str(settings.engine_dir)
        case "trim_maxbytes":
            size, percent = settings.stream_bytes
            return f"{percent}%" if percent else str(size)
        case "cors_allow_origins":
            return _origins_in_force(settings)
        case "collector_url" | "distributor_url":
            return without_credentials(value)
    if secret:
        return "set" if value else "not set"
    return (", ".join(value) if isinstance(value, tuple) else str(value)) or "none"


def _origins_in_force(settings: Settings) -> str:
    rights: tuple[Right, ...] = ("send", "read")
    send, read = (
        ", ".join(allowed_origins(settings, right)) or "none but its own" for right in rights
    )
    return send if send == read else f"{send} to send, {read} to read"
