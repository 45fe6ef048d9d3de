"""Wrong tokens: counted, logged and slowed, and never in the way of right ones."""

import asyncio
import logging
from typing import Any

import pytest

from logpipe import attempts
from logpipe.attempts import ATTEMPTS, Attempts
from logpipe.parts import Durations
from logpipe.problems import Problem
from tests.helpers import wait_until
from tests.raw import connected, request
from tests.servers import Service, Valkey, serving

RIGHT = "right-token-of-the-test"
ONE, OTHER = "192.0.2.1", "192.0.2.2"
LONG_S = 3600.0
EVENT = b'{"source": "a", "message": "b"}'


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def passes(tried: Attempts, token: str, address: str = ONE) -> bool | None:
    """None: it has to wait."""
    scope: dict[str, Any] = {"type": "http", "client": (address, 1)}
    try:
        return tried.passes(scope, "events", token, lambda: token == RIGHT)
    except Problem as problem:
        waits = problem
    assert waits.status == 429
    assert int(waits.headers["Retry-After"]) >= 1
    return None


def tried_out(clock: Clock, **given: Any) -> Attempts:
    """Attempts of which one address has none left."""
    tried = Attempts(now=clock, wait_s=1.0, **given)
    assert [passes(tried, f"wrong-{n}") for n in range(ATTEMPTS)] == [False] * ATTEMPTS
    return tried


async def test_after_ten_wrong_tokens_there_is_one_attempt_a_second() -> None:
    clock = Clock()
    tried = tried_out(clock)
    assert passes(tried, "wrong") is None
    assert passes(tried, RIGHT) is None
    assert passes(tried, "wrong", OTHER) is False
    clock.s += 1
    assert [passes(tried, "wrong-a"), passes(tried, "wrong-b")] == [False, None]
    clock.s += 1
    assert passes(tried, RIGHT) is True


async def test_the_same_wrong_token_is_slowed_as_well() -> None:
    tried = Attempts(now=Clock())
    assert [passes(tried, "wrong") for _ in range(ATTEMPTS + 1)] == [*[False] * ATTEMPTS, None]


async def test_a_token_that_was_right_there_before_never_waits() -> None:
    clock = Clock()
    before = Attempts(now=clock, wait_s=1.0)
    assert passes(before, RIGHT) is True
    for n in range(2 * ATTEMPTS):
        passes(before, f"wrong-{n}")
    assert passes(before, "wrong") is None
    assert [passes(before, RIGHT) for _ in range(100)] == [True] * 100


async def test_a_repeated_wrong_token_delays_no_right_one() -> None:
    clock = Clock()
    tried = Attempts(now=clock, wait_s=1.0)
    for _ in range(100):
        passes(tried, "old")
        clock.s += 0.02
    assert passes(tried, RIGHT) is True


async def test_a_token_that_is_no_longer_right_is_as_wrong_as_any() -> None:
    tried = Attempts(now=Clock())
    scope: dict[str, Any] = {"type": "http", "client": (ONE, 1)}
    assert tried.passes(scope, "events", "t", lambda: True)
    outcomes = [passes(tried, "t") for _ in range(ATTEMPTS + 1)]
    assert outcomes == [*[False] * ATTEMPTS, None]


async def test_an_address_that_was_quiet_has_all_its_attempts_again() -> None:
    clock = Clock()
    tried = tried_out(clock)
    assert passes(tried, "wrong-0") is None
    clock.s += ATTEMPTS
    assert [passes(tried, "wrong-0") for _ in range(ATTEMPTS)] == [False] * ATTEMPTS


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MAX_ADDRESSES", 3)
    monkeypatch.setattr(attempts, "MAX_RIGHT", 3)
    tried = tried_out(Clock())
    assert passes(tried, "wrong") is None
    for n in range(3):
        assert passes(tried, "wrong", f"198.51.100.{n}") is False
    assert passes(tried, "wrong") is False  # the address that was wrong longest ago is forgotten
    for n in range(5):
        assert passes(tried, RIGHT, f"203.0.113.{n}") is True
    assert len(tried._addresses) == len(tried._right) == 3


async def test_wrong_tokens_are_counted_by_route_and_429s_as_limited() -> None:
    routes: list[str] = []
    limited: list[object] = []
    tried = tried_out(Clock(), wrong=routes.append, limited=limited.append)
    passes(tried, "wrong")
    assert routes == ["events"] * ATTEMPTS
    assert limited == [{"wrong_tokens": 1}]


async def test_the_log_has_one_line_a_second_with_a_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "logpipe")
    clock = Clock()
    tried = Attempts(log_s=0.05, now=clock)
    scope: dict[str, Any] = {"type": "http", "client": None}
    tried.note(scope, "login")
    for n in range(7):
        passes(tried, f"wrong-{n}")
    await wait_until(lambda: len(caplog.messages) == 2, "the others are logged")
    assert caplog.messages == [
        "A wrong token was sent to login by an unknown address",
        f"Wrong tokens were sent 7 more times, the last one to events by {ONE}",
    ]
    clock.s += 0.06
    tried.note(scope, "events")
    assert len(caplog.messages) == 3


