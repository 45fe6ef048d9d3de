"""`logpipe send` as its users run it: pipes, files, terminals, while servers come and go."""

import asyncio
import contextlib
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logpipe.client.distributor import MAX_REFUSAL
from tests.commands import Command
from tests.helpers import fair_time, wait_until
from tests.impostor import Impostor, refusing
from tests.servers import Valkey, free_port, serving, spawned
from tests.terminals import CLEAN, on_terminal

SEND = [sys.executable, "-m", "logpipe", "send"]
TAKEN = (
    "HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 64\r\n"
    'Connection: close\r\n\r\n{"accepted":1,"rejected":0,"first_id":"1-0","errors":[]        }'
)


class Sending(Command):
    """A running `logpipe send`."""

    async def write(self, *lines: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        await self.process.stdin.drain()


def sending(*arguments: object, **environ: str) -> contextlib.AbstractAsyncContextManager[Sending]:
    return Sending.running("send", *arguments, **environ)


async def sent(*arguments: object, stdin: bytes = b"", **environ: str) -> tuple[int, list[str]]:
    """The exit status and the words of a send that ends."""
    process = await asyncio.create_subprocess_exec(
        *SEND, *map(str, arguments), stdin=-1, stdout=-1, stderr=-1, env={**CLEAN, **environ}
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 50)
    assert out == b""
    assert process.returncode is not None
    return process.returncode, err.decode().splitlines()


def stored(valkey: Valkey) -> list[dict[str, Any]]:
    """The events of the stream."""
    entries: Any = valkey.client.xrange("logs")
    return [json.loads(fields[b"event"]) for _, fields in entries]


def messages(valkey: Valkey) -> list[str]:
    return [event["message"] for event in stored(valkey)]


async def until_stored(valkey: Valkey, count: int) -> None:
    await wait_until(lambda: valkey.client.xlen("logs") >= count, f"{count} events", 20)


async def until_written(path: Path) -> None:
    await wait_until(lambda: path.exists() and path.read_text(), f"{path} is written")


def numbers(first: int, last: int) -> list[str]:
    return [str(n) for n in range(first, last)]


def lines(first: int, last: int) -> bytes:
    return "".join(f"{n}\n" for n in range(first, last)).encode()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as out:
        out.write(data)


# -- what becomes of lines ---------------------------------------------------------------------


async def test_lines_of_a_pipe_become_events_in_their_order(valkey: Valkey) -> None:
    text = b'a\r\n\n{"source":"x","message":"b","level":"err"}\n{"message":"c"}\n\xff\nlast'
    async with serving(redis_addr=valkey.url) as service:
        code, told = await sent("--level=warning", stdin=text, URL=service.url)
    assert (code, told) == (0, [f"5 lines sent ({len(text)} B)"])
    found = [(event["source"], event["level"], event["message"]) for event in stored(valkey)]
    assert found == [
        ("stdin", "WARN", "a"),
        ("x", "ERROR", "b"),
        ("stdin", "INFO", "c"),
        ("stdin", "WARN", "\ufffd"),
        ("stdin", "WARN", "last"),
    ]


async def test_files_are_sent_in_order_with_their_names_as_sources(
    valkey: Valkey, tmp_path: Path
) -> None:
    for name in ("b.log", "a.log"):
        (tmp_path / name).write_bytes(f"[error] {name}".encode())
    arguments = (tmp_path / "b.log", tmp_path / "a.log", "--detect-level")
    async with serving(redis_addr=valkey.url, ingest_tokens="t1,t2") as service:
        assert await sent(*arguments, URL=service.url, INGEST_TOKENS="t1,x") == (
            0,
            ["2 lines sent (26 B)"],
        )
        assert (await sent("--source=me", "--token=t2", "-", stdin=b"x", URL=service.url))[0] == 0
    assert [(event["source"], event["level"]) for event in stored(valkey)] == [
        ("b.log", "ERROR"),
        ("a.log", "ERROR"),
        ("me", "INFO"),
    ]


async def test_a_line_is_sent_while_the_pipe_stays_open(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, sending("--url", service.url) as send:
        for n in range(3):
            await send.write(n)
            await until_stored(valkey, n + 1)
        assert await send.exit_status() == 0
        assert send.told == ["3 lines sent (6 B)"]


async def test_a_named_pipe_is_read_like_a_file_but_once(valkey: Valkey, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for option in (["--follow"], ["--resume", tmp_path / "state"]):
        code, told = await sent(pipe, *option)
        assert (code, "is a pipe, which is read once" in told[0]) == (2, True)
    async with serving(redis_addr=valkey.url) as service, sending(pipe, URL=service.url) as send:
        await asyncio.to_thread(pipe.write_bytes, lines(0, 3))
        assert await send.exit_status() == 0
    assert [event["source"] for event in stored(valkey)] == ["pipe"] * 3


async def test_a_long_line_is_cut_and_told(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        text = b"x" * 3_000_000
        code, told = await sent(stdin=text + b"\nshort\n", URL=service.url)
    assert code == 0
    assert told[0] == "logpipe: 1 line cut: too long; metadata.cut_from_bytes says"
    first, second = stored(valkey)
    assert first["metadata"] == {"cut_from_bytes": 3_000_001}
    assert second["message"] == "short"


# -- refusals and exit codes -------------------------------------------------------------------


async def test_rejected_lines_are_reported_and_the_rest_is_sent(
    valkey: Valkey, tmp_path: Path
) -> None:
    path = tmp_path / "events.json"
    big = json.dumps({"message": "x" * 70_000})
    path.write_text(
        f'{{"message":"a"}}\n\n{{half\n{{"message":"b","odd":1}}\n{big}\n{{"message":"c"}}\n'
    )
    async with serving(redis_addr=valkey.url) as service:
        code, told = await sent(path, "--format=json", URL=service.url)
    assert code == 1
    assert [line.partition(": refused: ")[0] for line in told[:3]] == [
        f"logpipe: {path}:{n}" for n in (3, 4, 5)
    ]
    assert "JSON is malformed" in told[0]
    assert "odd: is no field of an event" in told[1]
    assert "over 65536 (MAX_MESSAGE_BYTES)" in told[2]
    assert told[3].startswith("2 lines sent (")
    assert told[3].endswith("), 3 refused")
    assert messages(valkey) == ["a", "c"]


async def test_a_wholly_rejected_batch_is_reported_line_by_line(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        code, told = await sent("--format=json", stdin=b'{"message":1}\n{}\n', URL=service.url)
    assert code == 1
    assert [line.split(": refused: ")[0] for line in told[:2]] == [
        "logpipe: stdin:1",
        "logpipe: stdin:2",
    ]
    assert told[2] == "0 lines sent (17 B), 2 refused"


async def test_a_body_that_is_too_large_is_sent_in_parts(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, max_body_bytes=2000) as service:
        text = lines(0, 300) + b"x" * 3000 + b"\n" + lines(300, 500)
        code, told = await sent(stdin=text, URL=service.url)
    assert messages(valkey) == numbers(0, 500)
    assert code == 1
    assert told[0] == ("logpipe: stdin:301: refused: The body is over 2000 bytes (MAX_BODY_BYTES).")
    assert told[1] == "500 lines sent (4.9 kB), 1 refused"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--follow"], "--follow needs FILEs"),
        (["--resume", "x"], "--resume needs FILEs"),
        (["--from-end", "x"], "--from-end needs --follow"),
        (["-", "x"], "-: standard input"),
        (["--source", "x" * 257], "--source must have at most 256"),
        (["--source", "logpipe-x"], '--source must not begin with "logpipe"'),
        (["/nowhere/Logpipe.log"], 'the source must not begin with "logpipe"'),
        (["--level", ""], "--level must have 1 to 32"),
        (["--url", "ftp://x"], "--url ftp://x: must be a URL"),
        (["--format", "xml"], "--format"),
        (["--spool-bytes", "0"], "--spool-bytes"),
        (["--patience", "-1"], "--patience"),
        (["/nowhere"], "/nowhere: No such file or directory: --follow waits for it"),
        (["/"], "/: Is a directory"),
        (["/dev/null", "-f", "--resume", "/dev"], "--resume"),
    ],
)
async def test_bad_usage_is_2_and_says_what_is_wrong(arguments: list[str], words: str) -> None:
    code, told = await sent(*arguments)
    assert code == 2
    assert words in " ".join(told)


@pytest.mark.parametrize(("token", "status"), [("", 401), ("wrong", 403)])
async def test_a_token_that_is_not_taken_ends_it_with_the_remedy(
    valkey: Valkey, token: str, status: int
) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="right") as service:
        code, told = await sent(stdin=b"a\n", URL=service.url, INGEST_TOKENS=token)
    assert code == 1
    assert f"{service.url} answers {status}: " in told[0]
    assert told[0].endswith(": give a token that may send with --token or INGEST_TOKENS")
    assert told[1] == "0 lines sent (0 B), 1 not sent"


async def test_no_collector_is_told_at_once_and_given_up_in_time() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, told = await sent("--url", url, "--patience=0.5", stdin=lines(0, 3))
    assert code == 1
    assert re.fullmatch(rf"logpipe: {url} cannot be reached: .*refused; trying again", told[0])
    assert told[1].endswith(
        "given up with a patience of 0.5 s: --url names another, --patience waits longer"
    )
    assert told[2:] == ["0 lines sent (0 B), 3 not sent"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "answers 404: --url names a service"),
        ("HTTP/1.1 202 Yes\r\nContent-Length: 2\r\n\r\nok", "is no collector: --url names"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "answers 200: --url names"),
        (
            "HTTP/1.1 301 There\r\nLocation: https://x\r\nContent-Length: 0\r\n\r\n",
            "answers 301, and points to https://x: give that as --url",
        ),
    ],
)
async def test_what_is_no_collector_is_told_as_such(answer: str, words: str) -> None:
    async with Impostor(answer) as other:
        code, told = await sent("--url", other.url, stdin=b"x\n")
    assert code == 1
    assert words in told[0]


