"""The ACL lines of docs/security.md: enough for all that a role does, and for nothing else."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.exceptions import ResponseError

from logpipe.continuity import Cursor
from logpipe.ids import END, START, StreamId
from logpipe.problems import Unavailable
from logpipe.redis_address import Node as Place
from logpipe.redis_address import RedisAddress
from logpipe.stream import Append, Stream
from logpipe.stream.scripts import companion_key
from tests.deployments import Deployment, Replicated
from tests.helpers import wait_until
from tests.servers import Process, Reader, Service, Valkey, free_port, serving, spawned, subscribed
from tests.streams import NAME, events, once, stream_at
from tests.test_redis_faults import said

TEXT = (Path(__file__).parents[2] / "docs/security.md").read_text(encoding="utf-8")
PASSWORD = "s3cr3t-0f-redis"
LINES = {
    name: [word.replace("PASSWORD", PASSWORD) for word in words.split()]
    for name, words in re.findall(r"^    user (logpipe-\w+) (.+)$", TEXT, re.MULTILINE)
}
ALSO = {
    name.strip(): words.replace("\\|", "|").split()
    for name, words in re.findall(r"^\| ([^|]+) \| `([~+].+)` \|$", TEXT, re.MULTILINE)
}
ROLES = ("logpipe-collector", "logpipe-distributor", "logpipe-all")
EVENT = {"source": "api", "message": "hello"}
PRIMARY = companion_key(NAME, "primary", "")
BEGIN = StreamId(0, 1)
TO_RECORD = {"xinfo|stream", "lrange", "rpush", "ltrim"}
"""What it takes to record that the stream has lost its end."""


def commands_of(words: list[str]) -> set[str]:
    return {word[1:] for word in words if word.startswith("+")}


@pytest.fixture
def guarded(own_valkey: Valkey) -> Iterator[Valkey]:
    """A Valkey whose users are those of the document."""
    for name, words in LINES.items():
        ask(own_valkey, "ACL", "SETUSER", name, *words)
    yield own_valkey
    assert refused(own_valkey) == []


def ask(server: Valkey, *words: Any) -> Any:
    return server.client.execute_command(*words)  # type: ignore[no-untyped-call]


def refused(server: Valkey) -> list[Any]:
    """What Redis has refused to any user, as its log of such things has it."""
    return [
        (entry["username"], entry["object"], entry["context"]) for entry in server.client.acl_log()
    ]


def called(server: Valkey) -> set[str]:
    """All commands that were called since the last look."""
    stats = server.client.info("commandstats")
    ask(server, "CONFIG", "RESETSTAT")
    return {name.removeprefix("cmdstat_") for name in stats}


def url_of(server: Valkey, name: str) -> str:
    return f"unix://{name}:{PASSWORD}@{server.socket}"


def address_of(server: Valkey, name: str) -> RedisAddress:
    return RedisAddress(socket=str(server.socket), username=name, password=PASSWORD)


# -- no more than is needed ------------------------------------------------------------------------


def test_there_is_a_line_for_each_role_that_speaks_to_redis() -> None:
    assert tuple(LINES) == ROLES
    assert len(ALSO) == 4


def test_the_line_for_all_roles_is_the_sum_of_the_others() -> None:
    *apart, together = (set(LINES[name]) for name in ROLES)
    assert set.union(*apart) == together


def lose_the_end(server: Valkey) -> None:
    """Has the server come back, under another replication id where it is no node of a Cluster,
    without what it had and with entries of another program."""
    server.client.delete(NAME)
    with contextlib.suppress(ResponseError):
        ask(server, "REPLICAOF", "127.0.0.1", "1")
        ask(server, "REPLICAOF", "NO", "ONE")
    for id_ in ("1-1", f"{2**43}-1", *["*"] * 50):
        server.client.xadd(NAME, {"event": b'{"source":"a","message":"b"}'}, id=id_)
    server.client.client_kill_filter(_type="normal", skipme=True)


async def done(attempt: Awaitable[object]) -> bool:
    """Whether that went by a connection that is still open."""
    with contextlib.suppress(Unavailable):
        await attempt
        return True
    return False


async def write(stream: Stream, server: Valkey) -> None:
    """Every verb of a collector."""
    await stream._monitor.check()
    await stream.append([Append(events(100))])
    lose_the_end(server)
    await wait_until(lambda: done(stream.append([Append(events(100))])), "it is appended")
    for _ in range(2):
        await stream.append([Append(events(2), once("key"), b"r")])
    await stream.trimming.size()
    await stream.trimming.keep_newest(50, 10_000)
    await stream.trimming.drop_older(3_600_000)


async def read(stream: Stream, server: Valkey) -> None:
    """Every verb of a distributor."""
    await stream._monitor.check()
    server.client.delete(NAME)
    server.client.xadd(NAME, {"event": b'{"source":"a","message":"b"}'})
    page = await stream.read(Cursor(BEGIN), 10)
    lose_the_end(server)
    await wait_until(lambda: done(stream.read(Cursor(BEGIN), 10)), "it is read")
    await stream.follow(page.end, 10)
    await stream.wait(page.end.id)
    await stream.bounds()
    await stream.size()
    await stream.sign_outs.exchange({"0" * 32: int(time.time()) + 60, "1" * 32: 1})
    await stream.range(START, END, 10)
    await stream.range(START, END, 10, newest_first=True)


async def share(stream: Stream, server: Valkey) -> None:
    """Every verb of consumer groups, and what happens to a group that was trimmed unread."""
    groups = stream.groups
    assert await groups.hold("worker", "me", 60_000)
    await groups.create("g", BEGIN)
    first = await groups.read("g", "worker", 3)
    ids = [entry.id for entry in first.entries]
    assert await groups.pending("g") == 3
    await groups.acknowledge("g", ids[:1])
    await groups.keep("g", "worker", ids)
    server.client.xtrim(NAME, maxlen=20, approximate=False)
    lost = await groups.read("g", "worker", 3)
    assert lost.losses
    await groups.hand_back("g", lost.losses)
    await groups.history("g", "worker", 10, START)
    await groups.release("g", "worker", ids)
    claimed = await groups.claim("g", "other", 0, 10)
    assert claimed.entries
    assert claimed.losses
    await groups.lose("g", [claimed.entries[0].id])
    await groups.told("g", lost.losses)
    await groups.acknowledge("g", [entry.id for entry in claimed.entries])
    await end_and_return(stream)
    await groups.sweep("g", "worker", 0)
    await groups.leave("g", "worker")
    await groups.let_go("worker", "me")


async def end_and_return(stream: Stream) -> None:
    """A group of its own with a filter, whose member acknowledges for itself, and which ends."""
    groups = stream.groups
    entered = await groups.records.enter("h", "p", 60_000, "source:a")
    await groups.create("h", BEGIN, may_end=True)
    assert (await groups.records.enter("h", "p", 60_000, None)).made
    read = await groups.read("h", "worker", 2, entered.generation)
    moved = await groups.move("h", "worker", "member", [entry.id for entry in read.entries])
    assert len(moved.moved) == 2
    assert await groups.holdings("h") == {"member": 2}
    assert await groups.held("h", "member", 10) == {*moved.moved}
    assert await groups.acknowledge_of("h", "member", moved.moved) == moved.moved
    await groups.records.exit("h", "p")
    assert await groups.records.due(0, 10) == await groups.records.due(10**9, 0) == ["h"]
    assert await groups.records.end("h")
    await groups.records.enter("h", "p", 60_000, None)
    await groups.create("h", None)


async def test_each_command_of_a_line_is_used_and_no_verb_is_refused(guarded: Valkey) -> None:
    """So a command that logpipe has given up leaves the line as well."""
    server = guarded
    server.client.xadd(NAME, {"event": b'{"source":"a","message":"b"}'})
    called(server)
    async with stream_at(address_of(server, "logpipe-collector")) as stream:
        await write(stream, server)
    assert commands_of(LINES["logpipe-collector"]) <= called(server)
    assert refused(server) == []
    async with stream_at(address_of(server, "logpipe-distributor")) as stream:
        await read(stream, server)
        await share(stream, server)
    assert commands_of(LINES["logpipe-distributor"]) <= called(server)


# -- all that is needed ----------------------------------------------------------------------------


@asynccontextmanager
async def roles(
    server: Valkey, folder: Path, apart: bool
) -> AsyncIterator[tuple[dict[str, str], list[Process]]]:
    """URLs by role, of processes of their own or of one, under the users of the document."""
    common = {
        "TRIM_MAXLEN": "300",
        "TRIM_MAXBYTES": "75%",
        "TRIM_MAXAGE": "1h",
        "CANARY_S": "0.2",
        "PENDING_IDLE_MS": "500",
        "LOG_FORMAT": "text",
    }
    if not apart:
        environ = {"ROLE": "all", "REDIS_ADDR": url_of(server, "logpipe-all"), **common}
        async with spawned(folder, **environ) as process:
            await process.ready()
            yield dict.fromkeys(("collector", "distributor", "ui"), process.url), [process]
        return
    collector = {"ROLE": "collector", "REDIS_ADDR": url_of(server, "logpipe-collector")}
    distributor = {"ROLE": "distributor", "REDIS_ADDR": url_of(server, "logpipe-distributor")}
    async with (
        spawned(folder, **common, **collector) as writing,
        spawned(folder, **common, **distributor) as reading,
        spawned(folder, ROLE="ui", COLLECTOR_URL=writing.url, DISTRIBUTOR_URL=reading.url) as shown,
    ):
        processes = [writing, reading, shown]
        await asyncio.gather(*(each.ready() for each in processes))
        names = ("collector", "distributor", "ui")
        yield {name: each.url for name, each in zip(names, processes, strict=True)}, processes


async def work(urls: dict[str, str], server: Valkey) -> None:
    """What senders and readers of all kinds do."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        post = f"{urls['collector']}/ingest"
        async with (
            subscribed(urls["distributor"]) as broadcast,
            subscribed(urls["distributor"], delivery="shared") as worker,
        ):
            for reader in (broadcast, worker):
                await reader.named("hello")
            assert (await http.post(post, json=EVENT)).status_code == 202
            once = {"Idempotency-Key": "k"}
            ids = [(await http.post(post, json=EVENT, headers=once)).json() for _ in range(2)]
            assert ids[0] == ids[1]
            await asyncio.gather(sent_ones(broadcast, 2), sent_ones(worker, 2))
        # The group is gone for a while, and what it has not read is trimmed.
        for _ in range(15):
            assert (await http.post(post, json=[EVENT] * 100)).json()["accepted"] == 100
        async with subscribed(urls["distributor"], delivery="shared") as late:
            assert (await late.named("gap"))["reason"] == "trimmed"
        async with subscribed(urls["distributor"], last_event_id="1-1") as resumed:
            assert (await resumed.named("gap"))["reason"] == "trimmed"
        await asyncio.gather(*(taken_over(urls, number) for number in range(2)))
        events = await http.get(f"{urls['distributor']}/events?limit=5")
        assert len(events.json()["events"]) == 5
        assert (await http.get(f"{urls['distributor']}/subscribers")).status_code == 200
        for path in ("/", "/ui/rows", "/ui/volume"):
            assert (await http.get(urls["ui"] + path)).status_code == 200
        await wait_until(lambda: status_is_whole(http, urls), "the status page shows Redis")
        await wait_until(lambda: canaries_seen(http, urls), "canaries were seen")


