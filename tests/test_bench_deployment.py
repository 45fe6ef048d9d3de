"""What a benchmark makes of a running deployment, and of what is none."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from logpipe.bench import deployment, measures
from logpipe.bench.deployment import NAMES, Name, Plan, UnfitError, foreign_events, usage
from logpipe.bench.http import Address
from logpipe.bench.measures import FanOut, Ingest, Measure
from logpipe.bench.report import whole
from logpipe.bench.target import Target, address_of, logpipe_at
from logpipe.fanout import history
from tests.servers import Service, Valkey, free_port, serving

TINY = Plan(seconds=0.2, connections=8, batch=10, rate=50.0, readers=3, size=150)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here needs no warm-up."""
    monkeypatch.setattr(measures, "WARM_UP_S", 0.05)


def target_of(service: Service, **tokens: str) -> Target:
    return logpipe_at(service.url, service.url, **tokens)


async def measured(
    target: Target, *names: Name, token: str = "", progress: Any = lambda *_: None, **plan: Any
) -> Sequence[Measure]:
    asked = msgspec.structs.replace(TINY, names=names, **plan)
    return await asyncio.to_thread(lambda: list(deployment.measure(target, asked, progress, token)))


async def has_foreign_events(target: Target, token: str = "") -> bool:
    return await asyncio.to_thread(foreign_events, target, token)


@contextlib.contextmanager
def answering(body: bytes, status: str = "200 OK") -> Iterator[str]:
    """A server that gives one answer to all; its URL."""
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(65_536):
                head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(10)
            for thread in threads:
                thread.join(10)


# -- what the stream holds ---------------------------------------------------------------------


