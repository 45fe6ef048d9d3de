"""How often everything else has its turn while something runs."""

import asyncio
import time


class Turns:
    """What else the event loop does meanwhile: how often, and the most of the processor's time that
    it did not come to it."""

    def __init__(self) -> None:
        self.count = 0
        self.longest_s = 0.0

    async def run(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest_s, before = max(self.longest_s, now - before), now
            self.count += 1
