"""Turns: long work on the event loop, a few milliseconds at a time."""

import asyncio
import time
from collections.abc import Callable, Iterator

TURN_S = 0.005
"""Seconds of work after which everything else on the event loop goes on."""


class CpuTime:
    """CPU seconds of one piece of work, without what others take between its turns."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.seconds = 0.0
        """Of the turns that are over."""
        self._clock = clock
        self._began = clock()

    def begin(self) -> None:
        """Begins a turn."""
        self._began = self._clock()

    def end(self) -> None:
        """Ends a turn."""
        self.seconds += self._clock() - self._began

    def now(self) -> float:
        """The seconds up to now, within a turn."""
        return self.seconds + self._clock() - self._began


class Turns:
    """Work of many tasks, of which one at a time has its turn of `TURN_S`, in order of arrival.

    Shorter work is added up: many tasks whose work is short hold the loop for no longer together.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, pause: int = 1) -> None:
        self._clock = clock
        self._pause = pause
        """Iterations of the event loop between two turns."""
        self._turn = asyncio.Lock()
        self._spent = 0.0
        """Seconds of work since the last pause."""

    async def run(self, work: Iterator[None], cpu: CpuTime | None = None) -> None:
        """Runs through an iterator, which yields wherever its work can be interrupted; `cpu`
        measures its turns. Raises what the iterator raises."""
        while not await self.turn(work, cpu):
            pass

    async def turn(self, work: Iterator[None], cpu: CpuTime | None = None) -> bool:
        """Gives an iterator one turn, as soon as those before it have had theirs; whether it is
        done."""
        async with self._turn:
            if cpu is not None:
                cpu.begin()
            try:
                return self._go_on(work)
            finally:
                if cpu is not None:
                    cpu.end()
                if self._spent > TURN_S:
                    self._spent = 0.0
                    for _ in range(self._pause):
                        await asyncio.sleep(0)

    def _go_on(self, work: Iterator[None]) -> bool:
        """Works until the turn is over; whether all work is done. The time of work that raises an
        error counts as well."""
        began = self._clock() - self._spent
        try:
            for _ in work:
                self._spent = self._clock() - began
                if self._spent > TURN_S:
                    return False
        finally:
            self._spent = self._clock() - began
        return True
