"""Whose word on a client's address and scheme is taken: that of configured proxies alone."""

import json
from pathlib import Path

import pytest

from logpipe.settings import load
from tests.raw import connected, request
from tests.servers import Service, Valkey, free_port, serving, spawned, subscribed

TOLD = {"X-Forwarded-For": "203.0.113.7, 198.51.100.4", "X-Forwarded-Proto": "https"}


async def seen_as(service: Service, headers: dict[str, str]) -> str:
    """The address under which a subscriber with these headers is listed."""
    async with subscribed(service.url, headers) as reader:
        await reader.named("hello")
        (listed,) = (await service.http.get("/subscribers")).json()["subscribers"]
        return str(listed["client"])


async def ends_for_want_of_a_seat(service: Service, address: str) -> bool:
    headers = {"X-Forwarded-For": address}
    async with service.http.stream("GET", "/subscribe", headers=headers) as answer:
        async for text in answer.aiter_text():
            return "MAX_SUBSCRIBERS_PER_CLIENT" in text
    return False


@pytest.mark.parametrize(
    ("proxies", "client"),
    [
        ("", "127.0.0.1"),
        ("10.0.0.0/8", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.4"),
        ("127.0.0.0/8,198.51.100.4", "203.0.113.7"),
        ("*", "203.0.113.7"),
    ],
)
async def test_the_client_is_the_last_address_that_no_configured_proxy_has(
    valkey: Valkey, proxies: str, client: str
) -> None:
    async with serving(redis_addr=valkey.url, forwarded_allow_ips=proxies) as service:
        assert await seen_as(service, TOLD) == client


async def test_a_peer_that_is_no_proxy_cannot_take_another_s_seat_or_more_than_its_own(
    valkey: Valkey,
) -> None:
    given = {"redis_addr": valkey.url, "max_subscribers_per_client": 1}
    async with serving(**given) as service, subscribed(service.url) as reader:
        await reader.named("hello")
        assert await ends_for_want_of_a_seat(service, "203.0.113.7")


async def test_behind_a_proxy_each_client_has_seats_of_its_own(valkey: Valkey) -> None:
    given = {"redis_addr": valkey.url, "max_subscribers_per_client": 1}
    async with (
        serving(**given, forwarded_allow_ips="127.0.0.1") as service,
        subscribed(service.url, {"X-Forwarded-For": "203.0.113.7"}) as reader,
    ):
        await reader.named("hello")
        assert await ends_for_want_of_a_seat(service, "203.0.113.7")
        assert not await ends_for_want_of_a_seat(service, "203.0.113.8")


@pytest.mark.parametrize(("proxies", "secure"), [("", False), ("127.0.0.1", True)])
async def test_the_page_s_cookie_is_for_https_alone_where_a_proxy_says_so(
    valkey: Valkey, proxies: str, secure: bool
) -> None:
    given = {"redis_addr": valkey.url, "read_tokens": "r", "forwarded_allow_ips": proxies}
    async with serving(**given) as service:
        answer = await service.http.post("/login", data={"token": "r"}, headers=TOLD)
        assert answer.status_code == 303
        assert ("Secure" in answer.headers["set-cookie"]) is secure


async def test_an_ipv4_proxy_is_known_on_a_socket_of_ipv6_too(
    valkey: Valkey, tmp_path: Path
) -> None:
    environ = {"REDIS_ADDR": valkey.url, "HOST": "::", "FORWARDED_ALLOW_IPS": "127.0.0.0/8"}
    async with spawned(tmp_path, PORT=str(free_port()), **environ) as process:
        await process.ready()
        async with subscribed(process.url, TOLD) as reader, connected(process.url) as other:
            await reader.named("hello")
            await other.send(request(start="GET /subscribers HTTP/1.1"))
            (listed,) = json.loads((await other.answer()).body)["subscribers"]
            assert listed["client"] == "198.51.100.4"


@pytest.mark.parametrize("text", ["", ",", "x" * 300, "::1]:[", "1.2.3.4:x", "\x9b31m", "a,,b"])
async def test_nonsense_in_the_header_harms_nobody(valkey: Valkey, text: str) -> None:
    async with serving(redis_addr=valkey.url, forwarded_allow_ips="127.0.0.1") as service:
        told = {b"X-Forwarded-For": text.encode("latin-1")}
        answer = await service.http.get("/events", headers=told)
        assert answer.status_code == 200


def test_by_default_nobody_s_word_is_taken() -> None:
    assert load({}, {}).forwarded_allow_ips == ()
