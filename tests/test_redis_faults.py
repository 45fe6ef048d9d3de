import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from logpipe.stream.monitor import Intervals
from tests.helpers import fair_time, wait_until
from tests.servers import Reader, Service, Valkey, serving, subscribed

EVENT = {"source": "a", "message": "b"}
BOTH = "collector,distributor"
ANSWERED_S = 2.1
"""Two seconds, and what a busy machine adds."""


def ask(valkey: Valkey, command: str) -> None:
    valkey.client.execute_command(command)  # type: ignore[no-untyped-call]


class Log:
    """What the process has said of Redis."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        caplog.set_level(logging.INFO, "logpipe")

    @property
    def lines(self) -> list[str]:
        return [r.getMessage() for r in self._caplog.records if r.name == "logpipe.redis"]

    @property
    def text(self) -> str:
        return self._caplog.text


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


async def health(service: Service) -> Any:
    answer = await service.http.get("/healthz")
    return {"code": answer.status_code, **answer.json()}


def said(service: Service, kind: str) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return bool((await health(service))["redis"] == kind)

    return ask


def taken(service: Service) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return (await service.post(EVENT)).status_code == 202

    return ask


async def ready(service: Service) -> None:
    """It takes events, and has said in its log that Redis is there: the two come in any order."""
    await wait_until(taken(service), "it takes events")
    await wait_until(said(service, "ok"), "it says so")


async def unavailable(service: Service, kind: str) -> None:
    """A POST is answered 503 in time, and says why and when to come back."""
    started = fair_time()
    answer = await service.post(EVENT)
    assert fair_time() - started < ANSWERED_S
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["redis"] == kind


class Load:
    """Sends events one after the other without end, and knows which were acknowledged."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.acknowledged: dict[str, str] = {}
        self.refused = 0
        self.slowest = 0.0
        self.sent = 0

    async def send_one(self) -> None:
        number = str(self.sent)
        self.sent += 1
        started = fair_time()
        answer = await self.service.post({"source": "load", "message": number})
        self.slowest = max(self.slowest, fair_time() - started)
        if answer.status_code == 202:
            self.acknowledged[answer.json()["id"]] = number
        else:
            assert answer.status_code == 503
            self.refused += 1

    async def more(self, count: int) -> None:
        """Returns when so many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        await wait_until(lambda: len(self.acknowledged) >= wanted, f"{count} more", timeout=15)

    @contextlib.asynccontextmanager
    async def running(self, senders: int = 4) -> AsyncIterator[None]:
        ended = False

        async def work() -> None:
            while not ended:
                await self.send_one()
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(senders):
                tasks.create_task(work())
            try:
                yield
            finally:
                ended = True


class Delivered:
    """What a subscriber has got: the events by id in their order, and the gaps."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.messages: dict[str, str] = {}
        self.gaps: list[Any] = []

    async def read(self, reader: Reader) -> None:
        while True:
            event = await reader.next(timeout=30)
            if event.event == "gap":
                self.gaps.append(json.loads(event.data))
            elif event.event == "message":
                self.ids.append(event.id)
                self.messages[event.id] = json.loads(event.data)["message"]

    def check(self, acknowledged: dict[str, str]) -> None:
        """Each acknowledged event arrived exactly once, whole, and all of them in order."""
        assert acknowledged.keys() <= set(self.ids)
        assert len(set(self.ids)) == len(self.ids)
        order = [tuple(map(int, id_.split("-"))) for id_ in self.ids]
        assert order == sorted(order)
        assert acknowledged.items() <= self.messages.items()


