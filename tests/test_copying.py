"""A stream that moves to another Redis: what readers and groups find there."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.exceptions import RedisError

from logpipe.continuity import Cursor
from logpipe.ids import parse_id
from logpipe.stream.copying import Copied, NotCopiedError, StreamCopy, opened
from tests.deployments import REDIS, Redis, Replicated
from tests.servers import Valkey, spawned, subscribed
from tests.streams import NAME, address_of, event, events, stream_at


@pytest.fixture(params=["valkey", "redis"])
def target(request: pytest.FixtureRequest) -> Iterator[Valkey]:
    if request.param == "redis" and shutil.which(REDIS) is None:
        pytest.skip("NOT TESTED: no redis-server is installed")
    with (Redis if request.param == "redis" else Valkey).started() as server:
        yield server


def nothing(_: int, __: int) -> None:
    """Progress that is not shown."""


async def copied(source: Valkey, target: Valkey, progress: Any = nothing) -> Copied:
    async with (
        opened(address_of(source), NAME) as one,
        opened(address_of(target), NAME) as other,
    ):
        return await StreamCopy(one, other, NAME).run(progress)


def fill(valkey: Valkey, count: int) -> list[str]:
    with valkey.client.pipeline(transaction=False) as pipe:
        for each in events(count):
            pipe.xadd(NAME, {"event": each})
        return [id_.decode() for id_ in pipe.execute()]


def counters(server: Valkey) -> dict[str, Any]:
    info: dict[str, Any] = server.client.xinfo_stream(NAME)
    names = ("length", "last-generated-id", "entries-added", "max-deleted-entry-id")
    return {name: info[name] for name in names}


async def test_entries_keep_their_ids_and_counters(own_valkey: Valkey, target: Valkey) -> None:
    ids = fill(own_valkey, 3000)
    own_valkey.client.xtrim(NAME, maxlen=2500, approximate=False)
    own_valkey.client.xdel(NAME, ids[1000], ids[-1])
    found = await copied(own_valkey, target)
    assert found == Copied(2498, 2498, 0, 0, 0, 0, same=True, complete=True)
    assert counters(target) == counters(own_valkey)
    assert target.client.xrange(NAME) == own_valkey.client.xrange(NAME)


async def test_a_reader_goes_on_at_the_copy_without_a_gap(
    own_valkey: Valkey, target: Valkey
) -> None:
    ids = fill(own_valkey, 100)
    own_valkey.client.xtrim(NAME, maxlen=50, approximate=False)
    async with stream_at(address_of(own_valkey)) as stream:
        before = await stream.read(Cursor(parse_id(ids[59])), 20)
    await copied(own_valkey, target)
    target.client.xadd(NAME, {"event": event(100)})
    async with stream_at(address_of(target)) as stream:
        after = await stream.read(before.end, 100)
        gone = await stream.read(Cursor(parse_id(ids[9]), 10), 100)
    assert (before.gap, after.gap) == (None, None)
    messages = [entry.event.message for entry in (*before.entries, *after.entries)]
    assert messages == [f"number {number}" for number in range(60, 101)]
    assert gone.gap is not None
    assert (gone.gap.reason, gone.gap.count) == ("trimmed", 40)


async def test_groups_keep_their_place_and_what_is_pending(
    own_valkey: Valkey, target: Valkey
) -> None:
    ids = fill(own_valkey, 100)
    for name, read in (("one", 40), ("two", 0), ("all", 100)):
        own_valkey.client.xgroup_create(NAME, name, "0")
        if read:
            own_valkey.client.xreadgroup(name, "worker", {NAME: ">"}, count=read)
    own_valkey.client.xack(NAME, "one", *ids[:30])
    own_valkey.client.xack(NAME, "all", *ids)
    claim = ("XCLAIM", NAME, "one", "other", 0, *ids[30:32], "RETRYCOUNT", 5)
    own_valkey.client.execute_command(*claim)  # type: ignore[no-untyped-call]
    found = await copied(own_valkey, target)
    assert (found.groups, found.pending, found.complete) == (3, 10, True)
    for server in (own_valkey, target):
        groups = {each["name"]: each for each in server.client.xinfo_groups(NAME)}
        shown = [(name, groups[name]["pending"], groups[name]["lag"]) for name in sorted(groups)]
        assert shown == [(b"all", 0, 0), (b"one", 10, 60), (b"two", 0, 100)]
        pending = server.client.xpending_range(NAME, "one", "-", "+", 100)
        holders = [(each["consumer"], each["times_delivered"]) for each in pending]
        assert holders == [(b"other", 5)] * 2 + [(b"worker", 1)] * 8
    entries: Any = target.client.xreadgroup("one", "worker", {NAME: ">"}, count=1)
    assert entries[0][1][0][0].decode() == ids[40]


async def test_a_pending_entry_that_was_trimmed_is_kept_as_a_loss(
    own_valkey: Valkey, target: Valkey
) -> None:
    ids = fill(own_valkey, 10)
    own_valkey.client.xgroup_create(NAME, "one", "0")
    own_valkey.client.xreadgroup("one", "worker", {NAME: ">"}, count=5)
    own_valkey.client.xtrim(NAME, maxlen=7, approximate=False)
    await copied(own_valkey, target)
    (key,) = target.client.keys("*:lost:*")
    assert sorted(target.client.hkeys(key)) == [id_.encode() for id_ in ids[:3]]
    assert target.client.xpending(NAME, "one")["pending"] == 2


async def test_a_copy_that_was_interrupted_goes_on(own_valkey: Valkey, target: Valkey) -> None:
    fill(own_valkey, 5000)

    def interrupt(entries: int, length: int) -> None:
        assert length == 5000
        if entries > 1000:
            raise ConnectionError("cut")

    with pytest.raises(ConnectionError):
        await copied(own_valkey, target, interrupt)
    half = target.client.xlen(NAME)
    assert 1000 < half < 5000
    fill(own_valkey, 10)
    found = await copied(own_valkey, target)
    assert (found.entries, found.length, found.complete) == (5010 - half, 5010, True)
    assert target.client.xrange(NAME) == own_valkey.client.xrange(NAME)


async def test_a_second_copy_brings_what_has_changed(own_valkey: Valkey, target: Valkey) -> None:
    ids = fill(own_valkey, 100)
    for name in ("kept", "ended"):
        own_valkey.client.xgroup_create(NAME, name, "0")
    own_valkey.client.xreadgroup("kept", "worker", {NAME: ">"}, count=5)
    await copied(own_valkey, target)
    own_valkey.client.xgroup_destroy(NAME, "ended")
    own_valkey.client.xack(NAME, "kept", *ids[:4])
    own_valkey.client.xtrim(NAME, maxlen=90, approximate=False)
    fill(own_valkey, 10)
    found = await copied(own_valkey, target)
    assert (found.entries, found.groups, found.pending, found.complete) == (10, 1, 1, True)
    assert target.client.xrange(NAME) == own_valkey.client.xrange(NAME)


async def test_a_copy_while_others_send_says_what_has_come_since(
    own_valkey: Valkey, target: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(own_valkey, 100)
    compare = StreamCopy._compare

    async def after_more(copy: StreamCopy) -> Any:
        fill(own_valkey, 7)
        return await compare(copy)

    monkeypatch.setattr(StreamCopy, "_compare", after_more)
    found = await copied(own_valkey, target)
    assert (found.newer, found.same, found.complete) == (7, True, False)


async def test_copies_under_load_end_with_one_that_is_complete(
    own_valkey: Valkey, target: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes, is read by a group and is trimmed between two steps of a copy."""
    fill(own_valkey, 100)
    own_valkey.client.xgroup_create(NAME, "one", "0")
    copy_companions = StreamCopy._copy_companions

    async def after_more(copy: StreamCopy) -> Any:
        fill(own_valkey, 7)
        done = await copy_companions(copy)
        fill(own_valkey, 7)
        own_valkey.client.xreadgroup("one", "worker", {NAME: ">"}, count=1000)
        own_valkey.client.xtrim(NAME, maxlen=90, approximate=False)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(StreamCopy, "_copy_companions", after_more)
        for _ in range(2):
            found = await copied(own_valkey, target)
            assert (found.same, found.complete) == (True, True)
    found = await copied(own_valkey, target)
    assert (found.entries, found.pending, found.complete) == (0, 128, True)
    assert counters(target) == counters(own_valkey)
    (key,) = target.client.keys("*:lost:*")
    assert target.client.hlen(key) == 128 - 90


