"""`POST /ingest`, the native way in, a bare ASGI endpoint; beside it what other shippers speak.

The hot path takes no Request or Response object, and goes past Starlette's middleware and router:
a third more requests go through without either.
"""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from logpipe import auth
from logpipe.collector.answer import Answer, give, problem_answer
from logpipe.collector.appender import Appender
from logpipe.collector.body import read_body, too_large
from logpipe.collector.ingest import answer_of, append_of, take_in
from logpipe.collector.receivers import table as receivers
from logpipe.collector.receivers.intake import Process
from logpipe.metrics import Metrics
from logpipe.problems import FAULT, Problem
from logpipe.request_ids import Identified
from logpipe.settings import Settings
from logpipe.subapp import sub_app
from logpipe.wire import Wire, wire_of

PATH = "/ingest"

LARGE_BYTES = 1024 * 1024
"""A larger body is read in a thread: one of 16 MiB would stop everything else for a fifth of a
second."""

HEADERS_ALLOWED = (
    "Authorization",
    "Content-Type",
    "Content-Encoding",
    "Idempotency-Key",
    "X-Request-ID",
)

HEADERS_READ = frozenset(
    {
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"idempotency-key",
        b"origin",
    }
)


def create(settings: Settings, appender: Appender, metrics: Metrics) -> ASGIApp:
    """The collector's sub-app over the process's appender."""
    ingest = Ingest(settings, appender, metrics)
    cors = {
        "allow_origins": settings.cors_allow_origins,
        "allow_methods": ("POST",),
        "allow_headers": (*HEADERS_ALLOWED, *receivers.HEADERS),
    }
    others = receivers.routes(Process(settings, appender, metrics))
    around = sub_app([Route(PATH, ingest, methods=["POST"]), *others], cors)

    async def collector(scope: Scope, receive: Receive, send: Send) -> None:
        """Another method or path, and what a browser asks, need Starlette; the rest does not."""
        if scope["method"] == "POST" and scope["path"] == PATH:
            headers = _headers(scope)
            if "origin" not in headers:
                await ingest.answer(headers, receive, send, wire_of(scope))
                return
        await around(scope, receive, send)

    return collector


def _headers(scope: Scope) -> dict[str, str]:
    """The headers that count here, by name; of one that comes twice, the first."""
    return {
        name.decode(): value.decode("latin-1")
        for name, value in reversed(scope["headers"])
        if name in HEADERS_READ
    }


class Ingest:
    """The endpoint, as an ASGI application."""

    def __init__(self, settings: Settings, appender: Appender, metrics: Metrics) -> None:
        self._settings = settings
        self._appender = appender
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request that came through Starlette."""
        await self.answer(_headers(scope), receive, send, None)

    async def answer(
        self, headers: dict[str, str], receive: Receive, send: Send, wire: Wire | None
    ) -> None:
        """Answers one request; every refusal is a problem document."""
        body_read = False
        try:
            auth.require(headers.get("authorization"), self._settings.ingest_tokens)
            body = await self._body(headers, receive, wire)
            body_read = True
            answer = await self._store(headers, body)
        except ClientDisconnect:
            return
        except Problem as problem:
            self._metrics.requests.labels(problem.status).inc()
            await give(problem_answer(problem), receive, Identified(send), body_read=body_read)
            return
        except Exception:
            self._metrics.requests.labels(500).inc()
            await give(problem_answer(FAULT), receive, Identified(send), body_read=body_read)
            raise  # to be logged by the server
        self._metrics.requests_accepted.inc()
        if wire is not None:
            wire.respond(202, b"application/json", answer)
        else:
            await give(Answer(202, "application/json", answer), receive, send)

    async def _body(self, headers: dict[str, str], receive: Receive, wire: Wire | None) -> bytes:
        limit = self._settings.max_body_bytes
        coding = headers.get("content-encoding", "")
        whole = wire.body() if wire is not None and not coding else None
        if whole is None:
            return await read_body(receive, coding, headers.get("content-length", ""), limit)
        if len(whole) > limit:
            raise too_large(limit)
        return whole

    async def _store(self, headers: dict[str, str], body: bytes) -> bytes:
        self._metrics.body_bytes.inc(len(body))
        asked = (body, headers.get("content-type", ""), self._settings.max_message_bytes)
        try:
            if len(body) > LARGE_BYTES:
                intake = await asyncio.to_thread(take_in, *asked)
            else:
                intake = take_in(*asked)
        except Problem as problem:
            self._metrics.events_rejected.inc(problem.members.get("rejected", 0))
            raise
        if intake.refusals:
            self._metrics.events_rejected.inc(len(intake.refusals))
        appended = await self._appender.append(append_of(intake, headers.get("idempotency-key")))
        return answer_of(appended)