@contextlib.asynccontextmanager
async def following(service: Service, **query: object) -> AsyncIterator[Delivered]:
    """A subscriber that reads all the time."""
    delivered = Delivered()
    async with subscribed(service.url, None, **query) as reader:
        await reader.named("hello")
        task = asyncio.create_task(delivered.read(reader))
        try:
            yield delivered
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_process_starts_without_redis_and_is_ready_soon_after_it_comes(
    own_valkey: Valkey, log: Log
) -> None:
    own_valkey.kill()
    async with serving(redis_addr=own_valkey.url, role=BOTH) as service:
        await wait_until(said(service, "away"), "it has noticed")
        assert (await service.http.get("/livez")).status_code == 200
        state = await health(service)
        assert (state["code"], state["status"]) == (503, "unavailable")
        assert "cannot be reached" in state["detail"]
        for _ in range(3):
            await unavailable(service, "away")
        async with subscribed(service.url) as reader:
            assert reader.response.status_code == 200
            assert len(log.lines) == 1
            own_valkey.start()
            started = fair_time()
            await wait_until(said(service, "ok"), "it is ready")
            assert fair_time() - started < 1.5
            id_ = (await service.post(EVENT)).json()["id"]
            await reader.named("hello")
            assert [event["id"] for event in await reader.until(1)] == [id_]
        assert (await health(service))["code"] == 200
        assert log.lines[1:] == ["Redis is ready"]


async def test_what_was_acknowledged_arrives_once_and_in_order_though_redis_is_lost_twice(
    own_valkey: Valkey, log: Log
) -> None:
    async with (
        serving(redis_addr=own_valkey.url, role=BOTH) as service,
        following(service) as delivered,
    ):
        load = Load(service)
        async with load.running():
            await load.more(100)
            for _ in range(2):
                own_valkey.kill()
                await wait_until(said(service, "away"), "the loss is noticed")
                own_valkey.start()
                started = fair_time()
                await load.more(100)
                assert fair_time() - started < 5
                await wait_until(said(service, "ok"), "it says so")
        await wait_until(lambda: load.acknowledged.keys() <= set(delivered.ids), "all arrived")
        delivered.check(load.acknowledged)
        assert delivered.gaps == []
        assert load.refused > 0
        assert load.slowest < ANSWERED_S
        assert [line.partition(";")[0] for line in log.lines] == [
            "Redis is ready",
            *[f"Redis at {own_valkey.url}: cannot be reached", "Redis is ready"] * 2,
        ]
        assert "Traceback" not in log.text


async def test_connections_that_redis_closes_cost_no_request(own_valkey: Valkey, log: Log) -> None:
    async with (
        serving(redis_addr=own_valkey.url, role=BOTH) as service,
        following(service) as delivered,
    ):
        load = Load(service)
        for _ in range(20):
            ask(own_valkey, "CLIENT KILL TYPE normal SKIPME yes")
            await load.send_one()
        await wait_until(lambda: load.acknowledged.keys() <= set(delivered.ids), "all arrived")
        delivered.check(load.acknowledged)
        assert load.refused == 0
        assert (await health(service))["code"] == 200


async def test_after_a_flush_a_reader_is_told_and_gets_everything_new(own_valkey: Valkey) -> None:
    async with (
        serving(redis_addr=own_valkey.url, role=BOTH) as service,
        following(service) as delivered,
    ):
        before, after = Load(service), Load(service)
        for _ in range(10):
            await before.send_one()
        await wait_until(lambda: len(delivered.ids) == 10, "the first ones arrived")
        own_valkey.client.flushall()
        for _ in range(10):
            await after.send_one()
        await wait_until(lambda: len(delivered.ids) == 20, "the new ones arrived")
        delivered.check(before.acknowledged | after.acknowledged)
        assert before.refused == after.refused == 0
        assert [gap["reason"] for gap in delivered.gaps] == ["reset"]


