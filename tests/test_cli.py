import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from logpipe import __version__, cli
from logpipe.settings import Settings, fields
from logpipe.tail import Wanted
from tests.helpers import fair_time
from tests.servers import Valkey, free_port, spawned


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, env=environ, terminal_width=100)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that `serve` would serve with."""
    found: list[Settings] = []
    monkeypatch.setattr(cli, "_serve", found.append)
    return found


def test_the_version_is_that_of_the_package() -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"logpipe {__version__}\n")


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("command", [None, *cli.main.commands])
def test_each_help_is_readable_at_100_columns(command: str | None, option: str) -> None:
    result = run(*filter(None, [command]), option)
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert max(map(len, result.output.splitlines())) <= 100
    assert all(ord(character) >= 32 for character in result.output if character != "\n")


def test_the_help_names_every_command_with_a_sentence() -> None:
    output = run("--help").output
    assert {"serve", "tail", "health", "bench"} <= set(cli.main.commands)
    for name, command in cli.main.commands.items():
        assert (f"  {name} " in output) is not command.hidden
        assert command.get_short_help_str()


def test_the_help_of_serve_shows_every_setting_with_its_default() -> None:
    output = " ".join(run("serve", "--help").output.split())
    for field in fields():
        option = "--" + field.name.replace("_", "-")
        assert f" {option} " in output
        assert field.help in output
        if field.default not in ("", (), -1):
            default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
            assert f"[default: {default}]" in output[output.index(f" {option} ") :]


def test_the_help_does_not_load_the_service() -> None:
    code = (
        "import sys; from logpipe.cli import main\n"
        "main(['serve', '--help'], standalone_mode=False)\n"
        "names = {'redis', 'starlette', 'uvicorn', 'httpx', 'wcwidth', 'asyncio'}\n"
        "print(sorted(names & sys.modules.keys()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20
    )
    assert output.stderr == ""
    assert output.stdout.splitlines()[-1] == "[]"


def test_it_runs_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "logpipe", "--version"], capture_output=True, text=True, timeout=20
    )
    assert result.stdout == f"logpipe {__version__}\n"


def test_an_unknown_command_or_option_is_an_error_of_use() -> None:
    for arguments in (
        ["fly"],
        ["serve", "--fly"],
        ["serve", "extra"],
        ["health", "--timeout", "x"],
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Error: " in result.output


# -- serve -------------------------------------------------------------------------------------


def test_each_option_is_also_a_variable_and_the_option_wins(served: list[Settings]) -> None:
    values: dict[str, tuple[str, str, Any]] = {
        "host": ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        "port": ("1", "2", 2),
        "trim_maxlen": ("10", "20", 20),
        "heartbeat_s": ("1", "2.5", 2.5),
        "delivery": ("broadcast", "shared", "shared"),
        "stream_name": ("one", "two", "two"),
        "ingest_tokens": ("a", "b,c", ("b", "c")),
        "log_format": ("text", "json", "json"),
    }
    environ = {name.upper(): by_variable for name, (by_variable, _, _) in values.items()}
    run("serve", **environ)
    options = [
        f"--{name.replace('_', '-')}={by_option}" for name, (_, by_option, _) in values.items()
    ]
    run("serve", *options, **environ)
    first, second = served
    for name, (by_variable, _, wanted) in values.items():
        assert str(getattr(first, name)).strip("(,)'") in (by_variable, f"{by_variable}.0")
        assert getattr(second, name) == wanted


@pytest.mark.parametrize(
    ("arguments", "roles"),
    [
        ([], {"collector", "distributor", "ui"}),
        (["--role", "all"], {"collector", "distributor", "ui"}),
        (["--role", "collector"], {"collector"}),
        (["--role", "collector", "--role", "ui"], {"collector", "ui"}),
        (["--role", "collector,distributor"], {"collector", "distributor"}),
    ],
)
def test_roles_are_repeated_or_separated_by_commas(
    arguments: list[str], roles: set[str], served: list[Settings]
) -> None:
    assert run("serve", *arguments).exit_code == 0
    assert served[0].roles == roles


def test_the_role_of_the_option_wins_over_that_of_the_environment(served: list[Settings]) -> None:
    run("serve", "--role", "ui", ROLE="collector")
    run("serve", ROLE="collector")
    assert [settings.roles for settings in served] == [{"ui"}, {"collector"}]


def test_bad_values_are_named_a_line_each_and_secrets_are_not_repeated(
    served: list[Settings],
) -> None:
    result = run("serve", "--port", "70000", "--redis-addr", "s3cret@x", TRIM_MAXLEN="0", ROLE="x")
    assert result.exit_code == 2
    assert served == []
    lines = result.stderr.splitlines()
    assert sorted(line.split()[1].rstrip(":").partition("=")[0] for line in lines) == [
        "PORT", "REDIS_ADDR", "ROLE", "TRIM_MAXLEN",
    ]  # fmt: skip
    assert "PORT=70000: must be a whole number from 0 to 65535" in lines[0] + lines[1] + lines[2]
    assert "s3cret" not in result.output


# -- health ------------------------------------------------------------------------------------


def test_health_of_what_is_not_there_is_1_with_the_reason() -> None:
    port = free_port()
    result = run("health", "--url", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"logpipe: http://127.0.0.1:{port}: ")
    assert "refused" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_health_asks_where_serve_would_listen() -> None:
    port = str(free_port())
    assert f"http://127.0.0.1:{port}: " in run("health", PORT=port, HOST="0.0.0.0").stderr
    assert "http://127.0.0.2:8081: " in run("health", ROLE="collector", HOST="127.0.0.2").stderr


def test_health_asks_the_url_of_the_environment_unless_one_is_given() -> None:
    here, there = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    assert f"{here}: " in run("health", URL=here, PORT="1").stderr
    assert f"{there}: " in run("health", "--url", there, URL=here).stderr


def test_health_with_bad_settings_is_2_unless_the_url_is_given() -> None:
    assert run("health", PORT="x").exit_code == 2
    url = f"http://127.0.0.1:{free_port()}"
    assert run("health", "--url", url, PORT="x").exit_code == 1


def test_health_gives_up_in_time() -> None:
    started = fair_time()
    result = run("health", "--url", "http://192.0.2.1:9", "--timeout", "0.2")
    assert result.exit_code == 1
    assert fair_time() - started < 2


async def test_health_says_ready_or_why_not(valkey: Valkey, tmp_path: Path) -> None:
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector") as process:
        await process.ready()
        result = run("health", PORT=str(process.port))
        assert (result.exit_code, result.output) == (0, f"{process.url}: ready: collector\n")
    nowhere = f"unix://{tmp_path}/none"
    async with spawned(tmp_path, REDIS_ADDR=nowhere, ROLE="collector") as process:
        deadline = time.monotonic() + 10
        while "Redis" not in (result := run("health", "--url", process.url + "/")).output:
            assert time.monotonic() < deadline
        assert result.exit_code == 1
        assert len(result.output.splitlines()) == 1


# -- tail --------------------------------------------------------------------------------------


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What `tail` would ask for."""
    found: list[Wanted] = []
    monkeypatch.setattr(cli, "_follow", lambda wanted, *_: found.append(wanted))
    return found


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ([], ""),
        (["level:error"], "level:error"),
        (["level:error", "--", "-healthz"], "level:error -healthz"),
        (["level:error", "-healthz"], "level:error -healthz"),
        (["-healthz"], "-healthz"),
        (["-noise", "-n5", "-since", "(a", "OR", "-b)"], "-noise -since (a OR -b)"),
        (["-x", "--cut", "-y", "--", "-h", "-n", "--cut", "-"], "-x -y -h -n --cut -"),
        (['-"connection reset"', "a  b"], '-"connection reset" a  b'),
        (["-", "-é"], "- -é"),
    ],
)
def test_the_words_of_a_query_are_joined_and_may_begin_with_a_minus(
    arguments: list[str], query: str, wanted: list[Wanted]
) -> None:
    assert run("tail", *arguments).exit_code == 0
    assert wanted[0].query == query
    assert wanted[0].tail == (5 if "-n5" in arguments else None)


def test_options_of_tail_stay_options(wanted: list[Wanted]) -> None:
    run("tail", "-n", "3", "-a", "--since=1h", "--token", "-t", "--url", "http://x:1/")
    assert wanted == [Wanted("http://x:1", ("-t",), "-a", "1h", 3)]
    for arguments in (["--healthz"], ["-n", "-5"], ["-n", "x"], ["--output=xml"], ["--color"]):
        assert run("tail", *arguments).exit_code == 2
    assert run("tail", "a", "-h").output.startswith("Usage: ")
    assert len(wanted) == 1


def test_tail_reads_where_serve_would_listen_with_the_first_read_token(
    wanted: list[Wanted],
) -> None:
    run("tail", PORT="9", HOST="0.0.0.0", READ_TOKENS="a,b")
    run("tail", URL="http://x", PORT="no matter", HEARTBEAT_S="30")
    assert wanted == [
        Wanted("http://127.0.0.1:9", ("a", "b")),
        Wanted("http://x", heartbeat_s=30.0),
    ]
    assert run("tail", PORT="x").exit_code == 2
    assert run("tail", HEARTBEAT_S="x", URL="http://x").exit_code == 2
    assert len(wanted) == 2
