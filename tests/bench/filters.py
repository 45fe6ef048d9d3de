"""How late events arrive at many live readers, each with a filter of its own.

python -m tests.bench.filters [--readers 1000] [--rate 1000] [--seconds 20]

Of every ten filters, four look for a word, three for a value, two for level and source, and one is
a regular expression. Each event is taken by one filter, each filter takes one event of `--readers`.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redis

from tests.bench.machine import allow_many_files, usage
from tests.servers import Valkey, spawned
from tests.streams import NAME

TICK_S = 0.01
"""Between two appends of the writer."""
SETTLE_S = 20.0
"""What the last events may take to arrive."""
CONNECTING_AT_ONCE = 50

_ARRIVED = re.compile(rb'"due": ?(\d+)')


def query(number: int) -> str:
    """The filter of a reader."""
    kind = number % 10
    if kind < 4:
        return f"word{number:05}w"
    if kind < 7:
        return f"field{number % 30}:value{number}"
    if kind < 9:
        return f"level:error source:host-{number}"
    return f"/code{number:05} (failed|refused) \\d+/"


def event(number: int) -> dict[str, object]:
    """An event that the filter of this number takes, and no other."""
    said = "GET /api/v1/items took 37 ms, status 200, 12 of 80 connections in use, request 6e1f"
    made = {"source": "web", "level": "INFO", "message": said, "metadata": {"region": "eu"}}
    kind = number % 10
    if kind < 4:
        return {**made, "message": f"{said} Word{number:05}W"}
    if kind < 7:
        return {**made, "metadata": {"region": "eu", f"field{number % 30}": f"value{number}"}}
    if kind < 9:
        return {**made, "level": "ERROR", "source": f"host-{number}"}
    return {**made, "message": f"{said} Code{number:05} refused 7"}


def write(path: str, readers: int, rate: float, seconds: float) -> None:
    """Appends events at this rate, each with the time in microseconds at which it was due."""
    client = redis.Redis(unix_socket_path=path, protocol=2)
    began, sent, total = time.time(), 0, int(rate * seconds)
    while sent < total:
        time.sleep(TICK_S)
        due = min(total, int((time.time() - began) * rate))
        with client.pipeline(transaction=False) as pipe:
            for number in range(sent, due):
                made = event(number * 7919 % readers)  # a prime number: not one after the other
                metadata = {**dict(made["metadata"]), "due": int((began + number / rate) * 1e6)}  # type: ignore[call-overload]
                pipe.xadd(NAME, {"event": json.dumps({**made, "metadata": metadata})})
            pipe.execute()
        sent = due


@contextlib.contextmanager
def writing(path: str, readers: int, rate: float, seconds: float) -> Iterator[None]:
    """The writer in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(
        target=write, args=(path, readers, rate, seconds), daemon=True
    )
    process.start()
    try:
        yield
        process.join(SETTLE_S)
    finally:
        process.kill()
        process.join()


class Readers:
    """All readers, and how late their events were, in seconds."""

    def __init__(self, port: int) -> None:
        self.late_s: list[float] = []
        self._port = port
        self._connecting = asyncio.Semaphore(CONNECTING_AT_ONCE)
        self._connected: list[asyncio.Event] = []

    async def read(self, number: int) -> None:
        """One reader, until it is cancelled."""
        connected = asyncio.Event()
        self._connected.append(connected)
        async with self._connecting:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            path = f"/subscribe?q={quote(query(number))}"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await reader.readuntil(b"hello")
        connected.set()
        rest = b""
        with contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                now = time.time()
                whole, _, rest = (rest + data).rpartition(b"\n")
                self.late_s += [now - int(due) / 1e6 for due in _ARRIVED.findall(whole)]

    async def connected(self) -> None:
        """Returns when all of them are."""
        for each in self._connected:
            await each.wait()


async def run(readers: int, rate: float, seconds: float) -> None:
    """Measures, and prints what came of it."""
    allow_many_files()
    expected = int(rate * seconds)
    with Valkey.started() as valkey, tempfile.TemporaryDirectory(prefix="logpipe-bench-") as folder:
        environ = {"ROLE": "distributor", "REDIS_ADDR": valkey.url}
        async with spawned(Path(folder), **environ) as process:
            await process.ready()
            crowd = Readers(process.port)
            tasks = [asyncio.create_task(crowd.read(number)) for number in range(readers)]
            await asyncio.sleep(0)
            await crowd.connected()
            before = usage((process.popen.pid,))
            with writing(str(valkey.socket), readers, rate, seconds):
                deadline = time.monotonic() + seconds + SETTLE_S
                while len(crowd.late_s) < expected and time.monotonic() < deadline:
                    await asyncio.sleep(0.1)
            after = usage((process.popen.pid,))
            for task in tasks:
                task.cancel()
    late_ms = sorted(1000 * each for each in crowd.late_s)
    hundredths = statistics.quantiles(late_ms, n=100)
    print(
        f"{readers} readers, {rate:g} events/s: {len(late_ms)} of {expected} events arrived,"
        f" p50 {hundredths[49]:.0f} ms, p99 {hundredths[98]:.0f} ms, worst {late_ms[-1]:.0f} ms,"
        f" CPU {after.cpu_s - before.cpu_s:.1f} s in {seconds:g} s,"
        f" RSS {after.rss_bytes / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.filters")
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    asyncio.run(run(asked.readers, asked.rate, asked.seconds))
