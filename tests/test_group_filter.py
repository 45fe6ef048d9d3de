"""The filter of a consumer group belongs to the group."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from logpipe.filters import parse_filter
from tests.helpers import wait_until
from tests.servers import Reader, Service, Valkey, serving, subscribed

STREAM = "logs"
LINES = {"Accept": "application/x-ndjson"}


@contextlib.asynccontextmanager
async def replica(valkey: Valkey, name: str = "one", **given: object) -> AsyncIterator[Service]:
    more: dict[str, Any] = {"consumer_name": name, "delivery": "shared", **given}
    async with serving(redis_addr=valkey.url, role="distributor", **more) as service:
        yield service


@contextlib.asynccontextmanager
async def member(service: Service, **query: str) -> AsyncIterator[tuple[Reader, str]]:
    """A member of the group `g`, and the filter that its hello names."""
    async with subscribed(service.url, None, group="g", **query) as reader:
        hello = await reader.named("hello")
        yield reader, hello["filter"]


async def refused(service: Service, headers: Any = None, **query: str) -> dict[str, Any]:
    answer = await service.http.get("/subscribe", params={"group": "g", **query}, headers=headers)
    assert answer.status_code == 409, answer.text
    document: dict[str, Any] = answer.json()
    return document


def add(valkey: Valkey, *sources: str) -> list[str]:
    with valkey.client.pipeline(transaction=False) as pipe:
        for source in sources:
            pipe.xadd(STREAM, {"event": json.dumps({"source": source, "message": "m"})})
        return [id_.decode() for id_ in pipe.execute()]


async def nothing_pending(valkey: Valkey) -> None:
    def done() -> bool:
        summary: Any = valkey.client.xpending(STREAM, "g")
        return bool(summary["pending"] == 0)

    await wait_until(done, "all are acknowledged")


async def metric(service: Service, name: str) -> float:
    text = (await service.http.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


async def test_the_first_member_sets_the_filter_of_all(valkey: Valkey) -> None:
    async with (
        replica(valkey, "one") as one,
        replica(valkey, "two") as two,
        member(one, q="source:a") as (first, own),
        member(two) as (second, taken),
    ):
        assert own == taken == "source:a"
        wanted = add(valkey, *"ab" * 20)[::2]
        got: list[str] = []

        async def read(reader: Reader) -> None:
            while True:
                got.extend([event["id"] for event in await reader.until(1, 60)])

        tasks = [asyncio.create_task(read(reader)) for reader in (first, second)]
        await wait_until(lambda: len(got) >= 20, "all that match have come")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert sorted(got) == sorted(wanted)
        await nothing_pending(valkey)
        rejected = [await metric(each, "logpipe_group_rejected_total") for each in (one, two)]
        assert sum(rejected) == 20


async def test_events_that_the_filter_rejects_are_not_held(valkey: Valkey) -> None:
    async with (
        replica(valkey) as one,
        member(one, q="source:a", ack="client", max_in_flight="2") as (reader, _),
    ):
        [id_] = add(valkey, *"b" * 50, "a", *"b" * 50)[50:51]
        assert [event["id"] for event in await reader.until(1)] == [id_]

        def only_that_one() -> bool:
            rows: Any = valkey.client.xpending_range(STREAM, "g", "-", "+", 10)
            return [row["message_id"].decode() for row in rows] == [id_]

        await wait_until(only_that_one, "the others are acknowledged")


@pytest.mark.parametrize("headers", [None, LINES], ids=["SSE", "NDJSON"])
async def test_a_member_with_another_filter_is_refused(valkey: Valkey, headers: Any) -> None:
    async with (
        replica(valkey, "one") as one,
        replica(valkey, "two") as two,
        member(one, q="source:a"),
    ):
        for where in (one, two):
            document = await refused(where, headers, q="source:b")
            assert (document["group_filter"], document["filter"]) == ("source:a", "source:b")
            assert "filter=replace" in document["detail"]


async def test_filters_are_compared_by_what_they_mean(valkey: Valkey) -> None:
    async with (
        replica(valkey) as one,
        member(one, q="source:a level:error"),
        member(one, q='source:"a"  level:ERROR') as (_, same),
        member(one, source="a", level="error") as (_, short),
    ):
        assert same == short
        await refused(one, q="source:a")


async def test_the_order_of_terms_makes_no_other_filter() -> None:
    def text(query: str) -> str:
        return parse_filter({"q": query}).ordered().query

    for one, other in (
        ("a b", "b a"),
        ("(x OR y) a a", "a (y OR x)"),
        ("-(b OR a)", "-(a OR b)"),
        ("a a", "a"),
    ):
        assert text(one) == text(other)
    for query in ("((NOT (k>3)) OR -((NOT b OR NOT b)))", "-(-(a OR a))", "x (y z) OR (b OR (b))"):
        assert text(text(query)) == text(query)
    assert text("a OR b") != text("a b")
    assert parse_filter({}).ordered().query == ""


async def test_a_group_without_a_filter_has_one_as_well(valkey: Valkey) -> None:
    async with replica(valkey) as one, member(one) as (_, none):
        assert none == ""
        document = await refused(one, q="source:b")
        assert (document["group_filter"], document["filter"]) == ("", "source:b")


async def test_a_group_whose_members_have_left_takes_another_filter(valkey: Valkey) -> None:
    async with replica(valkey, "one") as one, replica(valkey, "two") as two:
        async with member(one, q="source:a"):
            pass

        async def taken() -> bool:
            async with two.http.stream(
                "GET", "/subscribe", params={"group": "g", "q": "source:b"}
            ) as answer:
                return answer.status_code == 200

        await wait_until(taken, "the first member of an empty group sets it")
        async with member(one) as (_, found):  # the filter stays when its last member has left
            assert found == "source:b"


async def test_replace_changes_the_filter_for_all_members(valkey: Valkey) -> None:
    async with (
        replica(valkey, "one") as one,
        replica(valkey, "two") as two,
        member(one, q="source:a") as (old, _),
        member(two) as (without, _),
        member(two, q="source:b", filter="replace") as (new, found),
    ):
        assert found == "source:b"
        for reader in (old, without):
            assert "filter" in (await reader.named("bye"))["reason"]
        [id_] = add(valkey, "a", "b", "a")[1:2]
        assert [event["id"] for event in await new.until(1)] == [id_]
        async with member(one) as (_, again):
            assert again == "source:b"
        await refused(one, q="source:a")
        await nothing_pending(valkey)


async def test_replace_without_a_filter_removes_it(valkey: Valkey) -> None:
    async with (
        replica(valkey) as one,
        member(one, q="source:a") as (old, _),
        member(one, filter="replace") as (new, found),
    ):
        assert found == ""
        await old.named("bye")
        ids = add(valkey, "a", "b")
        assert [event["id"] for event in await new.until(2)] == ids


async def test_no_event_is_judged_by_a_filter_that_was_replaced(valkey: Valkey) -> None:
    async with (
        replica(valkey, "one") as one,
        replica(valkey, "two") as two,
        member(one, q="source:a"),
    ):
        async with member(two, q="source:b", filter="replace"):
            pass
        # The member of the other replica may not have heard of it: what it reads now is the
        # business of the new filter all the same.
        ids = add(valkey, *"b" * 20)
        async with member(two) as (reader, found):
            assert found == "source:b"
            assert {event["id"] for event in await reader.until(20)} == {*ids}


async def test_a_group_from_before_has_no_filter(valkey: Valkey) -> None:
    valkey.client.xgroup_create(STREAM, "g", "0", mkstream=True)
    async with replica(valkey) as one, member(one, q="source:a") as (reader, found):
        assert found == "source:a"
        ids = add(valkey, "b", "a")
        assert [event["id"] for event in await reader.until(1)] == ids[1:]


async def test_asking_with_head_sets_no_filter(valkey: Valkey) -> None:
    async with replica(valkey) as one:
        query = {"group": "g", "q": "source:a"}
        assert (await one.http.head("/subscribe", params=query)).status_code == 200
        async with member(one) as (_, found):
            assert found == ""


async def test_a_filter_survives_a_flush_with_its_members(valkey: Valkey) -> None:
    async with replica(valkey) as one, member(one, q="source:a") as (reader, _):
        add(valkey, "a")
        await reader.until(1)
        valkey.client.flushall()
        ids = add(valkey, "b", "a")
        assert [event["id"] for event in await reader.until(1)] == ids[1:]
        document = await refused(one, q="source:b")
        assert document["group_filter"] == "source:a"


async def test_a_stored_filter_that_is_not_understood_is_refused(valkey: Valkey) -> None:
    async with replica(valkey) as one, member(one, q="source:a"):
        [key] = valkey.client.keys("{logs}:group:*")
        valkey.client.hset(key, "filter", "((")
        document = await refused(one)
        assert "does not understand" in document["detail"]


async def test_subscribers_are_listed_with_the_filter_of_the_group(valkey: Valkey) -> None:
    async with replica(valkey) as one, member(one, q="source:a"), member(one):
        listed = (await one.http.get("/subscribers")).json()["subscribers"]
        assert [each["filter"] for each in listed] == ["source:a", "source:a"]


async def test_a_redis_without_memory_lets_nobody_change_a_filter(own_valkey: Valkey) -> None:
    async with replica(own_valkey) as one:
        async with member(one, q="source:a"):
            pass
        own_valkey.client.config_set("maxmemory", "1")

        async def kept() -> bool:
            query = {"group": "g", "q": "source:b"}
            async with one.http.stream("GET", "/subscribe", params=query) as answer:
                return answer.status_code == 409

        assert await kept()
        async with member(one) as (_, found):
            assert found == "source:a"


async def test_a_subscriber_without_a_seat_changes_no_filter(valkey: Valkey) -> None:
    async with replica(valkey, max_subscribers=1) as one, member(one, q="source:a") as (first, _):
        query = {"group": "g", "q": "source:b", "filter": "replace"}
        answer = await one.http.get("/subscribe", params=query)
        assert "MAX_SUBSCRIBERS" in answer.text
        [id_] = add(valkey, "a")
        assert [event["id"] for event in await first.until(1)] == [id_]


async def test_the_record_of_a_group_that_was_never_made_goes(valkey: Valkey) -> None:
    async with replica(valkey) as one:
        await one.http.head("/subscribe", params={"group": "never"})
        assert valkey.client.keys("{logs}:group:*") == []
        async with member(one):
            [key] = valkey.client.keys("{logs}:group:*")
            assert valkey.client.ttl(key) == -1
