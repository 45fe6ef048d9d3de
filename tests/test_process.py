import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from logpipe import app
from logpipe.fanout.hub import Hub
from logpipe.listening import PortTakenError, bind
from logpipe.serving import process as module
from logpipe.serving.process import serve_until_stopped
from logpipe.settings import load
from tests.helpers import fair_time, wait_until
from tests.raw import Connection, connected, request
from tests.servers import Process, Valkey, free_port, spawned
from tests.terminals import on_terminal

BOTH = "collector,distributor"
SUBSCRIBE = request(start="GET /subscribe HTTP/1.1")
EVENT = b'{"source":"a","message":"b"}'


def lines_of(process: Process) -> list[Any]:
    """The process's log: a record a line, or this fails."""
    return [json.loads(line) for line in process.log.read_text().splitlines()]


@contextlib.asynccontextmanager
async def running(tmp_path: Path, valkey: Valkey, **environ: str) -> AsyncIterator[Process]:
    """A collector and distributor of its own, ready."""
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, ROLE=BOTH, **environ) as process:
        await process.ready()
        yield process


async def subscribe(stack: contextlib.AsyncExitStack, url: str, head: bytes) -> Connection:
    connection = await stack.enter_async_context(connected(url))
    await connection.send(head)
    await connection.reader.readuntil(b"event: hello")
    return connection


async def ending(process: Process, number: int = signal.SIGTERM, within: float = 5.0) -> int:
    """Sends a signal; the exit status, which must come in time."""
    started = fair_time()
    process.popen.send_signal(number)
    status = await process.exit_status()
    assert fair_time() - started < within
    return status


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_terminal_that_is_closed_ends_what_runs_in_it(valkey: Valkey, workers: str) -> None:
    """With the rest of its window; a SIGHUP while it is open ends nothing."""
    environ: dict[str, Any] = {"REDIS_ADDR": valkey.url, "WORKERS": workers, "ROLE": "collector"}
    with on_terminal(80, "serve", PORT=str(free_port()), **environ) as terminal:
        ready = "Redis is ready"
        await terminal.until(lambda seen: seen.count(ready) == int(workers), "it is ready")
        terminal.popen.send_signal(signal.SIGHUP)
        await asyncio.sleep(0)
        assert terminal.popen.poll() is None
        terminal.close()
        await wait_until(lambda: terminal.popen.poll() is not None, "it has ended")
        assert terminal.popen.returncode == 0


async def test_with_nohup_it_outlives_its_terminal(valkey: Valkey) -> None:
    port = str(free_port())
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "PORT": port}
    with on_terminal(80, "serve", nohup=True, **environ) as terminal:
        await terminal.until(lambda seen: "Redis is ready" in seen, "it is ready")
        terminal.close()
        terminal.popen.send_signal(signal.SIGHUP)
        async with connected(f"http://127.0.0.1:{port}") as client:
            await client.send(request(EVENT))
            assert (await client.answer()).status == 202


async def test_500_open_streams_are_told_of_the_end_and_do_not_hold_it_up(
    valkey: Valkey, tmp_path: Path
) -> None:
    async with running(tmp_path, valkey) as process, contextlib.AsyncExitStack() as stack:
        connections = await asyncio.gather(
            *(subscribe(stack, process.url, SUBSCRIBE) for _ in range(500))
        )
        before = len(lines_of(process))
        assert await ending(process) == 0
        for told in await asyncio.gather(*(each.rest() for each in connections)):
            assert told.count(b"event: bye") == 1
            assert b"retry: " in told
            assert told.endswith(b"\r\n0\r\n\r\n")
        (line,) = lines_of(process)[before:]
        assert line["message"] == "stopping: ending 500 open requests and streams"


async def test_shared_and_ndjson_readers_are_told_of_the_end_too(
    valkey: Valkey, tmp_path: Path
) -> None:
    shared = SUBSCRIBE.replace(b"subscribe", b"subscribe?delivery=shared")
    ndjson = request(b"", "Accept: application/x-ndjson", start="GET /subscribe HTTP/1.1")
    async with running(tmp_path, valkey) as process, contextlib.AsyncExitStack() as stack:
        one = await subscribe(stack, process.url, shared)
        two = await stack.enter_async_context(connected(process.url))
        await two.send(ndjson)
        await two.reader.readuntil(b'"hello"')
        assert await ending(process) == 0
        for connection, bye in ((one, b"event: bye"), (two, b'{"event":"bye"')):
            told = await connection.rest()
            assert bye in told
            assert told.endswith(b"\r\n0\r\n\r\n")


