"""Sessions that were signed out, in one process, in Redis, and at a distributor."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest

from logpipe import signed_out
from logpipe.client.sign_outs import RemoteSignOuts
from logpipe.problems import Problem
from logpipe.redis_address import RedisAddress
from logpipe.signed_out import SignedOut, newest
from logpipe.stream import Stream
from tests.helpers import wait_until
from tests.servers import Valkey, serving
from tests.streams import stream_at

ONE, TWO = "1" * 32, "2" * 32


def soon(after_s: int = 1000) -> int:
    return int(time.time()) + after_s


class Book:
    """What all processes know; `away` while it cannot be reached."""

    def __init__(self) -> None:
        self.sessions: dict[str, int] = {}
        self.away = False
        self.asked = 0

    async def exchange(self, sessions: Mapping[str, int]) -> Mapping[str, int]:
        self.asked += 1
        if self.away:
            raise Problem(503, "away")
        self.sessions |= sessions
        return dict(self.sessions)


async def test_a_session_ends_elsewhere_by_an_exchange() -> None:
    book, changes = Book(), []
    here = SignedOut(book.exchange)
    there = SignedOut(book.exchange, lambda: changes.append(1))
    here.add(ONE, soon())
    assert ONE in here
    assert ONE not in there
    await here.look()
    await there.look()
    assert ONE in there
    await there.look()
    assert changes == [1]


async def test_sign_outs_are_exchanged_once_that_is_possible() -> None:
    book = Book()
    here = SignedOut(book.exchange)
    here.add(ONE, soon())
    book.away = True
    with pytest.raises(Problem):
        await here.look()
    assert ONE in here
    book.away = False
    await here.look()
    assert ONE in book.sessions


async def test_an_exchange_that_keeps_failing_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    book = Book()
    book.away = True
    here = SignedOut(book.exchange, every_s=0.001)
    task = asyncio.create_task(here.follow())
    await wait_until(lambda: book.asked > 3, "it has tried")
    assert caplog.messages == []  # no session was signed out yet
    here.add(ONE, soon())
    before = book.asked
    await wait_until(lambda: book.asked > before + 5, "it has tried again")
    assert caplog.messages == ["Sessions are signed out in this process alone: away"]
    book.away = False
    await wait_until(lambda: ONE in book.sessions, "the exchange has worked")
    task.cancel()


async def test_without_an_exchange_a_sign_out_counts_here() -> None:
    here = SignedOut()
    here.add(ONE, soon())
    await here.look()
    assert ONE in here


def test_the_sessions_are_bounded_and_forgotten_at_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signed_out, "MAX_SESSIONS", 2)
    assert newest({"a": 9, "b": 10, "c": 11, "d": 13, "e": 12}, 10) == {"d": 13, "e": 12}


@pytest.fixture
async def stream(valkey: Valkey) -> AsyncIterator[Stream]:
    async with stream_at(RedisAddress(socket=str(valkey.socket))) as stream:
        yield stream


async def test_redis_keeps_them_until_their_end(valkey: Valkey, stream: Stream) -> None:
    assert await stream.sign_outs.exchange({}) == {}
    ends = {ONE: soon(), TWO: soon(-1)}
    assert await stream.sign_outs.exchange(ends) == {ONE: ends[ONE]}
    (key,) = valkey.client.keys("*signed-out*")
    assert valkey.client.hkeys(key) == [ONE.encode()]
    assert 900 < valkey.client.ttl(key) <= 1001
    assert await stream.sign_outs.exchange({}) == {ONE: ends[ONE]}


async def test_a_redis_user_without_the_key_is_logged_once(
    valkey: Valkey, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    before = stream.health.kind
    await stream.sign_outs.exchange({ONE: soon()})
    (key,) = valkey.client.keys("*signed-out*")
    valkey.client.delete(key)
    valkey.client.set(key, "no hash")
    for _ in range(2):
        assert await stream.sign_outs.exchange({ONE: soon()}) == {}
    assert len(caplog.messages) == 1
    assert "docs/security.md" in caplog.messages[0]
    assert stream.health.kind == before


# -- at a distributor -------------------------------------------------------------------------


async def test_a_distributor_needs_a_token_and_takes_sessions_alone(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="distributor", read_tokens="r") as service:
        bearer = {"Authorization": "Bearer r"}

        async def status_of(content: bytes, headers: dict[str, str]) -> int:
            answer = await service.http.post("/signed-out", content=content, headers=headers)
            return answer.status_code

        assert await status_of(b"{}", {}) == 401
        assert await status_of(b"{}", {"Authorization": "Bearer x"}) == 403
        assert await status_of(b"{}", bearer) == 200
        ends = (b'"x"', b"-1", b"%d" % soon(90_000))
        of_one = [b'{"%b": %b}' % (ONE.encode(), end) for end in ends]
        for bad in (b"", b"[]", b'{"a": 1}', *of_one):
            assert await status_of(bad, bearer) == 400
        assert await status_of(b" " * 70_000, bearer) == 413
        assert not valkey.client.keys("*signed-out*")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (httpx.Response(401), 502),
        (httpx.Response(404), 502),
        (httpx.Response(200, content=b"no"), 502),
        (httpx.ConnectError("refused"), 503),
    ],
)
async def test_a_distributor_that_does_not_understand_is_a_problem(
    answer: httpx.Response | Exception, status: int
) -> None:
    def answered(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(answered)) as http:
        with pytest.raises(Problem) as caught:
            await RemoteSignOuts("http://d", http, ()).exchange({ONE: soon()})
        assert caught.value.status == status
