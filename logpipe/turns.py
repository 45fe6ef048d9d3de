"""Turns: long work, on the event loop or in a thread, a few milliseconds at a time."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

Run = Callable[[Iterator[None]], Awaitable[None]]
"""Runs through work that can be interrupted."""

TURN_S = 0.005
"""Seconds of work after which everything else on the event loop goes on."""

PATIENCE_S = 1.0
"""Seconds after which work in a thread goes on although the event loop did not: it may be ending.
"""

_turn: ContextVar["_ThreadTurn"] = ContextVar("turn")
"""The turn of the work of this thread, if it has to pause."""


async def in_thread(
    work: Callable[[], T],
    clock: Callable[[], float] = time.monotonic,
    patience: float = PATIENCE_S,
) -> T:
    """What work in a thread returns. After each turn it stops where it calls `pause`.

    A thread that works without a pause makes the event loop wait for Python's lock, up to the
    switch interval of 5 ms, for each connection that has something to read or to accept.
    """
    turn = _ThreadTurn(asyncio.get_running_loop(), clock, patience)

    def working() -> T:
        _turn.set(turn)
        turn.begin()
        return work()

    return await asyncio.to_thread(working)


def pause() -> None:
    """Within work of `in_thread` that has had its turn, waits for an iteration of the event loop;
    elsewhere does nothing."""
    turn = _turn.get(None)
    if turn is not None and turn.is_over():
        turn.end()


class _ThreadTurn:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], patience: float
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._patience = patience
        self._until = 0.0

    def begin(self) -> None:
        self._until = self._clock() + TURN_S

    def is_over(self) -> bool:
        return self._clock() > self._until

    def end(self) -> None:
        """Waits for an iteration of the event loop, and begins the next turn."""
        passed = threading.Event()
        self._loop.call_soon_threadsafe(passed.set)
        passed.wait(self._patience)
        self.begin()


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

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
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
