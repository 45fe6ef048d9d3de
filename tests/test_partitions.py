"""A log over partitions as its users see it: one service over three keys of one Redis."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from logpipe import sse
from logpipe.background import Background
from logpipe.client.connection import http_client
from logpipe.client.distributor import RemoteDistributor
from logpipe.fanout import hub
from logpipe.filters import EVERYTHING
from logpipe.groups import Groups
from logpipe.groups.joint import JointGroups, JointShared
from logpipe.ids import START
from logpipe.messages import Batch, Bye, Hello, Start
from logpipe.metrics import Metrics
from logpipe.positions import EventId, parse_event_id, parse_position
from logpipe.settings import BadSettingsError, load
from logpipe.stream import Stream, connections, partition_key
from tests.helpers import wait_until
from tests.servers import Reader, Service, Valkey, serving, subscribed
from tests.streams import address_of
from tests.test_redis_faults import BOTH, said

COUNT = 3
KEYS = [partition_key("logs", number, COUNT) for number in range(COUNT)]
SOURCES = ("s0", "s1", "s2", "s3", "s4", "s5", "s6")
"""Enough of them to have events in each partition."""


@contextlib.asynccontextmanager
async def spread(valkey: Valkey, **given: object) -> AsyncIterator[Service]:
    options = {"redis_addr": valkey.url, "role": BOTH, "partitions": COUNT, "block_ms": 100}
    async with serving(**options, **given) as service:
        await wait_until(said(service, "ok"), "it is ready")
        yield service


@pytest.fixture
async def service(valkey: Valkey) -> AsyncIterator[Service]:
    async with spread(valkey) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for the next look at Redis longer than it must."""
    monkeypatch.setattr(connections, "MONITOR_S", 0.05)
    monkeypatch.setattr(hub, "MEASURE_S", 0.05)


def batch(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"source": SOURCES[number % len(SOURCES)], "message": str(number)}
        for number in range(start, start + count)
    ]


async def post(service: Service, body: Any, **headers: str) -> dict[str, Any]:
    answer = await service.post(body, **headers)
    assert answer.status_code == 202, answer.text
    taken: dict[str, Any] = answer.json()
    return taken


async def page(service: Service, **query: object) -> dict[str, Any]:
    answer = await service.http.get("/events", params={k: str(v) for k, v in query.items()})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def all_ids(service: Service) -> list[EventId]:
    events = (await page(service, limit=5000, order="asc"))["events"]
    return [parse_event_id(event["id"], COUNT) for event in events]


async def messages(reader: Reader, count: int) -> list[sse.ServerSentEvent]:
    """The next so many events, which must not be told under another name meanwhile."""
    found: list[sse.ServerSentEvent] = []
    while len(found) < count:
        event = await reader.next()
        assert event.event in ("message", "hello", "progress"), event
        found += [event] if event.event == "message" else []
    return found


def numbers(events: list[Any]) -> list[int]:
    told = [json.loads(e.data) if isinstance(e, sse.ServerSentEvent) else e for e in events]
    return [int(event["message"]) for event in told]


# Appending


async def test_a_batch_over_all_partitions_comes_back_as_one(service: Service) -> None:
    async with subscribed(service.url) as reader:
        await reader.named("hello")
        taken = await post(service, batch(30))
        events = await messages(reader, 30)
    ids = {
        number: json.loads(e.data)["id"] for number, e in zip(numbers(events), events, strict=True)
    }
    assert sorted(ids) == list(range(30))
    assert (taken["accepted"], taken["first_id"], taken["last_id"]) == (30, ids[0], ids[29])
    assert {parse_event_id(id_, COUNT).partition for id_ in ids.values()} == {0, 1, 2}
    for source in range(len(SOURCES)):
        own = [number for number in numbers(events) if number % len(SOURCES) == source]
        assert own == sorted(own)


async def test_a_single_event_is_answered_with_the_id_under_which_it_comes(
    service: Service,
) -> None:
    id_ = (await post(service, {"source": "s1", "message": "1"}))["id"]
    assert [event["id"] for event in (await page(service))["events"]] == [id_]
    assert (await page(service, **{"from": id_, "to": id_}))["events"][0]["id"] == id_


