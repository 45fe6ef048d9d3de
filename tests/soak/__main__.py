"""Runs the pipeline under load and faults, and judges what every reader was told.

A Valkey that syncs each append, a collector, two distributors with small windows; a writer of 2,000
events/s; thirty readers that drop and hop between the distributors by Last-Event-ID, some of which
stall; a consumer group of four. All processes are killed with -9 in turn and started again.
"""

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from tests.helpers import end_in_order
from tests.servers import Valkey
from tests.soak.judge import Ledger, group_offences, offences, wrong_counts
from tests.soak.processes import Child, Engine
from tests.soak.readers import Plan, Reader, Worker
from tests.soak.writer import Writer

RATE = 2_000
"""Events a second."""
READERS = 30
WORKERS = 4
SOURCES = 10
PADDING = "x" * 300
SETTINGS = {
    "SUBSCRIBER_QUEUE_LEN": "1000",
    "TRIM_MAXLEN": "10000",
    "PENDING_IDLE_MS": "2000",
    "HEARTBEAT_S": "1",
    "LOG_LEVEL": "warning",
}
AT_THE_END_S = 60.0
"""How long readers have to come to the last event once the faults have ended."""
BROKEN_END_S = 5.0
"""The same for the control, some of whose readers never will."""


def event(number: int) -> dict[str, Any]:
    """An event whose source, level and text follow from its number."""
    return {
        "source": f"s{number % SOURCES}",
        "level": "error" if number % 7 == 0 else "info",
        "message": f"{'needle' if number % 50 == 0 else 'hay'} {PADDING}",
        "metadata": {"n": number},
    }


def plans() -> list[Plan]:
    """What each reader does."""
    special = [
        Plan({}, lambda _: True, stays_s=20, stalls_s=4),
        Plan({}, lambda _: True, stays_s=60, stalls_s=20),
        Plan({}, lambda _: True, stays_s=15, stalls_s=14),
        Plan({"since": "earliest"}, lambda _: True),
        Plan({"q": "level>=error"}, lambda n: n % 7 == 0),
        Plan({"q": "needle"}, lambda n: n % 50 == 0, stays_s=1),
        Plan({"q": "n:-1"}, lambda _: False),
        Plan({}, lambda _: True, ndjson=True),
        Plan({}, lambda _: True, ndjson=True, stays_s=1),
    ]
    rest = [
        Plan({"source": f"s{n % SOURCES}"}, lambda x, n=n: x % SOURCES == n % SOURCES, n % 3 == 0)  # type: ignore[misc]
        for n in range(READERS - len(special))
    ]
    return special + rest


