"""What the garbage collector of a serving process spares, when it looks at all, and which freed
memory goes back to the system."""

import asyncio
import contextlib
import ctypes
import gc

LOOK_S = 60.0
"""Between two looks at everything: some ten milliseconds each."""

RETURNED_BYTES = 1024 * 1024
"""A freed block of this size or more goes back to the system at once."""

_M_MMAP_THRESHOLD = -3
"""Its number in glibc's malloc.h."""


def return_large_blocks() -> None:
    """Has glibc return large blocks when they are freed; elsewhere it does nothing.

    By itself glibc stops doing so for sizes that were freed once, up to 32 MiB: bodies of 16 MiB
    left up to 150 MB in its heaps, for as long as a smaller block lay behind them.
    """
    with contextlib.suppress(OSError, AttributeError):  # no such function in other C libraries
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, RETURNED_BYTES)


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
