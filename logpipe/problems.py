"""Errors that a client is told, as RFC 9457 problems: raised anywhere, answered in one place."""

import random
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from logpipe import request_ids

MEDIA_TYPE = "application/problem+json"

JITTER_S = 2
"""Whole seconds, since Retry-After has no parts of one."""


class Document(msgspec.Struct, frozen=True):
    """A problem as it is answered; it may have more members that say more."""

    type: str
    title: str
    status: int
    detail: str


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it so
    """An outcome other than success: an HTTP status, a sentence, and members of its own.

    `hits` says how often it is due to which of `limits.NAMES`, for the metrics.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        hits: Mapping[str, int] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.hits = dict(hits or {})
        self.members = members

    def answered_headers(self) -> dict[str, str]:
        """Its headers; in a 503, Retry-After is up to `JITTER_S` more, so that clients do not all
        come back at the same moment."""
        wait_s = self.headers.get("Retry-After")
        if self.status != HTTPStatus.SERVICE_UNAVAILABLE or wait_s is None:
            return self.headers
        return {**self.headers, "Retry-After": str(int(wait_s) + random.randint(0, JITTER_S))}  # noqa: S311 - no secret

    def body(self) -> bytes:
        """The problem document, with the id of the request that is served, if one is."""
        title = HTTPStatus(self.status).phrase
        told = Document("about:blank", title, self.status, self.detail)
        document: dict[str, Any] = msgspec.structs.asdict(told) | self.members
        if id_ := request_ids.current():
            document["request_id"] = id_
        return msgspec.json.encode(document)


FAULT = Problem(500, "logpipe has failed at this request; its log says how.")
"""What is answered to a fault of logpipe's own: nothing of it but where to look."""

RETRY_AFTER_S = 1
"""Redis comes back within a second of its restart; sooner would only add to its load."""


BUSY = "busy"
"""The kind of `Unavailable` that is due to this process's own load and says nothing of Redis."""


class Unavailable(Problem):
    """Redis cannot serve right now, or cannot be asked because this process is `BUSY`. `kind` is
    one word for /healthz, `detail` the sentence."""

    def __init__(self, kind: str, detail: str, *, retry_after_s: int = RETRY_AFTER_S) -> None:
        sentence = f"Busy: {detail}" if kind == BUSY else f"Redis: {detail}"
        super().__init__(503, sentence, headers={"Retry-After": str(retry_after_s)}, redis=kind)
        self.kind = kind
        self.reason = detail


def bad_parameter(name: str, detail: str, **members: Any) -> Problem:
    """A 400 that names the query parameter."""
    return Problem(400, f"{name}: {detail}", parameter=name, **members)


def respond(problem: Problem) -> Response:
    """The HTTP response of a problem."""
    return Response(problem.body(), problem.status, problem.answered_headers(), MEDIA_TYPE)


async def _on_problem(_: Request, error: Problem) -> Response:
    return respond(error)


async def _on_http_exception(_: Request, error: HTTPException) -> Response:
    return respond(Problem(error.status_code, error.detail, headers=error.headers))


async def _on_fault(_: Request, __: Exception) -> Response:
    return respond(FAULT)


HANDLERS: dict[Any, Any] = {
    Problem: _on_problem,
    HTTPException: _on_http_exception,
    Exception: _on_fault,
}
"""What every Starlette app of logpipe gets as `exception_handlers`."""