class Soak:
    """One run."""

    def __init__(self, seconds: float, seed: int, broken: bool, folder: Path, valkey: Valkey):
        self.seconds = seconds
        self.patience_s = BROKEN_END_S if broken else AT_THE_END_S
        self.chance = random.Random(seed)
        self.ledger = Ledger()
        self.kills: Counter[str] = Counter()
        environ = {**SETTINGS, "REDIS_ADDR": valkey.url}
        log = folder / "logpipe.log"
        self.log = log
        self.collector = Child("collector", "logpipe", environ, log)
        self.distributors = [
            Child(
                "distributor",
                "tests.soak.broken" if broken else "logpipe",
                {**environ, "CONSUMER_NAME": f"dist-{number}"},
                log,
            )
            for number in (1, 2)
        ]
        self.engine = Engine(valkey)
        self.urls = [child.url for child in self.distributors]
        self.writer = Writer(self.collector.url, self.ledger, event, RATE)
        self.readers = [
            Reader(f"reader {number} {plan.query}", plan, self.urls, self._random())
            for number, plan in enumerate(plans())
        ]
        shared = Plan(
            {"delivery": "shared", "group": "workers", "since": "earliest"}, bool, leaves=False
        )
        self.workers = [
            Worker(f"worker {number}", shared, self.urls, self._random())
            for number in range(WORKERS)
        ]

    def _random(self) -> random.Random:
        return random.Random(self.chance.random())

    async def run(self) -> list[str]:
        """The offences."""
        children = [self.collector, *self.distributors]
        try:
            for child in children:
                await child.start()
            for child in children:
                await child.ready()
            await self._load()
        finally:
            for child in children:
                await child.kill()
        return [*self._offences()]

    async def _load(self) -> None:
        reading = [asyncio.create_task(each.run()) for each in (*self.readers, *self.workers)]
        while not all(reader.history.begin for reader in self.readers):
            await asyncio.sleep(0.05)
        writing = asyncio.create_task(self.writer.run())
        try:
            await self._chaos()
            self.writer.stopping = True
            await writing
            await self._settle()
        finally:
            for task in (*reading, writing):
                task.cancel()
            await asyncio.wait((*reading, writing))
        for task in reading:
            if not task.cancelled():
                task.result()

    async def _chaos(self) -> None:
        """Kills each process in turn."""
        end = time.monotonic() + self.seconds
        order: list[Child | Engine] = [
            self.distributors[0],
            self.engine,
            self.distributors[1],
            self.collector,
        ]
        while (left := end - time.monotonic()) > 0:
            await self._watch(min(left, self.chance.uniform(2, 6)))
            if time.monotonic() > end - 2:
                return
            victim = order[sum(self.kills.values()) % len(order)]
            await victim.kill()
            self.kills[victim.role] += 1
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            await victim.start()

    async def _watch(self, seconds: float) -> None:
        """Waits, and says what goes on."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 1))
            _show(f"{len(self.ledger.ids):,} events, {self._delivered:,} received, {self._killed}")

    async def _settle(self) -> None:
        """Waits until every reader has come to the last event, and the group has them all."""
        for child in (self.collector, *self.distributors):
            await child.ready()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience_s):
                while not self._settled():
                    await asyncio.sleep(0.2)

    def _settled(self) -> bool:
        last = self.ledger.ids[-1]
        if any(reader.at < last for reader in self.readers):
            return False
        return not [*group_offences(*self._group, self.ledger)]

    @property
    def _group(self) -> tuple[Counter[int], list[Any]]:
        received = sum((worker.received for worker in self.workers), Counter())
        return received, [gap for worker in self.workers for gap in worker.history.gaps]

    @property
    def _delivered(self) -> int:
        return sum(len(reader.history.received) for reader in (*self.readers, *self.workers))

    @property
    def _killed(self) -> str:
        return ", ".join(f"{role} killed {n} times" for role, n in self.kills.items())

    def _offences(self) -> Any:
        for reader in self.readers:
            if reader.at < self.ledger.ids[-1]:
                yield f"{reader.history.name}: has come no further than {reader.at}"
            for offence in offences(reader.history, self.ledger):
                yield f"{reader.history.name}: {offence}"
        received, gaps = self._group
        for offence in (
            *group_offences(received, gaps, self.ledger),
            *wrong_counts((), self.ledger),
        ):
            yield f"the group: {offence}"

    def summary(self) -> str:
        """What the run was like."""
        gaps = [gap for reader in self.readers for gap in reader.history.gaps]
        reasons = Counter(gap.reason for gap in gaps)
        unknown = sum(gap.missing is None for gap in gaps)
        received, group_gaps = self._group
        twice = sum(count - 1 for count in received.values())
        everyone = (*self.readers, *self.workers)
        connections = f"{sum(reader.connections for reader in everyone):,} connections"
        events, delivered = f"{len(self.ledger.ids):,}", f"{self._delivered:,}"
        lines = (
            f"{events} events acknowledged, {self.writer.repeated} requests repeated",
            f"{len(self.readers)} readers, {len(self.workers)} workers, {connections}",
            f"{delivered} events received; {self._killed or 'nothing killed'}",
            f"gaps told: {dict(reasons)}, of which {unknown} could not be counted",
            f"the group: {len(received):,} events, {twice} twice or more, {len(group_gaps)} gaps",
        )
        return "\n".join(lines)


def _show(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)
    elif int(time.monotonic()) % 10 == 0:
        click.echo(line, err=True)


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long faults go on.")
@click.option(
    "--seed", default=1, show_default=True, help="What the faults and habits follow from."
)
@click.option("--break", "broken", type=click.Choice(["catch-up"]), help="The control: must fail.")
def main(seconds: float, seed: int, broken: str | None) -> None:
    """Runs the pipeline under load and faults, and judges what every reader was told."""
    end_in_order()
    with (
        tempfile.TemporaryDirectory(prefix="logpipe-soak-") as folder,
        Valkey.started("--appendonly", "yes", "--appendfsync", "always", "--save", "") as valkey,
    ):
        soak = Soak(seconds, seed, bool(broken), Path(folder), valkey)
        found = asyncio.run(soak.run())
        if found and not broken:
            click.echo(soak.log.read_text()[-3000:], err=True)
    _show("")
    click.echo(f"seed {seed}, {seconds:g} s\n{soak.summary()}")
    for line in found[:20]:
        click.echo(f"  BROKEN: {line}")
    click.echo(f"{len(found)} offences" if found else "the promise was kept")
    sys.exit(bool(found) != bool(broken))


if __name__ == "__main__":
    main()