async def test_what_is_read_after_the_copy_is_no_loss(
    own_valkey: Valkey, target: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(own_valkey, 10)
    own_valkey.client.xgroup_create(NAME, "one", "0")
    take_counters = StreamCopy._take_counters

    async def then_more(copy: StreamCopy, info: Any) -> None:
        await take_counters(copy, info)
        fill(own_valkey, 5)
        own_valkey.client.xreadgroup("one", "worker", {NAME: ">"}, count=1000)

    with monkeypatch.context() as patch:
        patch.setattr(StreamCopy, "_take_counters", then_more)
        found = await copied(own_valkey, target)
        assert (found.newer, found.pending, found.same, found.complete) == (5, 10, True, False)
    assert not target.client.keys("*:lost:*")
    assert (await copied(own_valkey, target)).complete
    assert not target.client.keys("*:lost:*")
    assert target.client.xpending(NAME, "one")["pending"] == 15


async def test_a_copy_follows_a_source_that_has_trimmed_all_of_it(
    own_valkey: Valkey, target: Valkey
) -> None:
    """As a backup each night does."""
    fill(own_valkey, 100)
    await copied(own_valkey, target)
    fill(own_valkey, 50)
    own_valkey.client.xtrim(NAME, maxlen=50, approximate=False)
    found = await copied(own_valkey, target)
    assert (found.entries, found.length, found.complete) == (50, 50, True)
    target.client.xadd(NAME, {"event": event(99)})  # it is used now
    fill(own_valkey, 50)
    own_valkey.client.xtrim(NAME, maxlen=50, approximate=False)
    with pytest.raises(NotCopiedError, match="is no copy of the source's"):
        await copied(own_valkey, target)


async def test_keys_that_the_source_does_not_have_are_removed(
    own_valkey: Valkey, target: Valkey
) -> None:
    """Else an event whose key is known there would not be stored again."""
    fill(own_valkey, 10)
    for number in range(2500):
        own_valkey.client.set(f"{{{NAME}}}:once:{number}", "receipt", px=60_000)
    own_valkey.client.zadd(f"{{{NAME}}}:groups", {"one": 5})
    own_valkey.client.hset(f"{{{NAME}}}:group:one", mapping={"filter": "", "x": "y"})
    own_valkey.client.rpush(f"{{{NAME}}}:failovers:x", "1-0", "2-0")
    own_valkey.client.sadd(f"{{{NAME}}}:unknown", "of another program")
    for name in ("once:gone", "primary:mine", "consumer:mine", "unknown"):
        target.client.set(f"{{{NAME}}}:{name}", "x")
    target.client.set("{logs2}:once:x", "of another stream")
    assert (await copied(own_valkey, target)).keys == 2503
    left = set(target.client.keys())
    copies = {key for key in own_valkey.client.scan_iter() if b"unknown" not in key}
    mine = {b"{logs}:primary:mine", b"{logs}:consumer:mine", b"{logs2}:once:x"}
    assert {key for key in left if b":copied:" not in key} == copies | mine
    assert 0 < target.client.pttl(f"{{{NAME}}}:once:7") <= 60_000
    assert target.client.zscore(f"{{{NAME}}}:groups", "one") == 5
    assert target.client.lrange(f"{{{NAME}}}:failovers:x", 0, -1) == [b"1-0", b"2-0"]


async def test_a_server_is_not_copied_into_itself(own_valkey: Valkey) -> None:
    fill(own_valkey, 10)
    with pytest.raises(NotCopiedError, match="are the same server"):
        await copied(own_valkey, own_valkey)


async def test_an_entry_that_is_missing_in_the_copy_is_found(
    own_valkey: Valkey, target: Valkey
) -> None:
    ids = fill(own_valkey, 100)
    await copied(own_valkey, target)
    target.client.xdel(NAME, ids[50])
    assert not (await copied(own_valkey, target)).same


async def test_a_stream_of_another_origin_is_left_as_it_is(
    own_valkey: Valkey, target: Valkey
) -> None:
    fill(own_valkey, 10)
    target.client.xadd(NAME, {"event": event(99)})
    before = target.client.xrange(NAME)
    with pytest.raises(NotCopiedError, match="is no copy of the source's"):
        await copied(own_valkey, target)
    assert target.client.xrange(NAME) == before


async def test_a_source_without_the_stream_is_named(own_valkey: Valkey, target: Valkey) -> None:
    with pytest.raises(NotCopiedError, match="there is no stream 'logs' at the source"):
        await copied(own_valkey, target)


async def command(*words: str) -> tuple[int, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "logpipe", "copy", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


async def test_the_embedded_engine_s_stream_moves_to_a_redis(
    tmp_path: Path, target: Valkey
) -> None:
    """While it serves, and again when it has ended; a reader resumes at the other place."""
    ends = ("--from", f"embedded://{tmp_path / 'data'}", "--to", target.url)
    post = b"\n".join(events(500))
    headers = {"Content-Type": "application/x-ndjson"}
    async with spawned(tmp_path, DATA_DIR=str(tmp_path / "data")) as process:
        await process.ready()
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            assert (await http.post("/ingest", content=post, headers=headers)).status_code == 202
            status, said = await command(*ends)
            assert (status, said.splitlines()[-1]) == (0, "both are the same")
            async with subscribed(process.url, since="earliest") as reader:
                (*_, last) = await reader.until(500)
            assert (await http.post("/ingest", content=post, headers=headers)).status_code == 202
        process.popen.terminate()
        assert await process.exit_status() == 0
    status, said = await command(*ends)
    assert status == 0
    assert said.splitlines() == [
        "copied 500 entries; there are 1,000 now, 0 groups with 0 pending, and 0 other keys",
        "both are the same",
    ]
    async with spawned(tmp_path, REDIS_ADDR=target.url) as process:
        await process.ready()
        async with subscribed(process.url, {"Last-Event-ID": last["id"]}) as reader:
            assert len(await reader.until(500)) == 500


async def test_a_copy_goes_to_the_primary_that_sentinels_name(own_valkey: Valkey) -> None:
    ids = fill(own_valkey, 100)
    with Replicated.started() as deployment:
        status, said = await command("--from", own_valkey.url, "--to", deployment.url)
        assert (status, said.splitlines()[-1]) == (0, "both are the same")
        assert deployment.primary is not None
        assert deployment.primary.client.xlen(NAME) == len(ids)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--from", "redis://x", "--to", "http://x"), 2, "--to: must begin with"),
        (("--from", "redis://127.0.0.1:1", "--to", "redis://x"), 1, "--from: redis://127.0.0.1:1"),
        (("--from", "embedded:///nowhere/at/all", "--to", "redis://x"), 1, "there are no data of"),
        (
            (
                "--from",
                "redis://x",
            ),
            2,
            "Missing option '--to'",
        ),
    ],
)
async def test_a_place_that_cannot_be_used_is_named(
    words: tuple[str, ...], status: int, said: str
) -> None:
    found = await command(*words)
    assert (found[0], said in found[1]) == (status, True)


async def test_a_server_that_goes_away_leaves_what_is_copied(own_valkey: Valkey) -> None:
    fill(own_valkey, 5000)
    with Valkey.started() as target:
        with pytest.raises(RedisError):
            await copied(own_valkey, target, lambda *_: own_valkey.kill())
        assert 0 < target.client.xlen(NAME) < 5000
