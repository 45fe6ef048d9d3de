"""The servers that logpipe is compared with, as the benchmark speaks to them: by bytes."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

import pytest

from logpipe.bench.measures import fan_out
from tests.bench import peers
from tests.bench.guard import fallen
from tests.bench.peers import Peer
from tests.bench.servers import of
from tests.raw import Connection, connected
from tests.servers import Valkey

EVENTS = [json.dumps({"source": "bench", "message": f"event {n}"}).encode() for n in range(3)]

needs_nchan = pytest.mark.skipif(not peers.have_nchan(), reason="nginx with nchan is missing")
needs_nats = pytest.mark.skipif(not peers.have_nats(), reason="nats-server is missing")
needs_redis_benchmark = pytest.mark.skipif(
    not peers.have_redis_benchmark(), reason="redis-benchmark is missing"
)


@contextlib.asynccontextmanager
async def publisher(peer: Peer) -> AsyncIterator[Connection]:
    async with connected(f"http://127.0.0.1:{peer.port}") as connection:
        await connection.send(peer.greeting)
        yield connection


@contextlib.asynccontextmanager
async def subscriber(peer: Peer) -> AsyncIterator[Connection]:
    """A subscriber whose subscription the server has taken."""
    assert peer.subscribe is not None
    async with publisher(peer) as connection:
        await connection.send(peer.subscribe)
        if peer.answers:
            head = await until(connection, b"\r\n\r\n")
            assert b" 200 " in head
        else:
            await connection.send(b"PING\r\n")
            await until(connection, b"PONG\r\n")
        yield connection


async def until(connection: Connection, end: bytes) -> bytes:
    async with asyncio.timeout(4):
        return await connection.reader.readuntil(end)


async def sent(connection: Connection, request: bytes) -> None:
    await connection.send(request)
    answer = await connection.answer(4)
    assert answer.status in {201, 202}, answer


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_the_bare_ceiling_answers_and_keeps_nothing() -> None:
    with peers.bare() as peer:
        assert peer.batch is None and peer.subscribe is None
        async with publisher(peer) as connection:
            await connection.send(peer.single(EVENTS[0]))
            answer = await connection.answer(4)
            assert (answer.status, json.loads(answer.body)) == (202, {"id": "1710000000000-0"})


async def test_a_subscriber_of_the_baseline_gets_what_is_posted(valkey: Valkey) -> None:
    with peers.baseline(valkey) as peer:
        assert peer.batch is not None
        async with subscriber(peer) as reader, publisher(peer) as writer:
            await sent(writer, peer.single(EVENTS[0]))
            assert b'"event 0"' in await until(reader, b"\n\n")
            await sent(writer, peer.batch(EVENTS[1:]))
            assert b'"event 2"' in await until(reader, b'"event 2"')


async def test_the_baseline_refuses_what_is_no_event(valkey: Valkey) -> None:
    with peers.baseline(valkey) as peer:
        async with publisher(peer) as writer:
            await writer.send(peer.single(b'{"source": "bench"}'))
            assert (await writer.answer(4)).status == 422


@needs_nchan
async def test_a_subscriber_of_nchan_gets_what_is_published() -> None:
    with peers.nchan() as peer:
        assert len(peer.pids) == 2, "a master and one worker"
        async with subscriber(peer) as reader, publisher(peer) as writer:
            for event in EVENTS:
                await sent(writer, peer.single(event))
                assert await until(reader, b"data: " + event + b"\n\n")


@needs_nats
async def test_a_subscriber_of_nats_gets_what_is_published() -> None:
    with peers.nats() as peer:
        assert peer.batch is not None
        async with subscriber(peer) as reader, publisher(peer) as writer:
            await writer.send(peer.single(EVENTS[0]) + peer.batch(EVENTS[1:]))
            for event in EVENTS:
                message = b"MSG bench 1 %d\r\n%b\r\n" % (len(event), event)
                assert await until(reader, message) == message


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(peers.nchan, marks=needs_nchan, id="nchan"),
        pytest.param(peers.nats, marks=needs_nats, id="nats"),
    ],
)
async def test_a_fan_out_of_a_peer_is_measured(
    start: Callable[[], AbstractContextManager[Peer]],
) -> None:
    with start() as peer:
        target = of(peer).target
        read = await fan_out(target, readers=3, rate=50.0, size=150, seconds=0.2)
    assert (read.connected, read.sent, read.delivered) == (3, 10, 30)
    assert (read.missing, read.doubled, read.broken, read.refused) == (0, 0, {}, {})


def test_a_median_a_quarter_below_the_recorded_has_fallen() -> None:
    found = {"fast": [0.2, 0.76, 0.9], "slow": [0.2, 0.74, 0.9]}
    assert fallen({"fast": 1.0, "slow": 1.0}, found) == ["slow"]


async def test_a_peer_that_has_been_left_runs_no_more() -> None:
    with peers.bare() as peer:
        assert all(map(alive, peer.pids))
    assert not any(map(alive, peer.pids))


def test_a_peer_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "free_port", lambda: -1)
    with pytest.raises(RuntimeError, match=r"(?s)bare has ended: .*port"), peers.bare():
        pass


@needs_redis_benchmark
def test_redis_benchmark_measures_and_leaves_nothing(valkey: Valkey) -> None:
    rate = peers.redis_benchmark(valkey, clients=5, pipeline=4, requests=2000, payload=200)
    assert rate > 0
    assert valkey.client.keys() == []


def test_a_missing_redis_benchmark_is_named(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_binary", lambda _: None)
    with pytest.raises(RuntimeError, match="redis-benchmark is not installed"):
        peers.redis_benchmark(valkey, clients=1, pipeline=1, requests=1, payload=100)
