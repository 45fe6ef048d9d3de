"""The state of Redis, in one word and one sentence, logged once a change; and how long this
process was itself held up, which is no fault of Redis."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from logpipe.problems import Unavailable

log = logging.getLogger("logpipe.redis")

Kind = Literal[
    "connecting", "ok", "away", "auth", "clients", "full", "read-only", "disk", "wrong-type",
    "replicas", "error",
]  # fmt: skip

WRITES_ONLY: frozenset[Kind] = frozenset({"full", "read-only", "disk", "replicas"})
"""States in which Redis still serves readers."""


TICK_S = 0.05
"""Between two looks at the clock of the event loop. Shorter delays are not noticed, and do not make
a command miss its time limit."""

LINES_AT_ONCE = 10
"""Changes of state that are logged as they come."""
LINE_S = 1.0
"""After those, one in so long: a Redis with a single connection left serves now and now not."""


class Servers(NamedTuple):
    """The servers behind the address, as far as they are known."""

    primary: str = ""
    """HOST:PORT, behind Sentinels and in a Cluster."""
    failovers: int = 0
    """How often another node has become the primary while this process looked."""
    replicas_in_sync: int | None = None
    sentinels: int = 0
    """Of the address."""
    sentinels_reachable: int = 0


class RedisHealth:
    """The state of one Redis as this process last saw it.

    Reported by every command that fails and by the monitor, so that /healthz, the log and the
    answers of the collector say the same; the address is for the log alone.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self.kind: Kind = "connecting"
        self.detail = "not reached yet"
        self.servers = Servers()
        self.on_servers: Callable[[Servers], None] = lambda _: None
        """Called when something else is known of the servers."""
        self.failures = 0
        """Reports of any other state than `ok`."""
        self._ok = asyncio.Event()
        self._said: Kind = self.kind
        self._lines: float = LINES_AT_ONCE
        self._counted_at = time.monotonic()

    def report_servers(self, servers: Servers) -> None:
        """Takes what is known of the servers."""
        if servers != self.servers:
            self.servers = servers
            self.on_servers(servers)

    def report(self, kind: Kind, detail: str = "") -> None:
        """Takes note of a state; a line in the log only when it is another one than was said."""
        self.kind, self.detail = kind, detail
        if kind == "ok":
            self._ok.set()
        else:
            self.failures += 1
            self._ok.clear()
        if kind != self._said and self._may_speak():
            self._said = kind
            self._say()

    def _say(self) -> None:
        if self.kind == "ok":
            log.info("Redis is ready")
        else:
            log.warning("Redis at %s: %s; trying on", self._where, self.detail)

    def _may_speak(self) -> bool:
        """Whether a line is left; what was kept back is said by the monitor's next report."""
        now = time.monotonic()
        refilled = self._lines + (now - self._counted_at) / LINE_S
        self._lines, self._counted_at = min(LINES_AT_ONCE, refilled), now
        if self._lines < 1:
            return False
        self._lines -= 1
        return True

    async def recovered(self, timeout: float) -> None:
        """Returns when the state is ok, or after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._ok.wait()
        except TimeoutError:
            return

    def serves(self, *, writes: bool) -> bool:
        """Whether the state lets a role work that writes, or one that only reads."""
        return self.kind == "ok" or (not writes and self.kind in WRITES_ONLY)

    def unavailable(self) -> Unavailable:
        """The error that tells this state."""
        return Unavailable(self.kind, self.detail)


class HeldUp:
    """How long this process's event loop could not turn, in seconds since `measure` began.

    An answer of Redis that arrives meanwhile is not read, and a time limit that ends meanwhile
    expires before the answer is looked at.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._due = math.inf

    async def measure(self) -> None:
        """Looks at the clock for ever."""
        try:
            while True:
                self._due = time.monotonic() + TICK_S
                await asyncio.sleep(TICK_S)
                self._before = self.seconds
        finally:
            self._due = math.inf

    @property
    def seconds(self) -> float:
        """The sum as of now; it stands still where nothing measures."""
        return self._before + max(0.0, time.monotonic() - self._due)
