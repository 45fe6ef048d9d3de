"""What the roles of a process stand on: the stream, who appends to it, who reads it, and the rest.

It lives on one exit stack, because the lifespan of a mounted app never runs.
"""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

import httpx

from logpipe import probes
from logpipe.answers import Answers
from logpipe.attempts import WAIT_S
from logpipe.background import Background
from logpipe.canary import await_canaries, send_canaries
from logpipe.client.connection import http_client
from logpipe.client.distributor import RemoteDistributor
from logpipe.client.process import RemoteProcess
from logpipe.client.sign_outs import RemoteSignOuts
from logpipe.collector.appender import Appender
from logpipe.collector.inflight import Inflight
from logpipe.embedded import disk_of, start_engine, start_rewriting
from logpipe.fanout.hub import Hub
from logpipe.groups import Groups
from logpipe.limits import Rates, Seats
from logpipe.metrics import Metrics
from logpipe.redis_address import RedisAddress
from logpipe.settings import Settings, StreamBytes
from logpipe.signed_out import EVERY_S, Exchange, SignedOut
from logpipe.stream import Stream
from logpipe.tokens import Tokens
from logpipe.trimmer import Trimmer
from logpipe.ui.session import LIFE_S
from logpipe.watch import Look, Watch, look_here


class Durations(NamedTuple):
    """What no setting says, and a test may want otherwise, in seconds."""

    attempt_s: float = WAIT_S
    session_s: float = LIFE_S
    exchange_s: float = EVERY_S


class Parts(NamedTuple):
    """What roles are made of; None for what no role of this process needs."""

    settings: Settings
    tokens: Tokens
    metrics: Metrics
    appender: Appender | None
    hub: Hub | None
    groups: Groups | None
    remote: RemoteDistributor | None
    http: httpx.AsyncClient | None
    watch: Watch | None
    seats: Seats
    rates: Rates | None
    answers: Answers
    signed_out: SignedOut
    session_s: float


async def open_stream(
    settings: Settings,
    address: RedisAddress,
    metrics: Metrics,
    stack: AsyncExitStack,
    background: Background,
) -> Stream:
    """The stream at an address, and the embedded engine where that is it; `stack` closes both.

    Raises `EngineError` when the engine cannot start.
    """
    trouble: Callable[[], str | None] = lambda: None  # noqa: E731
    engine = None
    if address.embedded is not None:
        engine = started = await start_engine(settings, stack, background)
        address = engine.address
        trouble = lambda: started.trouble  # noqa: E731
    disk = None
    if address.disk:
        disk = disk_of(settings, address.disk, metrics.disk)
    stream = Stream(
        address,
        settings.stream_name,
        maxlen=settings.trim_maxlen,
        block_ms=settings.block_ms,
        ack_replicas=settings.ack_replicas,
        trouble=trouble,
        disk=disk,
        count_limited=metrics.count_limited,
    )
    stream.health.on_servers = metrics.servers
    stack.push_async_callback(stream.aclose)
    background.start("monitor", stream.monitor())
    if engine is not None and settings.trim_maxage_ms:
        start_rewriting(settings, engine, stream, background)
    return stream


async def open_parts(
    settings: Settings,
    tokens: Tokens,
    metrics: Metrics,
    stream: Stream | None,
    stack: AsyncExitStack,
    background: Background,
    durations: Durations,
) -> Parts:
    """What the roles of `settings` need; `stack` closes it, `background` has its tasks."""
    appender = hub = groups = remote = http = watch = None
    seats = Seats(settings.max_subscribers, settings.max_subscribers_per_client)
    if stream is not None and "collector" in settings.roles:
        appender = Appender(
            stream,
            metrics,
            Inflight(settings.max_inflight_bytes),
            partial(_stream_bytes, settings.stream_bytes, stream),
        )
        _start_trimmer(settings, stream, metrics, background)
        metrics.stream_max_entries.set(settings.trim_maxlen)
        stack.push_async_callback(appender.aclose)
    if stream is not None and "distributor" in settings.roles:
        hub = Hub(
            stream,
            metrics,
            queue_len=settings.subscriber_queue_len,
            batch_count=settings.batch_count,
            heartbeat_s=settings.heartbeat_s,
            event_bytes=settings.max_message_bytes,
        )
        background.start("feed", hub.run())
        background.start("heartbeat", hub.beat())
        background.start("measure", hub.measure())
        groups = await stack.enter_async_context(
            Groups(
                stream,
                metrics,
                background,
                consumer=settings.consumer_name,
                pending_idle_ms=settings.pending_idle_ms,
                batch_count=settings.batch_count,
                heartbeat_s=settings.heartbeat_s,
                lasting=settings.consumer_group,
                run=seats.turns.run,
            )
        )
        if settings.group_expiry_ms:
            background.start("group expiry", groups.end_unused(settings.group_expiry_ms))
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
    rates = Rates(settings.rate_per_token) if settings.rate_per_token else None
    exchange: Exchange | None = None
    if "ui" in settings.roles and hub is not None:
        exchange = hub.stream.sign_outs.exchange
    elif http is not None:
        exchange = RemoteSignOuts(settings.distributor_url, http, tokens).exchange
    signed_out = SignedOut(
        exchange, tokens.end_streams, metrics.count_limited, every_s=durations.exchange_s
    )
    if exchange is not None and tokens.page_tokens:
        background.start("signed out", signed_out.follow())
    return Parts(
        settings,
        tokens,
        metrics,
        appender,
        hub,
        groups,
        remote,
        http,
        watch,
        seats,
        rates,
        Answers(metrics.count_limited),
        signed_out,
        durations.session_s,
    )


def _stream_bytes(given: StreamBytes, stream: Stream) -> float:
    """What the stream may take in Redis as of the last look at it; 0 for any, NaN where Redis does
    not say what its memory is."""
    return given.bytes or given.percent / 100 * stream.memory.limit


def _start_trimmer(
    settings: Settings, stream: Stream, metrics: Metrics, background: Background
) -> None:
    max_bytes, max_age_ms = settings.stream_bytes, settings.trim_maxage_ms
    if any(max_bytes) or max_age_ms:
        trimmer = Trimmer(stream.trimming, metrics, max_bytes=max_bytes, max_age_ms=max_age_ms)
        background.start("trimmer", trimmer.run())


def start_canaries(parts: Parts, stream: Stream | None, background: Background) -> None:
    """Has canaries sent and awaited, by the roles that are here, where CANARY_S says so."""
    settings, metrics = parts.settings, parts.metrics
    if settings.canary_s and parts.appender is not None and stream is not None:
        secret = stream.secret.made
        sending = send_canaries(parts.appender.append, secret, metrics, settings.canary_s)
        background.start("canary", sending)
    if settings.canary_s and parts.hub is not None:
        background.start("canaries", await_canaries(parts.hub, metrics))


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
