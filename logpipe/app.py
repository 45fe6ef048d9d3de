"""The composition of a process: which roles it runs and what they stand on.

Resources live on one exit stack here and are handed to the roles; a role is a Starlette sub-app
that knows nothing of the others.
"""

import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from logpipe import probes, ui
from logpipe.access import Access
from logpipe.auth import IN_URL
from logpipe.background import Background
from logpipe.canary import await_canaries, send_canaries
from logpipe.client.collector import RemoteCollector
from logpipe.client.connection import http_client
from logpipe.client.distributor import RemoteDistributor
from logpipe.client.log import RemoteLog
from logpipe.client.process import RemoteProcess
from logpipe.collector import app as collector
from logpipe.collector.appender import Appender
from logpipe.collector.inflight import Inflight
from logpipe.collector.receivers.intake import Process
from logpipe.collector.receivers.syslog_tcp import SyslogListener
from logpipe.collector.receivers.table import SEGMENTS
from logpipe.collector.spread import AnyAppender, SpreadAppender
from logpipe.collector.submit import LocalCollector
from logpipe.distributor import app as distributor
from logpipe.distributor.sources import JointSource, Source, StreamSource
from logpipe.engine import Engine, stream_bytes
from logpipe.fanout.hub import Hub
from logpipe.fanout.joint import JointHub
from logpipe.groups import Groups
from logpipe.groups.joint import JointGroups
from logpipe.limits import Rates, Seats
from logpipe.listening import bind
from logpipe.loop_lag import measure_lag
from logpipe.metrics import Metrics
from logpipe.problems import Problem, respond
from logpipe.redis_address import RedisAddress
from logpipe.request_ids import Identified
from logpipe.settings import Role, Settings
from logpipe.stream import Partitions, Stream, partition_key
from logpipe.tokens import Tokens
from logpipe.trimmer import Trimmer
from logpipe.watch import Look, Watch, look_here


class Parts(NamedTuple):
    """What roles are made of; None for what no role of this process needs."""

    settings: Settings
    tokens: Tokens
    metrics: Metrics
    appender: AnyAppender | None
    hub: Hub | JointHub | None
    groups: Groups | JointGroups | None
    remote: RemoteDistributor | None
    http: httpx.AsyncClient | None
    watch: Watch | None
    seats: Seats
    rates: Rates | None


class RoleSpec(NamedTuple):
    """A role: the first segments of the paths that it answers, and its sub-app."""

    paths: tuple[str, ...]
    create: Callable[[Parts], ASGIApp]


def _collector(parts: Parts) -> ASGIApp:
    assert parts.appender is not None
    return collector.create(
        Process(parts.settings, parts.tokens, parts.appender, parts.metrics, parts.rates)
    )


def _distributor(parts: Parts) -> ASGIApp:
    source: Source
    if isinstance(parts.hub, JointHub):
        assert isinstance(parts.groups, JointGroups)
        source = JointSource(parts.hub, parts.groups)
    else:
        assert parts.hub is not None and isinstance(parts.groups, Groups)
        source = StreamSource(parts.hub, parts.groups)
    return distributor.create(parts.settings, parts.tokens, source, parts.seats)


def _ui(parts: Parts) -> ASGIApp:
    """Local or remote is decided here, once: the page does not know which it has."""
    settings, tokens, metrics, appender, hub, _, remote, http, watch, seats, rates = parts
    assert watch is not None
    log: ui.Log
    submit: ui.Submit
    if hub is not None:
        assert isinstance(hub, Hub)  # the settings refuse a page over partitions
        log = ui.LocalLog(hub, f"this process ({', '.join(sorted(settings.roles))})")
    else:
        assert remote is not None and http is not None
        log = RemoteLog(settings.distributor_url, http, remote, tokens.read)
    if appender is not None:
        submit = LocalCollector(settings, appender, rates)
    else:
        assert http is not None
        submit = RemoteCollector(settings.collector_url, http, tokens.ingest)
    return ui.create(ui.Page(settings, tokens, log, submit, metrics, watch, seats))


ROLES: Mapping[Role, RoleSpec] = {
    "collector": RoleSpec(("ingest", *SEGMENTS), _collector),
    "distributor": RoleSpec(("subscribe", "events", "subscribers"), _distributor),
    "ui": RoleSpec(("", "ui", "static", "login", "status"), _ui),
}

PROBES = ("livez", "healthz", "metrics", "openapi.json")

NOTHING_HERE = Problem(404, "There is nothing here for the roles of this process.")

TOKEN_IN_URL = Problem(
    400, "A token must not be in a URL, which histories keep: send it as Authorization: Bearer."
)


