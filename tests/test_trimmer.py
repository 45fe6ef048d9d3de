"""Trimming by bytes and age, on a real Valkey, full or not."""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.settings import StreamBytes
from logpipe.stream import Memory, Stream, trimming
from logpipe.trimmer import Trimmer, budget_of
from tests.helpers import retry_after, wait_until
from tests.servers import Valkey, serving, subscribed
from tests.streams import NAME, address_of, stream_at

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def small() -> Iterator[Valkey]:
    """A Valkey of its own, because its memory is what tests look at."""
    with Valkey.started("--save", "", "--appendonly", "no") as server:
        yield server


def event(size: int) -> bytes:
    fixed = b'{"source":"a","message":""}'
    return b'{"source":"a","message":"%b"}' % (b"x" * (size - len(fixed)))


def filled(server: Valkey, count: int, size: int, key: str = NAME) -> None:
    """Adds entries, as any writer does."""
    pipe = server.client.pipeline(transaction=False)
    for number in range(count):
        pipe.xadd(key, {"event": event(size)})
        if number % 500 == 499:
            pipe.execute()
    pipe.execute()


def trimmer_of(
    stream: Stream,
    max_bytes: int = 0,
    max_age_ms: int = 0,
    metrics: Metrics | None = None,
    percent: int = 0,
) -> Trimmer:
    return Trimmer(
        stream.trimming,
        metrics or Metrics(),
        max_bytes=StreamBytes(max_bytes, percent),
        max_age_ms=max_age_ms,
    )


@contextlib.asynccontextmanager
async def large_stream(server: Valkey) -> AsyncIterator[Stream]:
    async with stream_at(address_of(server), maxlen=10**9) as stream:
        yield stream


def size_of(server: Valkey) -> int:
    """All of it, exactly."""
    return int(server.client.memory_usage(NAME, samples=0) or 0)


# -- bytes ---------------------------------------------------------------------------------------


async def test_a_stream_of_its_budget_is_left_alone_and_of_a_byte_more_is_trimmed(
    valkey: Valkey,
) -> None:
    filled(valkey, 1_000, 1_000)
    size, metrics = size_of(valkey), Metrics()
    async with large_stream(valkey) as stream:
        await trimmer_of(stream, size, metrics=metrics).trim()
        assert valkey.client.xlen(NAME) == 1_000
        await trimmer_of(stream, size - 1, metrics=metrics).trim()
    left = valkey.client.xlen(NAME)
    assert 850 <= left < 1_000
    assert size_of(valkey) < size
    counted = metrics.registry.get_sample_value("logpipe_limited_total", {"limit": "stream_bytes"})
    assert counted == 1_000 - left


@pytest.mark.parametrize("sizes", [(100, 100), (100, 20_000), (20_000, 100), (20_000, 20_000)])
async def test_it_is_trimmed_to_its_budget_and_not_much_further_whatever_comes_first(
    valkey: Valkey, sizes: tuple[int, int]
) -> None:
    for size in sizes:
        filled(valkey, 2_000, size)
    budget = int(size_of(valkey) * 0.6)
    async with large_stream(valkey) as stream:
        await trimmer_of(stream, budget).trim()
    assert 0.7 * budget < size_of(valkey) <= budget


async def test_the_newest_entry_of_a_budget_that_is_too_small_for_it_stays(valkey: Valkey) -> None:
    filled(valkey, 50, 50_000)
    async with large_stream(valkey) as stream:
        await trimmer_of(stream, 1).trim()
    assert 1 <= valkey.client.xlen(NAME) <= 2


async def test_there_is_nothing_to_trim_of_no_stream(valkey: Valkey) -> None:
    async with large_stream(valkey) as stream:
        await trimmer_of(stream, 1, 1).trim()
    assert not valkey.client.exists(NAME)


