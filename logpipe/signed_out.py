"""Sessions of the page that were signed out, as all processes of a deployment know them.

They are kept in Redis beside the stream, which processes with a distributor reach; a page that runs
alone exchanges them with its distributor. A session ends at once in the process where it was signed
out, and in every other process at its next exchange. An exchange that fails is repeated.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from logpipe.problems import Problem

log = logging.getLogger("logpipe")

Exchange = Callable[[Mapping[str, int]], Awaitable[Mapping[str, int]]]
"""Takes sessions that were signed out here, and returns all: until when, as a unix time in seconds,
by their digests. Raises a `Problem` where it cannot."""

EVERY_S = 15.0
"""Between two exchanges: a session ends everywhere within half a minute."""

AWAY = 503
"""The status of a `Problem` that ends by itself, as at the start of a deployment: it is logged only
while there are sessions that the other processes do not know of."""

MAX_SESSIONS = 10_000
"""Sessions that are remembered; beyond that those are forgotten whose time ends first."""


class SignedOut:
    """The sessions that were signed out; `on_change` is called when there are more of them."""

    def __init__(
        self,
        exchange: Exchange | None = None,
        on_change: Callable[[], None] = lambda: None,
        *,
        every_s: float = EVERY_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._exchange = exchange
        self._on_change = on_change
        self._every_s = every_s
        self._now = now
        self._known: Mapping[str, int] = {}
        self._unsent: dict[str, int] = {}
        self._wanted = asyncio.Event()

    def __contains__(self, digest: str) -> bool:
        return digest in self._known

    def add(self, digest: str, until: int) -> None:
        """Adds a session that was signed out here, and begins an exchange."""
        self._unsent[digest] = until
        self._learn({**self._known, digest: until})
        self._wanted.set()

    async def follow(self) -> None:
        """Keeps up with the other processes, for ever."""
        failing = False
        while True:
            try:
                await self.look()
                failing = False
            except Problem as problem:  # it is tried again
                if not failing and (self._unsent or problem.status != AWAY):
                    failing = True
                    log.warning("Sessions are signed out in this process alone: %s", problem.detail)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), self._every_s)
            self._wanted.clear()

    async def look(self) -> None:
        """Exchanges once. Raises a `Problem`."""
        if self._exchange is None:
            return
        sent = dict(self._unsent)
        found = await self._exchange(sent)
        for digest in sent:
            del self._unsent[digest]
        self._learn({**self._known, **found})

    def _learn(self, known: Mapping[str, int]) -> None:
        before = self._known
        self._known = newest(known, self._now())
        if self._known.keys() - before.keys():
            self._on_change()


def newest(sessions: Mapping[str, int], now: float) -> dict[str, int]:
    """Those of the sessions whose time has not ended, `MAX_SESSIONS` at the most."""
    kept = [(until, digest) for digest, until in sessions.items() if until > now]
    return {digest: until for until, digest in sorted(kept)[-MAX_SESSIONS:]}