async def sent_ones(reader: Reader, count: int) -> None:
    """Waits for so many of the test's events, between which there may be canaries."""
    found = 0
    while found < count:
        (event,) = await reader.until(1)
        found += event["source"] == EVENT["source"]


async def taken_over(urls: dict[str, str], number: int) -> None:
    async with subscribed(urls["distributor"], delivery="shared", group=f"g{number}") as reader:
        await reader.named("hello")


async def status_is_whole(http: httpx.AsyncClient, urls: dict[str, str]) -> bool:
    answer = await http.get(f"{urls['ui']}/ui/status")
    return answer.status_code == 200 and "All roles serve." in answer.text


async def canaries_seen(http: httpx.AsyncClient, urls: dict[str, str]) -> bool:
    text = (await http.get(f"{urls['distributor']}/metrics")).text
    match = re.search(r"^logpipe_canary_latency_seconds_count (\S+)", text, re.MULTILINE)
    return match is not None and float(match[1]) > 1


@pytest.mark.parametrize("apart", [True, False])
async def test_all_that_the_roles_do_is_allowed(
    guarded: Valkey, tmp_path: Path, apart: bool
) -> None:
    async with roles(guarded, tmp_path, apart) as (urls, processes):
        await work(urls, guarded)
        for process in processes:
            assert not re.search(r"NOPERM|may not|ERROR|refused", process.log.read_text())
            assert PASSWORD not in process.log.read_text()


