"""`make attack`: what a hostile client does to a real process, and what honest ones notice."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.attack.altered import ALTERATIONS
from tests.attack.attacks import ATTACKS, SLICE
from tests.attack.judge import HEAD, Row, line
from tests.attack.trial import Times, Trial, Watched, shown
from tests.helpers import end_in_order
from tests.servers import Valkey

SLICE_TIMES = Times(attack=3.0, warm=0.7, settle=0.7)
SLICE_LATE = 2
"""Answers of each kind that may be late in the slice: a machine can stop for a moment."""
BREAK_TIMES = Times(attack=12.0, warm=1.0, settle=2.0)


def _show(what: str, watched: Watched) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{shown(what, watched)}", nl=False, err=True)


async def _play(names: list[str], times: Times, late: int, altered: str) -> list[Row]:
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="logpipe-attack-") as folder,
        Valkey.started() as valkey,
    ):
        for name in names:
            trial = Trial(name, valkey, Path(folder), times, _show, altered)
            row = await trial.run(late)
            rows.append(row)
            if sys.stderr.isatty():
                click.echo("\r\x1b[K", nl=False, err=True)
            click.echo(line(row))
            for found in row.found:
                click.echo(f"    {found}")
            if row.found:
                click.echo(f"    answers: {dict(row.answers)}")
            if row.found and not altered:
                click.echo(trial.log.read_text()[-2_000:], err=True)
    return rows


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*ATTACKS]), help="Of these alone.")
@click.option("--list", "listed", is_flag=True, help="Print the attacks and play none.")
@click.option("--seconds", default=60.0, show_default=True, help="How long an attack goes on.")
@click.option(
    "--settle", type=float, help="Seconds after which memory is measured again [as --seconds]."
)
@click.option("--slice", "sliced", is_flag=True, help="The most important for a few seconds each.")
@click.option(
    "--break",
    "broken",
    type=click.Choice([*ALTERATIONS]),
    help="The control: play its attack while one bound is removed; must fail.",
)
def main(
    only: tuple[str, ...],
    listed: bool,
    seconds: float,
    settle: float | None,
    sliced: bool,
    broken: str | None,
) -> None:
    """Plays attacks against a real process, and judges what honest clients beside it see."""
    if listed:
        for name, attack in ATTACKS.items():
            click.echo(f"{name:<20} {attack.says}")
        return
    end_in_order()
    names = list(only) or [*ATTACKS]
    times, late = Times(attack=seconds, settle=seconds if settle is None else settle), 0
    if broken:
        names = list(only) or [name for name in ATTACKS if ATTACKS[name].control == broken]
        times, late = BREAK_TIMES, SLICE_LATE
    elif sliced:
        names, times, late = list(only) or [*SLICE], SLICE_TIMES, SLICE_LATE
    began = time.monotonic()
    click.echo(HEAD)
    rows = asyncio.run(_play(names, times, late, broken or ""))
    failed = [row.name for row in rows if row.found]
    click.echo(
        f"{len(rows)} attacks in {time.monotonic() - began:.0f} s: "
        + (f"not held: {', '.join(failed)}" if failed else "all held")
    )
    sys.exit(len(failed) != len(rows) if broken else bool(failed))


if __name__ == "__main__":
    main()
