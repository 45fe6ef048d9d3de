"""Two replicas of logpipe while Redis moves and fails over: readers go from one to the other."""

import asyncio
import contextlib
import itertools
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from logpipe.ids import StreamId, from_wire, parse_id
from tests.deployments import Cluster, Node, Replicated, cut_off, eventually, id_of
from tests.helpers import wait_until
from tests.promise import untold
from tests.servers import Service, serving, subscribed
from tests.test_redis_faults import BOTH, following, said

SOURCES = [f"service-{number}" for number in range(6)]

NUMBERS = itertools.count()
"""Of the events of all tests here: an idempotency key is used once."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.started(node_timeout_ms=1000) as deployment:
        yield deployment
        # The last test with it kills a node.


@pytest.fixture
def replicated() -> Iterator[Replicated]:
    with Replicated.started(down_after_ms=1000) as deployment:
        yield deployment


@contextlib.asynccontextmanager
async def replicas(servers: Cluster | Replicated) -> AsyncIterator[list[Service]]:
    """Two of logpipe, each with collector and distributor."""
    async with (
        serving(redis_addr=servers.url, role=BOTH) as one,
        serving(redis_addr=servers.url, role=BOTH) as other,
    ):
        for service in (one, other):
            await wait_until(said(service, "ok"), "it is ready")
        yield [one, other]


class Load:
    """Events of several sources, each with a key and repeated until it is acknowledged."""

    def __init__(self, services: list[Service]) -> None:
        self._services = services
        self.acknowledged: dict[str, str] = {}
        """The ids, and the messages under them."""

    async def _send(self, source: str, number: int) -> None:
        message = f"{source} {number}"
        service = self._services[number % len(self._services)]
        event = {"source": source, "message": message}
        while (answer := await service.post(event, Idempotency_Key=message)).status_code != 202:
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.02)
        self.acknowledged[answer.json()["id"]] = message

    async def more(self, count: int) -> None:
        """Returns when this many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        await wait_until(lambda: len(self.acknowledged) >= wanted, f"{count} more", timeout=30)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends meanwhile; at the end every event that was sent is acknowledged."""
        ended = asyncio.Event()

        async def work(source: str) -> None:
            while not ended.is_set():
                await self._send(source, next(NUMBERS))

        tasks = [asyncio.create_task(work(source)) for source in SOURCES]
        try:
            yield
        finally:
            ended.set()
            await asyncio.gather(*tasks)


class Follower:
    """A subscriber over connections to one replica after the other."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.messages: list[str] = []
        self.gaps: list[dict[str, Any]] = []
        self._cursor = ""

    async def _read(self, service: Service) -> None:
        headers = {"Last-Event-ID": self._cursor} if self._cursor else None
        async with subscribed(service.url, headers) as reader:
            while True:
                event = await reader.next(timeout=30)
                self._cursor = event.id or self._cursor
                if event.event == "gap":
                    self.gaps.append(json.loads(event.data))
                if event.event == "message":
                    self.ids.append(event.id)
                    self.messages.append(json.loads(event.data)["message"])

    @contextlib.asynccontextmanager
    async def reading(self, service: Service) -> AsyncIterator[None]:
        """Is connected meanwhile, after what it had before."""
        task = asyncio.create_task(self._read(service))
        try:
            await wait_until(lambda: self._cursor or task.done(), "it has a cursor")
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def has_all(self, load: Load) -> bool:
        """Whether each acknowledged event is received or reported as missing."""
        return not untold(load.acknowledged, self.ids, self.gaps)

    def check(self, load: Load) -> None:
        """Each event once, under the id that was acknowledged, in the order of the stream and of
        its source."""
        assert self.has_all(load)
        ids = [parse_id(id_) for id_ in self.ids]
        assert all(one < next_ for one, next_ in itertools.pairwise(ids))
        received = dict(zip(self.ids, self.messages, strict=True))
        assert {id_: received.get(id_) for id_ in load.acknowledged} == load.acknowledged
        assert len({*self.messages}) == len(self.messages), "a retry has doubled an event"
        numbers = defaultdict(list)
        for message in self.messages:
            source, _, number = message.rpartition(" ")
            numbers[source].append(int(number))
        assert all(each == sorted(each) for each in numbers.values())


def owner_of(cluster: Cluster) -> Node:
    return cluster.owner_by(cluster.primaries[0])