async def test_an_answer_without_end_is_not_read_without_end() -> None:
    answer = "HTTP/1.1 202 Yes\r\nConnection: close\r\n\r\n" + "x" * (MAX_REFUSAL * 20) + "[wait]"
    async with Impostor(answer) as other:
        code, told = await sent("--url", other.url, stdin=b"x\n")
    assert (code, "is no collector" in told[0]) == (1, True)


async def test_a_closed_standard_input_is_told() -> None:
    command = f"{' '.join(SEND)} --url http://127.0.0.1:1 <&-"
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-c", command], capture_output=True, timeout=20
    )
    assert done.returncode == 2
    assert done.stderr == b"logpipe: standard input is closed: name FILEs\n"


# -- trying again ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [503, 429])
async def test_a_retry_sends_the_same_batch_under_the_same_key(status: int) -> None:
    later = refusing(status).replace("Connection", "Retry-After: 1\r\nConnection", 1)
    async with Impostor("", later, TAKEN) as other:
        started = time.monotonic()
        code, told = await sent("--url", other.url, stdin=b"x\n")
        assert time.monotonic() - started > 1.1
        assert len({other.header(n, "Idempotency-Key") for n in range(3)}) == 1
        assert len(set(other.bodies)) == 1
        assert json.loads(gzip.decompress(other.bodies[0]))["message"] == "x"
        assert other.header(0, "Content-Encoding") == "gzip"
    assert code == 0
    assert "Server disconnected" in told[0]
    assert "answers again after" in told[1]
    assert told[2:] == ["1 line sent (2 B)"]


