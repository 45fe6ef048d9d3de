"""Several processes on one port, as an operator meets them: started, killed, stopped."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from logpipe.serving.workers import METRICS_DIR, _Workers
from logpipe.settings import Settings
from tests.helpers import wait_until
from tests.raw import connected, request
from tests.servers import Process, Valkey, free_port, spawned

SUBSCRIBE = request(start="GET /subscribe HTTP/1.1")
EVENT = b'{"source":"a","message":"b"}'


def workers_of(process: Process) -> list[int]:
    """The pids of its workers."""
    pid = process.popen.pid
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"\0worker\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.asynccontextmanager
async def two(tmp_path: Path, **environ: str) -> AsyncIterator[Process]:
    """A logpipe of two workers, both ready."""
    async with spawned(tmp_path, WORKERS="2", **environ) as process:
        await process.ready()
        await wait_until(lambda: process.log.read_text().count("Redis is ready") == 2, "both are")
        yield process
        if process.popen.poll() is None:
            process.popen.terminate()
            await process.exit_status()


async def metric(url: str, name: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        lines = (await http.get(f"{url}/metrics")).text.splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name} "))
    return float(line.split()[1])


async def test_two_workers_serve_one_port_and_are_measured_as_one(
    tmp_path: Path, valkey: Valkey
) -> None:
    async with two(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector,distributor") as process:
        assert len(workers_of(process)) == 2
        # A connection goes to one of the two, and twenty do not all go to the same.
        async with contextlib.AsyncExitStack() as stack:
            readers = []
            for _ in range(20):
                reader = await stack.enter_async_context(connected(process.url))
                await reader.send(SUBSCRIBE)
                await reader.reader.readuntil(b"event: hello")
                readers.append(reader)
            for _ in range(20):
                async with connected(process.url) as sender:
                    await sender.send(request(EVENT))
                    assert (await sender.answer()).status == 202
            for reader in readers:
                for _ in range(20):
                    await asyncio.wait_for(reader.reader.readuntil(b'"source":"a"'), 5)
            accepted = 'logpipe_ingest_events_total{outcome="accepted"}'
            assert await metric(process.url, accepted) == 20
            assert await metric(process.url, 'logpipe_subscribers{delivery="broadcast"}') == 20


async def test_all_roles_with_several_workers_share_the_embedded_engine(tmp_path: Path) -> None:
    async with two(tmp_path, DATA_DIR=str(tmp_path / "data")) as process:
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            for _ in range(10):
                assert (await http.post("/ingest", content=EVENT)).status_code == 202
            assert len((await http.get("/events")).json()["events"]) == 10
            assert (await http.get("/")).status_code == 200
        process.popen.terminate()
        assert await process.exit_status() == 0


async def test_a_worker_that_is_killed_gets_a_successor(tmp_path: Path, valkey: Valkey) -> None:
    async with two(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector") as process:
        await asyncio.sleep(3)  # one that ends sooner is taken for one that cannot start
        first, second = workers_of(process)
        os.kill(first, signal.SIGKILL)

        def replaced() -> bool:
            now = workers_of(process)
            return len(now) == 2 and first not in now and second in now

        await wait_until(replaced, "another has taken its place")
        assert "another takes its place" in process.log.read_text()
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            assert (await http.post("/ingest", content=EVENT)).status_code == 202


async def test_workers_that_cannot_live_end_the_whole(tmp_path: Path, valkey: Valkey) -> None:
    async with two(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector") as process:

        def killed_until_all_end() -> bool:
            for worker in workers_of(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            return process.popen.poll() is not None

        # The first of them may have lived long enough to get a successor.
        await wait_until(killed_until_all_end, "all have ended")
        assert await process.exit_status() == 1
        assert "has ended at once (-9); all end" in process.log.read_text()


async def test_workers_end_when_the_process_that_started_them_is_killed(
    tmp_path: Path, valkey: Valkey
) -> None:
    async with two(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector") as process:
        workers = workers_of(process)
        process.popen.kill()
        await process.exit_status()
        await wait_until(lambda: not any(map(is_there, workers)), "no orphan is left")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_all_streams_are_told_bye_and_all_end(
    tmp_path: Path, valkey: Valkey, number: int
) -> None:
    async with (
        two(tmp_path, REDIS_ADDR=valkey.url, ROLE="distributor") as process,
        contextlib.AsyncExitStack() as stack,
    ):
        readers = [await stack.enter_async_context(connected(process.url)) for _ in range(20)]
        for reader in readers:
            await reader.send(SUBSCRIBE)
            await reader.reader.readuntil(b"event: hello")
        process.popen.send_signal(number)
        for reader in readers:
            assert b"event: bye" in await reader.rest(timeout=5)
        assert await process.exit_status(timeout=5) == 0


async def test_a_port_that_is_taken_is_named_and_not_shared(tmp_path: Path, valkey: Valkey) -> None:
    port = str(free_port())
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "PORT": port}
    async with two(tmp_path, **environ):
        other = tmp_path / "other"
        other.mkdir()
        async with spawned(other, WORKERS="2", **environ) as second:
            assert await second.exit_status() == 1
            assert f"PORT={port}: in use" in second.log.read_text()


async def test_a_worker_that_was_being_started_when_all_end_is_told_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = _Workers({METRICS_DIR: str(tmp_path)}, Settings(), [listener])
        started: list[asyncio.subprocess.Process] = []

        async def start(_: int) -> asyncio.subprocess.Process:
            workers.stop()
            started.append(await asyncio.create_subprocess_exec("sleep", "60"))
            return started[0]

        monkeypatch.setattr(workers, "_start", start)
        assert not await workers.run()
    assert started[0].returncode == -signal.SIGTERM
