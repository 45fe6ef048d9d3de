"""The log's way out: in order, whole, and never in the way of those who write to it."""

import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from logpipe.logs import FLUSH_S, JsonFormatter, QueuedHandler, may_block
from tests.helpers import fair_time, wait_until
from tests.servers import Valkey, free_port, spawned

EVENT = b'{"source":"a","message":"b"}'


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def said(handler: QueuedHandler, text: str) -> None:
    handler.handle(logging.makeLogRecord({"msg": text, "levelname": "INFO", "name": "x"}))


def test_only_pipes_and_terminals_may_block(tmp_path: Path, pipe: tuple[int, int]) -> None:
    assert not may_block(io.StringIO())
    with (tmp_path / "log").open("w") as file:
        assert not may_block(file)
    assert not may_block(file)  # closed
    with os.fdopen(os.dup(pipe[1]), "w") as out:
        assert may_block(out)


def test_records_are_written_in_order_and_flushed(pipe: tuple[int, int]) -> None:
    handler = QueuedHandler(pipe[1])
    for number in range(1000):
        said(handler, f"{number} é \udc80")
    handler.flush()
    lines = os.read(pipe[0], 1 << 20).decode().splitlines()
    assert lines == [f"{number} é \\udc80" for number in range(1000)]


def test_a_non_blocking_pipe_loses_nothing(
    pipe: tuple[int, int],
) -> None:
    os.set_blocking(pipe[1], False)
    handler = QueuedHandler(pipe[1])
    for number in range(1000):
        said(handler, f"{number:04} " + "x" * 1000)
    got = b""
    while got.count(b"\n") < 1000:
        got += os.read(pipe[0], 1 << 20)
    assert [line.split() for line in got.decode().splitlines()] == [
        [f"{number:04}", "x" * 1000] for number in range(1000)
    ]


def test_an_unread_log_blocks_nothing_and_counts_drops(
    pipe: tuple[int, int],
) -> None:
    handler = QueuedHandler(pipe[1], capacity=100)
    handler.setFormatter(JsonFormatter())
    for number in range(2000):
        said(handler, f"{number}" + "x" * 1000)
    started = fair_time()
    handler.flush()
    assert fair_time() - started < FLUSH_S + 5  # it gives up
    os.set_blocking(pipe[0], False)
    kept, dropped = read_all(handler, pipe[0], 2000)
    assert kept == sorted(set(kept))
    assert kept[:100] == list(range(100))
    assert dropped > 0


def read_all(handler: QueuedHandler, pipe: int, count: int) -> tuple[list[int], int]:
    """The numbers that came, and how many the log says were dropped: so many together."""
    kept: list[int] = []
    dropped = 0
    rest = b""
    deadline = time.monotonic() + 10
    while len(kept) + dropped < count:
        assert time.monotonic() < deadline
        try:
            *lines, rest = (rest + os.read(pipe, 1 << 20)).split(b"\n")
        except BlockingIOError:
            said(handler, "later")
            time.sleep(0.01)
            continue
        for message in (json.loads(line)["message"] for line in lines):
            if message.endswith("x"):
                kept.append(int(message.rstrip("x")))
            elif found := re.fullmatch(
                r"dropped (\d+) log records: stderr is not being read", message
            ):
                dropped += int(found[1])
    return kept, dropped


def test_a_closed_pipe_is_not_an_error(pipe: tuple[int, int]) -> None:
    read, write = os.pipe()
    os.close(read)
    handler = QueuedHandler(write)  # SIGPIPE is off in Python: EPIPE
    said(handler, "into the void")
    handler.flush()
    os.close(write)


async def test_a_collector_with_an_unread_log_serves_and_stops(
    tmp_path: Path, valkey: Valkey
) -> None:
    """At level debug, with a line a request: several times what a pipe holds."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # holds it open, and takes nothing
    port = str(free_port())
    (tmp_path / f"logpipe-{port}.log").symlink_to(fifo)
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "LOG_LEVEL": "debug"}
    async with spawned(tmp_path, PORT=port, LOG_FORMAT="json", **environ) as process:
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:

            async def answers() -> bool:
                try:
                    return (await http.get("/healthz")).status_code == 200
                except httpx.HTTPError:
                    return False

            await wait_until(answers, "it is ready", timeout=20)
            for _ in range(1000):
                assert (await http.post("/ingest", content=EVENT)).status_code == 202
        process.popen.terminate()
        assert await process.exit_status() == 0
    os.set_blocking(reader, False)
    assert len(os.read(reader, 1 << 20)) >= 60_000  # it was full
    os.close(reader)
