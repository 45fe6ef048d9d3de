"""`logpipe snippets`: each configuration parses, and names what the collector serves."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from starlette.routing import Route

import logpipe.snippets
from logpipe.collector.receivers.intake import Process
from logpipe.collector.receivers.table import routes
from logpipe.settings import Settings
from logpipe.snippets import SNIPPETS, UNFIT, UnfitError, filled
from tests.collector.receivers.samples import stored
from tests.helpers import wait_until
from tests.servers import Valkey, serving
from tests.test_cli import run

URL = "https://logs.example:8443"
TOKEN = "s3cret-t0ken"
YAML = [name for name, (file, _) in SNIPPETS.items() if file.endswith((".yaml", ".yml"))]
NAMES = {
    "fluent-bit", "vector", "promtail", "alloy", "filebeat", "logstash", "otel-collector", "docker",
    "rsyslog", "syslog-ng", "python", "node",
}  # fmt: skip


def served() -> set[str]:
    """Every path of a collector."""
    made = routes(cast("Any", Process(Settings(), *[cast("Any", None)] * 3)))
    return {route.path for route in made if isinstance(route, Route)} | {"/ingest"}


def paths(text: str) -> set[str]:
    """What a configuration names after its URL, or as a path of its own."""
    named = rf'(?:{re.escape(URL)}|uri: "(?=/)|restpath="())(/?[\w/.]*)'
    return {"/" + path.lstrip("/") for _, path in re.findall(named, text) if path}


def values(tree: Any) -> set[str]:
    """All that a parsed configuration holds, as texts."""
    if isinstance(tree, dict):
        return set().union(*map(values, tree.values()))
    return set().union(*map(values, tree)) if isinstance(tree, list) else {str(tree)}


def test_there_is_one_for_each_sender_listed_a_line_each() -> None:
    assert set(SNIPPETS) == NAMES
    result = run("snippets")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(SNIPPETS)


def test_an_unknown_name_is_2_with_the_list() -> None:
    result = run("snippets", "syslogd")
    assert (result.exit_code, result.stdout) == (2, "")
    assert all(name in result.stderr for name in ("syslogd", *SNIPPETS))


@pytest.mark.parametrize("name", SNIPPETS)
def test_it_holds_the_url_the_token_and_a_comment_and_nothing_is_left_open(name: str) -> None:
    text = run("snippets", name, "--url", URL, "--token", TOKEN).output
    assert "logs.example" in text and "8443" in text and TOKEN in text
    assert re.search(r"^(#|//) ", text, re.MULTILINE)
    assert not re.search(r"@[A-Z]+@", text)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", SNIPPETS)
def test_without_a_token_none_is_spoken_of(name: str) -> None:
    text = run("snippets", name, "--url", URL).output
    assert not re.search(r"Bearer|password|auth|token=", text)


@pytest.mark.parametrize("name", SNIPPETS)
def test_it_names_only_paths_that_the_collector_serves(name: str) -> None:
    found = paths(filled(name, URL, TOKEN))
    assert found or name in ("docker", "python")  # these add theirs themselves
    bulk = {f"{path}/_bulk" if path == "/elasticsearch" else path for path in found}
    assert bulk <= served()


@pytest.mark.parametrize("name", [name for name in SNIPPETS if name != "docker"])
def test_a_path_before_those_of_the_collector_is_kept(name: str) -> None:
    before, after = filled(name, URL), filled(name, f"{URL}/logs/")
    assert after != before
    assert {path.removeprefix("/logs") for path in paths(after)} == paths(
        before
    ) or name == "python"


@pytest.mark.parametrize("token", [TOKEN, ""])
@pytest.mark.parametrize("name", YAML)
def test_yaml_is_yaml(name: str, token: str) -> None:
    found = values(yaml.safe_load(filled(name, URL, token)))
    assert any("logs.example" in value for value in found)
    assert any(TOKEN in value for value in found) is bool(token)


@pytest.mark.parametrize("token", [TOKEN, ""])
@pytest.mark.parametrize("name", sorted(SNIPPETS.keys() - set(YAML)))
def test_brackets_and_quotes_of_the_others_are_closed(name: str, token: str) -> None:
    code = re.sub(r"(?m)(^|\s)(#|//) .*$", "", filled(name, URL, token))
    bare = re.sub(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`', "", code)
    assert '"' not in bare
    for _ in bare:
        bare = re.sub(r"\([^][(){}]*\)|\[[^][(){}]*\]|\{[^][(){}]*\}", "", bare)
    assert not re.search(r"[][(){}]", bare)


def test_fluent_bit_has_host_port_and_tls_apart() -> None:
    secure, plain = (
        yaml.safe_load(filled("fluent-bit", url))["pipeline"]["outputs"][0]
        for url in (URL, "http://[::1]")
    )
    assert (secure["host"], secure["port"], secure["tls"]) == ("logs.example", 8443, True)
    assert (plain["host"], plain["port"], plain["tls"]) == ("::1", 80, False)


def test_fluent_bit_reads_on_after_a_long_line_and_retries_forever() -> None:
    pipeline = yaml.safe_load(filled("fluent-bit", URL))["pipeline"]
    tail, http = pipeline["inputs"][0], pipeline["outputs"][0]
    assert (tail["buffer_max_size"], tail["skip_long_lines"]) == ("1M", True)
    assert (tail["storage.type"], http["retry_limit"]) == ("filesystem", "no_limits")
    assert tail["db"] and tail["read_from_head"]


def test_the_collectors_place_and_queue_are_on_disk() -> None:
    config = yaml.safe_load(filled("otel-collector", URL))
    (extension,) = config["extensions"]
    assert config["service"]["extensions"] == [extension]
    (receiver,), (exporter,) = config["receivers"].values(), config["exporters"].values()
    assert receiver["storage"] == exporter["sending_queue"]["storage"] == extension
    assert exporter["sending_queue"]["block_on_overflow"]
    assert exporter["retry_on_failure"] == {"enabled": True, "max_elapsed_time": "0s"}
    assert "processors" not in config["service"]["pipelines"]["logs"]


def test_promtail_and_alloy_retry_forever() -> None:
    (client,) = yaml.safe_load(filled("promtail", URL))["clients"]
    assert client["backoff_config"] == {"max_retries": 0}
    assert "max_backoff_retries = 0" in filled("alloy", URL)


def test_filebeat_is_told_the_port_because_its_own_default_is_9200() -> None:
    hosts = yaml.safe_load(filled("filebeat", "https://logs.example"))["output.elasticsearch"]
    assert hosts["hosts"] == ["https://logs.example:443/elasticsearch"]


def test_what_a_configuration_cannot_say_is_2_with_the_reason() -> None:
    for arguments, words in (
        (("docker", "--url", f"{URL}/logs"), "docker: its URL can have no path"),
        (("vector", "--url", URL, "--token", 'a"b'), "vector: the token has characters"),
        (("vector", "--url", f"{URL}/?a=b"), "vector: the URL must have"),
        (("vector", "--url", "ftp://x"), "--url ftp://x: "),
    ):
        result = run("snippets", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    assert UNFIT.search("a b") and not UNFIT.search("aZ09-._~+/=")
    with pytest.raises(UnfitError):
        filled("node", "https://u:p@logs.example")


async def test_python_runs_and_its_event_arrives(valkey: Valkey, tmp_path: Path) -> None:
    await _runs(valkey, [sys.executable], tmp_path / "app.py", "python")


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js")
async def test_node_runs_and_its_event_arrives(valkey: Valkey, tmp_path: Path) -> None:
    await _runs(valkey, ["node"], tmp_path / "app.mjs", "node")


async def _runs(valkey: Valkey, command: list[str], program: Path, name: str) -> None:
    async with serving(redis_addr=valkey.url, role="collector", ingest_tokens=TOKEN) as service:
        program.write_text(filled(name, service.url, TOKEN), encoding="utf-8")
        running = subprocess.Popen([*command, program])
        await wait_until(lambda: running.poll() is not None, "the program ends", 30)
        assert running.returncode == 0
        (event,) = stored(valkey)
        assert (event["message"], event["level"]) == (f"hello from {name}", "INFO")
        assert event["metadata"]["user"] == "ada"


def test_each_template_has_a_name_and_each_name_a_template() -> None:
    folder = Path(logpipe.snippets.__file__).parent / "templates"
    assert {path.name for path in folder.iterdir()} == {file for file, _ in SNIPPETS.values()}
