"""What was trimmed by age leaves the disk: a real engine, and all files of its folder."""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import redis.asyncio

from logpipe.engine import Engine, Rewriting
from logpipe.engine.rewriting import MAX_PATIENCE_S, PATIENCE_S, REWRITE
from logpipe.ids import StreamId
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.redis_address import RedisAddress
from logpipe.settings import StreamBytes
from logpipe.stream import Append, Stream
from logpipe.trimmer import Trimmer
from tests.helpers import wait_until
from tests.servers import serving, spawned
from tests.streams import NAME, stream_at

SECRET = "ada3@example.org"
AGE_MS = 3_600_000


class Stage(NamedTuple):
    folder: Path
    engine: Engine
    stream: Stream
    client: Any
    """Of the engine."""

    def rewriting(self, **given: Any) -> Rewriting:
        before = given.pop("before", lambda: self.stream.groups.lose_trimmed(0))
        no_room = given.pop("no_room", lambda: "")
        others = {"max_age_ms": AGE_MS, "every_s": 0, **given}
        return Rewriting(
            self.folder, self.engine.socket, self.stream.left, before, no_room, **others
        )

    async def add(self, text: str, age_ms: int = 0) -> None:
        """Adds an event that came so long ago."""
        id_ = f"{int(time.time() * 1000) - age_ms}-*"
        event = f'{{"source":"a","message":"{text}"}}'
        await self.client.xadd(NAME, {"event": event}, id=id_)

    async def trim(self) -> None:
        await Trimmer(
            self.stream.trimming, Metrics(), max_bytes=StreamBytes(), max_age_ms=AGE_MS
        ).trim()

    async def rewritten(self, rewriting: Rewriting) -> None:
        """Has it rewritten, and waits until that is done."""
        before = self.base
        await wait_until(lambda: self._looked(rewriting, before), "it is rewritten")

    async def _looked(self, rewriting: Rewriting, before: str) -> bool:
        await rewriting.look()
        return self.base != before

    @property
    def base(self) -> str:
        manifest = self.folder / "appendonlydir/appendonly.aof.manifest"
        return manifest.read_text().splitlines()[0]

    def on_disk(self, text: str = SECRET) -> list[str]:
        """The files that hold a text."""
        return on_disk(self.folder, text)


