"""The processes behind a page, as an operator sees them: now, and over the last minutes.

Each is looked at by a `Look`: this process itself, or another over HTTP (`client/process.py`).
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from logpipe.fanout.hub import Hub
from logpipe.groups import Groups
from logpipe.metrics import Metrics
from logpipe.samples import Sample, read_sample
from logpipe.subscribers import Subscriber, subscribers

EVERY_S = 2.0
"""Between two looks while somebody watches."""
IDLE_S = 10.0
"""Between two looks while nobody does: enough for who comes after an incident to see it."""
MAX_SAMPLES = 120
"""Samples kept of each process: four minutes while somebody watches, else twenty."""
LOOK_S = 2.0
"""What one look may take; a page waits for no process longer than this."""


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """What /healthz says."""

    status: str
    roles: list[str]
    redis: str
    version: str
    detail: str = ""
    replicas_in_sync: int | None = None
    """Of Redis, where it says so."""
    sentinels_reachable: int | None = None
    """Where the address names any."""


class Seen(NamedTuple):
    """A process as it was seen at a moment. `trouble` says what could not be had of it, and why;
    `subscribers` is None where they were not asked for, or could not be had."""

    name: str
    roles: Sequence[str]
    health: Health | None = None
    sample: Sample | None = None
    subscribers: Sequence[Subscriber] | None = None
    trouble: str = ""


Look = Callable[[bool], Awaitable[Seen]]
"""Looks at a process, `closely` with its subscribers. Raises nothing: what is wrong is told."""


def look_here(
    health: Callable[[], Health], metrics: Metrics, hub: Hub | None, groups: Groups | None
) -> Look:
    """Looks at this process."""

    async def look(closely: bool) -> Seen:
        state = health()
        seen = Seen("this process", state.roles, state)
        try:
            async with asyncio.timeout(LOOK_S):
                # In a thread, because of workers, whose values are in files.
                text = (await asyncio.to_thread(metrics.exposition)).decode()
                seen = seen._replace(sample=read_sample(text, time.monotonic()))
                if closely and hub is not None and groups is not None:
                    seen = seen._replace(subscribers=await subscribers(hub, groups))
        except TimeoutError:
            if seen.sample is None:
                return seen._replace(trouble=f"its metrics: not read within {LOOK_S:g} s")
            return seen._replace(trouble="its subscribers: Redis does not answer")
        except (OSError, RuntimeError, ValueError) as error:  # a worker that ends takes files along
            return seen._replace(trouble=f"its metrics: {error}")
        return seen

    return look


class Watched:
    """A process: as it was seen last, and its samples, the oldest first."""

    def __init__(self, look: Look) -> None:
        self.seen = Seen("", ())
        self.samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._look = look

    async def refresh(self, closely: bool) -> None:
        """Looks at it."""
        self.seen = await self._look(closely)
        sample = self.seen.sample
        # Two that are too close together would make a rate of chance.
        if sample and (not self.samples or sample.at - self.samples[-1].at >= EVERY_S / 2):
            self.samples.append(sample.sharing(self.samples[-1]) if self.samples else sample)


class Watch:
    """All processes behind a page. Those who watch at the same time share one look."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self._watched = [Watched(look) for look in looks]
        self._looking = asyncio.Lock()
        self._seen_at = self._closely_at = float("-inf")

    async def run(self) -> None:
        """Takes a sample now and then, for ever, so that there is a past to show."""
        while True:
            await self._refresh(IDLE_S / 2, closely=False)
            await asyncio.sleep(IDLE_S)

    async def now(self) -> Sequence[Watched]:
        """The processes with their subscribers, as they were at most a second ago."""
        await self._refresh(EVERY_S / 2, closely=True)
        return self._watched

    async def _refresh(self, age_s: float, *, closely: bool) -> None:
        async with self._looking:
            if time.monotonic() - (self._closely_at if closely else self._seen_at) < age_s:
                return
            await asyncio.gather(*[each.refresh(closely) for each in self._watched])
            self._seen_at = time.monotonic()
            if closely:
                self._closely_at = self._seen_at


def of_role(watched: Sequence[Watched], role: str) -> Watched | None:
    """The process that has a role."""
    return next((each for each in watched if role in each.seen.roles), None)