async def test_several_collectors_trim_no_more_than_one(valkey: Valkey) -> None:
    filled(valkey, 5_000, 1_000)
    budget = size_of(valkey) // 2
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(large_stream(valkey)) for _ in range(4)]
        await asyncio.gather(*(trimmer_of(stream, budget).trim() for stream in streams))
    assert 0.7 * budget < size_of(valkey) <= budget


async def test_a_full_redis_recovers_by_itself(small: Valkey) -> None:
    limit = int(small.client.info("memory")["used_memory"]) + 16 * MIB
    small.client.config_set("maxmemory-policy", "noeviction")
    small.client.config_set("maxmemory", limit)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        filled(small, 10_000, 16 * KIB)
    given = {"redis_addr": small.url, "role": "collector", "trim_maxlen": 10**9}
    async with serving(**given) as service:

        async def refused() -> bool:
            return (await service.post(event(16 * KIB))).status_code == 503

        await wait_until(refused, "not even one more fits")
    async with serving(**given, trim_maxbytes=8 * MIB) as service:

        async def taken() -> bool:
            return (await service.post({"source": "a", "message": "in"})).status_code == 202

        await wait_until(taken, "there is room again")
        await wait_until(lambda: size_of(small) <= 8 * MIB, "it is within its budget")
        body = b"\n".join([event(16 * KIB)] * 100)

        async def more() -> bool:
            return (await service.post(body)).status_code == 202

        for _ in range(30):  # three times as much as there is room for
            await wait_until(more, "more is taken")


# -- a part of the memory of Redis ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "size", "budget"),
    [
        (70, 60, 75),
        (95, 74, 75),
        (98, 74, 71),  # what else there is has left too little room
        (98, 90, 75),
        (99, 10, 37.5),  # the stream keeps half of its part, whatever else there is
    ],
)
def test_the_budget_is_a_part_of_the_memory_and_leaves_room(
    used: float, size: float, budget: float
) -> None:
    assert budget_of(75, Memory(used, 100), size) == pytest.approx(budget)


async def test_a_percentage_is_of_the_memory_that_redis_has_now(small: Valkey) -> None:
    filled(small, 4_000, 1_000)
    async with large_stream(small) as stream:
        trimmer = trimmer_of(stream, percent=50)
        for limit in (32 * MIB, 4 * MIB, 3 * MIB):
            small.client.config_set("maxmemory", limit)
            await trimmer.trim()
            assert size_of(small) <= limit // 2
        assert 0.4 * limit < size_of(small)


