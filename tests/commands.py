"""Commands of logpipe as processes, with what they have written so far."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from typing import Self

from tests.helpers import wait_until
from tests.terminals import CLEAN


class Command:
    """A running command; `out` and `err` are read all the time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = b""
        self.err = b""
        self._reads = [
            asyncio.create_task(self._read(name, stream))
            for name, stream in (("out", process.stdout), ("err", process.stderr))
        ]

    async def _read(self, name: str, stream: asyncio.StreamReader | None) -> None:
        while stream is not None and (data := await stream.read(65_536)):
            setattr(self, name, getattr(self, name) + data)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, *arguments: object, **environ: str) -> AsyncIterator[Self]:
        """Runs `logpipe` with these arguments, and kills it at the end."""
        words = [sys.executable, "-m", "logpipe", *map(str, arguments)]
        process = await asyncio.create_subprocess_exec(
            *words, stdin=-1, stdout=-1, stderr=-1, env={**CLEAN, **environ}
        )
        command = cls(process)
        try:
            yield command
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await command.exit_status()

    @property
    def told(self) -> list[str]:
        """The lines of standard error."""
        return self.err.decode().splitlines()

    async def until_told(self, words: str, times: int = 1) -> None:
        await wait_until(lambda: self.err.decode().count(words) >= times, words, 20)

    async def stop(self, number: int = signal.SIGINT, timeout: float = 8) -> int:
        """Sends a signal; returns the exit status."""
        self.process.send_signal(number)
        return await self.exit_status(timeout)

    async def exit_status(self, timeout: float = 40) -> int:
        """Closes standard input, and returns the exit status."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        async with asyncio.timeout(timeout):
            await asyncio.gather(*self._reads)
            return await self.process.wait()
