"""What `logpipe bench` measures on a real logpipe, and how it reports that."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.bench.deployment import Deployment, Name, Plan, UnfitError, address_of, get
from logpipe.bench.events import Template, marks
from logpipe.bench.measures import FanOut, Ingest, Measure, Spread, Usage, Used, fan_out, ingest
from logpipe.bench.report import lines, title, troubles
from logpipe.bench.sending import Address
from logpipe.client.connection import http_client
from logpipe.fanout import history
from logpipe.settings import load
from tests.impostor import Impostor
from tests.servers import Service, Valkey, free_port, serving

TINY = Plan(
    seconds=0.2,
    connections=8,
    batch=10,
    rate=50.0,
    readers=3,
    size=150,
    warm_up_s=0.05,
    latency_readers=2,
    latency_rates=(20.0, 200.0),
)


async def measured(
    service: Service, *names: Name, progress: Any = lambda *_: None, **tokens: str
) -> list[Measure]:
    plan = msgspec.structs.replace(TINY, names=names)
    async with http_client() as http:
        deployment = Deployment(http, service.url, service.url, load(tokens, {}))
        return [each async for each in deployment.measure(plan, progress)]


async def holds_events_of_others(url: str, **tokens: str) -> bool:
    async with http_client() as http:
        return await Deployment(http, url, url, load(tokens, {})).holds_events_of_others()


def meter(*usages: Usage) -> Callable[[], Awaitable[Usage]]:
    rest = list(usages)

    async def next_one() -> Usage:
        return rest.pop(0)

    return next_one


# -- events ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [150, 200, 1000])
def test_each_event_is_json_of_the_size_asked_for(size: int) -> None:
    template = Template("0123abcd", b"\n".join, per_request=3, size=size)
    events = template.request(7, 1_700_000_000_000_000).split(b"\n")
    assert [len(each) for each in events] == [size] * 3
    assert {json.loads(each)["source"] for each in events} == {"bench"}


def test_an_event_carries_its_number_and_due_time() -> None:
    template = Template("0123abcd", b"\n".join, per_request=2, size=1)
    request = template.request(7, 1_700_000_000_000_000)
    found = [tuple(map(int, each)) for each in marks("0123abcd").findall(request)]
    assert found == [(0, 7, 1_700_000_000_000_000), (1, 7, 1_700_000_000_000_000)]
    assert not marks("ffffffff").findall(request)


def test_requests_have_one_length_whatever_their_number() -> None:
    template = Template("0123abcd", b"\n".join)
    assert len({len(template.request(n, t)) for n in (0, 99_999_999) for t in (0, 10**15)}) == 1


# -- intake ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single", "batch"])
async def test_intake_is_measured_at_the_collector(name: Name, valkey: Valkey) -> None:
    parts: list[tuple[str, float]] = []
    async with serving(redis_addr=valkey.url, ingest_tokens="in", read_tokens="out") as service:
        (taken,) = await measured(
            service,
            name,
            progress=lambda *each: parts.append(each),
            ingest_tokens="in",
            read_tokens="out",
        )
        assert isinstance(taken, Ingest)
        answer = json.loads(taken.last)
        last = answer["id"] if name == "single" else answer["last_id"]
        assert valkey.client.xrange("logs", last, last)
    assert (taken.connections, taken.per_request) == ((8, 1) if name == "single" else (1, 10))
    assert taken.events_per_s > 0
    assert 0 < taken.answer_ms.p50 <= taken.answer_ms.p99 <= taken.answer_ms.max
    assert troubles(taken) == []
    assert taken.used.cores is not None and taken.used.cores > 0
    assert taken.used.rss_bytes is not None and taken.used.rss_bytes > 1_000_000
    assert {each for each, _ in parts} == {name}
    assert [part for _, part in parts] == sorted(part for _, part in parts)


async def test_intake_at_a_rate_sends_that_many(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, http_client() as http:
        target = Deployment(http, service.url, service.url).target
        assert target.batch is not None
        taken = await ingest(
            target, target.batch, connections=2, per_request=5, size=150, seconds=0.3, rate=100.0
        )  # fmt: skip
        rows: Any = valkey.client.xrange("logs")
    due = sorted({int(json.loads(row[b"event"])["message"].split()[4]) for _, row in rows})
    assert len(rows) == 30
    assert 0 < taken.events_per_s <= 100
    assert taken.used == Used(None, None)
    # Six requests, each due 50 ms after the one before it, however late it is sent.
    assert 200_000 < due[-1] - due[0] < 300_000


@pytest.mark.parametrize("rate", [None, 2_000.0])
async def test_too_large_batches_shrink_to_the_limit(rate: float | None, valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, trim_maxlen=1_000) as service, http_client() as http:
        target = Deployment(http, service.url, service.url).target
        assert target.batch is not None
        taken = await ingest(
            target, target.batch, connections=1, per_request=251, size=150, seconds=0.2, rate=rate
        )  # fmt: skip
    assert taken.per_request == 250
    assert taken.events_per_s > 0
    assert taken.refused == {}


async def test_refused_intake_is_reported_by_status(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="right") as service:
        (taken,) = await measured(service, "single")
    assert isinstance(taken, Ingest)
    assert taken.refused == {"401": 8}
    assert troubles(taken) == ["8 refused: 401"]
    assert (taken.events_per_s, taken.last) == (0, "")


# -- fan-out -----------------------------------------------------------------------------------


async def test_each_event_arrives_once_at_each_reader(valkey: Valkey) -> None:
    parts: list[float] = []
    async with serving(redis_addr=valkey.url) as service, http_client() as http:
        read = await fan_out(
            Deployment(http, service.url, service.url).target,
            readers=30,
            rate=50.0,
            size=150,
            seconds=0.5,
            meter=meter(Usage(1, 1000), Usage(1, 31_000), Usage(2, 5), Usage(3, 9)),
            tick=parts.append,
        )
    assert (read.readers, read.connected, read.sent) == (30, 30, 25)
    assert (read.delivered, read.missing, read.doubled) == (750, 0, 0)
    assert troubles(read) == []
    assert read.delivered_per_s > 0 and read.connects_per_s > 0
    assert read.received_bytes > 750 * 150
    assert 0 < read.latency_ms.p50 <= read.latency_ms.max
    assert read.bytes_a_reader == 1000
    assert read.used.rss_bytes == 9
    assert read.used.cores is not None and 0 < read.used.cores < 2.5
    assert parts and 0 < parts[0] <= parts[-1] <= 1


async def test_a_high_rate_is_published_in_batches(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, http_client() as http:
        target = Deployment(http, service.url, service.url).target
        for batch in (True, False):
            read = await fan_out(
                target, readers=3, rate=500.0, size=150, seconds=0.2, batch=batch
            )  # fmt: skip
            assert (read.sent, read.delivered, read.missing, read.doubled) == (100, 300, 0, 0)
        counted = (await service.http.get("/metrics")).text
    requests = re.findall(
        r'^logpipe_ingest_requests_total\{.*status="202".*\} (\S+)$', counted, re.MULTILINE
    )
    assert sum(map(float, requests)) == 20 + 100


async def test_readers_with_different_filters_all_count(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, http_client() as http:
        queries = ("source:bench", "level:info%20-level:error")
        requests = [get(service.url, f"/subscribe?q={query}") for query in queries]
        read = await fan_out(
            Deployment(http, service.url, service.url).target,
            readers=4,
            rate=50.0,
            size=150,
            seconds=0.2,
            requests=[*requests, get(service.url, "/subscribe?q=bad:(")],
        )
    # The third of four gets an answer with an error.
    assert (read.connected, read.sent, read.delivered) == (3, 10, 30)
    assert (read.missing, read.doubled) == (10, 0)
    assert read.broken == {"HTTP/1.1 400 Bad Request": 1}


async def test_a_fan_out_without_accepted_events_reports_it(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="right") as service:
        (read,) = await measured(service, "fan-out", ingest_tokens="wrong")
    assert isinstance(read, FanOut)
    assert (read.sent, read.delivered, read.missing) == (0, 0, 0)
    assert any(words.endswith("refused: 403") for words in troubles(read))


async def test_all_measures_run_one_after_the_other(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        found = await measured(service, "single", "batch", "fan-out", "latency")
    assert [type(each) for each in found] == [Ingest, Ingest, FanOut, FanOut, FanOut]
    assert [(each.readers, each.rate) for each in found[2:] if isinstance(each, FanOut)] == [
        (3, 50.0),
        (2, 20.0),
        (2, 200.0),
    ]
    assert not any(map(troubles, found))


# -- deployments that cannot be measured -------------------------------------------------------


async def test_events_of_others_are_seen_behind_many_of_bench(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAGE_SCAN", 2)
    async with serving(redis_addr=valkey.url) as service:
        bench = [{"source": "bench", "message": "of an earlier run"}] * 5
        assert not await holds_events_of_others(service.url)
        await service.post(bench)
        assert not await holds_events_of_others(service.url)
        await service.post({"source": "api", "message": "hello"})
        await service.post(bench)
        assert await holds_events_of_others(service.url)


async def test_a_reader_needs_its_token(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="right") as service:
        with pytest.raises(UnfitError, match="is answered 401"):
            await holds_events_of_others(service.url)
        assert not await holds_events_of_others(service.url, read_tokens="right")


async def test_an_address_where_nothing_listens_is_unfit() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnfitError, match="does not answer"):
        await holds_events_of_others(url)
    async with http_client() as http:
        with pytest.raises(UnfitError, match="the connection fails"):
            async for _ in Deployment(http, url, url).measure(TINY, lambda *_: None):
                pass


@pytest.mark.parametrize("body", ["<html>It works!</html>", "[]", '{"hits":[]}'])
async def test_something_else_that_listens_is_unfit(body: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    async with Impostor(head + body) as stranger:
        with pytest.raises(UnfitError, match="is no answer of logpipe"):
            await holds_events_of_others(stranger.url)
        async with http_client() as http:
            deployment = Deployment(http, stranger.url, stranger.url)
            with pytest.raises(UnfitError, match="is no answer of logpipe"):
                async for _ in deployment.measure(TINY, lambda *_: None):
                    pass
            assert await deployment.usage(stranger.url) is None


@pytest.mark.parametrize("name", ["single", "batch"])
async def test_a_distributor_of_another_redis_is_unfit(name: Name, valkey: Valkey) -> None:
    with Valkey.started() as other:
        async with (
            serving(redis_addr=valkey.url) as collector,
            serving(redis_addr=other.url) as distributor,
            http_client() as http,
        ):
            deployment = Deployment(http, collector.url, distributor.url)
            plan = msgspec.structs.replace(TINY, names=(name,))
            with pytest.raises(UnfitError, match="was acknowledged and is not at the distributor"):
                async for _ in deployment.measure(plan, lambda *_: None):
                    pass


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("http://logs.example/", Address("logs.example", 80)),
        ("https://logs.example", Address("logs.example", 443, tls=True)),
        ("http://[::1]:8080", Address("::1", 8080)),
    ],
)
def test_a_url_leads_to_an_address(url: str, address: Address) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:70000"])
def test_a_url_that_leads_nowhere_is_rejected(url: str) -> None:
    with pytest.raises(ValueError):
        address_of(url)


def test_a_subscription_sends_host_path_and_token() -> None:
    request = get("http://[::1]:80/logs/", "/subscribe", ("t",))
    assert request.startswith(b"GET /logs/subscribe HTTP/1.1\r\nHost: [::1]:80\r\n")
    assert b"\r\nAuthorization: Bearer t\r\n\r\n" in request
    assert get("http://h", "/x") == b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


# -- reports -----------------------------------------------------------------------------------


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


def test_a_spread_is_by_nearest_rank() -> None:
    assert Spread.of([]) == Spread(0, 0, 0)
    assert Spread.of([2, 1]) == Spread(1, 2, 2)
    assert Spread.of(range(100, 0, -1)) == Spread(50, 99, 100)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_the_median_is_a_value_with_half_at_most_it(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.p50 in values and spread.p50 <= spread.p99 <= spread.max == max(values)
    assert sum(each <= spread.p50 for each in values) * 2 >= len(values)
    assert sum(each < spread.p50 for each in values) * 2 < len(values)


def test_intake_is_reported_in_two_lines() -> None:
    first, second = lines(INGEST)
    assert first.split("  ")[0] == "single posts, 64 connections"
    assert first.endswith(" 12,346 events/s")
    assert second == "  answered after p50 1.0 ms, p99 2.0 ms, max 3.0 ms; 0.50 cores, 30 MB"
    batches = msgspec.structs.replace(INGEST, per_request=1000)
    assert title(batches) == "batches of 1,000, 64 connections"


def test_a_fan_out_is_reported_with_its_verdict() -> None:
    first, *rest = lines(FAN_OUT)
    assert first.split("  ")[0] == "1,000 readers x 1,000 events/s"
    assert first.endswith(" 1,000,000 delivered/s")
    assert rest == [
        "  p50 1.2 ms, p99 10.0 ms, max 100.0 ms from when it was due; 1.00 cores, 100 MB",
        "  500 connects/s; 20 kB a reader",
        "  every event arrived once at every reader",
    ]


def test_unknown_usage_is_left_out_of_a_report() -> None:
    unknown = msgspec.structs.replace(FAN_OUT, used=Used(), bytes_a_reader=None)
    assert list(lines(unknown))[2] == "  500 connects/s"
    shown = "\n".join([*lines(unknown), *lines(msgspec.structs.replace(INGEST, used=Used()))])
    assert "MB" not in shown and "kB" not in shown and ";" not in shown


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
def test_what_went_wrong_is_reported(wrong: dict[str, Any], words: list[str]) -> None:
    measure = msgspec.structs.replace(FAN_OUT, **wrong)
    assert troubles(measure) == words
    assert list(lines(measure))[3:] == [f"  {word}" for word in words]


def test_json_names_what_was_measured() -> None:
    assert json.loads(msgspec.json.encode(INGEST))["measure"] == "ingest"
    assert msgspec.json.decode(msgspec.json.encode(FAN_OUT), type=Ingest | FanOut) == FAN_OUT
