"""The engine's life: start, watch over, stop.

It listens on a unix socket only, writes every command to disk before it answers, and ends with
logpipe, however that ends.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from logpipe.engine.error import EngineError
from logpipe.engine.folder import POLL_S, DataFolder, ask
from logpipe.engine.program import command, default_memory, find_binary
from logpipe.redis_address import RedisAddress

log = logging.getLogger("logpipe.engine")

MAX_LOG_BYTES = 4 << 20
"""A log that is longer when the engine starts becomes `engine.log.1`, which it replaces."""
MIN_FREE_BYTES = 1 << 20
"""With less room on the disk the engine is not started: it would end at its next write."""
ANSWER_S = 20.0
"""How long a starting engine may be silent; while it says that it is loading, it may go on."""
STOP_S = 3.0
"""How long the engine may take to end by itself. SIGKILL, after that, loses nothing written."""
FIRST_DELAY_S = 0.1
"""Before the first restart; each that follows soon doubles it."""
LAST_DELAY_S = 2.0
"""The longest time between restarts."""
STEADY_S = 5.0
"""An engine that ran for longer gets the first delay again."""
LOG_END_BYTES = 65_536
"""As much of the engine's log is looked through for the reason of its end."""

TEMPORARY = re.compile(r"temp-(rewriteaof-(bg-)?)?\d+\.(aof|rdb)")
"""Names of files that the engine writes while it rewrites its data."""
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|Short write while")
TORN = "Unexpected end of file reading the append only file"
LOG_PREFIX = re.compile(r"^\d+:(\w \d+ \w+ \d+ [\d:.]+ [*#.-]|signal-handler \(\d+\)) ")


class Engine:
    """The engine of one folder, whose data may take so many bytes of `memory` (None: as many as
    `default_memory` says). With `as_commands` its append-only file, whenever it is rewritten, holds
    only entries that are in the stream; a start from such a file takes longer than from a snapshot.
    `start`, then `supervise` beside the work, then `stop`.

    To be used in the main thread: where the thread that started it ends, so does the engine.
    """

    def __init__(
        self,
        folder: Path,
        memory: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        as_commands: bool = False,
    ) -> None:
        self._now = clock
        self._as_commands = as_commands
        self._memory = memory or default_memory()
        self._data = DataFolder(folder)
        self._folder = self._data.path
        self._log = self._folder / "engine.log"
        self._log_start = 0
        self._trouble: str | None = "the engine was not started"
        self._process: asyncio.subprocess.Process | None = None
        self._delay = FIRST_DELAY_S

    @property
    def socket(self) -> Path:
        """The unix socket; only this user can connect."""
        return self._data.socket

    @property
    def address(self) -> RedisAddress:
        """Where the engine is, and the folder that it writes to."""
        return RedisAddress(socket=str(self.socket), disk=str(self._folder))

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
            await self._data.take()
            await self._launch_first()
        except BaseException:
            await self.stop()
            raise
        self._trouble = None

    async def runs_elsewhere(self) -> bool:
        """Whether an engine of this folder answers that was not started here."""
        return (await ask(self.socket, b"PING")).startswith(b"+PONG")

    async def supervise(self) -> None:
        """Start the engine again whenever it ends; keep `trouble` true. Cancel it before `stop`."""
        while (process := self._process) is not None:
            since = self._now()
            await process.wait()
            if process is not self._process:
                return  # stopped
            if self._now() - since > STEADY_S:
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
        self._data.release()

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
        _copy_private(data, copy)
        await self._run(cut_torn_end=True)
        cut = copy.stat().st_size - data.stat().st_size
        log.warning("%s ended in a torn write: %d bytes were cut off; %s has all", data, cut, copy)

    async def _run(self, *, cut_torn_end: bool) -> None:
        if not self._has_room():
            raise EngineError(self._full())
        self._remove_left_over()
        lock = self._data.engine_lock
        words = command(
            self._folder,
            self.socket,
            lock,
            self._memory,
            as_commands=self._as_commands,
            cut_torn_end=cut_torn_end,
        )
        with self._open_log() as out:
            self._process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(lock,),
                start_new_session=True,  # a terminal's Ctrl-C is for logpipe, which then stops it
            )
        self._data.sign(self._process.pid)
        await self._wait_until_ready(self._process)

    def _remove_left_over(self) -> None:
        """Removes files of rewritings that ended with an engine before: it never does, and what is
        in them may have been trimmed since."""
        for path in self._folder.glob("temp-*.*"):
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = self._now() + ANSWER_S
        while process.returncode is None:
            answer = await ask(self.socket, b"PING")
            if answer.startswith(b"+PONG"):
                return
            if answer.startswith(b"-LOADING"):
                deadline = self._now() + ANSWER_S
            if self._now() > deadline:
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


def _copy_private(data: Path, copy: Path) -> None:
    """Copies a file into one that only this user can read, whatever was there before."""
    copy.unlink(missing_ok=True)
    out = os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(out, "wb") as to, data.open("rb") as source:
        shutil.copyfileobj(source, to)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
