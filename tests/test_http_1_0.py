"""What HTTP/1.0 is answered: bodies without chunks, which end with the connection."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from logpipe.sse import Parser
from tests.helpers import wait_until
from tests.raw import Connection, connected
from tests.servers import Service, Valkey, serving

VERSIONS = pytest.mark.parametrize("version", ["1.0", "1.1"])
EVENTS = [{"source": "a", "message": f"event {number}"} for number in range(3)]


def get(path: str, version: str, *lines: str) -> bytes:
    head = [f"GET {path} HTTP/{version}", "Host: 127.0.0.1", *lines]
    return "\r\n".join([*head, "", ""]).encode()


async def head_of(connection: Connection) -> dict[str, str]:
    """The headers of an answer, which is a 200; their names are in lower case."""
    head = (await connection.reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    assert first.split()[1] == "200"
    return {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


class Body:
    """The body of an answer as it comes, its chunks taken off where it says that it has any."""

    def __init__(self, connection: Connection, headers: dict[str, str]) -> None:
        self.chunked = headers.get("transfer-encoding") == "chunked"
        self.text = ""
        self.over = False
        self._parts = connection.chunks() if self.chunked else None
        self._reader = connection.reader

    async def until(self, predicate: Callable[[str], object]) -> None:
        """Reads until what has come is enough."""
        async with asyncio.timeout(10):
            while not predicate(self.text):
                assert not self.over, self.text
                await self._part()

    async def rest(self) -> None:
        """Reads to the end."""
        async with asyncio.timeout(10):
            while not self.over:
                await self._part()

    async def _part(self) -> None:
        part = (
            await anext(self._parts, b"")
            if self._parts is not None
            else await self._reader.read(65_536)
        )
        self.over = not part
        self.text += part.decode()


def messages(events: list[Any]) -> list[str]:
    """The messages of the events among them."""
    return [each["message"] for each in events if "message" in each]


def sse_messages(text: str) -> list[str]:
    return messages([json.loads(each.data) for each in Parser().feed(text)])


def ndjson_messages(text: str) -> list[str]:
    return messages([json.loads(line) for line in text.splitlines()])


async def stopped(service: Service) -> None:
    """Tells the server's streams that it stops."""
    service.server.stop()
    await wait_until(lambda: not service.server.server_state.connections, "all streams are over")


@VERSIONS
@pytest.mark.parametrize(
    ("accept", "read"),
    [("text/event-stream", sse_messages), ("application/x-ndjson", ndjson_messages)],
)
async def test_a_subscription_is_read_to_its_end(
    valkey: Valkey, version: str, accept: str, read: Callable[[str], list[str]]
) -> None:
    """Old events come by the reader's own task, new ones from the loop that all live readers share,
    and a filter that takes nothing, heartbeats and the farewell in their turn."""
    async with (
        serving(redis_addr=valkey.url, heartbeat_s=0.1) as service,
        connected(service.url) as connection,
        connected(service.url) as other,
    ):
        await service.post(EVENTS)
        await connection.send(get("/subscribe?since=earliest", version, f"Accept: {accept}"))
        await other.send(get("/subscribe", "1.1" if version == "1.0" else "1.0"))
        headers = await head_of(connection)
        assert headers["content-type"].startswith(accept)
        body = Body(connection, headers)
        assert body.chunked == (version == "1.1")
        await body.until(lambda text: "event 2" in text)
        await service.post({"source": "a", "message": "live"})
        await body.until(lambda text: "live" in text)
        size = len(body.text)
        await body.until(lambda text: len(text) > size)  # a heartbeat
        leaving = asyncio.create_task(stopped(service))
        await body.rest()
        await leaving
        assert read(body.text) == ["event 0", "event 1", "event 2", "live"]
        assert "bye" in body.text


@VERSIONS
async def test_the_page_s_stream_is_read_to_its_end(valkey: Valkey, version: str) -> None:
    async with serving(redis_addr=valkey.url) as service, connected(service.url) as connection:
        await service.post(EVENTS)
        await connection.send(get("/ui/stream?since=earliest&once=1", version))
        headers = await head_of(connection)
        body = Body(connection, headers)
        assert body.chunked == (version == "1.1")
        await body.rest()
        names = [each.event for each in Parser().feed(body.text)]
        assert names == ["heartbeat", "hello", "message", "tally"]


@VERSIONS
async def test_a_download_is_what_the_stream_holds(valkey: Valkey, version: str) -> None:
    async with serving(redis_addr=valkey.url) as service, connected(service.url) as connection:
        events = [{"source": "a", "message": f"{n} {'x' * 2_000}"} for n in range(200)]
        await service.post(events)
        await connection.send(get("/ui/download", version))
        headers = await head_of(connection)
        body = Body(connection, headers)
        assert body.chunked == (version == "1.1")
        assert headers.get("connection") == ("close" if version == "1.0" else None)
        await body.rest()
        assert ndjson_messages(body.text) == [event["message"] for event in events]


@VERSIONS
@pytest.mark.parametrize(
    "path", ["/events", "/openapi.json", "/metrics", "/nowhere", "/", "/ui/download?format=csv"]
)
async def test_an_answer_of_known_length_is_the_same(
    valkey: Valkey, version: str, path: str
) -> None:
    async with serving(redis_addr=valkey.url) as service, connected(service.url) as connection:
        await connection.send(get(path, version))
        answer = await connection.answer()
        assert "transfer-encoding" not in answer.headers
        assert len(answer.body) == int(answer.headers["content-length"]) > 0
        assert answer.headers.get("connection") == ("close" if version == "1.0" else None)
        if version == "1.0":
            assert await connection.rest() == b""


@pytest.mark.parametrize("path", ["/subscribe", "/ui/stream", "/ui/download"])
async def test_head_ends_with_the_head(valkey: Valkey, path: str) -> None:
    async with serving(redis_addr=valkey.url) as service, connected(service.url) as connection:
        await connection.send(get(path, "1.0").replace(b"GET", b"HEAD"))
        assert "transfer-encoding" not in await head_of(connection)
        assert await connection.rest() == b""


async def test_a_subscriber_too_many_gets_a_bye_without_chunks(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, max_subscribers=1) as service,
        service.http.stream("GET", "/subscribe") as first,
        connected(service.url) as connection,
    ):
        await anext(first.aiter_text())
        await connection.send(get("/subscribe", "1.0"))
        await head_of(connection)
        assert (await connection.rest()).startswith(b"event: bye\nretry: ")


async def test_a_sender_gets_no_interim_response(
    valkey: Valkey,
) -> None:
    """It would take `100 Continue` for the answer."""
    body = json.dumps(EVENTS[0]).encode()
    head = f"POST /ingest HTTP/1.0\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    async with serving(redis_addr=valkey.url) as service, connected(service.url) as connection:
        await connection.send(head.encode())
        await connection.send(body)
        assert (await connection.answer()).status == 202
        assert await connection.rest() == b""
