"""`logpipe doctor` at real deployments, sound ones and some broken on purpose."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import Result

from logpipe.doctor import checks, look
from logpipe.doctor.checks import CHECKS
from logpipe.doctor.senders import SENDERS, SOURCE
from tests.collector.receivers.samples import stored
from tests.helpers import wait_until
from tests.impostor import HELLO, SSE_HEAD, Impostor
from tests.page.proxies import Buffering
from tests.servers import Service, Valkey, free_port, serving
from tests.test_cli import run

TOKENS = ("--token", "r3ad", "--ingest-token", "s3nd")


async def doctor(*arguments: str, **environ: str) -> Result:
    """In a thread: the deployment is in this event loop."""
    return await asyncio.to_thread(run, "doctor", *arguments, **environ)


async def found(*arguments: str, code: int) -> dict[str, list[dict[str, Any]]]:
    """The findings by check."""
    result = await doctor(*arguments, "--json")
    assert result.exit_code == code, result.output
    findings: dict[str, list[dict[str, Any]]] = {name: [] for name in CHECKS}
    for finding in json.loads(result.stdout):
        findings[finding["check"]].append(finding)
        assert bool(finding["remedy"]) is (finding["state"] != "ok")
    return findings


def states(findings: dict[str, list[dict[str, Any]]]) -> dict[str, set[str]]:
    """How each check went; those that found nothing to say are left out."""
    return {name: {f["state"] for f in of} for name, of in findings.items() if of}


@pytest.fixture
def keeping() -> Iterator[Valkey]:
    """A Redis as it should be."""
    with Valkey.started("--appendonly", "yes", "--save", "") as server:
        yield server


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no finding."""
    monkeypatch.setattr(checks, "SLOW_HELLO_S", 30)
    for name in ("ANSWER_S", "HELLO_S", "ARRIVAL_S", "METRICS_S"):
        monkeypatch.setattr(look, name, 30)


@asynccontextmanager
async def guarded(valkey: Valkey, **given: object) -> AsyncIterator[Service]:
    """A deployment with tokens, once it has found its Redis."""
    tokens = {"ingest_tokens": "s3nd", "read_tokens": "r3ad"}
    async with serving(redis_addr=valkey.url, **(tokens | given)) as service:

        async def ready() -> bool:
            return (await service.http.get("/healthz")).status_code == 200

        await wait_until(ready, "it is ready")
        yield service


async def test_a_sound_deployment_is_sound_in_every_check(keeping: Valkey) -> None:
    async with guarded(keeping) as service:
        findings = await found(service.url, *TOKENS, code=0)
    assert states(findings) == {name: {"ok"} for name in CHECKS}
    events = [event for event in stored(keeping) if event["source"] == SOURCE]
    assert len(events) == len(SENDERS) + 1  # and one by gzip
    (protocols,) = findings["protocols"]
    assert all(name in protocols["detail"] for name in SENDERS)
    assert "collector, distributor" in findings["ready"][0]["detail"]


async def test_a_line_a_finding_for_people_without_colours_in_a_pipe(keeping: Valkey) -> None:
    async with guarded(keeping) as service:
        arguments = (service.url, *TOKENS)
        plain, colored = await doctor(*arguments), await doctor(*arguments, FORCE_COLOR="1")
    assert (plain.exit_code, colored.exit_code) == (0, 0)
    assert {line.split()[1] for line in plain.stdout.splitlines()} == set(CHECKS)
    assert all(line.startswith("✓ ") for line in plain.stdout.splitlines())
    assert "\x1b" not in plain.stdout
    assert "\x1b[32m✓\x1b[0m" in colored.stdout


async def test_roles_apart_are_sound_with_both_urls(keeping: Valkey) -> None:
    async with (
        guarded(keeping, role="collector") as collector,
        guarded(keeping, role="distributor") as distributor,
    ):
        urls = (collector.url, "--distributor-url", distributor.url)
        findings = await found(*urls, *TOKENS, code=0)
    assert states(findings) == {name: {"ok"} for name in CHECKS}
    assert len(findings["alive"]) == len(findings["ready"]) == 2


async def test_without_tokens_it_warns_and_does_not_fail(keeping: Valkey) -> None:
    async with guarded(keeping, ingest_tokens="", read_tokens="") as service:
        findings = await found(service.url, code=0)
    assert states(findings)["tokens"] == {"warning"}


async def test_a_proxy_that_buffers_is_told_from_a_distributor_that_is_away(
    keeping: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "HELLO_S", 0.5)
    async with guarded(keeping) as service, Buffering(service.url) as proxy:
        findings = await found(proxy.url, *TOKENS, code=1)
    (stream,) = findings["stream"]
    assert stream["state"] == "wrong"
    assert "a proxy buffers" in stream["detail"]
    assert "proxy_buffering off" in stream["remedy"]
    assert states(findings)["protocols"] == {"warning"}
    assert all("it is stored" in finding["detail"] for finding in findings["protocols"])


