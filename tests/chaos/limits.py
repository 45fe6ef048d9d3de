"""What runs out, or is not what it was: the disk, descriptors, the clock.

A surrounding is set up before logpipe starts; it gets the trial's folder and gives the variables.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.chaos.stage import Stage
from tests.helpers import wait_until

DISK_BYTES = 192 << 20
ENGINE_MEMORY = "32mb"
"""So that the engine takes events while the disk is empty: it wants twice that free, and more."""
DESCRIPTORS = 64
IDLE_CONNECTIONS = 120
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def root_missing() -> str:
    """Why what takes root cannot be tried; empty where it can."""
    is_root = sys.platform == "linux" and os.geteuid() == 0
    return "" if is_root else "it takes root on Linux"


def faketime_missing() -> str:
    """Why the clock cannot be set."""
    return "" if FAKETIME else "there is no libfaketime (Debian's `faketime`)"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Mapping[str, str]]:
    """A small disk, with an engine that is content with it."""
    disk = folder / "data"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    try:
        yield {"DATA_DIR": str(disk), "EMBEDDED_MAXMEMORY": ENGINE_MEMORY}
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


async def disk_full(stage: Stage, _: int) -> None:
    """The engine's disk is full, and has room again."""
    refused = stage.oracle.answers["503"] + 5
    ballast = stage.folder / "data" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    await wait_until(lambda: stage.oracle.answers["503"] >= refused, "senders are refused", 20)
    ballast.unlink()


async def descriptors_gone(stage: Stage, _: int) -> None:
    """More idle connections to each process than it may open files."""
    with contextlib.ExitStack() as stack:
        for child in stage.children.values():
            host, port = child.url.removeprefix("http://").split(":")
            for _ in range(IDLE_CONNECTIONS):
                stack.enter_context(socket.create_connection((host, int(port))))
        await asyncio.sleep(2)


@contextlib.contextmanager
def own_clock(folder: Path) -> Iterator[Mapping[str, str]]:
    """A clock that can be set, for logpipe and its engine alone."""
    clock = folder / "clock"
    clock.write_text("+0")
    yield {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


async def clock_steps(stage: Stage, _: int) -> None:
    """An hour forward, two back, one forward."""
    for step in ("+3600", "-3600", "+0"):
        (stage.folder / "clock").write_text(step)
        await stage.flows(60)
