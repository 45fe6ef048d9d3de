"""The counters of limits, their documents, and what a reader meets at each."""

import asyncio
import contextlib
import gc
import importlib
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from logpipe import limits, messages
from logpipe.limits import (
    BURST_S,
    RETURNS_A_SECOND,
    Rates,
    Returns,
    Seats,
    charged,
    client_of,
    largest_batch,
    sender_of,
)
from logpipe.metrics import Metrics
from logpipe.problems import Problem
from logpipe.settings import Settings, fields
from logpipe.turns import TURN_S, Turns
from tests.attack.attacks import ATTACKS
from tests.helpers import wait_until
from tests.raw import connected, request
from tests.servers import Reader, Service, Valkey, serving, subscribed

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs/limits.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| `([\w.]+)` \| ([\d.]+|auto) \| (.+) \|(.*)\| ([^|]+) \|$", DOCUMENT, re.MULTILINE
)
"""Name, default, what happens, the counter's label, and what attacks it."""


async def limited(service: Service, limit: str) -> float:
    """How often a limit was hit, as /metrics says."""
    text = (await service.http.get("/metrics")).text
    (count,) = re.findall(rf'^logpipe_limited_total{{limit="{limit}"}} (.+)$', text, re.MULTILINE)
    return float(count)


# -- the document --------------------------------------------------------------------------------


def test_the_defaults_of_the_document_are_those_of_the_code() -> None:
    defaults = {field.variable: field.default for field in fields()}
    assert len(ROWS) == len(re.findall(r"^\| `", DOCUMENT, re.MULTILINE)) > 24
    for name, default, *_ in ROWS:
        module, dot, constant = name.partition(".")
        if not dot:
            assert str(defaults[name]) == default, name
            continue
        files = (ROOT / "logpipe").glob(f"**/{module}.py")
        packages = (path.parent for path in (ROOT / "logpipe").glob(f"**/{module}/__init__.py"))
        paths = [*files, *packages]
        dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
        values = [getattr(importlib.import_module(each), constant, None) for each in dotted]
        assert float(default) in values, name


def test_every_setting_that_is_a_limit_is_in_the_document() -> None:
    named = {name for name, *_ in ROWS}
    prefixes = ("MAX_", "RATE_", "TRIM_")
    assert {f.variable for f in fields() if f.variable.startswith(prefixes)} <= named


def test_the_document_names_every_limit_that_is_counted() -> None:
    labels = {name for *_, label, _ in ROWS for name in re.findall(r"`(\w+)`", label)}
    assert labels == set(limits.NAMES)


def test_every_limit_of_the_document_is_attacked() -> None:
    for name, *_, attacked in ROWS:
        for by in attacked.split(", "):
            attack = by.strip("`")
            assert attack in ATTACKS if by != attack else (ROOT / by).is_file(), name


def test_the_longest_steps_add_up_to_less_than_their_bound() -> None:
    (table,) = re.findall(r"^\| kind \| seats .+?\n\n", DOCUMENT, re.MULTILINE | re.DOTALL)
    products = [int(each) for each in re.findall(r" (\d+) ms \|$", table, re.MULTILINE)]
    *parts, total = products
    assert len(parts) == len(table.strip().splitlines()) - 3  # its head of two lines, and the total
    assert sum(parts) == total <= 200


def test_the_memory_of_the_document_adds_up() -> None:
    (table,) = re.findall(r"^\| memory \| of what .+?\n\n", DOCUMENT, re.MULTILINE | re.DOTALL)
    rows = re.findall(r" (\d+) \| (\d+) \|$", table, re.MULTILINE)
    *parts, total = [[int(each) for each in row] for row in rows]
    assert len(rows) == len(table.strip().splitlines()) - 2
    assert [sum(column) for column in zip(*parts, strict=True)] == total


def test_what_limits_count_is_there_before_it_counts() -> None:
    text = Metrics().exposition().decode()
    for name in limits.NAMES:
        assert f'logpipe_limited_total{{limit="{name}"}} 0.0' in text


# -- who is one client ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_a_client_is_an_address_or_the_network_that_one_host_has(address: str, client: str) -> None:
    assert client_of(address) == client


