"""Tokens as requests carry them, and who is let in by one."""

import base64
from typing import Any

import pytest

from logpipe.auth import is_known, token_of
from logpipe.problems import Problem
from logpipe.settings import load
from logpipe.tokens import Tokens

ALLOWED = ("one", "two", "tökén")
SCOPE: dict[str, Any] = {"type": "http", "client": ("192.0.2.1", 1)}


def admitted(authorization: str | None, allowed: tuple[str, ...] = ALLOWED) -> str | None:
    tokens = Tokens(load({"read_tokens": ",".join(ALLOWED), "ingest_tokens": "other"}, {}))
    return tokens.require(SCOPE, "events", authorization, allowed)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


async def refused(authorization: str | None) -> Problem:
    with pytest.raises(Problem) as caught:
        admitted(authorization)
    return caught.value


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic", "Basic ?", "one"])
async def test_without_a_token_the_client_is_told_how_to_log_in(header: str | None) -> None:
    problem = await refused(header)
    assert problem.status == 401
    assert problem.headers["WWW-Authenticate"] == 'Bearer realm="logpipe"'


@pytest.mark.parametrize(
    "token", ["three", "on", "onee", "One", "one,two", "one two", "\x00", "\xff", "x" * 100_000]
)
async def test_a_wrong_token_is_forbidden_and_not_repeated(token: str) -> None:
    problem = await refused(f"Bearer {token}")
    assert problem.status == 403
    assert token not in problem.detail.split()


async def test_a_token_of_another_scope_is_forbidden() -> None:
    assert (await refused("Bearer other")).status == 403


@pytest.mark.parametrize(
    "header", ["Bearer one", "bearer one", "BEARER   one", "Bearer one\t", basic("x:one")]
)
def test_a_right_token_is_let_in_however_the_scheme_is_written(header: str) -> None:
    assert admitted(header) == "one"


@pytest.mark.parametrize("text", ["x:one", "one:", "one", ":one"])
def test_a_token_may_be_basics_password_or_its_user(text: str) -> None:
    assert token_of(basic(text)) == "one"


def test_an_api_key_is_a_token_or_a_packed_id_and_token() -> None:
    assert token_of(f"ApiKey {basic('id:one').removeprefix('Basic ')}") == "one"
    assert token_of("ApiKey one") == "one"


def test_a_token_beyond_ascii_is_known_as_http_servers_hand_it_on() -> None:
    assert admitted("Bearer " + "tökén".encode().decode("latin-1")) == "tökén"


def test_without_tokens_everyone_is_let_in_and_nothing_is_kept() -> None:
    for header in (None, "", "Bearer anything", "nonsense", "Bearer " + "x" * 60_000):
        assert admitted(header, ()) is None


def test_a_token_is_known_only_as_a_whole() -> None:
    assert is_known("tökén", ALLOWED)
    for other in ("", "t", "tökén ", "token", "\ud800", "oneone"):
        assert not is_known(other, ALLOWED)