async def test_a_wrong_token_is_told_once(keeping: Valkey) -> None:
    async with guarded(keeping) as service:
        wrong = ("--token", "r3ad", "--ingest-token", "other")
        findings = await found(service.url, *wrong, code=1)
        without = await found(service.url, code=1)
    send, read = findings["tokens"]
    assert (send["state"], read["state"]) == ("wrong", "ok")
    assert "refused (403)" in send["detail"]
    assert "INGEST_TOKENS" in send["remedy"]
    assert not findings["protocols"]
    (probes,) = findings["probes"]
    assert probes["state"] == "ok"
    assert "loki" in probes["detail"]
    assert "elasticsearch" not in probes["detail"]  # it asks for the token already there
    assert [finding["state"] for finding in without["tokens"]] == ["wrong", "wrong"]
    assert states(findings)["stream"] == {"ok"}
    assert "refused (401)" in without["tokens"][0]["detail"]
    assert stored(keeping) == []


async def test_a_wrong_token_to_read_leaves_what_can_be_said_of_sending(keeping: Valkey) -> None:
    async with guarded(keeping) as service:
        wrong = ("--token", "other", "--ingest-token", "s3nd")
        findings = await found(service.url, *wrong, code=1)
    assert [finding["state"] for finding in findings["tokens"]] == ["ok", "wrong"]
    assert not findings["stream"]
    (protocols,) = findings["protocols"]
    assert protocols["state"] == "ok"
    assert "not read back" in protocols["detail"]


async def test_tokens_of_the_environment_are_used(keeping: Valkey) -> None:
    async with guarded(keeping) as service:
        environ = {"URL": service.url, "INGEST_TOKENS": "s3nd,b", "READ_TOKENS": "r3ad"}
        result = await doctor(**environ)
    assert result.exit_code == 0, result.output


async def test_a_redis_that_may_evict_the_stream_is_wrong() -> None:
    options = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", "--save", "")
    with Valkey.started(*options) as evicting:
        async with guarded(evicting) as service:
            findings = await found(service.url, *TOKENS, code=1)
    policy, persistence = findings["redis"]
    assert policy["state"] == "wrong"
    assert "evict" in policy["detail"]
    assert "noeviction" in policy["remedy"]
    assert persistence["state"] == "warning"
    assert "append-only" in persistence["detail"]


async def test_a_collector_alone_has_no_distributor(keeping: Valkey) -> None:
    async with guarded(keeping, role="collector") as service:
        findings = await found(service.url, *TOKENS, code=1)
    (stream,) = findings["stream"]
    assert stream["state"] == "wrong"
    assert "no distributor" in stream["detail"]
    assert "--distributor-url" in stream["remedy"]


async def test_two_streams_are_not_one_pipeline(
    keeping: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "ARRIVAL_S", 0.5)
    async with (
        guarded(keeping, role="collector", stream_name="one") as collector,
        guarded(keeping, role="distributor", stream_name="two") as distributor,
    ):
        urls = (collector.url, "--distributor-url", distributor.url)
        findings = await found(*urls, *TOKENS, code=1)
    assert states(findings)["protocols"] == {"wrong"}
    assert "STREAM_NAME" in findings["protocols"][0]["remedy"]


async def test_a_redis_that_is_away_is_told_by_name(
    keeping: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HELLO_S", "ARRIVAL_S", "METRICS_S"):
        monkeypatch.setattr(look, name, 0.5)
    async with guarded(keeping) as service:
        keeping.kill()
        findings = await found(service.url, *TOKENS, code=1)
        keeping.start()
    assert states(findings)["alive"] == {"ok"}
    assert "wrong" in states(findings)["protocols"]


async def test_where_nothing_listens_that_is_all_it_says() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    findings = await found(url, code=1)
    assert states(findings) == {"alive": {"wrong"}}
    assert "logpipe serve" in findings["alive"][0]["remedy"]


async def test_what_answers_there_may_be_another_program(keeping: Valkey) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        findings = await found(url, code=1)
    assert states(findings)["alive"] == states(findings)["ready"] == {"wrong"}


async def test_a_stream_of_another_program_is_told_and_not_stumbled_over() -> None:
    strange = f'{SSE_HEAD}{HELLO}data: {{"message":"mine"}}\n\n'
    async with Impostor(strange) as other:
        findings = await found(other.url, code=1)
    assert "is not logpipe's" in findings["ready"][0]["detail"]
    assert {finding["state"] for finding in findings["protocols"]} == {"wrong"}


def test_a_url_that_is_none_is_2() -> None:
    result = run("doctor", "ftp://x")
    assert result.exit_code == 2
    assert "URL ftp://x: " in result.stderr
    assert run("doctor", "http://x", "--distributor-url", "ftp://x").exit_code == 2
