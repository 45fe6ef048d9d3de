"""One attack on one server: starts the processes, watches, and has the judge decide."""

import asyncio
import contextlib
import os
import resource
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import trustme

from tests.attack import attacker as attacking
from tests.attack.attacks import ATTACKS
from tests.attack.client import Tally
from tests.attack.honest import AT_THE_END_S, PATIENCE_S, Progress, Wanted
from tests.attack.judge import MEGA, Limits, Memory, Row, Witnessed, offences
from tests.raw import peak_memory
from tests.servers import UNMEASURED, Process, Valkey, free_port
from tests.soak.measures import resident_bytes

STREAM = "logs"
SERVER = "logpipe"
"""The module that is run as the server; an altered one is `tests.attack.altered`."""
SEED = """
local size, large, id = tonumber(ARGV[1]), ARGV[2], ''
for n = 1, size do
  id = redis.call('XADD', KEYS[1], '*', 'event', string.format(
    '{"source":"service-%d","level":"%s","message":"GET /items/%d of %d took %d ms%s",' ..
    '"ts_unix_ms":1710000000000,"metadata":{"region":"r%d","status":%d}}',
    n % 10, n % 7 == 0 and 'ERROR' or 'INFO', n, n * 7, n % 977, large, n % 3, 200 + n % 5))
end
return id
"""
SEEDED_AT_ONCE = 10_000
LARGE = "x" * 60_000
MAX_LINE = 2**28
"""Of what the honest clients have seen, as JSON."""


class Times(NamedTuple):
    """How long the parts of a trial take, in seconds."""

    attack: float = 60.0
    warm: float = 3.0
    settle: float = 60.0
    """After the attack, before the memory that is kept is measured."""


class Watched(NamedTuple):
    """What is known while an attack goes on."""

    passed_s: float
    tally: Tally
    progress: Progress
    resident: int


Child = asyncio.subprocess.Process
Show = Callable[[str, Watched], None]


