"""A real Cluster: its slots move and its nodes die, under load."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import pytest

from logpipe.continuity import Cursor
from logpipe.ids import parse_id
from logpipe.problems import Unavailable
from logpipe.redis_address import parse_redis_addr
from logpipe.stream.primary import FOLLOW_S
from tests.deployments import Cluster, Node, eventually, id_of
from tests.helpers import fair_time, wait_until
from tests.load import loaded
from tests.servers import Service, serving, subscribed
from tests.streams import add, stream_at
from tests.test_redis_faults import ANSWERED_S, BOTH, EVENT, health, ready, said, unavailable

TAKEN_OVER_S = 5.0
"""The node timeout of one second, the vote, and what a busy machine adds."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.started(node_timeout_ms=1000) as deployment:
        yield deployment
        # The last test here kills the owner.


def other_than(cluster: Cluster, owner: Node) -> Node:
    return next(node for node in cluster.primaries if node is not owner)


def owner_of(cluster: Cluster) -> Node:
    return cluster.owner_by(cluster.primaries[0])


def agreed(cluster: Cluster, owner: Node) -> bool:
    return all(cluster.owner_by(node) is owner for node in cluster.primaries)


class Keyed:
    """Requests with idempotency keys, each repeated until it is acknowledged."""

    def __init__(self, service: Service, name: str) -> None:
        self._service = service
        self._name = name
        self.acknowledged: dict[str, str] = {}
        self.refused = 0

    async def send(self, key: str) -> None:
        event = {"source": "keyed", "message": key}
        while (answer := await self._service.post(event, Idempotency_Key=key)).status_code != 202:
            assert answer.status_code == 503, answer.text
            self.refused += 1
            await asyncio.sleep(0.01)
        self.acknowledged[answer.json()["id"]] = key

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        ended = False

        async def work() -> None:
            number = 0
            while not ended:
                number += 1
                await self.send(f"{self._name} {number}")

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            ended = True
            await task


async def migrate(cluster: Cluster, source: Node, target: Node) -> float:
    """Moves the stream's slot as a whole, as Valkey can do since 9.0; the seconds for which its
    keys were on two nodes: none."""
    slot = cluster.slot
    source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", id_of(target))
    await wait_until(lambda: agreed(cluster, target), "the slot has moved")
    return 0.0


async def migrate_key_by_key(cluster: Cluster, source: Node, target: Node) -> float:
    """Moves the slot as one does with Redis and older Valkeys: the stream first, then the rest."""
    began = fair_time()
    migrate_stream(cluster, source, target)
    await migrate_rest(cluster, source, target)
    return fair_time() - began


def migrate_stream(cluster: Cluster, source: Node, target: Node) -> None:
    """Leaves the keys beside the stream where they are, for now."""
    slot = cluster.slot
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", id_of(source))
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", id_of(target))
    source.ask("MIGRATE", "127.0.0.1", target.port, "logs", 0, 5000)


async def migrate_rest(cluster: Cluster, source: Node, target: Node) -> None:
    """Moves what is left of the slot, and the slot."""
    slot = cluster.slot
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
        await asyncio.sleep(0.02)
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    for node in (target, source, *cluster.primaries):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", id_of(target))


async def test_all_keys_are_in_the_slot_of_the_stream(cluster: Cluster) -> None:
    async with serving(redis_addr=cluster.url, role=BOTH) as service:
        await ready(service)
        for number in range(20):
            assert (await service.post(EVENT, Idempotency_Key=f"{number}")).status_code == 202
    owner = owner_of(cluster)
    keys = {key for node in cluster.primaries for key in node.client.scan_iter()}
    assert len(keys) > 20
    assert keys == set(owner.ask("CLUSTER", "GETKEYSINSLOT", cluster.slot, 1000))


@pytest.mark.parametrize("move", [migrate, migrate_key_by_key])
async def test_while_the_slot_moves_under_load_nothing_is_lost_or_doubled(
    cluster: Cluster, move: Any
) -> None:
    """Nor refused, unless its keys were on two nodes for longer than a request may wait: those with
    an idempotency key need several of them, and others share an append with these."""
    async with loaded(cluster.url) as (service, load, delivered):
        keyed = Keyed(service, move.__name__)
        apart = 0.0
        async with keyed.running():
            for _ in range(4):
                owner = owner_of(cluster)
                apart += await move(cluster, owner, other_than(cluster, owner))
                await load.more(50)
        assert apart > FOLLOW_S or load.refused == keyed.refused == 0
        assert load.outage < 1 + apart
        assert (await health(service))["code"] == 200
        load.acknowledged |= keyed.acknowledged
    assert delivered.gaps == []
    assert sorted(delivered.ids[-100:]) == delivered.ids[-100:]
    messages = [m for m in delivered.messages.values() if m.startswith(move.__name__)]
    assert len(messages) == len(set(messages)) == len(keyed.acknowledged)


