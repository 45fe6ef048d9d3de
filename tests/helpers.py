"""Waiting in tests: for a condition, with a limit and a name, never for a time. Measuring."""

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from logpipe.fanout.hub import Pauses
from logpipe.problems import JITTER_S

QUICK = Pauses(outage_s=0.003, recovery_s=0.02, retry_s=0.02, measure_s=0.02)
"""A hub with these waits for an outage no longer than it must."""


async def wait_until(
    predicate: Callable[[], object | Awaitable[object]], description: str, timeout: float = 10.0
) -> None:
    """Returns when the predicate (a function, also an async one) is true; fails with its name."""
    deadline = time.monotonic() + timeout
    while True:
        outcome = predicate()
        if isinstance(outcome, Awaitable):
            outcome = await outcome
        if outcome:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {description}")
        await asyncio.sleep(0.01)


def retry_after(seconds: int) -> set[str]:
    """What Retry-After may be in a 503 that asks to wait for `seconds`."""
    return {str(seconds + more) for more in range(JITTER_S + 1)}


def end_in_order() -> None:
    """SIGTERM ends this program as an exception does: what it has started is ended as well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def processor_wait_s(task: int | str) -> float:
    """How long a thread (of a process id: its main thread) was ready to run while other programs
    had the processor, since it began; 0 where the system does not count that."""
    try:
        counted = Path(f"/proc/{task}/schedstat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(counted.split()[1]) / 1e9


def fair_time() -> float:
    """Seconds of a clock that stands still while this thread waits for a processor.

    Upper bounds of durations are measured by it, between two calls of one thread: a busy machine
    is no fault of what is tested. `processor_wait_s` is what to add for another process.
    """
    return time.monotonic() - processor_wait_s("thread-self")


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Runs without what tests add to a process: coverage in this thread, which takes two thirds of
    the time, and collections of garbage among the objects of all tests."""
    trace = sys.gettrace()
    sys.settrace(None)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        sys.settrace(trace)