async def test_a_wait_that_is_longer_than_its_patience_is_not_begun() -> None:
    later = refusing(503).replace("Connection", "Retry-After: 3600\r\nConnection", 1)
    async with Impostor(later) as other:
        code, told = await sent("--url", other.url, stdin=b"x\n")
    assert code == 1
    assert "answers 503: No.: given up" in told[1]


async def test_a_proxy_without_its_collector_is_waited_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    async with (
        Impostor(
            TAKEN, refusing(404), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", TAKEN
        ) as one,
        sending("--url", one.url) as send,
    ):
        await send.write("a")
        await wait_until(lambda: len(one.heads) == 1, "the first")
        await send.write("b")
        assert await send.exit_status() == 0
        assert len(one.heads) == 4


async def test_a_redis_that_restarts_midway_loses_and_doubles_nothing(
    own_valkey: Valkey, tmp_path: Path
) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(lines(0, 60_000))
    environ = {"REDIS_ADDR": own_valkey.url, "TRIM_MAXLEN": "1000000"}
    async with spawned(tmp_path, **environ) as service:
        await service.ready()
        async with sending(path, URL=service.url) as send:
            await until_stored(own_valkey, 1000)
            own_valkey.kill()
            await send.until_told("answers 503")
            own_valkey.start()
            assert await send.exit_status() == 0
            assert send.told[-1].startswith("60,000 lines sent")
    assert messages(own_valkey) == numbers(0, 60_000)


