"""Who may do what, and tokens that change while logpipe runs."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from logpipe.auth import is_known
from logpipe.client.collector import RemoteCollector
from logpipe.client.distributor import RemoteDistributor
from logpipe.client.log import RemoteLog
from logpipe.fanout.history import page_of
from logpipe.filters import EVERYTHING
from logpipe.ids import START
from logpipe.parts import Durations
from logpipe.problems import Problem
from logpipe.settings import load
from logpipe.tokens import Tokens, Words
from tests.helpers import wait_until
from tests.servers import Process, Valkey, serving, spawned, subscribed

EVENT = '{"source":"a","message":"b"}'
SCOPES = {"ingest": "i", "read": "r", "admin": "a"}
TOKENS = {f"{scope}_tokens": token for scope, token in SCOPES.items()}

ROUTES: dict[str, set[str]] = {
    "POST /ingest": {"ingest"},
    "POST /ingest/json": {"ingest"},
    "POST /services/collector/raw": {"ingest"},
    "POST /ui/send": {"ingest"},
    "GET /events": {"read", "admin"},
    "GET /subscribe": {"read", "admin"},
    "GET /ui/stream?once=1": {"read", "admin"},
    "GET /ui/rows": {"read", "admin"},
    "GET /subscribers": {"admin"},
    "GET /metrics": {"admin"},
    "GET /ui/status": {"admin"},
    "GET /status": {"admin"},
}
"""The scopes that open a route; of what is for all, nothing is here."""
TO_LOGIN = {"GET /status"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def status_of(http: httpx.AsyncClient, route: str, token: str | None) -> int:
    method, _, path = route.partition(" ")
    content: dict[str, Any] = {"content": EVENT} if method == "POST" else {}
    if path == "/ui/send":
        content = {"data": {"source": "a", "message": "b"}}
    headers = {} if token is None else bearer(token)
    async with http.stream(method, path, headers=headers, **content) as answer:
        return answer.status_code


async def test_each_scope_opens_its_routes_and_no_others(valkey: Valkey) -> None:
    """401 without a token, 403 with one of another scope; the page of a browser leads to /login."""
    durations = Durations(attempt_s=1e-6)
    async with serving(redis_addr=valkey.url, durations=durations, **TOKENS) as service:
        for route, scopes in ROUTES.items():
            for scope, token in (("none", None), ("unknown", "x"), *SCOPES.items()):
                status = await status_of(service.http, route, token)
                refused = 303 if route in TO_LOGIN else 401 if token is None else 403
                assert (status < 300) is (scope in scopes), (route, scope, status)
                assert status < 300 or status == refused, (route, scope, status)
        for path in ("/livez", "/healthz", "/login"):
            assert await status_of(service.http, f"GET {path}", None) == 200


async def test_without_admin_tokens_metrics_are_open_and_readers_see_the_status(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        assert await status_of(service.http, "GET /metrics", None) == 200
        for route in ("GET /subscribers", "GET /ui/status"):
            assert await status_of(service.http, route, None) == 401
            assert await status_of(service.http, route, "r") == 200


async def test_with_admin_tokens_alone_reading_stays_open(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, admin_tokens="a") as service:
        assert await status_of(service.http, "GET /events", None) == 200
        assert await status_of(service.http, "GET /metrics", None) == 401
        assert await status_of(service.http, "GET /ui/status", "a") == 200


async def test_an_operator_signs_in_to_the_status_and_a_reader_is_told_that_it_needs_another(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url, **TOKENS) as service:
        refused = await service.http.post("/login?then=status", data={"token": "r"})
        assert refused.status_code == 403
        assert "To see the status needs another" in refused.text
        onward = await service.http.post("/login?then=status", data={"token": "a"})
        assert (onward.status_code, onward.headers["location"]) == (303, "/status")
        assert (await service.http.get("/status")).status_code == 200


async def test_a_page_shows_its_operator_s_token_to_the_other_processes(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, role="distributor", **TOKENS) as distributor,
        serving(role="ui", distributor_url=distributor.url, **TOKENS) as own,
        serving(role="ui", distributor_url=distributor.url, read_tokens="r") as without,
    ):
        seen = await own.http.get("/ui/status", headers=bearer("a"))
        assert "ADMIN_TOKENS" not in seen.text
        seen = await without.http.get("/ui/status", headers=bearer("r"))
        assert "it refuses this page its /metrics (401): ADMIN_TOKENS" in seen.text


@pytest.mark.parametrize("name", ["token", "access_token", "Token"])
async def test_a_token_in_a_url_is_refused_even_if_it_is_right(valkey: Valkey, name: str) -> None:
    async with serving(redis_addr=valkey.url, **TOKENS) as service:
        for route in ROUTES:
            if "/services/" in route:  # a protocol that has its tokens there
                continue
            separator = "&" if "?" in route else "?"
            for token in (None, "r"):
                asked = f"{route}{separator}x=1&{name}=r"
                assert await status_of(service.http, asked, token) == 400, route
        answer = await service.http.get(f"/events?{name}=s3cr3t")
        assert "Authorization: Bearer" in answer.json()["detail"]
        assert "s3cr3t" not in answer.text


async def test_who_may_read_from_other_origins_never_reads_with_credentials(
    valkey: Valkey,
) -> None:
    paths = ("/events", "/subscribe", "/ingest", "/subscribers", "/loki/api/v1/push", "/metrics")
    async with serving(redis_addr=valkey.url, cors_allow_origins="*") as service:
        for path in (*paths, "/", "/status", "/login"):
            for method in ("OPTIONS", "GET"):
                headers = {"Origin": "http://evil.example", "Cookie": "logpipe=x"}
                headers |= {"Access-Control-Request-Method": "GET"}
                async with service.http.stream(method, path, headers=headers) as answer:
                    assert "access-control-allow-credentials" not in answer.headers
    async with serving(redis_addr=valkey.url, cors_allow_origins="http://own.example") as service:
        for origin, allowed in (("http://own.example", True), ("http://evil.example", False)):
            answer = await service.http.get("/events", headers={"Origin": origin})
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed


async def test_what_a_page_asks_of_others_it_asks_with_the_token_that_is_the_first_now() -> None:
    words = Words(("old", "other"))
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["authorization"])
        return httpx.Response(500)

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport) as http:
        distributor = RemoteDistributor("http://d", http, tokens=words)
        log = RemoteLog("http://d", http, distributor, words)
        submit = RemoteCollector("http://c", http, words)
        for now in ("old", "new"):
            words.now = (now, "other")
            with pytest.raises(Problem):
                await page_of(log.history(EVERYTHING, START, START, newest_first=True), 1)
            with pytest.raises(Problem):
                await submit(b"{}")
            assert distributor.headers["Authorization"] == f"Bearer {now}"
    assert asked == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]


# -- files, in pieces --------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    (tmp_path / "tokens").write_text("one\n")
    return Tokens(load({}, {"READ_TOKENS_FILE": str(tmp_path / "tokens")}))


async def test_what_a_file_holds_counts_once_it_was_seen_twice(
    tokens: Tokens, tmp_path: Path
) -> None:
    """A file is read while it is written: half of a token is nobody's."""
    for half in ("two-ha", "two-half\nthr", "two-half\nthree\n"):
        (tmp_path / "tokens").write_text(half)
        await tokens.look()
        assert tokens.readers == ("one",)
    await tokens.look()
    assert tokens.readers == ("two-half", "three")


