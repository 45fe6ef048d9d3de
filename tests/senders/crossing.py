"""A thousand events of a real sender, with Redis killed and started again on the way."""

import asyncio
import contextlib
import re
import shutil
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.helpers import wait_until
from tests.servers import Valkey

EVENTS = 1000
OUTAGE_S = 0.7
PROGRAMS = Path(__file__).parent / "programs"
FETCHED = Path(__file__).parents[2] / ".senders"
"""Where `make senders` puts what is neither Python's nor on the machine."""

_NUMBER = re.compile(r"event (\d+)")

needs_node = pytest.mark.skipif(
    not (FETCHED / "node_modules").exists() or shutil.which("node") is None,
    reason="NOT TESTED WITH NODE'S SENDERS: `make senders` fetches them",
)
needs_debian = pytest.mark.skipif(
    not (FETCHED / "debian").exists(),
    reason="NOT TESTED WITH DEBIAN'S LOG DAEMONS: `make senders` fetches them",
)


def arrived(valkey: Valkey) -> Counter[int]:
    """How often each number is in the stream."""
    rows: Any = valkey.client.xrange("logs")
    messages = [msgspec.json.decode(fields[b"event"])["message"] for _, fields in rows]
    return Counter(int(found[1]) for text in messages if (found := _NUMBER.search(text)))


def numbers_in(text: str) -> set[int]:
    """The numbers of the events that a text names."""
    return set(map(int, _NUMBER.findall(text)))


def once(valkey: Valkey) -> bool:
    """Whether each number is there, and none twice."""
    return arrived(valkey) == Counter(range(EVENTS))


async def at_least_once(valkey: Valkey) -> None:
    """Waits until each number is there."""
    wanted = set(range(EVENTS))
    with contextlib.suppress(AssertionError):
        await wait_until(lambda: arrived(valkey).keys() == wanted, "all are there", timeout=30)
    assert sorted(wanted - arrived(valkey).keys()) == []


@contextlib.asynccontextmanager
async def redis_restarted_on_the_way(valkey: Valkey) -> AsyncIterator[None]:
    """Redis is away for a while when a quarter of the events are there."""

    async def restart() -> None:
        await wait_until(lambda: len(arrived(valkey)) >= EVENTS // 4, "the first came", timeout=30)
        assert len(arrived(valkey)) < EVENTS, "the sender was done before the restart"
        valkey.kill()
        await asyncio.sleep(OUTAGE_S)  # the fault itself
        valkey.start()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(restart())
        yield


async def run(*command: str | Path) -> str:
    """Runs a program to its end, which is to be a good one; returns what it printed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, errors = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def python(program: str, url: str) -> str:
    """Runs one of the Python senders."""
    return await run(sys.executable, PROGRAMS / program, url, str(EVENTS))


async def node(program: str, url: str) -> str:
    """Runs one of the JavaScript senders, beside its packages."""
    place = FETCHED / program
    shutil.copyfile(PROGRAMS / program, place)
    return await run("node", place, url, str(EVENTS))


@contextlib.asynccontextmanager
async def daemon(port: int, *command: str | Path) -> AsyncIterator[None]:
    """A log daemon in the foreground, which listens on a TCP port."""
    folders = [folder for folder in (FETCHED / "debian/usr/lib").glob("*") if folder.is_dir()]
    libraries = ":".join(map(str, folders))
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env={"LD_LIBRARY_PATH": libraries, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    def listens() -> bool:
        assert process.returncode is None, f"{command[0]} has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        await wait_until(listens, "it listens", timeout=20)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def lines_to(port: int) -> None:
    """Sends the events as syslog to a daemon."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(EVENTS):
        writer.write(b"<14>1 2026-01-01T00:00:00Z host sender 1 - - event %d\n" % number)
        await writer.drain()
        await asyncio.sleep(0.001)
    writer.close()
    await writer.wait_closed()
