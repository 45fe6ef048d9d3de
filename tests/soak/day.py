"""A day's worth of events, reconnects and restarts of Redis in a quarter of an hour.

A Valkey that syncs each append, a collector, two distributors and a ui, none of which is ever
restarted: their memory, descriptors and tasks are what is judged, besides the promise. Progress is
counted in events, so that a slow machine takes longer and does the same.
"""

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import httpx

from tests.helpers import end_in_order, wait_until
from tests.servers import Valkey
from tests.soak.course import Batches, Course, Shares
from tests.soak.judge import Gap, parse_id
from tests.soak.measures import Level, memory_slope, quiet_level, resident_bytes
from tests.soak.processes import Child, Engine
from tests.soak.readers import Plan, Reader, Told
from tests.soak.writer import Writer

DAY_EVENTS = 4_320_000
"""50 a second for 24 hours."""
DAY_RECONNECTS = 20_000
DAY_RESTARTS = 100
REHEARSAL_EVENTS = 60_000
"""Sent before anything is measured: more than the stream keeps."""
REHEARSAL_RESTARTS = 5
STAMPEDE = 40
"""Readers that then read all of the stream at once. How many pooled connections to Redis a process
needs, and how much memory it may take at the most, shows when it was as busy as it can be once."""
RATE = 6_500
BATCH = 250
HOPPERS = 40
SOURCES = 100
WORKERS = 4
GROUP = "workers"
MAX_SLOPE = 1.0
"""Megabytes a million events."""
SPREAD = 2
"""By how many descriptors and tasks the end may differ from the start."""
WARM = 0.2
"""The part of the events after which memory has to stay what it is."""
AT_THE_END_S = 60.0
SAMPLE_S = 1.0
SETTINGS = {"HEARTBEAT_S": "1", "LOG_LEVEL": "warning", "PENDING_IDLE_MS": "5000"}
PADDING = "x" * 60


def event(number: int) -> dict[str, Any]:
    """An event whose source follows from its number."""
    return {
        "source": f"s{number % SOURCES}",
        "message": f"request took {number % 977} ms {PADDING}",
        "metadata": {"n": number},
    }


class _LeftError(OSError):
    """A reader leaves of its own accord."""


class Follower(Reader):
    """A reader judged as it reads, which leaves after every `stays` numbers."""

    def __init__(
        self, plan: Plan, urls: list[str], chance: random.Random, course: Course, stays: int = 0
    ) -> None:
        super().__init__(course.name, plan, urls, chance)
        self.course = course
        self._stays = stays
        self._leaves_at = self._later(0)

    def _later(self, number: int) -> int:
        return number + int(self._stays * self._chance.uniform(0.5, 1.5))

    def note(self, name: str, id_: str, told: Told) -> None:
        """Hands it to the judge."""
        number = told.metadata.n if told.metadata else None
        if number is None:
            super().note(name, id_, told)
            self._pass_on_gaps()
            return
        self.cursor = told.id
        self.course.event(parse_id(told.id), number)
        if self._stays and number >= self._leaves_at:
            self._leaves_at = self._later(number)
            raise _LeftError

    def _pass_on_gaps(self) -> None:
        for gap in self.history.gaps:
            self.course.gap(gap)
        self.history.gaps.clear()


class Sharer(Reader):
    """A worker of the group, which never leaves."""

    def __init__(self, urls: list[str], chance: random.Random, shares: Shares) -> None:
        query = {"delivery": "shared", "group": GROUP, "since": "earliest"}
        super().__init__("a worker", Plan(query, bool, leaves=False), urls, chance)
        self._shares = shares

    def note(self, name: str, id_: str, told: Told) -> None:
        """Hands it to the judge; the position is the group's."""
        if told.metadata is None:
            super().note(name, id_, told)
        else:
            self._shares.event(told.metadata.n)
        self.cursor = ""


