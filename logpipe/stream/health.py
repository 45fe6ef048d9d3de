"""What ails Redis, in one word and one sentence, said once a change of state."""

import asyncio
import logging
from typing import Literal

from logpipe.problems import Unavailable

log = logging.getLogger("logpipe.redis")

Kind = Literal[
    "connecting", "ok", "away", "auth", "loading", "clients", "full", "read-only", "disk",
    "wrong-type", "replicas", "error",
]  # fmt: skip

WRITES_ONLY: frozenset[Kind] = frozenset({"full", "read-only", "disk", "replicas"})
"""States in which Redis still serves readers."""


class RedisHealth:
    """The state of one Redis as this process last saw it.

    Reported by every command that fails and by the monitor, so that /healthz, the log and the
    answers of the collector say the same; the address is for the log alone.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self.kind: Kind = "connecting"
        self.detail = "not reached yet"
        self._ok = asyncio.Event()

    def report(self, kind: Kind, detail: str = "") -> None:
        """Takes note of a state; a line in the log only when it is another one than before."""
        if kind == self.kind:
            self.detail = detail
            return
        self.kind, self.detail = kind, detail
        if kind == "ok":
            self._ok.set()
            log.info("Redis is ready")
        else:
            self._ok.clear()
            log.warning("Redis at %s: %s; trying on", self._where, detail)

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
