"""Requests of real senders, recorded and sent again byte for byte: the events that they become.

`None` stands for what this table does not judge.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.collector.receivers.samples import stored
from tests.helpers import wait_until
from tests.raw import connected
from tests.servers import Service, Valkey, free_port, serving

CAPTURES = Path(__file__).parent / "captures"
TOKEN = "s3cret"  # the recorded one


class Event(NamedTuple):
    """An event as it is to be stored; its metadata at least."""

    message: str | None
    source: str | None
    level: str | None = "INFO"
    ts_unix_ms: int | None = None
    metadata: Mapping[str, Any] = {}


PLAIN = "n=0001 plain"
UNICODE = "n=0002 ünï 日本語 🚀"
TWO_LINES = f"{UNICODE}\nsecond line"
JSON = 'n=0003 {"level":"error","message":"json in message"}'
QUOTES = "n=0004 level=warn quotes \" \\ \\n \t tab  <a&b> 'x'"
REQUEST = "n=0005 plain request GET /api/items/5 200 12ms"
TRACE = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
NESTED = ' {{"level":"{}","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","user":{{"id":7}}}}'
FIRST, SECOND, THIRD = 1795946400123, 1795946401123, 1795946402123


def pair(
    source: str | None, *, last: str | None = None, metadata: Mapping[str, Any] = TRACE
) -> list[Event]:
    """The two records that Fluent Bit and Fluentd were given."""
    return [
        Event(PLAIN, source, "INFO", FIRST, metadata),
        Event(TWO_LINES, last or source, "ERROR", SECOND, metadata),
    ]


def lines(source: str, time: int | None, metadata: Mapping[str, Any]) -> list[Event]:
    """The three lines that file shippers and Docker's drivers were given."""
    return [Event(text, source, "INFO", time, metadata) for text in (PLAIN, UNICODE, JSON)]


def warned(
    source: str | None, times: tuple[int, int], metadata: Mapping[str, Any], *, nested: bool = False
) -> list[Event]:
    """The two events that programs of Node.js logged."""
    warn, error = (NESTED.format(word) if nested else "" for word in ("warn", "error"))
    return [
        Event(QUOTES + warn, source, "WARN", times[0], metadata),
        Event(REQUEST + error, source, "ERROR", times[1], metadata),
    ]


ODD = "unicode naïve Ünïcödé 日本語 🚀 \u200d👩\u200d👩\u200d👧 \u202ertl עברית"
TRACEBACK = (
    "n=0002 Traceback (most recent call last):",
    '  File "a.py", line 1, in <module>',
    "ValueError: boom 2",
)
OBJECT = (
    '{"message": "n=0003 json in message", "level": "error",'
    ' "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "user": {"id": 7, "name": "Ada"},'
    ' "time": "2026-11-29T10:00:00.123456789Z"}'
)


def plain(number: int) -> str:
    return f"n={number:04} plain request GET /api/items/{number} 200 12ms"


def docker_syslog(last: int, time: int | None, metadata: Mapping[str, Any]) -> list[Event]:
    """What a container has written, as far as the recording goes."""
    start = (plain(0), f"n=0001 {ODD} \x01", *TRACEBACK, OBJECT, QUOTES)
    rest = (f"n=0011 {ODD} \x01" if number == 11 else plain(number) for number in range(5, last))
    return [Event(text, "3f4e8a0c9b1d", "INFO", time, metadata) for text in (*start, *rest)]


OTEL_JS = {
    "user.id": 7, "tags": ["a", "b"], "log.file.path": "/var/log/x.log", "service.name": "shop",
    "service.version": "1.2.3", "host.name": "web-1", "otel.scope.name": "shop.web",
    "otel.scope.version": "1.0", "k8s.pod.name": "shop-7d9f-abcde", "k8s.namespace.name": "prod",
    "k8s.container.name": "web",
}  # fmt: skip
OMFWD = (
    plain(0), f"n=0001 {ODD} #001", "#012".join(TRACEBACK), OBJECT, QUOTES.replace("\t", "#011"),
    plain(5), plain(6), plain(7),
)  # fmt: skip
OMFWD_TIMES = (88, 92, 96, 101, 105, 109, 113, 118)
DOCKER = {"host.name": "vm", "tag": "shop_web_1", "log.iostream": "stdout"}
PROMTAIL = "/var/log/containers/shop-7d9f8c/{}/app.log"
WEB_1 = {"host.name": "web-1"}

