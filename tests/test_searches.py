"""Searches of the history by real requests: bounded, shared, and ended with their client."""

import asyncio
import contextlib
import json
import re
from typing import Any

import httpx
import pytest

from logpipe.fanout.history import MAX_STEP_COUNT, SCAN_QUEUE, SCAN_SEATS, ScanSeats
from tests.helpers import retry_after, wait_until
from tests.raw import connected
from tests.servers import Service, Valkey, serving

ENTRIES = 60_000
RARE = "/zz[0-9]+qq/"
"""A filter that takes nothing and that no search can decide without decoding."""


def fill(valkey: Valkey, number: int) -> None:
    with valkey.client.pipeline(transaction=False) as pipe:
        for n in range(number):
            pipe.xadd("logs", {"event": b'{"source":"s","message":"number %d"}' % n})
        pipe.execute()


def reads(valkey: Valkey, *commands: str) -> int:
    """How often the stream was read by range; XREVRANGE is what searches alone do."""
    stats: dict[str, Any] = valkey.client.info("commandstats")
    names = [f"cmdstat_{name}" for name in commands or ("xrange", "xrevrange")]
    return sum(stats.get(name, {"calls": 0})["calls"] for name in names)


def limited(metrics: str, name: str) -> float:
    (value,) = re.findall(rf'logpipe_limited_total{{limit="{name}"}} (\S+)', metrics)
    return float(value)


@pytest.mark.parametrize(
    "path", ["/events", "/ui/rows", "/ui/rows?at=99-1", "/ui/volume", "/ui/download"]
)
async def test_a_search_ends_when_its_client_leaves(valkey: Valkey, path: str) -> None:
    fill(valkey, ENTRIES)
    async with serving(redis_addr=valkey.url) as service:
        before = reads(valkey)
        async with connected(service.url) as connection:
            target = f"{path}{'&' if '?' in path else '?'}q={RARE.replace('+', '%2B')}"
            await connection.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await wait_until(lambda: reads(valkey) > before, "it searches")
        await wait_until(lambda: not service.server.server_state.tasks, "it has ended")
        ended = reads(valkey)
        assert ended - before < ENTRIES // MAX_STEP_COUNT  # all of it would be more steps
        assert (await service.http.get("/events?limit=1")).json()["events"]
        assert reads(valkey) - ended < 10  # nothing goes on reading


async def is_ready(service: Service) -> bool:
    return (await service.http.get("/healthz")).status_code == 200


async def test_many_searches_wait_or_are_refused_and_others_are_served(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ScanSeats] = []

    class Kept(ScanSeats):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            made.append(self)

    monkeypatch.setattr("logpipe.fanout.hub.ScanSeats", Kept)
    fill(valkey, 1_000)
    limits = httpx.Limits(max_connections=None)
    async with (
        serving(redis_addr=valkey.url) as service,
        httpx.AsyncClient(base_url=service.url, limits=limits, timeout=60) as http,
    ):
        await wait_until(lambda: is_ready(service), "it is ready")
        (seats,) = made
        async with contextlib.AsyncExitStack() as held:
            for _ in range(SCAN_SEATS):
                await held.enter_async_context(seats.step())
            waiting = [
                asyncio.create_task(http.get("/events", params={"q": RARE}))
                for _ in range(SCAN_QUEUE)
            ]
            await wait_until(lambda: seats.waiting == SCAN_QUEUE, "all wait for a seat", 30)
            for _ in range(5):
                refused = await http.get("/events", params={"q": RARE})
                assert refused.status_code == 503
                assert refused.headers["retry-after"] in retry_after(2)
                assert "redis" not in refused.json()
                health = await service.http.get("/healthz")
                assert health.status_code == 200, health.text
                assert (await service.post({"source": "a", "message": "m"})).status_code == 202
        answers = await asyncio.gather(*waiting)
        assert {answer.status_code for answer in answers} == {200}
        metrics = (await service.http.get("/metrics")).text
        assert limited(metrics, "scans") == 5


async def test_a_page_says_how_far_it_searched_and_where_to_go_on(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.fanout.history.PAGE_SCAN", 100)
    fill(valkey, 450)
    ids = [id_.decode() for id_, _ in valkey.client.xrange("logs")]  # type: ignore[union-attr]
    async with serving(redis_addr=valkey.url) as service:
        pages = await all_pages(service, q='"number 7"', order="asc")
        assert [page["searched_to"] for page in pages] == [
            *(ids[n] for n in (99, 199, 299, 399, 449)),
        ]
        assert [page["next"] for page in pages[:-1]] == [ids[n] for n in (100, 200, 300, 400)]
        found = [event["message"] for page in pages for event in page["events"]]
        assert found == [f"number {n}" for n in (7, *range(70, 80))]


async def all_pages(service: Service, **query: str) -> list[dict[str, Any]]:
    pages: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await service.http.get("/events", params={**query, **cursor})
        pages.append(answer.json())
        if pages[-1]["next"] is None:
            return pages
        cursor = {"cursor": pages[-1]["next"]}


async def test_a_page_that_redis_cuts_short_ends_there_with_next(own_valkey: Valkey) -> None:
    text = "x" * 50_000
    async with serving(redis_addr=own_valkey.url) as service:
        for first in range(0, 600, 100):
            events = [{"source": "a", "message": f"{first + n} {text}"} for n in range(100)]
            assert (await service.post(events)).status_code == 202
        async with connected(service.url, receive_bytes=64 * 1024) as connection:
            await connection.send(b"GET /events?limit=5000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await connection.reader.readuntil(b"\r\n\r\n")
            assert b"chunked" in head
            # The client and its kernel hold a few hundred KB: most of the page is not made.
            own_valkey.kill()
            async with asyncio.timeout(30):
                page = json.loads(b"".join([chunk async for chunk in connection.chunks()]))
    numbers = [int(event["message"].split()[0]) for event in page["events"]]
    assert numbers == [599 - n for n in range(len(numbers))]
    assert 0 < len(numbers) < 160  # a page of 8 MiB has as many
    assert page["searched_to"] == page["events"][-1]["id"]
    assert page["next"] < page["searched_to"]
