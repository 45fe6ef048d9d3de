"""A run: so many bodies and streams, mixed, at one process; and the judgement of it."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from tests.fuzz.client import Client
from tests.fuzz.requests import request
from tests.fuzz.streams import stream
from tests.fuzz.target import Target, Told
from tests.soak.measures import MEGA, memory_slope

Kind = Literal["body", "stream"]

AT_ONCE = 24
"""Cases under way."""

SAMPLES = 200
"""Looks at the memory in a run."""

WARM = 0.25
"""The part of a run after which memory must not grow any more."""

MAX_GROWTH = 20 * MEGA
"""Bytes that a process may have more at the end than when it was warm, in a run of minutes: once a
minute it looks for garbage, and what it has got by then it gives back."""

MAX_HELD_S = 5.0
"""What no step of the event loop may take, even on a busy machine."""

MAX_FOUND = 50
"""Findings that are kept; the others are counted."""


class Plan(NamedTuple):
    """What a run is made of: so many cases of each kind, from a number on; by how many bytes memory
    may grow in it; and the module that is `logpipe`."""

    bodies: int
    streams: int
    seed: int = 1
    first: int = 0
    max_growth: float = MAX_GROWTH
    module: str = "logpipe"

    def cases(self) -> Iterator[tuple[Kind, int]]:
        """All of them; the streams are spread evenly among the bodies."""
        bodies = streams = 0
        for done in range(1, self.bodies + self.streams + 1):
            if streams < self.streams * done // (self.bodies + self.streams):
                yield "stream", self.first + streams
                streams += 1
            else:
                yield "body", self.first + bodies
                bodies += 1


class Verdict:
    """What came of a run."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.uncounted = 0
        self.statuses: Counter[int] = Counter()
        self.memory: list[tuple[int, int]] = []
        self.told = Told(0.0, 0)
        self.slowest = 0.0, ""
        self.seconds = 0.0

    def finding(self, text: str) -> None:
        """Notes it, or counts it where there are very many."""
        if len(self.found) < MAX_FOUND:
            self.found.append(text)
        else:
            self.uncounted += 1

    @property
    def growth(self) -> float:
        """Bytes between the time when it was warm and the end."""
        return growth([size for _, size in self.memory])

    def lines(self) -> Iterator[str]:
        """For people."""
        total = self.memory[-1][0] if self.memory else 0
        yield f"{total:,} cases in {self.seconds:.0f} s, {total / max(self.seconds, 0.001):,.0f}/s"
        yield ", ".join(f"{status}: {count:,}" for status, count in sorted(self.statuses.items()))
        slope = memory_slope(self.memory, int(WARM * total))
        sizes = f"{self.memory[0][1] / MEGA:.0f} MB → {self.memory[-1][1] / MEGA:.0f} MB"
        rise = f"{self.growth / MEGA:+.1f} MB when warm, {slope:+.2f} MB a million cases"
        yield f"memory {sizes}, {rise}"
        yield f"event loop held up for under {self.told.held_s:g} s, {self.told.faults} answers 5xx"
        yield f"slowest: {self.slowest[1]}, {self.slowest[0]:.2f} s"


def growth(sizes: list[int]) -> float:
    """How much higher the last tenth of a series is than the first tenth after `WARM`."""
    warm = sizes[int(WARM * len(sizes)) :]
    if len(warm) < 2:
        return 0.0
    part = max(1, len(warm) // 10)
    return statistics.median(warm[-part:]) - statistics.median(warm[:part])


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, target: Target, progress: Callable[[float], None]) -> None:
        self._plan = plan
        self._target = target
        self._progress = progress
        self._cases = plan.cases()
        self._done = 0
        self._every = max(1, (plan.bodies + plan.streams) // SAMPLES)
        self.verdict = Verdict()

    async def judged(self) -> Verdict:
        """Plays all cases, then looks at the process."""
        began = time.monotonic()
        self._sample()
        clients = [Client(*self._target.place) for _ in range(AT_ONCE)]
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(self._play(client))
        for client in clients:
            client.leave()
            self.verdict.statuses += client.statuses
        self.verdict.seconds = time.monotonic() - began
        await self._look()
        return self.verdict

    async def _play(self, client: Client) -> None:
        for kind, number in self._cases:
            if not self._target.memory:
                return  # it is gone, which is told at the end
            began = time.monotonic()
            said, case = await self._one(client, kind, number)
            took = time.monotonic() - began
            self.verdict.slowest = max(self.verdict.slowest, (took, case))
            if said:
                self.verdict.finding(f"{case}: {said}")
            self._done += 1
            if self._done % self._every == 0:
                self._sample()

    async def _one(self, client: Client, kind: Kind, number: int) -> tuple[str, str]:
        if kind == "stream":
            made = stream(self._plan.seed, number)
            return await client.stream(made), f"stream {number} ({made.kind})"
        asked = request(self._plan.seed, number)
        return await client.ask(asked), f"body {number} ({asked.method} {asked.target[:60]})"

    def _sample(self) -> None:
        self.verdict.memory.append((self._done, self._target.memory))
        self._progress(self._done / max(1, self._plan.bodies + self._plan.streams))

    async def _look(self) -> None:
        """What can be seen from outside at the end."""
        verdict = self.verdict
        for line, times in self._target.said().most_common():
            verdict.finding(f"in the log, {times} times: {line}")
        if wrong := await self._target.is_well():
            verdict.finding(f"at the end: {wrong}")
            return
        verdict.told = await self._target.told()
        if verdict.told.faults:
            verdict.finding(f"it counts {verdict.told.faults} answers of 5xx")
        if verdict.told.held_s > MAX_HELD_S:
            verdict.finding(f"the event loop was held up for up to {verdict.told.held_s:g} s")
        if verdict.growth > self._plan.max_growth:
            verdict.finding(f"memory grew by {verdict.growth / MEGA:.1f} MB")


async def fuzzed(
    plan: Plan, redis: str, folder: Path, progress: Callable[[float], None]
) -> Verdict:
    """Runs a plan against a process of its own over this Redis, with its log in `folder`."""
    target = Target(redis, folder, plan.module)
    try:
        await target.start()
        return await Run(plan, target, progress).judged()
    finally:
        await target.kill()