async def test_a_retry_by_its_key_doubles_in_no_partition(service: Service) -> None:
    first = await post(service, batch(20), Idempotency_Key="k")
    assert await post(service, batch(20), Idempotency_Key="k") == first
    assert len(await all_ids(service)) == 20


async def test_a_batch_of_which_one_partition_took_nothing_is_completed_by_its_retry(
    service: Service, valkey: Valkey
) -> None:
    valkey.client.set(KEYS[1], "in the way")
    assert (await service.post(batch(20), Idempotency_Key="k")).status_code == 503
    valkey.client.delete(KEYS[1])
    await wait_until(said(service, "ok"), "it has noticed")
    assert (await post(service, batch(20), Idempotency_Key="k"))["accepted"] == 20
    assert sorted(numbers((await page(service))["events"])) == list(range(20))


async def test_while_a_partition_is_known_to_take_nothing_no_part_of_a_batch_is_stored(
    service: Service, valkey: Valkey
) -> None:
    valkey.client.set(KEYS[1], "in the way")
    await wait_until(said(service, "wrong-type"), "it has noticed")
    answer = await service.post(batch(20))
    assert (answer.status_code, answer.json()["redis"]) == (503, "wrong-type")
    assert not valkey.client.exists(KEYS[0], KEYS[2])
    alone = [await service.post({"source": source, "message": ""}) for source in SOURCES]
    assert {answer.status_code for answer in alone} == {202, 503}


async def test_the_bounds_of_the_stream_are_those_of_all_partitions(valkey: Valkey) -> None:
    async with spread(valkey, trim_maxlen=900) as service:
        await post(service, batch(4000))
        kept = [int(valkey.client.xlen(key)) for key in KEYS]
        assert all(300 <= each < 500 for each in kept), kept


# Reading


async def test_a_reader_resumes_by_its_position_with_what_each_partition_has_had_since(
    service: Service,
) -> None:
    async with subscribed(service.url) as reader:
        await reader.named("hello")
        await post(service, batch(30))
        events = await messages(reader, 30)
    await post(service, batch(5, start=30))
    for had in (1, 13, 29):
        position = events[had - 1].id
        by_header = {"Last-Event-ID": position}
        async with subscribed(service.url, by_header) as reader:
            rest = numbers(await messages(reader, 35 - had))
        async with subscribed(service.url, last_event_id=position) as reader:
            assert sorted(numbers(await messages(reader, 35 - had))) == sorted(rest)
        assert sorted(rest + numbers(events[:had])) == list(range(35))


async def test_each_line_of_ndjson_says_the_position_after_it(service: Service) -> None:
    await post(service, batch(20))
    async with subscribed(service.url, {"Accept": "application/x-ndjson"}, since="earliest") as r:
        lines = r.response.aiter_lines()
        told = [json.loads(await anext(lines)) for _ in range(11)][1:]
    async with subscribed(service.url, last_event_id=told[-1]["position"]) as reader:
        rest = await messages(reader, 10)
    assert sorted(numbers(told) + numbers(rest)) == list(range(20))


@pytest.mark.parametrize("id_", ["1710000000000-0", "5-0-1", "5-0.6-0", "nonsense"])
async def test_a_last_event_id_of_another_log_is_answered_by_gaps(
    service: Service, id_: str
) -> None:
    """As of one stream, or of another number of partitions."""
    await post(service, batch(20))
    async with subscribed(service.url, {"Last-Event-ID": id_}) as reader:
        gaps = [await reader.named("gap") for _ in range(COUNT)]
        assert len(await messages(reader, 20)) == 20
    assert {gap["reason"] for gap in gaps} == {"reset"}
    assert {gap["before"].rpartition("-")[2] for gap in gaps} == {"0", "1", "2"}
    answer = await service.http.get("/subscribe", params={"last_event_id": id_})
    assert answer.status_code == 400
    assert "position" in answer.json()["detail"]


