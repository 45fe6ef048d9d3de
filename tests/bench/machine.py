"""The machine: what processes use of it, and what it is."""

import os
import platform
import re
import resource
from collections.abc import Sequence
from pathlib import Path

from logpipe.bench.measures import Usage

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def usage(pids: Sequence[int]) -> Usage:
    """What some processes have used, all together; their CPU time to the nanosecond, without that
    of threads that have ended."""
    cpu_s, rss_bytes = 0.0, 0
    for pid in pids:
        for counted in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            cpu_s += int(counted.read_text().split()[0]) / 1e9
        rss_bytes += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    return Usage(cpu_s, rss_bytes)


def allow_many_files() -> int:
    """Raises the limit of open files as far as that goes; the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def description() -> str:
    """The machine in a line."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES / 2**30
    return (
        f"{os.cpu_count()} cores of {model[1] if model else platform.machine()},"
        f" {memory:.0f} GiB, Linux {platform.release().partition('-')[0]},"
        f" Python {platform.python_version()}"
    )