EXPECTED: Mapping[str, list[Event]] = {
    "bunyan-elasticsearch-bulk": warned(
        None, (1795973470538, 1795973470541), {**TRACE, "user": {"id": 7}, "pid": 10069}
    ),
    "docker-loki": lines(
        "shop_web_1", 1795973443609, {"container.name": "shop_web_1", "host.name": "vm"}
    ),
    "docker-splunk-json": lines("shop_web_1", 1795973434559, DOCKER),
    "docker-splunk-raw": [
        Event(f"shop_web_1 {text}", "vm", "INFO", 1795973440594, {"host.name": "vm"})
        for text in (PLAIN, UNICODE, JSON)
    ],
    "docker-syslog-rfc3164": docker_syslog(
        12, None, {"syslog.timestamp": "Nov 29 17:16:44", "syslog.procid": "9565"}
    ),
    "docker-syslog-rfc5424": docker_syslog(
        9, 1795973575000, {"host.name": "vm", "syslog.facility.name": "daemon"}
    ),
    "fluent-bit-datadog": pair(
        "shop", metadata={**TRACE, "datadog.log.source": "nginx", "service.version": "1.2.3"}
    ),
    "fluent-bit-es-generate_id": pair("web", last="fluent-bit"),
    # GELF by TCP is not offered: at the syslog port each message is a text.
    "fluent-bit-gelf-tcp": [Event(None, "syslog")] * 2,
    "fluent-bit-http-gzip": pair("web", last="json"),
    "fluent-bit-http-json_stream": pair("app"),
    "fluent-bit-http-msgpack": [],
    "fluent-bit-http-snappy": pair("web", last="json"),
    "fluent-bit-http-zstd": pair("web", last="json"),
    "fluent-bit-loki-json": [
        Event(None, "shop", None, FIRST),
        Event(None, "shop", None, SECOND),
    ],
    "fluent-bit-loki-structured": [
        Event(None, "shop", "INFO", FIRST, TRACE),
        Event(None, "shop", "ERROR", SECOND, TRACE),
    ],
    "fluent-bit-otlp": [Event(None, None, None, FIRST), Event(None, None, None, SECOND)],
    "fluent-bit-splunk": pair(None),
    "fluent-bit-syslog": [
        Event(plain(0), "shop", "INFO", FIRST, WEB_1),
        Event(f"n=0001 {ODD} \x01", "shop", "INFO", SECOND, WEB_1),
        # A line end ends a message, so that a traceback comes apart.
        Event(TRACEBACK[0], "shop", "INFO", THIRD, WEB_1),
        Event(TRACEBACK[1], "syslog"),
        Event(TRACEBACK[2], "syslog"),
        *(
            Event(text, "shop", "INFO", THIRD + 1000 * number, WEB_1)
            for number, text in enumerate((OBJECT, QUOTES, plain(5), plain(6)), 1)
        ),
    ],
    "fluentd-http": pair("app"),
    "log-shuttle-to-logplex": [
        Event(None, "shop", "INFO", 1795973762911, {**WEB_1, "syslog.procid": "web.1"})
    ]
    * 3,
    "otel-collector": lines("app", 1795973417853, {"log.file.name": "app.log"}),
    "otel-js-http-gzip": warned("shop", (1795972004123, 1795972005123), OTEL_JS),
    "otel-js-proto": warned("shop", (1795972004123, 1795972005123), OTEL_JS),
    "pino-elasticsearch": warned(
        "web-1", (1795973457112, 1795973457113), {**TRACE, "user": {"id": 7}, "pid": 7}
    ),
    "promtail-level-label": [
        Event(None, "app", level, time, {**TRACE, "log.file.path": PROMTAIL.format("pt1")})
        for level, time in (("INFO", FIRST), ("ERROR", SECOND))
    ],
    "promtail": lines("app", 1795973402497, {"log.file.path": PROMTAIL.format("pt")}),
    "rsyslog-omfwd-octet-counted": [
        Event(
            text,
            "shop",
            "ERROR" if number == 0 else "INFO",
            1795972188000 + OMFWD_TIMES[number],
            {
                "host.name": "web-1.example",
                "syslog.procid": "4711",
                "syslog.msg.id": "ID47",
                "syslog.structured_data": {"ex@32473": {"iut": "3", "rid": f"r{number}"}},
            },
        )
        for number, text in enumerate(OMFWD)
    ],
    "rsyslog-omhttp": [
        Event(plain(0), "shop", "ERROR", 1795972108900, {"host.name": "web-1.example"})
    ],
    "syslog-ng-http": [
        Event(PLAIN, "shop", "ERROR", 1795946400000, {"pid": "4711"}),
        Event(UNICODE, "shop", "WARN", 1795946401000, {"pid": "4711"}),
        Event(JSON, "shop", "INFO", 1795946402000, {"severity_text": "notice"}),
    ],
    "winston-elasticsearch": warned("shop-2026.11.29", (1795973450348, 1795973450366), {}),
    "winston-loki-json": warned("shop", (1795973483970,) * 2, TRACE, nested=True),
    "winston-loki-protobuf": warned(
        "shop", (1795973490679,) * 2, {"deployment.environment.name": "prod"}, nested=True
    ),
}