async def test_tail_gives_the_last_of_all_partitions_together(service: Service) -> None:
    await post(service, batch(40))
    ids = await all_ids(service)
    for wanted in (1, 7, 40, 60):
        async with subscribed(service.url, tail=wanted) as reader:
            events = await messages(reader, min(wanted, 40))
        told = {parse_event_id(json.loads(event.data)["id"], COUNT) for event in events}
        assert told == {*ids[-wanted:]}
    async with subscribed(service.url, tail=3, source="s2") as reader:
        assert sorted(numbers(await messages(reader, 3))) == [23, 30, 37]


async def test_since_takes_the_id_of_an_event(service: Service) -> None:
    await post(service, batch(40))
    ids = await all_ids(service)
    async with subscribed(service.url, since=ids[25]) as reader:
        events = await messages(reader, 15)
    told = {parse_event_id(json.loads(event.data)["id"], COUNT) for event in events}
    assert told == {*ids[25:]}


async def test_since_a_time_and_earliest_reach_all_partitions(service: Service) -> None:
    await post(service, batch(20))
    for since in ("earliest", "10m", "1"):
        async with subscribed(service.url, since=since) as reader:
            assert sorted(numbers(await messages(reader, 20))) == list(range(20))


async def test_a_gap_counts_what_was_trimmed_of_one_partition(valkey: Valkey) -> None:
    async with spread(valkey) as service:
        async with subscribed(service.url) as reader:
            begin = (await reader.next()).id
        await post(service, batch(40))
    kept = [int(valkey.client.xlen(key)) for key in KEYS]
    valkey.client.xtrim(KEYS[2], maxlen=2, approximate=False)
    async with spread(valkey) as service, subscribed(service.url, {"Last-Event-ID": begin}) as r:
        told = [await r.next() for _ in range(kept[0] + kept[1] + 4)]
    (gap,) = [json.loads(event.data) for event in told if event.event == "gap"]
    ids = [json.loads(event.data)["id"] for event in told if event.event == "message"]
    first = next(id_ for id_ in ids if id_.endswith("-2"))
    assert (gap["reason"], gap["count"], gap["before"]) == ("trimmed", kept[2] - 2, first)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_the_history_pages_through_all_partitions_in_one_order(
    service: Service, order: str
) -> None:
    await post(service, batch(40))
    await post(service, batch(40, start=40))
    ids: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        found = await page(service, order=order, limit=7, **({"cursor": cursor} if cursor else {}))
        ids += [event["id"] for event in found["events"]]
        cursor = found["next"]
    keys = [parse_event_id(id_, COUNT) for id_ in ids]
    assert len(ids) == 80
    assert keys == sorted(keys, reverse=order == "desc")
    low, high = ids[10], ids[30]
    span = {"from": min(low, high, key=ids.index), "to": max(low, high, key=ids.index)}
    span = span if order == "asc" else {"from": span["to"], "to": span["from"]}
    found = await page(service, order=order, **span)
    assert [event["id"] for event in found["events"]] == ids[10:31]


async def test_what_names_no_partition_here_is_refused(service: Service) -> None:
    for query in ({"from": "5-0-3"}, {"cursor": "5-0"}, {"to": "5-0-99"}):
        answer = await service.http.get("/events", params=query)
        assert (answer.status_code, next(iter(query)) in answer.text) == (400, True)


