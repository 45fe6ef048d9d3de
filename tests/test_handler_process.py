"""The handler in programs of their own: imports, ends, forks."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from tests.helpers import wait_until
from tests.scripted import HANG, RESET, Scripted, Step
from tests.servers import Service, Valkey, serving

HEAD = """
    import logging, os, sys, threading, time
    from logpipe.handler import LogpipeHandler
    handler = LogpipeHandler(sys.argv[1], interval=60, flush_timeout=float(sys.argv[2]))
    log = logging.getLogger("program")
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
"""


UNCOVERED = {name: value for name, value in os.environ.items() if "COV" not in name}
"""Without coverage, which brings modules of its own, and whose lock a child keeps for ever where
another thread had it at the fork."""


async def run(
    script: str, url: str, flush_timeout: float = 30, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs `HEAD` and the script to their end; warnings are errors."""
    code = "".join(map(textwrap.dedent, (first, HEAD, script)))
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, url, str(flush_timeout)]
    return await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=UNCOVERED,
    )


# -- what it brings along --------------------------------------------------------------------------


def test_importing_it_brings_neither_servers_nor_clients() -> None:
    code = "import sys, json, logpipe.handler; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=UNCOVERED)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    forbidden = {"redis", "starlette", "httpx", "uvicorn", "anyio", "click", "lark", "jinja2"}
    assert not loaded & forbidden
    assert not loaded & {"asyncio", "prometheus_client", "multiprocessing"}


async def test_its_thread_imports_nothing() -> None:
    """A fork while it does would leave the child with an import's lock that nobody releases."""
    script = """
        before = set(sys.modules)
        log.info("one")
        handler.flush()
        log.info("large " * 1_000)
        handler.flush()
        print(sorted(set(sys.modules) - before))
    """
    script = textwrap.dedent(script)
    retry = Step(503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"})
    with Scripted(Step(RESET), retry, Step(400), Step()) as collector:
        done = await run(script, collector.url)
    assert done.stdout == "[]\n", done.stderr
    assert len(collector.posts) == 4


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "raise SystemExit",
        "1 / 0",
        "logging.shutdown()",
        "handler.close()",
        "import atexit; atexit.register(log.info, 'good-bye')",
        "threading.Thread(target=lambda: (time.sleep(0.2), log.info('good-bye'))).start()",
    ],
)
async def test_what_was_logged_is_sent_at_the_end(end: str) -> None:
    with Scripted() as collector:
        done = await run(f"log.info('one'); log.info('two')\n{end}", collector.url)
    farewell = ["good-bye"] if "good-bye" in end else []
    assert collector.messages == ["one", "two", *farewell]
    assert "logpipe" not in done.stderr
    assert "Warning" not in done.stderr


async def test_a_first_record_at_the_very_end_is_sent() -> None:
    with Scripted() as collector:
        done = await run("import atexit; atexit.register(log.info, 'only')", collector.url)
    assert done.stderr == ""
    assert collector.messages == ["only"]


async def test_a_hanging_collector_delays_the_end_to_the_deadline() -> None:
    """One deadline for two handlers, each flushed and closed."""
    first = """
        import atexit, time
        began = []
        atexit.register(lambda: print(time.monotonic() - began[0]))
    """
    script = """
        log.addHandler(LogpipeHandler(sys.argv[1], flush_timeout=1.5))
        log.info('one')
        log.info('two')
        atexit.register(lambda: began.append(time.monotonic()))
    """
    with Scripted(Step(HANG)) as collector:
        done = await run(script, collector.url, 1.5, first)
    assert done.returncode == 0
    assert done.stderr == "logpipe handler: 2 events not sent before the end\n" * 2
    assert 1.5 <= float(done.stdout) < 3.0


async def test_a_collector_that_is_away_is_no_reason_to_fail() -> None:
    done = await run("log.info('one')", "http://127.0.0.1:9", 0.2)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "logpipe handler: 1 event not sent before the end"


async def test_a_bad_argument_is_the_only_error_of_a_program() -> None:
    done = await run("", "logs.example:8080")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "ValueError: 'logs.example:8080' is no collector's address" in done.stderr


# -- forks -----------------------------------------------------------------------------------------


