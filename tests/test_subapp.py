from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from logpipe.problems import Problem
from logpipe.subapp import sub_app


async def _teapot(_: Request) -> Response:
    raise Problem(418, "It is short and stout.", spout=True)


async def _fine(_: Request) -> Response:
    return PlainTextResponse("fine")


ROUTES = [Route("/teapot", _teapot), Route("/fine", _fine)]


def test_errors_are_problems_with_their_members() -> None:
    answer = TestClient(sub_app(ROUTES)).get("/teapot")
    assert answer.status_code == 418
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["spout"] is True


def test_a_slash_too_many_is_not_found_and_leads_nowhere() -> None:
    answer = TestClient(sub_app(ROUTES)).get("/fine/", follow_redirects=False)
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_other_origins_may_read_only_where_it_says_so() -> None:
    origin = {"Origin": "https://example.org"}
    closed = TestClient(sub_app(ROUTES)).get("/fine", headers=origin)
    assert "access-control-allow-origin" not in closed.headers
    opened = TestClient(sub_app(ROUTES, {"allow_origins": ("*",)})).get("/fine", headers=origin)
    assert opened.headers["access-control-allow-origin"] == "*"
