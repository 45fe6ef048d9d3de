"""What the garbage collector of a serving process spares, and when it looks at all."""

import asyncio
import gc

LOOK_S = 60.0
"""Between two looks at everything: some ten milliseconds each."""


def settle() -> None:
    """Spares what stays for good, and has the collector look less often.

    A tenth of a busy collector's time went there, for next to no garbage: requests leave no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def look_now_and_then() -> None:
    """Looks at everything once a minute, for ever.

    What does leave cycles are errors, which hold on to the requests that they ended, and
    connections. Left to the thresholds that takes days: a collector grew by a megabyte with every
    restart of Redis, a distributor by fifteen a million events with the readers that came and went.
    """
    while True:
        await asyncio.sleep(LOOK_S)
        gc.collect()
