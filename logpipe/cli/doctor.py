"""`logpipe doctor` as a command."""

import os
import sys
from typing import TYPE_CHECKING

import click

from logpipe.cli.common import CONTEXT, fail, local_url, show_json, tokens_of

if TYPE_CHECKING:
    from logpipe.doctor.checks import Finding
    from logpipe.doctor.look import Target


@click.command("doctor", context_settings=CONTEXT)
@click.argument("url", required=False, envvar="URL")
@click.option(
    "--distributor-url", metavar="URL", help="Where the distributor is.  [default: that of URL]"
)
@click.option("--token", metavar="TOKEN", help="To read.  [default: the first of READ_TOKENS]")
@click.option(
    "--ingest-token", metavar="TOKEN", help="To send.  [default: the first of INGEST_TOKENS]"
)
@click.option("--json", "as_json", is_flag=True, help="The findings as a JSON list.")
def command(
    url: str | None,
    distributor_url: str | None,
    token: str | None,
    ingest_token: str | None,
    *,
    as_json: bool,
) -> None:
    """Examine the deployment at URL from outside, as senders and readers meet it.

    The first of ADMIN_TOKENS, where they are set, is shown for /metrics. An event goes in by each
    protocol (source `doctor`) and must come out of the stream.
    Exit 1 when anything is wrong (✗); a warning (!) is not. Without URL it is this machine.
    """
    target = _target(url, distributor_url, token, ingest_token)
    findings = _examined(target)
    if as_json:
        import msgspec

        show_json(msgspec.json.encode(findings).decode())
    else:
        _tell(findings)
    from logpipe.doctor.report import sound

    sys.exit(0 if sound(findings) else 1)


def _target(
    url: str | None, distributor_url: str | None, token: str | None, ingest_token: str | None
) -> "Target":
    from logpipe.doctor.look import Target

    settings = tokens_of(os.environ)
    collector = _base("URL", url or local_url())
    distributor = _base("--distributor-url", distributor_url or collector)
    ingest_token = ingest_token or "".join(settings.ingest_tokens[:1])
    read_token = token or "".join(settings.read_tokens[:1])
    admin_token = "".join(settings.admin_tokens[:1])
    return Target(collector, distributor, ingest_token, read_token, admin_token)


def _base(option: str, url: str) -> str:
    from logpipe.client.connection import base_url

    try:
        return base_url(url)
    except ValueError as error:
        fail(f"{option} {url}: {error}", 2)


def _examined(target: "Target") -> "list[Finding]":
    import asyncio

    from logpipe.doctor.checks import judge
    from logpipe.doctor.look import examine

    try:
        return judge(asyncio.run(examine(target)))
    except KeyboardInterrupt:
        sys.exit(130)


def _tell(findings: "list[Finding]") -> None:
    from logpipe.doctor.report import lines
    from logpipe.output import wants_color

    color = wants_color("auto", os.environ, terminal=sys.stdout.isatty())
    for line in lines(findings, color=color):
        click.echo(line, color=color)
