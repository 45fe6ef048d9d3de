"""Real senders, as they are, through a restart of Redis.

A sender with a key for what it repeats is stored once. One without can only be stored at least
once: whether an append whose answer was lost has happened, nobody can tell it.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.helpers import wait_until
from tests.senders.crossing import (
    EVENTS,
    FETCHED,
    arrived,
    at_least_once,
    daemon,
    lines_to,
    needs_debian,
    needs_node,
    node,
    numbers_in,
    once,
    python,
    redis_restarted_on_the_way,
    run,
)
from tests.servers import Valkey, free_port, serving

pytestmark = [pytest.mark.senders, pytest.mark.timeout(120)]


async def through_a_restart(
    valkey: Valkey, sender: Callable[[str, str], Awaitable[str]], program: str
) -> str:
    """Has a program send to a collector whose Redis is restarted meanwhile; what it printed."""
    async with (
        serving(role="collector", redis_addr=valkey.url) as service,
        redis_restarted_on_the_way(valkey),
    ):
        return await sender(program, service.url)


async def test_curl_with_a_key_a_request_is_stored_once(own_valkey: Valkey, tmp_path: Path) -> None:
    async with serving(role="collector", redis_addr=own_valkey.url) as service:
        async with redis_restarted_on_the_way(own_valkey):
            for first in range(0, EVENTS, 50):
                events = [{"source": "c", "message": f"event {first + n}"} for n in range(50)]
                body = tmp_path / "body.json"
                body.write_text(json.dumps(events))
                await run(
                    "curl", "--silent", "--show-error", "--fail", "--retry", "20",
                    "--retry-all-errors", "--header", f"Idempotency-Key: curl-{first}",
                    "--data-binary", f"@{body}", f"{service.url}/ingest",
                )  # fmt: skip
                await asyncio.sleep(0.03)
        assert once(own_valkey)


async def test_opentelemetrys_python_exporter_is_stored_at_least_once(own_valkey: Valkey) -> None:
    await through_a_restart(own_valkey, python, "otlp.py")
    await at_least_once(own_valkey)


async def test_elasticsearchs_bulk_helper_with_ids_is_stored_once(own_valkey: Valkey) -> None:
    await through_a_restart(own_valkey, python, "elastic.py")
    assert once(own_valkey)


async def test_elasticsearchs_bulk_helper_outlasts_a_restart_by_default(
    own_valkey: Valkey,
) -> None:
    await through_a_restart(own_valkey, python, "elastic_default.py")
    await at_least_once(own_valkey)


@needs_node
@pytest.mark.parametrize(
    "program", ["elastic.mjs", "pino.mjs", "winston-elasticsearch.mjs", "bunyan.mjs"]
)
async def test_javascripts_bulk_senders_are_stored_at_least_once(
    own_valkey: Valkey, program: str
) -> None:
    await through_a_restart(own_valkey, node, program)
    await at_least_once(own_valkey)


async def test_a_splunk_handler_is_stored_at_least_once(own_valkey: Valkey) -> None:
    await through_a_restart(own_valkey, python, "splunk.py")
    await at_least_once(own_valkey)


async def test_python_logstash_async_is_stored_at_least_once(own_valkey: Valkey) -> None:
    await through_a_restart(own_valkey, python, "logstash.py")
    await at_least_once(own_valkey)


async def test_python_logging_loki_never_repeats_and_says_what_it_lost(own_valkey: Valkey) -> None:
    """It sends each event once: what it did not report as failed is there."""
    printed = await through_a_restart(own_valkey, python, "loki.py")
    failed = {int(line) for line in printed.split()}
    assert failed
    assert set(range(EVENTS)) - failed <= arrived(own_valkey).keys()
    assert max(arrived(own_valkey).values()) == 1


@needs_node
async def test_opentelemetrys_javascript_exporter_is_stored_at_least_once(
    own_valkey: Valkey,
) -> None:
    await through_a_restart(own_valkey, node, "otlp.mjs")
    await at_least_once(own_valkey)


@needs_node
async def test_winston_by_loki_is_stored_at_least_once(own_valkey: Valkey) -> None:
    await through_a_restart(own_valkey, node, "winston.mjs")
    await at_least_once(own_valkey)


RSYSLOG = FETCHED / "debian/usr/sbin/rsyslogd"
SYSLOG_NG = FETCHED / "debian/usr/sbin/syslog-ng"


def rsyslog_command(folder: Path, port: int, action: str) -> list[str | Path]:
    """rsyslogd in the foreground: what comes in at a port goes to an action, again and again."""
    configuration = folder / "rsyslog.conf"
    configuration.write_text(
        f'global(workDirectory="{folder}")\nmodule(load="imptcp")\nmodule(load="omelasticsearch")\n'
        f'input(type="imptcp" port="{port}" address="127.0.0.1")\n{action}\n'
    )
    modules = FETCHED / "debian/usr/lib/x86_64-linux-gnu/rsyslog"
    pid = folder / "rsyslog.pid"
    return [RSYSLOG, "-n", "-f", configuration, "-i", pid, "-M", modules]


@needs_debian
async def test_rsyslog_over_tcp_is_stored_once(own_valkey: Valkey, tmp_path: Path) -> None:
    """The connection outlives the restart: the collector stops reading, and nothing is repeated."""
    port, syslog = free_port(), free_port()
    action = (
        f'action(type="omfwd" target="127.0.0.1" port="{syslog}" protocol="tcp"'
        ' template="RSYSLOG_SyslogProtocol23Format" action.resumeRetryCount="-1")'
    )
    async with (
        serving(role="collector", redis_addr=own_valkey.url, syslog_tcp=syslog),
        daemon(port, *rsyslog_command(tmp_path, port, action)),
    ):
        async with redis_restarted_on_the_way(own_valkey):
            await lines_to(port)
        await at_least_once(own_valkey)
        assert once(own_valkey)


@needs_debian
async def test_rsyslog_by_elasticsearchs_bulk_reports_what_it_lost(
    own_valkey: Valkey, tmp_path: Path
) -> None:
    """Its omelasticsearch looks at no status: what a 503 refuses goes to its error file alone."""
    port, refused = free_port(), tmp_path / "refused"
    async with serving(role="collector", redis_addr=own_valkey.url) as service:
        action = (
            'template(name="event" type="list" option.jsonf="on") {\n'
            '  property(outname="message" name="msg" format="jsonf")\n}\n'
            f'action(type="omelasticsearch" server="{service.url}/elasticsearch" bulkmode="on"'
            f' template="event" searchIndex="logs" errorfile="{refused}"'
            ' action.resumeRetryCount="-1" action.resumeInterval="1")'
        )
        async with daemon(port, *rsyslog_command(tmp_path, port, action)):
            async with redis_restarted_on_the_way(own_valkey):
                await lines_to(port)

            def all_told() -> bool:
                told = numbers_in(refused.read_text()) if refused.exists() else set()
                return told | arrived(own_valkey).keys() == set(range(EVENTS))

            await wait_until(all_told, "each event is stored or reported", timeout=30)
            assert set(arrived(own_valkey)) - numbers_in(refused.read_text())


@needs_debian
async def test_syslog_ngs_http_is_stored_at_least_once(own_valkey: Valkey, tmp_path: Path) -> None:
    port = free_port()
    async with serving(role="collector", redis_addr=own_valkey.url) as service:
        configuration = tmp_path / "syslog-ng.conf"
        configuration.write_text(
            "@version: 3.38\noptions { time-reopen(1); };\n"
            f'source s {{ syslog(ip("127.0.0.1") port({port}) transport("tcp")); }};\n'
            f'destination d {{ http(url("{service.url}/ingest/json") method("POST")'
            ' headers("Content-Type: application/x-ndjson") batch-lines(50) batch-timeout(100)'
            ' retries(100) body-prefix("") delimiter("\\n")'
            ' body("$(format-json message=$MESSAGE service=$PROGRAM)")); };\n'
            "log { source(s); destination(d); flags(flow-control); };\n"
        )
        modules = next((FETCHED / "debian/usr/lib/syslog-ng").glob("*"))
        command: list[str | Path] = [
            SYSLOG_NG, "--foreground", "--no-caps", "--cfgfile", configuration,
            "--persist-file", tmp_path / "persist", "--pidfile", tmp_path / "pid",
            "--control", tmp_path / "control", "--module-path", modules,
        ]  # fmt: skip
        async with daemon(port, *command):
            async with redis_restarted_on_the_way(own_valkey):
                await octet_counted_to(port)
            await at_least_once(own_valkey)


async def octet_counted_to(port: int) -> None:
    """As `lines_to`, framed as syslog-ng's `syslog()` has it (RFC 6587)."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in range(EVENTS):
        line = b"<14>1 2026-01-01T00:00:00Z host sender 1 - - event %d" % number
        writer.write(b"%d %b" % (len(line), line))
        await writer.drain()
        await asyncio.sleep(0.001)
    writer.close()
    await writer.wait_closed()
