"""Locked files: they say who owns what lies beside them, and unlike process ids cannot be stale."""

import contextlib
import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def locked(file: int) -> bool:
    """Locks an open file until it is closed here and wherever it was handed to; False where
    another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sign(lock: int, pid: int) -> None:
    """Note in a locked file who holds it, for people; on a full disk it stays unknown."""
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{pid}\n".encode(), 0)


def owner(path: Path) -> str:
    """Who has signed, in words to be appended; empty where that is unknown."""
    pid = path.read_text(encoding="ascii", errors="replace").strip()
    return f" (process {pid})" if pid else ""
