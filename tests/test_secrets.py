"""No password and no token is told to anyone: not by logs, answers, commands, nor `ps`."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers import wait_until
from tests.servers import Process, Valkey, free_port, spawned

PASSWORD = "s3cr/#t@"
ENCODED = "s3cr%2F%23t%40"
TOKENS = {"INGEST_TOKENS": "t0ken-i", "READ_TOKENS": "t0ken-r", "ADMIN_TOKENS": "t0ken-a"}
MARKS = ("s3cr", "t0ken")
"""What is in each of the secrets, however it is encoded."""


class Told:
    """All that was told, by where."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def add(self, where: str, text: str) -> None:
        self._texts[f"{len(self._texts)} {where}"] = text

    def holding_a_secret(self) -> list[str]:
        return [where for where, text in self._texts.items() if any(m in text for m in MARKS)]

    def __len__(self) -> int:
        return sum(map(len, self._texts.values()))


def family_of(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family_of(int(child))


def arguments_of(pid: int) -> str:
    """The command lines of a process and of its children."""
    return "\n".join(Path(f"/proc/{each}/cmdline").read_text() for each in family_of(pid))


async def ask_everything(process: Process, told: Told) -> None:
    """Every kind of question, with each token and none, and a wrong one."""
    async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
        for token in (*TOKENS.values(), "", "wr0ng"):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            for path in (
                "/healthz", "/metrics", "/subscribers", "/events", "/status", "/ui/status", "/",
                "/login", "/events?token=t0ken-r", "/ui/rows", "/nowhere", "/events?limit=x",
            ):  # fmt: skip
                answer = await http.get(path, headers=headers)
                told.add(f"{path} with {token}", f"{answer.headers} {answer.text}")
            for path in (
                "/ingest",
                "/services/collector",
                f"/v1/input/{token}",
                "/gelf",
            ):
                answer = await http.post(path, content=b"{", headers=headers)
                told.add(f"{path} with {token}", f"{answer.headers} {answer.text}")
        answer = await http.post("/login", data={"token": TOKENS["READ_TOKENS"]})
        told.add("/login", f"{answer.headers} {answer.text}")


async def command(told: Told, *words: str, **environ: str) -> int:
    """Runs logpipe as a user does, with all the secrets in its environment."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "logpipe", *words],
        env={**os.environ, **TOKENS, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    told.add(" ".join(words), done.stdout)
    return done.returncode


@contextlib.asynccontextmanager
async def watched(folder: Path, told: Told, **environ: str) -> AsyncIterator[Process]:
    """A process whose log and command lines count as told."""
    environ = {"LOG_LEVEL": "debug", "ALLOWED_HOSTS": "*", **TOKENS, **environ}
    async with spawned(folder, **environ) as process:
        yield process
        told.add("arguments", arguments_of(process.popen.pid))
        process.popen.terminate()
        await process.exit_status()
        told.add("log", process.log.read_text())


async def is_told(process: Process, words: str) -> None:
    """Waits until /healthz says so."""
    async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:

        async def said() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return words in (await http.get("/healthz")).text
            return False

        await wait_until(said, f"it is told: {words}", timeout=20)


@pytest.fixture
def told() -> Iterator[Told]:
    """What a test adds to it holds no secret at its end; and that it looks can be seen."""
    found = Told()
    yield found
    assert len(found) > 0
    assert found.holding_a_secret() == []


@pytest.fixture
def guarded() -> Iterator[Valkey]:
    with Valkey.started() as server:
        server.client.config_set("requirepass", PASSWORD)
        yield server


def test_a_secret_that_is_told_is_found() -> None:
    """The control."""
    told = Told()
    told.add("log", "redis://:s3cr%2F@h")
    told.add("page", "nothing")
    assert told.holding_a_secret() == ["0 log"]


async def test_a_password_that_fits_is_told_to_nobody_nor_are_tokens(
    guarded: Valkey, tmp_path: Path, told: Told
) -> None:
    (tmp_path / "address").write_text(f"unix://:{ENCODED}@{guarded.socket}\n")
    address = {"REDIS_ADDR_FILE": str(tmp_path / "address")}
    async with watched(tmp_path, told, WORKERS="2", **address) as process:
        log = process.log
        await wait_until(lambda: log.read_text().count("Redis is ready") == 2, "both are ready", 20)
        await ask_everything(process, told)
        where = {"URL": process.url}
        assert await command(told, "doctor", **where) == 0
        assert await command(told, "health", **where) == 0
        assert await command(told, "send", "--patience", "0", **where) == 0


async def test_a_password_that_is_refused_and_a_server_that_is_away_tell_no_secret(
    guarded: Valkey, tmp_path: Path, told: Told
) -> None:
    wrong = f"unix://u:{PASSWORD}x@{guarded.socket}"
    async with watched(tmp_path, told, REDIS_ADDR=wrong, ROLE="all") as process:
        await is_told(process, "the user or password is refused")
        await ask_everything(process, told)
    gone = f"redis://u:{ENCODED}@127.0.0.1:{free_port()}/0"
    async with watched(tmp_path, told, REDIS_ADDR=gone, PORT=str(free_port())) as process:
        await is_told(process, "cannot be reached")
        await ask_everything(process, told)
    away = {"PORT": str(free_port())}
    for words in (("health",), ("doctor",), ("tail",), ("send", "--patience", "0", "/dev/null")):
        if words != ("tail",):  # which waits for ever
            await command(told, *words, REDIS_ADDR=gone, **away)


async def test_what_the_embedded_engine_and_a_page_alone_are_given_tells_no_secret(
    tmp_path: Path, told: Told
) -> None:
    async with watched(tmp_path, told, DATA_DIR=str(tmp_path / "data")) as process:
        await process.ready()
        assert "valkey-server" in arguments_of(process.popen.pid)
        await ask_everything(process, told)
        other = process.url.replace("//", f"//user:{ENCODED}@")
        page = {"ROLE": "ui", "COLLECTOR_URL": other, "DISTRIBUTOR_URL": other}
        async with watched(tmp_path, told, PORT=str(free_port()), **page) as ui:
            await ui.ready()
            await ask_everything(ui, told)


async def test_settings_that_cannot_be_used_are_told_without_the_secrets(
    tmp_path: Path, told: Told
) -> None:
    bad = {
        "REDIS_ADDR": f"rediss://u:{PASSWORD}@h:port/0",
        "COLLECTOR_URL": f"ftp://u:{PASSWORD}@h",
        "DISTRIBUTOR_URL": f"u:{PASSWORD}@h",
        "SSL_CERTFILE": str(tmp_path / "none"),
        "SSL_KEYFILE_PASSWORD": PASSWORD,
        "PORT": "x",
    }
    assert await command(told, "serve", **bad) == 2
    del bad["PORT"], bad["COLLECTOR_URL"], bad["DISTRIBUTOR_URL"], bad["REDIS_ADDR"]
    assert await command(told, "serve", **bad) == 2
    (tmp_path / "address").write_text(f"redis+nothing://u:{PASSWORD}@h")
    assert await command(told, "serve", REDIS_ADDR_FILE=str(tmp_path / "address")) == 2
