"""Commands on a terminal, and what they show there."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.helpers import wait_until

CLEAN = {name: value for name, value in os.environ.items() if not name.endswith("_COLOR")}


class Terminal:
    """A command of logpipe on a terminal of its own."""

    def __init__(self, columns: int, *arguments: str, nohup: bool = False, **environ: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "logpipe", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**CLEAN, "TERM": "xterm-256color", **environ},
            preexec_fn=partial(_own_terminal, nohup=nohup),
        )
        os.close(slave)
        os.set_blocking(self.master, False)
        self._seen = b""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    @property
    def seen(self) -> str:
        with contextlib.suppress(OSError):
            self._seen += os.read(self.master, 65_536)
        return self._seen.decode(errors="replace").replace("\r\n", "\n")

    async def until(self, seen: Callable[[str], object], description: str) -> None:
        await wait_until(lambda: seen(self.seen), description, 20)

    async def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        """Closes the terminal, as who closes its window does."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


def _own_terminal(*, nohup: bool) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def on_terminal(columns: int, *arguments: str, nohup: bool = False, **environ: str) -> Any:
    terminal = Terminal(columns, *arguments, nohup=nohup, **environ)
    try:
        yield terminal
    finally:
        terminal.popen.kill()
        terminal.popen.wait(10)
        terminal.close()
