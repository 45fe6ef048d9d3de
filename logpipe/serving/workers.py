"""Several processes on one port: WORKERS of them, each with all the roles.

Each has a listening socket of its own (SO_REUSEPORT), over which the kernel spreads connections
evenly; one that dies gets a successor on the same socket, so that no connection that waits is lost.
This process serves nothing itself: it holds the sockets, and the embedded engine where there is
one, whose append-only file it has rewritten.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from urllib.parse import quote

from logpipe.background import Background
from logpipe.embedded import start_engine, start_rewriting_alone
from logpipe.listening import bind_shared
from logpipe.serving.process import Signals, introduce
from logpipe.settings import Settings, environment

log = logging.getLogger("logpipe")

MIN_LIFE_S = 3.0
"""A worker that ends sooner would not fare better a second time: then all end."""

STOP_S = 4.0
"""What a worker may take to end; it cuts its own streams and requests well before."""

METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""By this variable prometheus-client keeps its values in files, which all workers add up."""


async def supervise_until_stopped(settings: Settings) -> int:
    """Runs the workers until SIGTERM or SIGINT; the exit status.

    Raises `PortTakenError` before anything is started, and `EngineError`.
    """
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(Signals())
        listeners = bind_shared(settings.host, settings.listen_port, settings.workers)
        for listener in listeners:
            stack.enter_context(listener)
        background = Background()
        environ = environment(settings, os.environ)
        if settings.redis is not None and settings.redis.embedded is not None:
            engine = await start_engine(settings, stack, background)
            if settings.trim_maxage_ms:
                start_rewriting_alone(settings, engine, stack, background)
            environ["REDIS_ADDR"] = (
                f"unix://{engine.socket}?disk={quote(os.fsencode(engine.address.disk))}"
            )
            if settings.trim_maxbytes == "auto":
                environ["TRIM_MAXBYTES"] = f"{settings.stream_bytes.percent}%"
        folder = tempfile.mkdtemp(prefix="logpipe-metrics-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        environ[METRICS_DIR] = folder
        await stack.enter_async_context(background)
        workers = _Workers(environ, settings, listeners)
        background.on_failure = workers.stop
        introduce(settings, listeners[0].getsockname()[1])
        with signals.handled_by(workers.stop):
            failed = await workers.run()
        return 1 if failed or background.failure else 0


class _Workers:
    """The processes, and the pipe by which they notice that this one is gone."""

    def __init__(
        self, environ: dict[str, str], settings: Settings, listeners: list[socket.socket]
    ) -> None:
        self._environ = environ
        self._consumer = settings.consumer_name
        self._listeners = listeners
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._failed = False
        self._life, self._held = os.pipe()

    def stop(self) -> None:
        """Ends them; asked a second time, they no longer wait for anyone."""
        self._stopping.set()
        for process in self._running.values():
            _terminate(process)

    async def run(self) -> bool:
        """Returns when all have ended; whether one of them failed."""
        try:
            await asyncio.gather(*(self._keep(number) for number in range(len(self._listeners))))
        finally:
            for process in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            os.close(self._life)
            os.close(self._held)
        return self._failed

    async def _keep(self, number: int) -> None:
        """Runs the worker of a number, and its successors."""
        while not self._stopping.is_set():
            started = time.monotonic()
            process = self._running[number] = await self._start(number)
            if self._stopping.is_set():
                _terminate(process)  # `stop` knew nothing of it yet
            status = await self._ended(process)
            del self._running[number]
            _forget_metrics(self._environ[METRICS_DIR], process.pid)
            if self._stopping.is_set():
                return
            if time.monotonic() - started < MIN_LIFE_S:
                log.error("worker %d has ended at once (%d); all end", number + 1, status)
                self._failed = True
                self.stop()
                return
            log.warning("worker %d has ended (%d); another takes its place", number + 1, status)

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        listener = self._listeners[number].fileno()
        name = self._consumer if number == 0 else f"{self._consumer}.{number + 1}"
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "logpipe",
            "worker",
            str(listener),
            str(self._life),
            env={**self._environ, "CONSUMER_NAME": name},
            pass_fds=(listener, self._life),
        )

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        """Its exit status; one that does not end when it is to is killed."""
        waiting = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await asyncio.wait((waiting,), timeout=STOP_S)
        if not waiting.done():
            log.warning("a worker does not end; it is killed")
            process.kill()
        return await waiting


def _terminate(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()


def _forget_metrics(folder: str, pid: int) -> None:
    """Takes the gauges of a dead worker out of the sum."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
