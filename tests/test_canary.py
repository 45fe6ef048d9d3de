"""The canary, on a real stream: what it says of its way, and when it says that one is lost."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from logpipe.canary import (
    MAX_INSTANCES,
    MAX_LEFT_OUT,
    SOURCE,
    Heard,
    Mark,
    await_canaries,
    canary,
    send_canaries,
    signature_of,
)
from logpipe.event import StoredEvent
from logpipe.fanout.hub import Hub
from logpipe.metrics import Metrics
from logpipe.problems import Problem, Unavailable
from logpipe.stream import Append, Appended, Stream
from logpipe.stream.scripts import companion_key
from tests.decoding import decode_json
from tests.helpers import wait_until
from tests.servers import Service, Valkey, serving, subscribed
from tests.streams import add, address_of, running, stream_at

NOW_MS = 1_800_000_000_000
SECRET = b"s" * 32


def figures(metrics: Metrics) -> tuple[float, float, float]:
    """How many were received, lost, and had their age noted."""
    names = ("received_total", "lost_total", "latency_seconds_count")
    values = [metrics.registry.get_sample_value(f"logpipe_canary_{name}") for name in names]
    return values[0] or 0, values[1] or 0, values[2] or 0


async def secret() -> bytes:
    return SECRET


def heard_by(metrics: Metrics) -> Heard:
    return Heard(metrics, secret)


def marked(instance: str, number: int, ts: int = NOW_MS, by: bytes = SECRET) -> StoredEvent:
    """A canary, signed with a secret."""
    signature = signature_of(Mark(instance, number), ts, by)
    return named(ts, instance=instance, number=number, signature=signature)


def named(ts: int | None = NOW_MS, **metadata: object) -> StoredEvent:
    return StoredEvent(SOURCE, "x", "TRACE", ts, metadata=metadata)


async def scraped(service: Service, name: str) -> float:
    text = (await service.http.get("/metrics")).text
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


@asynccontextmanager
async def task(coroutine: Any) -> AsyncIterator["asyncio.Task[None]"]:
    """Runs it for the length of the block."""
    running_task = asyncio.create_task(coroutine)
    try:
        yield running_task
    finally:
        running_task.cancel()
        with suppress(asyncio.CancelledError):
            await running_task


# -- the event -----------------------------------------------------------------------------------


def test_a_canary_is_an_event_that_a_collector_would_take() -> None:
    before_ms = time.time_ns() // 1_000_000
    ((event,), refusals, _) = decode_json(canary(Mark("i", 7), SECRET))
    assert refusals == []
    assert (event.source, event.level) == ("logpipe.canary", "TRACE")
    assert {**event.metadata, "signature": ""} == {"instance": "i", "number": 7, "signature": ""}
    assert re.fullmatch("[0-9a-f]{64}", event.metadata["signature"])
    assert before_ms <= (event.ts_unix_ms or 0) <= time.time_ns() // 1_000_000


# -- what is heard -------------------------------------------------------------------------------


async def test_numbers_in_a_row_are_received_and_none_is_lost() -> None:
    metrics = Metrics()
    heard = heard_by(metrics)
    for number in (5, 6, 7):  # those before the first were sent before this process was there
        await heard.note([marked("a", number)], NOW_MS + 20)
    assert figures(metrics) == (3, 0, 3)
    total = metrics.registry.get_sample_value("logpipe_canary_latency_seconds_sum")
    assert total == pytest.approx(0.06)


async def test_the_numbers_that_are_left_out_are_lost() -> None:
    metrics = Metrics()
    await heard_by(metrics).note([marked("a", number) for number in (1, 2, 6, 7, 9)], NOW_MS)
    assert figures(metrics) == (5, 4, 5)


async def test_each_collector_process_has_numbers_of_its_own() -> None:
    metrics = Metrics()
    heard = heard_by(metrics)
    for instance, number in (("a", 1), ("b", 40), ("a", 2), ("b", 42)):
        await heard.note([marked(instance, number)], NOW_MS)
    assert figures(metrics) == (4, 1, 4)


async def test_one_that_comes_twice_counts_once() -> None:
    """Its first append was confirmed to nobody, so it was sent again under its number."""
    metrics = Metrics()
    await heard_by(metrics).note([marked("a", number) for number in (1, 2, 2, 3)], NOW_MS)
    assert figures(metrics) == (3, 0, 3)


async def test_a_number_that_leaps_begins_anew() -> None:
    metrics = Metrics()
    heard = heard_by(metrics)
    leap = MAX_LEFT_OUT + 3
    await heard.note([marked("a", number) for number in (1, leap, leap + 2)], NOW_MS)
    assert figures(metrics) == (3, 1, 3)


@pytest.mark.parametrize(
    "event",
    [
        named(),
        named(instance="a", number=1),
        named(instance="a", number=1, signature="0" * 64),
        named(instance="a", number=1, signature="é"),
        named(instance="a", number=1, signature=None),
        named(instance=7, number=1, signature=""),
        named(instance="a", number="1", signature=""),
        named(instance="a", number=10**400, signature=""),
        named(instance="a", number=True, signature=""),
        marked("a", 0),
        marked("a", -1),
        marked("a", 2**53 + 1),
        marked("x" * 65, 1),
        marked("a", 1, by=b"another"),
        named(None, **marked("a", 1).metadata),
        named(NOW_MS + 1, **marked("a", 1).metadata),
        named(10**400, **marked("a", 1).metadata),
        named(**{**marked("a", 1).metadata, "number": 2}),
        named(**{**marked("a", 1).metadata, "instance": "b"}),
    ],
    ids=lambda event: str(event)[:200],
)
async def test_what_is_not_signed_is_no_canary(event: StoredEvent) -> None:
    metrics = Metrics()
    await heard_by(metrics).note([event], NOW_MS)
    assert figures(metrics) == (0, 0, 0)


@pytest.mark.parametrize("ts", [NOW_MS + 5_000, 0])
async def test_a_moment_that_cannot_be_is_held_within_bounds(ts: int) -> None:
    metrics = Metrics()
    await heard_by(metrics).note([marked("a", 1, ts)], NOW_MS)
    total = metrics.registry.get_sample_value("logpipe_canary_latency_seconds_sum")
    assert total in (0, 86_400)


async def test_of_many_collectors_the_one_heard_of_longest_ago_is_forgotten() -> None:
    metrics = Metrics()
    heard = heard_by(metrics)
    await heard.note([marked(f"i{number}", 1) for number in range(MAX_INSTANCES)], NOW_MS)
    await heard.note([marked("i0", 2)], NOW_MS)  # i1 is now the oldest
    for instance, number in (("new", 1), ("i0", 4), ("i1", 9)):
        await heard.note([marked(instance, number)], NOW_MS)
    assert figures(metrics)[1] == 1


class Secrets:
    """The secret of a stream, as it changes."""

    def __init__(self, *answers: bytes | Unavailable | None) -> None:
        self.answers = list(answers)

    async def __call__(self) -> bytes | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        return answer


async def test_a_new_secret_loses_no_canary() -> None:
    """As after a flush. The one that was signed with the last one may come after it."""
    metrics = Metrics()
    secrets = Secrets(SECRET, b"new")
    heard = Heard(metrics, secrets)
    await heard.note([marked("a", 1)], NOW_MS)
    await heard.note([marked("a", 2, by=b"new"), marked("b", 5)], NOW_MS)
    await heard.note([marked("a", 3, by=b"new"), marked("b", 6)], NOW_MS)
    assert figures(metrics) == (5, 0, 5)
    assert secrets.answers == []


@pytest.mark.parametrize("answer", [None, Unavailable("away", "x")], ids=["missing", "away"])
async def test_without_a_secret_no_canary_counts_as_lost(answer: Unavailable | None) -> None:
    metrics = Metrics()
    heard = Heard(metrics, Secrets(SECRET, answer, b"new"))
    await heard.note([marked("a", 1)], NOW_MS)
    await heard.note([marked("a", 2, by=b"new")], NOW_MS)
    await heard.note([marked("a", 3, by=b"new"), marked("a", 5, by=b"new")], NOW_MS)
    assert figures(metrics) == (3, 1, 3)


async def test_many_false_ones_ask_for_the_secret_once_together() -> None:
    secrets = Secrets(SECRET, SECRET)
    heard = Heard(Metrics(), secrets)
    for _ in range(2):
        await heard.note([marked("a", 1, by=b"false")] * 100, NOW_MS)
    assert secrets.answers == []


# -- what is sent --------------------------------------------------------------------------------


async def test_only_what_was_confirmed_uses_a_number_up() -> None:
    """Else each outage of Redis would look like a loss."""
    sent: list[int] = []
    refusals = iter([Unavailable("away", "x"), Problem(503, "too much"), None, None])

    async def append(request: Append) -> Appended:
        ((event,), _, _) = decode_json(request.events[0])
        sent.append(event.metadata["number"])
        if error := next(refusals, None):
            raise error
        return Appended("1-0", "1-0", b"", repeated=False)

    metrics = Metrics()
    async with task(send_canaries(append, secret, metrics, 0.001)) as sending:
        await wait_until(lambda: len(sent) >= 5, "five were sent")
        assert not sending.done()
    assert sent[:5] == [1, 1, 1, 2, 3]
    assert metrics.registry.get_sample_value("logpipe_canary_sent_total") in (
        len(sent) - 2,
        len(sent) - 3,  # the last may have been cut off
    )


async def test_each_process_is_an_instance_of_its_own() -> None:
    seen: set[str] = set()

    async def append(request: Append) -> Appended:
        ((event,), _, _) = decode_json(request.events[0])
        seen.add(event.metadata["instance"])
        return Appended("1-0", "1-0", b"", repeated=False)

    metrics = Metrics()
    async with (
        task(send_canaries(append, secret, metrics, 0.001)),
        task(send_canaries(append, secret, metrics, 0.001)),
    ):
        await wait_until(lambda: len(seen) == 2, "both have sent")


# -- on a stream ---------------------------------------------------------------------------------


async def sent(stream: Stream, instance: str, number: int) -> None:
    await stream.append([Append([canary(Mark(instance, number), await stream.secret.made())])])


@asynccontextmanager
async def awaiting(hub: Hub) -> AsyncIterator["asyncio.Task[None]"]:
    async with task(await_canaries(hub, hub.metrics)) as waiting:
        await wait_until(lambda: hub.attached, "the feed has begun")
        yield waiting


async def test_canaries_are_found_among_other_events(valkey: Valkey) -> None:
    async with (
        stream_at(address_of(valkey)) as stream,
        running(stream) as hub,
        awaiting(hub),
    ):
        await sent(stream, "a", 1)
        for number in (2, 4):
            await add(stream, 30)
            await sent(stream, "a", number)
        await wait_until(lambda: figures(hub.metrics)[0] == 3, "three have come")
        assert figures(hub.metrics) == (3, 1, 3)


async def test_one_that_is_no_longer_in_the_stream_is_lost_once_the_next_has_come(
    valkey: Valkey,
) -> None:
    """A flush takes what was confirmed: subscribers are told by a gap, an operator by this."""
    async with (
        stream_at(address_of(valkey)) as stream,
        running(stream) as hub,
        awaiting(hub),
    ):
        await sent(stream, "a", 1)
        await wait_until(lambda: figures(hub.metrics)[0] == 1, "the first has come")
        pipeline = valkey.client.pipeline(transaction=True)
        pipeline.xadd(stream.name, {"event": canary(Mark("a", 2), SECRET)})
        pipeline.delete(stream.name)
        pipeline.execute()
        await sent(stream, "a", 3)
        await wait_until(lambda: figures(hub.metrics)[0] == 2, "the third has come")
        assert figures(hub.metrics) == (2, 1, 2)


async def test_the_reader_of_canaries_is_no_subscriber(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey)) as stream, running(stream) as hub, awaiting(hub):
        assert hub.subscribers == set()
        count = hub.metrics.registry.get_sample_value
        assert not count("logpipe_subscribers", {"delivery": "broadcast"})


async def test_whoever_measures_reads_nothing_from_the_stream_himself(valkey: Valkey) -> None:
    """A distributor that is behind shall not be held up by its canary."""
    async with stream_at(address_of(valkey)) as stream, running(stream) as hub, awaiting(hub):
        await add(stream, 30)
        await sent(stream, "a", 1)
        valkey.client.delete(stream.name)  # the feed begins anew, and its window with it
        await sent(stream, "a", 2)
        await wait_until(lambda: figures(hub.metrics)[0] >= 1, "the last has come")
        assert hub.metrics.registry.get_sample_value("logpipe_catchup_reads_total") == 0


async def test_the_end_of_the_hub_is_no_fault(valkey: Valkey) -> None:
    """A task that ends by itself would end the process with an error."""
    async with (
        stream_at(address_of(valkey)) as stream,
        running(stream) as hub,
        awaiting(hub) as waiting,
    ):
        hub.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()


# -- in processes --------------------------------------------------------------------------------


async def test_a_canary_goes_from_a_collector_to_a_distributor(valkey: Valkey) -> None:
    given = {"redis_addr": valkey.url, "canary_s": "0.02"}
    async with (
        serving(role="distributor", **given) as distributor,
        serving(role="collector", **given) as one,
        serving(role="collector", **given) as two,
    ):

        async def seen() -> bool:
            return await scraped(distributor, "logpipe_canary_received_total") >= 10

        await wait_until(seen, "ten have come")
        for collector in (one, two):
            assert await scraped(collector, "logpipe_canary_sent_total") >= 1
            assert await scraped(collector, "logpipe_canary_received_total") == 0
        assert await scraped(distributor, "logpipe_canary_sent_total") == 0
        assert await scraped(distributor, "logpipe_canary_lost_total") == 0
        assert await scraped(distributor, "logpipe_canary_latency_seconds_count") >= 10


async def test_an_outage_of_redis_loses_no_canary(own_valkey: Valkey) -> None:
    given = {"redis_addr": own_valkey.url, "canary_s": "0.02"}
    async with serving(role="collector,distributor", **given) as service:

        def more_than(count: float) -> Any:
            async def seen() -> bool:
                return await scraped(service, "logpipe_canary_received_total") > count

            return seen

        await wait_until(more_than(3), "some have come")
        own_valkey.kill()
        await asyncio.sleep(0.2)  # some are refused meanwhile
        own_valkey.start()
        before = await scraped(service, "logpipe_canary_received_total")
        await wait_until(more_than(before + 3), "more have come")
        assert await scraped(service, "logpipe_canary_lost_total") == 0


async def test_subscribers_see_canaries_and_can_hide_them(valkey: Valkey) -> None:
    given = {"redis_addr": valkey.url, "canary_s": "0.02"}
    async with (
        serving(role="collector,distributor", **given) as service,
        subscribed(service.url) as all_,
        subscribed(service.url, q=f"-source:{SOURCE}") as without,
    ):
        await without.named("hello")
        (seen,) = await all_.until(1)
        assert (seen["source"], seen["level"]) == (SOURCE, "TRACE")
        await service.post({"source": "a", "message": "b"})
        (event,) = await without.until(1)
        assert event["source"] == "a"


async def test_a_flush_with_its_secret_is_no_false_alarm(own_valkey: Valkey) -> None:
    """Canaries are counted again once the collectors have made a new secret."""
    given = {"redis_addr": own_valkey.url, "canary_s": "0.02"}
    async with serving(role="collector,distributor", **given) as service:

        async def received() -> float:
            return await scraped(service, "logpipe_canary_received_total")

        async def some_more() -> None:
            before = await received()

            async def seen() -> bool:
                return await received() > before + 3

            await wait_until(seen, "canaries come")

        await some_more()
        lost = await scraped(service, "logpipe_canary_lost_total")
        own_valkey.client.delete(companion_key("logs", "canary", ""))
        await some_more()
        assert await scraped(service, "logpipe_canary_lost_total") == lost == 0


async def test_a_sender_cannot_make_a_canary(valkey: Valkey) -> None:
    given = {"redis_addr": valkey.url, "canary_s": "0.02"}
    async with serving(role="collector,distributor", **given) as service:
        async with subscribed(service.url, q=f"source:{SOURCE}") as reader:
            (seen,) = await reader.until(1)
        for number in (seen["metadata"]["number"] + 1_000, 2**53):
            seen["metadata"]["number"] = number
            forged = {name: value for name, value in seen.items() if name != "id"}
            assert (await service.post(forged)).status_code == 422
            valkey.client.xadd("logs", {"event": json.dumps(forged, separators=(",", ":"))})
        before = await scraped(service, "logpipe_canary_received_total")

        async def went_on() -> bool:
            return await scraped(service, "logpipe_canary_received_total") > before + 3

        await wait_until(went_on, "true ones come behind it")
        assert await scraped(service, "logpipe_canary_lost_total") == 0


async def test_a_user_without_the_key_of_the_secret_sends_none(
    own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    """And everything else works, as with the rights of an earlier version."""
    words = ["on", ">pw", "~logs", "~{logs}:once:*", "+@all"]
    client = own_valkey.client
    client.execute_command("ACL", "SETUSER", "old", *words)  # type: ignore[no-untyped-call]
    address = own_valkey.url.replace("//", "//old:pw@")
    async with serving(role="collector", redis_addr=address, canary_s="0.02") as service:
        await wait_until(lambda: "no canaries" in caplog.text, "it says so")
        assert (await service.post({"source": "a", "message": "b"})).status_code == 202
        assert await scraped(service, "logpipe_canary_sent_total") == 0


async def test_without_the_setting_nothing_is_sent(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="collector,distributor") as service:
        names = {each.get_name() for each in asyncio.all_tasks()}
        assert not names & {"canary", "canaries"}
        assert json.loads((await service.http.get("/events")).content)["events"] == []