@pytest.mark.parametrize("text", [b"", b"\n , \n", b"t\xff", None])
async def test_a_file_without_tokens_keeps_the_last_ones_and_is_told_once(
    tokens: Tokens, tmp_path: Path, text: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "logpipe")
    path = tmp_path / "tokens"
    path.unlink() if text is None else path.write_bytes(text)
    for _ in range(5):
        await tokens.look()
    assert tokens.readers == ("one",)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"READ_TOKENS_FILE={path}: ")
    path.write_text("two")
    await tokens.look()
    await tokens.look()
    assert tokens.readers == ("two",)
    assert [r.getMessage().rpartition(": ")[2] for r in caplog.records[1:]] == [
        "is read again",
        "1",
    ]


async def test_a_stream_ends_when_its_token_no_longer_counts_and_others_go_on(
    tokens: Tokens, tmp_path: Path
) -> None:
    ended: list[str] = []

    def is_reader(token: str) -> bool:
        return token in tokens.readers

    (tmp_path / "tokens").write_text("two")
    with contextlib.ExitStack() as streams:
        for token in ("one", "two"):
            allowed = partial(is_reader, token)
            streams.enter_context(tokens.revoking(allowed, partial(ended.append, token)))
        assert ended == ["two"]  # asked for before its time has come
        ended.clear()
        await tokens.look()
        assert ended == []
        await tokens.look()
    assert ended == ["one"]


# -- files, on a real process ------------------------------------------------------------------


