import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from logpipe.problems import (
    HANDLERS,
    MEDIA_TYPE,
    RETRY_AFTER_S,
    Problem,
    Unavailable,
    bad_parameter,
    respond,
)
from tests.helpers import retry_after

RETRY = {"Retry-After": "5"}


def body_of(problem: Problem) -> Any:
    return json.loads(problem.body())


async def ask(raises: Exception, *, method: str = "GET", path: str = "/") -> list[Message]:
    """What an app whose only endpoint raises this sends for a request."""

    async def endpoint(_: Request) -> Response:
        raise raises

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    app = Starlette(routes=[Route("/", endpoint)], exception_handlers=HANDLERS)
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return sent


def test_a_problem_has_the_members_of_rfc_9457() -> None:
    assert body_of(Problem(409, "it was sent before")) == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "it was sent before",
    }


def test_members_of_its_own_stand_beside_the_standard_ones() -> None:
    document = body_of(Problem(415, "refused", errors=[{"index": 3, "error": "x"}], rejected=1))
    assert document["errors"] == [{"index": 3, "error": "x"}]
    assert document["rejected"] == 1
    assert document["title"] == "Unsupported Media Type"


def test_a_problem_reads_as_its_sentence() -> None:
    assert str(Problem(400, "it is not JSON")) == "it is not JSON"


def test_any_text_of_a_client_is_json_in_the_body() -> None:
    detail = 'a "quoted"\nline \u2028 <script> \x00'
    assert body_of(Problem(400, detail))["detail"] == detail


def test_a_bad_parameter_is_a_400_that_names_it() -> None:
    problem = bad_parameter("since", "not a time")
    document = body_of(problem)
    assert problem.status == 400
    assert document["detail"] == "since: not a time"
    assert document["parameter"] == "since"


def test_unavailable_says_when_to_come_back() -> None:
    problem = Unavailable("oom", "it is out of memory")
    assert problem.status == 503
    assert problem.headers == {"Retry-After": str(RETRY_AFTER_S)}
    assert (problem.kind, problem.reason) == ("oom", "it is out of memory")
    assert body_of(problem)["detail"] == "Redis: it is out of memory"
    assert body_of(problem)["redis"] == "oom"


def test_unavailable_for_longer_says_so() -> None:
    assert Unavailable("wrongtype", "x", retry_after_s=30).headers == {"Retry-After": "30"}


def test_headers_are_a_copy() -> None:
    headers = {"Allow": "GET"}
    problem = Problem(405, "no", headers=headers)
    headers["Allow"] = "POST"
    assert problem.headers == {"Allow": "GET"}


def test_the_response_carries_status_headers_and_media_type() -> None:
    problem = Unavailable("away", "it cannot be reached")
    response = respond(problem)
    assert response.status_code == 503
    assert response.headers["retry-after"] in retry_after(RETRY_AFTER_S)
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.body == problem.body()


def test_the_retry_after_of_a_503_differs_from_one_to_the_next() -> None:
    asked = [Unavailable("away", "x", retry_after_s=5), Problem(429, "x", headers=RETRY)]
    found = [{respond(each).headers["retry-after"] for _ in range(200)} for each in asked]
    assert found == [{"5", "6", "7"}, {"5"}]


async def test_a_problem_that_was_raised_anywhere_is_answered() -> None:
    start, body = await ask(Unavailable("away", "it cannot be reached"))
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"].decode() in retry_after(1)
    assert json.loads(body["body"])["redis"] == "away"


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [("GET", "/nowhere", 404, "Not Found"), ("DELETE", "/", 405, "Method Not Allowed")],
)
async def test_errors_of_the_router_are_problems_too(
    method: str, path: str, status: int, title: str
) -> None:
    start, body = await ask(Problem(400, "not reached"), method=method, path=path)
    document = json.loads(body["body"])
    assert start["status"] == document["status"] == status
    assert document["title"] == title
    assert (b"content-type", MEDIA_TYPE.encode()) in start["headers"]
    allows = [value for name, value in start["headers"] if name == b"allow"]
    assert bool(allows) == (status == 405)
