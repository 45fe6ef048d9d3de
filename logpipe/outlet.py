"""Where the log leaves the process: by a thread, so that whoever reads it holds up nobody.

A pipe that nobody empties, or a terminal that was stopped, takes nothing after some 64 KiB; written
to from the event loop, a chatty log would stop a collector there.
"""

import contextlib
import logging
import os
import queue
import select
import stat
import threading
from typing import IO

MAX_WAITING = 10_000
"""Records that wait to be written; what comes beyond them is dropped, and counted in the log."""

FLUSH_S = 0.5
"""How long the end of the process waits for what was not written yet."""


def may_block(out: IO[str]) -> bool:
    """Whether a write may have to wait for a reader: files take all at once."""
    try:
        mode = os.fstat(out.fileno()).st_mode
    except (OSError, ValueError):  # it is no file of the system, as in a test
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


class Outlet(logging.Handler):
    """Hands each record, as it is formatted, to the thread that writes to a descriptor."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits and never raises."""
        try:
            if self._dropped and not self._waiting.full():
                dropped, self._dropped = self._dropped, 0
                self._waiting.put_nowait(self.format(_told(dropped)))
            self._waiting.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1
        except Exception:  # noqa: BLE001 - as all handlers do
            self.handleError(record)

    def flush(self) -> None:
        """Waits until all is written, a moment at the most."""
        with self._waiting.all_tasks_done:
            self._waiting.all_tasks_done.wait_for(
                lambda: not self._waiting.unfinished_tasks, FLUSH_S
            )

    def _write(self) -> None:
        while True:
            line = f"{self._waiting.get()}\n".encode(errors="backslashreplace")
            # Past Python's own buffers: their locks, held by a thread, would stop the end of it.
            with contextlib.suppress(OSError):
                while line:
                    line = line[self._taken(line) :]
            self._waiting.task_done()

    def _taken(self, line: bytes) -> int:
        """How many bytes were taken; waits where none were, also if another process that has the
        same pipe has made it non-blocking."""
        try:
            return os.write(self._descriptor, line)
        except BlockingIOError:
            select.select([], [self._descriptor], [])
            return 0


def _told(dropped: int) -> logging.LogRecord:
    text = "%d records of the log were dropped: nobody has read it"
    return logging.LogRecord("logpipe", logging.WARNING, __file__, 0, text, (dropped,), None)
