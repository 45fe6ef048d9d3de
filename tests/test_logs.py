import asyncio
import contextvars
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe import logs, request_ids
from tests.decoding import decode_json
from tests.helpers import wait_until
from tests.servers import Valkey, serving, spawned, subscribed

HOSTILE = "a\r\nb\x1b[31m\x1b]0;x\x07\x00\x85\u2028\u202e\udc80\x7f end"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _the_logging_of_pytest_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    ours, theirs = logging.getLogger("logpipe"), logging.getLogger("uvicorn")
    levels = ours.level, theirs.level
    yield
    root.handlers, root.level = handlers, level
    ours.setLevel(levels[0])
    theirs.setLevel(levels[1])


def written(style: str, *, out: io.StringIO | None = None, level: str = "info") -> io.StringIO:
    out = out or io.StringIO()
    logs.configure(level, style, out)
    return out


def fail_with(text: str) -> None:
    raise ValueError(text)


log = logging.getLogger("logpipe.test")


def test_each_record_is_one_line_of_json_that_logpipe_would_take() -> None:
    out = written("json")
    for message in ("started", HOSTILE, "", '"', "\\", "é\U0001f600"):
        log.warning("%s", message)
    lines = out.getvalue().splitlines()
    assert len(lines) == 6
    for line in lines:
        events, refusals, _ = decode_json(line.encode())
        assert refusals == []
        assert (events[0].source, events[0].level) == ("serve", "WARN")
        assert re.fullmatch(r"[ -\x7f]+", line)
    assert json.loads(lines[0])["message"] == "started"
    assert json.loads(lines[5])["message"] == "é\U0001f600"


def test_the_json_of_a_record_has_its_time_its_level_and_its_logger() -> None:
    out = written("json", level="debug")
    log.debug("one")
    log.critical("two")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["level"], second["level"]) == ("DEBUG", "FATAL")
    assert first["metadata"]["logger"] == "logpipe.test"
    assert first["ts_unix_ms"] > 1_700_000_000_000


def test_the_json_of_a_failure_has_the_traceback_on_its_line() -> None:
    out = written("json")
    try:
        fail_with(HOSTILE)
    except ValueError:
        log.exception("failed")
    (line,) = out.getvalue().splitlines()
    assert "ValueError" in json.loads(line)["metadata"]["exception"]


def test_each_record_is_one_line_of_text_without_control_characters() -> None:
    out = written("text")
    log.info("started")
    log.error("%s", HOSTILE)
    first, second = out.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO     started", first)
    assert second.endswith(r"a\r\nb\x1b[31m\x1b]0;x\x07\x00\x85\u2028\u202e\udc80\x7f end")


def test_a_traceback_as_text_forges_no_record_and_reaches_no_terminal() -> None:
    out = written("text")
    try:
        fail_with(HOSTILE + "\n12:00:00 INFO     forged")
    except ValueError:
        log.exception("failed")
    text = out.getvalue()
    assert "ValueError" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x85]", text)
    assert [line for line in text.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)] == [
        text.splitlines()[0]
    ]


def test_a_terminal_gets_colours_and_a_file_gets_none() -> None:
    terminal = written("auto", out=Terminal())
    log.warning("careful")
    assert "\x1b[33mWARNING" in terminal.getvalue()
    file = written("text")
    log.warning("careful")
    assert "\x1b" not in file.getvalue()


def test_without_a_choice_a_terminal_gets_text_and_all_else_json() -> None:
    file = written("auto")
    log.info("x")
    assert msgspec.json.decode(file.getvalue())["message"] == "x"
    terminal = written("auto", out=Terminal())
    log.info("x")
    assert terminal.getvalue().endswith("x\n")
    assert "{" not in terminal.getvalue()
    both = written("json", out=Terminal())
    log.info("x")
    assert msgspec.json.decode(both.getvalue())["message"] == "x"