class Secrets:
    """A folder as Kubernetes mounts a secret: files are links into a folder that is swapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._generation = 0
        self.environ = {f"{scope.upper()}_TOKENS_FILE": str(folder / scope) for scope in SCOPES}

    def swap(self, **tokens: str) -> None:
        self._generation += 1
        new = self.folder / f"..{self._generation}"
        new.mkdir(parents=True)
        for name in SCOPES:
            (new / name).write_text(tokens[name])
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        link = self.folder / "..new"
        link.symlink_to(new.name)
        link.replace(self.folder / "..data")


def told(process: Process, words: str) -> list[str]:
    lines = [json.loads(line)["message"] for line in process.log.read_text().splitlines()]
    return [line for line in lines if words in line]


@contextlib.asynccontextmanager
async def rotating(
    valkey: Valkey, tmp_path: Path
) -> AsyncIterator[tuple[Process, Secrets, httpx.AsyncClient]]:
    secrets = Secrets(tmp_path / "secrets")
    secrets.swap(ingest="i1", read="r1\nr0", admin="a1")
    environ = {"REDIS_ADDR": valkey.url, **secrets.environ}
    async with (
        spawned(tmp_path, **environ) as process,
        httpx.AsyncClient(base_url=process.url, trust_env=False) as http,
    ):
        await process.ready()
        yield process, secrets, http


async def test_tokens_are_rotated_without_a_restart_and_open_streams_of_old_ones_end(
    valkey: Valkey, tmp_path: Path
) -> None:
    async with (
        rotating(valkey, tmp_path) as (process, secrets, http),
        subscribed(process.url, bearer("r1")) as old,
        subscribed(process.url, bearer("r0")) as kept,
        subscribed(
            process.url, {**bearer("r1"), "Accept": "text/event-stream"}, delivery="shared"
        ) as shared,
        http.stream("GET", "/ui/stream", headers=bearer("r1")) as page,
    ):
        for reader in (old, kept, shared):
            await reader.named("hello")
        secrets.swap(ingest="i2", read="r2\nr0", admin="a2")
        for reader in (old, shared):
            assert (await reader.named("bye"))["reason"] == "this token is no longer allowed"
            with pytest.raises(StopAsyncIteration):
                await reader.next()
        async with asyncio.timeout(10):
            assert "event: bye" in "".join([text async for text in page.aiter_text()])

        async def rotated() -> bool:
            return len(told(process, "tokens in force")) == 3

        await wait_until(rotated, "all three files were read")
        for route, before, after in (
            ("POST /ingest", "i1", "i2"),
            ("POST /services/collector/raw", "i1", "i2"),
            ("GET /events", "r1", "r2"),
            ("GET /ui/rows", "r1", "r2"),
            ("GET /metrics", "a1", "a2"),
            ("GET /ui/status", "a1", "a2"),
        ):
            assert await status_of(http, route, before) == 403, route
            assert await status_of(http, route, after) < 300, route
        assert len(await kept.until(2)) == 2  # those that were just sent
        log = process.log.read_text()
        assert not [
            token for token in ("i2", "r2", "a2") if f'"{token}' in log or f" {token}" in log
        ]


async def test_a_file_that_is_emptied_or_gone_opens_nothing(valkey: Valkey, tmp_path: Path) -> None:
    async with rotating(valkey, tmp_path) as (process, secrets, http):
        for trouble, words in (("empty", "holds nothing"), ("gone", "cannot be read")):
            if trouble == "empty":
                secrets.swap(ingest="", read="\n", admin="")
            else:
                (secrets.folder / "..data").unlink()
            await wait_until(lambda: len(told(process, words)) == 3, f"it is told: {words}")  # noqa: B023
            for route, right in (("POST /ingest", "i1"), ("GET /events", "r1")):
                assert await status_of(http, route, None) == 401
                assert await status_of(http, route, right) < 300
        assert len(told(process, "the tokens stay as they were")) == 6


async def test_an_empty_file_at_the_start_is_a_setting_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("\n")
    async with spawned(tmp_path, READ_TOKENS_FILE=str(path)) as process:
        assert await process.exit_status() == 2
        assert process.log.read_text() == f"logpipe: READ_TOKENS_FILE={path}: holds nothing\n"


def test_tokens_are_compared_in_a_time_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of them is compared as a whole, also behind one that fits."""
    compared: list[bytes] = []

    def noting(given: bytes, allowed: bytes) -> bool:
        compared.append(allowed)
        return given == allowed

    monkeypatch.setattr("logpipe.auth.hmac.compare_digest", noting)
    assert is_known("a", ("a", "b", "c"))
    assert compared == [b"a", b"b", b"c"]


async def test_a_stream_that_has_ended_is_not_ended_again(tokens: Tokens) -> None:
    ended: list[str] = []
    with tokens.revoking(lambda: True, lambda: ended.append("over")):
        pass
    with tokens.revoking(lambda: not ended, lambda: ended.append("open")):
        ended.append("revoked")
        tokens.end_streams()
    tokens.end_streams()
    assert ended == ["revoked", "open"]


async def test_a_stream_that_fails_is_not_ended_later(tokens: Tokens) -> None:
    ended: list[str] = []
    with (
        pytest.raises(RuntimeError),
        tokens.revoking(lambda: not ended, lambda: ended.append("ended")),
    ):
        raise RuntimeError
    ended.append("revoked")
    tokens.end_streams()
    assert ended == ["revoked"]