@pytest.mark.parametrize("what", ["reading", "parsing"])
async def test_a_client_waits_for_one_turn_of_each_other_client(what: str) -> None:
    looks = itertools.count()
    seats, turns = Seats(1000), list[str]()
    # Each piece of work takes a turn.
    seats.turns = seats.parsing = Turns(clock=lambda: next(looks) * 2 * TURN_S)

    async def run(address: str, work: Iterator[None]) -> None:
        if what == "reading":
            await seats.in_turn(address, work)
        else:
            await seats.parsing_for({"client": (address, 1)})(work)

    def work(client: str, pieces: int) -> Iterator[None]:
        for _ in range(pieces):
            turns.append(client)
            yield

    crowd = [
        asyncio.create_task(run(address, work(address, 1000)))
        for address in ["10.0.0.1"] * 100 + ["2001:db8::1", "2001:db8::2"] * 50
    ]
    await wait_until(lambda: len(turns) > 10, "the crowd works")
    before = len(turns)
    await asyncio.wait_for(run("10.0.0.2", work("10.0.0.2", 20)), 10)
    # Two clients besides this one: of each at most one turn before each of its own.
    assert len(turns) - before <= 3 * 21 + 2
    for task in crowd:
        task.cancel()
    await asyncio.wait(crowd)
    del crowd, task
    gc.collect()
    assert not seats._subscribers._locks
    assert not seats._filters._locks


async def test_subscribers_of_one_client_have_turns_one_after_the_other() -> None:
    looks = itertools.count()
    seats, turns = Seats(10), list[str]()
    seats.turns = Turns(clock=lambda: next(looks) * 2 * TURN_S)

    def work(name: str, pieces: int) -> Iterator[None]:
        for _ in range(pieces):
            turns.append(name)
            yield

    await asyncio.gather(
        seats.in_turn("10.0.0.1", work("a", 5)), seats.in_turn("10.0.0.1", work("b", 3))
    )
    assert "".join(turns) == "abababaa"


# -- rates ---------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sent(rates: Rates, sender: str, most: int = 10_000) -> int:
    """How many single events a sender gets in now."""
    for count in range(most):
        if rates.wait_s(sender):
            return count
        rates.spend(sender, 1)
    return most


@pytest.mark.parametrize("per_s", [1, 3, 10, 777])
def test_a_sender_has_five_seconds_of_its_rate_at_once_and_its_rate_after_that(per_s: int) -> None:
    clock = Clock()
    rates = Rates(per_s, clock)
    assert sent(rates, "a") == per_s * BURST_S
    with pytest.raises(Problem, match="RATE_PER_TOKEN") as caught:
        rates.begin("a")
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    assert caught.value.hits == {"rate": 1}
    clock.now += 2
    assert sent(rates, "a") == per_s * 2
    clock.now += 1000
    assert sent(rates, "a") == per_s * BURST_S


def test_one_sender_takes_nothing_from_another() -> None:
    rates = Rates(10, Clock())
    assert sent(rates, "a") == sent(rates, "b") == 50


def test_a_batch_larger_than_the_burst_is_taken_whole_and_then_paid_for() -> None:
    clock = Clock()
    rates = Rates(10, clock)
    rates.begin("a")
    rates.charge("a", 1_000)
    assert rates.wait_s("a") == pytest.approx(95.1)
    clock.now += 95.0
    with pytest.raises(Problem):
        rates.begin("a")
    clock.now += 0.11
    rates.begin("a")


def test_a_request_is_charged_when_it_begins() -> None:
    rates = Rates(10, Clock())
    for _ in range(50):
        rates.begin("a")
    with pytest.raises(Problem):
        rates.begin("a")
    rates.charge("a", 1)  # its one event was charged when it began
    rates.charge("a", 100)
    assert rates.wait_s("a") == pytest.approx(10)


def test_of_batches_begun_together_one_may_go_into_debt() -> None:
    rates = Rates(10, Clock())
    for _ in range(3):
        rates.begin("a")
    rates.charge("a", 1_000)
    with pytest.raises(Problem, match="RATE_PER_TOKEN") as caught:
        rates.charge("a", 2)
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "96"})
    rates.charge("a", 1)


@pytest.mark.parametrize(
    ("given", "events", "why"),
    [
        ({}, 12_500, "a quarter of TRIM_MAXLEN"),
        ({"max_batch_events": 7}, 7, "MAX_BATCH_EVENTS"),
        ({"trim_maxlen": 10**6}, 200_000, "MAX_BATCH_EVENTS"),
        ({"trim_maxlen": 4_000}, 1_000, "a quarter of TRIM_MAXLEN"),
        ({"trim_maxlen": 1}, 100, "a quarter of TRIM_MAXLEN"),
        ({"rate_per_token": 1}, 1_000, "5 seconds of RATE_PER_TOKEN"),
        ({"rate_per_token": 1_000}, 5_000, "5 seconds of RATE_PER_TOKEN"),
        ({"rate_per_token": 10_000}, 12_500, "a quarter of TRIM_MAXLEN"),
    ],
)
def test_the_largest_batch_is_the_least_of_its_limits(
    given: dict[str, Any], events: int, why: str
) -> None:
    assert largest_batch(Settings(**given)) == (events, why)


