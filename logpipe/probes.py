"""What every role answers: `/livez`, `/healthz`, `/metrics` and `/openapi.json`."""

import functools
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from logpipe import __version__
from logpipe.background import Background
from logpipe.collector import openapi as collector
from logpipe.distributor import openapi as distributor
from logpipe.metrics import MEDIA_TYPE, Metrics
from logpipe.openapi import JSON, OBJECT, REFUSED, TEXT, Guard, Operation, Reply, document
from logpipe.settings import Role, Settings
from logpipe.stream import RedisHealth
from logpipe.subapp import sub_app
from logpipe.tokens import Tokens
from logpipe.watch import Health

WRITERS: frozenset[Role] = frozenset({"collector"})
"""Roles that are not ready while Redis only serves readers."""

OPERATIONS = (
    Operation("/livez", "Liveness probe.", {200: Reply("The process is alive.", {JSON: OBJECT})}),
    Operation(
        "/healthz",
        "Readiness probe: whether this process is ready, and if not, why.",
        {200: Reply("Ready.", {JSON: Health}), 503: Reply("Not ready.", {JSON: Health})},
    ),
    Operation(
        "/metrics",
        "Metrics for Prometheus.",
        {200: Reply("Metrics in the Prometheus text format.", {MEDIA_TYPE: TEXT}), **REFUSED},
        guard="admin",
    ),
    Operation(
        "/openapi.json",
        "This document.",
        {200: Reply("The OpenAPI document.", {JSON: OBJECT})},
    ),
)

_OF_ROLE: Mapping[Role, Callable[[Settings], Iterator[Operation]]] = {
    "collector": collector.operations,
    "distributor": distributor.operations,
}
"""The page has no operations: its routes serve the browser alone."""


def operations(settings: Settings) -> list[Operation]:
    """All operations that a process with these settings describes."""
    of_roles = [_OF_ROLE[role](settings) for role in sorted(settings.roles) if role in _OF_ROLE]
    return [*OPERATIONS, *(each for role in of_roles for each in role)]


def guarded(settings: Settings) -> dict[Guard, bool]:
    """Which guards are in force: those for which tokens are set."""
    ingest, read, admin = (
        bool(each) for each in (settings.ingest_tokens, settings.read_tokens, settings.admin_tokens)
    )
    return {
        "ingest": ingest,
        "read": read,
        "admin": admin,
        "operate": admin or read,
        "sessions": ingest or read or admin,
    }


def health_of(
    settings: Settings, redis: RedisHealth | None, background: Background
) -> Callable[[], Health]:
    """Tells how the process is; `redis` is None where it needs none."""
    roles = sorted(settings.roles)
    writes = bool(settings.roles & WRITERS)

    def trouble() -> str:
        if background.failure:
            return background.failure
        if background.draining:
            return "draining: the process ends soon"
        if redis is not None and not redis.serves(writes=writes):
            return f"Redis: {redis.detail}"
        return ""

    def state() -> Health:
        wrong = trouble()
        kind = redis.kind if redis else "not used"
        status = "unavailable" if wrong else "ok"
        health = Health(status, [*roles], kind, __version__, wrong)
        if redis is None:
            return health
        servers = redis.servers
        return msgspec.structs.replace(
            health,
            replicas_in_sync=servers.replicas_in_sync,
            sentinels_reachable=servers.sentinels_reachable if servers.sentinels else None,
        )

    return state


def create(
    settings: Settings,
    tokens: Tokens,
    redis: RedisHealth | None,
    background: Background,
    metrics: Metrics,
) -> Starlette:
    """The probes of one process; `redis` is None where it needs none."""
    state = health_of(settings, redis, background)

    async def healthz(_: Request) -> Response:
        health = state()
        return _json(health, 200 if health.status == "ok" else 503)

    return sub_app(
        [
            Route("/livez", _livez),
            Route("/healthz", healthz),
            Route("/metrics", _metrics(tokens, metrics, redis, state)),
            Route("/openapi.json", _openapi(settings)),
        ]
    )


async def _livez(_: Request) -> Response:
    return _json({"status": "ok"}, 200)


def _metrics(
    tokens: Tokens, metrics: Metrics, redis: RedisHealth | None, state: Callable[[], Health]
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        tokens.require(request.scope, "metrics", request.headers.get("authorization"), tokens.admin)
        # In a thread, so that a scrape never holds up the loop.
        return await run_in_threadpool(exposed)

    def exposed() -> Response:
        metrics.redis_up.set(redis.kind == "ok" if redis is not None else math.nan)
        metrics.ready.set(state().status == "ok")
        return Response(metrics.exposition(), media_type=MEDIA_TYPE)

    return answer


def _openapi(settings: Settings) -> Callable[[Request], Response]:
    # A plain function, which Starlette runs in a thread: the document is made at the first request.
    @functools.cache
    def made() -> bytes:
        described = document(operations(settings), __version__, guarded(settings))
        return msgspec.json.encode(described)

    def answer(_: Request) -> Response:
        return Response(made(), media_type="application/json")

    return answer


def _json(state: object, status: int) -> Response:
    return Response(
        msgspec.json.encode(state),
        status,
        {"Cache-Control": "no-store"},
        "application/json",
    )
