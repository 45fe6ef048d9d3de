"""Failovers behind real Sentinels, under load."""

from collections.abc import Awaitable, Callable, Iterator

import pytest

from logpipe.stream.failovers import Failovers
from tests.deployments import MASTER, Replicated, eventually
from tests.helpers import wait_until
from tests.load import loaded, settled
from tests.promise import untold
from tests.servers import serving, subscribed
from tests.test_redis_faults import (
    ANSWERED_S,
    BOTH,
    Load,
    following,
    health,
    ready,
    said,
    unavailable,
)

OUTAGE_S = 4.0
"""Three seconds, and what a busy machine adds."""


@pytest.fixture
def replicated() -> Iterator[Replicated]:
    with Replicated.started(down_after_ms=1000) as deployment:
        yield deployment


async def test_a_primary_that_is_killed_is_followed_by_its_replica_within_seconds(
    replicated: Replicated,
) -> None:
    async with loaded(replicated.url) as (service, load, delivered):
        old = replicated.primary
        old.kill()
        await wait_until(said(service, "away"), "the loss is noticed")
        assert (await health(service))["code"] == 503
        await unavailable(service, "away")
        await load.more(200)
        await wait_until(said(service, "ok"), "it says so")
        assert load.outage < OUTAGE_S
        assert load.refused > 0
        assert load.slowest < ANSWERED_S
    assert [gap["reason"] for gap in delivered.gaps] == ["reset"]


async def test_a_primary_that_is_replaced_while_it_lives_is_left_at_once(
    replicated: Replicated,
) -> None:
    """Sentinel makes a replica of it only after seconds; until then, what it takes is lost."""
    async with loaded(replicated.url) as (_, load, delivered):
        old, new = replicated.data
        replicated.sentinels[0].ask("SENTINEL FAILOVER", MASTER)
        await wait_until(lambda: new.role == "master", "the replica is promoted")
        await wait_until(lambda: new.client.xlen("logs") > old.client.xlen("logs"), "it is used")
        await load.more(200)
        assert load.outage < 1
        assert old.role == "master"
        old.ask("REPLICAOF", "127.0.0.1", new.port)
        await load.more(200)
        assert load.slowest < ANSWERED_S
    assert [gap["reason"] for gap in delivered.gaps] == ["reset"]
    assert new.client.xlen("logs") >= len(load.acknowledged) / 2


async def test_what_only_a_demoted_primary_had_is_told_to_who_had_it_and_to_who_had_not(
    replicated: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to those who come later, to another process; and nothing is given twice. The control: a
    process that knows nothing of the failover does not tell it."""
    async with serving(redis_addr=replicated.url, role=BOTH) as service:
        await ready(service)
        async with following(service) as had_it:
            load = Load(service)
            for _ in range(20):
                await load.send_one()
            shared = list(load.acknowledged)[-1]
            eventually(
                lambda: (
                    replicated.data[1].client.xinfo_stream("logs")["last-generated-id"]
                    == shared.encode()
                ),
                "the replica has it",
            )
            cut_off(replicated)
            for _ in range(5):
                await load.send_one()
            lost = list(load.acknowledged)[-5:]
            await wait_until(lambda: had_it.ids[-1] == lost[-1], "all are received")
            replicated.data[0].kill()
            await wait_until(lambda: replicated.data[1].role == "master", "promoted", timeout=20)
            await wait_until(taken_again(load), "it takes events again")
            await settled(load, had_it)
            assert len(had_it.gaps) == 1
            first = list(load.acknowledged)[25]
            assert had_it.gaps[0] == {
                "reason": "reset", "after": lost[-1], "before": first, "count": None,
            }  # fmt: skip
    async with serving(redis_addr=replicated.url, role=BOTH) as another:
        await ready(another)
        for resume, after in ((lost[2], lost[2]), (shared, shared), (lost[-1], lost[-1])):
            async with subscribed(another.url, {"Last-Event-ID": resume}) as reader:
                gap = await reader.named("gap")
                assert (gap["reason"], gap["after"], gap["before"]) == ("reset", after, first)
                assert (await reader.until(1))[0]["id"] == first
        earlier = list(load.acknowledged)[17]
        async with subscribed(another.url, {"Last-Event-ID": earlier}) as reader:
            told = [await reader.next() for _ in range(5)]
            assert [event.event for event in told] == [
                "hello", "message", "message", "gap", "message",
            ]  # fmt: skip
    monkeypatch.setattr(Failovers, "end_between", lambda *_: None)
    async with (
        serving(redis_addr=replicated.url, role=BOTH) as another,
        subscribed(another.url, {"Last-Event-ID": earlier}) as reader,
    ):
        ids = [event["id"] for event in await reader.until(3)]
        assert ids[-1] == first
        ids += list(load.acknowledged)[:18] + list(load.acknowledged)[26:]
        assert untold(load.acknowledged, ids, []) == set(lost)


def cut_off(replicated: Replicated) -> None:
    """The replica gets nothing more."""
    primary, replica = replicated.data
    primary.ask("ACL", "SETUSER", "default", "-psync", "-sync")
    primary.ask("CLIENT", "KILL", "TYPE", "replica")
    eventually(
        lambda: replica.client.info("replication")["master_link_status"] == "down", "it is cut off"
    )


def taken_again(load: Load) -> Callable[[], Awaitable[bool]]:
    before = len(load.acknowledged)

    async def attempt() -> bool:
        await load.send_one()
        return len(load.acknowledged) > before

    return attempt
