"""How late the event loop is: what one step holds up, all others wait for."""

import asyncio
import random
import time

from logpipe.metrics import Metrics

EVERY_S = 0.1
"""Between two looks, give or take a half, so that they do not keep step with another timer. What
holds the loop up for longer than this is always seen, the rest in proportion to its length."""


async def measure_lag(metrics: Metrics) -> None:
    """Asks now and then, for ever, to be woken at a moment, and notes how much later it was."""
    while True:
        pause = EVERY_S * random.uniform(0.5, 1.5)  # noqa: S311
        due = time.monotonic() + pause
        await asyncio.sleep(pause)
        metrics.event_loop_lag_seconds.observe(max(0.0, time.monotonic() - due))