def test_what_is_below_the_level_is_not_written() -> None:
    out = written("json", level="warning")
    log.info("quiet")
    log.warning("loud")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["loud"]


def test_of_other_libraries_only_warnings_are_written_and_of_the_server_only_errors() -> None:
    out = written("json", level="debug")
    logging.getLogger("other").info("quiet")
    logging.getLogger("other").warning("other")
    # A line for each malformed request would let anyone fill the log.
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").error("server")
    messages = [json.loads(line)["message"] for line in out.getvalue().splitlines()]
    assert messages == ["other", "server"]


def test_configuring_again_does_not_double_the_lines() -> None:
    out = io.StringIO()
    for _ in range(3):
        written("json", out=out)
    log.info("once")
    assert len(out.getvalue().splitlines()) == 1


def test_without_a_stderr_nothing_is_written_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logs.configure("info", "auto")
    log.error("into the void")
    assert not any(hasattr(handler, "stream") for handler in logging.getLogger().handlers)


# -- under the id of a request --------------------------------------------------------------------


@pytest.mark.parametrize("style", ["json", "text"])
async def test_what_is_logged_while_a_request_is_served_has_its_id(style: str) -> None:
    out = written(style)
    log.warning("before")

    async def serve(given: bytes) -> None:
        request_ids.serve({"headers": [(b"x-request-id", given)]})
        log.warning("within")
        await asyncio.sleep(0)
        log.warning("within, later")

    await asyncio.gather(*map(asyncio.create_task, (serve(b"one"), serve(b"two"))))
    log.warning("after")
    lines = out.getvalue().splitlines()
    if style == "json":
        found = [json.loads(line)["metadata"].get("request_id") for line in lines]
    else:
        found = [match[1] if (match := re.search(r" \[(\w+)\]$", line)) else None for line in lines]
    assert found == [None, "one", "two", "one", "two", None]


def test_a_hostile_id_never_reaches_the_log() -> None:
    out = written("text")

    def serve() -> None:
        request_ids.serve({"headers": [(b"x-request-id", b"\x1b[31m] ERROR forged")]})
        log.warning("within")

    contextvars.Context().run(serve)
    (line,) = out.getvalue().splitlines()
    assert re.search(r" within \[[0-9a-f]{16}\]$", line)


@pytest.mark.parametrize("style", ["json", "text"])
async def test_names_of_strangers_forge_no_record(valkey: Valkey, style: str) -> None:
    """The name of a consumer, of a group, a source, a message: what is logged of them, if any."""
    out = written(style, level="debug")
    given = {"redis_addr": valkey.url, "consumer_name": HOSTILE.replace("\udc80", "")}
    async with (
        serving(role="collector,distributor", **given) as one,
        serving(role="distributor", **given) as two,
        subscribed(one.url, delivery="shared", group=given["consumer_name"]) as first,
        subscribed(two.url, delivery="shared", group=given["consumer_name"]) as second,
    ):
        for reader in (first, second):
            await reader.named("hello")
        await one.post({"source": "\x1b[31m\nforged", "message": "\u202e\r\n12:00:00 ERROR"})
        await wait_until(lambda: "~2" in out.getvalue(), "the second is renamed, and says so")
    text = out.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    for line in text.splitlines():
        assert re.match(r"{.*}$" if style == "json" else r"\d\d:\d\d:\d\d [A-Z]+ +\S", line)


# -- whatever is logged ------------------------------------------------------------------------

UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""What ends a line, what a terminal obeys, what turns the order of what is read around."""

NASTY = st.text(
    st.sampled_from('\r\n\x1b\x9b\x85\x00\x7f\x0b\x0c\u2028\u2029\u202e\u2066\u200f\udc80 a{}%"\\')
    | st.characters()
)


def record_of(message: str, argument: str, fault: str | None) -> logging.LogRecord:
    info = None if fault is None else (ValueError, ValueError(fault), None)
    return logging.LogRecord(
        "logpipe", logging.ERROR, "f", 1, f"{message.replace('%', '%%')} %s", (argument,), info
    )


@given(NASTY, NASTY, st.none() | NASTY)
def test_any_record_is_one_line_of_json_without_a_control_character(
    message: str, argument: str, fault: str | None
) -> None:
    line = logs.JsonFormatter().format(record_of(message, argument, fault))
    assert not UNSAFE.search(line)
    told = json.loads(line)["message"]
    if (message + argument).isprintable():
        assert told == f"{message} {argument}"


@given(NASTY, NASTY, st.none() | NASTY)
def test_any_record_is_one_line_of_text_and_only_a_traceback_goes_on_indented(
    message: str, argument: str, fault: str | None
) -> None:
    text = logs.TextFormatter(colour=False).format(record_of(message, argument, fault))
    first, *more = text.split("\n")
    assert re.match(r"\d\d:\d\d:\d\d ERROR    ", first)
    assert not any(UNSAFE.search(line) for line in (first, *more))
    assert all(line.startswith("  ") for line in more)
    assert bool(more) is (fault is not None)


@pytest.mark.parametrize("style", ["json", "text"])
async def test_what_a_client_sends_forges_no_record_of_a_real_process(
    own_valkey: Valkey, tmp_path: Path, style: str
) -> None:
    """By path, headers, source, message, token, request id and forwarded address."""
    forged = "\r\n12:00:00 ERROR    forged\x1b[2J\x9b31m\u202e\u2066\u2028 {}"
    quoted = quote(forged)
    raw = forged.encode().replace(b"\r\n", b"").replace(b"\x1b", b"")  # else it is 400 at once
    environ = {
        "REDIS_ADDR": own_valkey.url, "LOG_LEVEL": "debug", "LOG_FORMAT": style,
        "FORWARDED_ALLOW_IPS": "127.0.0.1", "INGEST_TOKENS": "i" * 16, "READ_TOKENS": "r" * 16,
    }  # fmt: skip
    headers = dict.fromkeys((b"X-Request-ID", b"User-Agent", b"Referer", b"Cookie"), raw)
    headers |= {b"X-Forwarded-For": raw, b"Last-Event-ID": raw, b"Origin": raw}
    event = json.dumps({"source": forged[:200], "message": forged, "metadata": {forged: forged}})
    asked = [
        (method, path, token)
        for method, path in (
            ("POST", "/ingest"), ("POST", "/ingest/json"), ("POST", f"/v1/input/{quoted}"),
            ("POST", "/ui/send"), ("GET", f"/{quoted}"), ("GET", f"/events/{quoted}?{quoted}"),
            ("GET", f"/events?q={quoted}"), ("GET", f"/ui/rows?cols={quoted}"),
        )
        for token in (b"i" * 16, b"r" * 16, raw)
    ]  # fmt: skip
    async with spawned(tmp_path, **environ) as process:
        await process.ready()
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            for method, path, token in asked:
                body = {"content": event} if method == "POST" else {}
                own = {**headers, b"Authorization": b"Bearer " + token}
                await http.request(method, path, headers=own, **body)  # type: ignore[arg-type]
        process.popen.terminate()
        await process.exit_status()
        text = process.log.read_bytes().decode()
    lines = text.split("\n")[:-1]
    requests = [line for line in lines if re.search(r" in \d+\.\d ms", line)]
    assert len([line for line in requests if "GET /healthz " not in line]) == len(asked)
    wrong = [line for line in lines if "rong token" in line]  # a line each second
    assert wrong
    assert len(lines) - len(requests) - len(wrong) == 3  # it runs, Redis is ready, it stops
    assert not any(UNSAFE.search(line) for line in lines)
    for line in lines:
        assert json.loads(line) if style == "json" else re.match(r"\d\d:\d\d:\d\d [A-Z]+ ", line)
