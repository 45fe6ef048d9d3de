"""`logpipe send` as a command."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logpipe.cli.common import CONTEXT, fail, local_url, over_echo, settings_of, url_option

if TYPE_CHECKING:
    from logpipe.send.reading import Wanted


@click.command("send", context_settings=CONTEXT)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@url_option
@click.option("--source", metavar="NAME", help="Of the events.  [default: the file's name, stdin]")
@click.option("--level", metavar="LEVEL", default="INFO", show_default=True, help="Of text lines.")
@click.option("--detect-level", is_flag=True, help="That which a text line begins with, if any.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="auto: a line that is an event as JSON is sent as it is, others are text.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on for ever as tail -F, through rotations.")
@click.option("--from-end", is_flag=True, help="With --follow: only what is written from now on.")
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="STATE",
    help="File that keeps how far the FILEs were sent: the next run goes on there.",
)
@click.option(
    "--spool",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for what cannot be sent yet: reading goes on meanwhile.",
)
@click.option(
    "--spool-bytes",
    type=click.IntRange(min=1),
    default=1 << 30,
    show_default=True,
    help="Bound of the spool; when it is full, reading waits.",
)
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="Try so long in vain; with --follow for ever, with --spool counted once all is read.",
)
@click.option(
    "--token", metavar="TOKEN", help="Bearer token.  [default: the first of INGEST_TOKENS]"
)
def command(**asked: Any) -> None:
    """Ship lines of FILEs, or of standard input, to a collector, in order.

    What was not confirmed is sent again, without doubling it. Exit 1 when anything was refused or
    could not be sent.

    \b
      app 2>&1 | logpipe send --source app --spool ~/.cache/app-spool
      logpipe send --follow --resume app.state /var/log/app.log
    """
    from logpipe.output import Output
    from logpipe.send.delivery import StoppedError
    from logpipe.send.progress import Screen
    from logpipe.send.reading import BadUseError
    from logpipe.send.resume import BadFileError
    from logpipe.send.send import Stop, send

    wanted = _wanted(**asked)
    screen = Screen(Output(sys.stderr.buffer), over_echo())
    try:
        with Stop() as stop:
            sys.exit(send(wanted, screen, stop))
    except StoppedError:  # before anything was read
        sys.exit(1)
    except BadUseError as error:
        fail(str(error), 2)
    except BadFileError as error:
        fail(str(error), 1)


def _wanted(
    url: str | None, token: str | None, files: tuple[str, ...], source: str | None, **others: Any
) -> "Wanted":
    from logpipe.client.connection import base_url
    from logpipe.send.reading import Wanted

    url = url or local_url()
    try:
        url = base_url(url)
    except ValueError as error:
        fail(f"--url {url}: {error}", 2)
    names = ("INGEST_TOKENS", "INGEST_TOKENS_FILE")
    settings = settings_of({name: os.environ[name] for name in names if name in os.environ})
    token = token or "".join(settings.ingest_tokens[:1])
    files = () if files == ("-",) else tuple(dict.fromkeys(files))
    wanted = Wanted(url=url, token=token, files=files, source=source or "", **others)
    _check(wanted)
    return wanted


def _check(wanted: "Wanted") -> None:
    """What does not go together."""
    from logpipe.event import IS_RESERVED, is_reserved

    wrong = {
        "-: standard input cannot be read together with files": "-" in wanted.files,
        "--follow needs FILEs": wanted.follow and not wanted.files,
        "--resume needs FILEs: standard input is read once; --spool keeps what cannot be sent": (
            wanted.resume and not wanted.files
        ),
        "--from-end needs --follow": wanted.from_end and not wanted.follow,
        "--source must have at most 256 characters": len(wanted.source) > 256,
        f"--source {IS_RESERVED}": is_reserved(wanted.source),
        "--level must have 1 to 32 characters": not 1 <= len(wanted.level) <= 32,
    }
    for words, is_so in wrong.items():
        if is_so:
            fail(words, 2)