async def test_a_request_whose_keys_are_on_two_nodes_for_too_long_is_refused_in_time(
    cluster: Cluster,
) -> None:
    """One that needs the stream alone is not; the other's repetition is stored, once."""
    async with serving(redis_addr=cluster.url, role=BOTH) as service:
        await ready(service)
        owner = owner_of(cluster)
        target = other_than(cluster, owner)
        before = owner.client.xlen("logs")
        migrate_stream(cluster, owner, target)
        started = fair_time()
        refused = await service.post(EVENT, Idempotency_Key="two nodes")
        assert fair_time() - started < ANSWERED_S
        assert (refused.status_code, refused.json()["redis"]) == (503, "away")
        assert (await service.post(EVENT)).status_code == 202
        await migrate_rest(cluster, owner, target)
        for _ in range(2):
            assert (await service.post(EVENT, Idempotency_Key="two nodes")).status_code == 202
        assert target.client.xlen("logs") == before + 2


async def test_a_stream_that_has_moved_before_its_slot_is_read(cluster: Cluster) -> None:
    async with stream_at(parse_redis_addr(cluster.url)) as stream:
        (first,) = await add(stream)
        await stream.read(Cursor(first), 10)
        owner = owner_of(cluster)
        target = other_than(cluster, owner)
        migrate_stream(cluster, owner, target)
        try:
            assert (await stream.read(Cursor(first), 10)).gap is None
            assert (await stream.bounds()).last == first
            assert len(await stream.range(first, first, 1)) == 1
        finally:
            await migrate_rest(cluster, owner, target)


async def test_a_new_connection_follows_a_slot_that_has_moved(cluster: Cluster) -> None:
    """Without a monitor, which would notice it as well."""
    async with stream_at(parse_redis_addr(cluster.url)) as stream:
        await add(stream)
        owner = owner_of(cluster)
        await migrate(cluster, owner, other_than(cluster, owner))
        owner.client.client_kill_filter(_type="normal", skipme=True)
        await wait_until(lambda: done(add(stream)), "the connection that was closed is noticed")
        await add(stream)


async def done(attempt: Awaitable[object]) -> bool:
    with contextlib.suppress(Unavailable):
        await attempt
        return True
    return False


@pytest.mark.parametrize("move", [migrate, migrate_key_by_key])
async def test_a_group_goes_on_where_the_slot_has_moved(cluster: Cluster, move: Any) -> None:
    async with loaded(cluster.url) as (service, load, _):
        async with subscribed(service.url, delivery="shared", group="g") as reader:
            await reader.named("hello")
            first = await reader.until(20)
            owner = owner_of(cluster)
            await move(cluster, owner, other_than(cluster, owner))
            events = [*first, *await reader.until(100)]
        ids = [parse_id(event["id"]) for event in events]
        assert len(set(ids)) == len(ids)
        wanted = {parse_id(id_) for id_ in load.acknowledged}
        assert {id_ for id_ in wanted if ids[0] <= id_ <= ids[-1]} <= set(ids)


async def test_when_the_owner_dies_its_replica_is_followed(cluster: Cluster) -> None:
    """The last of this file: the owner stays dead."""
    owner = owner_of(cluster)
    if owner is not cluster.owner:
        await migrate(cluster, owner, cluster.owner)
    eventually(
        lambda: cluster.replica.client.info("replication")["master_link_status"] == "up",
        "the replica is ready",
    )
    async with loaded(cluster.url) as (service, load, delivered):
        cluster.owner.kill()
        await unavailable(service, "away")
        await load.more(100)
        await wait_until(said(service, "ok"), "it says so")
        assert load.outage < TAKEN_OVER_S
        assert load.refused > 0
        assert load.slowest < ANSWERED_S
    assert [gap["reason"] for gap in delivered.gaps] == ["reset"]