async def test_a_reader_that_takes_nothing_does_not_hold_up_the_end(
    valkey: Valkey, tmp_path: Path
) -> None:
    batch = b"\n".join([b'{"source":"a","message":"%b"}' % (b"x" * 10_000)] * 100)
    async with (
        running(tmp_path, valkey) as process,
        connected(process.url) as stalled,
        httpx.AsyncClient(base_url=process.url, trust_env=False) as http,
    ):
        await stalled.send(SUBSCRIBE)
        await stalled.reader.readuntil(b"event: hello")
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            assert (await http.post("/ingest", content=batch)).status_code == 202
        assert await ending(process) == 0
        assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_process_ends_at_once_and_without_a_word_too_much(
    valkey: Valkey, tmp_path: Path, number: int
) -> None:
    async with running(tmp_path, valkey) as process:
        before = len(lines_of(process))
        assert await ending(process, number, within=2) == 0
        (line,) = lines_of(process)[before:]
        assert line["message"] == "stopping: ending 0 open requests and streams"


async def test_a_second_signal_does_not_wait_for_anyone(valkey: Valkey, tmp_path: Path) -> None:
    # Redis is frozen: the end waits for the answer of the request under way.
    with Valkey.started("--save", "") as frozen:
        async with running(tmp_path, frozen) as process, connected(process.url) as connection:
            frozen.signal(signal.SIGSTOP)
            await connection.send(request(EVENT))
            before = len(lines_of(process))
            process.popen.send_signal(signal.SIGTERM)
            await wait_until(lambda: len(lines_of(process)) > before, "it is stopping")
            assert await ending(process, within=2) == 0
            assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_drain_serves_all_while_health_says_503(
    valkey: Valkey, tmp_path: Path, workers: str
) -> None:
    environ = {"DRAIN_S": "3", "WORKERS": workers}
    async with (
        running(tmp_path, valkey, **environ) as process,
        connected(process.url) as kept,
        contextlib.AsyncExitStack() as stack,
        httpx.AsyncClient(base_url=process.url, trust_env=False) as http,
    ):
        reader = await subscribe(stack, process.url, SUBSCRIBE)
        process.popen.send_signal(signal.SIGTERM)

        async def drains() -> bool:
            health = (await http.get("/healthz", headers={"Connection": "close"})).json()
            return bool(health.get("detail") == "draining: the process ends soon")

        await wait_until(drains, "health says that it drains")
        for connection in (kept, await stack.enter_async_context(connected(process.url))):
            await connection.send(request(EVENT))
            answer = await connection.answer()
            assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert (await reader.reader.readuntil(b"data: {")).count(b"event: bye") == 0
        assert b"event: bye" in await reader.rest()
        assert await process.exit_status() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)])
async def test_a_drain_is_skipped_by_ctrl_c_or_a_second_signal(
    valkey: Valkey, tmp_path: Path, workers: str, numbers: tuple[int, ...]
) -> None:
    environ = {"DRAIN_S": "600", "WORKERS": workers}
    async with (
        running(tmp_path, valkey, **environ) as process,
        contextlib.AsyncExitStack() as stack,
    ):
        reader = await subscribe(stack, process.url, SUBSCRIBE)
        said = process.log.read_text
        await wait_until(lambda: said().count("Redis is ready") == int(workers), "all serve")
        for number in numbers[:-1]:
            process.popen.send_signal(number)
            await wait_until(lambda: said().count("draining: ") == int(workers), "all drain")
        assert await ending(process, numbers[-1]) == 0
        assert b"event: bye" in await reader.rest()


async def test_a_process_ends_in_time_though_redis_is_frozen(tmp_path: Path) -> None:
    shared = SUBSCRIBE.replace(b"subscribe", b"subscribe?delivery=shared")
    with Valkey.started("--save", "") as frozen:
        async with running(tmp_path, frozen) as process, contextlib.AsyncExitStack() as stack:
            readers = [await subscribe(stack, process.url, head) for head in (SUBSCRIBE, shared)]
            sender = await stack.enter_async_context(connected(process.url))
            frozen.signal(signal.SIGSTOP)
            await sender.send(request(EVENT))
            assert await ending(process) == 0
            assert (await sender.answer()).status == 503
            for reader in readers:
                assert b"event: bye" in await reader.rest()
            assert "Traceback" not in process.log.read_text()