async def test_a_read_only_redis_stops_the_senders_and_not_the_readers(
    own_valkey: Valkey, log: Log
) -> None:
    async with (
        serving(redis_addr=own_valkey.url, role="collector") as collector,
        serving(redis_addr=own_valkey.url, role="distributor") as distributor,
    ):
        await ready(collector)
        await wait_until(said(distributor, "ok"), "the distributor is ready, too")
        own_valkey.client.replicaof("127.0.0.1", 1)
        await unavailable(collector, "read-only")
        await wait_until(said(distributor, "read-only"), "the distributor knows it as well")
        assert (await health(collector))["code"] == 503
        assert (await health(distributor))["code"] == 200
        page = (await distributor.http.get("/events")).json()
        assert len(page["events"]) == 1
        async with subscribed(distributor.url, since="earliest") as reader:
            assert len(await reader.until(1)) == 1
        await unavailable(collector, "read-only")
        own_valkey.client.replicaof("no", "one")
        started = fair_time()
        await wait_until(taken(collector), "it takes events again")
        assert fair_time() - started < 2
        for service in (collector, distributor):
            await wait_until(said(service, "ok"), "it says so")
        assert len([line for line in log.lines if "read-only" in line]) == 2  # one a process
        assert log.lines.count("Redis is ready") == 4
        # One that becomes a replica closes the connections that wait: that may be noticed first.
        assert len([line for line in log.lines if "cannot be reached" in line]) <= 1
        assert len(log.lines) <= 7


async def test_a_full_redis_refuses_and_recovers_without_a_flood_of_words(
    own_valkey: Valkey, log: Log
) -> None:
    async with (
        serving(redis_addr=own_valkey.url, role=BOTH) as service,
        following(service) as delivered,
    ):
        load = Load(service)
        for _ in range(10):
            await load.send_one()
        await wait_until(said(service, "ok"), "its log has begun")
        own_valkey.client.config_set("maxmemory", 500_000)
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            await unavailable(service, "full")
            await asyncio.sleep(0.05)
        state = await health(service)
        assert (state["code"], state["redis"]) == (503, "full")
        assert len(log.lines) == 2
        own_valkey.client.config_set("maxmemory", 0)
        started = fair_time()
        await wait_until(taken(service), "it takes events again")
        assert fair_time() - started < 1.5
        await load.send_one()
        await wait_until(lambda: load.acknowledged.keys() <= set(delivered.ids), "all arrived")
        delivered.check(load.acknowledged)
        await wait_until(said(service, "ok"), "it says so")
        assert len(log.lines) == 3


async def test_an_almost_full_redis_is_not_now_ready_and_now_not(
    own_valkey: Valkey, log: Log
) -> None:
    async with serving(redis_addr=own_valkey.url, role="collector") as service:
        await ready(service)
        memory: Any = own_valkey.client.info("memory")
        own_valkey.client.config_set("maxmemory", memory["used_memory"] + 5_000_000)
        batch = [{"source": "a", "message": "x" * 10_000}] * 5

        async def refused() -> bool:
            return (await service.post(batch)).status_code == 503

        await wait_until(refused, "it is full")
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            await refused()
            await asyncio.sleep(0.05)
        assert len(log.lines) == 2


async def test_a_key_of_another_type_is_named_and_left_alone(own_valkey: Valkey, log: Log) -> None:
    own_valkey.client.set("logs", "precious")
    async with serving(redis_addr=own_valkey.url, role=BOTH) as service:
        await unavailable(service, "wrong-type")
        state = await health(service)
        assert (state["code"], state["redis"]) == (503, "wrong-type")
        assert "the key logs" in state["detail"]
        assert (await service.http.get("/events")).status_code == 503
        assert own_valkey.client.get("logs") == b"precious"
        assert len(log.lines) == 1
        own_valkey.client.delete("logs")
        await wait_until(taken(service), "it takes events")
        await wait_until(said(service, "ok"), "it says so")
        assert log.lines[1:] == ["Redis is ready"]


