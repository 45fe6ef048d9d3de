"""What holds for every route of every role, however many there will be."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from logpipe import subapp
from tests.helpers import wait_until
from tests.servers import Service, Valkey, serving, subscribed

EVENT = b'{"source": "a", "message": "<script>alert(1)</script>"}'
SECRET = "s3cr3t in /etc/shadow"
FOREIGN = {"Origin": "http://evil.example"}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Starlette]:
    """The sub-apps that are made from now on."""
    apps: list[Starlette] = []

    def recorded(**given: Any) -> Starlette:
        apps.append(Starlette(**given))
        return apps[-1]

    monkeypatch.setattr(subapp, "Starlette", recorded)
    return apps


def routes(apps: list[Starlette]) -> Iterator[tuple[str, str]]:
    """Each method and path, with something for what the path leaves open."""
    for app in apps:
        for route in app.routes:
            if isinstance(route, Mount):
                yield "GET", f"{route.path}/page.css"
                continue
            assert isinstance(route, Route)
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            yield from ((method, path) for method in sorted(route.methods or ()))


async def head_of(service: Service, method: str, path: str, **headers: str) -> httpx.Response:
    """The head of an answer, and its body unless it is a stream."""
    body = EVENT if method == "POST" else None
    request = service.http.build_request(method, path, content=body, headers=headers)
    answer = await service.http.send(request, stream=True)
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        await answer.aread()
    await answer.aclose()
    return answer


async def is_ready(service: Service) -> bool:
    return (await service.http.get("/healthz")).status_code == 200


async def test_no_answer_of_any_route_is_taken_for_a_page_or_runs_as_one(
    valkey: Valkey, made: list[Starlette]
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await wait_until(lambda: is_ready(service), "it is ready")
        walked = [*routes(made), ("GET", "/nowhere"), ("PUT", "/ingest"), ("GET", "/../x")]
        assert len(walked) > 100
        for method, path in walked:
            answer = await head_of(service, method, path)
            assert answer.status_code < 500, (method, path)
            if answer.status_code == 202 and path == "/ingest":
                assert set(answer.json()) == {"id"}  # all that the shortest way says
                continue
            assert answer.headers.get_list("x-content-type-options") == ["nosniff"], path
            (policy,) = answer.headers.get_list("content-security-policy")
            assert policy.startswith(("default-src 'none'", "default-src 'self'")), path
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert "server" not in answer.headers


async def test_a_fault_in_any_route_says_nothing_of_its_cause(
    valkey: Valkey, made: list[Starlette], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("logpipe.collector.app.take_in", lambda *_: [][len(SECRET)])
    async with serving(redis_addr=valkey.url) as service:
        for app in made:
            for route in app.routes:
                if isinstance(route, (Route, Mount)):
                    route.app = fail
        for method, path in routes(made):
            answer = await head_of(service, method, path)
            assert answer.status_code == 500, (method, path)
            told = f"{answer.text} {dict(answer.headers)}"
            assert not re.search(
                r"s3cr3t|Traceback|\.py|/work|line \d|(Runtime|Index)Error", told
            ), told
            if method != "HEAD":
                assert answer.headers["content-type"] == "application/problem+json"


# -- other sites -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_where_origins_are_named_no_other_site_makes_a_browser_send(
    valkey: Valkey, made: list[Starlette], kind: str
) -> None:
    """A browser asks nobody before it sends these types: so it is refused before it is stored."""
    async with serving(
        redis_addr=valkey.url, role="collector", cors_allow_origins="https://good.example"
    ) as service:
        senders = [path for method, path in routes(made) if method == "POST"]
        assert "/ingest" in senders
        for path in senders:
            answer = await service.http.post(
                path, content=EVENT, headers={"Content-Type": kind, **FOREIGN}
            )
            assert answer.status_code == 403, path
            assert "CORS_ALLOW_ORIGINS" in answer.json()["detail"]
            assert answer.headers["content-type"] == "application/problem+json"
        assert valkey.client.xlen("logs") == 0
        for origin in ("https://good.example", service.url, None):
            headers = {"Origin": origin} if origin else {}
            answer = await service.http.post("/ingest", content=EVENT, headers=headers)
            assert answer.status_code == 202, origin
        strange = await service.http.post("/ingest", content=EVENT, headers={"Origin": "null"})
        assert strange.status_code == 403


async def test_a_token_stops_another_site_where_any_may_send(valkey: Valkey) -> None:
    """Without CORS_ALLOW_ORIGINS any site may; no browser adds a token by itself."""
    async with serving(redis_addr=valkey.url, ingest_tokens="w") as service:
        answer = await service.post(EVENT, **FOREIGN)
        assert answer.status_code == 401
        assert "access-control-allow-credentials" not in answer.headers


async def test_a_stream_is_no_page_either(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, subscribed(service.url) as reader:
        assert reader.response.headers["x-content-type-options"] == "nosniff"


async def test_who_says_that_he_forwards_for_another_is_not_believed(valkey: Valkey) -> None:
    """Else each request would come from an address of its own, and have a rate of its own."""
    async with serving(redis_addr=valkey.url, role="collector", rate_per_token=1) as service:
        statuses = set()
        for number in range(20):
            told = {"X-Forwarded-For": f"192.0.2.{number}", "Forwarded": f"for=192.0.2.{number}"}
            statuses.add((await service.post(EVENT, **told)).status_code)
        assert statuses == {202, 429}
