"""`logpipe bench`, as a command of its own against a logpipe of its own."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from logpipe import cli
from logpipe.bench import measures
from logpipe.cli import bench as bench_command
from tests.helpers import wait_until
from tests.servers import UNMEASURED, Process, Valkey, free_port, serving, spawned

TINY = ("--seconds=0.2", "--connections=8", "--batch=10", "--readers=5", "--rate=50")


def clean(environ: dict[str, str]) -> dict[str, str]:
    """This environment, without settings of logpipe's, and these variables."""
    names = ("URL", "PORT", "INGEST_TOKENS", "READ_TOKENS")
    return {name: value for name, value in os.environ.items() if name not in names} | environ


async def bench(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "logpipe", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=clean(environ),
    )


def invoke(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(cli.main, ["bench", *arguments], env=environ)


@pytest.fixture
async def service(valkey: Valkey, tmp_path: Path) -> AsyncIterator[Process]:
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, **UNMEASURED) as process:
        await process.ready()
        yield process


async def post(process: Process, source: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        event = {"source": source, "message": "hello"}
        assert (await http.post(f"{process.url}/ingest", json=event)).status_code == 202


# -- what it says ------------------------------------------------------------------------------


async def test_it_says_in_a_few_lines_what_was_measured(service: Process) -> None:
    done = await bench(
        "--url", service.url, "--only=single", "--only=batch", "--only=fan-out", *TINY
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines if not line.startswith(" ")] == [
        "single posts, 8 connections",
        "batches of 10, 1 connections",
        "5 readers x 50 events/s",
    ]
    assert [line.split()[-1] for line in lines if line.endswith("/s")] == [
        "events/s",
        "events/s",
        "delivered/s",
    ]
    assert lines[-1] == "  every event arrived once at every reader"


async def test_as_json_it_says_a_line_a_measurement(service: Process) -> None:
    done = await bench("--url", service.url, "--only=batch", "--only=fan-out", "--json", *TINY)
    assert (done.returncode, done.stderr) == (0, "")
    ingest, fan_out = map(json.loads, done.stdout.splitlines())
    assert (ingest["measure"], ingest["connections"], ingest["per_request"]) == ("ingest", 1, 10)
    assert ingest["events_per_s"] > 0
    assert ingest["used"]["rss_bytes"] > 1_000_000
    assert (fan_out["measure"], fan_out["readers"], fan_out["sent"]) == ("fan-out", 5, 10)
    assert (fan_out["delivered"], fan_out["missing"], fan_out["doubled"]) == (50, 0, 0)


async def test_it_measures_all_where_nothing_is_named_at_the_port_of_the_environment(
    service: Process,
) -> None:
    done = await bench("--json", "--ingest-rate=50", *TINY, PORT=str(service.port))
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["measure"] for each in found] == ["ingest", "ingest", *["fan-out"] * 3]
    assert [each["readers"] for each in found[2:]] == [5, 100, 100]


async def test_on_a_terminal_it_shows_how_far_it_is(service: Process) -> None:
    ours, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "logpipe", "bench", "--url", service.url, "--only=single", *TINY),
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=clean({}),
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        shown = os.read(ours, 65_536).decode()
    finally:
        os.close(terminal)
        os.close(ours)
    assert process.returncode == 0
    assert out.startswith(b"single posts")
    assert "\r\x1b[Ksingle   #" in shown
    assert shown.endswith("\r\x1b[K")


