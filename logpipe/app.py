"""The composition of a process: which roles it runs and what they stand on.

Resources live on one exit stack here and are handed to the roles; a role is a Starlette sub-app
that knows nothing of the others.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from logpipe import probes, ui
from logpipe.access import Access
from logpipe.attempts import Attempts
from logpipe.auth import IN_URL
from logpipe.background import Background
from logpipe.client.collector import RemoteCollector
from logpipe.client.log import RemoteLog
from logpipe.collector import app as collector
from logpipe.collector.answer import give, problem_answer
from logpipe.collector.inflight import Inflight
from logpipe.collector.receivers.intake import Process
from logpipe.collector.receivers.syslog_tcp import SyslogListener
from logpipe.collector.receivers.table import SEGMENTS
from logpipe.collector.submit import LocalCollector
from logpipe.distributor import app as distributor
from logpipe.listening import bind
from logpipe.loop_lag import measure_lag
from logpipe.metrics import Metrics
from logpipe.origins import Guard, Route, guard_of
from logpipe.parts import Durations, Parts, open_parts, open_stream, start_canaries
from logpipe.problems import Problem, respond
from logpipe.request_ids import Identified
from logpipe.settings import Role, Settings
from logpipe.tokens import Tokens


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
    assert parts.hub is not None and parts.groups is not None
    return distributor.create(
        parts.settings, parts.tokens, parts.hub, parts.groups, parts.seats, parts.answers
    )


def _ui(parts: Parts) -> ASGIApp:
    """Local or remote is decided here, once: the page does not know which it has."""
    settings, tokens = parts.settings, parts.tokens
    appender, hub, remote, http, watch = (
        parts.appender,
        parts.hub,
        parts.remote,
        parts.http,
        parts.watch,
    )
    assert watch is not None
    log: ui.Log
    submit: ui.Submit
    if hub is not None:
        log = ui.LocalLog(hub, f"this process ({', '.join(sorted(settings.roles))})")
    else:
        assert remote is not None and http is not None
        log = RemoteLog(settings.distributor_url, http, remote, tokens.read)
    if appender is not None:
        submit = LocalCollector(settings, appender, parts.rates)
    else:
        assert http is not None
        submit = RemoteCollector(settings.collector_url, http, tokens.ingest)
    page = ui.Page(
        settings,
        tokens,
        log,
        submit,
        parts.metrics,
        watch,
        parts.seats,
        parts.answers,
        parts.signed_out,
        parts.session_s,
    )
    return ui.create(page)


ROLES: Mapping[Role, RoleSpec] = {
    "collector": RoleSpec(("ingest", *SEGMENTS), _collector),
    "distributor": RoleSpec(
        ("subscribe", "ack", "events", "subscribers", "signed-out"), _distributor
    ),
    "ui": RoleSpec(("", "ui", "static", "login", "status"), _ui),
}

PROBES = ("livez", "healthz", "metrics", "openapi.json")

UNGUARDED = ("livez", "healthz")
"""The probes, which answer under any Host and to any origin."""

GUARDED: Mapping[str, Route] = {
    "ingest": Route("send"),
    **dict.fromkeys(SEGMENTS, Route("send")),
    "subscribe": Route("read"),
    "events": Route("read"),
    "ack": Route("read"),
    "signed-out": Route("read"),
    "subscribers": Route("operate"),
    "metrics": Route("metrics"),
    "openapi.json": Route("read", page=True, links=True),
    "": Route("read", page=True, links=True),
    "login": Route("read", page=True, links=True),
    "status": Route("operate", page=True, links=True),
    "static": Route("read", page=True, links=True),
    "ui": Route("read", page=True),
    "ui/send": Route("send", page=True),
}
"""What `origins.guard_of` makes a guard of, by first segment of a path. A new one needs a row."""

NOTHING_HERE = Problem(404, "There is nothing here for the roles of this process.")

TOKEN_IN_URL = Problem(
    400, "A token must not be in a URL, which histories keep: send it as Authorization: Bearer."
)


class Dispatch:
    """Hands a request to the sub-app of its first path segment.

    Not `Mount`: of two mounts at `/` the second is never reached, and one at `/ingest` answers
    `/ingest` with a redirect.
    """

    def __init__(self, apps: Mapping[str, ASGIApp], guards: Mapping[str, Guard] = {}) -> None:
        self._apps = apps
        self._guards = guards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 404 for a path of no role, 403 and 421 as its guard says, and 400 for a token in
        the URL."""
        path = scope["path"]
        segment = path.removeprefix("/").partition("/")[0]
        app = self._apps.get(segment)
        guard = self._guards.get("ui/send" if path == "/ui/send" else segment)
        if app is None:
            await respond(NOTHING_HERE)(scope, receive, Identified(send))
        elif guard is not None and (problem := guard.refusal(scope)) is not None:
            body_read = scope["method"] in ("GET", "HEAD", "OPTIONS")
            await give(problem_answer(problem), receive, Identified(send), body_read=body_read)
        elif (query := scope["query_string"]) and segment not in SEGMENTS and IN_URL.search(query):
            await respond(TOKEN_IN_URL)(scope, receive, Identified(send))
        else:
            await app(scope, receive, send)


class Running(NamedTuple):
    """A process's application, the farewell to its streams, its background tasks, its metrics, its
    tokens, and where it is a collector, its listener for syslog over TCP and its appends."""

    app: ASGIApp
    farewell: Callable[[], None]
    background: Background
    metrics: Metrics
    tokens: Tokens
    syslog: SyslogListener | None
    inflight: Inflight | None


@asynccontextmanager
async def running(
    settings: Settings,
    durations: Durations = Durations(),  # noqa: B008 - it is immutable
) -> AsyncIterator[Running]:
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
        metrics.workers_wanted.set(settings.workers)
        tokens = Tokens(
            settings,
            Attempts(metrics.count_wrong_token, metrics.count_limited, wait_s=durations.attempt_s),
        )
        background = Background()
        if tokens.from_files:
            background.start("tokens", tokens.follow())
        stream = None
        if settings.redis is not None:
            stream = await open_stream(settings, settings.redis, metrics, stack, background)
        parts = await open_parts(settings, tokens, metrics, stream, stack, background, durations)
        background.start("lag", measure_lag(metrics))
        start_canaries(parts, stream, background)
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
        yield Running(
            Access(Dispatch(apps, _guards(settings)), parts.answers),
            farewell,
            background,
            metrics,
            tokens,
            syslog,
            inflight,
        )


def _guards(settings: Settings) -> dict[str, Guard]:
    made = {segment: guard_of(settings, route) for segment, route in GUARDED.items()}
    return {segment: guard for segment, guard in made.items() if guard is not None}


def _say_farewell(parts: Parts, syslog: SyslogListener | None) -> None:
    if parts.hub is not None:
        parts.hub.close()
    if parts.groups is not None:
        parts.groups.close()
    if parts.remote is not None:
        parts.remote.close()
    if syslog is not None:
        syslog.stop()