async def stored(service: Service) -> list[dict[str, Any]]:
    """All events, in order; a page may end before its limit, as its budget is spent."""
    found: list[dict[str, Any]] = []
    query: dict[str, str | int] = {"order": "asc", "limit": 5_000}
    while True:
        page = (await service.http.get("/events", params=query)).json()
        found += page["events"]
        if page["next"] is None:
            return found
        query["cursor"] = page["next"]


async def test_forks_under_load_send_every_record_once(valkey: Valkey) -> None:
    script = """
        handler._outbox.interval = 0.001
        def load(name):
            for number in range(400):
                log.info("%s %d", name, number)
        threads = [threading.Thread(target=load, args=(f"parent-{n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        children = []
        for child in range(8):
            pid = os.fork()
            if not pid:
                load(f"child-{child}")
                sys.exit(0 if handler.flush() and not handler.dropped else 9)
            children.append(pid)
        for thread in threads:
            thread.join()
        print([os.waitpid(pid, 0)[1] for pid in children], handler.flush(), handler.dropped)
    """
    async with serving(redis_addr=valkey.url) as service:
        done = await run(_without_fork_warning(script), service.url)
        events = await stored(service)
    assert done.stdout == f"{[0] * 8} True 0\n", done.stderr
    messages = [event["message"] for event in events]
    names = [*(f"parent-{n}" for n in range(3)), *(f"child-{n}" for n in range(8))]
    assert sorted(messages) == sorted(f"{name} {n}" for name in names for n in range(400))
    for name in names:
        own = [event for event in events if event["message"].startswith(f"{name} ")]
        assert [event["message"] for event in own] == [f"{name} {n}" for n in range(400)]
        assert len({event["metadata"]["process.pid"] for event in own}) == 1


def _without_fork_warning(script: str) -> str:
    """From Python 3.12 on, a fork of a process with threads warns, and this one means it."""
    ignored = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)"
    return f"{ignored}\n{textwrap.dedent(script)}"


async def test_what_waits_at_a_fork_is_sent_by_the_parent_alone() -> None:
    script = """
        log.info("before")
        pid = os.fork()
        log.info("child" if not pid else "parent")
        if pid:
            os.waitpid(pid, 0)
    """
    with Scripted() as collector:
        done = await run(_without_fork_warning(script), collector.url)
    assert done.stderr == ""
    assert [[event["message"] for event in post.events] for post in collector.posts] == [
        ["child"],
        ["before", "parent"],
    ]


async def test_a_fork_while_a_request_hangs_leaves_the_child_free() -> None:
    script = """
        handler._outbox.interval = 0.001
        log.info("hangs")
        sys.stdin.readline()
        pid = os.fork()
        if not pid:
            log.info("child")
            sys.exit(0 if handler.flush() else 9)
        print(os.waitpid(pid, 0)[1], flush=True)
        handler.flush_timeout = 0.1
    """
    with Scripted(Step(HANG), Step()) as collector:
        code = textwrap.dedent(HEAD) + _without_fork_warning(script)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, collector.url, "30",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await wait_until(lambda: collector.posts, "the request hangs")
        output, _ = await process.communicate(b"\n")
    assert output == b"0\n"
    assert collector.messages == ["hangs", "child"]


async def test_a_kept_connection_stays_the_parents() -> None:
    script = """
        log.info("parent")
        handler.flush()
        for number in range(3):
            pid = os.fork()
            if not pid:
                log.info("child")
                sys.exit(0)
            os.waitpid(pid, 0)
            log.info("parent")
            handler.flush()
    """
    with Scripted() as collector:
        done = await run(_without_fork_warning(script), collector.url)
    assert done.stderr == ""
    assert collector.messages == ["parent", *["child", "parent"] * 3]


async def test_a_closed_handler_stays_closed_in_a_fork() -> None:
    script = """
        handler.close()
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        log.info("too late")
        print(handler.dropped)
    """
    with Scripted() as collector:
        done = await run(script, collector.url)
    assert done.stdout == "1\n1\n"
    assert collector.messages == []


async def test_a_worker_of_multiprocessing_sends_before_it_ends() -> None:
    """It ends without `atexit`, and all that it logged was in the queue."""
    script = """
        import multiprocessing
        def work(number):
            log.info("worker %d", number)
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        log.info("done")
    """
    with Scripted() as collector:
        done = await run(_without_fork_warning(script), collector.url)
    assert done.stderr == ""
    assert sorted(collector.messages[:3]) == ["worker 0", "worker 1", "worker 2"]
    assert collector.messages[3:] == ["done"]
