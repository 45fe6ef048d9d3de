"""Under which names the page answers, what its answers carry, and whose requests change things."""

import pytest
from starlette.datastructures import Headers

from logpipe.origins import is_own_host, machine_name
from logpipe.problems import Problem
from logpipe.ui.security import require_same_origin
from tests.raw import connected, request
from tests.servers import Valkey, serving
from tests.ui.pieces import FORM, stored

OWN = (
    "", ":8080", "localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1",
    "127.0.0.1:8080", "192.168.1.5", "10.0.0.1.", "[::1]", "[::1]:8080", "[FE80::1]:80",
    "[fe80::1%25eth0]:80", "[::ffff:127.0.0.1]", machine_name(), f"{machine_name()}:80",
)  # fmt: skip
PRIVATE = ("a.localhost", "Logs.INTERNAL:1", "x.home.arpa.", "it.test")
STRANGE = (
    "logs", "logs:80", "evil.local", "nas.lan.", "evil.local:8080",
    "evil.example", "evil.example:8080", "EVIL.example.", "localhost.evil.example",
    "127.0.0.1.evil.example", "127.0.0.1.nip.io", "evil.example.127", "[evil.example]",
    "[evil.example]:80", "local.evil", "evillocal.example", "127.0.0.1@evil.example",
    "256.0.0.1", "1.2.3", "0x7f.0.0.1", "a..b", "localhost.com",
    "\xe9vil.example",
)  # fmt: skip


@pytest.mark.parametrize("host", OWN)
def test_addresses_and_this_machines_name_are_its_own(host: str) -> None:
    assert is_own_host(host, ())
    assert is_own_host(host, ("other.example",))


@pytest.mark.parametrize("host", PRIVATE)
def test_names_that_nobody_can_own_are_the_pages(host: str) -> None:
    assert is_own_host(host, (), private=True)
    assert not is_own_host(host, ())


@pytest.mark.parametrize("host", STRANGE)
def test_any_other_name_may_be_somebody_elses(host: str) -> None:
    assert not is_own_host(host, (), private=True)
    assert not is_own_host(host, ("other.example",), private=True)
    assert is_own_host(host, ("*",))


@pytest.mark.parametrize(
    "allowed", ["logs.example.com", "LOGS.Example.com", "logs.example.com:443", "logs.example.com."]
)
@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("logs.example.com", True),
        ("LOGS.example.com.:8443", True),
        ("a.logs.example.com", False),
        ("example.com", False),
        ("logs.example.com.evil", False),
    ],
)
def test_a_name_that_is_allowed_is_the_pages_however_it_is_written(
    allowed: str, host: str, own: bool
) -> None:
    assert is_own_host(host, ("b.example", allowed)) is own


PATHS = ("/", "/ui/stream", "/ui/rows", "/ui/download", "/static/page.css", "/ui/nothing", "/login")


@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_name_that_was_pointed_here_gets_nothing(
    valkey: Valkey, path: str, listening: str
) -> None:
    async with serving(
        redis_addr=valkey.url, allowed_hosts="logs.example", host=listening
    ) as service:
        answer = await service.http.get(path, headers={"Host": "evil.example"})
        assert answer.status_code == 421
        assert "ALLOWED_HOSTS" in answer.json()["detail"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        sent = await service.http.post("/ui/send", data=FORM, headers={"Host": "evil.example"})
        assert sent.status_code == 421
        assert stored(valkey) == []
        own = await service.http.head(path, headers={"Host": "LOGS.example:8080"})
        assert own.status_code != 421


async def test_with_tokens_any_name_is_asked_for_one(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        host = {"Host": "logs.example"}
        assert (await service.http.get("/login", headers=host)).status_code == 200
        assert (await service.http.get("/ui/rows", headers=host)).status_code == 401
        bearer = {**host, "Authorization": "Bearer r"}
        assert (await service.http.get("/ui/rows", headers=bearer)).status_code == 200


async def test_tokens_to_send_do_not_make_a_strange_name_the_pages(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="w") as service:
        answer = await service.http.get("/", headers={"Host": "evil.example"})
        assert answer.status_code == 421


async def test_the_host_of_an_absolute_target_is_not_trusted(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, connected(service.url) as connection:
        line = request(start="GET http://localhost/ HTTP/1.1").replace(
            b"localhost\r\nC", b"evil.example\r\nC"
        )
        await connection.send(line)
        assert (await connection.answer()).status == 421


# -- origins ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://{host}"}, False),
        ({"Origin": "http://{host}"}, True),
        ({"Origin": "HTTP://{host}"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://{host}.evil.example"}, False),
        ({"Origin": "http://evil.example/{host}"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://[::1"}, False),
    ],
)
@pytest.mark.parametrize("path", ["/ui/send", "/login", "/ui/logout"])
async def test_a_post_from_another_origin_is_refused(
    valkey: Valkey, headers: dict[str, str], allowed: bool, path: str
) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        host = service.url.removeprefix("http://")
        given = {name: value.replace("{host}", host) for name, value in headers.items()}
        form = {**FORM, "token": "r"}
        answer = await service.http.post(path, data=form, headers=given)
        assert (answer.status_code < 400) is allowed
        if not allowed:
            assert answer.status_code == 403
            assert stored(valkey) == []
            assert "set-cookie" not in answer.headers


def test_hosts_are_compared_in_any_case() -> None:
    require_same_origin(Headers({"host": "LOGS.example", "origin": "http://logs.EXAMPLE"}))
    with pytest.raises(Problem):
        require_same_origin(Headers({"origin": "http://logs.example"}))