def on_disk(folder: Path, text: str = SECRET) -> list[str]:
    """The files in a folder that hold a text."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the engine removes old ones meanwhile
            if path.is_file() and text.encode() in path.read_bytes():
                found.append(path.name)
    return found


@contextlib.asynccontextmanager
async def stage(folder: Path, *, as_commands: bool = True) -> AsyncIterator[Stage]:
    engine = Engine(folder, as_commands=as_commands)
    await engine.start()
    try:
        address = RedisAddress(socket=str(engine.socket))
        async with (
            stream_at(address) as stream,
            redis.asyncio.Redis(unix_socket_path=str(engine.socket)) as client,
        ):
            yield Stage(folder, engine, stream, client)
    finally:
        await engine.stop()


async def test_text_that_was_trimmed_by_age_is_in_no_file(tmp_path: Path) -> None:
    """Also where it shares a node of the stream with entries that are kept."""
    async with stage(tmp_path) as on:
        rewriting = on.rewriting()
        await on.add(SECRET, age_ms=AGE_MS + 1_000)
        await on.add("kept")
        assert on.on_disk()
        await on.trim()
        await on.rewritten(rewriting)
        await wait_until(lambda: not on.on_disk(), "old files are removed")
        assert on.on_disk("kept")
    async with stage(tmp_path) as on:
        page = await on.stream.raw_range(StreamId(0, 0), StreamId(2**63, 0), 10)
        assert len(page) == 1
        assert not on.on_disk()


@pytest.mark.parametrize("how", [["XTRIM", NAME, "MAXLEN", "1"], ["XDEL", NAME, "5-1"]])
async def test_text_that_left_the_stream_otherwise_is_in_no_file(
    tmp_path: Path, how: list[str]
) -> None:
    async with stage(tmp_path) as on:
        rewriting = on.rewriting()
        await on.client.xadd(NAME, {"event": SECRET}, id="5-1")
        await on.add("kept")
        await on.rewritten(rewriting)
        assert on.on_disk()
        await on.client.execute_command(*how)
        await on.rewritten(rewriting)
        await wait_until(lambda: not on.on_disk(), "old files are removed")


@pytest.mark.parametrize("how", ["by itself", "for the disk's sake"])
async def test_text_is_in_no_file_that_the_engine_rewrites_otherwise(
    tmp_path: Path, how: str
) -> None:
    """Such a file is young, so that the hourly rewriting is put off by an hour."""
    async with stage(tmp_path) as on:
        before = on.base
        await on.add(SECRET, age_ms=AGE_MS + 1_000)
        await on.add("kept")
        await on.trim()
        if how == "by itself":
            await on.client.config_set("auto-aof-rewrite-min-size", "1kb")
            await on.add("x" * 2_000)
        else:
            await on.client.bgrewriteaof()
        await wait_until(lambda: on.base != before, "it is rewritten")
        await wait_until(lambda: not on.on_disk(), "old files are removed")
        assert on.on_disk("kept")
        rewritten = on.base
        await on.rewriting(every_s=3600).look()
        await asyncio.sleep(0.1)
        assert on.base == rewritten


async def test_a_snapshot_of_an_engine_without_an_age_is_rewritten_at_once(tmp_path: Path) -> None:
    async with stage(tmp_path, as_commands=False) as on:
        await on.client.config_set("rdbcompression", "no")
        before = on.base
        await on.add(SECRET, age_ms=AGE_MS + 1_000)
        await on.add("kept")
        await on.trim()
        await on.client.bgrewriteaof()
        await wait_until(lambda: on.base != before, "it is rewritten")
        assert on.on_disk()
    async with stage(tmp_path) as on:
        await on.rewritten(on.rewriting(every_s=3600))
        await wait_until(lambda: not on.on_disk(), "old files are removed")
        assert on.on_disk("kept")


async def test_workers_rewrite_the_file_of_their_engine(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    torn = data / "torn.aof"
    torn.write_text(SECRET)
    os.utime(torn, (0, 0))
    given = {"WORKERS": "2", "TRIM_MAXAGE": "3s", "DATA_DIR": str(data)}
    async with (
        spawned(tmp_path, **given) as process,
        httpx.AsyncClient(base_url=process.url, trust_env=False) as http,
    ):
        await process.ready()
        event = {"source": "a", "message": SECRET}
        assert (await http.post("/ingest", json=event)).status_code == 202
        assert on_disk(data)

        async def trimmed() -> bool:
            return not (await http.get("/events")).json()["events"]

        await wait_until(trimmed, "it is trimmed")
        for path in data.glob("appendonlydir/*.base.*"):
            os.utime(path, (time.time() - 7_200,) * 2)
        await wait_until(lambda: not on_disk(data), "it is in no file", timeout=45)
        assert not torn.exists()
        process.popen.terminate()
        assert await process.exit_status() == 0


async def test_without_room_on_the_disk_it_is_not_rewritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    why = "the disk is small"
    async with stage(tmp_path) as on:
        rewriting = on.rewriting(no_room=lambda: why)
        before = on.base
        for _ in range(3):
            await rewriting.look()
            await asyncio.sleep(0.05)
        assert on.base == before
        assert caplog.text.count("the disk is small; text that has left the stream stays") == 1
        why = ""
        await on.rewritten(rewriting)


async def test_it_is_rewritten_after_something_was_trimmed_and_else_not(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        rewriting = on.rewriting()
        await on.rewritten(rewriting)  # what a process before has trimmed is not known
        first = on.base
        for _ in range(3):
            await rewriting.look()
            await asyncio.sleep(0.05)
        assert on.base == first
        await on.add("one", age_ms=AGE_MS + 1_000)
        await on.trim()
        await on.rewritten(rewriting)


async def test_it_is_rewritten_once_in_an_hour_also_by_the_next_process(tmp_path: Path) -> None:
    ahead_s = 0.0

    def now() -> float:
        return time.time() + ahead_s

    async with stage(tmp_path) as on:
        await on.rewritten(on.rewriting())
        first = on.base
        for minutes in (0, 30, 59):
            rewriting = on.rewriting(every_s=3600, now=now)
            ahead_s = minutes * 60
            await rewriting.look()
            await asyncio.sleep(0.1)
            assert on.base == first
        ahead_s = 3600 + 1
        await on.rewritten(rewriting)


async def test_a_clock_that_was_set_back_holds_nothing_up(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        await on.rewritten(on.rewriting(every_s=3600, now=lambda: time.time() - 86_400))


async def test_an_engine_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        rewriting = on.rewriting()
        rewriting._socket = tmp_path / "no.sock"
        await rewriting.look()
        rewriting._socket = on.engine.socket
        await on.rewritten(rewriting)


async def test_a_redis_that_is_away_is_waited_for(tmp_path: Path) -> None:
    away = iter([True, False])

    async def before() -> None:
        if next(away, False):
            raise Unavailable("away", "x")

    async with stage(tmp_path) as on:
        rewriting = on.rewriting(before=before)
        await rewriting.look()
        await on.rewritten(rewriting)


@contextlib.asynccontextmanager
async def idle_engine(path: Path) -> AsyncIterator[list[bytes]]:
    """A socket that agrees with every command and does nothing; the commands."""
    commands: list[bytes] = []

    async def agree(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands.append((await reader.readline()).strip())
        writer.write(b"+OK\r\n")
        writer.close()

    async with await asyncio.start_unix_server(agree, path):
        yield commands


@pytest.mark.parametrize(
    ("manifest", "asked"),
    [
        (None, []),  # the engine is just replacing it
        ("file appendonly.aof.1.base.aof seq 1 type b\n", []),  # or that file
        ("file appendonly.aof.1.incr.aof seq 1 type i\n", [REWRITE]),
    ],
)
async def test_only_a_manifest_says_what_is_in_use(
    tmp_path: Path, manifest: str | None, asked: list[bytes]
) -> None:
    async def nothing() -> int:
        return 0

    (tmp_path / "appendonlydir").mkdir()
    if manifest is not None:
        (tmp_path / "appendonlydir/appendonly.aof.manifest").write_text(manifest)
    async with idle_engine(tmp_path / "idle.sock") as commands:
        idle = tmp_path / "idle.sock"
        rewriting = Rewriting(
            tmp_path, idle, nothing, nothing, lambda: "", max_age_ms=AGE_MS, every_s=60
        )
        await rewriting.look()
    assert commands == asked


async def test_a_copy_that_cannot_be_removed_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "torn.aof").mkdir()
    async with stage(tmp_path) as on:
        await on.rewriting(max_age_ms=-1).look()
    assert "torn.aof is to be removed and cannot be" in caplog.text


async def test_a_key_of_another_type_is_an_error_and_no_end(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        await on.client.set(NAME, "mine")
        with pytest.raises(Unavailable):
            await on.stream.groups.lose_trimmed(0)
        await on.rewriting().look()


async def test_a_rewriting_that_fails_is_logged_and_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ahead_s = 0.0
    idle = tmp_path / "idle.sock"
    async with stage(tmp_path) as on, idle_engine(idle):
        rewriting = on.rewriting(now=lambda: time.time() + ahead_s)
        rewriting._socket = idle  # of an engine that does nothing
        await rewriting.look()
        rewriting._socket = on.engine.socket
        before = on.base
        await rewriting.look()
        assert (on.base, caplog.text) == (before, "")
        ahead_s = PATIENCE_S + 1
        await on.rewritten(rewriting)
    assert "not rewritten yet" in caplog.text


async def test_after_each_failure_the_next_rewriting_is_later(tmp_path: Path) -> None:
    now_s = start_s = time.time()
    idle = tmp_path / "idle.sock"
    asked: list[float] = []
    async with stage(tmp_path) as on, idle_engine(idle) as commands:
        rewriting = on.rewriting(now=lambda: now_s)
        rewriting._socket = idle  # of an engine that does nothing
        while len(asked) < 7:
            await rewriting.look()
            if len(commands) > len(asked):
                asked.append(now_s - start_s)
            now_s += PATIENCE_S
        pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
        most = MAX_PATIENCE_S
        expected = [PATIENCE_S, 2 * PATIENCE_S, 4 * PATIENCE_S, 8 * PATIENCE_S, most, most]
        assert pauses == pytest.approx(expected)
        rewriting._socket = on.engine.socket
        now_s += most
        await on.rewritten(rewriting)
        await rewriting.look()
        assert rewriting._failures == 0


async def test_the_copy_of_a_torn_file_goes_once_it_is_too_old(tmp_path: Path) -> None:
    torn = tmp_path / "torn.aof"
    async with stage(tmp_path) as on:
        torn.write_text(SECRET)
        rewriting = on.rewriting()
        await rewriting.look()
        assert torn.exists()
        old_s = time.time() - AGE_MS / 1000 - 1
        os.utime(torn, (old_s, old_s))
        await rewriting.look()
        assert not torn.exists()


async def test_what_a_killed_rewriting_has_left_goes_at_the_next_start(tmp_path: Path) -> None:
    left = ["temp-rewriteaof-17.aof", "temp-rewriteaof-bg-17.aof", "temp-17.rdb"]
    for name in left:
        (tmp_path / name).write_text(SECRET)
    others = tmp_path / "temp-notes.txt"
    others.write_text("mine")
    async with stage(tmp_path) as on:
        assert on.on_disk() == []
        assert others.exists()


async def test_what_was_trimmed_while_pending_stays_a_loss(tmp_path: Path) -> None:
    """The rewritten file does not say that it was pending."""
    async with stage(tmp_path) as on:
        rewriting = on.rewriting()
        await on.add("old", age_ms=AGE_MS + 60_000)
        await on.add("kept")
        await on.stream.groups.create("g", StreamId(0, 0))
        await on.stream.groups.read("g", "dead", 1)
        await on.trim()
        await on.rewritten(rewriting)
    async with stage(tmp_path) as on:
        claimed = await on.stream.groups.claim("g", "c", 0, 10)
        assert len(claimed.losses) == 1


async def test_entries_trimmed_while_pending_are_lost_before_a_rewriting(
    tmp_path: Path,
) -> None:
    """The engine may rewrite its file by itself at any time."""
    async with stage(tmp_path) as on:
        await on.add("old", age_ms=AGE_MS + 60_000)
        await on.add("kept")
        await on.stream.groups.create("g", StreamId(0, 0))
        await on.stream.groups.read("g", "dead", 1)
        await on.trim()
        before = on.base
        await on.rewriting(every_s=3600).look()
        await on.client.bgrewriteaof()
        await wait_until(lambda: on.base != before, "it is rewritten")
    async with stage(tmp_path) as on:
        claimed = await on.stream.groups.claim("g", "c", 0, 10)
        assert len(claimed.losses) == 1


async def test_without_a_stream_there_is_no_loss(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        await on.stream.groups.lose_trimmed(0)


async def test_a_process_with_an_age_rewrites_and_others_do_not(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks()}

    given = {"redis_addr": f"embedded://{tmp_path}"}
    async with serving(**given):
        assert "rewriting" not in names()
    async with serving(**given, trim_maxage="1h") as service:
        assert "rewriting" in names()
        appended = await service.post({"source": "a", "message": "b"})
        assert appended.status_code == 202


async def test_appends_go_on_while_it_is_rewritten(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        rewriting = on.rewriting()
        event = b'{"source":"a","message":"b"}'
        before = on.base
        await rewriting.look()
        for _ in range(20):
            await on.stream.append([Append([event] * 10)])
        await wait_until(lambda: on.base != before, "it is rewritten")
    async with stage(tmp_path) as on:
        assert await on.client.xlen(NAME) == 200
