"""Groups end that had no member for long, and go on where they were when one returns."""

import contextlib
from typing import Any

import pytest

from logpipe.filters import EVERYTHING
from logpipe.groups import (
    MAX_GROUPS_PER_CLIENT,
    MAX_NEW_GROUPS,
    NEW_GROUP_S,
    Founders,
    TooManyGroupsError,
)
from logpipe.groups.shared import SharedSubscription
from logpipe.ids import StreamId
from logpipe.messages import Bye, Start
from tests.helpers import wait_until
from tests.servers import Valkey, serving, subscribed
from tests.streams import NAME, add, plain
from tests.test_groups import Replica, Worker, a_replica


def worker_of(replica: Replica, group: str, start: Start | None = None) -> Worker:
    return Worker(SharedSubscription(replica.groups, group, start or Start(), EVERYTHING))


async def visit(replica: Replica, group: str, count: int = 0) -> list[StreamId]:
    """Is a member for as long as it takes to get so many entries."""
    with worker_of(replica, group) as worker:
        await worker.greet()
        while len(worker.got) < count:
            await worker.take()
            await worker.subscription.sent()
    await wait_until(lambda: group not in replica.groups._groups, "the group is let go")
    return worker.got


async def names(replica: Replica) -> set[str]:
    found: Any = await plain(replica.stream).xinfo_groups(NAME)
    return {each["name"].decode() for each in found}


