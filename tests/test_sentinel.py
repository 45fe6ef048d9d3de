"""Failovers behind real Sentinels, under load."""

import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from redis.exceptions import RedisError

from logpipe import watch
from logpipe.stream import finding
from logpipe.stream.failovers import Failovers
from tests.deployments import MASTER, Divided, Node, Replicated, cut_off, eventually
from tests.helpers import wait_until
from tests.load import Watched, loaded, settled
from tests.promise import untold
from tests.servers import Service, serving, subscribed
from tests.test_redis_faults import (
    ANSWERED_S,
    BOTH,
    EVENT,
    Delivered,
    Load,
    Log,
    following,
    health,
    ready,
    said,
    unavailable,
)
from tests.test_status import until_shown

OUTAGE_S = 4.0
"""Three seconds, and what a busy machine adds."""


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


@pytest.fixture
def replicated() -> Iterator[Replicated]:
    with Replicated.started(down_after_ms=1000) as deployment:
        yield deployment


@pytest.fixture
def divided() -> Iterator[Divided]:
    """With two replicas, of which one is left after a failover."""
    with Divided.started(replicas=2, down_after_ms=1000) as deployment:
        yield deployment


async def test_a_primary_that_is_killed_is_followed_by_its_replica_within_seconds(
    replicated: Replicated,
) -> None:
    async with loaded(replicated.url) as (service, load, delivered):
        replicated.data[0].kill()
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
        assert load.outage < OUTAGE_S
        assert old.role == "master"
        old.ask("REPLICAOF", "127.0.0.1", new.port)
        await load.more(200)
        assert load.slowest < ANSWERED_S
    assert [gap["reason"] for gap in delivered.gaps] == ["reset"]
    assert new.client.xlen("logs") >= len(load.acknowledged) / 2


