"""The primary while another node takes its place, by what Sentinels say and by real servers."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from logpipe.problems import Unavailable
from logpipe.redis_address import Node, RedisAddress
from logpipe.stream import finding
from logpipe.stream.pool import Pool
from logpipe.stream.primary import Found, Primary
from tests import deployments
from tests.deployments import Deployment


class Answers:
    """What whoever is asked for the primary says now; without a node no one answers."""

    def __init__(self, node: Node | None, *, failing_over: bool = False) -> None:
        self.node = node
        self.failing_over = failing_over

    async def ask(self) -> Found:
        if self.node is None:
            raise RedisConnectionError("no Sentinel answers")
        return Found(self.node, self.failing_over)

    async def aclose(self) -> None:
        pass


async def nothing_in_common(_: Node, __: Node) -> str:
    return ""


def primary_by(answers: Answers, **more: Any) -> Primary:
    given = {"grace_s": 0, "compare": nothing_in_common, **more}
    return Primary(answers.ask, answers.aclose, **given)


def node_of(server: deployments.Node) -> Node:
    return Node("127.0.0.1", server.port)


@pytest.fixture
def pair() -> Iterator[tuple[deployments.Node, deployments.Node]]:
    """A primary and its replica, which has all."""
    with Deployment.started() as deployment:
        quickly = ("--appendonly", "no", "--repl-diskless-sync-delay", "0")
        primary = deployment.node(*quickly)
        replica = deployment.node(*quickly)
        replica.follow(primary)
        yield primary, replica


async def test_appends_wait_for_the_end_of_a_failover(
    pair: tuple[deployments.Node, deployments.Node],
) -> None:
    old, new = pair
    answers = Answers(node_of(old), failing_over=True)
    primary = primary_by(answers)
    appending = Pool(RedisAddress(), 1, 10, primary, holds=True)
    await primary.look()
    append = asyncio.create_task(appending.call("XADD", "logs", "*", "event", "{}"))
    await primary.look()  # asked again, it is still going on
    assert not append.done()
    new.ask("REPLICAOF", "NO", "ONE")
    answers.node, answers.failing_over = node_of(new), False
    await primary.look()
    await asyncio.wait_for(append, 10)
    assert (old.client.xlen("logs"), new.client.xlen("logs")) == (0, 1)
    await appending.aclose()
    await primary.aclose()


async def test_an_append_waits_no_longer_than_it_may() -> None:
    answers = Answers(Node("127.0.0.1", 1), failing_over=True)
    primary = primary_by(answers)
    await primary.look()
    with pytest.raises(Unavailable, match="a failover is in progress"):
        await primary.settled(0.05)
    answers.failing_over = False
    await primary.look()
    await primary.settled(0.05)
    await primary.aclose()


async def test_a_failover_that_does_not_end_is_not_waited_for() -> None:
    answers = Answers(Node("127.0.0.1", 1), failing_over=True)
    primary = primary_by(answers, hold_s=0.05)
    await primary.look()
    while not primary._settled.is_set():
        await primary.look()
    answers.failing_over = False
    await primary.look()
    answers.failing_over = True
    await primary.look()
    assert not primary._settled.is_set()  # the next one is another one
    await primary.aclose()


async def test_what_is_spared_is_that_of_the_primary_of_now() -> None:
    """Also where it is not known yet that another has taken over."""
    one, other = Node("127.0.0.1", 1), Node("127.0.0.1", 2)

    async def compare(old: Node, new: Node) -> str:
        await asyncio.sleep(0)
        return f"{old.port} {new.port}"

    answers = Answers(one)
    primary = primary_by(answers, compare=compare)
    assert await primary.spared() == ""
    answers.node = other
    primary.learn(one, ConnectionResetError())
    assert await primary.spared() == "1 2"
    await primary.aclose()


async def test_without_a_sentinel_that_answers_appends_go_on() -> None:
    answers = Answers(Node("127.0.0.1", 1), failing_over=True)
    primary = primary_by(answers)
    await primary.look()
    answers.node = None
    with pytest.raises(RedisConnectionError, match="no Sentinel answers"):
        await primary.look()
    await primary.settled(0.05)
    await primary.aclose()


async def test_each_other_node_counts_as_a_failover() -> None:
    one, other = Node("127.0.0.1", 1), Node("127.0.0.1", 2)
    answers = Answers(one)
    primary = primary_by(answers)
    for node, failovers in ((one, 0), (one, 0), (other, 1), (one, 2)):
        answers.node = node
        await primary.look()
        assert (primary.latest, primary.failovers) == (node, failovers)
    await primary.aclose()


async def test_a_primary_that_follows_has_cost_nothing(
    pair: tuple[deployments.Node, deployments.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair
    monkeypatch.setattr(finding, "COMPARE_S", 20)
    id_ = str(old.client.info("replication")["master_replid"])
    new.ask("REPLICAOF", "NO", "ONE")
    comparing = asyncio.create_task(compared(old, new))
    await asyncio.to_thread(old.follow, new)
    now = str(new.client.info("replication")["master_replid"])
    assert await comparing == f"{id_} {now}"


async def test_a_primary_that_had_more_has_cost_it(
    pair: tuple[deployments.Node, deployments.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair
    monkeypatch.setattr(finding, "COMPARE_S", 20)
    new.ask("REPLICAOF", "NO", "ONE")
    old.client.xadd("logs", {"event": "{}"})
    comparing = asyncio.create_task(compared(old, new))
    await asyncio.to_thread(old.follow, new)
    assert await comparing == ""


async def test_a_primary_that_goes_on_or_is_dead_proves_nothing(
    pair: tuple[deployments.Node, deployments.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair
    monkeypatch.setattr(finding, "COMPARE_S", 0.1)
    new.ask("REPLICAOF", "NO", "ONE")
    assert await compared(old, new) == ""
    old.kill()
    assert await compared(old, new) == ""


async def compared(old: deployments.Node, new: deployments.Node) -> str:
    return await finding._compare(RedisAddress(), node_of(old), node_of(new))
