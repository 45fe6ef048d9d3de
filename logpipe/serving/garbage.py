"""When a serving process gives memory back: what the garbage collector spares, when it looks at
all, and which blocks the allocator returns to the kernel."""

import asyncio
import contextlib
import ctypes
import gc

LOOK_S = 60.0
"""Between two looks at everything: some ten milliseconds each."""

RETURNED_BYTES = 128 * 1024
"""Blocks of memory from this size on go back to the kernel as soon as they are freed. glibc begins
with this value, but raises it to the size of the largest block that was ever freed, and then keeps
tens of megabytes of answers and bodies that have gone."""
_M_MMAP_THRESHOLD = -3
"""mallopt(3)."""


def settle() -> None:
    """Spares what stays for good, has the collector look less often, and the allocator keep its
    threshold.

    A tenth of a busy collector's time went there, for next to no garbage: requests leave no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc has it, others do not
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, RETURNED_BYTES)


async def look_now_and_then() -> None:
    """Looks at everything once a minute, for ever.

    What does leave cycles are errors, which hold on to the requests that they ended, and
    connections. Left to the thresholds that takes days: a collector grew by a megabyte with every
    restart of Redis, a distributor by fifteen a million events with the readers that came and went.
    """
    while True:
        await asyncio.sleep(LOOK_S)
        gc.collect()