# -- on real routes ---------------------------------------------------------------------------

TOKENS = {
    "ingest_tokens": "ingest-token-of-the-test",
    "read_tokens": "reader-token-of-the-test",
    "admin_tokens": "admin-token-of-the-test",
}
ROUTES = {
    "POST /ingest": ("ingest", "ingest_tokens"),
    "POST /ingest/json": ("json", "ingest_tokens"),
    "POST /loki/api/v1/push": ("loki", "ingest_tokens"),
    "GET /elasticsearch/": ("elasticsearch", "ingest_tokens"),
    "GET /subscribe": ("subscribe", "read_tokens"),
    "GET /events": ("events", "read_tokens"),
    "GET /subscribers": ("subscribers", "admin_tokens"),
    "GET /metrics": ("metrics", "admin_tokens"),
    "GET /ui/rows": ("page", "read_tokens"),
    "GET /ui/status": ("page", "admin_tokens"),
    "POST /ui/send": ("page", "ingest_tokens"),
    "POST /login": ("login", "read_tokens"),
}


async def status_of(service: Service, route: str, token: str) -> int:
    method, _, path = route.partition(" ")
    headers, content = {"Authorization": f"Bearer {token}"}, EVENT if method == "POST" else None
    given: dict[str, Any] = {"content": content, "headers": headers}
    if path == "/login":
        given = {"data": {"token": token}}
    elif path == "/ui/send":
        given = {"data": {"source": "a", "message": "b"}, "headers": headers}
    async with service.http.stream(method, path, **given) as answer:
        await asyncio.sleep(0)
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
        return answer.status_code


@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_with_a_token_counts_and_slows_wrong_ones(
    valkey: Valkey, route: str
) -> None:
    name, scope = ROUTES[route]
    async with serving(
        redis_addr=valkey.url, durations=Durations(attempt_s=LONG_S), **TOKENS
    ) as service:
        statuses = [await status_of(service, route, f"wrong-{n}") for n in range(ATTEMPTS + 2)]
        assert statuses[ATTEMPTS:] == [429, 429]
        assert not {status for status in statuses[:ATTEMPTS] if status not in (401, 403)}
        told = service.process.metrics.exposition().decode()
        assert f'logpipe_wrong_tokens_total{{route="{name}"}} {ATTEMPTS}.0' in told
        assert 'logpipe_limited_total{limit="wrong_tokens"} 2.0' in told
    async with serving(
        redis_addr=valkey.url, durations=Durations(attempt_s=LONG_S), **TOKENS
    ) as service:
        right = TOKENS[scope]
        refused = (401, 403, 429)
        assert await status_of(service, route, right) not in refused
        for n in range(ATTEMPTS + 2):
            await status_of(service, route, f"wrong-{n}")
        if name != "login":  # where the browser has a cookie
            assert await status_of(service, route, right) not in refused


async def test_a_right_token_that_is_new_waits_a_moment(valkey: Valkey) -> None:
    async with serving(
        redis_addr=valkey.url, durations=Durations(attempt_s=0.5), **TOKENS
    ) as service:
        while await status_of(service, "GET /events", "wrong") != 429:
            pass

        async def is_let_in() -> bool:
            return await status_of(service, "GET /events", TOKENS["read_tokens"]) == 200

        await wait_until(is_let_in, "the right token is let in")


async def test_a_token_of_another_scope_is_counted_and_not_slowed(valkey: Valkey) -> None:
    async with serving(
        redis_addr=valkey.url, durations=Durations(attempt_s=LONG_S), **TOKENS
    ) as service:
        for _ in range(2 * ATTEMPTS):
            assert await status_of(service, "GET /metrics", TOKENS["read_tokens"]) == 403
        told = service.process.metrics.exposition().decode()
        assert f'logpipe_wrong_tokens_total{{route="metrics"}} {2 * ATTEMPTS}.0' in told


async def test_the_client_is_logged_and_its_token_is_not(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(redis_addr=valkey.url, **TOKENS) as service:
        await status_of(service, "POST /ingest", "s3cr3t-guess")
    assert "A wrong token was sent to ingest by 127.0.0.1" in caplog.messages
    assert "s3cr3t-guess" not in caplog.text


async def test_a_large_body_behind_a_wrong_token_is_not_read(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, durations=Durations(attempt_s=LONG_S), **TOKENS) as service,
        connected(service.url) as connection,
    ):
        for n in range(ATTEMPTS):
            await status_of(service, "POST /ingest", f"wrong-{n}")
        head = request(b"", "Authorization: Bearer wrong").replace(b"Length: 0", b"Length: 999")
        await connection.send(head)
        assert (await connection.answer()).status == 429
