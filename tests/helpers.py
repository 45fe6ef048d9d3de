"""Waiting in tests: for a condition, with a limit and a name, never for a time."""

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable


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


def end_in_order() -> None:
    """SIGTERM ends this program as an exception does: what it has started is ended as well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
