"""Whose requests a process answers: the origins and the Host that a browser sends."""

from typing import Any

import httpx
import pytest

from logpipe.app import GUARDED, PROBES, ROLES, UNGUARDED
from logpipe.client.distributor import Refused, RemoteDistributor
from logpipe.messages import Notice, Start
from logpipe.origins import Route, guard_of, require_known_origin
from logpipe.problems import Problem
from logpipe.settings import BadSettingsError, load
from logpipe.tail import Wanted, refusal
from tests.servers import Service, Valkey, serving, subscribed

EVENT = b'{"source": "a", "message": "b"}'
EVIL = "http://evil.example"
SEND = (
    "POST /ingest",
    "POST /ingest/json",
    "POST /loki/api/v1/push",
    "GET /ready",
    "POST /ui/send",
)
READ = ("GET /events", "GET /subscribe", "GET /ui/rows", "GET /ui/download", "POST /ui/details")
OPERATE = ("GET /subscribers", "GET /ui/status")
DATA = (*SEND, *READ, *OPERATE, "GET /metrics")
PAGES = ("GET /", "GET /login", "GET /status", "GET /static/page.css", "GET /openapi.json")
PROBED = ("GET /livez", "GET /healthz")


async def status_of(service: Service, route: str, **headers: str) -> int:
    method, _, path = route.partition(" ")
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    content = EVENT if method == "POST" else None
    async with service.http.stream(method, path, content=content, headers=names) as answer:
        return answer.status_code


def test_every_route_is_guarded_or_known_to_need_no_guard() -> None:
    segments = {*PROBES, *(path for role in ROLES.values() for path in role.paths)}
    assert segments <= {*GUARDED, *UNGUARDED}
    assert not set(UNGUARDED) & set(GUARDED)