def seed(valkey: Valkey, count: int, *, large: bool) -> str:
    """Fills the stream; the id of an entry around its middle, empty where there is none."""
    script = valkey.client.register_script(SEED)
    step = 100 if large else SEEDED_AT_ONCE
    ids = []
    for begun in range(0, count, step):
        given: list[int | str] = [min(step, count - begun), LARGE if large else ""]
        ids.append(script(keys=[STREAM], args=given).decode())
    return ids[len(ids) // 2 - 1] if ids else ""


class Trial:
    """An attack by name, against `module` with ALTERED as its environment says."""

    def __init__(
        self, name: str, valkey: Valkey, folder: Path, times: Times, show: Show, altered: str = ""
    ) -> None:
        self.name = name
        self.attack = ATTACKS[name]
        self._valkey = valkey
        self._folder = folder
        self._times = times
        self._show = show
        self._altered = altered
        self._tally = Tally()
        self._progress = Progress(0.0, 0.0, 0)
        self._syslog_port = free_port() if self.attack.syslog else 0
        self._authority = folder / f"{name}.authority.pem"
        self._certificate = folder / f"{name}.pem"
        if self.attack.tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(self._authority))
            issued = authority.issue_cert("localhost", key_type=trustme.KeyType.RSA)
            issued.private_key_and_cert_chain_pem.write_to_path(str(self._certificate))

    @property
    def log(self) -> Path:
        """What the server has logged."""
        return self._folder / f"{self.name}.log"

    async def run(self, late: int = 0) -> Row:
        """The attack's row of the table."""
        try:
            seen, memory = await self._tried()
            found = [*offences(seen, memory, Limits(self.attack.bound, late))]
        except (RuntimeError, TimeoutError) as error:
            seen, memory, found = Witnessed(), Memory(0, 0, 0), [f"the trial broke off: {error!r}"]
        tally = self._tally
        answers = tally.statuses | tally.failures
        return Row(self.name, tally.requests, tally.sent, answers, seen, memory, found)

    async def _tried(self) -> tuple[Witnessed, Memory]:
        self._valkey.reset()
        async with (
            # They start while the stream is filled, and wait for their orders.
            _module("witness") as witness,
            _module("honest") as honest,
            _module("attacker") as attacker,
            self._server() as server,
        ):
            resume_from = await asyncio.to_thread(
                seed, self._valkey, self.attack.stored, large=self.attack.large
            )
            authority = str(self._authority) if self.attack.tls else ""
            trusting = ssl.create_default_context(cafile=authority) if authority else None
            await server.ready(trusting=trusting)
            pids = [server.popen.pid, self._valkey.pid, witness.pid]
            wanted = Wanted(
                server.port,
                int(await _read(witness).readline()),
                pids,
                resume_from,
                self._syslog_port,
                authority,
            )
            return await self._played(server, honest, attacker, wanted)

    @contextlib.asynccontextmanager
    async def _server(self) -> AsyncIterator[Process]:
        environ = {
            **UNMEASURED,
            "REDIS_ADDR": self._valkey.url,
            "STREAM_NAME": STREAM,
            "LOG_LEVEL": "warning",
            "PORT": str(free_port()),
            **self.attack.settings,
        }
        if self.attack.tls:
            environ["SSL_CERTFILE"] = str(self._certificate)
        if self._syslog_port:
            environ["SYSLOG_TCP"] = str(self._syslog_port)
        module = SERVER
        if self._altered:
            module, environ["ALTERED"] = "tests.attack.altered", self._altered
        process = Process(environ, self.log, module)
        try:
            if self.attack.files:
                limits = (self.attack.files, self.attack.files)
                resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, limits)
            yield process
        finally:
            process.popen.kill()
            process.popen.wait(10)

    async def _played(
        self, server: Process, honest: Child, attacker: Child, wanted: Wanted
    ) -> tuple[Witnessed, Memory]:
        """What the honest clients saw from the beginning of the attack on, and the memory."""
        watching = asyncio.create_task(self._watch(_read(honest)))
        try:
            await _order(honest, wanted)
            await self._pass("warming", self._times.warm, server)
            pid = server.popen.pid
            before = resident_bytes(pid)
            peak_memory(pid, reset=True)
            began = time.monotonic()
            await self._attack(server, attacker)
            await self._pass("after it", self._times.settle, server)
            after, peak = resident_bytes(pid), peak_memory(pid)
            assert honest.stdin is not None
            honest.stdin.close()
            async with asyncio.timeout(AT_THE_END_S + PATIENCE_S + 30):
                whole = await watching
        finally:
            watching.cancel()
        return _since(whole, began), Memory(before, peak, after)

    async def _attack(self, server: Process, attacker: Child) -> None:
        began = time.monotonic()
        wanted = attacking.Wanted(self.name, server.port, self._syslog_port, self._times.attack)
        await _order(attacker, wanted)
        async with asyncio.timeout(self._times.attack + 30):
            async for line in _read(attacker):
                self._tally = msgspec.json.decode(line, type=Tally)
                self._tell("attacked", time.monotonic() - began, server)

    async def _pass(self, what: str, seconds: float, server: Process) -> None:
        began = time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))
            self._tell(what, time.monotonic() - began, server)

    def _tell(self, what: str, passed_s: float, server: Process) -> None:
        if server.popen.poll() is not None:
            raise RuntimeError(f"the server has ended: {self.log.read_text()[-2_000:]}")
        resident = resident_bytes(server.popen.pid)
        self._show(f"{self.name}, {what}", Watched(passed_s, self._tally, self._progress, resident))

    async def _watch(self, lines: asyncio.StreamReader) -> Witnessed:
        """Takes the progress of the honest clients, and returns what they have seen."""
        async for line in lines:
            message = msgspec.json.decode(line, type=Progress | Witnessed)
            if isinstance(message, Witnessed):
                return message
            self._progress = message
        raise RuntimeError("the honest clients have ended before they told what they saw")


@contextlib.asynccontextmanager
async def _module(name: str) -> AsyncIterator[Child]:
    """A process of this package, which is gone at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.attack.{name}",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **UNMEASURED},
        limit=MAX_LINE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # Its `kill` would take the exit status away from the loop, if it has just ended.
                os.kill(process.pid, signal.SIGKILL)
        await process.wait()


def _read(process: Child) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout


async def _order(process: Child, wanted: msgspec.Struct) -> None:
    """Tells a waiting process what to do."""
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(wanted) + b"\n")
    await process.stdin.drain()


def _since(whole: Witnessed, began: float) -> Witnessed:
    """Without the requests that were over before the attack began."""
    kept = {
        name: [each for each in getattr(whole, name) if each.began + each.took_s > began]
        for name in ("livez", "posts", "health", "resumes", "syslog", "deliveries")
    }
    return msgspec.structs.replace(whole, **kept)


def shown(what: str, watched: Watched) -> str:
    """A line of progress."""
    tally, progress = watched.tally, watched.progress
    return (
        f"{what} {watched.passed_s:.0f} s: {tally.requests:,} requests, {tally.sent / MEGA:.1f} MB;"
        f" worst /livez {progress.livez_s * 1000:.0f} ms, POST {progress.post_s * 1000:.0f} ms;"
        f" {progress.received:,} events read; {watched.resident / MEGA:.0f} MB of memory"
    )
