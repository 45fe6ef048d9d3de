"""Sessions of the page that were signed out, as all processes of a deployment know them.

They are kept in Redis beside the stream, which processes with a distributor reach; a page that runs
alone exchanges them with its distributor. A session ends at once in the process where it was signed
out, and in every other process at its next exchange. An exchange that fails is repeated, and so is
one that did not add all sessions.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Set

from logpipe.problems import Problem
from logpipe.stream.sign_outs import MAX_SESSIONS, lasting

log = logging.getLogger("logpipe")

Exchange = Callable[[Mapping[str, int]], Awaitable[Mapping[str, int]]]
"""Takes sessions that were signed out here, and returns all that are kept: until when, as a unix
time in seconds, by their digests. Raises a `Problem` where it cannot."""

EVERY_S = 15.0
"""Between two exchanges: a session ends everywhere within half a minute."""

AWAY = 503
"""The status of a `Problem` that ends by itself, as at the start of a deployment: it is logged only
while there are sessions that the other processes do not know of."""

SENT_AT_ONCE = 1_000
"""Sessions that one exchange adds: 46 KB as JSON."""


class SignedOut:
    """The sessions that were signed out; `on_change` is called when there are more of them.

    Those of this process and those of others are bounded apart, to `MAX_SESSIONS` each, so that
    nothing that is received takes the place of a session that was signed out here.
    """

    def __init__(
        self,
        exchange: Exchange | None = None,
        on_change: Callable[[], None] = lambda: None,
        count_limited: Callable[[Mapping[str, int]], None] = lambda _: None,
        *,
        every_s: float = EVERY_S,
        most: int = MAX_SESSIONS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._exchange = exchange
        self._on_change = on_change
        self._count_limited = count_limited
        self._every_s = every_s
        self._most = most
        self._now = now
        self._own: dict[str, int] = {}
        self._foreign: dict[str, int] = {}
        self._shared: Set[str] = frozenset()
        """The sessions of the last exchange's answer: those of `_own` besides them are sent."""
        self._wanted = asyncio.Event()

    def __contains__(self, digest: str) -> bool:
        return digest in self._own or digest in self._foreign

    def add(self, digest: str, until: int) -> None:
        """Adds a session that was signed out here, and begins an exchange. Where there are too
        many, the one whose time ends first is forgotten."""
        before = lasting({**self._own, digest: until}, self._now())
        by_end = sorted(before, key=before.__getitem__, reverse=True)
        self._own = {each: before[each] for each in by_end[: self._most]}
        self._refuse(len(before) - len(self._own))
        self._on_change()
        self._wanted.set()

    async def follow(self) -> None:
        """Keeps up with the other processes until it is cancelled."""
        failing = False
        while True:
            try:
                await self.look()
                failing = False
            except Problem as problem:  # it is tried again
                if not failing and (self._unsent() or problem.status != AWAY):
                    failing = True
                    log.warning("Sessions are signed out in this process alone: %s", problem.detail)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), self._every_s)
            self._wanted.clear()

    async def look(self) -> None:
        """Exchanges once. Raises a `Problem`."""
        if self._exchange is None:
            return
        found = await self._exchange(dict(itertools.islice(self._unsent().items(), SENT_AT_ONCE)))
        self._take(lasting(found, self._now()))

    def _unsent(self) -> dict[str, int]:
        own = lasting(self._own, self._now())
        return {digest: until for digest, until in own.items() if digest not in self._shared}

    def _take(self, found: Mapping[str, int]) -> None:
        now = self._now()
        known = lasting(self._foreign, now)
        new = [each for each in found if each not in known and each not in self._own]
        room = max(0, self._most - len(known))
        self._own = lasting(self._own, now)
        self._foreign = {**known, **{each: found[each] for each in new[:room]}}
        self._shared = frozenset(found)
        self._refuse(len(new[room:]))
        if new[:room]:
            self._on_change()

    def _refuse(self, count: int) -> None:
        if count:
            self._count_limited({"sessions": count})