async def test_a_filter_that_takes_nothing_still_moves_the_position(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.fanout.streaming.PROGRESS_S", 0.0)
    async with subscribed(service.url, source="nobody") as reader:
        begin = parse_position((await reader.next()).id, COUNT)
        await post(service, batch(20))
        at = begin
        while any(a == b for a, b in zip(at, begin, strict=True)):
            event = await reader.next()
            assert event.event == "progress"
            at = parse_position(event.id, COUNT)


async def test_an_idle_reader_is_kept_and_told_of_the_end(valkey: Valkey) -> None:
    async with spread(valkey, heartbeat_s=0.2) as service, subscribed(service.url) as reader:
        await reader.named("hello")
        texts = reader.response.stream
        assert texts is not None
        raw = await asyncio.wait_for(anext(reader._texts), 10)
        assert raw == ":\n\n"
        service.process.farewell()
        assert (await reader.named("bye"))["reason"] == "the server is stopping"
        with pytest.raises(StopAsyncIteration):
            await reader.next()


# Shared delivery


@contextlib.asynccontextmanager
async def shared_groups(valkey: Valkey) -> AsyncIterator[JointGroups]:
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics()
        parts = []
        for key, part in zip(KEYS, metrics.of_parts(COUNT), strict=True):
            stream = await stack.enter_async_context(_stream(valkey, key))
            groups = Groups(
                stream,
                part,
                Background(),
                consumer="c",
                pending_idle_ms=60_000,
                batch_count=4,
                heartbeat_s=0.5,
            )
            parts.append(await stack.enter_async_context(groups))
        yield JointGroups(parts, metrics, 0.5)


@contextlib.asynccontextmanager
async def _stream(valkey: Valkey, key: str) -> AsyncIterator[Stream]:
    stream = Stream(address_of(valkey), key, maxlen=1000, block_ms=30)
    try:
        yield stream
    finally:
        await stream.aclose()


def subscriber(groups: JointGroups) -> JointShared:
    return JointShared(groups, "g", [Start(since=START)] * COUNT, EVERYTHING)


async def given(subscription: JointShared) -> list[str]:
    """The ids of what a subscriber is given next."""
    async with asyncio.timeout(10):
        while True:
            items = await subscription.next()
            assert items is not None
            batches = [item for item in items if isinstance(item, Batch)]
            if batches:
                return [str(entry.id) for batch in batches for entry in batch.entries]
            await subscription.sent()


async def test_what_a_subscriber_has_not_written_goes_to_another(valkey: Valkey) -> None:
    for key in KEYS:
        for _ in range(10):
            valkey.client.xadd(key, {"event": '{"source":"s","message":""}'})
    async with shared_groups(valkey) as groups:
        written: list[str] = []
        with subscriber(groups) as one:
            written += await given(one)
            await one.sent()
            await given(one)  # and leaves
        with subscriber(groups) as other:
            while len(written) < 30:
                written += await given(other)
                await other.sent()
        assert len(set(written)) == 30
        pending = [valkey.client.xpending(key, "g")["pending"] for key in KEYS]
        assert pending == [0, 0, 0]


async def test_while_one_writes_the_other_partitions_are_for_other_subscribers(
    valkey: Valkey,
) -> None:
    async with shared_groups(valkey) as groups:
        with subscriber(groups) as slow, subscriber(groups) as quick:
            reading = asyncio.create_task(given(quick))
            first = asyncio.create_task(given(slow))
            await wait_until(lambda: len(slow._hellos) == len(quick._hellos) == COUNT, "they wait")
            valkey.client.xadd(KEYS[0], {"event": '{"source":"s","message":""}'})
            await asyncio.wait({reading, first}, return_when=asyncio.FIRST_COMPLETED)
            writing, waits, task = (slow, quick, reading) if first.done() else (quick, slow, first)
            valkey.client.xadd(KEYS[1], {"event": '{"source":"s","message":""}'})
            assert len(await task) == 1
            await writing.sent()
            await waits.sent()


async def test_who_has_something_to_write_takes_nothing_else_on(valkey: Valkey) -> None:
    """Not even of a partition that it has just written of."""
    async with shared_groups(valkey) as groups:
        with subscriber(groups) as slow, subscriber(groups) as quick:
            reading = asyncio.create_task(given(slow))
            await wait_until(lambda: len(slow._hellos) == COUNT, "it waits")
            valkey.client.xadd(KEYS[0], {"event": '{"source":"s","message":""}'})
            assert len(await reading) == 1
            slow._shares[1].ask(True)  # it was given this in the moment in which it began to write
            valkey.client.xadd(KEYS[1], {"event": '{"source":"s","message":""}'})
            await wait_until(slow._tasks[1].done, "it has something of another partition")
            await slow.sent()
            assert len(await given(slow)) == 1
            for _ in range(10):
                valkey.client.xadd(KEYS[0], {"event": '{"source":"s","message":""}'})
            others: list[str] = []
            while len(others) < 10:
                others += await given(quick)
                await quick.sent()


async def test_an_idle_subscriber_is_kept_and_told_of_the_end(valkey: Valkey) -> None:
    async with shared_groups(valkey) as groups:
        with subscriber(groups) as one:
            assert [type(item) for item in await one.next() or ()] == [Hello]
            assert await one.next() == []
            groups.close()
            (bye,) = await one.next() or ()
            assert isinstance(bye, Bye)
            assert await one.next() is None


# What else is told of it


async def test_who_reads_is_listed_once_with_the_lag_in_all_partitions(
    service: Service,
) -> None:
    async with (
        subscribed(service.url) as reader,
        subscribed(service.url, delivery="shared", group="g") as worker,
    ):
        await reader.named("hello")
        await worker.named("hello")
        await post(service, batch(30))
        events = await messages(reader, 30)
        await worker.until(30)

        async def settled() -> bool:
            listed = (await service.http.get("/subscribers")).json()["subscribers"]
            one, other = sorted(listed, key=lambda each: each["delivery"])
            assert (other["group"], len(listed)) == ("g", 2)
            return (one["cursor"], one["lag"], other["lag"]) == (events[-1].id, 0, 0)

        await wait_until(settled, "both have had all")


async def figure(service: Service, name: str) -> float:
    lines = (await service.http.get("/metrics")).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


async def test_metrics_are_those_of_all_partitions(service: Service) -> None:
    async with subscribed(service.url) as reader:
        await reader.named("hello")
        await post(service, batch(30))
        await messages(reader, 30)
        assert await figure(service, 'logpipe_subscribers{delivery="broadcast"}') == 1
        assert await figure(service, "logpipe_window_events") == 30
        assert await figure(service, "logpipe_feed_events_total") == 30
        assert await figure(service, "logpipe_delivered_events_total") == 30
        await wait_until(lambda: _is(service, "logpipe_stream_entries", 30), "they are summed")
        assert not math.isnan(await figure(service, "logpipe_redis_memory_bytes"))


async def _is(service: Service, name: str, value: float) -> bool:
    return await figure(service, name) == value


async def test_a_remote_subscription_resumes_by_the_position(service: Service) -> None:
    """What `logpipe tail` stands on."""
    await post(service, batch(20))
    async with http_client() as http:
        got: list[int] = []
        with RemoteDistributor(service.url, http)(Start(tail=20), {}) as subscription:
            while len(got) < 20:
                for item in await subscription.next() or ():
                    if isinstance(item, Batch):
                        got += [int(entry.event.message) for entry in item.entries]
            after = subscription._after
    assert sorted(got) == list(range(20))
    assert after is not None
    await post(service, batch(1, start=20))
    async with subscribed(service.url, {"Last-Event-ID": after}) as reader:
        assert numbers(await messages(reader, 1)) == [20]


# Settings


def test_what_does_not_go_together_with_partitions_is_refused() -> None:
    given = {"partitions": "4", "redis_addr": "redis://r"}
    bad = {"stream_name": "{a}b", "trim_maxlen": "3"}
    with pytest.raises(BadSettingsError) as caught:
        load(given | bad, {})
    tagged, page, trimmed = str(caught.value).split("\n")
    assert tagged.startswith("STREAM_NAME={a}b: must have no hash tag with PARTITIONS=4")
    assert page.startswith("PARTITIONS=4: the page reads one stream only")
    assert trimmed == "TRIM_MAXLEN=3: must be at least PARTITIONS=4"


async def test_one_partition_is_the_stream_as_ever(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role=BOTH, partitions=1) as service:
        await wait_until(said(service, "ok"), "it is ready")
        id_ = (await post(service, {"source": "s", "message": "1"}))["id"]
        assert valkey.client.keys("*logs") == [b"logs"]
        async with subscribed(service.url, tail=1) as reader:
            (event,) = await messages(reader, 1)
    assert (event.id, json.loads(event.data)["id"]) == (id_, id_)
