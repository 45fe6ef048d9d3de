"""The promise as a law over failovers: the real code at a Sentinel against the model.

Three servers replicate the stream; a schedule holds replicas back, promotes them, one after the
other or several before the Sentinel names one, and restarts the primary, which then has another
replication id.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import pytest
import redis
from hypothesis import strategies as st
from redis.exceptions import RedisError

from logpipe.ids import StreamId, parse_id
from logpipe.problems import Unavailable
from logpipe.redis_address import Node as Place
from logpipe.redis_address import RedisAddress
from logpipe.stream import Append, Stream, failovers, finding, primary
from logpipe.stream import stream as stream_module
from logpipe.stream.scripts import Script
from tests.deployments import MASTER, Deployment, Node
from tests.fake_sentinel import FakeSentinel
from tests.helpers import wait_until
from tests.model import LOST, MISCOUNTED, MISPLACED, Written
from tests.schedules import KEEP, TIMEOUT_S, AnySchedule, breaks, event_of, rule, run
from tests.streams import NAME, OFTEN, appended
from tests.tail import Tail

NOWHERE = 9
"""A port at which nothing listens."""
MET = "(known == before or unmet)", "unmet"
UNMET = "topology == 'sentinel' and string.find(before, '[^0]')", "false"
WITNESS = "parted or entry_before_lost_witness() or known_end_without_record()", "parted"
"""What `NOTE` records a failover by, and what there is without it: the primary that was followed
was met, or it was not, or an entry that was seen is missing."""
READ_S = 0.05
"""How long logpipe may read at a primary that has become a replica: more than a read waits."""

pytestmark = pytest.mark.timeout(TIMEOUT_S)


class Trio(Deployment):
    """Three servers, each of which may be the primary, and the Sentinel that names it."""

    def start(self, **options: int) -> None:
        """As `Deployment.start`."""
        self.sentinel = FakeSentinel()
        for _ in range(3):
            self.node(
                *("--appendonly", "yes", "--appendfsync", "no"),
                *("--repl-diskless-sync-delay", "0", "--hz", "100"),
                *("--repl-diskless-load", "flush-before-load"),  # no file to wait for
            )

    def close(self) -> None:
        """As `Deployment.close`."""
        super().close()
        self.sentinel.close()


class Collector:
    """A collector: a stream through which is appended, and its monitor."""

    def __init__(self, address: RedisAddress) -> None:
        intervals = OFTEN._replace(primary_s=0.01)
        self.stream = Stream(address, NAME, maxlen=10**6, block_ms=30, intervals=intervals)
        self._monitor = asyncio.create_task(self.stream.monitor())

    async def append(self, events: list[bytes]) -> None:
        """Appends, as a sender does that sends again after a 503."""

        async def done() -> bool:
            try:
                await appended(self.stream, Append(events))
            except Unavailable:
                return False
            return True

        await wait_until(done, "it is appended")

    async def die(self) -> None:
        """Ends it."""
        self._monitor.cancel()
        await asyncio.wait((self._monitor,))
        await self.stream.aclose()


class FailingOver(Tail):
    """Readers of a primary that other servers replace."""

    trio: Trio
    primary: Node
    collector: Collector

    def __init__(self) -> None:
        super().__init__()
        self.held_back: set[Node] = set()
        """The servers that follow none: they keep what they had then."""

    @property
    def client(self) -> redis.Redis:
        return self.primary.client

    @property
    def address(self) -> RedisAddress:
        place = Place("127.0.0.1", self.trio.sentinel.port)
        return RedisAddress(sentinels=(place,), service=MASTER)

    async def reset(self) -> None:
        self.primary = self.trio.nodes[0]
        promote(self.primary)
        self.trio.sentinel.name(self.primary.port)
        self.primary.client.flushall()
        await self._catch_up()
        self.collector = Collector(self.address)

    # -- the stream ---------------------------------------------------------------------------

    async def add(self, written: Sequence[str]) -> None:
        """As `Schedule.add`, by a collector."""
        self.recorded.clear()
        await self.collector.append([event_of(source) for source in written])
        ids = ids_at(self.primary, f"({self.log.last}")
        self.log.append([Written(i, s) for i, s in zip(ids, written, strict=True)])
        self.recorded.set()
        await self.noticed()

    @rule(keep=KEEP)
    def trim(self, keep: int) -> None:
        self.do(self._catch_up())
        super().trim(keep=keep)
        self.do(self._catch_up())

    @rule()
    def flush(self) -> None:
        self.do(self._catch_up())
        super().flush()
        self.do(self._catch_up())

    # -- the servers --------------------------------------------------------------------------

    @rule(where=st.integers(0, 2))
    def hold_back(self, where: int) -> None:
        """As where the link to the primary is cut."""
        node = self.trio.nodes[where]
        if node is not self.primary:
            follow(node, NOWHERE)
            self.held_back.add(node)

    @rule()
    def catch_up(self) -> None:
        self.do(self._catch_up())

    async def _catch_up(self) -> None:
        self.held_back.clear()
        await self._followed()

    async def _followed(self) -> None:
        """All that are not held back follow the primary, and have what it has."""
        for node in self.trio.nodes:
            if node is not self.primary and node not in self.held_back:
                await synced(node, self.primary)

    @rule(where=st.integers(0, 2), dead=st.booleans())
    def fail_over(self, where: int, dead: bool) -> None:
        """To one of the replicas, whatever it lacks; the old primary lives, or dies before."""
        self.do(self._fail_over(self.trio.nodes[where], dead))

    async def _fail_over(self, heir: Node, dead: bool) -> None:
        old = self.primary
        if heir is old:
            return
        if dead:
            old.kill()
        promote(heir)
        await self._named(heir)
        if dead:
            old.start()
        await self._catch_up()

    async def _named(self, heir: Node) -> None:
        """The Sentinel names a server; what it lacks is lost."""
        self.primary = heir
        self.held_back.discard(heir)
        await self._lost_to(heir)
        self.trio.sentinel.name(heir.port)

    async def _lost_to(self, heir: Node) -> None:
        """Only what a server has is kept."""
        self.log.keep(set(ids_at(heir)))
        if not heir.client.exists(NAME):
            self.log.flush()
        await asyncio.sleep(0.002)  # so that no id is given again

    @rule(
        hops=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=4),
        written=st.lists(st.sampled_from("ab"), max_size=10),
    )
    def fail_over_unseen(self, hops: list[tuple[int, bool]], written: list[str]) -> None:
        """Several times before the Sentinel names the last one, which may be the primary that it
        has named all the time. Meanwhile logpipe appends where it is."""
        self.do(self._fail_over_unseen(hops, written))

    async def _fail_over_unseen(self, hops: list[tuple[int, bool]], written: list[str]) -> None:
        hidden = named = self.primary
        met = False
        """Whether logpipe may have met a successor: then none who lacks its past is promoted."""
        for where, caught_up in hops:
            heir = self.trio.nodes[where]
            if heir is hidden:
                continue
            if written and named.role == "master":
                if heir is not named:
                    follow(heir, NOWHERE)
                await self.add(written)
            if heir is named or caught_up or met:
                met = met or heir is named
                if heir is named:
                    await self._lost_to(hidden)
                await synced(heir, hidden)
            if heir is named:
                await asyncio.sleep(READ_S)
            promote(heir)
            hidden = heir
        await self._named(hidden)
        await self._catch_up()

    @rule()
    def restart_primary(self) -> None:
        """It comes back with what it had, under another replication id: what shows that it has just
        replaced another primary is gone."""
        self.do(self._restart_primary())

    async def _restart_primary(self) -> None:
        await self.met()
        await wait_until(lambda: is_at_rest(self.primary), "all is in its file")
        self.primary.kill()
        await asyncio.sleep(0.01)
        self.primary.start()
        for node in self.trio.nodes:
            if node is not self.primary:
                follow(node, NOWHERE)  # tries again at once, not in a second
        await self._followed()

    @rule()
    def kill_the_collector(self) -> None:
        self.do(self._kill_the_collector())

    async def _kill_the_collector(self) -> None:
        await self.collector.die()
        self.collector = Collector(self.address)

    async def end(self) -> None:
        await super().end()
        await self.collector.die()


def ids_at(node: Node, after: str = "-") -> list[StreamId]:
    """The ids that a server has, all or those that follow one."""
    return [parse_id(id_.decode()) for id_, _ in node.ask("XRANGE", NAME, after, "+")]


def follow(node: Node, port: int) -> None:
    """A server follows the one at a port; as a Sentinel has it done, it leaves its clients."""
    _become(node, "127.0.0.1", port)


def promote(node: Node) -> None:
    """A server is a primary, as a Sentinel makes it one."""
    _become(node, "NO", "ONE")


def _become(node: Node, *whose: object) -> None:
    with node.client.pipeline(transaction=True) as pipe:
        for command in (("REPLICAOF", *whose), ("CLIENT", "KILL", "TYPE", "normal")):
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        pipe.execute()


async def synced(replica: Node, primary: Node) -> None:
    """Has a replica follow a primary; returns when it has all that the primary has."""
    await wait_until(lambda: is_at_rest(primary), "it can copy at once")
    follow(replica, primary.port)

    def same() -> bool:
        with contextlib.suppress(RedisError):
            mine, theirs = (node.client.info("replication") for node in (replica, primary))
            return bool(
                mine.get("master_link_status") == "up"
                and mine["master_replid"] == theirs["master_replid"]
                and mine["master_repl_offset"] == theirs["master_repl_offset"]
            )
        return False

    await wait_until(same, f"{replica.place} has all that {primary.place} has")


def is_at_rest(node: Node) -> bool:
    """Whether no process writes a copy of all: neither for a replica, nor a new append-only file,
    as a replica does after a full copy."""
    info = node.client.info("persistence")
    writing = "rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled"
    return not any(info[each] for each in writing)


@pytest.fixture(scope="module")
def trio() -> Iterator[Trio]:
    with Trio.started() as deployment:
        yield deployment


@pytest.fixture
def failing_over(trio: Trio) -> AnySchedule:
    """The machine over three servers."""
    return type("FailingOverHere", (FailingOver,), {"trio": trio})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing here waits for an outage longer than it must."""
    caplog.set_level("CRITICAL", logger="logpipe")
    monkeypatch.setattr(primary, "ASK_PAUSE_S", 0.005)
    monkeypatch.setattr(finding, "COMPARE_S", 0.1)
    monkeypatch.setattr(finding, "COMPARE_PAUSE_S", 0.005)


def test_ids_and_gaps_add_up_over_any_failovers(failing_over: AnySchedule) -> None:
    run(failing_over)


def leave_out(monkeypatch: pytest.MonkeyPatch, *parts: tuple[str, str]) -> None:
    """Has `NOTE` do without these conditions."""
    text = failovers.NOTE.text
    for part, rest in parts:
        assert text.count(part) == 1
        text = text.replace(part, rest)
    for module in (failovers, stream_module):
        monkeypatch.setattr(module, "NOTE", Script.of(text))


# The controls


def test_failovers_that_are_not_recorded_break_the_law(
    failing_over: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out(monkeypatch, MET, UNMET, WITNESS)
    assert breaks(failing_over, LOST, MISCOUNTED, MISPLACED)


def test_an_unmet_failover_not_recorded_breaks_the_law(
    failing_over: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out(monkeypatch, UNMET, WITNESS)
    assert breaks(failing_over, LOST, MISCOUNTED, MISPLACED)
