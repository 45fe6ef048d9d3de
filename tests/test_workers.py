"""Several processes on one port, as an operator meets them: started, killed, stopped."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from logpipe.serving.workers import METRICS_DIR, METRICS_FOLDER, BackOff, _Worker, _Workers
from logpipe.settings import Settings
from tests.helpers import wait_until
from tests.raw import Connection, connected, request
from tests.servers import Process, Valkey, free_port, spawned

SUBSCRIBE = request(start="GET /subscribe HTTP/1.1")
ACCEPTED = 'logpipe_ingest_events_total{outcome="accepted"}'
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
            assert await metric(process.url, ACCEPTED) == 20
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


async def succeeded(process: Process, gone: int, others: set[int]) -> int:
    """Waits for the worker in the place of one that is gone, beside the others; its pid."""

    def new() -> set[int]:
        now = set(workers_of(process))
        return now - others if gone not in now and others <= now else set()

    await wait_until(lambda: len(new()) == 1, "another has taken its place")
    return new().pop()


async def test_a_worker_that_is_killed_gets_a_successor(tmp_path: Path, valkey: Valkey) -> None:
    async with two(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector") as process:
        first, second = workers_of(process)
        os.kill(first, signal.SIGKILL)
        await succeeded(process, first, {second})
        assert "worker 1 has ended (-9); another takes its place" in process.log.read_text()
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            assert (await http.post("/ingest", content=EVENT)).status_code == 202


async def test_a_worker_killed_again_and_again_leaves_the_others_alone(
    tmp_path: Path, valkey: Valkey
) -> None:
    async with two(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector,distributor") as process:
        first, second = workers_of(process)
        for _ in range(4):
            os.kill(first, signal.SIGKILL)
            first = await succeeded(process, first, {second})
        log = process.log.read_text()
        pauses = re.findall(r"another takes its place in (\S+) s", log)
        assert pauses == ["0.1", "0.2", "0.4", "0.8"]
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            for _ in range(4):
                assert (await http.post("/ingest", content=EVENT)).status_code == 202


async def test_many_deaths_in_a_short_time_end_all(tmp_path: Path, valkey: Valkey) -> None:
    async with two(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector") as process:

        def killed_until_all_end() -> bool:
            for worker in workers_of(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            return process.popen.poll() is not None

        await wait_until(killed_until_all_end, "all have ended", 40)
        assert await process.exit_status() == 1
        assert re.search(
            r"\d (have ended within 15 s|times without being ready): all end",
            process.log.read_text(),
        )


async def test_workers_none_of_which_was_ever_ready_end_all(tmp_path: Path, valkey: Valkey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "SYSLOG_TCP": port}
        async with spawned(tmp_path, WORKERS="2", **environ) as process:
            assert await process.exit_status(20) == 1
        assert "ended (1); none was ever ready: all end" in process.log.read_text()


async def test_sighup_replaces_the_workers_while_they_serve(tmp_path: Path, valkey: Valkey) -> None:
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector,distributor"}
    async with two(tmp_path, TMPDIR=str(tmp_path), **environ) as process:
        before = set(workers_of(process))
        sent = 0
        for reloads in (1, 2):
            process.popen.send_signal(signal.SIGHUP)
            while process.log.read_text().count("all workers are new processes") < reloads:
                async with connected(process.url) as sender:
                    await sender.send(request(EVENT))
                    assert (await sender.answer()).status == 202
                sent += 1
            await wait_until(lambda: len(workers_of(process)) == 2, "those before have ended")
        after = set(workers_of(process))
        assert not before & after
        assert await metric(process.url, ACCEPTED) == sent
        # Each worker has files of its own, and goes on in those of one that has ended.
        names = {path.stem.rpartition("_")[2] for path in tmp_path.glob(f"{METRICS_FOLDER}*/*.db")}
        assert names == {"0a", "0b", "1a", "1b"}


async def test_metrics_outlive_workers_and_count_the_stream_once(
    tmp_path: Path, valkey: Valkey
) -> None:
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector,distributor"}
    async with two(tmp_path, **environ) as process:

        async def reached(name: str, wanted: float) -> None:
            async def there() -> bool:
                return await metric(process.url, name) == wanted

            await wait_until(there, f"{name} is {wanted}")

        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            for _ in range(10):
                assert (await http.post("/ingest", content=EVENT)).status_code == 202
        for name in ("logpipe_feed_events_total", "logpipe_window_events", ACCEPTED):
            await reached(name, 10)
        first, second = workers_of(process)
        os.kill(first, signal.SIGKILL)
        await succeeded(process, first, {second})
        await reached(ACCEPTED, 10)


async def test_metrics_of_a_process_that_was_killed_are_removed(
    tmp_path: Path, valkey: Valkey
) -> None:
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "TMPDIR": str(tmp_path)}

    def folders() -> set[Path]:
        return set(tmp_path.glob(f"{METRICS_FOLDER}*"))

    async with two(tmp_path, **environ) as killed:
        killed.popen.kill()
        await killed.exit_status()
        (left,) = folders()
        async with two(tmp_path, **environ):
            (first,) = folders()
            assert first != left
            async with two(tmp_path, **environ):
                assert first in folders()
                assert len(folders()) == 2
        assert not folders()


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


async def test_a_worker_that_was_being_started_when_all_end_ends_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = _Workers({METRICS_DIR: str(tmp_path)}, Settings(), [listener])
        started: list[asyncio.subprocess.Process] = []

        async def start(_: int) -> _Worker:
            workers.stop()
            started.append(await asyncio.create_subprocess_exec("sleep", "60"))
            return _Worker(started[0], asyncio.StreamReader(), "0a")

        monkeypatch.setattr(workers, "_start", start)
        assert not await workers.run()
    assert started[0].returncode == -signal.SIGTERM


async def test_a_worker_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        environ = {METRICS_DIR: str(tmp_path)}
        workers = _Workers(environ, Settings(), [one, other], BackOff(first_s=0.01))
        attempts: list[int] = []

        async def start(number: int) -> _Worker:
            attempts.append(number)
            if len(attempts) in (1, 4):
                raise OSError("no process to be had")
            ready = asyncio.StreamReader()
            ready.feed_data(b"1")
            ready.feed_eof()
            process = await asyncio.create_subprocess_exec("sleep", "60")
            return _Worker(process, ready, f"{number}a")

        monkeypatch.setattr(workers, "_start", start)
        running = asyncio.create_task(workers.run())
        await wait_until(lambda: attempts == [0, 1, 0], "both have been started")
        workers.renew()
        await wait_until(lambda: "(no process to be had): it goes on" in caplog.text, "it is said")
        assert attempts == [0, 1, 0, 0]
        workers.stop()
        assert not await running
    assert "worker 1 cannot be started (no process to be had); another takes" in caplog.text


async def test_workers_of_which_none_can_be_started_end_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = _Workers({METRICS_DIR: str(tmp_path)}, Settings(), [listener])

        async def start(_: int) -> _Worker:
            raise OSError("no process to be had")

        monkeypatch.setattr(workers, "_start", start)
        assert await workers.run()


async def test_others_serve_for_a_worker_that_does_not_return(
    tmp_path: Path, valkey: Valkey
) -> None:
    """Its file of tokens is gone, and the other one goes on with what it has read."""
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-the-test")
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "INGEST_TOKENS_FILE": str(tokens)}
    async with two(tmp_path, **environ) as process:
        log = process.log
        tokens.unlink()
        os.kill(workers_of(process)[0], signal.SIGKILL)
        await wait_until(lambda: "its place in 0.8 s" in log.read_text(), "it ends again", 20)
        for _ in range(10):
            async with connected(process.url) as client:
                await client.send(request(start="GET /livez HTTP/1.1"))
                assert (await client.answer()).status == 200
        assert await metric(process.url, "logpipe_workers") == 1
        assert "Traceback" not in log.read_text()
        tokens.write_text("a-token-of-the-test")
        await wait_until(lambda: log.read_text().count("Redis is ready") == 3, "it is back", 20)
        assert await metric(process.url, "logpipe_workers") == 2


async def test_workers_that_never_become_ready_end_all_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long their starts take: then there are never many deaths in a short time."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        back_off = BackOff(first_s=0.01, within_s=0.0)
        workers = _Workers({METRICS_DIR: str(tmp_path)}, Settings(), [one, other], back_off)
        started = Counter[int]()

        async def start(number: int) -> _Worker:
            started[number] += 1
            ready = asyncio.StreamReader()
            if started[number] == 1:
                ready.feed_data(b"1")
            ready.feed_eof()
            process = await asyncio.create_subprocess_exec("sleep", "0.1")
            return _Worker(process, ready, f"{number}a")

        monkeypatch.setattr(workers, "_start", start)
        assert await workers.run()
    assert min(started.values()) == 4
    assert "each has ended 3 times without being ready: all end" in caplog.text


async def senders_of_a_part(process: Process, stack: contextlib.AsyncExitStack) -> list[Connection]:
    """Connections to both workers, each of which has sent a request except for its end."""
    senders = [await stack.enter_async_context(connected(process.url)) for _ in range(24)]
    for sender in senders:
        await sender.send(request(EVENT)[:-5])
    return senders


async def test_a_replaced_worker_finishes_its_requests(tmp_path: Path, valkey: Valkey) -> None:
    """Also one that takes longer than what requests get at the end of all."""
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector"}
    async with two(tmp_path, **environ) as process, contextlib.AsyncExitStack() as stack:
        before = set(workers_of(process))
        senders = await senders_of_a_part(process, stack)
        process.popen.send_signal(signal.SIGHUP)
        log = process.log
        await wait_until(lambda: "all workers are new processes" in log.read_text(), "they are new")
        assert before <= set(workers_of(process))  # they have requests left
        for sender in senders:
            await sender.send(request(EVENT)[-5:])
            assert (await sender.answer()).status == 202
        await wait_until(lambda: not before & set(workers_of(process)), "they retire")


async def test_the_end_cuts_no_request_of_a_worker_that_retires(
    tmp_path: Path, valkey: Valkey
) -> None:
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector"}
    async with two(tmp_path, **environ) as process, contextlib.AsyncExitStack() as stack:
        senders = await senders_of_a_part(process, stack)
        process.popen.send_signal(signal.SIGHUP)
        log = process.log
        await wait_until(lambda: "stopping: ending" in log.read_text(), "one retires")
        process.popen.terminate()
        for sender in senders:
            await sender.send(request(EVENT)[-5:])
        answers = [await sender.answer() for sender in senders]
        assert [answer.status for answer in answers] == [202] * 24
        assert await process.exit_status() == 0
        assert "cannot be replaced" not in log.read_text()


async def test_at_the_end_no_connection_waits_for_a_worker(tmp_path: Path, valkey: Valkey) -> None:
    """As it would on a socket that this process still listens on."""
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector"}
    async with two(tmp_path, **environ) as process, contextlib.AsyncExitStack() as stack:
        await senders_of_a_part(process, stack)  # so that both take their two seconds
        process.popen.terminate()
        await wait_until(lambda: process.log.read_text().count("stopping") == 2, "both stop")
        for _ in range(10):
            with pytest.raises(ConnectionRefusedError):
                async with connected(process.url):
                    pass
        assert await process.exit_status() == 0


async def test_workers_that_are_interrupted_at_their_start_say_nothing(
    tmp_path: Path, valkey: Valkey
) -> None:
    environ = {"REDIS_ADDR": valkey.url, "ROLE": "collector", "WORKERS": "2"}
    async with spawned(tmp_path, **environ) as process:
        await wait_until(lambda: len(workers_of(process)) == 2, "both are started")
        process.popen.send_signal(signal.SIGINT)
        assert await process.exit_status() == 0
        assert "Traceback" not in process.log.read_text()


async def test_the_number_of_workers_is_measured(tmp_path: Path, valkey: Valkey) -> None:
    async with two(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector") as process:
        assert await metric(process.url, "logpipe_workers") == 2
        assert await metric(process.url, "logpipe_workers_wanted") == 2
