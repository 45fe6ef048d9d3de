"""`make chaos`: every trial of the table, its control, and whether each came out as it must."""

import asyncio
import sys
import time

import click

from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.trial import Result, tried
from tests.helpers import end_in_order

AT_ONCE = 3
"""Trials of short scenarios at a time: most of them wait."""
LONG_AT_ONCE = 2
"""Scenarios of many cycles at a time: they start processes all the time."""


class Suite:
    """One run over the table."""

    def __init__(self, cycles: int, seed: int, verbose: bool) -> None:
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self._cycles, self._seed, self._verbose = cycles, seed, verbose

    async def run(self, names: list[str]) -> None:
        """The long ones first, then the short ones."""
        long = [name for name in names if SCENARIOS[name].lanes]
        await self._some(long, LONG_AT_ONCE)
        await self._some([name for name in names if name not in long], AT_ONCE)

    async def _some(self, names: list[str], at_once: int) -> None:
        gate = asyncio.Semaphore(at_once)

        async def one(name: str) -> None:
            async with gate:
                await self._one(name, SCENARIOS[name])

        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(one(name))

    async def _one(self, name: str, scenario: Scenario) -> None:
        if why := scenario.missing():
            self.skipped.append(name)
            click.echo(f"SKIPPED  {name}: {scenario.says}: NOT TESTED, {why}")
            return
        cycles = self._cycles if scenario.lanes else scenario.times
        result = await tried(scenario, cycles, self._seed)
        kinds = {offence.kind for offence in result.found}
        well = scenario.breaks in kinds if scenario.breaks else not kinds
        if not well:
            self.failed.append(name)
        click.echo(_line(name, scenario, result, well))
        if not well or self._verbose:
            self._explain(result)

    def _explain(self, result: Result) -> None:
        for offence in result.found[:8]:
            click.echo(f"           {offence.kind}: {offence.text}")
        if self._verbose:
            click.echo(result.log, err=True)


def _line(name: str, scenario: Scenario, result: Result, well: bool) -> str:
    word = ("noticed" if well else "UNSEEN") if scenario.breaks else ("kept" if well else "BROKEN")
    times = f", {result.cycles} times" if result.cycles > 1 else ""
    notes = "".join(f", {note}" for note in result.notes)
    return (
        f"{word:<8} {name}: {scenario.says}{times}\n"
        f"           {result.acked:,} acked, {result.delivered:,} delivered, {result.gaps} gaps,"
        f" outage {result.outage_s:.1f} s, fresh after {result.fresh_s:.2f} s"
        f" ({result.seconds:.0f} s){notes}"
    )


def _chosen(only: tuple[str, ...]) -> list[str]:
    """These and their controls; all where none is named."""
    if not only:
        return list(SCENARIOS)
    found = [name for name in SCENARIOS if any(word in name for word in only)]
    return [
        *dict.fromkeys([*found, *(SCENARIOS[n].control for n in found if SCENARIOS[n].control)])
    ]


@click.command()
@click.option("--only", multiple=True, help="Scenarios whose name has this in it, and controls.")
@click.option("--cycles", default=200, show_default=True, help="Kills of each long scenario.")
@click.option("--seed", default=1, show_default=True, help="What loads and moments follow from.")
@click.option("--verbose", is_flag=True, help="Show what was found, and the logs of what broke.")
def main(only: tuple[str, ...], cycles: int, seed: int, verbose: bool) -> None:
    """Does faults to real processes, and judges from outside whether the promises were kept."""
    end_in_order()
    began = time.monotonic()
    suite, names = Suite(cycles, seed, verbose), _chosen(only)
    if not names:
        raise click.UsageError("no scenario has such a name")
    asyncio.run(suite.run(names))
    controls = sum(SCENARIOS[name].breaks is not None for name in names)
    click.echo(
        f"{len(names) - controls} scenarios, {controls} controls, seed {seed}, {cycles} cycles,"
        f" {time.monotonic() - began:.0f} s; {len(suite.skipped)} skipped"
    )
    click.echo(f"FAILED: {', '.join(suite.failed)}" if suite.failed else "every promise was kept")
    sys.exit(bool(suite.failed))


if __name__ == "__main__":
    main()
