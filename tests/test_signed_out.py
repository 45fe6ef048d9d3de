"""Sessions that were signed out, in one process, in Redis, and at a distributor."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest

from logpipe.client.sign_outs import RemoteSignOuts
from logpipe.problems import Problem
from logpipe.redis_address import RedisAddress
from logpipe.settings import load
from logpipe.signed_out import SENT_AT_ONCE, SignedOut
from logpipe.stream import Stream
from logpipe.stream.sign_outs import MAX_AHEAD_S, MAX_SESSIONS, lasting
from logpipe.tokens import Tokens
from tests.helpers import fair_time, wait_until
from tests.servers import Service, Valkey, serving
from tests.streams import stream_at

ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32
LATER_S = 86_300
NO_TOKENS = Tokens(load({}, {}))


def soon(after_s: int = 1000) -> int:
    return int(time.time()) + after_s


class Book:
    """What all processes know; `away` while it cannot be reached."""

    def __init__(self, most: int = 10_000) -> None:
        self.sessions: dict[str, int] = {}
        self.most = most
        self.given: list[int] = []
        self.away = False
        self.asked = 0

    async def exchange(self, sessions: Mapping[str, int]) -> Mapping[str, int]:
        self.asked += 1
        if self.away:
            raise Problem(503, "away")
        self.given.append(len(sessions))
        for digest, until in sessions.items():
            if len(self.sessions) < self.most:
                self.sessions[digest] = until
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


def test_a_session_is_forgotten_at_its_end_and_no_end_is_far() -> None:
    assert lasting({"a": 9, "b": 10, "c": 11}, 10) == {"c": 11}
    assert lasting({"a": 10**12}, 10) == {"a": 10 + MAX_AHEAD_S}


async def test_received_sessions_take_no_place_of_own_ones() -> None:
    book, limited = Book(), list[Mapping[str, int]]()
    here = SignedOut(book.exchange, count_limited=limited.append, most=2)
    here.add(ONE, soon(100))
    book.sessions = {"a": soon(), "b": soon()}
    await here.look()
    book.sessions = {f"{n}": soon(LATER_S) for n in range(5)}
    await here.look()
    assert ONE in here
    assert "a" in here
    assert "b" in here
    assert "0" not in here
    assert limited == [{"sessions": 5}]


async def test_known_sessions_outlive_what_is_received_later() -> None:
    clock = [1_000.0]
    book = Book()
    here = SignedOut(book.exchange, most=1, now=lambda: clock[0])
    book.sessions = {ONE: 1_100}
    await here.look()
    book.sessions = {TWO: 2_000}
    await here.look()
    assert ONE in here
    clock[0] = 1_100
    await here.look()
    assert ONE not in here
    assert TWO in here


async def test_of_too_many_own_sessions_the_first_to_end_goes() -> None:
    limited = list[Mapping[str, int]]()
    here = SignedOut(count_limited=limited.append, most=2)
    for after_s, digest in ((200, ONE), (100, TWO), (300, THREE)):
        here.add(digest, soon(after_s))
    assert ONE in here
    assert TWO not in here
    assert THREE in here
    assert limited == [{"sessions": 1}]


async def test_sessions_that_were_not_added_are_sent_again() -> None:
    book = Book(most=0)
    here = SignedOut(book.exchange)
    here.add(ONE, soon())
    await here.look()
    book.most = 1
    await here.look()
    await here.look()
    assert ONE in book.sessions
    assert book.given == [1, 1, 0]


async def test_many_sessions_are_sent_in_several_exchanges() -> None:
    book = Book()
    here = SignedOut(book.exchange)
    for n in range(SENT_AT_ONCE + 1):
        here.add(f"{n:032x}", soon())
    await here.look()
    await here.look()
    assert book.given == [SENT_AT_ONCE, 1]


@pytest.fixture
def refused() -> list[Mapping[str, int]]:
    """How many sessions the stream has refused, by exchange."""
    return []


@pytest.fixture
async def stream(valkey: Valkey, refused: list[Mapping[str, int]]) -> AsyncIterator[Stream]:
    address = RedisAddress(socket=str(valkey.socket))
    async with stream_at(address, count_limited=refused.append) as stream:
        yield stream


async def test_redis_keeps_them_until_their_end(valkey: Valkey, stream: Stream) -> None:
    assert await stream.sign_outs.exchange({}) == {}
    ends = {ONE: soon(), TWO: soon(-1)}
    assert await stream.sign_outs.exchange(ends) == {ONE: ends[ONE]}
    (key,) = valkey.client.keys("*signed-out*")
    assert valkey.client.zrange(key, 0, -1) == [ONE.encode()]
    assert 900 < valkey.client.ttl(key) <= 1001
    assert await stream.sign_outs.exchange({}) == {ONE: ends[ONE]}


async def test_redis_keeps_the_later_end(valkey: Valkey, stream: Stream) -> None:
    for after_s in (100, 200, 150):
        found = await stream.sign_outs.exchange({ONE: soon(after_s)})
    assert 195 <= found[ONE] - time.time() <= 200


async def test_no_end_in_redis_is_further_ahead_than_a_session(stream: Stream) -> None:
    found = await stream.sign_outs.exchange({ONE: 10**11})
    assert 0 <= time.time() + MAX_AHEAD_S - found[ONE] < 60


async def test_full_redis_keeps_known_sessions_and_refuses_new_ones(
    valkey: Valkey,
    stream: Stream,
    refused: list[Mapping[str, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await stream.sign_outs.exchange({ONE: soon(1000)})
    for page in range(4):
        many = {f"{n:032x}": soon(LATER_S) for n in range(page * 1300, page * 1300 + 1300)}
        found = await stream.sign_outs.exchange(many)
        await stream.sign_outs.exchange({})
    assert len(found) == MAX_SESSIONS
    assert ONE in found
    (key,) = valkey.client.keys("*signed-out*")
    assert valkey.client.zcard(key) == MAX_SESSIONS
    assert sum(each["sessions"] for each in refused) == 4 * 1300 + 1 - MAX_SESSIONS
    assert ["as many as it may" in message for message in caplog.messages] == [True]
    # A known one is not refused.
    assert (await stream.sign_outs.exchange({ONE: soon(2000)}))[ONE] > soon(1500)
    assert len(refused) == 3


async def test_redis_has_room_again_once_sessions_end(valkey: Valkey, stream: Stream) -> None:
    await stream.sign_outs.exchange({ONE: soon()})
    (key,) = valkey.client.keys("*signed-out*")
    valkey.client.zadd(key, {f"{n:032x}": 1 for n in range(MAX_SESSIONS)})
    assert set(await stream.sign_outs.exchange({TWO: soon()})) == {ONE, TWO}
    assert valkey.client.zcard(key) == 2


async def test_a_redis_user_without_the_key_is_logged_once(
    valkey: Valkey, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    before = stream.health.kind
    await stream.sign_outs.exchange({ONE: soon()})
    (key,) = valkey.client.keys("*signed-out*")
    valkey.client.delete(key)
    valkey.client.set(key, "no sorted set")
    for _ in range(2):
        assert await stream.sign_outs.exchange({ONE: soon()}) == {}
    assert len(caplog.messages) == 1
    assert "docs/security.md" in caplog.messages[0]
    assert stream.health.kind == before


# -- at a distributor -------------------------------------------------------------------------


JSON = {"Content-Type": "application/json"}


async def status_of(service: Service, content: bytes = b"{}", token: str = "", **more: str) -> int:
    headers = {**JSON, **({"Authorization": f"Bearer {token}"} if token else {}), **more}
    answer = await service.http.post("/signed-out", content=content, headers=headers)
    return answer.status_code


async def test_a_distributor_needs_a_token_and_takes_sessions_alone(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="distributor", read_tokens="r") as service:
        assert await status_of(service) == 401
        assert await status_of(service, token="x") == 403
        assert await status_of(service, token="r") == 200
        of_one = [b'{"%b": %b}' % (ONE.encode(), end) for end in (b'"x"', b"-1")]
        for bad in (b"", b"[]", b'{"a": 1}', *of_one):
            assert await status_of(service, bad, "r") == 400
        assert await status_of(service, b" " * 70_000, "r") == 413
        assert not valkey.client.keys("*signed-out*")


@pytest.mark.parametrize("type_", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_distributor_takes_no_form_of_a_page(valkey: Valkey, type_: str) -> None:
    async with serving(redis_addr=valkey.url, role="distributor", read_tokens="r") as service:
        assert await status_of(service, b"{}", "r", **{"Content-Type": type_}) == 415


async def test_without_tokens_there_are_no_sessions_to_exchange(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="distributor") as service:
        body = b'{"%b": %d}' % (ONE.encode(), soon())
        assert await status_of(service, body) == 404
        assert not valkey.client.keys("*signed-out*")


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"ingest_tokens": "w"}, "w"),
        ({"admin_tokens": "a"}, "a"),
        ({"ingest_tokens": "w", "admin_tokens": "a"}, "wa"),
        ({"ingest_tokens": "w", "read_tokens": "r", "admin_tokens": "a"}, "ra"),
    ],
)
async def test_where_reading_is_open_any_token_may_exchange(
    valkey: Valkey, settings: dict[str, str], allowed: str
) -> None:
    async with serving(redis_addr=valkey.url, role="distributor", **settings) as service:
        assert await status_of(service) == 401
        for token in "rwa":
            expected = 200 if token in allowed else 403
            assert await status_of(service, token=token) == expected


async def test_one_client_does_not_hold_the_loop(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="w", admin_tokens="a") as service:
        pages = iter(range(1_000))

        async def flood(requests: int) -> list[int]:
            return [await status_of(service, page(next(pages)), "w") for _ in range(requests)]

        flooding = asyncio.gather(*(flood(4) for _ in range(10)))
        slowest = 0.0
        while not flooding.done():
            before = fair_time()
            assert (await service.http.get("/livez")).status_code == 200
            slowest = max(slowest, fair_time() - before)
        assert {each for statuses in await flooding for each in statuses} <= {200, 503}
        assert slowest < 1  # 250 ms for a process of its own: here its client shares the loop
        answer = await service.http.post(
            "/signed-out", content=b"{}", headers={**JSON, "Authorization": "Bearer w"}
        )
        assert len(answer.json()) == MAX_SESSIONS
        assert len(answer.content) < 100_000


def page(number: int) -> bytes:
    digests = (number * 1_300 + n for n in range(1_300))
    return b"{" + b",".join(b'"%032x":%d' % (n, soon(LATER_S)) for n in digests) + b"}"


async def test_more_bodies_than_there_is_room_for_are_refused(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="distributor", read_tokens="r") as service:

        async def begun() -> AsyncIterator[bytes]:
            yield b" " * 60_000
            await held.wait()
            yield b"{}"

        held = asyncio.Event()
        headers = {**JSON, "Authorization": "Bearer r"}
        waiting = [
            asyncio.create_task(service.http.post("/signed-out", content=begun(), headers=headers))
            for _ in range(3)
        ]

        async def one_is_refused() -> bool:
            metrics = (await service.http.get("/metrics")).text
            return 'logpipe_limited_total{limit="sessions"} 1.0' in metrics

        await wait_until(one_is_refused, "there is no room for one of the bodies")
        held.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        stored = [each for each in answers if isinstance(each, httpx.Response) and each.is_success]
        assert len(stored) == 2  # in the quarter of one client
        assert await status_of(service, b" " * 60_000 + b"{}", "r") == 200


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
            await RemoteSignOuts("http://d", http, NO_TOKENS).exchange({ONE: soon()})
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"ingest_tokens": "w", "read_tokens": "r", "admin_tokens": "a"}, "Bearer r"),
        ({"ingest_tokens": "w", "admin_tokens": "a"}, "Bearer a"),
        ({"ingest_tokens": "w"}, "Bearer w"),
    ],
)
async def test_a_page_shows_a_token_that_its_distributor_takes(
    settings: dict[str, str], shown: str
) -> None:
    asked: list[httpx.Request] = []

    def answered(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=b"{}")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answered)) as http:
        await RemoteSignOuts("http://d", http, Tokens(load(settings, {}))).exchange({})
    assert asked[0].headers["authorization"] == shown
    assert asked[0].headers["content-type"] == "application/json"
