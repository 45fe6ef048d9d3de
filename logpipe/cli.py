"""The command line: the only module that prints or exits."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import click

from logpipe import __version__
from logpipe.settings import BadSettingsError, Settings, fields, load

if TYPE_CHECKING:
    from logpipe.output import Output
    from logpipe.process import Inherited
    from logpipe.tail import Format, Wanted

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, message="logpipe %(version)s")
def main() -> None:
    """A live log pipeline: POST events in, tail them over Server-Sent Events, lose nothing.

    \b
    On a laptop, with everything in one process:
      logpipe serve
      curl -d '{"source": "demo", "message": "hello"}' http://127.0.0.1:8080/ingest
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
    options["role"] = ",".join(options["role"]) or None
    try:
        settings = load(options, os.environ)
    except BadSettingsError as error:
        _fail(str(error), 2)
    _serve(settings)


@main.command(hidden=True)
@click.argument("listener", type=int)
@click.argument("life", type=int)
def worker(listener: int, life: int) -> None:
    """One of the WORKERS of `serve`, which starts it."""
    from logpipe.process import Inherited

    _serve(_settings(os.environ), Inherited(listener, life))


def _serve(settings: Settings, inherited: "Inherited | None" = None) -> NoReturn:
    import asyncio

    from logpipe import logs
    from logpipe.engine import EngineError
    from logpipe.process import serve_until_stopped
    from logpipe.server import PortTakenError

    logs.configure(settings.log_level, settings.log_format)
    if settings.workers > 1 and inherited is None:
        from logpipe.workers import supervise_until_stopped

        serving = supervise_until_stopped(settings)
    else:
        serving = serve_until_stopped(settings, inherited)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            sys.exit(runner.run(serving))
    except (EngineError, PortTakenError) as error:
        _fail(str(error), 1)


def _loop_factory() -> Callable[[], Any] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


_url_option = click.option(
    "--url",
    envvar="URL",
    metavar="URL",
    help="Base URL of the service, or URL.  [default: this machine, at PORT or the port of ROLE]",
)


def _local_url() -> str:
    from logpipe.health import local_url

    return local_url(_settings(os.environ))


def _settings(environ: Mapping[str, str]) -> Settings:
    try:
        return load({}, environ)
    except BadSettingsError as error:
        _fail(str(error), 2)


@main.command(context_settings=CONTEXT)
@_url_option
@click.option("--timeout", default=3.0, show_default=True, help="Seconds to wait for the answer.")
def health(url: str | None, timeout: float) -> None:
    """Say whether a service is ready: exit 0, or 1 with the reason.

    This is what the image's HEALTHCHECK runs; PORT and ROLE are those that `serve` was given.
    """
    from logpipe.health import check

    url = url or _local_url()
    ready, word = check(url, timeout)
    if not ready:
        _fail(f"{url}: {word}", 1)
    click.echo(f"{url}: {word}")


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
@_url_option
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
    query: str, url: str | None, tail: int | None, since: str, token: str | None
) -> "Wanted":
    from logpipe.tail import Wanted, base_url

    try:
        url = base_url(url or _local_url())
    except ValueError as error:
        _fail(f"--url {url}: {error}", 2)
    # Only these: a PORT that cannot be used is no matter here.
    names = ("READ_TOKENS", "READ_TOKENS_FILE", "HEARTBEAT_S")
    settings = _settings({name: os.environ[name] for name in names if name in os.environ})
    tokens = (token,) if token else settings.read_tokens
    return Wanted(url, tokens, query, since, tail, settings.heartbeat_s)


def _follow(wanted: "Wanted", shown: "Format", out: "Output") -> NoReturn:
    from logpipe.client.distributor import Refused
    from logpipe.output import run_until_stopped
    from logpipe.tail import Totals, follow, refusal

    totals = Totals()
    try:
        stopped = run_until_stopped(follow(wanted, shown, out.write, _tell, totals), out)
    except Refused as refused:
        code, lines = refusal(refused, wanted)
        _fail("\n".join(lines), code)
    except OSError as error:
        _fail(f"the output cannot be written: {error.strerror}", 1)
    if stopped:
        click.echo(f"{_over_echo()}{totals}", err=True)
    sys.exit(0)


def _over_echo() -> str:
    """What writes over the ^C that a terminal shows for its key."""
    return "\r" if sys.stderr.isatty() else ""


def _tell(line: str) -> None:
    click.echo(f"logpipe: {line}", err=True)


_COUNT = click.IntRange(min=1)
_SOME = click.FloatRange(min=0, min_open=True)


@main.command(context_settings=CONTEXT)
@_url_option
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
def bench(
    url: str | None, ingest_url: str | None, *, yes: bool, as_json: bool, **asked: Any
) -> None:
    """Measure a running deployment: how fast events go in and come out, how late, and whether all
    arrive.

    It fills the stream with events of its own (source `bench`), so that older ones are trimmed.
    The first of INGEST_TOKENS and of READ_TOKENS is sent. Exit 1 when anything was lost or refused.
    """
    import msgspec

    from logpipe.bench.deployment import NAMES, Plan, UnfitError, foreign_events, measure
    from logpipe.bench.report import lines, whole
    from logpipe.bench.target import address_of, logpipe_at

    names = ("INGEST_TOKENS", "INGEST_TOKENS_FILE", "READ_TOKENS", "READ_TOKENS_FILE")
    settings = _settings({name: os.environ[name] for name in names if name in os.environ})
    ingest_token, read_token = (
        "".join(t[:1]) for t in (settings.ingest_tokens, settings.read_tokens)
    )
    url = url or _local_url()
    for option, given in (("--url", url), ("--ingest-url", ingest_url or url)):
        try:
            address_of(given)
        except ValueError as error:
            _fail(f"{option} {given}: {error}", 2)
    target = logpipe_at(ingest_url or url, url, ingest_token=ingest_token, read_token=read_token)
    plan = Plan(names=asked.pop("only") or NAMES, **asked)
    done = []
    try:
        if not yes and foreign_events(target, read_token):
            _fail(
                f"the stream at {url} holds events, which a benchmark pushes out:"
                " --yes if that may be",
                1,
            )
        for each in measure(target, plan, _progress, read_token):
            _progress("", 1)
            done.append(each)
            for line in [msgspec.json.encode(each).decode()] if as_json else lines([each]):
                click.echo(line)
    except UnfitError as error:
        _progress("", 1)
        _fail(str(error), 1)
    sys.exit(0 if whole(done) else 1)


def _progress(name: str, part: float) -> None:
    """How much of a measurement is done, on a terminal; no name wipes it away."""
    if sys.stderr.isatty():
        bar = f"{name:<8} {'#' * round(part * 30):.<30}" if name else ""
        click.echo(f"\r\x1b[K{bar}", err=True, nl=False)


def _fail(lines: str, code: int) -> NoReturn:
    for line in lines.split("\n"):
        _tell(line)
    sys.exit(code)