class Dispatch:
    """Hands a request to the sub-app of its first path segment.

    Not `Mount`: of two mounts at `/` the second is never reached, and one at `/ingest` answers
    `/ingest` with a redirect.
    """

    def __init__(self, apps: Mapping[str, ASGIApp]) -> None:
        self._apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 404 for a path of no role, and 400 for a token in the URL."""
        segment = scope["path"].removeprefix("/").partition("/")[0]
        app = self._apps.get(segment)
        if app is None:
            await respond(NOTHING_HERE)(scope, receive, Identified(send))
        elif (query := scope["query_string"]) and segment not in SEGMENTS and IN_URL.search(query):
            await respond(TOKEN_IN_URL)(scope, receive, Identified(send))
        else:
            await app(scope, receive, send)


class Running(NamedTuple):
    """A process's application, the farewell to its streams, its background tasks, its metrics, and
    where it is a collector, its listener for syslog over TCP and what is under way in it."""

    app: ASGIApp
    farewell: Callable[[], None]
    background: Background
    metrics: Metrics
    syslog: SyslogListener | None
    inflight: Inflight | None


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """Opens what the roles of `settings` need, and closes it at the end.

    Raises `EngineError` when the embedded engine cannot start, and `PortTakenError` before, for
    SYSLOG_TCP; Redis may be away.
    """
    async with AsyncExitStack() as stack:
        port = None
        if settings.syslog_tcp >= 0 and "collector" in settings.roles:
            several = settings.workers > 1
            port = bind(settings.host, settings.syslog_tcp, variable="SYSLOG_TCP", shared=several)
            stack.enter_context(port)
        metrics = Metrics()
        tokens = Tokens(settings)
        background = Background()
        if tokens.from_files:
            background.start("tokens", tokens.follow())
        stream = None
        if settings.redis is not None:
            stream = await _open_stream(settings, settings.redis, stack, background)
        parts = await _open_parts(settings, tokens, metrics, stream, stack, background)
        background.start("lag", measure_lag(metrics))
        _start_canaries(parts, background)
        syslog = None
        if port is not None and parts.appender is not None:
            syslog = SyslogListener(
                Process(settings, tokens, parts.appender, metrics, parts.rates), port
            )
            stack.push_async_callback(syslog.aclose)
            await syslog.start()
        # The last to enter is the first to leave: tasks end before what they use is closed.
        await stack.enter_async_context(background)

        apps: dict[str, ASGIApp] = dict.fromkeys(
            PROBES,
            probes.create(settings, tokens, stream.health if stream else None, background, metrics),
        )
        for role in settings.roles:
            apps |= dict.fromkeys(ROLES[role].paths, ROLES[role].create(parts))

        farewell = partial(_say_farewell, parts, syslog)
        inflight = parts.appender.inflight if parts.appender is not None else None
        yield Running(Access(Dispatch(apps)), farewell, background, metrics, syslog, inflight)


def _say_farewell(parts: Parts, syslog: SyslogListener | None) -> None:
    if parts.hub is not None:
        parts.hub.close()
    if parts.groups is not None:
        parts.groups.close()
    if parts.remote is not None:
        parts.remote.close()
    if syslog is not None:
        syslog.stop()


async def _open_stream(
    settings: Settings, address: RedisAddress, stack: AsyncExitStack, background: Background
) -> Stream | Partitions:
    trouble: Callable[[], str | None] = lambda: None  # noqa: E731
    if address.embedded is not None:
        engine = Engine(settings.engine_dir)
        await engine.start()
        stack.push_async_callback(engine.stop)
        background.start("engine", engine.supervise())
        address = RedisAddress(socket=str(engine.socket))
        trouble = lambda: engine.trouble  # noqa: E731
    stream = _stream(settings, address, trouble)
    stack.push_async_callback(stream.aclose)
    background.start("monitor", stream.monitor())
    return stream


def _stream(
    settings: Settings, address: RedisAddress, trouble: Callable[[], str | None]
) -> Stream | Partitions:
    """The stream, or one for each of PARTITIONS, among which the limits of the whole are split."""

    def named(name: str) -> Stream:
        return Stream(
            address,
            name,
            maxlen=max(1, settings.trim_maxlen // count),
            block_ms=settings.block_ms,
            ack_replicas=settings.ack_replicas,
            trouble=trouble,
        )

    name, count = settings.stream_name, settings.partitions
    if count == 1:
        return named(name)
    return Partitions([named(partition_key(name, each, count)) for each in range(count)])


async def _open_parts(
    settings: Settings,
    tokens: Tokens,
    metrics: Metrics,
    stream: Stream | Partitions | None,
    stack: AsyncExitStack,
    background: Background,
) -> Parts:
    appender = hub = groups = remote = http = watch = None
    if stream is not None and "collector" in settings.roles:
        appender = _appender(stream, metrics, Inflight(settings.max_inflight_bytes))
        _start_trimmer(settings, stream, metrics, background)
        metrics.stream_max_entries.set(settings.trim_maxlen)
        stack.push_async_callback(appender.aclose)
    if stream is not None and "distributor" in settings.roles:
        hub = _hub(settings, stream, metrics)
        background.start("feed", hub.run())
        background.start("heartbeat", hub.beat())
        background.start("measure", hub.measure())
        groups = await _open_groups(settings, hub, stack, background)
    if "ui" in settings.roles and (appender is None or hub is None):
        http = await stack.enter_async_context(http_client())
        if hub is None:
            remote = RemoteDistributor(
                settings.distributor_url,
                http,
                tokens=tokens.read,
                heartbeat_s=settings.heartbeat_s,
            )
    if "ui" in settings.roles:
        health = probes.health_of(settings, stream.health if stream else None, background)
        here = look_here(health, metrics, hub, groups)
        watch = Watch([here, *_looks_elsewhere(settings, tokens, http)])
        background.start("watch", watch.run())
    seats = Seats(settings.max_subscribers, settings.max_subscribers_per_client)
    rates = Rates(settings.rate_per_token) if settings.rate_per_token else None
    return Parts(
        settings, tokens, metrics, appender, hub, groups, remote, http, watch, seats, rates
    )


def _appender(stream: Stream | Partitions, metrics: Metrics, inflight: Inflight) -> AnyAppender:
    if isinstance(stream, Partitions):
        return SpreadAppender(stream, metrics, inflight)
    return Appender(stream, metrics, inflight)


def _hub(settings: Settings, stream: Stream | Partitions, metrics: Metrics) -> Hub | JointHub:
    queue_len, batch_count = settings.subscriber_queue_len, settings.batch_count
    if isinstance(stream, Partitions):
        return JointHub(
            stream,
            metrics,
            queue_len=queue_len,
            batch_count=batch_count,
            heartbeat_s=settings.heartbeat_s,
        )
    return Hub(
        stream,
        metrics,
        queue_len=queue_len,
        batch_count=batch_count,
        heartbeat_s=settings.heartbeat_s,
    )


async def _open_groups(
    settings: Settings, hub: Hub | JointHub, stack: AsyncExitStack, background: Background
) -> Groups | JointGroups:
    def groups_of(hub: Hub) -> Groups:
        return Groups(
            hub.stream,
            hub.metrics,
            background,
            consumer=settings.consumer_name,
            pending_idle_ms=settings.pending_idle_ms,
            batch_count=settings.batch_count,
            heartbeat_s=settings.heartbeat_s,
        )

    if isinstance(hub, Hub):
        return await stack.enter_async_context(groups_of(hub))
    parts = [await stack.enter_async_context(groups_of(each)) for each in hub.hubs]
    return JointGroups(parts, hub.metrics, settings.heartbeat_s)


def _start_trimmer(
    settings: Settings, stream: Stream | Partitions, metrics: Metrics, background: Background
) -> None:
    max_bytes, max_age_ms = settings.trim_maxbytes, settings.trim_maxage_ms
    if max_bytes < 0:
        embedded = settings.redis is not None and settings.redis.embedded is not None
        max_bytes = stream_bytes() if embedded else 0
    streams = stream.streams if isinstance(stream, Partitions) else [stream]
    if not max_bytes and not max_age_ms:
        return
    for each in streams:
        trimmer = Trimmer(
            each.trimming,
            metrics,
            max_bytes=math.ceil(max_bytes / len(streams)),
            max_age_ms=max_age_ms,
        )
        background.start("trimmer", trimmer.run())


def _start_canaries(parts: Parts, background: Background) -> None:
    settings, metrics = parts.settings, parts.metrics
    if settings.canary_s and parts.appender is not None:
        sending = send_canaries(parts.appender.append, metrics, settings.canary_s)
        background.start("canary", sending)
    if settings.canary_s and parts.hub is not None:
        # All canaries have one source, and lie in one of the partitions.
        hubs = parts.hub.hubs if isinstance(parts.hub, JointHub) else [parts.hub]
        for hub in hubs:
            background.start("canaries", await_canaries(hub, metrics))


def _looks_elsewhere(
    settings: Settings, tokens: Tokens, http: httpx.AsyncClient | None
) -> Iterator[Look]:
    """Looks at the processes of the roles that the page uses and this one has not."""
    missing = {
        role: url
        for role, url in (
            ("collector", settings.collector_url),
            ("distributor", settings.distributor_url),
        )
        if role not in settings.roles
    }
    for url in dict.fromkeys(missing.values()):
        assert http is not None
        roles = [role for role in missing if missing[role] == url]
        read = tokens.read if "distributor" in roles else None
        yield RemoteProcess(url, http, roles, read, tokens.admin)