REFUSED = {"fluent-bit-http-msgpack": 415}
"""What is answered otherwise than by success."""


def test_every_recording_is_in_the_table_and_has_as_many_events() -> None:
    recorded = {path.stem: json.loads(path.read_text()) for path in CAPTURES.iterdir()}
    assert recorded.keys() == EXPECTED.keys()
    for name, capture in recorded.items():
        assert capture.get("events", len(EXPECTED[name])) == len(EXPECTED[name]), name


@pytest.mark.parametrize("name", EXPECTED)
async def test_a_recorded_request_gives_its_events(valkey: Valkey, name: str) -> None:
    capture = json.loads((CAPTURES / f"{name}.json").read_text())
    body, port = base64.b64decode(capture["body_base64"]), free_port()
    settings = {"role": "collector", "redis_addr": valkey.url, "ingest_tokens": TOKEN}
    expected = EXPECTED[name]
    async with serving(**settings, syslog_tcp=port) as service:
        if capture["request_line"].startswith("("):
            await sent_to(port, body)
            await wait_until(lambda: len(stored(valkey)) >= len(expected), "all are stored")
        else:
            assert await status_of(service, capture, body) == REFUSED.get(name, 200)
            assert len(stored(valkey)) == len(expected)
        found = stored(valkey)
    assert len(found) <= len(expected) + 1  # the recording of a connection ends within a message
    for event, wanted in zip(found, expected, strict=False):
        for field in ("message", "source", "level", "ts_unix_ms"):
            assert getattr(wanted, field) in (None, event[field]), field
        assert wanted.metadata.items() <= event["metadata"].items()


async def sent_to(port: int, stream: bytes) -> None:
    """Sends bytes to the syslog port."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(stream)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def status_of(service: Service, capture: dict[str, Any], body: bytes) -> int:
    """Sends a request as it was recorded, and returns its answer's status, 200 for any success."""
    headers: dict[str, str] = capture["headers"]
    head = [capture["request_line"], *(f"{name}: {value}" for name, value in headers.items())]
    if headers.get("Transfer-Encoding") == "chunked":
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with connected(service.url) as connection:
        await connection.send("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        status = (await connection.answer()).status
    return 200 if status < 300 else status
