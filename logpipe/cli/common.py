"""What the commands share: where the service is, and words for people."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import click

from logpipe.settings import BadSettingsError, Settings, load

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

url_option = click.option(
    "--url",
    envvar="URL",
    metavar="URL",
    help="Base URL of the service, or URL.  [default: this machine, at PORT or the port of ROLE]",
)


def local_url() -> str:
    """Where `serve` listens with this environment."""
    from logpipe.health import local_url

    return local_url(settings_of(os.environ))


def settings_of(environ: Mapping[str, str]) -> Settings:
    """The settings; ends the program where they cannot be used."""
    try:
        return load({}, environ)
    except BadSettingsError as error:
        fail(str(error), 2)


def tokens_of(environ: Mapping[str, str]) -> Settings:
    """Of the settings the tokens alone: others that cannot be used are no matter to a client."""
    names = [
        f"{scope}_TOKENS{end}" for scope in ("INGEST", "READ", "ADMIN") for end in ("", "_FILE")
    ]
    return settings_of({name: environ[name] for name in names if name in environ})


def loop_factory() -> Callable[[], Any] | None:
    """What makes an event loop: uvloop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def over_echo() -> str:
    """What writes over the ^C that a terminal shows for its key."""
    return "\r" if sys.stderr.isatty() else ""


def visible(text: str) -> str:
    """The text on one line and with nothing that a terminal obeys. Commands print what a server has
    answered, and any server may have."""
    if text.isprintable():
        return text
    from logpipe.terminal import printable

    return printable(text)


def show(line: str) -> None:
    """Prints a line to standard output, `visible`."""
    click.echo(visible(line))


def show_json(text: str) -> None:
    """Prints JSON to standard output, with escapes for what is not visible."""
    from logpipe.terminal import printable_json

    click.echo(printable_json(text))


def tell(line: str) -> None:
    """Prints a line for people to standard error, `visible`."""
    click.echo(f"logpipe: {visible(line)}", err=True)


def fail(lines: str, code: int) -> NoReturn:
    """Ends the program, after some lines; words of a server have to be `visible` before, so that
    their line ends make no lines."""
    for line in lines.split("\n"):
        tell(line)
    sys.exit(code)
