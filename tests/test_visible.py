"""Commands at a hostile server: a terminal obeys nothing of what it answers."""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import unicodedata

import pytest

from logpipe.cli.common import visible
from logpipe.handler import LogpipeHandler
from tests.helpers import wait_until
from tests.impostor import HELLO, SSE_HEAD, Impostor

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\x7f evil"
"""It clears a terminal, names its window, colours it and turns its text around."""

DETAIL = json.dumps({"detail": f"{EVIL}\nlogpipe: all is well", "status": 400}, ensure_ascii=False)
READY = json.dumps({"status": "ok", "roles": [EVIL], "version": EVIL}, ensure_ascii=False)
EVENT = json.dumps({"id": "7-0", "source": EVIL, "message": EVIL, "level": EVIL})
BYE = json.dumps({"reason": EVIL, "retry_ms": 60_000}, ensure_ascii=False)


def answer(status: str, body: str, kind: str = "application/problem+json") -> str:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Server: {EVIL}", "Connection: close"]
    return "\r\n".join([*head, f"Content-Length: {len(body.encode())}", "", body])


ANSWERS = {
    "not ready": answer("503 Service Unavailable", DETAIL),
    "ready": answer("200 OK", READY, "application/json"),
    "refused": answer(f"400 {EVIL}", DETAIL),
    "html": answer(f"502 {EVIL}", f"<h1>{EVIL}</h1>", "text/html"),
    "no http": f"{EVIL}\r\n\r\n",
    "no number": f"HTTP/1.1 {EVIL}\r\n{EVIL}: {EVIL}\r\n\r\n",
    "a bye": f"{SSE_HEAD}event: bye\ndata: {BYE}\n\n",
    "a comment": f"{SSE_HEAD}: {EVIL}\n\n",
}
COMMANDS = {
    "health": ["health"],
    "bench": ["bench", "--seconds=0.2"],
    "bench --yes": ["bench", "--yes", "--seconds=0.2", "--connections=2", "--readers=2"],
    "doctor": ["doctor"],
    "doctor --json": ["doctor", "--json"],
    "tail": ["tail"],
    "send": ["send", "--patience=0.1"],
}


async def printed(url: str, *arguments: str) -> str:
    """All that a command prints; of `tail`, which goes on for ever, until it has printed a line."""
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_COLOR")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "logpipe", *arguments),
        env={**environ, "URL": url, "LOGPIPE_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"x\n")
    process.stdin.close()
    out = await asyncio.wait_for(process.stdout.readline(), 30)
    if arguments[0] == "tail":
        with contextlib.suppress(ProcessLookupError):  # it was refused, and has ended
            process.terminate()
    out += await asyncio.wait_for(process.stdout.read(), 30)
    await process.wait()
    return out.decode()


def obeyed(text: str) -> set[str]:
    """The characters in a text that a terminal obeys, but for line ends."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ANSWERS)
async def test_what_a_server_answers_is_shown_and_not_obeyed(command: str, name: str) -> None:
    async with Impostor(ANSWERS[name]) as hostile:
        out = await printed(hostile.url, *COMMANDS[command])
    assert out
    assert obeyed(out) == set()
    assert "\nlogpipe: all is well" not in out


async def test_events_are_shown_and_not_obeyed() -> None:
    stream = f"{SSE_HEAD}{HELLO}id: 7-0\ndata: {EVENT}\n\n[wait]"
    async with Impostor(stream) as hostile:
        out = await printed(hostile.url, "tail")
    assert "evil" in out
    assert obeyed(out) == set()


async def test_a_complaint_of_the_handler_is_one_harmless_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("refused", "no http", "no number", "not ready"):
        async with Impostor(ANSWERS[name]) as hostile:
            handler = LogpipeHandler(hostile.url, interval=0.01, flush_timeout=0.1)
            handler.handle(logging.makeLogRecord({"msg": "one", "name": "a"}))
            told: list[str] = []

            def complained() -> bool:
                told.append(capsys.readouterr().err)  # noqa: B023
                return bool("".join(told))  # noqa: B023

            await wait_until(complained, "it complains")
            await asyncio.to_thread(handler.close)
        out = "".join(told)
        assert obeyed(out) == set()
        assert out.startswith("logpipe handler: ")


@pytest.mark.parametrize("text", ["plain", "größer 漢字", ""])
def test_visible_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text
