"""The engine's folder: who owns it, and where its socket is.

Two locks in it say who owns it:

- `logpipe.lock` is held by logpipe alone: another logpipe that meets it is refused at once.
- `engine.lock` is handed on to the engine: who has the first and meets the second has found an
  engine that outlived its logpipe, and ends it.

Locks, unlike process ids, cannot be stale, and mean the same in every container that mounts the
folder.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import sys
import tempfile
from pathlib import Path

from logpipe.engine.error import EngineError
from logpipe.locks import locked, owner, sign

log = logging.getLogger("logpipe.engine")

MAX_SOCKET_PATH_BYTES = 100
"""Longer paths of unix sockets are refused by Linux (107) and macOS (103)."""
POLL_S = 0.005
"""Between two looks at what has no event to wait for: a starting engine, another's lock."""
ASK_S = 2.0
"""How long one question to the engine may take."""
OWNER_GRACE_S = 0.2
"""A logpipe that was killed a moment ago still holds its lock; one that lives keeps it."""
ORPHAN_GRACE_S = 0.5
"""An engine whose logpipe was killed dies of that by itself, where the system knows how."""
ORPHAN_S = 5.0
"""After this long the folder is given up: what holds it does not end."""


class DataFolder:
    """One data folder. `take` before anything is started in it, `release` at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.socket = _socket_path(self.path)
        self._locks: list[int] = []

    @property
    def engine_lock(self) -> int:
        """The open file that the engine has to inherit."""
        return self._locks[1]

    def sign(self, pid: int) -> None:
        """Note which process the engine is."""
        sign(self.engine_lock, pid)

    def release(self) -> None:
        """Give the folder back; again is fine."""
        if len(self._locks) == 2:  # else the socket is another engine's
            with contextlib.suppress(OSError):
                self.socket.unlink(missing_ok=True)
                self.socket.parent.rmdir()  # the data folder is never empty, a private one is
        while self._locks:
            os.close(self._locks.pop())

    async def take(self) -> None:
        """Get both locks of the folder, the engine's by ending what still holds it."""
        try:
            _make_folder(self.path)
            self._locks.append(await self._lock_out_others())
            self._locks.append(await self._take_over())
            if self.socket.parent != self.path:
                _make_private(self.socket.parent)
        except OSError as error:
            raise EngineError(
                f"the folder {self.path} cannot be used: {error.strerror}:"
                " make it a folder that can be written, or choose another DATA_DIR"
            ) from None

    async def _lock_out_others(self) -> int:
        path = self.path / "logpipe.lock"
        if (lock := await _lock(path, OWNER_GRACE_S)) is None:
            raise EngineError(
                f"the folder {self.path} is in use by another logpipe{owner(path)}:"
                " stop it, or choose another DATA_DIR"
            )
        sign(lock, os.getpid())
        return lock

    async def _take_over(self) -> int:
        path = self.path / "engine.lock"
        if (lock := await _lock(path, ORPHAN_GRACE_S)) is None:
            log.warning("an engine that outlived its logpipe is told to end")
            await ask(self.socket, b"SHUTDOWN NOSAVE")
            lock = await _lock(path, ORPHAN_S)
        if lock is None:
            raise EngineError(
                f"the folder {self.path} is held by an engine{owner(path)} that outlived"
                " its logpipe and does not end: end it, or choose another DATA_DIR"
            )
        return lock


async def ask(socket: Path, command: bytes) -> bytes:
    """The first line of the engine's answer, empty where there is none."""
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_unix_connection(socket)
            with contextlib.closing(writer):
                writer.write(command + b"\r\n")
                return await reader.readline()
    except OSError:  # TimeoutError is one
        return b""


def _socket_path(folder: Path) -> Path:
    """In the folder, or where that is too long a path, in a private one named after it."""
    path = folder / "engine.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    user = os.getuid() if sys.platform != "win32" else ""
    return Path(tempfile.gettempdir(), f"logpipe-{user}-{digest}", "engine.sock")


def _make_folder(folder: Path) -> None:
    """Make it private. One that exists keeps its mode: the user may share it with others."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        folder.mkdir(mode=0o700)


def _make_private(folder: Path) -> None:
    """Make it, or make sure that in a place where all may write it is this user's own."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not mine or found.st_mode & 0o077:
        raise EngineError(f"{folder} is not private: remove it, or choose a shorter DATA_DIR")


async def _lock(path: Path, patience_s: float) -> int | None:
    """An open file that locks it until closed here and in every process it was handed to.

    None when another holds it for longer than the patience.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + patience_s
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not locked(lock):
            if now() > deadline:
                os.close(lock)
                return None
            await asyncio.sleep(POLL_S)
    except BaseException:
        os.close(lock)
        raise
    return lock