async def test_a_process_that_has_not_reached_redis_ends_at_once(tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/none"
    async with spawned(tmp_path, REDIS_ADDR=nowhere, ROLE=BOTH) as process:
        async with httpx.AsyncClient(trust_env=False) as http:

            async def answers() -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    return (await http.get(f"{process.url}/livez")).status_code == 200
                return False

            await wait_until(answers, "it lives")
        assert await ending(process, within=2) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_it_still_opens_ends_it_without_an_error(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow(_: object) -> AsyncIterator[None]:
        opening.set()
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(module, "running", slow)
    task = asyncio.create_task(serve_until_stopped(load({"port": 0}, {})))
    await opening.wait()
    os.kill(os.getpid(), number)
    async with asyncio.timeout(5):
        assert await task == 0


async def test_a_cancellation_that_is_no_signal_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    opening = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow(_: object) -> AsyncIterator[None]:
        opening.set()
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(module, "running", slow)
    task = asyncio.create_task(serve_until_stopped(load({"port": 0}, {})))
    await opening.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- what it says at the start -----------------------------------------------------------------


async def test_a_port_in_use_ends_the_start_with_one_line(valkey: Valkey, tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        async with spawned(tmp_path, REDIS_ADDR=valkey.url, PORT=port) as process:
            assert await process.exit_status() == 1
            (line,) = process.log.read_text().splitlines()
    assert line.startswith(f"logpipe: PORT={port}: in use")


async def test_a_port_in_use_is_found_before_anything_is_started(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        settings = load({"port": port, "data_dir": str(tmp_path / "data")}, {})
        with pytest.raises(PortTakenError):
            await serve_until_stopped(settings)
    assert not (tmp_path / "data").exists()


async def test_bad_settings_end_the_start_with_a_line_each(tmp_path: Path) -> None:
    bad = {
        "ROLE": "boss",
        "TRIM_MAXLEN": "-1",
        "HEARTBEAT_S": "soon",
        "REDIS_ADDR": "http://user:s3cr/#t@host",
        "INGEST_TOKENS_FILE": str(tmp_path / "missing"),
        "COLLECTOR_URL": "a\nb",
    }
    async with spawned(tmp_path, **bad) as process:
        assert await process.exit_status() == 2
        lines = process.log.read_text().splitlines()
    assert sorted(line.split()[1].partition("=")[0].rstrip(":") for line in lines) == sorted(bad)
    assert all(line.startswith("logpipe: ") for line in lines)
    assert "s3cr" not in "".join(lines)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_one_partition_is_warned_of_once(
    valkey: Valkey, tmp_path: Path, workers: str
) -> None:
    async with running(tmp_path, valkey, PARTITIONS="1", WORKERS=workers) as process:
        warnings = [line["message"] for line in lines_of(process) if line["level"] == "WARN"]
    assert warnings == ["PARTITIONS: the setting is withdrawn and has no effect; unset it"]


async def test_more_partitions_end_the_start_and_their_keys_stay(
    valkey: Valkey, tmp_path: Path
) -> None:
    valkey.client.xadd("logs:0-of-4:{0}", {"event": "{}"})
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, ROLE=BOTH, PARTITIONS="4") as process:
        assert await process.exit_status() == 2
        (line,) = process.log.read_text().splitlines()
    assert line.startswith("logpipe: PARTITIONS=4: the setting is withdrawn")
    assert "logs:0-of-4:{*} to logs:3-of-4:{*} stay untouched" in line
    assert valkey.client.keys("logs:*") == [b"logs:0-of-4:{0}"]


@pytest.mark.parametrize("count", ["0", "abc"])
async def test_what_is_no_number_of_partitions_ends_the_start(tmp_path: Path, count: str) -> None:
    async with spawned(tmp_path, PARTITIONS=count) as process:
        assert await process.exit_status() == 2
        (line,) = process.log.read_text().splitlines()
    assert line == f"logpipe: PARTITIONS={count}: the setting is withdrawn; unset it"


@pytest.mark.parametrize(
    ("role", "tokens", "named"),
    [
        ("collector", {}, ["INGEST_TOKENS"]),
        ("distributor", {}, ["READ_TOKENS"]),
        (BOTH, {}, ["INGEST_TOKENS", "READ_TOKENS"]),
        (BOTH, {"INGEST_TOKENS": "x" * 16, "READ_TOKENS": "y" * 16}, []),
    ],
)
async def test_who_listens_beyond_this_machine_without_tokens_is_warned_once(
    role: str, tokens: dict[str, str], named: list[str], valkey: Valkey, tmp_path: Path
) -> None:
    environ = {"REDIS_ADDR": valkey.url, "ROLE": role, "HOST": "0.0.0.0", **tokens}
    async with spawned(tmp_path, **environ) as process:
        await process.ready()
        warnings = [line["message"] for line in lines_of(process) if line["level"] == "WARN"]
    assert len(warnings) == (1 if named else 0)
    for name in ("INGEST_TOKENS", "READ_TOKENS"):
        assert (name in "".join(warnings)) is (name in named)


async def test_a_token_that_can_be_guessed_is_warned_of_by_its_setting(
    valkey: Valkey, tmp_path: Path
) -> None:
    tokens = {"INGEST_TOKENS": "x" * 16, "READ_TOKENS": f"{'y' * 20},fifteen-letters"}
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, **tokens) as process:
        await process.ready()
        (warning,) = [line["message"] for line in lines_of(process) if line["level"] == "WARN"]
        assert warning.startswith("READ_TOKENS: tokens of fewer than 16 characters")
        assert "fifteen-letters" not in process.log.read_text()


async def test_beyond_this_machine_open_metrics_are_logged(valkey: Valkey, tmp_path: Path) -> None:
    tokens = {"INGEST_TOKENS": "x" * 16, "READ_TOKENS": "y" * 16}
    for admin, count in ({}, 1), ({"ADMIN_TOKENS": "z" * 16}, 0):
        environ = {"REDIS_ADDR": valkey.url, "HOST": "0.0.0.0", **tokens, **admin}
        async with spawned(tmp_path, **environ) as process:
            await process.ready()
            lines = [line["message"] for line in lines_of(process)]
            assert len([line for line in lines if "can see /metrics" in line]) == count


async def test_on_this_machine_alone_nobody_is_warned(valkey: Valkey, tmp_path: Path) -> None:
    async with running(tmp_path, valkey) as process:
        lines = lines_of(process)
    assert [line["level"] for line in lines] == ["INFO", "INFO"]
    assert f"http://127.0.0.1:{process.port}" in lines[0]["message"]


# -- what goes wrong ---------------------------------------------------------------------------


async def test_a_task_that_dies_ends_the_process_with_an_error(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def dying(_: Hub) -> None:
        await asyncio.sleep(0.05)
        raise RuntimeError("boom")

    monkeypatch.setattr(Hub, "run", dying)
    settings = load({"port": 0, "redis_addr": valkey.url, "role": BOTH}, {})
    async with asyncio.timeout(5):
        assert await serve_until_stopped(settings) == 1
    critical = [r.getMessage() for r in caplog.records if r.levelno == logging.CRITICAL]
    assert critical == ["the task feed has died; the process ends"]
    assert "boom" in caplog.text


async def test_a_task_that_dies_while_the_process_opens_ends_it_as_well(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dying(_: Hub) -> None:
        raise RuntimeError("boom")

    opened = app.running

    @contextlib.asynccontextmanager
    async def slow(settings: Any) -> AsyncIterator[Any]:
        async with opened(settings) as process:
            await wait_until(lambda: process.background.failure, "the task has died")
            yield process

    monkeypatch.setattr(Hub, "run", dying)
    monkeypatch.setattr(module, "running", slow)
    settings = load({"port": 0, "redis_addr": valkey.url, "role": BOTH}, {})
    async with asyncio.timeout(5):
        assert await serve_until_stopped(settings) == 1


async def test_malformed_requests_fill_no_log_and_an_unread_log_stops_nothing(
    valkey: Valkey,
) -> None:
    port = str(free_port())
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "PORT": port}
    with subprocess.Popen(
        [sys.executable, "-m", "logpipe", "serve"],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as popen:
        try:
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=5) as http:

                async def ready() -> bool:
                    with contextlib.suppress(httpx.HTTPError):
                        return (await http.get("/healthz")).status_code == 200
                    return False

                await wait_until(ready, "it is ready")
                # A line for each of them would be more than a pipe holds.
                for _ in range(100):
                    async with connected(url) as connection:
                        await connection.send(b"nonsense\r\n\r\n")
                        assert b" 400 " in await connection.rest()
                upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
                await http.get("/healthz", headers=upgrade)
                assert (await http.post("/ingest", content=EVENT)).status_code == 202
        finally:
            popen.terminate()
            written, _ = await asyncio.to_thread(popen.communicate, timeout=10)
    assert popen.returncode == 0
    assert len(written.splitlines()) == 3


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 | true"])
async def test_a_process_whose_stderr_is_closed_serves(
    closed: str, valkey: Valkey, tmp_path: Path
) -> None:
    port = str(free_port())
    shell = f'"{sys.executable}" -m logpipe serve {closed} & echo $! > pid; wait $!'
    if "|" in closed:
        shell = f'exec 3>&1; {{ "{sys.executable}" -m logpipe serve & echo $! > pid; }} {closed}'
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "PORT": port}
    with subprocess.Popen(
        ["sh", "-c", shell], env={**os.environ, **environ}, cwd=tmp_path
    ) as popen:
        pid = 0
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as http:

                async def ready() -> bool:
                    with contextlib.suppress(httpx.HTTPError):
                        health = await http.get(f"http://127.0.0.1:{port}/healthz")
                        return health.status_code == 200
                    return False

                await wait_until(ready, "it is ready")
                answer = await http.post(f"http://127.0.0.1:{port}/ingest", content=EVENT)
                assert answer.status_code == 202
        finally:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                pid = int((tmp_path / "pid").read_text())
                os.kill(pid, signal.SIGKILL)
            popen.wait(10)
    assert pid