async def test_in_a_cluster_the_lines_and_their_additions_are_enough() -> None:
    with Deployment.started() as deployment:
        bus = ("--cluster-port", str(free_port()))
        node = deployment.node("--cluster-enabled", "yes", *bus)
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await wait_until(
            lambda: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"), "the Cluster serves"
        )
        for role, verbs in (("logpipe-collector", write), ("logpipe-distributor", read)):
            node.ask("ACL", "SETUSER", role, *LINES[role], *ALSO["Cluster"])
            node.client.xadd(NAME, {"event": b'{"source":"a","message":"b"}'})
            node.client.set(PRIMARY, "0" * 40)  # as before a failover
            called(node)
            address = RedisAddress(
                cluster=(Place("127.0.0.1", node.port),), username=role, password=PASSWORD
            )
            async with stream_at(address) as stream:
                await verbs(stream, node)
            assert called(node) >= TO_RECORD
            assert refused(node) == []


async def test_to_wait_for_replicas_needs_its_word(guarded: Valkey) -> None:
    ask(guarded, "ACL", "SETUSER", "logpipe-collector", *ALSO["`ACK_REPLICAS`"])
    assert b"wait" in ask(guarded, "ACL", "GETUSER", "logpipe-collector")[5]
    assert ask(guarded, "ACL", "DRYRUN", "logpipe-collector", "WAIT", 1, 1) == b"OK"


