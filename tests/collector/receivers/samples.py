"""A small request of each protocol, and what a test asks about one."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import cramjam
import httpx
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from logpipe.collector.receivers.protobuf import message
from tests.servers import Service, Valkey, serving

TOKEN = "s3cret"


class Sample(NamedTuple):
    """A request that brings two events, and how it is answered."""

    protocol: str
    path: str
    content_type: str
    body: bytes
    status: int
    texts: tuple[str, ...] = ("one", "two")
    headers: Mapping[str, str] = {}
    token: Mapping[str, str] = {"Authorization": f"Bearer {TOKEN}"}
    plain: bool = True

    async def sent(self, service: Service, **headers: str) -> httpx.Response:
        """The answer to it, with these headers beside its own."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Content-Type": self.content_type, **self.headers, **names}
        return await service.http.post(self.path, content=self.body, headers=given)


def loki_push(*streams: tuple[str, list[tuple[int, bytes, dict[str, str]]]]) -> bytes:
    """A PushRequest as protobuf: labels, and (nanoseconds, line, structured metadata)."""
    packed = []
    for labels, values in streams:
        entries = [
            message("Entry")(
                timestamp=message("Timestamp")(seconds=ns // 10**9, nanos=ns % 10**9),
                line=line,
                structured_metadata=[
                    message("Pair")(name=k.encode(), value=v.encode()) for k, v in extra.items()
                ],
            ).SerializeToString()
            for ns, line, extra in values
        ]
        packed.append(message("Stream")(labels=labels.encode(), entries=entries))
    body: bytes = message("PushRequest")(
        streams=[stream.SerializeToString() for stream in packed]
    ).SerializeToString()
    return body


def snappy(data: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(data))


def otlp_export(*texts: str) -> ExportLogsServiceRequest:
    export = ExportLogsServiceRequest()
    records = export.resource_logs.add().scope_logs.add().log_records
    for text in texts:
        records.add().body.string_value = text
    return export


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def counted(*messages: bytes) -> bytes:
    """Octet-counted frames."""
    return b"".join(b"%d %b" % (len(each), each) for each in messages)


def _b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


_JSON = "application/json"
_PROTOBUF = "application/x-protobuf"
_OTLP_JSON = {
    "resourceLogs": [
        {"scopeLogs": [{"logRecords": [{"body": {"stringValue": t}} for t in ("one", "two")]}]}
    ]
}
_LOKI_JSON = {"streams": [{"stream": {"a": "b"}, "values": [["1", "one"], ["2", "two"]]}]}

SAMPLES = {
    "json": Sample("json", "/ingest/json", _JSON, b'[{"msg":"one"},{"msg":"two"}]', 202),
    "ndjson": Sample(
        "json", "/ingest/json", "application/x-ndjson", b'{"msg":"one"}\n{"msg":"two"}\n', 202
    ),
    "loki json": Sample(
        "loki", "/loki/api/v1/push", _JSON, json.dumps(_LOKI_JSON).encode(), 204,
        headers={"X-Scope-OrgID": "t"}, token=basic("user", TOKEN),
    ),
    "loki protobuf": Sample(
        "loki", "/loki/api/v1/push", _PROTOBUF,
        snappy(loki_push(("{}", [(1, b"one", {}), (2, b"two", {})]))), 204, plain=False,
    ),
    "otlp json": Sample("otlp", "/v1/logs", _JSON, json.dumps(_OTLP_JSON).encode(), 200),
    "otlp protobuf": Sample(
        "otlp", "/v1/logs", _PROTOBUF, otlp_export("one", "two").SerializeToString(), 200
    ),
    "elasticsearch": Sample(
        "elasticsearch", "/elasticsearch/_bulk", "application/x-ndjson",
        b'{"create":{"_index":"i"}}\n{"message":"one"}\n{"index":{}}\n{"message":"two"}\n', 200,
        token={"Authorization": "ApiKey " + _b64(f"id:{TOKEN}".encode())},
    ),
    "splunk": Sample(
        "splunk", "/services/collector/event/1.0", "", b'{"event":"one"}{"event":"two"}', 200,
        token={"Authorization": f"Splunk {TOKEN}"},
    ),
    "splunk raw": Sample(
        "splunk-raw", "/services/collector/raw", "", b"one\ntwo\n", 200,
        token=basic("x", TOKEN),
    ),
    "datadog": Sample(
        "datadog", "/api/v2/logs", _JSON, b'[{"message":"one"},{"message":"two"}]', 202,
        token={"DD-API-KEY": TOKEN},
    ),
    "datadog v1": Sample(
        "datadog-v1", "/v1/input", _JSON, b'[{"message":"one"},{"message":"two"}]', 200,
        token={"DD-API-KEY": TOKEN},
    ),
    "gelf": Sample(
        "gelf", "/gelf", _JSON, b'{"short_message":"one"}\n{"short_message":"two"}', 202
    ),
    "logplex": Sample(
        "logplex", "/logplex", "application/logplex-1",
        counted(b"<14>1 - h a p - one\n", b"<14>1 - h a p - two\n"), 204,
        headers={"Logplex-Msg-Count": "2"}, token=basic(TOKEN, ""),
    ),
    "firehose": Sample(
        "firehose", "/firehose", _JSON,
        json.dumps({"requestId": "r", "records": [{"data": _b64(b"one")}, {"data": _b64(
            gzip.compress(b"two"))}]}).encode(), 200,
        token={"X-Amz-Firehose-Access-Key": TOKEN},
    ),
    "syslog": Sample("syslog", "/syslog", "application/syslog", b"one\ntwo\n", 204),
}  # fmt: skip


def collecting(valkey: Valkey, **given: object) -> AbstractAsyncContextManager[Service]:
    """A collector over this Valkey."""
    return serving(redis_addr=valkey.url, role="collector", **given)


def stored(valkey: Valkey) -> list[dict[str, Any]]:
    """The events in the stream, in order."""
    found: Any = valkey.client.xrange("logs")
    return [json.loads(fields[b"event"]) for _, fields in found]


def texts(valkey: Valkey) -> tuple[str, ...]:
    return tuple(event["message"] for event in stored(valkey))


async def outcomes(service: Service, protocol: str) -> dict[str, float]:
    """How many events of a protocol came to which end, by the metrics; those that are not 0."""
    lines = (await service.http.get("/metrics")).text.splitlines()
    pattern = re.compile(
        rf'logpipe_receiver_events_total{{outcome="(\w+)",protocol="{protocol}"}} (\S+)'
    )
    found = (pattern.fullmatch(line) for line in lines)
    return {each[1]: float(each[2]) for each in found if each and float(each[2])}
