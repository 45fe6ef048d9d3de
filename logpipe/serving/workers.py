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
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple
from urllib.parse import quote

from logpipe.background import Background
from logpipe.embedded import start_engine, start_rewriting_alone
from logpipe.listening import PortTakenError, bind_anew, bind_shared
from logpipe.locks import locked
from logpipe.serving.process import Signals, introduce
from logpipe.serving.server import RETIRE, RETIRE_S
from logpipe.settings import Settings, environment
from logpipe.tls import unusable

log = logging.getLogger("logpipe")

STOP_S = 4.0
"""What a worker may take to end; it cuts its own streams and requests well before."""

READY_S = 30.0
"""What a new worker may take to be ready, before the one that it is to replace goes on."""


class BackOff(NamedTuple):
    """When a worker that has ended is started again, and when no more."""

    first_s: float = 0.1
    longest_s: float = 5.0
    """The pause before it starts, each time twice as long, until one has lived for `life_s`."""
    life_s: float = 10.0
    release_s: float = 0.3
    """Before a pause of this length or longer its socket is given up: connections would wait there
    though other workers serve."""
    deaths: int = 6
    within_s: float = 15.0
    """All end when this many workers for each of their number have ended within this time."""
    in_a_row: int = 3
    """All end when each has ended so often without being ready: none serves, however long a start
    takes."""


METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""By this variable prometheus-client keeps its values in files, which all workers add up."""

METRICS_FOLDER = "logpipe-workers-"
"""How the name of the folder of these files begins, once it is locked."""


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
        environ[METRICS_DIR] = str(_folder_for_metrics(stack))
        await stack.enter_async_context(background)
        workers = _Workers(environ, settings, listeners)
        background.on_failure = workers.stop
        introduce(settings, listeners[0].getsockname()[1])
        with signals.handled_by(workers.stop, workers.renew):
            failed = await workers.run()
        return 1 if failed or background.failure else 0


def _folder_for_metrics(stack: AsyncExitStack) -> Path:
    """A new folder, removed at the end. Those of processes that were killed are removed now: their
    locks are free."""
    for left in Path(tempfile.gettempdir()).glob(f"{METRICS_FOLDER}*"):
        with contextlib.suppress(OSError), _opened(left) as lock:
            if os.fstat(lock).st_uid == os.geteuid() and locked(lock):
                shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{METRICS_FOLDER}"))
    locked(stack.enter_context(_opened(new)))
    folder = new.rename(new.with_name(new.name.removeprefix(".")))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield file
    finally:
        os.close(file)


class _Worker:
    """A process of its own that serves, and the name of its files of metrics."""

    def __init__(
        self, process: asyncio.subprocess.Process, ready: asyncio.StreamReader, files: str
    ) -> None:
        self.process = process
        self.files = files
        self.ready = asyncio.create_task(ready.read())
        """Ends with a byte once it serves, with none where it ended before."""
        self.ended = asyncio.create_task(process.wait())
        self.asked = False
        """Whether it was asked to end, or to retire."""

    @property
    def serves(self) -> bool:
        """Whether it has begun to serve."""
        return self.ready.done() and bool(self.ready.result())

    def ask_to_end(self, number: int) -> None:
        """Sends it SIGTERM, which has it drain, SIGINT, or RETIRE. One that does not serve yet may
        have no handler for others than SIGTERM."""
        self.asked = True
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number if self.serves else signal.SIGTERM)

    async def end(self, drain_s: float) -> None:
        """Returns when it has ended; one that does not is killed."""
        if not self.asked:
            self.ask_to_end(signal.SIGINT)
        await asyncio.wait((self.ended,), timeout=drain_s + STOP_S)
        if not self.ended.done():
            log.warning("a worker does not end; it is killed")
            self.process.kill()
            await self.ended


class _Workers:
    """The processes, and the pipe by which they notice that this one is gone."""

    def __init__(
        self,
        environ: dict[str, str],
        settings: Settings,
        listeners: list[socket.socket],
        back_off: BackOff = BackOff(),  # noqa: B008 - it is frozen
    ) -> None:
        self._environ = environ
        self._settings = settings
        self._listeners = listeners
        self._back_off = back_off
        self._workers: dict[int, _Worker] = {}
        """By their number."""
        self._others: set[_Worker] = set()
        """Those that are to replace one, and those that were replaced and have not ended."""
        self._retiring: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._signal = signal.SIGINT
        """By which they were asked to end."""
        self._deaths: deque[float] = deque()
        self._never_ready = [0 for _ in listeners]
        """How many workers of each number, the latest ones, have ended without being ready."""
        self._were_ready = False
        self._failed = False
        self._due = [asyncio.Event() for _ in listeners]
        """Set for a worker that is to be replaced while it serves."""
        self._replaced: asyncio.Queue[bool] = asyncio.Queue()
        self._asked_to_renew = asyncio.Event()
        self._life, self._held = os.pipe()

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ends them by a signal, which each takes as a process without workers does."""
        first = not self._stopping.is_set()
        self._stopping.set()
        self._signal = signal.Signals(number)
        for listener in self._listeners:
            listener.close()  # else it is listened on although its worker no longer accepts
        for worker in (*self._workers.values(), *self._others):
            if not (first and worker.asked):  # a second signal would cut what it still answers
                worker.ask_to_end(number)

    def renew(self) -> None:
        """Has each worker replaced by a new process, one after another."""
        if wrong := unusable(self._settings):
            log.error("%s: the workers go on as they are", wrong)
        else:
            self._asked_to_renew.set()

    async def _renew_when_asked(self) -> None:
        while True:
            await self._asked_to_renew.wait()
            self._asked_to_renew.clear()
            for due in self._due:
                due.set()
                if not await self._replaced.get():
                    break
            else:
                log.info("all workers are new processes")

    async def run(self) -> bool:
        """Returns when all have ended; whether that was a failure."""
        renewing = asyncio.create_task(self._renew_when_asked())
        try:
            await asyncio.gather(*map(self._keep, range(len(self._listeners))))
            await asyncio.gather(*self._retiring)
        finally:
            renewing.cancel()
            for worker in (*self._workers.values(), *self._others):
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
            for listener in self._listeners:
                listener.close()
            os.close(self._life)
            os.close(self._held)
        return self._failed

    async def _keep(self, number: int) -> None:
        """Runs the worker of a number, and its successors, until all are to end."""
        pause_s = self._back_off.first_s
        while not self._stopping.is_set():
            began = time.monotonic()
            said = await self._live(number)
            if self._stopping.is_set():
                return
            if time.monotonic() - began > self._back_off.life_s:
                pause_s = self._back_off.first_s
            if why := self._reason_to_end():
                log.error("%s; %s: all end", said, why)
                self._failed = True
                self.stop()
                return
            log.warning("%s; another takes its place in %.1f s", said, pause_s)
            if pause_s >= self._back_off.release_s:
                self._release(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            pause_s = min(2 * pause_s, self._back_off.longest_s)

    def _release(self, number: int) -> None:
        """Gives up the socket of a number; the next worker listens once it serves."""
        try:
            self._listeners[number] = bind_anew(self._settings.host, self._listeners[number])
        except PortTakenError as error:
            log.error("%s: all end", error)
            self._failed = True
            self.stop()

    async def _live(self, number: int) -> str:
        """Starts the worker of a number, and replaces it whenever that is due. Returns how it, or
        the last that has replaced it, has ended."""
        self._never_ready[number] += 1
        try:
            self._workers[number] = await self._start(number)
        except OSError as error:
            return f"worker {number + 1} cannot be started ({error})"
        if self._due[number].is_set():  # while it paused: it is a new process now
            self._due[number].clear()
            self._replaced.put_nowait(True)
        while not self._stopping.is_set() and await self._until_due(number):
            await self._replace(number)
        worker = self._workers[number]
        await worker.end(self._settings.drain_s if self._signal == signal.SIGTERM else 0)
        del self._workers[number]
        self._forget(worker)
        return f"worker {number + 1} has ended ({worker.ended.result()})"

    async def _until_due(self, number: int) -> bool:
        """Whether its worker is to be replaced; False when it has ended, or all are to end."""
        worker, due = self._workers[number], self._due[number]
        waiting = [asyncio.create_task(each.wait()) for each in (due, self._stopping)]
        ready = [] if worker.ready.done() else [worker.ready]
        try:
            while True:
                if worker.serves:
                    self._were_ready, self._never_ready[number] = True, 0
                if worker.ended.done() or self._stopping.is_set() or due.is_set():
                    break
                await asyncio.wait(
                    (worker.ended, *waiting, *ready), return_when=asyncio.FIRST_COMPLETED
                )
                ready = []
        finally:
            for task in waiting:
                task.cancel()
        return not worker.ended.done() and not self._stopping.is_set()

    async def _replace(self, number: int) -> None:
        """Has a new worker serve, and then the one before it retire."""
        why, new = "", None
        try:
            new = await self._start(number)
        except OSError as error:
            why = str(error)
        if new is not None:
            self._others.add(new)
            if self._stopping.is_set():
                new.ask_to_end(self._signal)
            await self._unless_stopping(new.ready, READY_S)
            if new.serves and not self._stopping.is_set():
                before, self._workers[number] = self._workers[number], new
                self._others ^= {before, new}
                before.ask_to_end(RETIRE)
                self._retire(before)
            else:
                why = "its successor has not become ready"
                self._retire(new)
        self._due[number].clear()
        if why and not self._stopping.is_set():
            log.error(
                "worker %d cannot be replaced (%s): it goes on, and so do those after it",
                *(number + 1, why),
            )
        self._replaced.put_nowait(not why)

    def _retire(self, worker: _Worker) -> None:
        """Has a worker end in its own time, while the others serve."""
        task = asyncio.create_task(self._see_off(worker))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _see_off(self, worker: _Worker) -> None:
        if worker.asked:
            await self._unless_stopping(worker.ended, RETIRE_S)
        await worker.end(self._settings.drain_s if self._signal == signal.SIGTERM else 0)
        self._others.discard(worker)
        self._forget(worker)

    async def _unless_stopping(self, task: asyncio.Task[Any], within_s: float) -> None:
        """Returns when a task is done, when all are to end, or after a time."""
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((task, stopping), timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()

    def _reason_to_end(self) -> str:
        """Why another worker would not fare better; empty where it may."""
        now, count = time.monotonic(), len(self._listeners)
        self._deaths.append(now)
        while now - self._deaths[0] > self._back_off.within_s:
            self._deaths.popleft()
        if not self._were_ready and len(self._deaths) >= count:
            return "none was ever ready"
        if min(self._never_ready) >= self._back_off.in_a_row:
            return f"each has ended {self._back_off.in_a_row} times without being ready"
        if len(self._deaths) >= self._back_off.deaths * count:
            return f"{len(self._deaths)} have ended within {self._back_off.within_s:.0f} s"
        return ""

    async def _start(self, number: int) -> _Worker:
        listener = self._listeners[number].fileno()
        consumer = self._settings.consumer_name
        name = consumer if number == 0 else f"{consumer}.{number + 1}"
        # Counters go on in the files of a worker that has ended, so that these stay few.
        in_use = {worker.files for worker in (*self._workers.values(), *self._others)}
        files = next(f for at in ascii_lowercase if (f := f"{number}{at}") not in in_use)
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "logpipe",
                "worker",
                *map(str, (listener, self._life, writing, files)),
                env={**self._environ, "CONSUMER_NAME": name},
                pass_fds=(listener, self._life, writing),
                start_new_session=True,  # Ctrl-C in a terminal comes to this process alone
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        ready = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(ready), os.fdopen(reading, "rb")
        )
        return _Worker(process, ready, files)

    def _forget(self, worker: _Worker) -> None:
        """Takes a dead worker's gauges out of the sum."""
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.files, self._environ[METRICS_DIR])  # type: ignore[no-untyped-call]