async def test_behind_a_sentinel_the_lines_and_their_additions_are_enough() -> None:
    """The Sentinel has a user of its own."""
    with Replicated.started(replicas=0, sentinels=1) as deployment:
        (primary,), (sentinel,) = deployment.data, deployment.sentinels
        for name in ROLES[:2]:
            primary.ask("ACL", "SETUSER", name, *LINES[name])
        primary.client.xadd(NAME, {"event": b'{"source":"a","message":"b"}'})
        primary.client.set(PRIMARY, "0" * 40)  # as before a failover
        sentinel.ask(
            "ACL", "SETUSER", "finder", "on", f">{PASSWORD}", *ALSO["the login of Sentinels"]
        )
        called(primary)
        login = f"?sentinel_username=finder&sentinel_password={PASSWORD}"
        collector, distributor = (
            deployment.url.replace("//", f"//{name}:{PASSWORD}@") + login for name in ROLES[:2]
        )
        async with (
            serving(redis_addr=collector, role="collector", trim_maxlen=100) as writing,
            serving(redis_addr=distributor, role="distributor") as reading,
        ):
            for service in (writing, reading):
                await wait_until(said(service, "ok"), "it is ready")
            await send_and_read(writing, reading)
        assert called(primary) >= TO_RECORD
        assert refused(primary) == refused(sentinel) == []


async def send_and_read(writing: Service, reading: Service) -> None:
    """What senders and readers do, a group that was trimmed unread among them."""
    async with (
        subscribed(reading.url) as broadcast,
        subscribed(reading.url, delivery="shared", group="g") as worker,
    ):
        for reader in (broadcast, worker):
            await reader.named("hello")
        for _ in range(2):
            assert (await writing.post([EVENT] * 2, Idempotency_Key="k")).status_code == 202
        for reader in (broadcast, worker):
            assert len(await reader.until(2)) == 2
    for _ in range(12):
        assert (await writing.post([EVENT] * 100)).json()["accepted"] == 100
    async with subscribed(reading.url, delivery="shared", group="g") as late:
        assert (await late.named("gap"))["reason"] == "trimmed"
    assert len((await reading.http.get("/events?limit=5")).json()["events"]) == 5


