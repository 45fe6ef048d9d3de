"""Real clients for Server-Sent Events, as they are, through restarts of the distributor."""

import asyncio
import contextlib
import json
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import aiohttp
import httpx
import httpx_sse
import pytest
from aiohttp_sse_client.client import EventSource

from tests.helpers import wait_until
from tests.senders.crossing import FETCHED
from tests.servers import UNMEASURED, Service, Valkey, free_port, serving, spawned

pytestmark = [pytest.mark.senders, pytest.mark.timeout(120)]

PROGRAMS = Path(__file__).parent / "programs"
NODE = ("eventsource", "event-source-polyfill", "eventsource-client", "fetch-event-source")
HEARTBEAT_S = 0.2
PAUSE_S = 0.2
"""How long a program that connects again by itself waits."""

has_node = (FETCHED / "node_modules/eventsource-client").exists() and shutil.which("node")
NOT_TESTED = "NOT TESTED WITH NODE'S CLIENTS OF SERVER-SENT EVENTS: `make senders` fetches them"


class Received:
    """What one client has dispatched, in its order: a name and data each."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def add(self, event: str, data: str) -> None:
        """Takes note of one."""
        self.all.append((event, data))

    @property
    def messages(self) -> list[str]:
        """The messages of the log events."""
        return [json.loads(data)["message"] for event, data in self.all if event == "message"]

    def count(self, event: str) -> int:
        """How many have that name."""
        return [each for each, _ in self.all].count(event)


async def by_httpx_sse(url: str, received: Received) -> None:
    """Reads with httpx-sse, which leaves it to its user to connect again."""
    headers: dict[str, str] = {}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                async with httpx_sse.aconnect_sse(http, "GET", url, headers=headers) as source:
                    async for event in source.aiter_sse():
                        received.add(event.event, event.data)
                        headers["Last-Event-ID"] = event.id
            await asyncio.sleep(PAUSE_S)


async def by_aiohttp_sse_client(url: str, received: Received) -> None:
    """Reads with aiohttp-sse-client, which gives up when it is refused a connection."""
    pause = timedelta(seconds=PAUSE_S)
    headers: dict[str, str] = {}
    while True:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            async with EventSource(url, reconnection_time=pause, headers=dict(headers)) as source:
                async for event in source:
                    received.add(event.type or "message", event.data)
                    headers["Last-Event-ID"] = event.last_event_id
        await asyncio.sleep(PAUSE_S)


async def by_node(program: str, url: str, received: Received) -> None:
    """Reads with a program for Node, beside its packages."""
    for each in (program, "print"):
        shutil.copyfile(PROGRAMS / f"{each}.mjs", FETCHED / f"{each}.mjs")
    process = await asyncio.create_subprocess_exec(
        "node", str(FETCHED / f"{program}.mjs"), url, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            received.add(**json.loads(line))
        raise AssertionError(f"{program} has ended")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


Client = Callable[[str, Received], Awaitable[None]]

CLIENTS: dict[str, Client] = {
    "httpx-sse": by_httpx_sse,
    "aiohttp-sse-client": by_aiohttp_sse_client,
    **({name: partial(by_node, name) for name in NODE} if has_node else {}),
}


@contextlib.asynccontextmanager
async def reading(url: str) -> AsyncIterator[dict[str, Received]]:
    """All of the clients at one address, and what each has dispatched."""
    received = {name: Received() for name in CLIENTS}
    tasks = [asyncio.ensure_future(read(url, received[name])) for name, read in CLIENTS.items()]
    try:
        yield received
        assert not [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Traffic:
    """Events sent one after the other, each beside one that the clients' filter rejects."""

    def __init__(self, collector: Service) -> None:
        self.sent: list[str] = []
        self._collector = collector

    async def send(self, count: int) -> None:
        """Sends some more, a hundred a second at most."""
        for number in range(len(self.sent), len(self.sent) + count):
            events = [{"source": "a", "message": str(number)}, {"source": "b", "message": "noise"}]
            assert (await self._collector.post(events)).status_code == 202
            self.sent.append(str(number))
            await asyncio.sleep(0.01)


async def heartbeats(url: str, wanted: int) -> None:
    """Returns when a connection of its own has had that number of heartbeats."""
    beats = 0
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        http.stream("GET", url) as response,
        asyncio.timeout(10),
    ):
        async for line in response.aiter_lines():
            beats += line == ":"
            if beats == wanted:
                return


async def test_every_event_comes_once_and_nothing_is_empty(
    own_valkey: Valkey, tmp_path: Path
) -> None:
    port = free_port()
    environ = {
        "PORT": str(port), "ROLE": "distributor", "REDIS_ADDR": own_valkey.url,
        "HEARTBEAT_S": str(HEARTBEAT_S),
    }  # fmt: skip
    # The address keeps where a client began; a polyfill adds `lastEventId` to it.
    url = f"http://127.0.0.1:{port}/subscribe?q=source:a&last_event_id=0-0"
    async with (
        serving(role="collector", redis_addr=own_valkey.url) as collector,
        contextlib.AsyncExitStack() as processes,
    ):
        process = await processes.enter_async_context(spawned(tmp_path, **environ, **UNMEASURED))
        await process.ready()
        traffic = Traffic(collector)
        async with reading(url) as received:

            async def all_have_all() -> None:
                def done() -> bool:
                    return all(
                        len(each.messages) >= len(traffic.sent) for each in received.values()
                    )

                with contextlib.suppress(AssertionError):
                    await wait_until(done, "all have all", timeout=30)
                for each in received.values():
                    assert each.messages == traffic.sent

            await wait_until(
                lambda: all(e.count("hello") for e in received.values()), "connected", 30
            )
            await traffic.send(20)
            for fault in (signal.SIGTERM, signal.SIGKILL):
                await all_have_all()
                await heartbeats(url, 3)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(traffic.send(150))
                    await asyncio.sleep(0.1)  # it is in full flow
                    process.popen.send_signal(fault)
                    await process.exit_status()
                    process = await processes.enter_async_context(
                        spawned(tmp_path, **environ, **UNMEASURED)
                    )
                    await process.ready()
            await all_have_all()
            await heartbeats(url, 3)
        for name, each in received.items():
            assert all(data for _, data in each.all), name
            names = [each.count(event) for event in ("hello", "bye", "progress", "gap")]
            assert names[0] == 3 and names[1] == 1 and names[2] > 0 and names[3] == 0, (name, names)
    if not has_node:
        pytest.skip(NOT_TESTED)
