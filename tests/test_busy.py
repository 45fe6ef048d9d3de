"""This process's own load is no fault of Redis: `BUSY` requests, and a health that stays true."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from logpipe.groups import MAX_GROUPS
from logpipe.ids import END, START
from logpipe.problems import Unavailable
from logpipe.redis_address import Node, RedisAddress
from logpipe.stream import Append, Stream
from logpipe.stream.connections import WRITE_TIMEOUT_S, Connections, client
from logpipe.stream.failovers import Failovers
from logpipe.stream.health import HeldUp
from logpipe.stream.monitor import Monitor
from logpipe.stream.pool import MAX_CONNECTIONS, Pool
from logpipe.stream.primary import Found, Primary
from tests.helpers import wait_until
from tests.servers import Service, Valkey, free_port, serving
from tests.streams import NAME, OFTEN, add, address_of, event, once, stream_at


@contextlib.asynccontextmanager
async def all_taken(*clients: Any) -> AsyncIterator[None]:
    """Has all connections of redis-py's clients in use, none of them by others."""
    taken = []
    pools = [client.connection_pool for client in clients]
    await wait_until(lambda: not any(pool._in_use_connections for pool in pools), "none is in use")
    try:
        for pool in pools:
            while pool.can_get_connection():
                taken.append((pool, pool.get_available_connection()))
        yield
    finally:
        for pool, connection in taken:
            await pool.release(connection)


@contextlib.asynccontextmanager
async def all_seats_taken(*pools: Pool) -> AsyncIterator[None]:
    """Has all connections of these pools in use, none of them by others."""
    seats = [pool._free for pool in pools]
    await wait_until(lambda: {each._value for each in seats} == {MAX_CONNECTIONS}, "all are free")
    for each in seats * MAX_CONNECTIONS:
        await each.acquire()
    try:
        yield
    finally:
        for each in seats * MAX_CONNECTIONS:
            each.release()


def hold_up(seconds: float) -> None:
    """Holds up the event loop, as a long step of this process does."""
    time.sleep(seconds)


