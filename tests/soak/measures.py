"""What a process takes: memory, descriptors, tasks; and the slope of a series."""

import asyncio
import os
import signal
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from tests.helpers import wait_until

MEGA = 1e6


class Level(NamedTuple):
    """What a process holds while nothing is under way; its pooled connections to Redis apart."""

    descriptors: int
    pooled: int
    tasks: int


async def quiet_level(pid: int, told: Path) -> Level:
    """The level once it no longer falls: what has just ended lets go a moment later."""
    level = await _level(pid, told)
    for _ in range(20):
        await asyncio.sleep(0.3)
        before, level = level, await _level(pid, told)
        if level == before:
            break
    return level


async def _level(pid: int, told: Path) -> Level:
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    unix = {f"socket:[{line.split()[6]}]" for line in _unix_sockets()}
    pooled = sum(link in unix for link in links)
    return Level(len(links) - pooled, pooled, await _tasks(pid, told))


def _unix_sockets() -> list[str]:
    return Path("/proc/net/unix").read_text().splitlines()[1:]


def resident_bytes(pid: int) -> int:
    """The memory of a process, as the kernel counts it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _tasks(pid: int, told: Path) -> int:
    """How many tasks a `counted` logpipe says that it has."""
    told.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    await wait_until(told.exists, "it tells its tasks")
    return int(await asyncio.to_thread(told.read_text))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much y rises while x rises by one: the median over all pairs of points.

    Theil and Sen's estimator: memory that goes to a new height once, when all readers have fallen
    behind, and stays there, has no slope; what rises all the time has.
    """
    rises = [
        (other_y - y) / (other_x - x)
        for (x, y), (other_x, other_y) in combinations(points, 2)
        if other_x != x
    ]
    return statistics.median(rises) if rises else float("nan")


def memory_slope(samples: Sequence[tuple[int, int]], warm: int) -> float:
    """Megabytes a million events, of (events, bytes) from `warm` events on."""
    return slope([(events / MEGA, size / MEGA) for events, size in samples if events >= warm])