async def test_a_wrong_password_is_tried_now_and_then_and_never_shown(
    own_valkey: Valkey, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.stream.monitor.INTERVALS", Intervals(refused_s=0.5))
    ask(own_valkey, "ACL SETUSER ship on >right ~* &* +@all")
    address = f"unix://ship:wr0ng-s3cret@{own_valkey.socket}"

    def refused() -> int:
        stats: Any = own_valkey.client.info("errorstats")
        return int(stats.get("errorstat_WRONGPASS", {}).get("count", 0))

    async with serving(redis_addr=address, role=BOTH) as service:
        await wait_until(said(service, "auth"), "it is refused")
        before = refused()
        deadline = time.monotonic() + 2
        answers: list[httpx.Response] = []
        while time.monotonic() < deadline:
            await unavailable(service, "auth")
            answers += [await service.http.get("/events"), await service.http.get("/healthz")]
            await asyncio.sleep(0.02)
        assert refused() - before <= 5
        assert {answer.status_code for answer in answers} == {503}
        assert len(log.lines) == 1
        ask(own_valkey, "ACL SETUSER ship >wr0ng-s3cret")
        await wait_until(taken(service), "it takes events")
        assert log.lines[1:] == ["Redis is ready"]
        text = log.text + "".join(answer.text for answer in answers)
        assert "refused" in text
        assert "s3cret" not in text


async def test_a_user_that_loses_its_rights_is_told_and_comes_back(
    own_valkey: Valkey, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.stream.monitor.INTERVALS", Intervals(refused_s=0.5))
    ask(own_valkey, "ACL SETUSER ship on >right ~* &* +@all")
    address = f"unix://ship:right@{own_valkey.socket}"
    async with serving(redis_addr=address, role="collector") as service:
        await ready(service)
        ask(own_valkey, "ACL SETUSER ship -@all")
        await unavailable(service, "auth")
        assert (await health(service))["code"] == 503
        ask(own_valkey, "ACL SETUSER ship +@all")
        await wait_until(taken(service), "it takes events again")
        await wait_until(said(service, "ok"), "it says so")
        assert len(log.lines) == 3


async def test_a_frozen_redis_is_answered_for_and_nothing_acknowledged_is_lost(
    own_valkey: Valkey, log: Log
) -> None:
    async with (
        serving(redis_addr=own_valkey.url, role=BOTH) as service,
        following(service) as delivered,
    ):
        load = Load(service)
        async with load.running():
            await load.more(50)
            await wait_until(said(service, "ok"), "its log has begun")
            own_valkey.signal(signal.SIGSTOP)
            try:
                await wait_until(lambda: load.refused >= 8, "requests are refused")
                state = await health(service)
                assert (state["code"], state["redis"]) == (503, "away")
                assert "no answer" in state["detail"]
                assert (await service.http.get("/livez")).status_code == 200
            finally:
                own_valkey.signal(signal.SIGCONT)
            started = fair_time()
            await load.more(50)
            assert fair_time() - started < 2.5
        await wait_until(lambda: load.acknowledged.keys() <= set(delivered.ids), "all arrived")
        delivered.check(load.acknowledged)
        assert load.slowest < ANSWERED_S
        assert delivered.gaps == []
        assert len(log.lines) == 3
        assert "Traceback" not in log.text


async def test_a_redis_without_a_free_connection_is_waited_for(
    own_valkey: Valkey, log: Log
) -> None:
    async with serving(redis_addr=own_valkey.url, role="collector") as service:
        await ready(service)
        own_valkey.client.config_set("maxclients", 1)
        ask(own_valkey, "CLIENT KILL TYPE normal SKIPME yes")
        # Over a unix socket the reason may be lost with the connection.
        answer = await service.post(EVENT)
        assert (answer.status_code, answer.json()["redis"] in ("clients", "away")) == (503, True)
        assert (await health(service))["code"] == 503
        own_valkey.client.config_set("maxclients", 100)
        await wait_until(taken(service), "it takes events again")
        await wait_until(said(service, "ok"), "it says so")
        assert log.lines[-1] == "Redis is ready"
        assert len(log.lines) <= 6