async def test_the_events_of_others_are_foreign_and_those_of_a_benchmark_are_not(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        target = target_of(service)
        assert not await has_foreign_events(target)
        await service.post({"source": "bench", "message": "of a run before"})
        assert not await has_foreign_events(target)
        await service.post({"source": "api", "message": "hello"})
        assert await has_foreign_events(target)


async def test_foreign_events_are_seen_behind_however_many_of_a_benchmark(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAGE_SCAN", 2)
    async with serving(redis_addr=valkey.url) as service:
        target = target_of(service)
        bench = [{"source": "bench", "message": "of a run before"}] * 5
        await service.post(bench)
        assert not await has_foreign_events(target)
        await service.post({"source": "api", "message": "hello"})
        await service.post(bench)
        assert await has_foreign_events(target)


async def test_a_token_that_may_not_read_makes_a_deployment_unfit(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="right") as service:
        with pytest.raises(UnfitError, match="is answered 401"):
            await has_foreign_events(target_of(service))
        with pytest.raises(UnfitError, match="is answered 403"):
            await has_foreign_events(target_of(service), "wrong")
        assert not await has_foreign_events(target_of(service), "right")


def test_an_address_where_nothing_listens_is_unfit() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnfitError, match=r"does not answer: .*refused"):
        foreign_events(logpipe_at(url, url), "")


@pytest.mark.parametrize("body", [b"<html>It works!</html>", b"[]", b'{"hits":[]}', b"\xff"])
def test_an_address_where_something_else_listens_is_unfit(body: bytes) -> None:
    with answering(body) as url, pytest.raises(UnfitError, match="is no answer of logpipe"):
        foreign_events(logpipe_at(url, url), "")


def test_an_address_without_such_a_page_is_unfit_and_its_words_are_told() -> None:
    with (
        answering(b"nothing \xff here", "404 Not Found") as url,
        pytest.raises(UnfitError, match="is answered 404: nothing \ufffd here"),
    ):
        foreign_events(logpipe_at(url, url), "")


# -- measuring ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single", "batch"])
async def test_an_ingest_is_measured_at_the_collector(name: Name, valkey: Valkey) -> None:
    told: list[tuple[str, float]] = []
    async with serving(redis_addr=valkey.url, ingest_tokens="in", read_tokens="out") as service:
        target = target_of(service, ingest_token="in", read_token="out")
        (taken,) = await measured(
            target, name, token="out", progress=lambda *each: told.append(each), seconds=0.5
        )
    assert isinstance(taken, Ingest)
    assert (taken.connections, taken.per_request) == ((8, 1) if name == "single" else (1, 10))
    assert taken.events_per_s > 0
    assert whole([taken])
    assert {each for each, _ in told} == {name}
    assert all(0 < part <= 1 for _, part in told)
    assert taken.used.cores is not None and taken.used.cores > 0
    assert taken.used.rss_bytes is not None and taken.used.rss_bytes > 1_000_000


async def test_an_ingest_at_a_rate_sends_that_many(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await measured(target_of(service), "single", ingest_rate=50.0)
        assert valkey.client.xlen("logs") == 10


async def test_a_fan_out_is_measured_at_the_distributor(valkey: Valkey) -> None:
    told: list[tuple[str, float]] = []
    async with serving(redis_addr=valkey.url, ingest_tokens="in", read_tokens="out") as service:
        target = target_of(service, ingest_token="in", read_token="out")
        (read,) = await measured(
            target, "fan-out", token="out", progress=lambda *each: told.append(each)
        )
    assert isinstance(read, FanOut)
    assert (read.readers, read.connected, read.sent, read.delivered) == (3, 3, 10, 30)
    assert whole([read])
    assert {each for each, _ in told} == {"fan-out"}
    assert read.used.rss_bytes is not None and read.bytes_a_reader is not None


async def test_latency_is_measured_with_few_readers_at_each_rate(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "LATENCY_READERS", 2)
    monkeypatch.setattr(deployment, "LATENCY_RATES", (20.0, 200.0))
    async with serving(redis_addr=valkey.url) as service:
        found = await measured(target_of(service), "latency")
    assert [(each.readers, each.rate, each.sent) for each in found if isinstance(each, FanOut)] == [
        (2, 20.0, 4),
        (2, 200.0, 40),
    ]
    assert whole(found)


async def test_all_are_measured_one_after_the_other(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "LATENCY_READERS", 2)
    monkeypatch.setattr(deployment, "LATENCY_RATES", (20.0,))
    async with serving(redis_addr=valkey.url) as service:
        found = await measured(target_of(service), *NAMES)
    assert [type(each) for each in found] == [Ingest, Ingest, FanOut, FanOut]


async def test_a_collector_that_is_not_there_is_unfit() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnfitError, match=r"the connection fails: .*refused"):
        await measured(logpipe_at(url, url), "single")


async def test_an_ingest_that_is_refused_is_measured_and_not_whole(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="in") as service:
        (taken,) = await measured(target_of(service), "single")
    assert isinstance(taken, Ingest)
    assert taken.refused["401"] > 0
    assert not whole([taken])


@pytest.mark.parametrize("name", ["single", "batch"])
async def test_a_distributor_of_another_redis_is_unfit(name: Name, valkey: Valkey) -> None:
    with Valkey.started() as other:
        async with (
            serving(redis_addr=valkey.url) as collector,
            serving(redis_addr=other.url) as distributor,
        ):
            target = logpipe_at(collector.url, distributor.url)
            with pytest.raises(UnfitError, match="was acknowledged and is not at the distributor"):
                await measured(target, name)


@pytest.mark.parametrize("body", [b"thanks", b"{}", b"[]"])
async def test_a_collector_that_acknowledges_in_other_words_is_unfit(body: bytes) -> None:
    with answering(body) as url, pytest.raises(UnfitError, match="is no answer of logpipe"):
        await measured(logpipe_at(url, url), "single")


# -- what a process uses -----------------------------------------------------------------------


async def test_what_a_process_uses_is_in_its_metrics(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        used = await asyncio.to_thread(usage, address_of(service.url))
    assert used is not None
    assert used.cpu_s > 0
    assert used.rss_bytes > 1_000_000


def test_a_server_that_does_not_say_what_it_uses_is_measured_without() -> None:
    assert usage(Address("127.0.0.1", free_port())) is None
    for body in (
        b"",
        b"logpipe_process_cpu_seconds_total 1.5\n",
        b"logpipe_process_resident_memory_bytes 3e6\n",
    ):
        with answering(body) as url:
            assert usage(address_of(url)) is None
    with answering(
        b"logpipe_process_cpu_seconds_total 1.5\nlogpipe_process_resident_memory_bytes 3e6\n"
    ) as url:
        assert usage(address_of(url)) == (1.5, 3_000_000)