# -- nothing else ----------------------------------------------------------------------------------

FORBIDDEN = (
    "FLUSHALL", "FLUSHDB", "CONFIG SET maxmemory 1", "CONFIG GET *", "KEYS *", "SCAN 0",
    "SHUTDOWN", "DEBUG SLEEP 1", "ACL LIST", "MONITOR", "SAVE", "BGSAVE", "REPLICAOF a 1",
    "MODULE LOAD x", "MIGRATE a 1 logs 0 1", "SCRIPT FLUSH", "FUNCTION FLUSH", "CLIENT KILL ID 1",
    "CLIENT LIST", "SELECT 1", "SWAPDB 0 1", "DEL logs", "UNLINK logs", "RENAME logs x",
    "EXPIRE logs 1", "RESTORE logs 0 x", "DUMP logs", "SORT logs", "PUBLISH a b", "SUBSCRIBE a",
    "XSETID logs 1-1", "XDEL logs 1-1", "XGROUP DESTROY logs g", "CLUSTER RESET", "LATENCY RESET",
    "XADD other * event x", "XRANGE other - +", "XREAD STREAMS other 0", "GET other", "GET logs2",
    "SET other x", "GET {logs}:other:x", "GET {logs2}:once:x", "EVAL x 1 other", "TYPE other",
)  # fmt: skip


@pytest.mark.parametrize("name", ROLES)
def test_what_no_role_does_is_refused(guarded: Valkey, name: str) -> None:
    own = (
        {"DEL logs", "EXPIRE logs 1", "XGROUP DESTROY logs g"}
        if name != "logpipe-collector"
        else set()
    )
    for command in FORBIDDEN:
        answer = ask(guarded, "ACL", "DRYRUN", name, *command.split())
        assert (answer != b"OK") is (command not in own), command


def test_a_collector_cannot_read_groups_and_a_distributor_cannot_write(guarded: Valkey) -> None:
    for name, command in (
        ("logpipe-collector", "XREADGROUP GROUP g c STREAMS logs >"),
        ("logpipe-collector", "XGROUP CREATE logs g $"),
        ("logpipe-collector", "GET {logs}:lost:x"),
        ("logpipe-distributor", "XADD logs * event x"),
        ("logpipe-distributor", "XTRIM logs MAXLEN 0"),
        ("logpipe-distributor", "GET {logs}:once:x"),
    ):
        assert ask(guarded, "ACL", "DRYRUN", name, *command.split()) != b"OK", command


@pytest.mark.parametrize(
    "missing",
    [
        {f"~{{{NAME}}}:primary:*", f"~{{{NAME}}}:failovers:*"},
        {"+lrange"},
        {"+set", "+rpush", "+ltrim"},
    ],
)
async def test_without_the_right_to_record_ends_all_goes_on(
    own_valkey: Valkey, missing: set[str]
) -> None:
    """As with the lines of earlier versions."""
    words = [word for word in LINES["logpipe-all"] if word not in missing]
    ask(own_valkey, "ACL", "SETUSER", "earlier", *words)
    async with serving(
        redis_addr=url_of(own_valkey, "earlier"), role="collector,distributor"
    ) as one:
        await wait_until(said(one, "ok"), "it is ready")
        async with subscribed(one.url) as reader:
            await reader.named("hello")
            assert (await one.post(EVENT)).status_code == 202
            await reader.until(1)
    assert not own_valkey.client.exists(PRIMARY)


async def test_a_line_that_lacks_a_word_is_noticed(own_valkey: Valkey) -> None:
    """The control: what Redis refuses is seen by these tests."""
    ask(own_valkey, "ACL", "SETUSER", "short", *LINES["logpipe-all"], "-xrange")
    async with serving(redis_addr=url_of(own_valkey, "short"), role="collector,distributor"):
        await wait_until(lambda: refused(own_valkey), "it is in the log")
    assert ("short", "xrange") in {entry[:2] for entry in refused(own_valkey)}
