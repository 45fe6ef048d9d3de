"""A command's standard output: whole writes, its terminal, and an end at once by a signal."""

import asyncio
import os
import select
import signal
import stat
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import IO, Any

DEFAULT_COLUMNS = 80
"""Of a terminal that does not tell."""


class InterruptedWriteError(Exception):
    """A signal has ended the output."""


class Output:
    """Writes at once and whole, without a buffer that would be written after the end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._raw: Any = getattr(stream, "raw", stream)
        self.terminal = stream.isatty()
        self._writing = False
        self._interrupted = False

    def interrupt(self) -> None:
        """Ends a write under way, which may wait for its reader for ever, and those to come, by
        an InterruptedWriteError. For a signal's handler."""
        self._interrupted = True
        if self._writing:
            raise InterruptedWriteError

    def write(self, data: bytes) -> None:
        """Returns when all is written. Raises OSError, InterruptedWriteError."""
        self._writing = True
        try:
            if self._interrupted:  # asked only now: from here on the handler itself would raise
                raise InterruptedWriteError
            rest = memoryview(data)
            while rest:
                written = self._raw.write(rest)
                if written is None:  # another program has made the file non-blocking
                    select.select([], [self._raw], [])
                rest = rest[written or 0 :]
        finally:
            self._writing = False

    def columns(self) -> int | None:
        """The terminal's width now; None where there is no terminal."""
        if not self.terminal:
            return None
        with suppress(OSError):
            return os.get_terminal_size(self._raw.fileno()).columns or DEFAULT_COLUMNS
        return DEFAULT_COLUMNS

    def on_closed(self, loop: asyncio.AbstractEventLoop, then: Callable[[], object]) -> None:
        """Calls `then` when a pipe's reader has left; without it, only the next write would tell,
        which may be long after `head` has had its lines."""
        with suppress(OSError, ValueError, NotImplementedError):
            descriptor = self._raw.fileno()
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                loop.add_reader(descriptor, then)


def wants_color(choice: str, environ: Mapping[str, str], *, terminal: bool) -> bool:
    """Whether to use colours: the choice, unless it is `auto`; then NO_COLOR, FORCE_COLOR, and
    whether it is a terminal that has any (https://no-color.org, https://force-color.org)."""
    if choice != "auto":
        return choice == "always"
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or (terminal and environ.get("TERM") != "dumb")


def run_until_stopped(work: Coroutine[Any, Any, None], out: Output) -> bool:
    """Runs `work` until SIGINT or SIGTERM, and says whether one came; False when `out` was closed
    by its reader. Raises what `work` raises."""
    stopped = False
    task: asyncio.Task[None] | None = None

    def stop(*_: object) -> None:
        nonlocal stopped
        first, stopped = not stopped, True
        out.interrupt()
        if task is None:
            raise InterruptedWriteError
        if first:
            task.get_loop().call_soon_threadsafe(task.cancel)

    async def run() -> None:
        nonlocal task
        task = asyncio.create_task(work)
        loop = asyncio.get_running_loop()
        out.on_closed(loop, task.cancel)
        await task

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(run())
    except (InterruptedWriteError, asyncio.CancelledError, BrokenPipeError):
        pass
    finally:
        work.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopped
