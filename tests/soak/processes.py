"""The pipeline's processes, which are killed with -9 and started again."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from tests.servers import UNMEASURED, Valkey, free_port


class Child:
    """One role of logpipe in a process of its own, on a port that it keeps."""

    def __init__(self, role: str, module: str, environ: Mapping[str, str], log: Path) -> None:
        port = free_port()
        self.role = role
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", module, "serve", "--role", role]
        self._environ = {**os.environ, **UNMEASURED, **environ, "PORT": str(port)}
        self._log = log
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._popen is not None
        return self._popen.pid

    async def start(self) -> None:
        """Returns at once."""
        with self._log.open("ab") as out:
            self._popen = subprocess.Popen(self._command, env=self._environ, stdout=out, stderr=out)

    async def ready(self) -> None:
        """Returns when it serves. Raises TimeoutError."""
        async with asyncio.timeout(20), httpx.AsyncClient(trust_env=False) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{self.url}/healthz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """SIGKILL."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait(10)
            self._popen = None


class Engine:
    """The Valkey, as another process to kill."""

    role = "valkey"

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey

    async def start(self) -> None:
        """Returns when it answers."""
        await asyncio.to_thread(self._valkey.start)

    async def kill(self) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self._valkey.kill)

    async def stop(self) -> None:
        """SIGTERM."""
        await asyncio.to_thread(self._valkey.stop)