# -- following ---------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Writes numbered lines for a while, rotating as it goes."""

    def __init__(self, path: Path, count: int, rotate: Callable[[Path, int], None]) -> None:
        super().__init__(daemon=True)
        self.path, self.count, self.rotate = path, count, rotate
        self.start()

    def run(self) -> None:
        for n in range(0, self.count, 50):
            append(self.path, lines(n, n + 50))
            if n % 4000 == 3950:
                self.rotate(self.path, n)
            time.sleep(0.004)


def rename(path: Path, n: int) -> None:
    path.rename(path.with_name(f"{path.name}.{n}"))
    path.touch()


def copytruncate(path: Path, n: int) -> None:
    shutil.copy(path, path.with_name(f"{path.name}.{n}"))
    os.truncate(path, 0)


@pytest.mark.parametrize("rotate", [rename, copytruncate])
async def test_a_log_that_is_rotated_while_it_is_written_is_followed(
    valkey: Valkey, tmp_path: Path, rotate: Callable[[Path, int], None]
) -> None:
    path = tmp_path / "app.log"
    async with (
        serving(redis_addr=valkey.url) as service,
        sending("--follow", path, URL=service.url) as send,
    ):
        await send.until_told("waiting for it")
        writer = Writer(path, 20_000, rotate)
        await until_stored(valkey, 20_000)
        writer.join()
        assert await send.stop() == 0
        assert send.told[-1].startswith("20,000 lines sent")
    assert messages(valkey) == numbers(0, 20_000)


async def test_several_files_are_followed_and_half_a_line_waits(
    valkey: Valkey, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1a\n1")
    async with (
        serving(redis_addr=valkey.url) as service,
        sending("-f", one, two, URL=service.url) as send,
    ):
        await until_stored(valkey, 1)
        append(two, b"2a\n")
        await until_stored(valkey, 2)
        append(one, b"b\n")
        await until_stored(valkey, 3)
        assert await send.stop(signal.SIGTERM) == 0
    found = [(event["source"], event["message"]) for event in stored(valkey)]
    assert found == [("one", "1a"), ("two", "2a"), ("one", "1b")]


async def test_killed_at_any_moment_it_goes_on_with_every_line_once(
    valkey: Valkey, tmp_path: Path
) -> None:
    """Twenty kills -9 while the log is written and rotated; then the rest."""
    path, state = tmp_path / "app.log", tmp_path / "state"
    path.touch()
    chance = random.Random(7)
    total = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal total
        while not stop.wait(0.012):
            append(path, lines(total, total + 50))
            total += 50

    writer = threading.Thread(target=write, daemon=True)
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, TRIM_MAXLEN="1000000") as service:
        await service.ready()
        writer.start()
        for _ in range(20):
            before = valkey.client.xlen("logs")
            async with sending("-f", "--resume", state, path, URL=service.url) as send:
                await until_stored(valkey, before + 1)
                await asyncio.sleep(chance.random() * 0.1)
                send.process.kill()
                await send.exit_status()
            if chance.random() < 0.3:
                rename(path, before)
        stop.set()
        writer.join()
        async with sending("-f", "--resume", state, path, URL=service.url) as send:
            await until_stored(valkey, total)
            assert await send.stop() == 0
    assert messages(valkey) == numbers(0, total)


async def test_a_batch_stored_before_a_kill_is_not_stored_again(
    valkey: Valkey, tmp_path: Path
) -> None:
    """The answer never came: the next run repeats the batch under its key."""
    path, state = tmp_path / "app.log", tmp_path / "state"
    path.write_bytes(lines(0, 5))
    async with Impostor("[wait]") as silent:
        async with sending(path, "--resume", state, URL=silent.url) as send:
            await wait_until(lambda: silent.bodies, "the request", 30)
            send.process.kill()
        key, body = silent.header(0, "Idempotency-Key"), silent.bodies[0]
    async with serving(redis_addr=valkey.url) as service:
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        await service.post(body, **headers, Idempotency_Key=str(key))
        append(path, lines(5, 8))
        code, told = await sent(path, "--resume", state, URL=service.url)
        assert (code, told) == (0, ["8 lines sent (16 B)"])
        assert await sent(path, "--resume", state, URL=service.url) == (0, ["0 lines sent (0 B)"])
    assert messages(valkey) == numbers(0, 8)


