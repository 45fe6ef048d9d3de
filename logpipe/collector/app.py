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
from logpipe.collector.inflight import Held
from logpipe.collector.ingest import Bounds, Intake, answer_of, append_of, hits_of, take_in
from logpipe.collector.receivers import table as receivers
from logpipe.collector.receivers.intake import Process
from logpipe.limits import Rates, sender_of
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


def create(
    settings: Settings, appender: Appender, metrics: Metrics, rates: Rates | None = None
) -> ASGIApp:
    """The collector's sub-app over the process's appender."""
    process = Process(settings, appender, metrics, rates)
    ingest = Ingest(process)
    cors = {
        "allow_origins": settings.cors_allow_origins,
        "allow_methods": ("POST",),
        "allow_headers": (*HEADERS_ALLOWED, *receivers.HEADERS),
    }
    others = receivers.routes(process)
    around = sub_app([Route(PATH, ingest, methods=["POST"]), *others], cors)

    async def collector(scope: Scope, receive: Receive, send: Send) -> None:
        """Another method or path, and what a browser asks, need Starlette; the rest does not."""
        if scope["method"] == "POST" and scope["path"] == PATH:
            headers = _headers(scope)
            if "origin" not in headers:
                await ingest.answer(scope, headers, receive, send, wire_of(scope))
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

    def __init__(self, process: Process) -> None:
        self._settings, self._appender, self._metrics, self._rates = process
        self._bounds = Bounds.of(self._settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request that came through Starlette."""
        await self.answer(scope, _headers(scope), receive, send, None)

    async def answer(
        self,
        scope: Scope,
        headers: dict[str, str],
        receive: Receive,
        send: Send,
        wire: Wire | None,
    ) -> None:
        """Answers one request; every refusal is a problem document."""
        body_read = False
        try:
            sender = self._admitted(scope, headers)
            with Held(self._appender.inflight) as held:
                body = await self._body(headers, receive, wire, held)
                body_read = True
                intake = await self._intake(headers, body)
                del body  # not to be held, too, while its events wait for Redis
            answer = await self._store(headers, intake, sender)
        except ClientDisconnect:
            return
        except Problem as problem:
            self._metrics.requests.labels(problem.status).inc()
            self._metrics.count_limited(problem.hits)
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

    def _admitted(self, scope: Scope, headers: dict[str, str]) -> str:
        """Who sends, where that counts; raises a `Problem` for one who may not now."""
        authorization, tokens = headers.get("authorization"), self._settings.ingest_tokens
        auth.require(authorization, tokens)
        if self._rates is None:
            return ""
        token = authorization.partition(" ")[2].strip() if tokens and authorization else None
        sender = sender_of(scope, token)
        self._rates.require(sender)
        return sender

    async def _body(
        self, headers: dict[str, str], receive: Receive, wire: Wire | None, held: Held
    ) -> bytes:
        limit = self._settings.max_body_bytes
        coding = headers.get("content-encoding", "")
        whole = wire.body() if wire is not None and not coding else None
        if whole is None:
            length = headers.get("content-length", "")
            return await read_body(receive, coding, length, limit, held)
        if len(whole) > limit:
            raise too_large(limit)
        return whole

    async def _intake(self, headers: dict[str, str], body: bytes) -> Intake:
        self._metrics.body_bytes.inc(len(body))
        content_type = headers.get("content-type", "")
        try:
            if len(body) <= LARGE_BYTES:
                return take_in(body, content_type, self._bounds)
            async with self._appender.inflight.reading:
                return await asyncio.to_thread(take_in, body, content_type, self._bounds)
        except Problem as problem:
            self._metrics.events_rejected.inc(problem.members.get("rejected", 0))
            raise

    async def _store(self, headers: dict[str, str], intake: Intake, sender: str) -> bytes:
        if intake.refusals:
            self._metrics.events_rejected.inc(len(intake.refusals))
            self._metrics.count_limited(hits_of(intake.refusals))
        if self._rates is not None:
            self._rates.require(sender)
            self._rates.spend(sender, len(intake.events) + len(intake.refusals))
        appended = await self._appender.append(append_of(intake, headers.get("idempotency-key")))
        return answer_of(appended)