async def test_a_percentage_without_maxmemory_is_logged_once(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    filled(valkey, 1_000, 1_000)
    async with large_stream(valkey) as stream:
        trimmer = trimmer_of(stream, percent=1)
        for _ in range(3):
            assert not await trimmer.trim()
        assert valkey.client.xlen(NAME) == 1_000
        logged = [text for text in caplog.messages if "TRIM_MAXBYTES=1%" in text]
        assert len(logged) == 1
        assert "has no maxmemory" in logged[0]
        valkey.client.config_set("maxmemory", 10**9)
        await trimmer.trim()
        valkey.client.config_set("maxmemory", 0)
        await trimmer.trim()
    assert sum("TRIM_MAXBYTES=1%" in text for text in caplog.messages) == 2


async def test_a_percentage_without_info_is_no_limit(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.client.acl_setuser(
        "plain", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"]
    )
    async with stream_at(address_of(valkey, username="plain", password="any")) as stream:
        assert not await trimmer_of(stream, percent=50).trim()
        assert stream.health.kind == "connecting"  # no error of it was reported
    assert "does not say its maxmemory (INFO)" in caplog.text


class RedisServer(Valkey):
    """What Compose runs, scaled down."""

    binary = "redis-server"


async def test_a_redis_as_of_compose_takes_several_times_its_memory() -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("NOT TESTED: the memory of Redis, as Compose gives it, needs redis-server")
    options = ("--save", "", "--appendonly", "yes", "--maxmemory", "48mb")
    body = b"\n".join([event(25_000)] * 40)
    with RedisServer.started(*options, "--maxmemory-policy", "noeviction") as server:
        async with serving(redis_addr=server.url, role="collector", trim_maxbytes="75%") as service:

            async def taken() -> bool:
                answer = await service.post(body, Content_Type="application/x-ndjson")
                if answer.status_code == 202:
                    return True
                assert answer.status_code == 503
                assert answer.headers["retry-after"] in retry_after(1)
                return False

            for _ in range(150):  # three times the memory
                await wait_until(taken, "a full Redis takes events again")
            await wait_until(lambda: size_of(server) <= 36 * MIB, "it is within its part")
            assert size_of(server) > 18 * MIB


@pytest.mark.parametrize("budget", [{}, {"trim_maxbytes": 0}], ids=["by default", "off"])
async def test_the_embedded_engine_does_not_stay_full_unless_asked_to(
    tmp_path: Path, budget: dict[str, int]
) -> None:
    body = b"\n".join([event(16 * KIB)] * 64)
    statuses: list[int] = []
    given = {"redis_addr": f"embedded://{tmp_path}", "embedded_maxmemory": "24mb"}
    async with serving(**given, trim_maxlen=10**9, **budget) as service:

        async def taken() -> bool:
            statuses.append((await service.post(body)).status_code)
            return statuses[-1] == 202

        async def take(count: int) -> None:
            for _ in range(count):
                await wait_until(taken, "it is not full for long", timeout=4)

        if budget:
            with pytest.raises(AssertionError):
                await take(60)
            assert statuses[-1] == 503
        else:
            await take(60)  # 60 MiB into 24


async def test_a_subscriber_that_was_overtaken_is_told_how_much_was_trimmed(valkey: Valkey) -> None:
    given = {"redis_addr": valkey.url, "trim_maxlen": 10**9, "trim_maxbytes": 1 * MIB}
    filled(valkey, 1, 1_000)
    seen = valkey.client.xinfo_stream(NAME)["last-generated-id"].decode()
    filled(valkey, 2_000, 1_000)
    async with serving(**given) as service:
        await wait_until(lambda: size_of(valkey) <= MIB, "it is trimmed")
        # Not before the trimming is over: it goes on in steps.
        first = valkey.client.xinfo_stream(NAME)["first-entry"][0].decode()
        async with subscribed(service.url, headers={"Last-Event-ID": seen}) as reader:
            gap = await reader.named("gap")
            assert (gap["reason"], gap["after"], gap["before"]) == ("trimmed", seen, first)
            left = valkey.client.xlen(NAME)
            rest = await reader.until(left)
            assert rest[0]["id"] == first
            assert len({each["id"] for each in rest}) == left < 2_000


# -- users and servers of few rights ---------------------------------------------------------------


async def test_a_user_who_may_not_ask_for_memory_has_the_size_estimated_and_is_told_once(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.client.acl_setuser(
        "plain",
        enabled=True,
        nopass=True,
        keys=["*"],
        commands=["+@all", "-memory"],
        channels=["*"],
    )
    for size in (500, 2_000, 1_000):
        filled(valkey, 1_000, size)
    budget = size_of(valkey) // 2
    address = address_of(valkey, username="plain", password="any")
    async with stream_at(address, maxlen=10**9) as stream:
        estimated = (await stream.trimming.size()).bytes
        for _ in range(2):
            await trimmer_of(stream, budget).trim()
        assert stream.health.kind == "connecting"  # no error of it was reported
    assert 0.5 < estimated / (2 * budget) < 2
    assert 0.3 * budget < size_of(valkey) < 2 * budget
    assert len([told for told in caplog.messages if "MEMORY USAGE" in told]) == 1


async def test_what_is_estimated_of_no_stream_is_nothing(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.client.acl_setuser(
        "plain", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-memory"]
    )
    async with stream_at(address_of(valkey, username="plain", password="any")) as stream:
        assert await stream.trimming.size() == (0, 0, 0)


async def test_a_stream_that_goes_while_its_size_is_estimated_is_no_fault(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey)) as stream:
        seen = [(b"1-0", {b"event": b"x" * 80})]
        assert await stream.trimming._mean_of_all(seen) == 80 + trimming.ENTRY_BYTES


async def test_redis_away_is_waited_for(own_valkey: Valkey) -> None:
    filled(own_valkey, 2_000, 1_000)
    async with large_stream(own_valkey) as stream:
        trimmer = trimmer_of(stream, 1 * MIB)
        own_valkey.kill()
        with pytest.raises(Unavailable):
            await trimmer.trim()
        task = asyncio.create_task(trimmer.run())
        try:
            own_valkey.start()
            await wait_until(lambda: size_of(own_valkey) <= MIB, "it is trimmed")
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait({task})


# -- age -----------------------------------------------------------------------------------------


def at(server: Valkey, *ages_ms: int) -> None:
    """Adds entries of these ages, by the clock of the server."""
    seconds, micros = server.client.time()
    for age in ages_ms:
        server.client.xadd(
            NAME, {"event": event(100)}, id=f"{seconds * 1000 + micros // 1000 - age}-*"
        )


async def test_what_is_older_goes_and_what_is_not_stays_to_the_entry(valkey: Valkey) -> None:
    at(valkey, 90_000, 61_000, 31_000, 0)
    metrics = Metrics()
    async with large_stream(valkey) as stream:
        await trimmer_of(stream, max_age_ms=60_000, metrics=metrics).trim()
    assert valkey.client.xlen(NAME) == 2
    counted = metrics.registry.get_sample_value("logpipe_limited_total", {"limit": "stream_age"})
    assert counted == 2


async def test_however_many_are_too_old_all_of_them_go(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trimming, "AT_ONCE", 200)
    at(valkey, *[90_000] * 1_001, 0)
    async with large_stream(valkey) as stream:
        await trimmer_of(stream, max_age_ms=60_000).trim()
    assert valkey.client.xlen(NAME) == 1


async def test_the_age_is_by_the_clock_of_redis_where_this_user_may_ask_for_it(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(valkey, 30_000)
    monkeypatch.setattr("time.time_ns", lambda: 10**19)
    valkey.client.acl_setuser(
        "plain", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-time"]
    )
    async with large_stream(valkey) as stream:
        await trimmer_of(stream, max_age_ms=60_000).trim()
        assert valkey.client.xlen(NAME) == 1
    async with stream_at(address_of(valkey, username="plain", password="any")) as stream:
        await trimmer_of(stream, max_age_ms=60_000).trim()
        assert stream.health.kind == "connecting"  # no error of it was reported
    assert valkey.client.xlen(NAME) == 0


async def test_a_collector_trims_by_age_and_a_subscriber_is_told(valkey: Valkey) -> None:
    at(valkey, 90_000, 80_000, 70_000, 0)
    first = valkey.client.xinfo_stream(NAME)["first-entry"][0].decode()
    async with serving(redis_addr=valkey.url, trim_maxage="1m") as service:
        await wait_until(lambda: valkey.client.xlen(NAME) == 1, "it is trimmed")
        async with subscribed(service.url, headers={"Last-Event-ID": first}) as reader:
            gap = await reader.named("gap")
            assert (gap["reason"], gap["after"]) == ("trimmed", first)
        text = (await service.http.get("/metrics")).text
        assert re.search(r'^logpipe_limited_total{limit="stream_age"} 3.0$', text, re.MULTILINE)


async def test_without_a_budget_nothing_is_trimmed(valkey: Valkey) -> None:
    filled(valkey, 100, 1_000)
    async with serving(redis_addr=valkey.url, role="collector") as service:
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert "trimmer" not in names
        assert "monitor" in names
        assert (await service.post({"source": "a", "message": "b"})).status_code == 202
    assert valkey.client.xlen(NAME) == 101
