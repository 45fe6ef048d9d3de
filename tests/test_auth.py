import pytest

from logpipe.auth import is_known, kept, require
from logpipe.problems import Problem

TOKENS = ("one", "two", "tökén")


def refused(authorization: str | None) -> Problem:
    with pytest.raises(Problem) as caught:
        require(authorization, TOKENS)
    return caught.value


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic b25lOm9uZQ==", "one"])
def test_without_a_bearer_token_the_client_is_told_how_to_log_in(header: str | None) -> None:
    problem = refused(header)
    assert problem.status == 401
    assert problem.headers["WWW-Authenticate"] == 'Bearer realm="logpipe"'


@pytest.mark.parametrize(
    "token", ["three", "on", "onee", "One", "one,two", "one two", "\x00", "\xff", "x" * 100_000]
)
def test_a_wrong_token_is_forbidden_and_not_repeated(token: str) -> None:
    problem = refused(f"Bearer {token}")
    assert problem.status == 403
    assert token not in problem.detail.split()


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "BEARER   one", "Bearer one\t"])
def test_a_right_token_is_let_in_however_the_scheme_is_written(header: str) -> None:
    require(header, TOKENS)


def test_a_token_beyond_ascii_is_known_as_http_servers_hand_it_on() -> None:
    require("Bearer " + "tökén".encode().decode("latin-1"), TOKENS)


def test_without_tokens_everyone_is_let_in() -> None:
    for header in (None, "", "Bearer anything", "nonsense"):
        require(header, ())


def test_a_token_is_known_only_as_a_whole() -> None:
    assert is_known("tökén", TOKENS)
    for other in ("", "t", "tökén ", "token", "\ud800", "oneone"):
        assert not is_known(other, TOKENS)


def test_a_stream_keeps_the_token_of_its_header_and_no_more() -> None:
    assert kept("Bearer    secret   ", ["secret"]) == "Bearer secret"
    assert kept("Bearer " + "x" * 60_000, []) is None
    assert kept(None, []) is None
