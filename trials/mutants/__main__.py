"""Measures which small faults in the core no test notices.

Each mutant is one change to a module, in a copy of the working tree, where the tests that cover the
module run until one fails. Cosmic Ray makes the mutants of Python; it does not run them, since its
runner leaves the servers that tests have started when a mutant times out or the run is interrupted.
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from tests.helpers import end_in_order
from trials.mutants import report, table
from trials.mutants.copies import Copy
from trials.mutants.mutants import Mutant, places, sample, unmatched

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / ".mutants"

LEAST, LEAST_MODULE = 92.0, 85.0
"""The scores below which a run fails, in percent: of all modules, and of each."""

PATIENCE, SLACK_S = 3.0, 10.0
"""A mutant has so many times the time of the unchanged module, and the seconds besides."""


class BaselineError(Exception):
    """The unchanged tests fail."""


class Run:
    """One measurement."""

    def __init__(self, rows: Sequence[table.Row], most: int | None, seed: int) -> None:
        self.rows, self.most, self.seed = list(rows), most, seed
        content = table.read("table.toml")
        self.skip: list[str] = content["skip"]
        self.known = table.equivalents(content["modules"])
        self.measured: list[report.Measured] = []
        self.stale: list[table.Equivalent] = []

    async def run(self, copies: Sequence[Copy]) -> None:
        """Measures all rows, each in one of the copies. Raises `BaselineError`."""
        waiting = iter(self.rows)

        async def work(copy: Copy) -> None:
            for row in waiting:
                await self._measure(row, copy)

        await asyncio.gather(*map(work, copies))

    async def _measure(self, row: table.Row, copy: Copy) -> None:
        baseline = await copy.run(row.tests, self.seed, compiled=True)
        if baseline.outcome != "passed":
            raise BaselineError(
                f"{row.name}: the tests fail without a mutant\n{baseline.output[-3000:]}"
            )
        limit_s = PATIENCE * baseline.seconds + SLACK_S
        found = list(places(row, copy.tree, self.skip))
        known = [each for each in self.known if each.module == row.name]
        self.stale += unmatched(found, known)
        mutants = sample(found, self.most, f"{self.seed} {row.name}")
        _show(f"{row.name}: {len(mutants)} of {len(found)} places, {baseline.seconds:.1f} s each")
        tried: list[report.Tried] = []
        for mutant in mutants:
            fate: report.Fate = "equivalent"
            seconds = 0.0
            if not any(each.is_it(mutant.before, mutant.after) for each in known):
                fate, seconds = await self._try(mutant, row, copy, limit_s)
            where = f"{mutant.path}:{mutant.line}"
            tried.append(report.Tried(where, mutant.before, mutant.after, fate, seconds))
            _show(f"{row.name} {len(tried)}/{len(mutants)}: {where} {fate}, {seconds:.1f} s")
        control = await copy.run(row.tests, self.seed, limit_s)
        passed = control.outcome == "passed"
        self.measured.append(report.Measured(row.name, tried, passed, baseline.seconds))

    async def _try(
        self, mutant: Mutant, row: table.Row, copy: Copy, limit_s: float
    ) -> tuple[report.Fate, float]:
        with copy.changed(mutant.path, mutant.code):
            ran = await copy.run(row.tests, self.seed, limit_s)
        fates: dict[str, report.Fate] = {"passed": "survived", "failed": "killed"}
        return fates.get(ran.outcome, "timed out"), ran.seconds

    def write(self, folder: Path) -> str:
        """Writes what was measured so far as Markdown, which is returned, and as JSON."""
        order = [row.name for row in self.rows]
        measured = sorted(self.measured, key=lambda each: order.index(each.module))
        parts = [
            f"seed {self.seed}, {self.most or 'all'} mutants a module",
            report.table(measured),
            report.survivors(measured) or "no survivors",
            *(
                f"equivalent.toml: {e.module}: no mutant {e.line!r} -> {e.change!r}"
                for e in self.stale
            ),
            report.controls(measured),
        ]
        text = "\n\n".join(parts) + "\n"
        folder.mkdir(exist_ok=True)
        (folder / "report.md").write_text(text, encoding="utf-8")
        content = {"seed": self.seed, "modules": measured}
        (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(content)))
        return text


def _show(line: str) -> None:
    click.echo(line, err=True)


@click.command()
@click.option("--modules", default="", help="Names of the table's modules, with spaces between.")
@click.option(
    "--sample", "most", default=25, show_default=True, help="Mutants of a module; 0: all."
)
@click.option("--seed", default=1, show_default=True, help="What the sample follows from.")
@click.option("--copies", "count", default=1, show_default=True, help="Modules tried at a time.")
@click.option("--least", default=LEAST, show_default=True, help="The least score of all.")
@click.option("--least-module", default=LEAST_MODULE, show_default=True, help="That of a module.")
def main(modules: str, most: int, seed: int, count: int, least: float, least_module: float) -> None:
    """Measures which small faults in the core no test notices; fails below the least scores."""
    end_in_order()
    try:
        wanted = modules.split()
        run = Run(table.rows(table.read("table.toml")["modules"], ROOT, wanted), most or None, seed)
    except table.TableError as error:
        raise click.ClickException(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="lm-") as folder:
        try:
            asyncio.run(run.run([Copy(ROOT, Path(folder, str(n))) for n in range(count)]))
        except BaselineError as error:
            raise click.ClickException(str(error)) from None
        finally:
            click.echo(run.write(RESULTS), nl=False)
    found = report.shortfalls(run.measured, least, least_module)
    for line in found:
        click.echo(f"TOO LOW: {line}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