def test_what_is_remembered_of_senders_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SENDERS", 3)
    rates = Rates(1, Clock())
    for sender in "abca":
        rates.spend(sender, 100)
    rates.spend("d", 1)
    assert [bool(rates.wait_s(sender)) for sender in "abc"] == [True, False, True]


# -- seats ---------------------------------------------------------------------------------------


def test_10_000_subscribers_come_back_at_the_named_rate() -> None:
    now = 100.0
    returns = Returns(now=lambda: now)
    waits = sorted(returns.wait_s() for _ in range(10_000))
    assert waits[0] == 0
    for second in range(10):
        assert sum(second <= wait < second + 1 for wait in waits) <= RETURNS_A_SECOND + 1
    assert waits[-1] == pytest.approx(10, abs=0.01)


def test_turns_to_come_back_pass_with_the_time() -> None:
    now = 100.0
    returns = Returns(10, lambda: now)
    assert [round(returns.wait_s(), 3) for _ in range(3)] == [0, 0.1, 0.2]
    now += 0.1
    assert returns.wait_s() == pytest.approx(0.2)
    now += 60
    assert returns.wait_s() == 0


def test_seats_are_given_up_to_their_number_and_again_when_one_is_left() -> None:
    seats = Seats(2)
    assert [seats.take("a"), seats.take("a"), seats.take("b")] == ["", "", "subscribers"]
    seats.leave("a")
    assert seats.take("b") == ""
    assert seats.taken == 2


def test_a_client_has_its_number_of_seats_and_no_other_less() -> None:
    seats = Seats(100, 2)
    for _ in range(2):
        assert seats.take("2001:db8::1") == ""
    assert seats.take("2001:db8::2") == "subscribers_per_client"
    assert seats.take("192.0.2.1") == ""
    seats.leave("2001:db8::1")
    assert seats.take("2001:db8::2") == ""
    for _ in range(2):
        seats.leave("2001:db8::9")
    seats.leave("192.0.2.1")
    assert (seats.taken, dict(seats._of_client)) == (0, {})


# -- subscribers ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def reading(service: Service, count: int, **query: Any) -> AsyncIterator[list[Reader]]:
    """So many subscribers, each of which was greeted."""
    async with contextlib.AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(subscribed(service.url, **query)) for _ in range(count)
        ]
        for reader in readers:
            await reader.named("hello")
        yield readers