async def test_a_key_that_stops_it_stops_it_quietly(service: Process, valkey: Valkey) -> None:
    # A shell has what it runs in the background ignore SIGINT, these tests perhaps among it.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"{heed}; from logpipe.cli import main; main()"),
        *("bench", "--url", service.url, "--only=fan-out"),
        *("--readers=3", "--seconds=30"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean({}),
        start_new_session=True,
    )
    try:
        await wait_until(lambda: valkey.client.xlen("logs"), "it sends")
        os.killpg(process.pid, signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert (out, err.split()) == (b"", [b"Aborted!"])


# -- what it does not do unasked ---------------------------------------------------------------


async def test_events_of_others_are_pushed_out_only_when_that_may_be(
    service: Process, valkey: Valkey
) -> None:
    await post(service, "bench")
    await post(service, "api")
    arguments = ("--url", service.url, "--only=fan-out", *TINY)
    refused = await bench(*arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "holds events, which a benchmark pushes out: --yes" in refused.stderr
    assert valkey.client.xlen("logs") == 2
    done = await bench(*arguments, "--yes")
    assert (done.returncode, done.stderr) == (0, "")


TOKENS = {"INGEST_TOKENS": "in,old", "READ_TOKENS": "out,old"}


@pytest.fixture
async def guarded(valkey: Valkey, tmp_path: Path) -> AsyncIterator[Process]:
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, **TOKENS, **UNMEASURED) as process:
        await process.ready()
        yield process


async def test_the_first_of_the_tokens_of_the_environment_are_sent(guarded: Process) -> None:
    arguments = ("--url", guarded.url, "--only=single", "--only=fan-out", *TINY)
    done = await bench(*arguments, **TOKENS)
    assert (done.returncode, done.stderr) == (0, "")


async def test_without_a_token_to_read_it_does_not_begin(guarded: Process) -> None:
    done = await bench("--url", guarded.url, *TINY, INGEST_TOKENS="in")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("logpipe: GET /events")
    assert "is answered 401" in done.stderr


@pytest.mark.parametrize("name", ["single", "fan-out"])
async def test_without_a_token_to_send_it_says_that_all_was_refused(
    name: str, guarded: Process
) -> None:
    done = await bench("--url", guarded.url, f"--only={name}", *TINY, READ_TOKENS="out")
    assert (done.returncode, done.stderr) == (1, "")
    assert "refused: 401" in done.stdout
    assert "every event arrived" not in done.stdout


async def test_a_collector_elsewhere_is_sent_to(service: Process, valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as collector:
        done = await bench(
            *("--url", service.url, "--ingest-url", collector.url, "--only=single", *TINY)
        )
        counted = (await collector.http.get("/metrics")).text
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = re.findall(
        r'^logpipe_ingest_requests_total{status="202"} (\S+)$', counted, re.MULTILINE
    )
    assert float(line) == valkey.client.xlen("logs") > 0


# -- in this process ---------------------------------------------------------------------------


async def test_what_it_measures_it_prints(
    service: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "WARM_UP_S", 0.05)
    arguments = ("--url", service.url, "--only=single", *TINY)
    text = await asyncio.to_thread(invoke, *arguments)
    assert (text.exit_code, text.output.split(",")[0]) == (0, "single posts")
    lines = await asyncio.to_thread(invoke, *arguments, "--json")
    assert (lines.exit_code, json.loads(lines.output)["measure"]) == (0, "ingest")


async def test_without_yes_it_leaves_what_it_finds(service: Process) -> None:
    await post(service, "api")
    result = await asyncio.to_thread(invoke, "--url", service.url, *TINY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--yes" in result.stderr


def test_how_far_it_is_is_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_command._progress("single", 0.5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bench_command._progress("single", 0.5)
    bench_command._progress("", 1)
    assert capsys.readouterr().err == f"\r\x1b[Ksingle   {'#' * 15}{'.' * 15}\r\x1b[K"


@pytest.mark.parametrize("yes", [(), ("--yes",)])
def test_an_address_where_nothing_listens_is_told(yes: tuple[str, ...]) -> None:
    result = invoke("--url", f"http://127.0.0.1:{free_port()}", *yes, *TINY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("logpipe: ")
    assert "refused" in result.stderr


@pytest.mark.parametrize("url", ["here", "ftp://x", "http://x:70000"])
def test_a_url_that_leads_nowhere_is_an_error_of_use_and_named(url: str) -> None:
    result = invoke("--url", url)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"logpipe: --url {url}: ")
    result = invoke("--url", "http://127.0.0.1:1", "--ingest-url", url)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"logpipe: --ingest-url {url}: ")


@pytest.mark.parametrize(
    "option",
    [
        "--seconds=0",
        "--connections=0",
        "--batch=0",
        "--readers=0",
        "--rate=0",
        "--ingest-rate=-1",
        "--size=0",
        "--only=everything",
    ],
)
def test_an_amount_of_nothing_is_an_error_of_use(option: str) -> None:
    result = invoke("--url", f"http://127.0.0.1:{free_port()}", option)
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.stderr


def test_bad_tokens_of_the_environment_are_an_error_of_use() -> None:
    result = invoke("--url", "http://127.0.0.1:1", READ_TOKENS_FILE="/nowhere/at/all")
    assert result.exit_code == 2
    assert "READ_TOKENS_FILE" in result.stderr