async def test_a_group_without_members_ends(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        await add(replica.stream)
        await visit(replica, "a")
        await replica.groups.end_due(60_000)
        assert await names(replica) == {"a"}
        await replica.groups.end_due(0)
        assert await names(replica) == set()


async def test_a_group_with_a_member_on_any_replica_does_not_end(valkey: Valkey) -> None:
    async with a_replica(valkey, "one") as one, a_replica(valkey, "two") as two:
        with worker_of(two, "a") as worker:
            await worker.greet()
            await one.groups.end_due(0)
            assert await names(one) == {"a"}


async def test_consumer_group_and_groups_of_others_never_end(valkey: Valkey) -> None:
    async with a_replica(valkey, lasting="lasting") as replica:
        await add(replica.stream)
        await plain(replica.stream).xgroup_create(NAME, "foreign", "0")
        await visit(replica, "lasting")
        await visit(replica, "foreign", 1)
        await replica.groups.end_due(0)
        assert await names(replica) == {"lasting", "foreign"}


async def test_a_member_that_returns_goes_on_where_the_group_was(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        await visit(replica, "a")
        ids = await add(replica.stream, 3)
        assert await visit(replica, "a", 3) == ids
        await replica.groups.end_due(0)
        more = await add(replica.stream, 2)
        assert await visit(replica, "a", 2) == more
        assert await names(replica) == {"a"}
        await replica.groups.end_due(0)  # it is one of logpipe's groups again
        assert await names(replica) == set()


async def test_entries_pending_when_a_group_ends_come_again(valkey: Valkey) -> None:
    async with a_replica(valkey, pending_idle_ms=60_000) as replica:
        with worker_of(replica, "a") as worker:
            await worker.greet()
            ids = await add(replica.stream, 3)
            assert await worker.take() == ids  # and leaves before it has written them
        await wait_until(lambda: "a" not in replica.groups._groups, "the group is let go")
        await replica.groups.end_due(0)
        assert await names(replica) == set()
        assert await visit(replica, "a", 3) == ids


async def test_entries_trimmed_since_a_group_ended_are_a_gap(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        await visit(replica, "a")
        ids = await add(replica.stream, 5)
        assert await visit(replica, "a", 5) == ids
        await replica.groups.end_due(0)
        more = await add(replica.stream, 10)
        await plain(replica.stream).xtrim(NAME, maxlen=4, approximate=False)
        with worker_of(replica, "a") as worker:
            await worker.greet()
            assert await worker.take() == more[6:]
            await worker.subscription.sent()
        [gap] = worker.gaps
        assert (gap.reason, gap.count) == ("trimmed", 6)
        assert gap.after < more[0] and gap.before == more[6]


async def test_a_stream_deleted_since_a_group_ended_is_a_reset(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        await visit(replica, "a")
        await visit(replica, "a", len(await add(replica.stream, 2)))
        await plain(replica.stream).hset(
            replica.stream.groups.records.ended, "a", "99999999999999-0 7 1 "
        )
        await plain(replica.stream).xgroup_destroy(NAME, "a")
        ids = await add(replica.stream, 1)
        with worker_of(replica, "a") as worker:
            await worker.greet()
            got = await worker.take()
            await worker.subscription.sent()
        assert got[-1] == ids[-1]
        assert [gap.reason for gap in worker.gaps] == ["reset"]


async def test_the_filter_of_a_group_that_ended_is_kept(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        records = replica.stream.groups.records
        await records.enter("a", "p", 60_000, "source:x")
        await replica.stream.groups.create("a", None, may_end=True)
        assert not await records.end("a")  # it has a member
        await records.exit("a", "p")
        assert await records.end("a")
        entered = await records.enter("a", "p", 60_000, None)
        assert (entered.admitted, entered.filter) == (True, "source:x")


async def test_a_group_destroyed_by_hand_is_forgotten(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        await visit(replica, "a")
        await plain(replica.stream).xgroup_destroy(NAME, "a")
        await replica.groups.end_due(0)
        assert await replica.stream.groups.records.due(0, 0) == []


async def test_of_too_many_groups_the_one_longest_without_a_member_ends(valkey: Valkey) -> None:
    async with a_replica(valkey) as replica:
        for number in range(4):
            await visit(replica, f"g{number}")
        await visit(replica, "g0")
        await replica.groups.end_due(10**9, most=2)
        assert await names(replica) == {"g3", "g0"}


async def test_groups_end_while_logpipe_serves(valkey: Valkey) -> None:
    async with serving(
        redis_addr=valkey.url, role="distributor", delivery="shared", group_expiry="1s"
    ) as service:
        async with subscribed(service.url, group="a") as reader:
            await reader.named("hello")

        def ended() -> bool:
            return valkey.client.xinfo_groups("logs") == []

        await wait_until(ended, "the group has ended")


def test_a_client_makes_so_many_groups_at_once_and_more_with_time() -> None:
    clock = [100.0]
    founders = Founders(lambda: clock[0])
    for _ in range(MAX_NEW_GROUPS):
        founders.require("a")
    with pytest.raises(TooManyGroupsError):
        founders.require("a")
    founders.require("b")
    clock[0] += NEW_GROUP_S
    founders.require("a")
    with pytest.raises(TooManyGroupsError):
        founders.require("a")


async def test_consumer_group_never_ends_though_it_was_made_as_another(valkey: Valkey) -> None:
    async with a_replica(valkey) as before:
        await visit(before, "a")
    async with a_replica(valkey, lasting="a") as replica:
        await replica.groups.end_due(0)
        assert await names(replica) == {"a"}
        await visit(replica, "a")
    async with a_replica(valkey) as other:
        await other.groups.end_due(0)
        assert await names(other) == {"a"}


async def test_a_client_asks_for_half_of_the_groups_at_most(valkey: Valkey) -> None:
    async with a_replica(valkey, lasting="lasting") as replica:
        with contextlib.ExitStack() as stack:

            def member(name: str, client: str) -> SharedSubscription:
                subscription = SharedSubscription(replica.groups, name, Start(), EVERYTHING)
                subscription.client = client
                return stack.enter_context(subscription)

            for number in range(MAX_GROUPS_PER_CLIENT):
                member(f"g{number}", "10.0.0.1")
            [bye] = await member("more", "10.0.0.1").next() or []
            assert isinstance(bye, Bye) and "of this address" in bye.reason
            for name, client in (
                ("g0", "10.0.0.1"), ("lasting", "10.0.0.1"), ("more", "10.0.0.2"),
            ):  # fmt: skip
                [hello] = await member(name, client).next() or []
                assert not isinstance(hello, Bye)
