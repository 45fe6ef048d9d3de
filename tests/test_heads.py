"""What a connection keeps of the head of a request, which may have 64 KB: nothing for long."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.raw import connected, request
from tests.servers import Process, Valkey, spawned
from tests.soak.measures import resident_bytes

LINES = [f"X-{n}: {'y' * 40}" for n in range(900)]
"""60 KB, and 200 KB of memory."""
CLIENTS = 100
KEPT_BYTES = 50_000
"""A client may take so much: 8 to 21 KB were measured, and 70 to 210 KB with the head."""

READERS = [
    "/subscribe",
    "/subscribe?delivery=shared&group=workers",
    "/ui/stream",
]
HEADS: list[tuple[str, list[str]]] = [
    ("", LINES),
    ("_=" + "x" * 60_000, []),
    ("", ["Authorization: Bearer " + "x" * 60_000]),
    ("", ["Cookie: logpipe=" + "x" * 60_000]),
]
"""A query and header lines."""


async def growth(process: Process, start: str, lines: list[str]) -> float:
    """Bytes that the process takes for each client that has sent a request and stays."""
    asked = request(b"", *lines, start=start)
    async with AsyncExitStack() as stack:

        async def ask(count: int) -> None:
            for _ in range(count):
                connection = await stack.enter_async_context(connected(process.url))
                await connection.send(asked)
                await connection.reader.readuntil(b"\r\n\r\n")

        await ask(20)  # what is used for the first time takes memory as well
        before = resident_bytes(process.popen.pid)
        await ask(CLIENTS)
        return (resident_bytes(process.popen.pid) - before) / CLIENTS


@pytest.mark.parametrize("path", READERS)
async def test_a_stream_keeps_nothing_of_the_head_of_its_request(
    valkey: Valkey, tmp_path: Path, path: str
) -> None:
    async with spawned(tmp_path, REDIS_ADDR=valkey.url) as process:
        await process.ready()
        for query, lines in HEADS:
            mark = "&" if "?" in path else "?"
            start = f"GET {path}{mark}{query} HTTP/1.1"
            assert await growth(process, start, lines) < KEPT_BYTES, (query[:20], lines[:1])


async def test_an_idle_connection_keeps_nothing_of_its_last_request(
    valkey: Valkey, tmp_path: Path
) -> None:
    async with spawned(tmp_path, REDIS_ADDR=valkey.url) as process:
        await process.ready()
        for target, lines in (
            ("/livez", LINES),
            ("/events?limit=1", LINES),
            ("/livez?" + "q" * 60_000, []),
            ("/" + "p" * 60_000, []),
        ):
            start = f"GET {target} HTTP/1.1"
            assert await growth(process, start, lines) < KEPT_BYTES, target[:20]
