"""The name under which a process reads its consumer groups."""

import asyncio
import contextlib
import logging
import uuid

from logpipe.problems import Unavailable
from logpipe.stream import WRITES_ONLY, Stream

log = logging.getLogger("logpipe.groups")

LEASE_S = 3.0
"""How long a name stays taken after its process has died; renewed three times as often."""

MAX_NAMES = 100
"""Processes that may share one CONSUMER_NAME."""


class Consumer:
    """CONSUMER_NAME while no other process has it; else with `~2`, `~3` and so on.

    Two processes under one name would read each other's pending entries as their own. So a name is
    held by a lease in Redis: it frees itself soon after its process has died, and a process that
    has had to take another name then goes back to it, and to what was left pending under it.
    """

    def __init__(self, stream: Stream, wanted: str) -> None:
        self.name = ""
        """The name that is held; empty before `hold` has worked."""
        self.names: list[str] = []
        """All names that were held: entries may still be pending for an earlier one."""
        self._stream = stream
        self._wanted = wanted
        self.holder = uuid.uuid4().hex
        """This process, whatever its name."""
        self._holding = asyncio.Lock()

    async def hold(self) -> None:
        """Takes the first name that is free, or keeps it. Raises `Unavailable`."""
        async with self._holding:
            try:
                await self._renamed(await self._free_name())
            except Unavailable as error:
                # A Redis without memory takes no lease, but it still hands out what it has.
                if error.kind not in WRITES_ONLY:
                    raise
                self._take(self.name or self._wanted)

    async def _free_name(self) -> str:
        lease_ms = round(LEASE_S * 1000)
        for number in range(1, MAX_NAMES + 1):
            name = self._wanted if number == 1 else f"{self._wanted}~{number}"
            if await self._stream.groups.hold(name, self.holder, lease_ms):
                return name
        raise Unavailable("names", f"{MAX_NAMES} processes read as {self._wanted} already")

    async def _renamed(self, name: str) -> None:
        before = self.name
        self._take(name)
        if name == before:
            return
        if name != self._wanted:
            log.warning(
                "another process reads groups as %s, so this one does as %s:"
                " give each replica a CONSUMER_NAME of its own",
                self._wanted,
                name,
            )
        elif before:
            log.info("reads groups as %s again", name)
        if before:
            await self._stream.groups.let_go(before, self.holder)

    def _take(self, name: str) -> None:
        self.name = name
        if name not in self.names:
            self.names.append(name)

    async def keep_holding(self) -> None:
        """Renews the lease for ever."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with contextlib.suppress(Unavailable):
                await self.hold()

    async def let_go(self) -> None:
        """Gives the name back, as far as Redis can be reached."""
        if self.name:
            with contextlib.suppress(Unavailable):
                await self._stream.groups.let_go(self.name, self.holder)