async def test_a_coordinated_failover_loses_nothing_and_sends_no_gap(
    replicated: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valkey 9 has the old primary wait until the replica has all."""
    monkeypatch.setattr(finding, "COMPARE_S", 20)
    async with loaded(replicated.url) as (_, load, delivered):
        _, new = replicated.data
        replicated.sentinels[0].ask("SENTINEL FAILOVER", MASTER, "COORDINATED")
        await wait_until(lambda: new.role == "master", "the replica is promoted")
        await load.more(200)
        assert load.outage < OUTAGE_S
    assert delivered.gaps == []
    assert load.acknowledged.keys() <= ids_at(replicated)


async def test_a_failover_is_seen_in_log_metrics_and_page(
    replicated: Replicated, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "EVERY_S", 0.05)
    old, new = (node.place for node in replicated.data)
    async with serving(redis_addr=replicated.url) as service:
        await ready(service)
        assert f"the primary is {old}" in log.lines
        tile = "replicas in sync: 1 · Sentinels that answer: 3 of 3 · failovers: 0"
        assert (await until_shown(service, tile)).tiles["Primary of Redis"][0] == old
        replicated.sentinels[0].ask("SENTINEL FAILOVER", MASTER)
        moved = f"the primary is {new} now; it was {old}"
        await wait_until(lambda: moved in log.lines, "the log names both")
        document = await until_shown(service, "Sentinels that answer: 3 of 3 · failovers: 1")
        assert document.tiles["Primary of Redis"][0] == new
        metrics = (await service.http.get("/metrics")).text.splitlines()
    assert f'logpipe_redis_primary_info{{node="{new}"}} 1.0' in metrics
    assert f'logpipe_redis_primary_info{{node="{old}"}} 0.0' in metrics
    assert "logpipe_redis_failovers_total 1.0" in metrics
    assert log.lines.count(moved) == 1


async def test_sentinels_that_cannot_be_asked_are_warned_of_once(
    replicated: Replicated, log: Log
) -> None:
    def lines(words: str) -> list[str]:
        return [line for line in log.lines if words in line]

    async with serving(redis_addr=replicated.url, role=BOTH) as service:
        await ready(service)
        for sentinel in replicated.sentinels:
            sentinel.kill()
        await wait_until(lambda: len(lines("does not say where")) == 3, "each is warned of")
        assert (await service.post(EVENT)).status_code == 202
        state = await health(service)
        assert (state["code"], state["sentinels_reachable"]) == (200, 0)
        metrics = (await service.http.get("/metrics")).text.splitlines()
        assert "logpipe_redis_sentinels_reachable 0.0" in metrics
        for sentinel in replicated.sentinels:
            sentinel.start()
        await wait_until(lambda: len(lines("answers again")) == 3, "each is back")
        assert len(lines("does not say where")) == 3
        assert all(sentinel.place in log.text for sentinel in replicated.sentinels)


async def test_what_is_known_of_a_key_outlives_the_primary(replicated: Replicated) -> None:
    async with serving(redis_addr=replicated.url, role=BOTH) as service:
        await ready(service)
        old, new = replicated.data
        first = await service.post(EVENT, Idempotency_Key="k")
        assert first.status_code == 202
        length, counted = old.client.xlen("logs"), old.client.get("{logs}:once:bytes")
        await wait_until(lambda: new.client.get("{logs}:once:bytes") == counted, "it is replicated")
        old.kill()
        await wait_until(said(service, "away"), "the loss is noticed")
        await wait_until(said(service, "ok"), "the replica is followed")
        again = await service.post(EVENT, Idempotency_Key="k")
        assert again.json() == first.json()
        other = await service.post({**EVENT, "message": "other"}, Idempotency_Key="k")
        assert other.status_code == 422
        assert new.client.xlen("logs") == length


@contextlib.asynccontextmanager
async def sure_and_unsure(deployment: Replicated) -> AsyncIterator[tuple[Watched, Watched]]:
    """Load on a logpipe that waits for a replica and on one that does not. At the end, all that the
    first has acknowledged is there, and of the second's, what is not was told."""
    async with (
        loaded(deployment.url, ack_replicas=1) as (_, sure, _),
        loaded(deployment.url) as (_, unsure, delivered),
    ):
        yield sure, unsure
    assert sure.acknowledged.keys() <= ids_at(deployment)
    assert [gap["reason"] for gap in delivered.gaps] == ["reset"]
    assert sure.slowest < ANSWERED_S
    assert unsure.slowest < ANSWERED_S


async def test_a_primary_that_freezes_is_followed_by_a_replica_and_left_alone_when_it_wakes(
    divided: Divided,
) -> None:
    async with sure_and_unsure(divided) as loads:
        old = divided.data[0]
        old.signal(signal.SIGSTOP)
        for load in loads:
            await load.more(50)
        old.signal(signal.SIGCONT)
        for load in loads:
            await load.more(50)
            assert load.outage < OUTAGE_S


async def test_in_a_partition_what_a_replica_confirmed_stays_and_the_loss_of_the_rest_is_told(
    divided: Divided,
) -> None:
    """logpipe is on the side of the old primary, without a Sentinel. What was sent on the other
    side arrives, though both sides have given one id, and though the new primary took nothing at
    first (min-replicas-to-write). The control: there is a loss, of what was
    acknowledged without a replica."""
    async with (
        serving(redis_addr=divided.url, role=BOTH, ack_replicas=1) as safe,
        serving(redis_addr=divided.url, role=BOTH) as unsafe,
        following(unsafe) as delivered,
    ):
        sure, unsure = Load(safe), Load(unsafe)
        for service, load in ((safe, sure), (unsafe, unsure)):
            await ready(service)
            for _ in range(5):
                await load.send_one()
        with divided.apart():
            await wait_until(lambda: divided.primary, "a replica has taken over", timeout=20)
            kept = list(unsure.acknowledged)[-1]
            for _ in range(5):
                await unsure.send_one()
            await sure.send_one()
            assert (len(unsure.acknowledged), sure.refused) == (10, 1)
            assert divided.promoted is not None
            at_least = ("CONFIG", "SET", "min-replicas-to-write")
            divided.promoted.ask(*at_least, 2)
            async with serving(redis_addr=divided.url_elsewhere, role="collector") as elsewhere:
                await wait_until(said(elsewhere, "ok"), "the promoted one is there")
                await unavailable(elsewhere, "read-only")
                divided.promoted.ask(*at_least, 1)
                await ready(elsewhere)
                others = (await elsewhere.post(EVENT)).json()["id"]
            await unsure.send_one()
            twice = list(unsure.acknowledged)[-1]
            await wait_until(lambda: delivered.ids[-1:] == [twice], "it is received")
            divided.promoted.client.xadd("logs", {"event": json.dumps(EVENT)}, id=twice)
        await wait_until(taken_again(sure), "it is taken with a replica")
        last = list(sure.acknowledged)[-1]
        await wait_until(lambda: delivered.ids[-1] == last, "it is received")
    there = ids_at(divided)
    assert sure.acknowledged.keys() <= there
    assert unsure.acknowledged.keys() - there == set(list(unsure.acknowledged)[5:10])
    first = min(id_ for id_ in there if id_ > kept)
    gap = {"reason": "reset", "after": twice, "before": first, "count": None}
    assert delivered.gaps == [gap]
    again = delivered.ids[delivered.ids.index(twice) + 1 :]
    assert again == sorted(id_ for id_ in there if id_ >= first)
    assert others in again
    assert twice in again


@pytest.fixture
def with_heir() -> Iterator[Divided]:
    """With two replicas, of which the first is promoted, whatever it lacks. The time limits of a
    test that cuts it off add up to 25 s, so `down_after_ms` is more than a tenth of them."""
    with Divided.started(replicas=2, down_after_ms=3000, heir=1) as deployment:
        yield deployment


@contextlib.asynccontextmanager
async def all_and_one(deployment: Replicated) -> AsyncIterator[tuple[Load, Load]]:
    """Load on a logpipe that waits for both replicas, and on one, the control, that waits for one.
    At the end, all that the first has acknowledged is there, and of the second's something is
    not."""
    async with (
        serving(redis_addr=deployment.url, role="collector", ack_replicas=2) as safe,
        serving(redis_addr=deployment.url, role="collector", ack_replicas=1) as unsafe,
    ):
        loads = Load(safe), Load(unsafe)
        for load in loads:
            await ready(load.service)
        async with loads[0].running(senders=2), loads[1].running(senders=2):
            for load in loads:
                await load.more(50)
            yield loads
    there = ids_at(deployment)
    assert loads[0].acknowledged.keys() <= there
    assert loads[1].acknowledged.keys() - there
    assert max(load.slowest for load in loads) < ANSWERED_S


async def test_a_primary_that_dies_takes_nothing_along_that_all_replicas_have_confirmed(
    with_heir: Divided,
) -> None:
    """Whichever is promoted: here the one that was cut off from the primary."""
    primary, heir, _ = with_heir.data
    async with all_and_one(with_heir) as (sure, unsure):
        cut_off(primary, heir)
        await wait_until(lambda: sure.refused, "what only one replica has is not acknowledged")
        await unsure.more(50)
        primary.kill()
        await wait_until(lambda: with_heir.promoted, "another has taken over", timeout=30)
        await unsure.more(50)
    assert with_heir.promoted is heir


async def test_a_partition_that_ends_with_the_promotion_costs_nothing_that_all_have_confirmed(
    with_heir: Divided,
) -> None:
    """The replica that is not promoted, and not told so yet, confirms to the old primary."""
    old, heir, other = with_heir.data
    async with all_and_one(with_heir) as (sure, unsure):
        other.ask("ACL", "SETUSER", "default", "-replicaof", "-slaveof")
        with with_heir.apart() as gate:
            await wait_until(lambda: with_heir.promoted, "another has taken over", timeout=30)
            gate.shut = False
            refused = sure.refused
            await unsure.more(50)
            await wait_until(lambda: sure.refused > refused, "one is not enough")
        other.ask("ACL", "SETUSER", "default", "+replicaof", "+slaveof")
        for node in (old, other):
            node.ask("REPLICAOF", "127.0.0.1", heir.port)
        for load in (sure, unsure):
            await load.more(50)
    assert with_heir.promoted is heir


@pytest.mark.parametrize("met", [False, True], ids=["by none", "by another process"])
async def test_two_failovers_send_a_gap_though_one_was_not_met(divided: Divided, met: bool) -> None:
    """logpipe stays with the old primary until both are over. A connected reader gets a gap and
    goes on where the streams parted; one that comes later, to another process, gets one, too."""
    async with (
        serving(redis_addr=divided.url, role=BOTH) as service,
        following(service) as delivered,
    ):
        await ready(service)
        load = Load(service)
        for _ in range(20):
            await load.send_one()
        kept = list(load.acknowledged)[-1]
        await wait_until(lambda: all(last_id(node) == kept for node in divided.data), "replicated")
        with divided.apart():
            await wait_until(lambda: divided.primary, "a replica has taken over", timeout=20)
            first = divided.primary
            assert first is not None
            if met:
                async with serving(redis_addr=divided.url_elsewhere, role="collector") as elsewhere:
                    await ready(elsewhere)
            for _ in range(5):
                await load.send_one()
            await wait_until(lambda: fails_over(divided), "a second failover is begun", timeout=30)
            await wait_until(
                lambda: divided.primary not in (None, first), "another has taken over", timeout=20
            )
        second = divided.primary
        assert second is not None

        async def appended_there() -> bool:
            await load.send_one()
            return list(load.acknowledged)[-1] == last_id(second)

        await wait_until(appended_there, "logpipe has met the second")
        await wait_until(lambda: delivered.ids[-1] == list(load.acknowledged)[-1], "it is received")
    there = [id_.decode() for id_, _ in second.ask("XRANGE", "logs", "-", "+")]
    lost = load.acknowledged.keys() - set(there)
    assert len(lost) >= 5
    assert set(list(load.acknowledged)[:20]) <= set(there)
    assert len(delivered.ids) == len(set(delivered.ids))
    appended = dict.fromkeys([*load.acknowledged, *there[1:]], "")
    assert untold(appended, delivered.ids, delivered.gaps) == set()
    async with (
        serving(redis_addr=divided.url_elsewhere, role="distributor") as another,
        following(another, last_event_id=there[10]) as late,
    ):
        await wait_until(lambda: late.ids[-1:] == there[-1:], "all is received")
    assert late.ids == there[11:]
    assert untold(load.acknowledged, there[:11] + late.ids, late.gaps) == set()


def last_id(node: Node) -> str:
    """The newest id of the stream at a server."""
    return str(node.client.xinfo_stream("logs")["last-generated-id"].decode())


def fails_over(deployment: Replicated) -> bool:
    """Whether a Sentinel has begun a failover."""
    with contextlib.suppress(RedisError):
        deployment.sentinels[0].ask("SENTINEL FAILOVER", MASTER)
        return True
    return False


async def test_what_only_a_demoted_primary_had_is_told_to_who_had_it_and_to_who_had_not(
    replicated: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to those who come later, to another process; and nothing is given twice. So it is with
    groups, also with one that the replica does not know. The control: a process that knows nothing
    of the failover does not tell it."""
    async with serving(redis_addr=replicated.url, role=BOTH) as service:
        await ready(service)
        async with following(service) as had_it, shared(service, "old") as old_group:
            load = Load(service)
            for _ in range(20):
                await load.send_one()
            shared_id = list(load.acknowledged)[-1]
            eventually(
                lambda: (
                    replicated.data[1].client.xinfo_stream("logs")["last-generated-id"]
                    == shared_id.encode()
                ),
                "the replica has it",
            )
            cut_off(*replicated.data)
            async with shared(service, "new") as new_group:
                for _ in range(5):
                    await load.send_one()
                lost = list(load.acknowledged)[-5:]
                await wait_until(lambda: had_it.ids[-1] == lost[-1], "all are received")
                groups = (old_group, new_group)
                await wait_until(lambda: all(g.ids[-5:] == lost for g in groups), "by groups, too")
                replicated.data[0].kill()
                await wait_until(lambda: replicated.promoted, "it is promoted", timeout=20)
                await wait_until(taken_again(load), "it takes events again")
                await settled(load, had_it)
                first = list(load.acknowledged)[25]
                await wait_until(lambda: all(g.ids[-1] == first for g in groups), "by groups, too")
            gap = {"reason": "reset", "after": shared_id, "before": first, "count": None}
            assert old_group.gaps == new_group.gaps == [gap]
            # What the replica takes for unread or not acknowledged comes again.
            assert list(dict.fromkeys(old_group.ids)) == list(load.acknowledged)
            assert new_group.ids == [*lost, first]
            assert len(had_it.gaps) == 1
            assert had_it.gaps[0] == {
                "reason": "reset", "after": lost[-1], "before": first, "count": None,
            }  # fmt: skip
    async with serving(redis_addr=replicated.url, role=BOTH) as another:
        await ready(another)
        for resume, after in ((lost[2], lost[2]), (shared_id, shared_id), (lost[-1], lost[-1])):
            async with subscribed(another.url, {"Last-Event-ID": resume}) as reader:
                told_gap = await reader.named("gap")
                assert (told_gap["reason"], told_gap["after"], told_gap["before"]) == (
                    "reset",
                    after,
                    first,
                )
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


def ids_at(deployment: Replicated) -> set[str]:
    """What the promoted replica has."""
    assert deployment.promoted is not None
    return {id_.decode() for id_, _ in deployment.promoted.ask("XRANGE", "logs", "-", "+")}


@contextlib.asynccontextmanager
async def shared(service: Service, group: str) -> AsyncIterator[Delivered]:
    """The only subscriber of a group."""
    async with following(service, delivery="shared", group=group) as delivered:
        yield delivered


def taken_again(load: Load) -> Callable[[], Awaitable[bool]]:
    before = len(load.acknowledged)

    async def attempt() -> bool:
        await load.send_one()
        return len(load.acknowledged) > before

    return attempt
