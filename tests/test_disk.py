"""The disk of the embedded engine: what is refused, and what goes on, when it has little room."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import redis.asyncio

from logpipe.engine import Engine
from logpipe.problems import Unavailable
from logpipe.stream import Append, Disk, Stream, free_bytes
from logpipe.stream.disk import (
    AGAIN,
    COMMAND_BYTES,
    RESERVE_BYTES,
    WORTH_BYTES,
    Use,
    needed_bytes,
    use_of,
)
from tests.helpers import retry_after, wait_until
from tests.servers import Service, Valkey, serving, spawned, subscribed
from tests.streams import NAME, address_of, events, stream_at
from tests.test_trimmer import trimmer_of

MIB = 1 << 20
GIB = 1 << 30
ONE = {"source": "a", "message": "m"}


# -- what has to be free -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "needed"),
    [
        (Use(10 * MIB, GIB), 266 * MIB),
        (Use(700 * MIB, GIB), 956 * MIB),
        (Use(700 * MIB, GIB, rewriting=True), 256 * MIB),  # the rewrite has taken its part
        (Use(8 * MIB, 64 * MIB), 136 * MIB),
        (Use(8 * MIB, 0), 264 * MIB),
        (Use(), 256 * MIB),
        (Use(10 * MIB, GIB, entries=MIB), 346 * MIB),  # of commands, 80 bytes for each
    ],
)
def test_what_has_to_be_free_is_a_reserve_and_a_rewrite(use: Use, needed: int) -> None:
    assert needed_bytes(use) == needed


def test_events_are_refused_until_a_tenth_more_is_free() -> None:
    free = [RESERVE_BYTES]
    measured: list[tuple[int, int]] = []
    disk = Disk(lambda: free[0], lambda *pair: measured.append(pair))
    assert not disk.look(Use()).trouble
    free[0] -= 1
    assert "DATA_DIR has 256 MiB free, and 282 MiB are needed" in disk.look(Use()).trouble
    again = int(RESERVE_BYTES * AGAIN)
    free[0] = again - 1
    assert disk.look(Use()).trouble
    free[0] = again
    assert not disk.look(Use()).trouble
    assert measured[1] == (RESERVE_BYTES - 1, RESERVE_BYTES)


@pytest.mark.parametrize(
    ("use", "rewrite"),
    [
        (Use(10 * MIB, GIB, appended=WORTH_BYTES), True),
        (Use(10 * MIB, GIB, appended=WORTH_BYTES - 1), False),
        (Use(10 * MIB, GIB, rewriting=True, appended=GIB), False),
        (Use(100 * MIB, GIB, appended=GIB), False),  # it would fill the disk
        (Use(90 * MIB, GIB, appended=GIB, entries=MIB), False),  # as commands
        (Use(10 * MIB, GIB), False),
    ],
)
def test_the_file_is_rewritten_where_that_gives_room(use: Use, rewrite: bool) -> None:
    assert Disk(lambda: 100 * MIB).look(use).rewrite is rewrite


def test_what_redis_says_of_its_file_is_read() -> None:
    info = {"used_memory": 5, "maxmemory": 9, "aof_current_size": 7, "aof_base_size": 3}
    assert use_of({**info, "aof_rewrite_in_progress": 0}) == Use(5, 9, False, 4)
    assert use_of({**info, "aof_rewrite_scheduled": 1}).rewriting
    assert str(use_of({})) == str(Use())


def test_free_bytes_are_those_of_the_folder(tmp_path: Path) -> None:
    assert free_bytes(tmp_path)() > 0
    with pytest.raises(OSError, match="No such file"):
        free_bytes(tmp_path / "gone")()


# -- a stream ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def on_disk(server: Valkey, disk: Disk) -> AsyncIterator[Stream]:
    """A stream whose monitor runs."""
    async with stream_at(address_of(server), disk=disk) as stream:
        monitor = asyncio.create_task(stream.monitor())
        await wait_until(lambda: stream.health.kind != "connecting", "it was looked at")
        try:
            yield stream
        finally:
            monitor.cancel()
            await asyncio.wait({monitor})


async def test_without_room_only_appends_are_refused(
    valkey: Valkey,
) -> None:
    free = [GIB]
    async with on_disk(valkey, Disk(lambda: free[0])) as stream:
        await stream.append([Append(events(500))])
        free[0] = 100 * MIB
        await wait_until(lambda: stream.health.kind == "disk", "it is noticed")
        with pytest.raises(Unavailable, match="has 100 MiB free") as caught:
            await stream.append([Append(events(1))])
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
        assert stream.health.serves(writes=False)
        assert not stream.health.serves(writes=True)
        assert (await stream.bounds()).length == 500
        assert await trimmer_of(stream, max_bytes=1_000).trim()
        assert valkey.client.xlen(NAME) < 500
        free[0] = GIB
        await wait_until(lambda: stream.health.kind == "ok", "it recovers by itself")
        await stream.append([Append(events(1))])


async def test_commands_need_more_room_than_a_snapshot(valkey: Valkey) -> None:
    pipe = valkey.client.pipeline(transaction=True)
    for _ in range(20_000):
        pipe.xadd(NAME, {"event": "x"})
    pipe.execute()
    needed: dict[bool, int] = {}
    for as_commands in (False, True):

        def measured(_: int, least: int, as_commands: bool = as_commands) -> None:
            needed[as_commands] = least

        async with on_disk(valkey, Disk(lambda: GIB, measured, as_commands=as_commands)) as stream:
            assert stream.no_room == ""
    more = 20_000 * COMMAND_BYTES
    assert needed[True] - needed[False] == pytest.approx(more, abs=more / 3)  # and connections


async def test_a_file_of_commands_is_no_larger_than_is_counted_on(tmp_path: Path) -> None:
    """Of the smallest events, of which it is larger than the memory that they use."""
    engine = Engine(tmp_path, as_commands=True)
    await engine.start()
    try:
        async with redis.asyncio.Redis(unix_socket_path=str(engine.socket)) as client:
            for _ in range(10):
                async with client.pipeline(transaction=True) as pipe:
                    for _ in range(1_000):
                        pipe.xadd(NAME, {"event": '{"source":"a","message":"m"}'})
                    await pipe.execute()
            await client.bgrewriteaof()

            async def done() -> bool:
                info = await client.info("persistence")
                return not info["aof_rewrite_in_progress"] and info["aof_base_size"] > MIB // 2

            await wait_until(done, "it is rewritten")
            info = await client.info()
            stream_bytes = await client.memory_usage(NAME, samples=0)
    finally:
        await engine.stop()
    assert stream_bytes is not None
    assert stream_bytes < info["aof_base_size"] < Use(stream_bytes, entries=10_000).rewritten


async def test_a_folder_that_cannot_be_asked_refuses_nothing(valkey: Valkey) -> None:
    def gone() -> int:
        raise FileNotFoundError

    async with on_disk(valkey, Disk(gone)) as stream:
        assert stream.health.kind == "ok"
        await stream.append([Append(events(1))])


async def test_a_file_that_has_grown_is_rewritten_to_give_room_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ("--appendonly", "yes", "--auto-aof-rewrite-percentage", "0")
    with Valkey.started(*options) as server:
        for _ in range(20):
            server.client.set("x", b"x" * MIB)
        async with on_disk(server, Disk(lambda: 100 * MIB)) as stream:
            assert stream.health.kind == "disk"

            def shrunk() -> bool:
                info = server.client.info("persistence")
                return int(info["aof_current_size"]) < 2 * MIB

            await wait_until(shrunk, "it is rewritten")
        assert caplog.text.count("the append-only file is rewritten") == 1


# -- logpipe on a small disk ---------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("NOT TESTED: a disk with little room; to mount one takes root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("NOT TESTED: a disk with little room; this root may not mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def gauge(service: Service, name: str) -> float:
    lines = (await service.http.get("/metrics")).text.splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name} "))
    return float(line.split()[1])


async def test_a_disk_with_little_room_refuses_events(small_disk: Path) -> None:
    given = {"redis_addr": f"embedded://{small_disk}/data", "embedded_maxmemory": "32mb"}
    other = small_disk / "another program's"
    async with serving(**given) as service:

        async def status(wanted: int) -> bool:
            return (await service.http.get("/healthz")).status_code == wanted

        await wait_until(lambda: status(200), "it is ready")
        first = (await service.post(ONE)).json()["id"]
        other.write_bytes(b"x" * (140 * MIB))
        await wait_until(lambda: status(503), "it is noticed")
        health = (await service.http.get("/healthz")).json()
        assert health["redis"] == "disk"
        assert "the disk of DATA_DIR has " in health["detail"]
        answer = await service.post(ONE)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] in retry_after(1)
        assert "the disk of DATA_DIR has " in answer.json()["detail"]
        found = (await service.http.get("/events")).json()["events"]
        assert [each["id"] for each in found] == [first]
        async with subscribed(service.url, since="earliest") as reader:
            assert len(await reader.until(1)) == 1
        free = await gauge(service, "logpipe_disk_free_bytes")
        assert free < await gauge(service, "logpipe_disk_needed_bytes") < 70 * MIB
        other.unlink()
        await wait_until(lambda: status(200), "it recovers by itself")
        assert (await service.post(ONE)).status_code == 202


async def test_several_workers_look_at_the_disk_of_their_engine(
    small_disk: Path, tmp_path: Path
) -> None:
    """The default engine needs more than there is."""
    given = {"DATA_DIR": str(small_disk), "WORKERS": "2"}
    async with spawned(tmp_path, **given) as process, httpx.AsyncClient(trust_env=False) as http:

        async def refused() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                answer = await http.post(f"{process.url}/ingest", json=ONE)
                return answer.status_code == 503 and "DATA_DIR" in answer.text
            return False

        await wait_until(refused, "it is refused", timeout=45)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_trimmed_text_stays_on_a_disk_without_room_for_a_rewrite(
    small_disk: Path, tmp_path: Path, workers: str
) -> None:
    """A rewrite that finds the disk full would end the engine, too."""
    given = {"DATA_DIR": str(small_disk), "WORKERS": workers, "TRIM_MAXAGE": "1h"}
    async with spawned(tmp_path, **given) as process:

        def base() -> list[Path]:
            return list(small_disk.glob("appendonlydir/*.base.aof"))

        await wait_until(base, "the engine has begun", timeout=45)
        first = base()
        os.utime(first[0], (0, 0))

        def put_off() -> bool:
            return "text that has left the stream stays on the disk" in process.log.read_text()

        await wait_until(put_off, "it is put off", timeout=45)
        assert base() == first