async def test_no_connection_left_is_busy_and_no_state_of_redis(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    limited: Counter[str] = Counter()
    async with stream_at(address_of(valkey), count_limited=limited.update) as stream:
        await add(stream, 3)
        redis, monitor = stream._redis, stream._monitor
        await monitor.check()
        caplog.clear()
        async with all_taken(redis.writing), all_seats_taken(redis.reading, redis.blocking):
            attempts = (stream.range(START, END, 1), stream.groups.leave("g", "c"))
            told = await asyncio.gather(*attempts, stream.wait(START), return_exceptions=True)
            for error in told:
                assert isinstance(error, Unavailable)
                assert (error.kind, error.status) == ("busy", 503)
                assert error.headers["Retry-After"] == "1"
                assert "Redis:" not in error.detail
            assert stream.health.kind == "ok"
            await stream.append([Append([event(4)]), Append([event(5)], once("k"))])
            await monitor.check()
            assert (await stream.trimming.size()).entries == 5
            assert await stream.size() > 0
        assert len(await stream.range(START, END, 9)) == 5
    assert limited == {"redis_connections": 3}
    assert not caplog.records


def listening_on(valkey: Valkey) -> int:
    """Has a server listen on a free port, too; which."""
    for _ in range(9):
        with contextlib.suppress(ResponseError):  # another process has taken it meanwhile
            valkey.client.config_set("port", port := free_port())
            return port
    raise AssertionError("no port is free")


async def test_no_connection_left_raises_no_doubt_about_the_primary(valkey: Valkey) -> None:
    port = listening_on(valkey)

    async def ask() -> Found:
        return Found(Node("127.0.0.1", port))

    async def aclose() -> None:
        pass

    async def compare(*_: Node) -> str:
        return ""

    primary = Primary(ask, aclose, grace_s=0, compare=compare)
    address = RedisAddress(host="127.0.0.1", port=port)
    redis = client(address, 1.0, primary, Failovers("logs", "sentinel"), 2)
    try:
        assert await redis.ping()
        before = primary.generation
        async with all_taken(redis):
            pipe: Any = redis.pipeline(transaction=False).type(NAME)
            told = await asyncio.gather(redis.ping(), pipe.execute(), return_exceptions=True)
            assert list(map(str, told)) == ["No connection available."] * 2
        assert primary.generation == before
        assert await redis.ping()
    finally:
        await redis.aclose()
        await primary.aclose()
        valkey.client.config_set("port", 0)


async def test_groups_and_the_feed_have_a_connection_each() -> None:
    assert MAX_GROUPS + 1 < MAX_CONNECTIONS


def samples(exposition: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in exposition.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def redis_of(service: Service) -> Connections:
    assert service.process.syslog is not None
    stream: Stream = service.process.syslog.process.appender._stream
    return stream._redis


async def test_probes_and_senders_do_not_notice_that_readers_wait(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(
        redis_addr=valkey.url, role="collector,distributor", syslog_tcp=0, trim_maxbytes=10**9
    ) as service:
        http, redis = service.http, redis_of(service)
        await wait_until(lambda: redis.health.kind == "ok", "Redis was reached")
        caplog.set_level(logging.INFO, "logpipe.redis")
        caplog.clear()
        async with all_taken(redis.writing), all_seats_taken(redis.reading):
            waiting = [asyncio.create_task(http.get("/events")) for _ in range(3)]
            posted = await service.post({"source": "a", "message": "m"})
            keyed = await service.post({"source": "a", "message": "k"}, Idempotency_Key="k")
            batch = await service.post([{"source": "a"}, {"source": "a", "message": "b"}])
            assert [each.status_code for each in (posted, keyed, batch)] == [202, 202, 202]
            for refused in await asyncio.gather(*waiting):
                assert refused.status_code == 503
                assert refused.headers["Retry-After"]
                assert refused.json()["redis"] == "busy"
            for path in ("/healthz", "/ready", "/services/collector/health", "/_cluster/health"):
                prefix = "/elasticsearch" if path.startswith("/_") else ""
                assert (await http.get(prefix + path)).status_code == 200, path
        await wait_until(lambda: valkey.client.xlen(NAME) == 3, "all are stored")
        limited = samples((await http.get("/metrics")).text)
        assert limited['logpipe_limited_total{limit="redis_connections"}'] >= 3
        assert (await http.get("/events")).status_code == 200
    assert not caplog.records


async def test_a_time_limit_missed_by_this_process_is_no_state_of_redis(
    own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with stream_at(address_of(own_valkey)) as stream:
        await add(stream)
        redis, monitor = stream._redis, stream._monitor
        await monitor.check()
        await stream.groups.let_go("c", "h")
        caplog.clear()
        measuring = asyncio.create_task(redis.held_up.measure())
        try:
            own_valkey.signal(signal.SIGSTOP)
            asking = asyncio.create_task(stream.groups.let_go("c", "h"))
            await asyncio.sleep(0.01)
            hold_up(WRITE_TIMEOUT_S * 1.5)
            with pytest.raises(Unavailable) as refused:
                await asking
        finally:
            own_valkey.signal(signal.SIGCONT)
            measuring.cancel()
        assert refused.value.kind == "busy"
        assert stream.health.kind == "ok"
    assert not caplog.records


async def test_a_silent_redis_is_noticed_by_a_process_that_is_held_up(own_valkey: Valkey) -> None:
    redis = Connections(
        address_of(own_valkey), NAME, 200, 0, lambda: None, lambda _: None, check_s=0.4
    )
    monitor = asyncio.create_task(Monitor(redis, NAME, check_s=0.4, intervals=OFTEN).run())
    try:
        await wait_until(lambda: redis.health.kind == "ok", "Redis was reached")
        own_valkey.signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while redis.health.kind == "ok":
            assert time.monotonic() < deadline, "the silence was not noticed"
            hold_up(0.3)
            await asyncio.sleep(0.1)
        assert (redis.health.kind, redis.health.detail) == ("away", "no answer")
    finally:
        own_valkey.signal(signal.SIGCONT)
        monitor.cancel()
        await asyncio.wait([monitor])
        await redis.aclose()


async def test_what_held_up_the_event_loop_is_counted_while_measured() -> None:
    held_up = HeldUp()
    hold_up(0.3)
    assert held_up.seconds == 0
    measuring = asyncio.create_task(held_up.measure())
    await asyncio.sleep(0)
    hold_up(0.3)
    assert held_up.seconds >= 0.2  # also before the loop has turned
    await asyncio.sleep(0.01)
    assert held_up.seconds >= 0.2
    measuring.cancel()
    await asyncio.wait([measuring])
    counted = held_up.seconds
    hold_up(0.3)
    assert held_up.seconds == counted


class _Holding(asyncio.Protocol):
    """Holds up the event loop where it reads: uvloop then runs timers before it reads on."""

    def data_received(self, data: bytes) -> None:
        hold_up(0.6)


def test_an_answer_that_has_come_is_read_before_the_time_limit(valkey: Valkey) -> None:
    async def asked() -> list[Any]:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        transport, _ = await loop.create_connection(_Holding, sock=near)
        pool = Pool(address_of(valkey), 5.0, 0.3)
        try:
            await pool.call("PING")
            asking = asyncio.create_task(pool.call("BLPOP", "nothing", 0.2))
            await asyncio.sleep(0.05)
            far.send(b"x")
            return await asking
        finally:
            await pool.aclose()
            transport.close()
            far.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(asked()) == [None]


async def test_a_loss_that_is_reported_during_a_check_is_not_taken_back(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stream_at(address_of(own_valkey)) as stream:
        redis, monitor = stream._redis, stream._monitor
        await monitor.check()
        ask = monitor._ask

        async def answered_and_lost() -> Any:
            answer = await ask()
            own_valkey.kill()
            redis.health.report("away", "cannot be reached")
            return answer

        monkeypatch.setattr(monitor, "_ask", answered_and_lost)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(monitor.check(), 10)
        assert redis.health.kind == "away"


async def test_a_check_after_a_failed_command_finds_redis_ready(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey)) as stream:
        redis = stream._redis
        checking = asyncio.create_task(stream._monitor.check())
        await asyncio.sleep(0)
        redis.health.report("away", "cannot be reached")
        await asyncio.wait_for(checking, 10)
        assert redis.health.kind == "ok"


async def test_a_connection_that_does_not_close_keeps_no_other_open(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stream_at(address_of(valkey)) as stream:
        redis, monitor = stream._redis, stream._monitor
        await monitor.check()
        assert redis.upkeep.connection_pool._available_connections

        async def late() -> None:
            raise RedisTimeoutError("Timed out closing connection after 1.0")

        with monkeypatch.context() as patch:
            patch.setattr(redis.writing, "aclose", late)
            await redis.aclose()
        pool = redis.upkeep.connection_pool
        assert not any(each.is_connected for each in pool._available_connections)
