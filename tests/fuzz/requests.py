"""Requests that are well framed and hold anything: one a number, over every way in."""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple
from urllib.parse import quote

from logpipe.collector.ingest import JSON_TYPES, NDJSON_TYPES
from logpipe.collector.receivers.table import ALIAS, PROTOCOLS
from tests.collector.receivers.samples import SAMPLES, loki_push, otlp_export, snappy
from tests.fuzz.mutations import MUTATIONS, NOT_UTF8, NUMBERS, VALUES, packed


class Request(NamedTuple):
    """A request as it is sent; `headers` are without those that frame it."""

    method: str
    target: str
    headers: Sequence[tuple[str, bytes]]
    body: bytes
    chunks: int = 0

    def on_the_wire(self) -> bytes:
        """Its bytes; with `chunks`, the body comes in chunks of so many."""
        lines = [f"{self.method} {self.target} HTTP/1.1".encode("latin-1"), b"Host: localhost"]
        lines += [b"%b: %b" % (name.encode(), value) for name, value in self.headers]
        if self.chunks:
            lines.append(b"Transfer-Encoding: chunked")
            body = b"".join(self._chunked()) + b"0\r\n\r\n"
        else:
            lines.append(b"Content-Length: %d" % len(self.body))
            body = self.body
        return b"\r\n".join([*lines, b"", b""]) + body

    def _chunked(self) -> Iterator[bytes]:
        for at in range(0, len(self.body), self.chunks):
            piece = self.body[at : at + self.chunks]
            yield b"%x\r\n%b\r\n" % (len(piece), piece)


class Seed(NamedTuple):
    """A good body of a way in, and its type."""

    content_type: str
    body: bytes
    headers: Sequence[tuple[str, str]] = ()


_EVENT = {
    "source": "api",
    "level": "WARN",
    "message": "GET / 200",
    "ts_unix_ms": 1710000000000,
    "metadata": {"a": {"b": [1, 2.5, None, True, "é"]}, "user.id": "7"},
}
_LINE = json.dumps(_EVENT).encode()
_ANY = {
    "@timestamp": "2024-03-09T16:00:00.123456Z",
    "severity": 3,
    "msg": "one",
    "service.name": "api",
    "kubernetes": {"container_name": "web", "labels": {"app": "x"}},
}
_HEC = {
    "time": "1710000000.123", "host": "h", "source": "s", "sourcetype": "t", "index": "main",
    "event": {"message": "m", "severity": "warn"}, "fields": {"a": ["b", 1]},
}  # fmt: skip
_GELF = {
    "version": "1.1", "host": "h", "short_message": "m", "full_message": "m\nn", "level": 3,
    "timestamp": 1710000000.5, "_service": "s", "_n": 7, "facility": "f", "line": 3,
}  # fmt: skip
_DATADOG = [
    {
        "message": {"a": "b"}, "ddtags": "env:x,env:y,flag", "ddsource": "nginx", "hostname": "h",
        "service": "s", "status": "warn", "timestamp": 1710000000000,
    }
]  # fmt: skip
_SYSLOG = (
    b'<165>1 2003-10-11T22:14:15.003Z host app 123 ID47 [a@1 b="c\\"d" e="f"][g h="i"] text\n'
    b"<34>Oct 11 22:14:15 host su[23]: failed\n<13>text alone\n"
)
_LOGPLEX = b"49 <40>1 2012-11-30T06:45:29+00:00 h app web.3 - up\n"
_RECORD = {
    "timeUnixNano": "1710000000000000000",
    "severityNumber": 17,
    "severityText": "Error",
    "body": {"kvlistValue": {"values": [{"key": "k", "value": {"doubleValue": 1.5}}]}},
    "attributes": [
        {"key": "a", "value": {"arrayValue": {"values": [{"intValue": "3"}, {"boolValue": True}]}}},
        {"key": "b", "value": {"bytesValue": "AAEC"}},
    ],
    "traceId": "0102030405060708090a0b0c0d0e0f10",
    "spanId": "0102030405060708",
}
_OTLP = {
    "resourceLogs": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "s"}}]},
            "scopeLogs": [{"scope": {"name": "n", "version": "1"}, "logRecords": [_RECORD] * 2}],
        }
    ]
}
_LOKI = {
    "streams": [
        {"stream": {"app": "a"}, "values": [["1710000000000000000", "x", {"t": "i"}]]},
        {"labels": '{a="b\\"c", d="e"}', "entries": [{"ts": "2024-03-09T16:00:00Z", "line": "y"}]},
    ]
}  # fmt: skip
_BULK = (
    b'{"index":{"_index":"i-1","_id":"7"}}\n{"message":"m","@timestamp":"2024-03-09T16:00:00Z"}\n'
    b'{"create":{}}\n{"log":{"level":"warn"},"message":"n"}\n{"delete":{"_id":"x"}}\n'
)


