"""The command line: the only package that prints or exits."""

import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from logpipe import __version__
from logpipe.cli import bench, copy, doctor, send, snippets
from logpipe.cli.common import (
    CONTEXT,
    fail,
    local_url,
    loop_factory,
    over_echo,
    settings_of,
    show,
    tell,
    url_option,
    visible,
)
from logpipe.settings import BadSettingsError, Settings, fields, load, withdrawn

if TYPE_CHECKING:
    from logpipe.output import Output
    from logpipe.serving.process import Inherited
    from logpipe.tail import Format, Wanted


class _Commands(click.Group):
    """Whatever command meets a setting that cannot be used, it ends with a line for each."""

    def invoke(self, ctx: click.Context) -> Any:
        """As click does."""
        try:
            return super().invoke(ctx)
        except BadSettingsError as error:
            fail(str(error), 2)


@click.group(cls=_Commands, context_settings=CONTEXT)
@click.version_option(__version__, message="logpipe %(version)s")
def main() -> None:
    """A live log pipeline: POST events in, tail them over Server-Sent Events, lose nothing.

    \b
    On a laptop, with everything in one process:
      logpipe serve
      echo hello | logpipe send
      logpipe tail
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
    from logpipe.tls import require_usable

    options["role"] = ",".join(options["role"]) or None
    settings = load(options, os.environ)
    require_usable(settings)
    _serve(settings)


@main.command(hidden=True)
@click.argument("listener", type=int)
@click.argument("life", type=int)
@click.argument("ready", type=int)
@click.argument("metrics")
def worker(listener: int, life: int, ready: int, metrics: str) -> None:
    """One of the WORKERS of `serve`, which starts it."""
    from logpipe.metrics import keep_in_files
    from logpipe.serving.process import Inherited
    from logpipe.tls import require_usable

    keep_in_files(metrics)
    settings = load({}, os.environ)
    require_usable(settings)
    _serve(settings, Inherited(listener, life, ready))


def _serve(settings: Settings, inherited: "Inherited | None" = None) -> NoReturn:
    import asyncio
    import logging

    from logpipe import logs
    from logpipe.engine import EngineError
    from logpipe.listening import PortTakenError
    from logpipe.serving.process import serve_until_stopped

    logs.configure(settings.log_level, settings.log_format)
    if inherited is None:
        for line in withdrawn(os.environ):
            logging.getLogger("logpipe").warning(line)
    if settings.workers > 1 and inherited is None:
        from logpipe.serving.workers import supervise_until_stopped

        serving = supervise_until_stopped(settings)
    else:
        serving = serve_until_stopped(settings, inherited)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            sys.exit(runner.run(serving))
    except (EngineError, PortTakenError) as error:
        fail(str(error), 1)


@main.command(context_settings=CONTEXT)
@url_option
@click.option("--timeout", default=3.0, show_default=True, help="Seconds to wait for the answer.")
def health(url: str | None, timeout: float) -> None:
    """Say whether a service is ready: exit 0, or 1 with the reason.

    This is what the image's HEALTHCHECK runs; PORT and ROLE are those that `serve` was given.
    """
    from logpipe.health import check

    certificate = "" if url else settings_of(os.environ).ssl_certfile
    url = url or local_url()
    ready, word = check(url, timeout, certificate)
    if not ready:
        fail(visible(f"{url}: {word}"), 1)
    show(f"{url}: {word}")


class _QueryCommand(click.Command):
    """A command whose arguments may begin with `-`, as a term that is to be absent does.

    Such a term is handed to click with a NUL before it, which no argument of a process can hold.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; `-n` and `-h` stay options, and so does all that begins with `--`."""
        end = args.index("--") if "--" in args else len(args)
        guarded = [f"\0{word}" if _is_term(word) else word for word in args[:end]]
        rest = super().parse_args(ctx, [*guarded, *args[end:]])
        for name, value in ctx.params.items():
            if isinstance(value, str):
                ctx.params[name] = value.removeprefix("\0")
        ctx.params["query"] = " ".join(word.removeprefix("\0") for word in ctx.params["query"])
        return rest


def _is_term(word: str) -> bool:
    return re.fullmatch(r"-(?!-|[nh]$|n?[0-9]+$).+", word, re.DOTALL) is not None


@main.command(cls=_QueryCommand, context_settings=CONTEXT)
@click.argument("query", nargs=-1)
@url_option
@click.option(
    "-n",
    "--tail",
    type=click.IntRange(min=0),
    metavar="N",
    help="First the last N matching events.  [default: 10, with --since all]",
)
@click.option(
    "--since",
    default="",
    metavar="TIME",
    help="Begin there: 10m, 2h, a unix time, RFC 3339, an id, earliest.",
)
@click.option(
    "--output",
    type=click.Choice(["pretty", "json"]),
    default="pretty",
    show_default=True,
    help="Columns for people, or a line of JSON an event.",
)
@click.option(
    "--group",
    default="",
    metavar="GROUP",
    help="As a member of this consumer group, whose members share the events; QUERY is its filter.",
)
@click.option(
    "--ack",
    is_flag=True,
    help="With --group: acknowledge each event once it was written; until then it is pending, and"
    " goes to another member if this one ends.",
)
@click.option("--cut", is_flag=True, help="One line an event, cut at the terminal's edge.")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="auto: on a terminal; NO_COLOR and FORCE_COLOR are respected.",
)
@click.option("--token", metavar="TOKEN", help="Bearer token.  [default: the first of READ_TOKENS]")
def tail(query: str, output: str, color: str, *, cut: bool, **asked: Any) -> None:
    """Follow the live stream, resuming without a gap or a double after a lost connection.

    QUERY is a filter; its words are joined by spaces. A term that begins with - is one too, -n and
    -h aside; after -- all are.

    \b
      logpipe tail level:error -healthz
      logpipe tail -n 100 'source:api* "connection reset"'
      logpipe tail --since 2h --output json | jq .message
      logpipe tail --group workers --ack --output json | ./worker
    """
    from logpipe.output import Output, wants_color
    from logpipe.tail import JsonLines, Pretty
    from logpipe.terminal import Printer

    out = Output(sys.stdout.buffer)
    wanted = _wanted(query, **asked)
    if output == "json":
        _follow(wanted, JsonLines(terminal=out.terminal), out)
    colored = wants_color(color, os.environ, terminal=out.terminal)
    printer = Printer(color=colored, cut=cut)
    _follow(wanted, Pretty(printer, out.columns, sys.stdout.encoding), out)


def _wanted(
    query: str,
    url: str | None,
    tail: int | None,
    since: str,
    token: str | None,
    group: str,
    *,
    ack: bool,
) -> "Wanted":
    from logpipe.client.connection import base_url
    from logpipe.tail import Wanted

    if ack and not group:
        fail("--ack: needs --group, the consumer group whose events are acknowledged", 2)
    if group and tail is not None:
        fail("-n: has no effect with --group, which begins where the group is", 2)
    try:
        url = base_url(url or local_url())
    except ValueError as error:
        fail(f"--url {url}: {error}", 2)
    # Only these: a PORT that cannot be used is no matter here.
    names = ("READ_TOKENS", "READ_TOKENS_FILE", "HEARTBEAT_S")
    settings = settings_of({name: os.environ[name] for name in names if name in os.environ})
    tokens = (token,) if token else settings.read_tokens
    return Wanted(url, tokens, query, since, tail, settings.heartbeat_s, group, ack)


def _follow(wanted: "Wanted", shown: "Format", out: "Output") -> NoReturn:
    from logpipe.client.distributor import Refused
    from logpipe.output import run_until_stopped
    from logpipe.tail import Totals, follow, refusal

    totals = Totals()
    try:
        stopped = run_until_stopped(follow(wanted, shown, out.write, tell, totals), out)
    except Refused as refused:
        code, lines = refusal(refused, wanted)
        fail("\n".join(lines), code)
    except OSError as error:
        fail(f"the output cannot be written: {error.strerror}", 1)
    if stopped:
        click.echo(f"{over_echo()}{totals}", err=True)
    sys.exit(0)


for each in (send.command, snippets.command, doctor.command, bench.command, copy.command):
    main.add_command(each)
