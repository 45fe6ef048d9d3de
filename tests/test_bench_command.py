"""`logpipe bench` as a command."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner, Result

from logpipe import cli
from tests.helpers import wait_until
from tests.servers import Valkey, free_port, serving

TINY = ("--seconds=0.2", "--connections=8", "--batch=10", "--readers=5", "--rate=50")
SETTINGS = ("URL", "PORT", "INGEST_TOKENS", "READ_TOKENS")


def invoke(*arguments: str, **environ: str) -> Result:
    clean = dict.fromkeys(SETTINGS) | environ
    return CliRunner().invoke(cli.main, ["bench", *arguments], env=clean)


async def bench(*arguments: str, **environ: str) -> Result:
    """Runs the command in a thread, while this event loop serves."""
    return await asyncio.to_thread(invoke, *arguments, *TINY, **environ)


# -- output ------------------------------------------------------------------------------------


async def test_all_measures_are_reported_in_a_few_lines(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        done = await bench("--ingest-rate=50", PORT=service.url.rpartition(":")[2])
    assert (done.exit_code, done.stderr) == (0, "")
    results = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [(line.split("  ")[0], line.split()[-1]) for line in results] == [
        ("single posts, 8 connections", "events/s"),
        ("batches of 10, 1 connections", "events/s"),
        ("5 readers x 50 events/s", "delivered/s"),
        ("100 readers x 10 events/s", "delivered/s"),
        ("100 readers x 1,000 events/s", "delivered/s"),
    ]
    assert done.stdout.count("  every event arrived once at every reader\n") == 3


async def test_json_is_a_line_for_each_measurement(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        done = await bench("--url", service.url, "--only=batch", "--only=fan-out", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    ingest, fan_out = map(json.loads, done.stdout.splitlines())
    assert set(ingest) == {
        *("measure", "target", "connections", "per_request", "events_per_s", "answer_ms"),
        *("refused", "used", "last"),
    }
    assert set(fan_out) == {
        *("measure", "target", "readers", "rate", "connected", "connects_per_s", "sent"),
        *("delivered", "delivered_per_s", "missing", "doubled", "latency_ms", "bytes_a_reader"),
        *("received_bytes", "broken", "refused", "used", "readers_cpu"),
    }
    assert (ingest["measure"], ingest["connections"], ingest["per_request"]) == ("ingest", 1, 10)
    assert set(ingest["answer_ms"]) == {"p50", "p99", "max"}
    assert set(ingest["used"]) == {"cores", "rss_bytes"}
    assert (fan_out["measure"], fan_out["readers"], fan_out["sent"]) == ("fan-out", 5, 10)
    assert (fan_out["delivered"], fan_out["missing"], fan_out["doubled"]) == (50, 0, 0)


async def test_a_terminal_shows_progress_and_ctrl_c_ends_it(valkey: Valkey) -> None:
    # A shell makes what it runs in the background ignore SIGINT, perhaps these tests as well.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    ours, terminal = pty.openpty()
    shown = bytearray()
    async with serving(redis_addr=valkey.url) as service:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"{heed}; from logpipe.cli import main; main()"),
            *("bench", "--url", service.url, "--only=single", "--seconds=60", "--ingest-rate=50"),
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={name: value for name, value in os.environ.items() if name not in SETTINGS},
            start_new_session=True,
        )
        os.close(terminal)
        os.set_blocking(ours, False)

        def is_shown() -> bool:
            with contextlib.suppress(BlockingIOError, OSError):
                shown.extend(os.read(ours, 65_536))
            return b"\r\x1b[Ksingle   ." in shown

        try:
            await wait_until(is_shown, "its progress is shown", 30)
            os.killpg(process.pid, signal.SIGINT)
            out, _ = await asyncio.wait_for(process.communicate(), 30)
            is_shown()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            os.close(ours)
    assert (process.returncode, out) == (1, b"")
    assert b"Aborted!" in shown and b"Traceback" not in shown


# -- what it leaves alone ----------------------------------------------------------------------


async def test_events_of_others_need_yes(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await service.post({"source": "api", "message": "hello"})
        refused = await bench("--url", service.url, "--only=fan-out")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "holds events, which a benchmark pushes out: --yes" in refused.stderr
        assert valkey.client.xlen("logs") == 1
        done = await bench("--url", service.url, "--only=fan-out", "--yes")
        assert (done.exit_code, done.stderr) == (0, "")


# -- where and with which token ----------------------------------------------------------------


async def test_the_first_tokens_of_the_environment_are_sent(valkey: Valkey) -> None:
    tokens: dict[str, Any] = {"INGEST_TOKENS": "in,old", "READ_TOKENS": "out,old"}
    settings = {name.lower(): value for name, value in tokens.items()}
    async with serving(redis_addr=valkey.url, **settings) as service:
        arguments = ("--url", service.url, "--only=single")
        done = await bench(*arguments, "--only=fan-out", **tokens)
        assert (done.exit_code, done.stderr) == (0, "")
        unread = await bench(*arguments, INGEST_TOKENS="in")
        assert (unread.exit_code, unread.stdout) == (1, "")
        assert "/events" in unread.stderr and "is answered 401" in unread.stderr
        unsent = await bench(*arguments, READ_TOKENS="out")
        assert (unsent.exit_code, unsent.stderr) == (1, "")
        assert "refused: 401" in unsent.stdout


async def test_a_collector_elsewhere_is_sent_to(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, serving(redis_addr=valkey.url) as other:
        urls = ("--url", service.url, "--ingest-url", other.url)
        done = await bench(*urls, "--only=single", "--ingest-rate=50")
        counted = (await other.http.get("/metrics")).text
    assert (done.exit_code, done.stderr) == (0, "")
    assert 'logpipe_ingest_requests_total{status="202"} 10.0' in counted


@pytest.mark.parametrize("yes", [(), ("--yes",)])
def test_an_address_where_nothing_listens_is_named(yes: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = invoke("--url", url, *yes, *TINY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("logpipe: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["here", "ftp://x", "http://x:70000"])
def test_a_url_that_leads_nowhere_is_an_error_of_use(url: str) -> None:
    for option, given in (
        ("--url", ("--url", url)),
        ("--ingest-url", ("--url", "http://127.0.0.1:1", "--ingest-url", url)),
    ):
        result = invoke(*given)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"logpipe: {option} {url}: ")


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
    result = invoke("--url", "http://127.0.0.1:1", option)
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.stderr


def test_bad_tokens_of_the_environment_are_an_error_of_use() -> None:
    result = invoke("--url", "http://127.0.0.1:1", READ_TOKENS_FILE="/nowhere/at/all")
    assert result.exit_code == 2
    assert "READ_TOKENS_FILE" in result.stderr
