"""A log over partitions on a real Cluster: its nodes share it, its slots move and its nodes die."""

import asyncio
import contextlib
import itertools
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.crc import key_slot

from logpipe.ids import StreamId
from logpipe.positions import EventId, parse_event_id
from logpipe.stream import partition_key
from tests.deployments import Cluster, Node, Replicated, eventually, id_of
from tests.helpers import wait_until
from tests.servers import Service, serving, subscribed
from tests.test_redis_faults import BOTH, said

COUNT = 4
KEYS = [partition_key("logs", number, COUNT) for number in range(COUNT)]
SOURCES = [f"service-{number}" for number in range(12)]

NUMBERS = itertools.count()
"""Of the events of all tests here: what has had a number, as its key, is not sent again."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.started(node_timeout_ms=1000) as deployment:
        yield deployment
        # The last test here kills a node.


def owner_of(cluster: Cluster, key: str) -> Node:
    slot = key_slot(key.encode())
    for first, last, (_, port, *_), *_ in cluster.primaries[0].ask("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return next(each for each in cluster.nodes if each.port == port)
    raise AssertionError(f"nobody owns the slot of {key}")


@contextlib.asynccontextmanager
async def replicas(servers: Cluster | Replicated) -> AsyncIterator[list[Service]]:
    """Two of logpipe, each with collector and distributor."""
    async with contextlib.AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(
                serving(redis_addr=servers.url, role=BOTH, partitions=COUNT)
            )
            for _ in range(2)
        ]
        for service in services:
            await wait_until(said(service, "ok"), "it is ready")
        yield services


class Load:
    """Events of many sources, each with a key and repeated until it is acknowledged."""

    def __init__(self, services: list[Service]) -> None:
        self.services = services
        self.acknowledged: dict[str, str] = {}
        """The ids, and the messages under them."""
        self._numbers = NUMBERS

    async def send(self, source: str, number: int) -> None:
        message = f"{source} {number}"
        service = self.services[number % len(self.services)]
        while True:
            event = {"source": source, "message": message}
            answer = await service.post(event, Idempotency_Key=message)
            if answer.status_code == 202:
                break
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.02)
        self.acknowledged[answer.json()["id"]] = message

    async def _work(self, source: str, ended: asyncio.Event) -> None:
        while not ended.is_set():
            await self.send(source, next(self._numbers))

    async def more(self, count: int) -> None:
        wanted = len(self.acknowledged) + count
        await wait_until(lambda: len(self.acknowledged) >= wanted, f"{count} more", timeout=30)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        ended = asyncio.Event()
        tasks = [asyncio.create_task(self._work(source, ended)) for source in SOURCES]
        try:
            yield
        finally:
            ended.set()
            await asyncio.gather(*tasks)


class Follower:
    """A subscriber over connections to one replica after the other."""

    def __init__(self) -> None:
        self.ids: list[EventId] = []
        self.messages: list[str] = []
        self.gaps: list[dict[str, Any]] = []
        self.position = ""

    async def read(self, service: Service) -> None:
        """Connects, resuming, and reads for ever."""
        headers = {"Last-Event-ID": self.position} if self.position else None
        async with subscribed(service.url, headers) as reader:
            while True:
                event = await reader.next(timeout=30)
                self._note(event.event, event.id, json.loads(event.data))

    def _note(self, name: str, position: str, data: dict[str, Any]) -> None:
        self.position = position or self.position
        if name == "gap":
            self.gaps.append(data)
        if name == "message":
            self.ids.append(parse_event_id(data["id"], COUNT))
            self.messages.append(data["message"])

    @contextlib.asynccontextmanager
    async def reading(self, service: Service) -> AsyncIterator[None]:
        task = asyncio.create_task(self.read(service))
        try:
            await wait_until(lambda: self.position or task.done(), "it has a position")
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def untold(self, load: Load) -> list[str]:
        """What was acknowledged, and neither received nor told as missing."""
        received = set(self.ids)
        spans = [
            tuple(parse_event_id(gap[k], COUNT) for k in ("after", "before")) for gap in self.gaps
        ]
        return [
            text
            for text in load.acknowledged
            if (id_ := parse_event_id(text, COUNT)) not in received
            and not any(
                a.partition == id_.partition and bare(a) < bare(id_) < bare(b) for a, b in spans
            )
        ]

    def check(self, load: Load) -> None:
        """Each once, under the id that was acknowledged, and each source in order."""
        assert self.untold(load) == []
        assert len(set(self.ids)) == len(self.ids)
        assert len(set(self.messages)) == len(self.messages), "a retry has doubled an event"
        told = dict(zip(map(str, self.ids), self.messages, strict=True))
        assert {id_: told[id_] for id_ in told if id_ in load.acknowledged}.items() <= (
            load.acknowledged.items()
        )
        numbers = defaultdict(list)
        for message in self.messages:
            source, _, number = message.rpartition(" ")
            numbers[source].append(int(number))
        assert all(each == sorted(each) for each in numbers.values())


def bare(id_: EventId) -> StreamId:
    return StreamId(id_.ms, id_.seq)


async def move(cluster: Cluster, key: str) -> None:
    """Moves the slot of a partition to another node."""
    slot, source = key_slot(key.encode()), owner_of(cluster, key)
    target = next(node for node in cluster.primaries if node is not source)
    source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", id_of(target))
    await wait_until(lambda: owner_of(cluster, key) is target, "the slot has moved")


async def test_the_nodes_of_a_cluster_share_the_log_and_all_that_belongs_to_it(
    cluster: Cluster,
) -> None:
    async with replicas(cluster) as services:
        load = Load(services)
        async with load.running():
            await load.more(100)
        body = [{"source": source, "message": "batch"} for source in SOURCES]
        for service in services:
            answer = await service.post(body, Idempotency_Key="the batch")
            assert answer.json()["accepted"] == len(SOURCES)
        counts = {key: owner_of(cluster, key).client.xlen(key) for key in KEYS}
        assert sum(counts.values()) == len(load.acknowledged) + len(SOURCES)
        assert all(counts.values())
        assert len({owner_of(cluster, key).port for key in KEYS}) > 1
        for node in cluster.primaries:
            own = {key for key in KEYS if owner_of(cluster, key) is node}
            kept = [str(key, "ascii") for key in node.ask("KEYS", "*")]
            assert all(any(each in key for each in own) for key in kept), kept


async def test_readers_that_hop_between_replicas_while_slots_move_lack_nothing(
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
                    await move(cluster, KEYS[hop % COUNT])
                await load.more(20)
        async with followers[0].reading(services[0]), followers[1].reading(services[1]):
            await wait_until(lambda: not any(f.untold(load) for f in followers), "all came", 20)
        for follower in followers:
            follower.check(load)
            assert follower.gaps == []
        history = await services[0].http.get("/events", params={"limit": 5000, "order": "asc"})
        ids = [parse_event_id(event["id"], COUNT) for event in history.json()["events"]]
        assert ids == sorted(ids)
        assert {*followers[0].ids} <= {*ids}


async def test_shared_delivery_gives_each_event_of_all_partitions_to_one_subscriber(
    cluster: Cluster,
) -> None:
    async with replicas(cluster) as services:
        load, ready = Load(services), asyncio.Semaphore(0)
        got: list[str] = []

        async def work(service: Service) -> None:
            async with subscribed(service.url, delivery="shared", group="workers") as reader:
                await reader.named("hello")
                ready.release()
                while True:
                    event = await reader.next(timeout=30)
                    if event.event == "message":
                        got.append(json.loads(event.data)["id"])

        tasks = [asyncio.create_task(work(service)) for service in services]
        for _ in tasks:
            await asyncio.wait_for(ready.acquire(), 10)
        async with load.running():
            await load.more(100)
        await wait_until(lambda: {*got} >= load.acknowledged.keys(), "all were given", 20)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(got) == len(load.acknowledged)
        assert len({id_.rpartition("-")[2] for id_ in got}) == COUNT


async def test_when_a_node_dies_its_replica_is_followed_and_the_gaps_are_told(
    cluster: Cluster,
) -> None:
    """The last of this file: the node stays dead."""
    key = KEYS[0]
    while owner_of(cluster, key) is not cluster.owner:
        slot, owner = key_slot(key.encode()), owner_of(cluster, key)
        target = id_of(cluster.owner)
        owner.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target)
        await wait_until(lambda: owner_of(cluster, key) is cluster.owner, "the slot has moved")
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
            await wait_until(lambda: not follower.untold(load), "all has come or is told", 20)
        assert {gap["reason"] for gap in follower.gaps} <= {"reset"}
        dead = {
            number for number, each in enumerate(KEYS) if owner_of(cluster, each) is cluster.replica
        }
        assert {int(gap["after"].rpartition("-")[2]) for gap in follower.gaps} <= dead