def _packed_export() -> bytes:
    export = otlp_export("one", "two")
    record = export.resource_logs[0].scope_logs[0].log_records[0]
    added = record.attributes.add()
    added.key = "k"
    inner = added.value.kvlist_value.values.add()
    inner.key = "l"
    inner.value.array_value.values.add().double_value = 2.5
    return bytes(export.SerializeToString())


@functools.cache
def seeds() -> dict[str, list[Seed]]:
    """Good bodies, by the protocol; `ingest` is the native one."""
    found = {name: [] for name in ("ingest", *PROTOCOLS)}  # type: dict[str, list[Seed]]
    for sample in SAMPLES.values():
        seed = Seed(sample.content_type, sample.body, [*sample.headers.items()])
        found[sample.protocol].append(seed)
    push = loki_push(('{app="a"}', [(1_710_000_000_000_000_000, b"x", {"t": "i"})]))
    for name, content_type, body in (
        ("ingest", "application/json", _LINE),
        ("ingest", "application/json", b"[%b,%b]" % (_LINE, _LINE)),
        ("ingest", "application/x-ndjson", b"%b\n%b\n" % (_LINE, _LINE)),
        ("ingest", "", _LINE * 3),
        ("json", "application/json", json.dumps(_ANY).encode()),
        ("json", "text/plain", b"one\ntwo \xc3\xa9\n"),
        ("loki", "application/json", json.dumps(_LOKI).encode()),
        ("loki", "application/x-protobuf", snappy(push)),
        ("otlp", "application/json", json.dumps(_OTLP).encode()),
        ("otlp", "application/x-protobuf", _packed_export()),
        ("elasticsearch", "application/x-ndjson", _BULK),
        ("splunk", "application/json", json.dumps(_HEC).encode() * 2),
        ("splunk-raw", "text/plain", b"one\ntwo\n"),
        ("datadog", "application/json", json.dumps(_DATADOG).encode()),
        ("datadog-v1", "application/json", json.dumps(_DATADOG).encode()),
        ("gelf", "application/json", json.dumps(_GELF).encode()),
        ("logplex", "application/logplex-1", _LOGPLEX),
        ("syslog", "application/syslog", _SYSLOG),
    ):  # fmt: skip
        found[name].append(Seed(content_type, body))
    return found