# -- on loopback, without tokens --------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},
    ],
)
async def test_another_origin_is_refused_wherever_data_is(
    valkey: Valkey, headers: dict[str, str]
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for route in DATA:
            assert await status_of(service, route, **headers) == 403, route
        for route in PROBED:
            assert await status_of(service, route, **headers) == 200, route
        assert valkey.client.xlen("logs") == 0
        refused = await service.http.get("/events", headers={"Origin": EVIL})
        assert "CORS_ALLOW_ORIGINS" in refused.json()["detail"]
        assert "access-control-allow-origin" not in refused.headers


async def test_a_scheme_or_port_of_its_own_makes_another_origin(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for origin in (service.url.replace("http", "https"), "http://127.0.0.1", f"{service.url}0"):
            assert await status_of(service, "GET /events", Origin=origin) == 403, origin


async def test_programs_and_its_own_pages_may_do_all(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        own: list[dict[str, str]] = [
            {},
            {"Origin": service.url},
            {"Origin": service.url, "Sec_Fetch_Site": "same-origin"},
            {"Origin": "https://behind.a.proxy", "Sec_Fetch_Site": "same-origin"},
            {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"},
            {"Sec_Fetch_Site": "same-origin"},
        ]
        for headers in own:
            for route in (*DATA, *PAGES):
                assert await status_of(service, route, **headers) not in (403, 421), (
                    route,
                    headers,
                )


async def test_a_link_on_another_site_opens_the_page(valkey: Valkey) -> None:
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    async with serving(redis_addr=valkey.url) as service:
        for route in PAGES:
            assert await status_of(service, route, **followed) < 400, route
            assert await status_of(service, route, Sec_Fetch_Site="cross-site") == 403, route


async def test_a_preflight_of_another_origin_is_refused(valkey: Valkey) -> None:
    asked = {"Access_Control_Request_Method": "POST", "Sec_Fetch_Site": "cross-site"}
    async with serving(redis_addr=valkey.url) as service:
        for path in ("/ingest", "/loki/api/v1/push", "/subscribe", "/events"):
            assert await status_of(service, f"OPTIONS {path}", Origin=EVIL, **asked) == 403, path


async def test_a_host_that_may_be_anothers_is_misdirected(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, allowed_hosts="logs.example") as service:
        for host in ("evil.example", "evil.local:8080", "intranet", "host.docker.internal:8080"):
            for route in (*DATA, *PAGES):
                assert await status_of(service, route, Host=host) == 421, (host, route)
            for route in PROBED:
                assert await status_of(service, route, Host=host) == 200, (host, route)
        answer = await service.http.get("/metrics", headers={"Host": "host.docker.internal"})
        assert "ALLOWED_HOSTS" in answer.json()["detail"]
        for host in ("localhost:1", "127.0.0.1", "[::1]:8080", "10.0.0.7:80", "LOGS.example:8080"):
            for route in (*DATA, *PAGES):
                assert await status_of(service, route, Host=host) != 421, (host, route)


# -- with tokens, beyond loopback, or with origins that are named -----------------------------


async def test_what_has_a_token_of_its_own_needs_no_origin(valkey: Valkey) -> None:
    foreign = {"Origin": EVIL, "Host": "evil.example"}
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        for route in ("GET /events", "GET /subscribe", "GET /subscribers", "GET /ui/rows"):
            assert await status_of(service, route, **foreign) == 401, route
            bearer = {"Authorization": "Bearer r", **foreign}
            assert await status_of(service, route, **bearer) == 200, route
        for route in (*SEND, "GET /metrics"):
            assert await status_of(service, route, Origin=EVIL) == 403, route
            assert await status_of(service, route, Host="evil.example") == 421, route


async def test_beyond_loopback_any_origin_and_name_may(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, host="0.0.0.0") as service:
        for route in ("POST /ingest", "GET /events", "GET /subscribe", "GET /metrics"):
            status = await status_of(service, route, Origin=EVIL, Host="logs.example")
            assert status < 300, route


async def test_origins_that_are_named_may_read_and_send(valkey: Valkey) -> None:
    named = "http://localhost:3000,HTTPS://App.example"
    async with serving(redis_addr=valkey.url, cors_allow_origins=named) as service:
        for origin in ("http://localhost:3000", "https://app.example:443"):
            for route in ("POST /ingest", "GET /events", "GET /metrics"):
                headers = {"Origin": origin, "Sec_Fetch_Site": "cross-site"}
                assert await status_of(service, route, **headers) < 300, (origin, route)
        assert await status_of(service, "GET /events", Origin="http://localhost:3001") == 403
        assert await status_of(service, "GET /events", Host="evil.example") == 421


async def test_where_origins_are_named_others_read_nothing_either(valkey: Valkey) -> None:
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    async with serving(
        redis_addr=valkey.url, host="0.0.0.0", cors_allow_origins="https://app.example"
    ) as service:
        assert await status_of(service, "GET /events", Origin="https://app.example") == 200
        assert await status_of(service, "GET /events", Origin=EVIL) == 403
        assert await status_of(service, "GET /events", **followed) == 200
        assert await status_of(service, "GET /ui/rows", Origin=EVIL) == 200  # no CORS, so no read


async def test_a_star_that_is_given_is_obeyed(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, cors_allow_origins="*") as service:
        for route in ("POST /ingest", "GET /events", "GET /subscribe?delivery=shared"):
            headers = {"Origin": EVIL, "Sec_Fetch_Site": "cross-site"}
            assert await status_of(service, route, **headers) < 300, route
        assert await status_of(service, "GET /events", Host="evil.example") == 421


@pytest.mark.parametrize("given", ["", " ", ",", "app.example", "https://a.example/", "http://"])
def test_what_is_no_origin_is_a_setting_that_cannot_be_used(given: str) -> None:
    with pytest.raises(BadSettingsError, match="CORS_ALLOW_ORIGINS"):
        load({"cors_allow_origins": given}, {})


# -- shared delivery --------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"host": "0.0.0.0"}, {"read_tokens": "r"}])
async def test_another_site_takes_no_events_from_a_group(
    valkey: Valkey, given: dict[str, str]
) -> None:
    async with serving(redis_addr=valkey.url, **given) as service:
        for headers in ({"Origin": EVIL}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
            bearer = {"Authorization": "Bearer r", **headers}
            assert await status_of(service, "GET /subscribe?delivery=shared", **bearer) == 403
        assert not valkey.client.exists("logs")  # which a group creates
        own = {"Authorization": "Bearer r", "Origin": service.url}
        async with subscribed(service.url, own, delivery="shared") as reader:
            await reader.named("hello")


async def test_a_default_of_shared_delivery_is_guarded_as_well(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, host="0.0.0.0", delivery="shared") as service:
        assert await status_of(service, "GET /subscribe", Origin=EVIL) == 403
        assert await status_of(service, "GET /subscribe?delivery=broadcast", Origin=EVIL) == 200


def scope(**headers: str) -> dict[str, Any]:
    given = {"host": "localhost:8080", **headers}
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    return {"type": "http", "scheme": "http", "headers": pairs}


@pytest.mark.parametrize(
    ("headers", "allowed", "refused"),
    [
        ({}, (), False),
        ({"origin": "http://localhost:8080"}, (), False),
        ({"origin": "http://LOCALHOST:8080"}, (), False),
        ({"origin": EVIL}, (), True),
        ({"origin": EVIL}, (EVIL,), False),
        ({"origin": EVIL}, ("*",), False),
        ({"origin": EVIL}, ("http://other.example",), True),
        ({"origin": "null"}, (), True),
        ({"origin": "null"}, ("null",), False),
        ({"origin": ""}, (), True),
        ({"origin": "http://[::1"}, (), True),
        ({"origin": "http://localhost:8080/"}, (), True),
        ({"origin": "http://localhost:x"}, (), True),
        ({"sec_fetch_site": "cross-site"}, (), True),
        ({"sec_fetch_site": "cross-site"}, (EVIL,), True),
        ({"sec_fetch_site": "cross-site"}, ("*",), False),
        ({"sec_fetch_site": "cross-site", "origin": "http://localhost:8080"}, (), True),
        ({"sec_fetch_site": "same-site"}, (), True),
        ({"sec_fetch_site": "same-site", "origin": "http://localhost:3000"}, (), True),
        ({"sec_fetch_site": "same-origin", "origin": "https://proxied.example"}, (), False),
        ({"sec_fetch_site": "none"}, (), False),
        ({"host": "localhost", "origin": "http://localhost"}, (), False),
        ({"host": "localhost:80", "origin": "http://localhost"}, (), False),
        ({"host": "[::1]:8080", "origin": "http://[::1]:8080"}, (), False),
    ],
)
def test_which_origins_are_known(
    headers: dict[str, str], allowed: tuple[str, ...], refused: bool
) -> None:
    if not refused:
        require_known_origin(scope(**headers), allowed)
        return
    with pytest.raises(Problem) as caught:
        require_known_origin(scope(**headers), allowed)
    assert caught.value.status == 403
    assert "CORS_ALLOW_ORIGINS" in caught.value.detail


async def test_the_scheme_is_that_which_a_proxy_was_asked_by(valkey: Valkey) -> None:
    proxied = {
        "Host": "logs.example",
        "Origin": "https://logs.example",
        "X_Forwarded_Proto": "https",
    }
    for proxies, status in (("127.0.0.1", 200), ("10.0.0.1", 403)):
        async with serving(
            redis_addr=valkey.url, forwarded_allow_ips=proxies, allowed_hosts="logs.example"
        ) as service:
            assert await status_of(service, "GET /events", **proxied) == status


def test_a_process_without_anything_to_guard_has_no_guards() -> None:
    open_to_all = load({"host": "0.0.0.0"}, {})
    assert all(guard_of(open_to_all, route) is None for route in GUARDED.values())
    assert guard_of(load({}, {}), Route("read")) is not None


async def test_a_page_alone_reads_from_a_distributor_on_loopback(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, role="distributor,collector") as service,
        serving(role="ui", distributor_url=service.url, collector_url=service.url) as page,
    ):
        own = {"Origin": page.url, "Sec-Fetch-Site": "same-origin"}
        form = {"source": "a", "level": "INFO", "message": "from the page"}
        sent: httpx.Response = await page.http.post("/ui/send", data=form, headers=own)
        assert sent.status_code == 200
        assert "from the page" in (await page.http.get("/ui/rows", headers=own)).text


async def test_commands_name_the_remedy_for_a_host_that_is_not_known(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url) as service,
        httpx.AsyncClient(headers={"Host": "evil.example"}, trust_env=False) as http,
    ):
        distributor = RemoteDistributor(service.url, http)
        with distributor(Start(), {}, insist=False) as subscription:
            with pytest.raises(Refused) as caught:
                await subscription.next()
            assert caught.value.status == 421
        status, lines = refusal(caught.value, Wanted(service.url))
        assert (status, "ALLOWED_HOSTS" in lines[0]) == (1, True)
        with distributor(Start(), {}) as subscription:
            (notice,) = await subscription.next() or ()
            assert isinstance(notice, Notice)
            assert "ALLOWED_HOSTS" in notice.reason
