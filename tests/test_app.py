import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import GeneratorType
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logpipe.app import PROBES, ROLES, Dispatch, running
from logpipe.settings import Role, load
from logpipe.turns import CpuTime, Turns
from tests.helpers import wait_until
from tests.servers import Service, Valkey, free_port, serving, subscribed

EVENT = {"source": "a", "message": "b"}
PROBLEM = "application/problem+json"

COMBINATIONS = [
    roles for size in (1, 2, 3) for roles in itertools.combinations(sorted(ROLES), size)
]

PATHS: dict[str, tuple[Role, str]] = {
    "/ingest": ("collector", "POST"),
    "/elasticsearch": ("collector", "GET"),
    "/insert/elasticsearch": ("collector", "GET"),
    "/ready": ("collector", "GET"),
    "/gelf": ("collector", "OPTIONS"),
    "/events": ("distributor", "GET"),
    "/subscribe": ("distributor", "HEAD"),
    "/": ("ui", "GET"),
}


def ready(service: Service) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return (await service.http.get("/healthz")).status_code == 200

    return ask


@pytest.mark.parametrize("roles", COMBINATIONS, ids="+".join)
async def test_a_process_answers_exactly_the_paths_of_its_roles(
    valkey: Valkey, roles: tuple[Role, ...]
) -> None:
    redis = {} if roles == ("ui",) else {"redis_addr": valkey.url}
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with serving(
        role=",".join(roles), collector_url=nowhere, distributor_url=nowhere, **redis
    ) as service:
        await wait_until(ready(service), "it is ready")
        for path, (role, method) in PATHS.items():
            body = json.dumps(EVENT) if method == "POST" else None
            answer = await service.http.request(method, path, content=body)
            if role in roles:
                assert answer.status_code in (200, 202, 204), path
            else:
                assert answer.status_code == 404, path
                assert answer.headers["content-type"] == PROBLEM
        for path in ("/livez", "/healthz", "/metrics"):
            assert (await service.http.get(path)).status_code == 200
        state = (await service.http.get("/healthz")).json()
        assert state["roles"] == sorted(roles)
        assert state["redis"] == ("not used" if roles == ("ui",) else "ok")
        for path in ("/x", "/ingestx", "/livez/x", "/.env", "/events/", "/%2e%2e/x"):
            answer = await service.http.get(path)
            assert answer.status_code in (404, 405)


def test_no_two_roles_answer_one_path() -> None:
    paths = [path for role in ROLES.values() for path in (*role.paths, *PROBES)]
    own = [path for path in paths if path not in PROBES]
    assert len(own) == len(set(own))


def test_what_reads_protobuf_and_snappy_is_not_loaded_before_it_is_needed() -> None:
    """Starting would take a tenth of a second longer, for those who never get any."""
    script = "import sys, logpipe.app; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "logpipe.collector.receivers.loki" in loaded
    assert not {"google.protobuf", "cramjam", "opentelemetry.proto"} & set(loaded)


async def test_what_one_process_takes_in_another_gives_out(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, role="collector") as collector,
        serving(redis_addr=valkey.url, role="distributor") as distributor,
        subscribed(distributor.url) as reader,
    ):
        await reader.named("hello")
        id_ = (await collector.post(EVENT)).json()["id"]
        (event,) = await reader.until(1)
        assert event["id"] == id_


async def test_two_streams_in_one_redis_do_not_meet(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, role="collector", stream_name="one") as one,
        serving(redis_addr=valkey.url, role="collector,distributor", stream_name="t{w}o") as two,
    ):
        for service in (one, two):
            assert (await service.post(EVENT, idempotency_key="k")).status_code == 202
        assert valkey.client.xlen("one") == valkey.client.xlen("t{w}o") == 1
        page = (await two.http.get("/events")).json()
        assert len(page["events"]) == 1


async def test_a_process_opens_and_closes_while_redis_is_away(tmp_path: Path) -> None:
    settings = load({"redis_addr": f"unix://{tmp_path}/none", "role": "collector,distributor"}, {})
    tasks = asyncio.all_tasks()
    async with asyncio.timeout(5), running(settings) as process:
        await asyncio.sleep(0)
        assert process.background.failure is None
    assert asyncio.all_tasks() == tasks


async def test_a_process_leaves_no_task_and_no_connection_behind(valkey: Valkey) -> None:
    tasks = asyncio.all_tasks()
    clients: Any = len(valkey.client.client_list())
    for _ in range(3):
        async with (
            serving(redis_addr=valkey.url, role="collector,distributor") as service,
            subscribed(service.url) as one,
            subscribed(service.url, delivery="shared") as two,
        ):
            await one.named("hello")
            await two.named("hello")
            await service.post(EVENT)
    await wait_until(lambda: asyncio.all_tasks() == tasks, "no task is left")
    await wait_until(
        lambda: len(valkey.client.client_list()) == clients,
        "no connection is left",
    )


# -- dispatch ----------------------------------------------------------------------------------


def named(name: str, seen: list[str]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(name)

    return app


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "page"),
        ("", "page"),
        ("//", "page"),
        ("/one", "one"),
        ("/one/", "one"),
        ("/one/two/three", "one"),
        ("/two", "two"),
    ],
)
async def test_the_first_segment_of_the_path_chooses_the_app(path: str, name: str) -> None:
    seen: list[str] = []
    dispatch = Dispatch({key: named(key or "page", seen) for key in ("", "one", "two")})

    async def unused(message: Message | None = None) -> Any:
        raise AssertionError

    await dispatch({"type": "http", "path": path, "query_string": b""}, unused, unused)
    assert seen == [name]


@pytest.mark.parametrize("path", ["*", "/three", "/on", "/oneone", "/ONE", "x", "?", "/\x00"])
async def test_a_path_of_no_role_is_not_found(path: str) -> None:
    sent: list[Message] = []
    dispatch = Dispatch({"one": named("one", [])})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    await dispatch({"type": "http", "method": "GET", "path": path}, receive, send)
    assert sent[0]["status"] == 404
    assert json.loads(sent[1]["body"])["status"] == 404


async def test_all_endpoints_parse_filters_in_the_same_turns(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing: list[Turns] = []
    turn = Turns.turn

    async def recorded(self: Turns, work: Iterator[None], cpu: CpuTime | None = None) -> bool:
        done = await turn(self, work, cpu)
        if done and isinstance(work, GeneratorType) and "parsed_filter" in work.__qualname__:
            parsing.append(self)
        return done

    monkeypatch.setattr(Turns, "turn", recorded)
    paths = ["/subscribe", "/events", "/"]
    paths += [f"/ui/{name}" for name in ("stream", "rows", "volume", "filter", "download")]
    async with serving(redis_addr=valkey.url) as service:
        for number, path in enumerate(paths):
            async with service.http.stream("GET", path, params={"q": f"w{number}"}) as answer:
                assert answer.status_code == 200
            assert len(parsing) == number + 1, path
    assert len(set(map(id, parsing))) == 1
