"""The measurements of a benchmark, on a real logpipe, and how they are told."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.bench import measures
from logpipe.bench.measures import FanOut, Ingest, Spread, Usage, Used, fan_out, ingest
from logpipe.bench.report import lines, title, troubles, whole
from logpipe.bench.target import Target, get, logpipe_at
from tests.servers import Service, Valkey, serving


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here needs no warm-up."""
    monkeypatch.setattr(measures, "WARM_UP_S", 0.1)


def target_of(service: Service, **tokens: str) -> Target:
    return logpipe_at(service.url, service.url, **tokens)


async def ingested(target: Target, *, batch: int = 0, **given_: Any) -> Ingest:
    """An ingest of 0.3 s by two connections, single posts or batches."""
    wrap = target.batch if batch else target.single
    assert wrap is not None
    amount = {"connections": 2, "per_request": batch or 1, "size": 150, "seconds": 0.3}
    return await asyncio.to_thread(ingest, target, wrap, **{**amount, **given_})


async def fanned_out(target: Target, **given_: Any) -> FanOut:
    """A fan-out to 20 readers, of 50 events a second for half a second."""
    amount = {"readers": 20, "rate": 50.0, "size": 150, "seconds": 0.5}
    return await asyncio.to_thread(fan_out, target, **{**amount, **given_})


def meter(*said: Usage | None) -> Callable[[], Usage | None]:
    rest = list(said)
    return lambda: rest.pop(0)


# -- spreads -----------------------------------------------------------------------------------


def test_a_spread_of_nothing_is_nothing() -> None:
    assert Spread.of([]) == Spread(0, 0, 0)


