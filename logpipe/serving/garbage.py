"""When a serving process gives memory back: what the garbage collector looks at and when, and which
blocks the allocator returns to the kernel."""

import asyncio
import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Iterator
from typing import Literal

LOOK_S = 60.0
"""Between two looks at everything."""
MAX_BLOCKS = 500_000
"""Allocated blocks of Python's memory, which are faster to count than objects. At this number
a look takes 100 ms (measured), in which nothing else of the process goes on."""
YOUNG_OBJECTS = 10_000
"""Between two collections of new objects."""
YOUNG_S = 0.25
"""The same. Their number alone does not bound them: an old object that is freed counts against a
new one, and with readers whose filters were compiled again and again a collection of 200,000 took
172 ms (measured)."""

RETURNED_BYTES = 128 * 1024
"""Blocks of memory from this size on go back to the kernel as soon as they are freed. glibc begins
with this value, but raises it to the size of the largest block that was ever freed, and then keeps
tens of megabytes of answers and bodies that have gone."""
_M_MMAP_THRESHOLD = -3
"""mallopt(3)."""


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Makes each collection look at new objects only, and has the allocator keep its threshold.

    What survives a collection is frozen. Without that, collections of the older generations go
    through the window, the readers and their filters again and again: 65 to 110 ms with 300 readers
    of 64 words each, one second with a window of lists of lists, for next to no garbage, because
    requests leave no cycles. On exit everything but the allocator is as before.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    gc.callbacks.append(_freeze_survivors)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc has it, others do not
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, RETURNED_BYTES)
    try:
        yield
    finally:
        gc.callbacks.remove(_freeze_survivors)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _freeze_survivors(phase: Literal["start", "stop"], _: dict[str, int]) -> None:
    if phase == "stop":
        gc.freeze()


async def look_now_and_then(
    every_s: float = LOOK_S, young_s: float = YOUNG_S, max_blocks: int = MAX_BLOCKS
) -> None:
    """Collects new objects each `young_s` seconds and calls `look` each `every_s`."""
    while True:
        due = time.monotonic() + every_s
        while time.monotonic() < due:
            await asyncio.sleep(young_s)
            gc.collect(0)
        look(max_blocks)


def look(max_blocks: int) -> None:
    """Frees what refers to itself, also what was frozen, unless there are more than `max_blocks`.

    Such cycles are left by some errors, not by requests and connections (tests/test_garbage.py).
    """
    if sys.getallocatedblocks() <= max_blocks:
        gc.unfreeze()
        gc.collect()
