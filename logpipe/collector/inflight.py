"""The bytes that are under way in a collector, and the room for more of them.

A body counts from its first byte until its events are made of it, the events until Redis has
confirmed them. What is beyond the bound is refused before it is in memory.
"""

import asyncio
from typing import Self

from logpipe.problems import Problem

COMING_PART = 0.75
"""Bodies that are still coming, and events of large requests, may fill this part: they never keep
out small requests."""

READ_AT_ONCE = 2
"""Large bodies of which events are made at the same time, each of which takes several times its
size then. More would be no faster: they hold the interpreter's lock."""


class Inflight:
    """All that is under way in a process."""

    def __init__(self, limit: int) -> None:
        self.bytes = 0
        self.limit = limit
        self.reading = asyncio.Semaphore(READ_AT_ONCE)
        self.seat = asyncio.Lock()
        """Held for one step by the request whose body is unpacked or whose events are made."""

    def require(self, size: int, *, large: bool = False) -> None:
        """Raises a 503 `Problem` where a request's events have no room now: a large request has
        `COMING_PART`, another all of the limit. While nothing is under way there is always room."""
        if self.bytes and self.bytes + size > self.limit * (COMING_PART if large else 1):
            raise overloaded()


class Held:
    """What one request has under way, until the end of this context."""

    __slots__ = ("_inflight", "complete", "size")

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self.complete = False
        """Whether all of its body has come, whatever was in it."""
        self.size = 0

    @property
    def seat(self) -> asyncio.Lock:
        """As of `Inflight`."""
        return self._inflight.seat

    def require(self, size: int) -> None:
        """Raises a 503 `Problem` where so much more has no room besides what others have."""
        inflight = self._inflight
        others = inflight.bytes - self.size
        if others and inflight.bytes + size > inflight.limit * COMING_PART:
            raise overloaded()

    def add(self, size: int) -> None:
        """Counts bytes that have come. Raises as `require`."""
        self.require(size)
        self.size += size
        self._inflight.bytes += size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inflight.bytes -= self.size
        self.size = 0


def overloaded() -> Problem:
    """The 503 of more than MAX_INFLIGHT_BYTES."""
    return Problem(
        503,
        "More is being sent than Redis takes (MAX_INFLIGHT_BYTES).",
        headers={"Retry-After": "1"},
        hits={"inflight": 1},
    )