def test_a_spread_is_by_nearest_rank() -> None:
    assert Spread.of([7]) == Spread(7, 7, 7)
    assert Spread.of([2, 1]) == Spread(1, 2, 2)
    assert Spread.of(range(100, 0, -1)) == Spread(50, 99, 100)
    assert Spread.of(range(1, 1001)) == Spread(500, 990, 1000)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_half_of_the_values_are_at_most_the_median(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.p50 <= spread.p99 <= spread.max == max(values)
    for share, value in ((50, spread.p50), (99, spread.p99)):
        assert value in values
        assert sum(each <= value for each in values) * 100 >= share * len(values)
        assert sum(each < value for each in values) * 100 < share * len(values)


# -- ingest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 10])
async def test_an_ingest_says_how_fast_events_went_in(batch: int, valkey: Valkey) -> None:
    parts: list[float] = []
    async with serving(redis_addr=valkey.url) as service:
        taken = await ingested(
            target_of(service),
            batch=batch,
            meter=meter(Usage(1, 5), Usage(2, 7)),
            tick=parts.append,
        )
        answer = json.loads(taken.last)
        last = answer["last_id"] if batch else answer["id"]
        assert valkey.client.xrange("logs", last, last)
    assert (taken.target, taken.connections, taken.per_request) == ("logpipe", 2, batch or 1)
    assert taken.events_per_s > 0
    assert 0 < taken.answer_ms.p50 <= taken.answer_ms.p99 <= taken.answer_ms.max
    assert taken.refused == {}
    assert taken.used.cores is not None and 0 < taken.used.cores <= 1 / 0.3
    assert taken.used.rss_bytes == 7
    assert parts == sorted(parts)
    assert 0 < parts[0] <= parts[-1] <= 1
    assert whole([taken])


async def test_an_ingest_at_a_pace_sends_no_more_than_that(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        taken = await ingested(target_of(service), batch=5, rate=100.0)
        assert valkey.client.xlen("logs") == 30
    assert 0 < taken.events_per_s <= 100
    assert taken.used == Used(None, None)


@pytest.mark.parametrize("rate", [None, 2_000.0])
async def test_batches_that_are_too_large_are_made_smaller(
    rate: float | None, valkey: Valkey
) -> None:
    async with serving(redis_addr=valkey.url, trim_maxlen=480) as service:
        taken = await ingested(target_of(service), batch=1_000, rate=rate)
    assert taken.per_request == 120
    assert taken.events_per_s > 0
    assert whole([taken])


async def test_an_ingest_that_is_refused_says_so(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="right") as service:
        taken = await ingested(target_of(service, ingest_token="wrong"))
    assert (taken.events_per_s, taken.last, taken.refused["403"]) == (0, "", 2)
    assert not whole([taken])
    assert "2 refused: 403" in troubles(taken)


# -- fan-out -----------------------------------------------------------------------------------


async def test_every_event_of_a_fan_out_arrives_once_at_each_reader(valkey: Valkey) -> None:
    parts: list[float] = []
    async with serving(redis_addr=valkey.url) as service:
        measure = await fanned_out(
            target_of(service),
            meter=meter(Usage(1, 1000), Usage(1, 21_000), Usage(2, 5), Usage(3, 9)),
            tick=parts.append,
        )
    assert (measure.readers, measure.connected, measure.sent) == (20, 20, 25)
    assert (measure.delivered, measure.missing, measure.doubled) == (500, 0, 0)
    assert (measure.broken, measure.refused) == ({}, {})
    assert measure.delivered_per_s > 0
    assert measure.connects_per_s > 0
    assert measure.received_bytes > 500 * 150
    assert 0 < measure.latency_ms.p50 <= measure.latency_ms.max
    assert measure.bytes_a_reader == 1000
    assert measure.used.cores is not None and measure.used.cores > 0
    assert measure.used.rss_bytes == 9
    assert measure.readers_cpu >= 0
    assert parts == sorted(parts)
    assert 0 < parts[0] <= parts[-1] <= 1
    assert whole([measure])


async def test_events_of_a_high_rate_are_published_several_at_a_time(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        target = target_of(service)
        measure = await fanned_out(target, readers=3, rate=500.0, seconds=0.3)
        assert (measure.sent, measure.delivered, measure.missing) == (150, 450, 0)
        alone = await fanned_out(target, readers=3, rate=500.0, seconds=0.1, batch=False)
        assert (alone.sent, alone.delivered, alone.missing) == (50, 150, 0)
        assert valkey.client.xlen("logs") == 200


async def test_readers_with_different_filters_get_every_event_that_matches(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        target = target_of(service)
        assert target.distributor is not None
        requests = [
            get(target.distributor, f"/subscribe?q={query}")
            for query in ("source:bench", "level:info%20-level:error")
        ]
        measure = await fanned_out(target, requests=requests)
    assert (measure.connected, measure.sent, measure.delivered) == (20, 25, 500)
    assert (measure.missing, measure.doubled, measure.broken) == (0, 0, {})


async def test_readers_that_are_refused_say_with_which_status(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        target = target_of(service)
        assert target.distributor is not None
        request = get(target.distributor, "/subscribe?q=bad:(")
        measure = await fanned_out(target, requests=[request], readers=2)
    assert (measure.connected, measure.delivered) == (0, 0)
    assert measure.broken == {"HTTP/1.1 400 Bad Request": 2}
    assert not whole([measure])


async def test_a_fan_out_whose_events_are_refused_is_not_whole(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="right") as service:
        measure = await fanned_out(target_of(service, ingest_token="wrong"), readers=2)
    assert (measure.sent, measure.delivered, measure.missing) == (0, 0, 0)
    assert measure.refused["403"] > 0
    assert not whole([measure])
    told = list(lines([measure]))
    assert any("refused: 403" in line for line in told)
    assert not any("every event arrived" in line for line in told)


# -- how they are told -------------------------------------------------------------------------


INGEST = Ingest("logpipe", 64, 1, 12_345.6, Spread(1, 2, 3), {}, Used(0.5, 30_000_000), "{}")
FAN_OUT = FanOut(
    target="logpipe",
    readers=1000,
    rate=1000.0,
    connected=1000,
    connects_per_s=500.0,
    sent=5000,
    delivered=5_000_000,
    delivered_per_s=1e6,
    missing=0,
    doubled=0,
    latency_ms=Spread(1.25, 10, 100),
    bytes_a_reader=20_400.0,
    received_bytes=1,
    broken={},
    refused={},
    used=Used(1.0, 100_000_000),
    readers_cpu=0.5,
)


def test_an_ingest_is_told_in_two_lines() -> None:
    first, second = lines([INGEST])
    assert first.split("  ")[0] == "single posts, 64 connections"
    assert first.endswith(" 12,346 events/s")
    assert second == "  answered after p50 1.0 ms, p99 2.0 ms, max 3.0 ms; 0.50 cores, 30 MB"


def test_a_batch_is_told_by_its_size() -> None:
    batches = msgspec.structs.replace(INGEST, per_request=1000)
    assert title(batches) == "batches of 1,000, 64 connections"


def test_a_fan_out_is_told_with_its_verdict() -> None:
    first, *rest = lines([FAN_OUT])
    assert title(FAN_OUT) == "1,000 readers x 1,000 events/s"
    assert first.endswith(" 1,000,000 delivered/s")
    assert rest == [
        "  p50 1.2 ms, p99 10.0 ms, max 100.0 ms from when it was due; 1.00 cores, 100 MB",
        "  500 connects/s; 20 kB a reader",
        "  every event arrived once at every reader",
    ]


def test_what_is_not_known_is_left_out() -> None:
    unknown = msgspec.structs.replace(FAN_OUT, used=Used(), bytes_a_reader=None)
    told = list(lines([unknown, msgspec.structs.replace(INGEST, used=Used())]))
    assert told[2] == "  500 connects/s"
    assert not any("MB" in line or "kB" in line or line.endswith("; ") for line in told)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"connected": 998}, ["2 readers did not connect"]),
        ({"missing": 1234}, ["1,234 MISSING"]),
        ({"doubled": 1}, ["1 doubled"]),
        ({"broken": {"closed": 2}}, ["2 readers broken: closed"]),
        ({"refused": {"503": 3}}, ["3 refused: 503"]),
        ({"missing": 1, "doubled": 2}, ["1 MISSING", "2 doubled"]),
    ],
)
def test_what_went_wrong_in_a_fan_out_is_told(wrong: dict[str, Any], words: list[str]) -> None:
    measure = msgspec.structs.replace(FAN_OUT, **wrong)
    assert troubles(measure) == words
    assert not whole([INGEST, measure])
    assert list(lines([measure]))[3:] == [f"  {word}" for word in words]


def test_what_was_measured_is_a_line_of_json_that_names_itself() -> None:
    assert json.loads(msgspec.json.encode(INGEST))["measure"] == "ingest"
    assert msgspec.json.decode(msgspec.json.encode(FAN_OUT), type=Ingest | FanOut) == FAN_OUT
