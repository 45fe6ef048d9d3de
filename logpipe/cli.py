"""The command line: the only module that prints or exits."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from logpipe import __version__
from logpipe.settings import BadSettingsError, Settings, fields, load

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, message="logpipe %(version)s")
def main() -> None:
    """A live log pipeline: POST events in, tail them over Server-Sent Events, lose nothing.

    \b
    On a laptop, with everything in one process:
      logpipe serve
      curl -d '{"source": "demo", "message": "hello"}' http://127.0.0.1:8080/ingest
      curl -N http://127.0.0.1:8080/subscribe
    """


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each setting; its value is a text, which `settings.load` converts."""
    for field in reversed(list(fields())):
        shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        default = "" if shown in ("", -1) or field.secret else f"  [default: {shown}]"
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            field.name,
            multiple=field.name == "role",
            metavar=field.metavar,
            help=f"{field.help}{default}",
        )(command)
    return command


@main.command(context_settings=CONTEXT)
@_setting_options
def serve(**options: Any) -> None:
    """Run roles of the pipeline: all of them, or one a process.

    With every role in one process and no --redis-addr, an embedded Valkey keeps the stream in
    DATA_DIR. Each option is also an environment variable of the same name in capitals
    (--trim-maxlen is TRIM_MAXLEN); the option wins.
    """
    options["role"] = ",".join(options["role"]) or None
    try:
        settings = load(options, os.environ)
    except BadSettingsError as error:
        _fail(str(error), 2)
    _serve(settings)


def _serve(settings: Settings) -> NoReturn:
    import asyncio

    from logpipe import logs
    from logpipe.engine import EngineError
    from logpipe.process import serve_until_stopped
    from logpipe.server import PortTakenError

    logs.configure(settings.log_level, settings.log_format)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            sys.exit(runner.run(serve_until_stopped(settings)))
    except (EngineError, PortTakenError) as error:
        _fail(str(error), 1)


def _loop_factory() -> Callable[[], Any] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@main.command(context_settings=CONTEXT)
@click.option(
    "--url",
    help="Base URL of the service.  [default: this machine, at PORT or the port of ROLE]",
)
@click.option("--timeout", default=3.0, show_default=True, help="Seconds to wait for the answer.")
def health(url: str | None, timeout: float) -> None:
    """Say whether a service is ready: exit 0, or 1 with the reason.

    This is what the image's HEALTHCHECK runs; PORT and ROLE are those that `serve` was given.
    """
    from logpipe.health import check, local_url

    try:
        url = url or local_url(load({}, os.environ))
    except BadSettingsError as error:
        _fail(str(error), 2)
    ready, word = check(url, timeout)
    if not ready:
        _fail(f"{url}: {word}", 1)
    click.echo(f"{url}: {word}")


def _fail(lines: str, code: int) -> NoReturn:
    for line in lines.splitlines():
        click.echo(f"logpipe: {line}", err=True)
    sys.exit(code)