async def test_two_sends_do_not_share_a_resume_file_or_a_spool(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    for option, name in (("--resume", "state"), ("--spool", "spool")):
        arguments = ("-f", path, option, tmp_path / name, "--url", "http://127.0.0.1:1")
        async with sending(*arguments) as send:
            lock = tmp_path / ("state.lock" if name == "state" else "spool/lock")
            await until_written(lock)
            code, told = await sent(*arguments)
            assert code == 1
            assert f"is held by another send (process {send.process.pid})" in told[0]


@pytest.mark.parametrize("content", ["", "{}", "hello", '{"version":9}'])
async def test_a_resume_file_that_is_none_is_told_with_the_remedy(
    tmp_path: Path, content: str
) -> None:
    path, state = tmp_path / "log", tmp_path / "state"
    path.touch()
    state.write_text(content)
    code, told = await sent(path, "--resume", state)
    assert code == 1
    assert f"{state}: " in told[0]
    assert "remove it to begin anew" in told[0]
    assert state.read_text() == content


async def test_a_resume_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x")
    code, told = await sent(path, "--resume", tmp_path / "no" / "state")
    assert (code, "no/state.lock: cannot be written" in told[0]) == (1, True)
    code, told = await sent(path, "--spool", path / "x")
    assert (code, "cannot be used: Not a directory" in told[0]) == (1, True)


# -- the spool ---------------------------------------------------------------------------------


async def test_a_pipe_is_read_while_the_collector_is_away(valkey: Valkey, tmp_path: Path) -> None:
    port = str(free_port())
    spool = tmp_path / "spool"
    environ = {"PORT": port, "REDIS_ADDR": valkey.url}
    async with sending("--spool", spool, "--url", f"http://127.0.0.1:{port}") as send:
        for n in range(0, 20_000, 100):
            await send.write(*range(n, n + 100))
        await send.until_told("trying again")
        async with spawned(tmp_path, **environ) as service:
            await service.ready()
            await until_stored(valkey, 10_000)
            service.popen.kill()
        await send.write(*range(20_000, 20_100))
        async with spawned(tmp_path, **environ) as service:
            assert await send.exit_status() == 0
            assert send.told[-1].startswith("20,100 lines sent")
    assert messages(valkey) == numbers(0, 20_100)
    assert [path.name for path in spool.iterdir()] == ["lock"]


async def test_batches_spooled_by_a_killed_send_are_sent_first(
    valkey: Valkey, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    away = f"http://127.0.0.1:{free_port()}"
    async with sending("--spool", spool, "--url", away) as send:
        await send.write(*range(100))
        await wait_until(lambda: list(spool.glob("*-100.batch")), "it is on disk")
        send.process.kill()
    code, told = await sent("--spool", spool, "--url", away, "--patience=0", stdin=lines(100, 150))
    assert code == 1
    assert told[0] == f"logpipe: {spool}: 100 lines of an earlier run come first"
    assert told[-2:] == [
        f"logpipe: {spool}: keeps what was not sent, for the next send with it",
        "0 lines sent (0 B), 150 not sent",
    ]
    async with serving(redis_addr=valkey.url) as service:
        code, told = await sent("--spool", spool, "--url", service.url, stdin=lines(150, 200))
        assert (code, told[-1].split(" (")[0]) == (0, "200 lines sent")
    assert messages(valkey) == numbers(0, 200)


async def test_a_full_spool_stops_the_reading_and_says_so(valkey: Valkey, tmp_path: Path) -> None:
    port = str(free_port())
    arguments = ("--spool", tmp_path / "spool", "--spool-bytes=50000", "--url")
    async with sending(*arguments, f"http://127.0.0.1:{port}") as send:
        writing = asyncio.create_task(send.write(*range(100_000)))
        await send.until_told("the spool is full")
        kept = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())
        assert kept <= 50_000 + 10  # and the lock
        assert not writing.done()
        environ = {"PORT": port, "REDIS_ADDR": valkey.url, "TRIM_MAXLEN": "1000000"}
        async with spawned(tmp_path, **environ):
            await writing
            assert await send.exit_status() == 0
    assert messages(valkey) == numbers(0, 100_000)


async def test_files_go_through_a_spool_once_too(valkey: Valkey, tmp_path: Path) -> None:
    path, spool, state = tmp_path / "app.log", tmp_path / "spool", tmp_path / "state"
    path.write_bytes(lines(0, 1000))
    arguments = (path, "--spool", spool, "--resume", state)
    away = f"http://127.0.0.1:{free_port()}"
    for _ in range(2):
        assert (await sent(*arguments, "--url", away, "--patience=0"))[0] == 1
    append(path, lines(1000, 1500))
    async with serving(redis_addr=valkey.url) as service:
        for _ in range(2):
            assert (await sent(*arguments, "--url", service.url))[0] == 0
    assert messages(valkey) == numbers(0, 1500)


# -- the end -----------------------------------------------------------------------------------


async def test_ctrl_c_sends_the_last_words_of_a_pipe(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, sending("--url", service.url) as send:
        await send.write("a")
        await until_stored(valkey, 1)
        send.process.send_signal(signal.SIGINT)
        await send.write("goodbye")
        assert await send.exit_status() == 0
        assert send.told == ["2 lines sent (10 B)"]
    assert messages(valkey) == ["a", "goodbye"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_soon_though_the_collector_is_away(number: int) -> None:
    async with sending("--url", f"http://127.0.0.1:{free_port()}") as send:
        await send.write("a")
        await send.until_told("trying again")
        started = fair_time()
        assert await send.stop(number) == 1
        assert fair_time() - started < 4
        assert send.told[-1] == "0 lines sent (0 B), 1 not sent"


async def test_it_ends_soon_though_the_collector_answers_nothing() -> None:
    async with Impostor("[wait]") as silent, sending("--url", silent.url) as send:
        await send.write("a")
        await wait_until(lambda: silent.bodies, "the request", 30)
        send.process.send_signal(signal.SIGINT)
        started = fair_time()
        assert await send.exit_status(8) == 1
        assert fair_time() - started < 5
        assert send.told[-1] == "0 lines sent (0 B), 1 not sent"


async def test_a_file_that_was_not_sent_to_its_end_is_1(valkey: Valkey, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"x" * 100 + b"\n" + lines(0, 1_000_000))
    async with serving(redis_addr=valkey.url) as service, sending(path, URL=service.url) as send:
        await until_stored(valkey, 1)
        assert await send.stop() == 1
        assert re.fullmatch(r"[\d,]+ lines sent \(.*\)", send.told[-1])


# -- terminals and memory ----------------------------------------------------------------------


async def test_a_terminal_shows_how_far_it_is_and_words_above_it(
    valkey: Valkey, tmp_path: Path
) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b'{"message":1}\n' * 300 + b'{"message":"a"}\n' * 20_000)
    async with serving(redis_addr=valkey.url) as service:
        arguments = ("send", str(path), "--format=json", "--url", service.url)
        with on_terminal(100, *arguments) as terminal:
            await terminal.until(lambda seen: "sent" in seen, "the sum")
            assert await asyncio.to_thread(terminal.popen.wait, 10) == 1
            seen = terminal.seen
    assert re.search(
        r"\r\x1b\[K[#.]{30} +\d+%  [\d:]*( {2})?[\d.]+ k?B of 324.2 kB  [\d,]+ lines?  [\d,]+/s",
        seen,
    )
    assert seen.endswith("\r20,000 lines sent (324.2 kB), 300 refused\n")
    assert all(len(line) < 100 for line in re.split(r"[\r\n]", seen) if "%" in line)


async def test_a_terminal_without_a_total_shows_what_was_sent(
    valkey: Valkey, tmp_path: Path
) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(lines(0, 10))
    async with serving(redis_addr=valkey.url) as service:
        with on_terminal(100, "send", "-f", str(path), "--url", service.url) as terminal:
            await terminal.until(lambda seen: "\r\x1b[K20 B  10 lines  " in seen, "the figures")
            await terminal.press(b"\x03")
            assert await asyncio.to_thread(terminal.popen.wait, 10) == 0
            assert terminal.seen.endswith("\r10 lines sent (20 B)\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_large_input_takes_little_memory(valkey: Valkey, tmp_path: Path) -> None:
    """A hundred megabytes, of which twenty are one line, in no more than 100 MB."""
    path = tmp_path / "big.log"
    with path.open("wb") as out:
        out.write(b"y" * 20_000_000)
        for _ in range(80):
            out.write((b"x" * 999 + b"\n") * 1000)
    script = (
        "import re, sys; from logpipe.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, TRIM_MAXLEN="1000") as service:
        await service.ready()
        for options in ([], ["--spool", str(tmp_path / "spool")]):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", script, "send", str(path), *options],
                env={**CLEAN, "URL": service.url},
                capture_output=True,
                timeout=50,
            )
            assert done.returncode == 0, done.stderr
            assert int(done.stdout) < 100_000