async def turned_away(service: Service, path: str = "/subscribe", **headers: str) -> httpx.Response:
    """The answer to one for whom there is no room: it ends by itself."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with asyncio.timeout(10):
        answer = await service.http.get(path, headers=names)
    assert answer.status_code == 200
    return answer


async def test_one_subscriber_too_many_is_told_why_and_to_come_back_and_the_others_go_on(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url, max_subscribers=2) as service:
        async with reading(service, 2) as readers:
            answer = await turned_away(service)
            assert answer.headers["content-type"].startswith("text/event-stream")
            told = re.fullmatch(r"event: bye\nretry: (\d+)\ndata: (.+)\n\n", answer.text)
            assert told
            low, high = messages.FULL_RETRY_MS
            assert low <= int(told[1]) <= high
            assert json.loads(told[2]) == {
                "reason": "2 subscribers are connected here already (MAX_SUBSCRIBERS)",
                "retry_ms": int(told[1]),
            }
            await service.post({"source": "a", "message": "on"})
            for reader in readers:
                assert (await reader.until(1))[0]["message"] == "on"
            assert await limited(service, "subscribers") == 1
        await wait_until(lambda: room(service), "one has left")
        async with reading(service, 1):
            pass


async def room(service: Service) -> bool:
    async with subscribed(service.url) as reader:
        async with asyncio.timeout(10):
            try:
                return bool(await reader.named("hello"))
            except StopAsyncIteration:
                return False


async def test_those_who_are_turned_away_are_not_asked_to_come_back_at_the_same_time(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url, max_subscribers=1) as service, reading(service, 1):
        answers = [(await turned_away(service)).text for _ in range(10)]
        assert len({re.findall(r"retry: (\d+)", each)[0] for each in answers}) > 1


async def test_lines_and_the_page_are_told_in_their_own_words(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, max_subscribers=1) as service, reading(service, 1):
        line = await turned_away(service, Accept="application/x-ndjson")
        bye = json.loads(line.text)
        assert bye["event"] == "bye"
        assert "MAX_SUBSCRIBERS" in bye["reason"]
        assert bye["retry_ms"] >= messages.FULL_RETRY_MS[0]
        page = await turned_away(service, "/ui/stream")
        assert re.match(r"event: bye\nretry: \d+\ndata: ", page.text)
        assert "MAX_SUBSCRIBERS" in page.text


@pytest.mark.parametrize(("status", "wait_s"), [(413, 0.0), (503, 0.0), (422, 99.0)])
def test_events_that_could_not_be_stored_are_not_charged(status: int, wait_s: float) -> None:
    rates = Rates(10, lambda: 5.0)
    rates.begin("a")
    with pytest.raises(Problem), charged(rates, "a", 1_000, 1_000):
        raise Problem(status, "no")
    assert round(rates.wait_s("a")) == (round(wait_s - 3.9) if wait_s else 0)


@pytest.mark.parametrize("delivery", ["broadcast", "shared"])
async def test_readers_of_every_kind_share_the_seats(valkey: Valkey, delivery: str) -> None:
    async with (
        serving(redis_addr=valkey.url, max_subscribers=2) as service,
        reading(service, 1, delivery=delivery),
        service.http.stream("GET", "/ui/stream") as page,
    ):
        texts = page.aiter_text()  # kept: its end would close the connection
        assert await anext(texts)
        answer = await turned_away(service, f"/subscribe?delivery={delivery}")
        assert "MAX_SUBSCRIBERS" in answer.text


async def test_a_client_has_its_own_number_where_that_is_asked_for(valkey: Valkey) -> None:
    given = {"redis_addr": valkey.url, "max_subscribers": 5, "max_subscribers_per_client": 2}
    async with serving(**given) as service, reading(service, 2):
        answer = await turned_away(service)
        assert "2 subscribers of this address" in answer.text
        assert await limited(service, "subscribers_per_client") == 1
        assert await limited(service, "subscribers") == 0


async def test_who_asks_for_the_head_alone_takes_no_seat(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, max_subscribers=1) as service:
        for _ in range(3):
            assert (await service.http.head("/subscribe")).status_code == 200
        async with reading(service, 1):
            assert (await service.http.head("/subscribe")).status_code == 200


async def test_a_connection_that_is_cut_gives_its_seat_back(valkey: Valkey) -> None:
    subscribe = request(start="GET /subscribe HTTP/1.1")
    async with serving(redis_addr=valkey.url, max_subscribers=1) as service:
        for _ in range(3):
            async with connected(service.url) as connection:
                await connection.send(subscribe)
                await connection.reader.readuntil(b"event: hello")
                connection.writer.transport.abort()
            await wait_until(lambda: room(service), "the seat is free")
            await wait_until(lambda: room(service), "and free again")


async def test_no_number_of_readers_keeps_a_writer_out(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, max_subscribers=3) as service, reading(service, 3):
        for _ in range(20):
            assert (await service.post({"source": "a", "message": "in"})).status_code == 202
            assert "MAX_SUBSCRIBERS" in (await turned_away(service)).text


async def test_one_group_too_many_is_counted_and_told_in_each_format(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.groups.MAX_GROUPS", 1)
    async with (
        serving(redis_addr=valkey.url) as service,
        reading(service, 1, delivery="shared", group="one"),
    ):
        path = "/subscribe?delivery=shared&group=two"
        assert "1 groups are read here already" in (await turned_away(service, path)).text
        line = await turned_away(service, path, Accept="application/x-ndjson")
        assert json.loads(line.text)["event"] == "bye"
        assert await limited(service, "groups") == 2


def test_senders_without_a_token_are_told_apart_by_their_address() -> None:
    addresses = ("10.0.0.1", "10.0.0.2")
    senders = [sender_of({"client": (address, 1)}, None) for address in addresses]
    assert senders == list(addresses)
    assert sender_of({"client": ("10.0.0.1", 2)}, None) == senders[0]
    assert sender_of({"client": ("10.0.0.1", 1)}, "10.0.0.1") not in senders
    assert sender_of({"client": None}, None) == ""