async def move(cluster: Cluster, target: Node) -> None:
    """Moves the stream's slot to another node."""
    slot = cluster.slot
    owner_of(cluster).ask(
        "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", id_of(target)
    )
    await wait_until(lambda: owner_of(cluster) is target, "the slot has moved")


async def test_readers_that_hop_while_slots_move_lack_nothing(
    cluster: Cluster,
) -> None:
    async with replicas(cluster) as services:
        load, followers = Load(services), [Follower(), Follower()]
        for follower in followers:  # where it begins
            async with follower.reading(services[0]):
                pass
        async with load.running():
            for hop in range(4):
                async with (
                    followers[0].reading(services[hop % 2]),
                    followers[1].reading(services[(hop + 1) % 2]),
                ):
                    await load.more(60)
                    owner = owner_of(cluster)
                    await move(cluster, next(n for n in cluster.primaries if n is not owner))
                await load.more(20)
        async with followers[0].reading(services[0]), followers[1].reading(services[1]):
            await wait_until(lambda: all(f.has_all(load) for f in followers), "all came", 20)
        for follower in followers:
            follower.check(load)
            assert follower.gaps == []
        history = await services[0].http.get("/events", params={"limit": 5000, "order": "asc"})
        assert [event["id"] for event in history.json()["events"]] == followers[0].ids


async def test_when_a_node_dies_a_reader_resumes_at_the_other_replica(cluster: Cluster) -> None:
    """The last with this Cluster: the node stays dead."""
    if owner_of(cluster) is not cluster.owner:
        await move(cluster, cluster.owner)
    eventually(
        lambda: cluster.replica.client.info("replication")["master_link_status"] == "up",
        "the replica is ready",
    )
    async with replicas(cluster) as services:
        load, follower = Load(services), Follower()
        async with follower.reading(services[0]), load.running():
            await load.more(100)
            cluster.owner.kill()
            await load.more(200)
        async with follower.reading(services[1]):
            await wait_until(lambda: follower.has_all(load), "all has come or is reported", 20)
        assert [gap["reason"] for gap in follower.gaps] == ["reset"]


def ids_at(node: Node) -> set[StreamId]:
    return {from_wire(id_) for id_, _ in node.ask("XRANGE", "logs", "-", "+")}


async def test_a_failover_is_reported_alike_by_both_replicas(replicated: Replicated) -> None:
    """To a reader that stays connected, and to those that resume elsewhere: one that had what is
    lost, and one that had nothing of it; and to a group, which gets all at least once. The control:
    something is lost."""
    primary, replica = replicated.data
    async with replicas(replicated) as services:
        load, stays, had_it, had_not = Load(services), *(Follower() for _ in range(3))
        followers = (stays, had_it, had_not)
        async with (
            stays.reading(services[0]),
            following(services[0], delivery="shared", group="g") as group,
        ):
            async with had_it.reading(services[1]):
                async with had_not.reading(services[1]), load.running():
                    await load.more(100)
                safe = {*load.acknowledged}
                await wait_until(lambda: ids_at(replica) == ids_at(primary), "it is replicated")
                async with had_not.reading(services[0]):
                    await wait_until(lambda: safe <= {*had_not.ids}, "it has all so far")
                cut_off(primary, replica)
                async with load.running():
                    await load.more(100)
                await wait_until(lambda: stays.has_all(load) and had_it.has_all(load), "all came")
                await wait_until(lambda: load.acknowledged.keys() <= {*group.ids}, "to the group")
            last = [follower.ids[-1] for follower in followers]
            lost = load.acknowledged.keys() - safe
            async with load.running():
                primary.kill()
                await load.more(200)
            async with had_it.reading(services[0]), had_not.reading(services[1]):
                await wait_until(
                    lambda: all(each.has_all(load) for each in followers), "all is reported", 20
                )
            await wait_until(lambda: load.acknowledged.keys() <= {*group.ids}, "by the group, too")
    kept = {str(id_) for id_ in ids_at(replica)}
    assert lost
    assert safe <= kept
    assert not lost & kept
    first = min(kept - safe, key=parse_id)
    for follower, after in zip(followers, last, strict=True):
        assert len({*follower.ids}) == len(follower.ids)
        assert follower.gaps == [reset(after, first)]
    assert group.gaps == [reset(max(kept & safe, key=parse_id), first)]


def reset(after: str, before: str) -> dict[str, Any]:
    return {"reason": "reset", "after": after, "before": before, "count": None}
