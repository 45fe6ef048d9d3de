"""`logpipe bench` as a command."""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from logpipe.cli.common import (
    CONTEXT,
    fail,
    local_url,
    loop_factory,
    show,
    show_json,
    tokens_of,
    url_option,
    visible,
)

if TYPE_CHECKING:
    from logpipe.bench.deployment import Plan
    from logpipe.settings import Settings

_COUNT = click.IntRange(min=1)
_SOME = click.FloatRange(min=0, min_open=True)


@click.command("bench", context_settings=CONTEXT)
@url_option
@click.option(
    "--ingest-url", metavar="URL", help="Where the collector is.  [default: that of --url]"
)
@click.option(
    "--only",
    type=click.Choice(["single", "batch", "fan-out", "latency"]),
    multiple=True,
    help="Measure only this; repeatable.",
)
@click.option(
    "--seconds", type=_SOME, default=5.0, show_default=True, help="Length of each measurement."
)
@click.option("--connections", type=_COUNT, default=64, show_default=True, help="Of the senders.")
@click.option("--batch", type=_COUNT, default=1000, show_default=True, help="Events of a batch.")
@click.option("--readers", type=_COUNT, default=1000, show_default=True, help="Of the fan-out.")
@click.option(
    "--rate",
    type=_SOME,
    default=1000.0,
    show_default=True,
    help="Events a second of the fan-out.",
)
@click.option("--ingest-rate", type=_SOME, help="Events a second to send.  [default: all it takes]")
@click.option("--size", type=_COUNT, default=200, show_default=True, help="Bytes of an event.")
@click.option("--yes", is_flag=True, help="Push out the events that the stream holds.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON a measurement.")
def command(
    url: str | None, ingest_url: str | None, *, yes: bool, as_json: bool, **asked: Any
) -> None:
    """Measure a running deployment: how fast events go in and come out, how late, and whether all
    arrive.

    It fills the stream with events of its own (source `bench`), so that older ones are trimmed.
    The first of INGEST_TOKENS, READ_TOKENS and ADMIN_TOKENS is sent. Exit 1 when anything was lost
    or refused.
    """
    import asyncio

    from logpipe.bench.deployment import NAMES, Plan, UnfitError, address_of

    url = url or local_url()
    ingest_url = ingest_url or url
    settings = tokens_of(os.environ)
    for option, given_url in (("--url", url), ("--ingest-url", ingest_url)):
        try:
            address_of(given_url)
        except ValueError as error:
            fail(f"{option} {given_url}: {error}", 2)
    plan = Plan(names=asked.pop("only") or NAMES, **asked)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            good = runner.run(_run(ingest_url, url, settings, plan, yes=yes, as_json=as_json))
    except UnfitError as error:
        _progress("", 1)
        fail(visible(str(error)), 1)
    sys.exit(0 if good else 1)


async def _run(
    ingest_url: str, url: str, settings: "Settings", plan: "Plan", *, yes: bool, as_json: bool
) -> bool:
    """Whether nothing went wrong."""
    import msgspec

    from logpipe.bench.deployment import Deployment, UnfitError
    from logpipe.bench.report import lines, troubles
    from logpipe.client.connection import http_client

    good = True
    async with http_client() as http:
        deployment = Deployment(http, ingest_url, url, settings)
        if not yes and await deployment.holds_events_of_others():
            raise UnfitError(
                f"the stream at {url} holds events, which a benchmark pushes out:"
                " --yes if that may be"
            )
        async for each in deployment.measure(plan, _progress):
            _progress("", 1)
            good = good and not troubles(each)
            if as_json:
                show_json(msgspec.json.encode(each).decode())
            else:
                for line in lines(each):
                    show(line)
    return good


def _progress(name: str, part: float) -> None:
    """Draws the part of a measurement that is done, on a terminal; no name erases it."""
    if sys.stderr.isatty():
        from logpipe.terminal import bar

        line = f"{name:<8} {bar(part)}" if name else ""
        click.echo(f"\r\x1b[K{line}", err=True, nl=False)
