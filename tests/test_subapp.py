import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from logpipe.problems import Problem
from logpipe.subapp import sub_app


async def _teapot(_: Request) -> Response:
    raise Problem(418, "It is short and stout.", spout=True)


async def _fine(_: Request) -> Response:
    return PlainTextResponse("fine")


ROUTES = [Route("/teapot", _teapot), Route("/fine", _fine)]


async def get(app: ASGIApp, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        return await http.get(path, headers=headers)


async def test_errors_are_problems_with_their_members() -> None:
    answer = await get(sub_app(ROUTES), "/teapot")
    assert answer.status_code == 418
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["spout"] is True


async def test_a_slash_too_many_is_not_found_and_leads_nowhere() -> None:
    answer = await get(sub_app(ROUTES), "/fine/")
    assert answer.status_code == 404
    assert "location" not in answer.headers


async def test_other_origins_may_read_only_where_it_says_so() -> None:
    closed = await get(sub_app(ROUTES), "/fine", Origin="https://example.org")
    assert "access-control-allow-origin" not in closed.headers
    opened = await get(
        sub_app(ROUTES, {"allow_origins": ("*",)}), "/fine", Origin="https://example.org"
    )
    assert opened.headers["access-control-allow-origin"] == "*"
