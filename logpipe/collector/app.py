"""`POST /ingest`, the native way in, a bare ASGI endpoint; beside it what other shippers speak.

The hot path takes no Request or Response object, and goes past Starlette's middleware and router:
a third more requests go through without either.
"""

import asyncio
import contextlib

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from logpipe.collector.answer import Answer, give, problem_answer
from logpipe.collector.body import read_body, too_large
from logpipe.collector.inflight import Held
from logpipe.collector.ingest import (
    Bounds,
    Intake,
    answer_of,
    append_of,
    hits_of,
    require_length,
    scope_of,
    take_in,
)
from logpipe.collector.receivers import table as receivers
from logpipe.collector.receivers.generic import PARAMETERS as GENERIC_PARAMETERS
from logpipe.collector.receivers.intake import Process
from logpipe.limits import charged, sender_of
from logpipe.origins import allowed_origins
from logpipe.parameters import MAX_NAME_SHOWN, nearest_parameter
from logpipe.problems import FAULT, Problem, bad_parameter
from logpipe.request_ids import Identified
from logpipe.stream import Once, digest_of
from logpipe.subapp import sub_app
from logpipe.turns import in_thread
from logpipe.wire import Wire, wire_of

PATH = "/ingest"
NAME = "ingest"
"""In idempotency keys, beside the names of other shippers' protocols."""

TINY_BYTES = 1024
"""A body up to this size is read at once, whatever is in it."""

LARGE_BYTES = 256 * 1024
"""A larger body is read in a thread: one of 16 MiB would stop everything else for a fifth of a
second."""

SMALL_BYTES = 16 * 1024
"""Of larger bodies, one at a time is read in each turn of the event loop."""

SMALL_EVENTS = 500
LARGE_EVENTS = 1_200
"""A small body with more events than `SMALL_EVENTS`, and any with more than `LARGE_EVENTS`, is read
in a thread as well: a malformed event may have only two bytes, and takes up to 8 us (measured)."""

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


def create(process: Process) -> ASGIApp:
    """The collector's sub-app over the process's appender."""
    ingest = Ingest(process)
    cors = {
        "allow_origins": allowed_origins(process.settings, "send"),
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


def _reject_parameters(query_string: bytes) -> None:
    """Raise a 400 `Problem` for a parameter: `/ingest` has none but those to be ignored."""
    for name in QueryParams(query_string):
        if name.startswith("_"):
            continue
        shown = name[:MAX_NAME_SHOWN]
        nearest = nearest_parameter(shown, GENERIC_PARAMETERS)
        raise bad_parameter(
            shown,
            f"/ingest has no parameters; /ingest/json has {nearest}",
            nearest=nearest,
        )


class _ManyEventsError(Exception):
    """A body has more events than are read at once."""


class Ingest:
    """The endpoint, as an ASGI application."""

    def __init__(self, process: Process) -> None:
        self._settings, self._tokens, self._appender, self._metrics, self._rates = process
        self._bounds = Bounds.of(self._settings)
        self._small = self._bounds._replace(events=min(SMALL_EVENTS, self._bounds.events))
        self._medium = self._bounds._replace(events=min(LARGE_EVENTS, self._bounds.events))

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
        held = sender = None
        try:
            authorization = headers.get("authorization")
            token = self._tokens.require(scope, NAME, authorization, self._tokens.ingest)
            if scope["query_string"]:
                _reject_parameters(scope["query_string"])
            sender = self._begun(scope, token)
            whole = wire.body() if wire is not None and "content-encoding" not in headers else None
            if whole is not None and len(whole) <= TINY_BYTES:
                body_read = True
                intake = self._read(headers, token, whole, self._bounds)
            else:
                held = Held(self._appender.inflight)
                intake = await self._received(headers, token, whole, receive, held)
            answer = await self._store(intake, sender)
        except ClientDisconnect:
            return
        except Problem as problem:
            self._metrics.requests.labels(problem.status).inc()
            self._metrics.count_limited(problem.hits)
            if self._rates is not None and sender is not None:
                self._rates.spend(sender, max(0, problem.members.get("rejected", 0) - 1))
            body_read = body_read or (held is not None and held.complete)
            await give(problem_answer(problem), receive, Identified(send), body_read=body_read)
            return
        except Exception:
            self._metrics.requests.labels(500).inc()
            body_read = body_read or (held is not None and held.complete)
            await give(problem_answer(FAULT), receive, Identified(send), body_read=body_read)
            raise  # to be logged by the server
        self._metrics.requests_accepted.inc()
        if wire is not None:
            wire.respond(202, b"application/json", answer)
        else:
            await give(Answer(202, "application/json", answer), receive, send)

    def _begun(self, scope: Scope, token: str | None) -> str | None:
        """Whose rate this counts for; None where there is no rate. Raises a 429 `Problem` for a
        sender that has to wait."""
        if self._rates is None:
            return None
        sender = sender_of(scope, token)
        self._rates.begin(sender)
        return sender

    async def _received(
        self,
        headers: dict[str, str],
        token: str | None,
        whole: bytes | None,
        receive: Receive,
        held: Held,
    ) -> Intake:
        """What is in a body: `whole`, or one that has still to come, or to be unpacked."""
        with held:
            if whole is None:
                limit = self._settings.max_body_bytes
                coding, length = (
                    headers.get("content-encoding", ""),
                    headers.get("content-length", ""),
                )
                body = await read_body(receive, coding, length, limit, held)
            else:
                body, held.complete = whole, True
                if len(body) > LARGE_BYTES:
                    held.add(len(body))
            if len(body) <= LARGE_BYTES:
                with contextlib.suppress(_ManyEventsError):
                    if len(body) <= SMALL_BYTES:
                        return self._read(headers, token, body, self._small)
                    async with held.seat:
                        await asyncio.sleep(0)
                        return self._read(headers, token, body, self._medium)
            async with self._appender.inflight.reading:
                return await in_thread(lambda: self._read(headers, token, body, self._bounds))

    def _read(
        self, headers: dict[str, str], token: str | None, body: bytes, bounds: Bounds
    ) -> Intake:
        """Raises a `Problem`, and `_ManyEventsError` for more events than are read at once."""
        if len(body) > self._settings.max_body_bytes:
            raise too_large(self._settings.max_body_bytes)
        try:
            intake = take_in(body, headers.get("content-type", ""), bounds)
        except Problem as problem:
            if bounds.events < self._bounds.events and "batch" in problem.hits:
                raise _ManyEventsError from None
            self._metrics.body_bytes.inc(len(body))
            self._metrics.events_rejected.inc(problem.members.get("rejected", 0))
            raise
        self._metrics.body_bytes.inc(len(body))
        key = headers.get("idempotency-key")
        if key is None:
            return intake
        require_length(key)
        scope = scope_of(NAME, token)
        return msgspec.structs.replace(intake, once=Once(scope + key, digest_of(body)))

    async def _store(self, intake: Intake, sender: str | None) -> bytes:
        if intake.refusals:
            self._metrics.events_rejected.inc(len(intake.refusals))
            self._metrics.count_limited(hits_of(intake.refusals))
        stored = len(intake.events)
        with charged(self._rates, sender, stored + len(intake.refusals), stored):
            self._appender.require_share(intake.events)
            appended = await self._appender.append(append_of(intake))
        return answer_of(intake, appended)
