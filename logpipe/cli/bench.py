"""`logpipe bench` as a command."""

import os
import sys
from typing import Any

import click

from logpipe.cli.common import (
    CONTEXT,
    fail,
    local_url,
    show,
    show_json,
    tokens_of,
    url_option,
    visible,
)

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
    import msgspec

    from logpipe.bench.deployment import NAMES, Plan, UnfitError, foreign_events, measure
    from logpipe.bench.report import lines, whole
    from logpipe.bench.target import address_of, logpipe_at

    settings = tokens_of(os.environ)
    ingest_token, read_token, admin_token = (
        "".join(t[:1])
        for t in (settings.ingest_tokens, settings.read_tokens, settings.admin_tokens)
    )
    url = url or local_url()
    for option, given in (("--url", url), ("--ingest-url", ingest_url or url)):
        try:
            address_of(given)
        except ValueError as error:
            fail(f"{option} {given}: {error}", 2)
    target = logpipe_at(ingest_url or url, url, ingest_token=ingest_token, read_token=read_token)
    target = target._replace(admin_token=admin_token)
    plan = Plan(names=asked.pop("only") or NAMES, **asked)
    done = []
    try:
        if not yes and foreign_events(target, read_token):
            fail(
                f"the stream at {url} holds events, which a benchmark pushes out:"
                " --yes if that may be",
                1,
            )
        for each in measure(target, plan, _progress, read_token):
            _progress("", 1)
            done.append(each)
            if as_json:
                show_json(msgspec.json.encode(each).decode())
                continue
            for line in lines([each]):
                show(line)
    except UnfitError as error:
        _progress("", 1)
        fail(visible(str(error)), 1)
    sys.exit(0 if whole(done) else 1)


def _progress(name: str, part: float) -> None:
    """How much of a measurement is done, on a terminal; no name wipes it away."""
    if sys.stderr.isatty():
        from logpipe.terminal import bar

        line = f"{name:<8} {bar(part)}" if name else ""
        click.echo(f"\r\x1b[K{line}", err=True, nl=False)
