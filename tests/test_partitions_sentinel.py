"""A log over partitions behind real Sentinels: all of them fail over at once."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from logpipe.ids import from_wire
from logpipe.positions import EventId, event_id, parse_event_id
from tests.deployments import Node, Replicated, cut_off
from tests.helpers import wait_until
from tests.test_partitions_cluster import COUNT, KEYS, Follower, Load, replicas
from tests.test_redis_faults import following


@pytest.fixture
def replicated() -> Iterator[Replicated]:
    with Replicated.started(down_after_ms=1000) as deployment:
        yield deployment


def ids_at(node: Node) -> list[set[EventId]]:
    """What a server has of each partition."""
    return [
        {event_id(from_wire(id_), number) for id_, _ in node.ask("XRANGE", key, "-", "+")}
        for number, key in enumerate(KEYS)
    ]


def newest_of(follower: Follower) -> list[EventId]:
    """What a reader has had last of each partition."""
    return [max(id_ for id_ in follower.ids if id_.partition == n) for n in range(COUNT)]


def check_gaps(gaps: list[dict[str, Any]], last: list[EventId], first: list[EventId]) -> None:
    """One of each partition was told: between what was had last and the first after it."""
    assert Counter(gap["reason"] for gap in gaps) == {"reset": COUNT}
    told = {gap["after"]: (gap["before"], gap["count"]) for gap in gaps}
    wanted = zip(last, first, strict=True)
    assert told == {str(after): (str(before), None) for after, before in wanted}


async def test_a_failover_keeps_what_was_replicated_and_tells_the_rest_of_each_partition(
    replicated: Replicated,
) -> None:
    """To a reader that stays connected, and to those that resume by their positions elsewhere: one
    that had what is lost, and one that had nothing of it. So it is with a group, which gets all at
    least once. The control: something is lost of each partition."""
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
                safe = {parse_event_id(id_, COUNT) for id_ in load.acknowledged}
                await wait_until(lambda: ids_at(replica) == ids_at(primary), "it is replicated")
                async with had_not.reading(services[0]):
                    await wait_until(lambda: safe <= {*had_not.ids}, "it has all so far")
                cut_off(primary, replica)
                async with load.running():
                    await load.more(100)
                await wait_until(
                    lambda: not stays.untold(load) and not had_it.untold(load), "all came"
                )
                await wait_until(lambda: load.acknowledged.keys() <= {*group.ids}, "to the group")
            last = {id(follower): newest_of(follower) for follower in followers}
            lost = {parse_event_id(id_, COUNT) for id_ in load.acknowledged} - safe
            async with load.running():
                primary.kill()
                await load.more(200)
            async with had_it.reading(services[0]), had_not.reading(services[1]):
                await wait_until(
                    lambda: not any(each.untold(load) for each in followers), "all is told", 20
                )
            await wait_until(lambda: load.acknowledged.keys() <= {*group.ids}, "by the group, too")
    there = ids_at(replica)
    kept = {id_ for part in there for id_ in part}
    assert safe <= kept
    assert not lost & kept
    assert {id_.partition for id_ in lost} == {*range(COUNT)}
    first = [min(part - safe) for part in there]
    for follower in followers:
        assert len({*follower.ids}) == len(follower.ids)
        check_gaps(follower.gaps, last[id(follower)], first)
    check_gaps(group.gaps, [max(part & safe) for part in there], first)