class Day:
    """One run."""

    def __init__(
        self, events: int, reconnects: int, restarts: int, seed: int, folder: Path, valkey: Valkey
    ) -> None:
        self.events, self.restarts = events, restarts
        self.batches, self.shares = Batches(), Shares(events)
        self.restarted = 0
        self.samples: dict[str, list[tuple[int, int]]] = {}
        self.levels: dict[str, list[Level]] = {}
        self.pending: object = None
        self.seconds = 0.0
        self._folder, self._valkey = folder, valkey
        self._chance = random.Random(seed)
        self._children = self._processes()
        collector, first, second, _ = self._children.values()
        self.writer = Writer(collector.url, self.batches, event, RATE, BATCH)
        self._urls = [first.url, second.url]
        self.followers = [*self._whole(), *self._hoppers(HOPPERS * events // max(1, reconnects))]
        self.sharers = [Sharer(self._urls, self._random(), self.shares) for _ in range(WORKERS)]

    def _random(self) -> random.Random:
        return random.Random(self._chance.random())

    def _processes(self) -> dict[str, Child]:
        environ = {**SETTINGS, "REDIS_ADDR": self._valkey.url}
        collector = self._child("collector", "collector", environ)
        first = self._child("distributor", "dist-1", environ)
        second = self._child("distributor", "dist-2", environ)
        urls = {"COLLECTOR_URL": collector.url, "DISTRIBUTOR_URL": first.url}
        return {
            "collector": collector,
            "dist-1": first,
            "dist-2": second,
            "ui": self._child("ui", "ui", {**SETTINGS, **urls}),
        }

    def _child(self, role: str, name: str, environ: dict[str, str]) -> Child:
        environ = {**environ, "CONSUMER_NAME": name, "TASKS_FILE": str(self._folder / name)}
        return Child(role, "tests.soak.counted", environ, self._folder / f"{name}.log")

    def _whole(self) -> Iterator[Follower]:
        for ndjson in (False, True):
            plan = Plan({}, bool, ndjson, leaves=False)
            yield Follower(plan, self._urls, self._random(), Course(f"all, ndjson={ndjson}"))

    def _hoppers(self, stays: int) -> Iterator[Follower]:
        for number in range(HOPPERS):
            plan = Plan({"source": f"s{number}"}, bool, number % 3 == 0, leaves=False)
            course = Course(f"source s{number}", number, SOURCES)
            yield Follower(plan, self._urls, self._random(), course, stays)

    async def run(self) -> None:
        """All of it; what came of it is in the fields."""
        try:
            for child in self._children.values():
                await child.start()
            for child in self._children.values():
                await child.ready()
            async with self._reading(), self._looking():
                await self._write(REHEARSAL_EVENTS, REHEARSAL_RESTARTS)
                await self._stampede()
                await self._settle()
            await self._measure_levels()
            began = time.monotonic()
            async with self._reading(), self._looking():
                await self._write(self.events, self.restarts)
                self.seconds = time.monotonic() - began
                await self._settle()
            await self._measure_levels()
        finally:
            for child in self._children.values():
                await child.kill()

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        """Readers that come, and are gone at the end."""
        everyone = (*self.followers, *self.sharers)
        running = [asyncio.create_task(each.run()) for each in everyone]
        try:
            await wait_until(lambda: all(each.history.begin for each in everyone), "all are there")
            yield
        finally:
            for task in running:
                task.cancel()
            ended = await asyncio.gather(*running, return_exceptions=True)
        for problem in ended:
            if isinstance(problem, Exception):
                raise problem

    @contextlib.asynccontextmanager
    async def _looking(self) -> AsyncIterator[None]:
        """Someone has the page open, and memory is looked at."""
        page, memory = asyncio.create_task(self._page()), asyncio.create_task(self._sample())
        try:
            yield
        finally:
            for task in (page, memory):
                task.cancel()
            await asyncio.wait((page, memory))

    async def _page(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    url = f"{self._children['ui'].url}/ui/stream"
                    async with http.stream("GET", url) as answer:
                        async for _ in answer.aiter_raw():
                            pass
                await asyncio.sleep(0.5)

    async def _sample(self) -> None:
        shown = 0.0
        while True:
            for name, child in self._children.items():
                taken = self.batches.count, resident_bytes(child.pid)
                self.samples.setdefault(name, []).append(taken)
            if time.monotonic() - shown > 20:
                shown = time.monotonic()
                click.echo(f"{self.batches.count:,} events, {self.restarted} restarts", err=True)
            await asyncio.sleep(SAMPLE_S)

    async def _write(self, upto: int, restarts: int) -> None:
        """Sends events, and restarts Redis whenever a share of them is through."""
        begin, engine = self.batches.count, Engine(self._valkey)
        self.writer.stopping = False
        writing = asyncio.create_task(self.writer.run())
        try:
            for number in range(1, restarts + 1):
                await self._written(begin + (upto - begin) * number // (restarts + 1))
                await (engine.kill if number % 2 else engine.stop)()
                await engine.start()
                self.restarted += 1
            await self._written(upto)
        finally:
            self.writer.stopping = True
            await writing

    async def _stampede(self) -> None:
        """All distributors are read from the beginning, by many readers, each with its filter."""
        readers = [
            Reader("late", Plan(query, bool, leaves=False), [url], self._random())
            for number in range(STAMPEDE)
            for query in [{"since": "earliest", "source": f"s{number}"}]
            for url in self._urls
        ]
        upto = self.batches.last
        running = [asyncio.create_task(reader.run()) for reader in readers]
        arrived = "all have read all"
        await wait_until(lambda: all(reader.at >= upto for reader in readers), arrived, timeout=120)
        for task in running:
            task.cancel()
        await asyncio.wait(running)

    async def _written(self, count: int) -> None:
        await wait_until(lambda: self.batches.count >= count, f"{count:,} events", timeout=600)

    async def _settle(self) -> None:
        """Until everyone has everything; the judge says who has not."""
        with contextlib.suppress(AssertionError):
            await wait_until(lambda: not [*self._promise()], "all arrived", AT_THE_END_S)
        with contextlib.suppress(AssertionError):
            await wait_until(lambda: self._pending() == 0, "nothing is pending", AT_THE_END_S)
        self.pending = self._pending()

    def _pending(self) -> object:
        told: Any = self._valkey.client.xpending("logs", GROUP)
        return told["pending"]

    async def _measure_levels(self) -> None:
        """Descriptors and tasks of each process, once it is quiet."""
        for name, child in self._children.items():
            level = await quiet_level(child.pid, self._folder / name)
            self.levels.setdefault(name, []).append(level)

    def _gaps(self) -> list[Gap]:
        return [gap for each in self.sharers for gap in each.history.gaps]

    def _promise(self) -> Iterator[str]:
        for follower in self.followers:
            yield from follower.course.offences(self.batches)
        if missing := self.shares.missing(self.batches, self._gaps()):
            yield f"the group: {missing} events that nobody had"

    def offences(self) -> Iterator[str]:
        """What is wrong."""
        yield from self._promise()
        if self.pending != 0:
            yield f"the group: {self.pending} pending"
        for name in self._children:
            first, last = self.levels[name]
            if last.descriptors > first.descriptors + SPREAD or last.tasks > first.tasks + SPREAD:
                yield f"{name}: {first} at the start, {last} at the end"
            if not self.slope(name) <= MAX_SLOPE:
                yield f"{name}: memory rises by {self.slope(name):.2f} MB a million events"
            if "Traceback" in (self._folder / f"{name}.log").read_text():
                yield f"{name}: a traceback in its log"

    def slope(self, name: str) -> float:
        """Megabytes a million events."""
        return memory_slope(self.samples[name], int(WARM * self.events))

    def summary(self) -> Iterator[str]:
        """What the run was like."""
        rate = (self.batches.count - REHEARSAL_EVENTS) / self.seconds
        yield f"{self.batches.count:,} events in {self.seconds:.0f} s, {rate:,.0f}/s"
        connections = sum(each.connections for each in (*self.followers, *self.sharers))
        received = sum(each.course.received for each in self.followers)
        gaps = sum(len(each.course.gaps) for each in self.followers)
        yield f"{connections:,} connections, {self.restarted} restarts of Redis"
        yield f"{received:,} events received, {gaps} gaps; {self.writer.repeated} requests repeated"
        group_gaps = len(self._gaps())
        yield f"the group: {self.shares.twice} twice, {group_gaps} gaps, {self.pending} pending"
        for name, samples in self.samples.items():
            first, last = self.levels[name]
            sizes = f"{samples[0][1] / 1e6:.0f} MB, at the end {samples[-1][1] / 1e6:.0f} MB"
            slope = f"{self.slope(name):+.2f} MB a million events"
            held = f"descriptors {first.descriptors} → {last.descriptors}"
            held += f" and {first.pooled} → {last.pooled} to Redis"
            held += f", tasks {first.tasks} → {last.tasks}"
            yield f"{name}: {sizes}, {slope}; {held}"


@click.command()
@click.option("--events", default=DAY_EVENTS, show_default=True)
@click.option("--reconnects", default=DAY_RECONNECTS, show_default=True)
@click.option("--restarts", default=DAY_RESTARTS, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--curves", type=click.Path(path_type=Path), help="Where to write memory by events.")
def main(events: int, reconnects: int, restarts: int, seed: int, curves: Path | None) -> None:
    """Runs a day's worth of load, and judges the promise and what the processes take."""
    end_in_order()
    with (
        tempfile.TemporaryDirectory(prefix="logpipe-day-") as folder,
        Valkey.started("--appendonly", "yes", "--appendfsync", "always", "--save", "") as valkey,
    ):
        day = Day(events, reconnects, restarts, seed, Path(folder), valkey)
        asyncio.run(day.run())
        found = [*day.offences()]
    if curves:
        curves.write_text(json.dumps(day.samples))
    for line in day.summary():
        click.echo(line)
    for line in found[:20]:
        click.echo(f"  BROKEN: {line}")
    click.echo(f"{len(found)} offences" if found else "the promise was kept")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
