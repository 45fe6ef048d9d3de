import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from logpipe import __version__, probes
from logpipe.background import Background
from logpipe.metrics import Metrics
from logpipe.settings import load
from logpipe.stream import RedisHealth
from logpipe.stream.health import Kind, Servers
from logpipe.tokens import Tokens
from tests.servers import Valkey, serving

KINDS: tuple[Kind, ...] = (
    "connecting", "ok", "away", "auth", "clients", "full", "read-only", "disk", "wrong-type",
    "error",
)  # fmt: skip


@contextlib.asynccontextmanager
async def probing(
    role: str, redis: RedisHealth | None, background: Background | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """The probes of a process with these roles, without a server."""
    settings = load({"role": role}, {})
    app = probes.create(settings, Tokens(settings), redis, background or Background(), Metrics())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def health(http: httpx.AsyncClient) -> tuple[int, Any]:
    answer = await http.get("/healthz")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    return answer.status_code, answer.json()


async def test_a_process_that_is_ready_says_what_it_is() -> None:
    redis = RedisHealth("redis://redis:6379/0")
    redis.report("ok")
    async with probing("distributor,collector", redis) as http:
        assert await health(http) == (
            200,
            {
                "status": "ok",
                "roles": ["collector", "distributor"],
                "redis": "ok",
                "version": __version__,
            },
        )


async def test_the_servers_behind_the_address_are_counted() -> None:
    redis, metrics = RedisHealth("redis+sentinel://a,b,c/logs/0"), Metrics()
    redis.on_servers = metrics.servers
    redis.report("ok")
    servers = Servers("10.0.0.1:6379", 1, 2, sentinels=3, sentinels_reachable=0)
    redis.report_servers(servers)
    async with probing("collector", redis) as http:
        _, state = await health(http)
    assert (state["replicas_in_sync"], state["sentinels_reachable"]) == (2, 0)
    first = metrics.exposition().decode().splitlines()
    redis.report_servers(servers._replace(primary="10.0.0.2:6379", failovers=2))
    second = metrics.exposition().decode().splitlines()
    for line in (
        'logpipe_redis_primary_info{node="10.0.0.1:6379"} 1.0',
        "logpipe_redis_failovers_total 1.0",
        "logpipe_redis_replicas_in_sync 2.0",
        "logpipe_redis_sentinels 3.0",
        "logpipe_redis_sentinels_reachable 0.0",
    ):
        assert line in first
    for line in (
        'logpipe_redis_primary_info{node="10.0.0.1:6379"} 0.0',
        'logpipe_redis_primary_info{node="10.0.0.2:6379"} 1.0',
        "logpipe_redis_failovers_total 2.0",
    ):
        assert line in second


async def test_what_is_not_known_of_the_servers_is_left_out() -> None:
    redis = RedisHealth("redis://redis:6379/0")
    redis.report("ok")
    async with probing("collector", redis) as http:
        _, state = await health(http)
        metrics = (await http.get("/metrics")).text.splitlines()
    assert not {"replicas_in_sync", "sentinels_reachable"} & state.keys()
    assert "logpipe_redis_sentinels NaN" in metrics
    assert not any(line.startswith("logpipe_redis_primary_info") for line in metrics)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_trouble_of_redis_is_told_by_its_kind_and_its_sentence(kind: Kind) -> None:
    redis = RedisHealth("redis://redis:6379/0")
    redis.report(kind, "the sentence")
    readable = kind in ("ok", "full", "read-only", "disk")
    for role, ready in (
        ("collector", kind == "ok"),
        ("distributor", readable),
        ("all", kind == "ok"),
    ):
        async with probing(role, redis) as http:
            status, state = await health(http)
        assert status == (200 if ready else 503)
        assert state["status"] == ("ok" if ready else "unavailable")
        assert state["redis"] == kind
        if not ready:
            assert state["detail"].startswith("Redis: ")
            assert kind == "connecting" or "the sentence" in state["detail"]


async def test_a_page_that_needs_no_redis_is_ready_without_one() -> None:
    async with probing("ui", None) as http:
        status, state = await health(http)
    assert status == 200
    assert (state["roles"], state["redis"]) == (["ui"], "not used")


async def test_a_dead_task_makes_a_process_unready_whatever_redis_says() -> None:
    redis, background = RedisHealth("redis://redis:6379/0"), Background()
    redis.report("ok")
    background.failure = "the task feed has died"
    async with probing("all", redis, background) as http:
        status, state = await health(http)
        assert (status, state["detail"]) == (503, "the task feed has died")
        assert (await http.get("/livez")).status_code == 200


async def test_a_process_lives_whatever_redis_says() -> None:
    redis = RedisHealth("redis://redis:6379/0")
    for kind in KINDS:
        redis.report(kind, "x")
        async with probing("all", redis) as http:
            answer = await http.get("/livez")
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_the_metrics_say_whether_redis_serves() -> None:
    redis = RedisHealth("redis://redis:6379/0")
    async with probing("all", redis) as http:
        assert "\nlogpipe_redis_up 0.0\n" in (await http.get("/metrics")).text
        redis.report("ok")
        answer = await http.get("/metrics")
        assert "\nlogpipe_redis_up 1.0\n" in answer.text
        assert f'logpipe_build_info{{version="{__version__}"}} 1.0' in answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_every_metric_is_of_logpipe_in_base_units_and_with_a_help(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="collector,distributor") as service:
        await service.post({"source": "secret-source", "message": "b"})
        text = (await service.http.get("/metrics")).text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    helped = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert names == helped
    assert len(names) > 10
    for name in names:
        assert name.startswith("logpipe_")
        assert not name.endswith(("_ms", "_milliseconds", "_kb"))
    assert "secret-source" not in text  # labels take a bounded number of values


async def test_another_method_or_path_is_refused_with_a_problem_document() -> None:
    async with probing("all", None) as http:
        for path in ("/livez", "/healthz", "/metrics"):
            answer = await http.post(path)
            assert answer.status_code == 405
            assert answer.headers["content-type"] == "application/problem+json"
            assert (await http.head(path)).status_code in (200, 503)
            answer = await http.get(path + "/")
            assert answer.status_code == 404
            assert json.loads(answer.content)["status"] == 404


async def test_probes_are_answered_while_others_are(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="collector") as service:
        paths = ["/livez", "/healthz", "/metrics"] * 20
        answers = await asyncio.gather(*map(service.http.get, paths))
        assert {answer.status_code for answer in answers[::3]} == {200}
        assert len(answers) == 60
