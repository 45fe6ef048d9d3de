import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from logpipe.collector import appender as module
from logpipe.collector.appender import (
    ANSWER_WITHIN_S,
    LANES,
    LARGE_EVENTS,
    MAX_SHARED_BYTES,
    SMALL_BYTES,
    Appender,
)
from logpipe.collector.inflight import Inflight
from logpipe.metrics import Metrics
from logpipe.problems import Problem, Unavailable
from logpipe.stream import Append, Appended, RedisHealth, Stream
from tests.helpers import wait_until


class SlowStream:
    """Stands in for the stream: an append ends when it is let go, or with `error`."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.health = RedisHealth("redis://redis")
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def append(self, requests: Sequence[Append]) -> list[Appended]:
        self.calls.append([event for request in requests for event in request.events])
        await self.go.wait()
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return [
            Appended(each.events[0].decode(), each.events[-1].decode(), each.receipt, False)
            for each in requests
        ]


def an_appender(
    stream: SlowStream,
    metrics: Metrics | None = None,
    inflight: Inflight | None = None,
    answer_within_s: float = ANSWER_WITHIN_S,
) -> Appender:
    return Appender(
        cast(Stream, stream),
        metrics or Metrics(),
        inflight or Inflight(10**9),
        answer_within_s=answer_within_s,
    )


def sending(appender: Appender, *events: bytes) -> "asyncio.Task[Appended]":
    return asyncio.create_task(appender.append(Append(events)))


async def test_a_lone_request_is_appended_at_once() -> None:
    stream = SlowStream()
    stream.go.set()
    appended = await an_appender(stream).append(Append([b"a", b"b"], None, b"receipt"))
    assert appended == Appended("a", "b", b"receipt", False)
    assert stream.calls == [[b"a", b"b"]]


async def test_requests_that_come_during_an_append_share_the_next_one_in_their_order() -> None:
    stream, metrics = SlowStream(), Metrics()
    appender = an_appender(stream, metrics)
    first = sending(appender, b"0")
    await wait_until(lambda: stream.calls, "the first append has begun")
    later = [sending(appender, b"%d" % number) for number in range(1, 50)]
    await asyncio.sleep(0)
    stream.go.set()
    outcomes = await asyncio.gather(first, *later)
    assert stream.calls == [[b"0"], [b"%d" % number for number in range(1, 50)]]
    assert [outcome.first for outcome in outcomes] == [str(number) for number in range(50)]
    assert metrics.registry.get_sample_value("logpipe_append_events_count") == 2
    assert metrics.registry.get_sample_value("logpipe_append_events_sum") == 50


async def test_no_more_than_its_size_goes_into_one_shared_append(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SHARED_BYTES", 10)
    stream = SlowStream()
    appender = an_appender(stream)
    tasks = [sending(appender, event) for event in (b"0", b"1" * 6, b"2" * 4, b"3", b"4" * 50)]
    await wait_until(lambda: stream.calls, "the first append has begun")
    stream.go.set()
    await asyncio.gather(*tasks)
    sizes = [sum(map(len, call)) for call in stream.calls]
    assert sum(sizes) == 62
    assert all(size <= 10 or len(call) == 1 for size, call in zip(sizes, stream.calls, strict=True))


async def test_every_request_of_an_append_that_fails_is_told_and_the_next_ones_are_tried() -> None:
    stream = SlowStream()
    stream.error = Unavailable("full", "out of memory")
    appender = an_appender(stream)
    tasks = [sending(appender, b"%d" % number) for number in range(5)]
    stream.go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 5
    stream.error = None
    assert (await appender.append(Append([b"after"]))).first == "after"


async def test_a_request_that_redis_does_not_confirm_is_answered_in_time() -> None:
    stream = SlowStream()
    appender = an_appender(stream, answer_within_s=0.05)
    with pytest.raises(Unavailable):
        await appender.append(Append([b"hung"]))
    tasks = [sending(appender, b"behind it") for _ in range(3)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3


async def hung_in_all_lanes(
    stream: SlowStream, appender: Appender
) -> "list[asyncio.Task[Appended]]":
    """As many requests as there are lanes, each in an append of its own that has begun."""
    tasks = []
    for number in range(LANES):
        tasks.append(sending(appender, b"hung %d" % number))
        await wait_until(lambda: len(stream.calls) == len(tasks), "the append has begun")
    return tasks


@pytest.mark.parametrize(
    "given_up",
    [[b"given up"], [b"x" * (SMALL_BYTES + 1)], [b"L"] * (LARGE_EVENTS + 1)],
    ids=["small", "batch", "large"],
)
async def test_a_request_given_up_while_it_waited_is_not_appended(given_up: list[bytes]) -> None:
    stream = SlowStream()
    appender = an_appender(stream, answer_within_s=0.05)
    tasks = await hung_in_all_lanes(stream, appender)
    tasks.append(sending(appender, *given_up))
    await asyncio.wait(tasks)
    assert all(isinstance(task.exception(), Unavailable) for task in tasks)
    appender.answer_within_s = 60
    stream.go.set()
    assert (await appender.append(Append([b"next"]))).first == "next"
    await wait_until(lambda: not appender.inflight.bytes, "nothing is under way")
    assert stream.calls == [[b"hung %d" % number] for number in range(LANES)] + [[b"next"]]


async def test_an_append_that_failed_leaves_nothing_under_way() -> None:
    stream = SlowStream()
    stream.error = Unavailable("away", "no Redis")
    stream.go.set()
    appender = an_appender(stream, inflight=Inflight(200))
    for _ in range(5):
        with pytest.raises(Unavailable):
            await appender.append(Append([b"x" * 100]))
        assert appender.inflight.bytes == 0


async def test_a_request_is_not_refused_with_an_overdue_one() -> None:
    stream = SlowStream()
    appender = an_appender(stream, answer_within_s=0.05)
    overdue = sending(appender, b"overdue")
    await wait_until(lambda: stream.calls, "the append has begun")
    appender.answer_within_s = 60
    in_time = sending(appender, b"in time")
    with pytest.raises(Unavailable):
        await overdue
    stream.go.set()
    assert (await in_time).first == "in time"


async def test_more_than_memory_allows_is_refused_at_once_and_asked_to_come_back() -> None:
    stream, inflight = SlowStream(), Inflight(101 + 3 * module.EVENT_BYTES)
    appender = an_appender(stream, None, inflight)
    under_way = sending(appender, b"0")
    await wait_until(lambda: stream.calls, "the first append has begun")
    waiting = [sending(appender, b"x" * 50) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Problem) as caught:
        await appender.append(Append([b"x"]))
    assert caught.value.status == 503
    assert caught.value.headers["Retry-After"] == "1"
    assert caught.value.hits == {"inflight": 1}
    stream.go.set()
    await asyncio.gather(under_way, *waiting)
    assert (await appender.append(Append([b"again"]))).first == "again"
    await wait_until(lambda: not inflight.bytes, "nothing is under way")


def large(name: bytes) -> list[bytes]:
    return [name] * (LARGE_EVENTS + 1)


async def test_small_requests_are_appended_beside_a_large_one() -> None:
    stream = SlowStream()
    appender = an_appender(stream)
    first, second = sending(appender, *large(b"L")), sending(appender, *large(b"M"))
    await wait_until(lambda: stream.calls, "the large append has begun")
    small = sending(appender, b"a")
    await wait_until(lambda: len(stream.calls) == 2, "the small append has begun")
    assert [call[0] for call in stream.calls] == [b"L", b"a"]
    later = sending(appender, b"b")
    stream.go.set()
    await asyncio.gather(first, second, small, later)
    assert [call[0] for call in stream.calls] == [b"L", b"a", b"b", b"M"]


async def test_a_small_request_waits_for_few_of_many_batches() -> None:
    stream = SlowStream()
    appender = an_appender(stream)
    batches = [sending(appender, b"x" * (MAX_SHARED_BYTES + 1)) for _ in range(20)]
    await wait_until(lambda: len(stream.calls) == LANES, "two appends are under way")
    small = sending(appender, b"a")
    await asyncio.sleep(0)
    stream.go.set()
    await asyncio.gather(*batches, small)
    assert [b"a"] in stream.calls[: LANES + 2]
    assert len(stream.calls) == 21


async def test_large_requests_wait_for_each_other_and_not_for_ever() -> None:
    stream = SlowStream()
    appender = an_appender(stream)
    tasks = [sending(appender, *large(b"L%d" % number)) for number in range(3)]
    await wait_until(lambda: stream.calls, "the first large append has begun")
    assert [call[0] for call in stream.calls] == [b"L0"]
    alone = b"x" * (MAX_SHARED_BYTES + 1)
    tasks += [sending(appender, alone) for _ in range(20)]
    await asyncio.sleep(0)
    stream.go.set()
    await asyncio.gather(*tasks)
    order = [call[0][:2] for call in stream.calls]
    assert [name for name in order if name != b"xx"] == [b"L0", b"L1", b"L2"]
    assert order.index(b"L2") < 10


async def test_a_large_request_given_up_is_under_way_until_redis_is_done() -> None:
    stream = SlowStream()
    appender = an_appender(stream, answer_within_s=0.05)
    with pytest.raises(Unavailable):
        await appender.append(Append(large(b"L")))
    with pytest.raises(Unavailable):
        await appender.append(Append(large(b"M")))
    assert [call[0] for call in stream.calls] == [b"L"]
    appender.answer_within_s = 60
    stream.go.set()
    await wait_until(lambda: not appender.inflight.bytes, "nothing is under way")
    assert (await appender.append(Append(large(b"N")))).first == "N"
    assert [call[0] for call in stream.calls] == [b"L", b"N"]


async def test_large_requests_leave_room_for_small_ones() -> None:
    events = large(b"L")
    size = len(events) * (1 + module.EVENT_BYTES)
    stream, inflight = SlowStream(), Inflight(2 * size)
    appender = an_appender(stream, None, inflight)
    first = sending(appender, *events)
    await wait_until(lambda: stream.calls, "the large append has begun")
    with pytest.raises(Problem) as caught:
        await appender.append(Append(events))
    assert caught.value.hits == {"inflight": 1}
    small = sending(appender, b"x" * (size // 2))
    stream.go.set()
    await asyncio.gather(first, small)
    assert inflight.bytes == 0


async def test_one_request_larger_than_the_bound_is_taken_when_nothing_waits() -> None:
    stream = SlowStream()
    stream.go.set()
    assert (
        await an_appender(stream, None, Inflight(100)).append(Append([b"x" * 500]))
    ).first == "x" * 500


async def test_a_sender_that_is_cancelled_does_not_hold_up_the_others() -> None:
    stream = SlowStream()
    appender = an_appender(stream)
    first = sending(appender, b"0")
    await wait_until(lambda: stream.calls, "the first append has begun")
    leaves, stays = sending(appender, b"leaves"), sending(appender, b"stays")
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.sleep(0)
    stream.go.set()
    assert (await first).first == "0"
    assert (await stays).first == "stays"
    assert stream.calls[1] == [b"stays"]


async def test_closing_waits_for_the_append_under_way() -> None:
    stream = SlowStream()
    appender = an_appender(stream)
    task = sending(appender, b"a")
    await wait_until(lambda: stream.calls, "the append has begun")
    closing = asyncio.create_task(appender.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    stream.go.set()
    await closing
    assert (await task).first == "a"


async def test_closing_does_not_wait_for_ever() -> None:
    stream = SlowStream()
    appender = an_appender(stream, answer_within_s=0.05)
    with pytest.raises(Unavailable):
        await appender.append(Append([b"hung"]))
    await appender.aclose()
    stream.go.set()


async def test_closing_before_anything_was_sent_does_nothing() -> None:
    stream = SlowStream()
    await an_appender(stream).aclose()
    assert stream.calls == []


async def test_a_sender_that_left_does_not_keep_others_from_their_refusal() -> None:
    stream = SlowStream()
    appender = an_appender(stream, answer_within_s=0.05)
    leaves, stays = sending(appender, b"leaves"), sending(appender, b"stays")
    await wait_until(lambda: stream.calls, "the append has begun")
    leaves.cancel()
    outcomes = await asyncio.gather(leaves, stays, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, Unavailable]


async def test_closing_refuses_those_that_wait_beside_one_that_left() -> None:
    stream = SlowStream()
    appender = an_appender(stream)
    leaves, stays = sending(appender, b"leaves"), sending(appender, b"stays")
    await wait_until(lambda: stream.calls, "the append has begun")
    leaves.cancel()
    await asyncio.sleep(0)
    appender.answer_within_s = 0.05
    await appender.aclose()
    assert isinstance(stays.exception(), Unavailable)
