"""logpipe's processes as a fault meets them: killed, stopped, frozen, short of descriptors."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.judge import Record
from tests.helpers import wait_until
from tests.soak.measures import resident_bytes
from tests.soak.processes import Child


class Logpipe(Child):
    """One process of logpipe, and what is to be said of it at the end."""

    def __init__(
        self,
        role: str,
        environ: Mapping[str, str],
        folder: Path,
        altered: str = "",
        prefix: Sequence[str] = (),
    ) -> None:
        module = "tests.chaos.altered" if altered else "logpipe"
        log = folder / f"{role}.log"
        super().__init__(role, module, {**environ, "ALTERED": altered}, log)
        self._command = [*prefix, *self._command]
        self._began = time.monotonic()
        self._starts = 0
        self._measured = (0, 0)

    async def start(self) -> None:
        """Returns at once."""
        self._starts += 1
        await super().start()

    def measure(self) -> None:
        """Remembers how much memory it takes now."""
        if self._popen is not None:
            self._measured = (self.pid, resident_bytes(self.pid))

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    async def terminate(self) -> int:
        """SIGTERM; its exit status. Raises subprocess.TimeoutExpired after six seconds."""
        assert self._popen is not None
        self._popen.terminate()
        status = await asyncio.to_thread(self._popen.wait, 6)
        self._popen = None
        return status

    async def restart(self) -> None:
        """SIGKILL and a new start; returns when that is ready."""
        await self.kill()
        await self.start()
        await self.ready()

    async def kill_engine(self) -> None:
        """SIGKILL of the embedded engine; returns when another one serves."""
        before = self.engine()
        os.kill(before, signal.SIGKILL)
        await wait_until(lambda: self.engine() not in (0, before), "another engine runs")
        await self.ready()

    def engine(self) -> int:
        """The pid of the embedded engine; 0 where none runs."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return 0
        running = [pid for pid in children if _runs_an_engine(pid)]
        return int(running[0]) if running else 0

    def record(self) -> Record:
        """For the judge."""
        pid, before = self._measured
        growth = resident_bytes(pid) - before if self._popen and pid == self.pid else 0
        seconds = time.monotonic() - self._began
        return Record(self.role, self._log.read_text(), self._starts, seconds, growth)


def _runs_an_engine(pid: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"valkey-server" in command.partition(b"\0")[0]
