"""`make fuzz`: hostile bodies and byte streams at a running logpipe, and what it made of them."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import get_args

import click

from logpipe.terminal import bar
from tests.fuzz.requests import request
from tests.fuzz.run import MAX_GROWTH, Kind, Plan, fuzzed
from tests.fuzz.streams import stream
from tests.helpers import end_in_order
from tests.servers import Valkey
from tests.soak.measures import MEGA


def _progress(part: float) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{bar(part)} {part:.1%}", err=True, nl=False)


def _shown(kind: str, seed: int, number: int) -> None:
    if kind == "body":
        sys.stdout.buffer.write(request(seed, number).on_the_wire())
    else:
        for piece in stream(seed, number).pieces:
            sys.stdout.buffer.write(piece)


@click.command()
@click.option(
    "--bodies", default=1_000_000, show_default=True, help="Requests with mutated bodies."
)
@click.option("--streams", default=100_000, show_default=True, help="Streams that are hardly HTTP.")
@click.option("--seed", default=1, show_default=True, help="What all cases follow from.")
@click.option("--first", default=0, show_default=True, help="The number of the first of each kind.")
@click.option("--max-growth", default=MAX_GROWTH / MEGA, show_default=True, help="MB of memory.")
@click.option("--module", default="logpipe", show_default=True, help="What is run in its place.")
@click.option("--show", type=click.Choice(get_args(Kind)), help="Only print the case --first.")
def main(
    bodies: int,
    streams: int,
    seed: int,
    first: int,
    max_growth: float,
    module: str,
    show: str | None,
) -> None:
    """Sends hostile input to a real process, and judges its answers, its log and its memory."""
    if show:
        _shown(show, seed, first)
        return
    end_in_order()
    click.echo(f"seed {seed}: {bodies:,} bodies, {streams:,} streams, from number {first}")
    with tempfile.TemporaryDirectory(prefix="logpipe-fuzz-") as folder, Valkey.started() as valkey:
        plan = Plan(bodies, streams, seed, first, max_growth * MEGA, module)
        verdict = asyncio.run(fuzzed(plan, valkey.url, Path(folder), _progress))
    _progress(1.0)
    if sys.stderr.isatty():
        click.echo("", err=True)
    for line in verdict.lines():
        click.echo(line)
    for line in verdict.found:
        click.echo(f"  FOUND: {line}")
    count = len(verdict.found) + verdict.uncounted
    click.echo(f"{count} findings" if count else "nothing was found")
    sys.exit(bool(count))


if __name__ == "__main__":
    main()