TYPES = (
    *sorted(JSON_TYPES | NDJSON_TYPES), "", "text/plain", "application/x-protobuf", "image/png",
    "application/json; charset=utf-16", "multipart/form-data; boundary=x", "application/gzip", ";",
    "application/octet-stream", "application/x-www-form-urlencoded", "x" * 2_000, "\xff/\xfe",
)  # fmt: skip
HEADERS = (
    "Idempotency-Key", "X-Scope-OrgID", "Logplex-Msg-Count", "Logplex-Frame-Id", "Authorization",
    "Logplex-Drain-Token", "X-Amz-Firehose-Common-Attributes", "X-Amz-Firehose-Source-Arn",
    "X-Amz-Firehose-Request-Id", "X-Amz-Firehose-Access-Key", "DD-API-KEY", "Origin", "Accept",
    "X-Logpipe-Message-Field", "X-Logpipe-Time-Field", "X-Request-ID", "Content-Type", "Cookie",
    "X-Splunk-Request-Channel", "Traceparent", "X-Logpipe-Source", "X-Logpipe-Level", "Host",
)  # fmt: skip
TEXTS = (
    b"", b"x", b"a,b.c,,", b"7", b"-1", b"9" * 400, b"\xc3\xa9", b"\xff\xfe", b"{}", b"[1]",
    b"null", b'{"commonAttributes":{"a":"b"}}', b'{"commonAttributes":[1]}', b"k" * 256, b"k" * 257,
    b"Basic !!!", b"Basic Og==", b"Bearer ", b"Splunk x", b"ApiKey \xff", b"*/*;q=nan", b"\t",
    b"arn:aws:firehose:::deliverystream/x/", b"../../etc", b"http://evil.example", b"[" * 3_000,
)  # fmt: skip
PARAMETERS = (
    "message_field", "level_field", "source_field", "time_field", "source", "level", "host",
    "index", "sourcetype", "token", "dd-api-key", "api_key", "filter_path", "pipeline", "refresh",
    "x",
)  # fmt: skip


def _targets() -> Iterator[tuple[str, str, str]]:
    yield from [("ingest", "POST", "/ingest")] * 12
    for (name, protocol), prefix in itertools.product(PROTOCOLS.items(), ("", ALIAS)):
        for path, method in itertools.product(protocol.paths, protocol.methods):
            yield name, method, prefix + path


TARGETS = tuple(_targets())
"""Protocol, method and path of every way in."""


def _text(random: Random) -> bytes:
    text = random.choice((*TEXTS, *NUMBERS, *VALUES, *NOT_UTF8))
    return text.translate(None, b"\r\n\0")


def _headers(random: Random, seed: Seed) -> list[tuple[str, bytes]]:
    content_type = random.choice(TYPES) if random.random() < 0.12 else seed.content_type
    found = [(name, value.encode("latin-1")) for name, value in seed.headers]
    if content_type:
        found.append(("Content-Type", content_type.encode("latin-1")))
    while random.random() < 0.2:
        found.append((random.choice(HEADERS), _text(random)))
    if found and random.random() < 0.05:
        found.append((random.choice(found)[0], _text(random)))
    return found


def _target(random: Random, path: str) -> str:
    while "{" in path:
        before, _, rest = path.partition("{")
        path = (
            before
            + quote(random.choice((b"x", b"%", b"a b", *TEXTS[5:10])))
            + rest.partition("}")[2]
        )
    if random.random() < 0.15:
        pairs = [
            (random.choice(PARAMETERS), quote(_text(random))) for _ in range(random.randint(1, 4))
        ]
        path += "?" + "&".join(f"{name}={value}" for name, value in pairs)
    return path


def _body(random: Random, protocol: str, seed: Seed) -> bytes:
    body = seed.body
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        body = random.choice(MUTATIONS)(random, body)
    if random.random() < 0.05:  # one good body within another, or behind it
        other = random.choice(random.choice(list(seeds().values()))).body
        at = random.choice((len(body), random.randint(0, len(body))))
        body = body[:at] + other + body[at:]
    if protocol == "loki" and seed.content_type.endswith("protobuf") and random.random() < 0.5:
        body = snappy(body)
    return body


def chance(seed: int, kind: str, number: int) -> Random:
    """The source of chance of one case: it depends on nothing that came before."""
    return Random(f"{seed} {kind} {number}")


def request(seed: int, number: int) -> Request:
    """The request of that number."""
    random = chance(seed, "body", number)
    protocol, method, path = random.choice(TARGETS)
    good = random.choice(seeds()[protocol])
    headers = _headers(random, good)
    body = _body(random, protocol, good)
    if random.random() < 0.25:
        coding, body = packed(random, body)
        headers.append(("Content-Encoding", coding.encode("latin-1")))
    chunks = random.choice((1, 100, 5_000)) if random.random() < 0.05 else 0
    if chunks == 1:
        body = body[:500]
    return Request(method, _target(random, path), headers, body, chunks)
