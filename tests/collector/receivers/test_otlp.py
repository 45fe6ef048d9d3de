import base64
import json
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from logpipe.collector.receivers import otlp
from logpipe.collector.receivers.otlp import parse
from logpipe.collector.receivers.protobuf import message
from logpipe.event import Event
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON, event, items
from tests.collector.receivers.samples import collecting, otlp_export, stored, texts
from tests.servers import Service, Valkey, serving

PROTOBUF = {"content-type": "application/x-protobuf"}
NS = 1_710_000_000_123_456_789
TRACE, SPAN = bytes(range(16)), bytes(range(8))


def full() -> ExportLogsServiceRequest:
    """An export with all that a record may have."""
    export = ExportLogsServiceRequest()
    resource_logs = export.resource_logs.add(schema_url="https://schema.example/1")
    attributes = resource_logs.resource.attributes
    attributes.add(key="service.name").value.string_value = "checkout"
    attributes.add(key="host.name").value.string_value = "h1"
    attributes.add(key="shared").value.string_value = "resource"
    scope_logs = resource_logs.scope_logs.add(schema_url="https://schema.example/2")
    scope_logs.scope.name, scope_logs.scope.version = "lib", "1.2"
    scope_logs.scope.attributes.add(key="s").value.bool_value = True
    record = scope_logs.log_records.add(
        time_unix_nano=NS, observed_time_unix_nano=NS + 1, severity_number=18,
        severity_text="odd", trace_id=TRACE, span_id=SPAN, flags=1, event_name="e",
        dropped_attributes_count=2,
    )  # fmt: skip
    record.body.string_value = "failed"
    given = record.attributes
    given.add(key="shared").value.string_value = "record"
    given.add(key="int").value.int_value = 2**53 + 1
    given.add(key="float").value.double_value = 1.5
    given.add(key="nan").value.double_value = float("nan")
    given.add(key="bytes").value.bytes_value = b"\x00\xff"
    given.add(key="none")
    listed = given.add(key="list").value.array_value.values
    listed.add().string_value = "x"
    listed.add().kvlist_value.values.add(key="k").value.bool_value = False
    return export


FULL = {
    "trace_id": TRACE.hex(), "span_id": SPAN.hex(), "trace_flags": 1, "event.name": "e",
    "dropped_attributes_count": 2, "observed_time_unix_nano": str(NS + 1),
    "severity_text": "odd", "severity_number": 18,
    "shared": "record", "resource.shared": "resource", "host.name": "h1",
    "service.name": "checkout", "schema_url": "https://schema.example/1",
    "otel.scope.name": "lib", "otel.scope.version": "1.2", "s": True,
    "otel.scope.schema_url": "https://schema.example/2",
    "int": 2**53 + 1, "float": 1.5, "nan": "nan", "bytes": base64.b64encode(b"\x00\xff").decode(),
    "none": None, "list": ["x", {"k": False}],
}  # fmt: skip


def as_json(export: ExportLogsServiceRequest) -> bytes:
    """As the SDKs write it: like protobuf's own JSON, but for the ids."""
    document = json_format.MessageToDict(export)
    for resource_logs in document["resourceLogs"]:
        for scope_logs in resource_logs["scopeLogs"]:
            for record in scope_logs["logRecords"]:
                for name in {"traceId", "spanId"} & set(record):
                    record[name] = base64.b64decode(record[name]).hex().upper()
                if "severityNumber" in record:
                    record["severityNumber"] = 18
    return json.dumps(document).encode()


@pytest.mark.parametrize("kind", ["protobuf", "json"])
def test_nothing_that_a_record_says_is_lost(kind: str) -> None:
    if kind == "protobuf":
        found = event(parse, full().SerializeToString(), headers=PROTOBUF)
    else:
        found = event(parse, as_json(full()), headers=JSON)
    assert (found.source, found.message, found.level) == ("checkout", "failed", "ERROR")
    assert found.ts_unix_ms == 1_710_000_000_123
    assert found.metadata == FULL


def record_of(**fields: Any) -> Event:
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": [fields]}]}]}
    return event(parse, json.dumps(body).encode(), headers=JSON)


@pytest.mark.parametrize(
    ("number", "level"),
    [
        (1, "TRACE"), (4, "TRACE"), (5, "DEBUG"), (8, "DEBUG"), (9, "INFO"), (12, "INFO"),
        (13, "WARN"), (16, "WARN"), (17, "ERROR"), (20, "ERROR"), (21, "FATAL"), (24, "FATAL"),
        (0, "INFO"), (25, "INFO"), (-1, "INFO"), ("SEVERITY_NUMBER_WARN", "WARN"),
    ],
)  # fmt: skip
def test_a_severity_number_is_a_level(number: Any, level: str) -> None:
    assert record_of(severityNumber=number).level == level


def test_without_a_number_the_text_is_the_level() -> None:
    assert record_of(severityText="Warning").level == "WARN"


def test_a_time_is_the_records_or_the_observers_or_that_of_receipt() -> None:
    both = record_of(timeUnixNano=str(NS), observedTimeUnixNano=NS + 10**9)
    assert both.ts_unix_ms == NS // 10**6
    observed = record_of(timeUnixNano="0", observedTimeUnixNano=str(NS))
    assert (observed.ts_unix_ms, observed.metadata) == (NS // 10**6, {})
    assert record_of().ts_unix_ms is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"stringValue": "x"}, "x"),
        ({"stringValue": ""}, ""),
        ({"intValue": "7"}, "7"),
        ({"intValue": 7}, "7"),
        ({"boolValue": False}, "false"),
        ({"doubleValue": "NaN"}, "nan"),
        ({"kvlistValue": {"values": [{"key": "a", "value": {"intValue": 1}}]}}, '{"a":1}'),
        ({"arrayValue": {"values": [{"intValue": 1}, {}]}}, "[1,null]"),
        ({"arrayValue": {}}, "[]"),
        ({}, ""),
        (None, ""),
    ],
)
def test_a_body_of_any_kind_is_a_text(body: Any, text: str) -> None:
    assert record_of(body=body).message == text


def test_an_event_without_a_body_shows_its_name() -> None:
    assert record_of(eventName="started").message == "started"


def test_a_null_is_a_field_that_is_not_there() -> None:
    body = {
        "resourceLogs": [
            {
                "resource": {"attributes": None},
                "schemaUrl": None,
                "scopeLogs": [
                    {
                        "scope": {"name": None, "version": "1", "attributes": None},
                        "schemaUrl": None,
                        "logRecords": [
                            dict.fromkeys(otlp.LogRecord.__struct_encode_fields__),
                            {
                                "severityText": None,
                                "body": {"stringValue": "x", "intValue": None},
                                "attributes": [{"key": "k", "value": {"arrayValue": None}}],
                            },
                        ],
                    },
                    {"scope": None, "logRecords": None},
                ],
            },
            {"scopeLogs": None},
        ]
    }
    assert items(parse, json.dumps(body).encode(), headers=JSON) == [
        Event("unknown_service", "", metadata={"otel.scope.version": "1"}),
        Event("unknown_service", "x", metadata={"k": None, "otel.scope.version": "1"}),
    ]
    assert items(parse, b'{"resourceLogs":null}', headers=JSON) == []


def test_one_bad_record_keeps_no_good_one_out() -> None:
    records = [{"body": {"stringValue": "one"}}, {"timeUnixNano": "x"}, 7, {"body": {}}]
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}
    found = items(parse, json.dumps(body).encode(), headers=JSON)
    assert [isinstance(each, Problem) for each in found] == [False, True, True, False]
    scope = message("ScopeLogs")(
        log_records=[b"\x2a\x03\x0a\x01a", b"\xff\xff", b"\x2a\x03\x0a\x01\xff"]
    )
    logs = message("ResourceLogs")(scope_logs=[scope.SerializeToString()])
    export = message("Export")(resource_logs=[logs.SerializeToString()])
    found = items(parse, export.SerializeToString(), headers=PROTOBUF)
    assert [isinstance(each, Problem) for each in found] == [False, True, True]


def test_fields_of_the_future_are_ignored() -> None:
    assert record_of(body={"stringValue": "x", "newValue": {}}, more=[1]).message == "x"


def test_what_is_nested_too_deeply_is_cut_off() -> None:
    value: dict[str, Any] = {"stringValue": "x"}
    for _ in range(300):
        value = {"arrayValue": {"values": [value]}}
    found = record_of(body={"stringValue": "m"}, attributes=[{"key": "k", "value": value}])
    assert found.message == "m"
    inner, depth = found.metadata["k"], 0
    while isinstance(inner, list):
        (inner,), depth = inner, depth + 1
    assert (inner, depth) == (otlp.TOO_DEEP, otlp.MAX_DEPTH)


@pytest.mark.parametrize("level", range(3))
def test_many_empty_messages_are_counted_before_they_are_read(level: int) -> None:
    body = (b"\x12\x00" if level else b"\x0a\x00") * 200_001
    for _ in range(level):
        tag = b"\x0a" if _ == level - 1 else b"\x12"
        size = len(body)
        varint = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
        body = tag + varint + body
    with pytest.raises(Problem, match="messages") as caught:
        items(parse, body, headers=PROTOBUF)
    assert caught.value.status == 413


def test_a_record_beyond_all_bounds_is_not_read() -> None:
    export = otlp_export("x" * (otlp.MAX_RECORD_BYTES + 1), "small")
    large, small = items(parse, export.SerializeToString(), headers=PROTOBUF)
    assert isinstance(large, Problem)
    assert large.status == 413
    assert isinstance(small, Event)


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05", full().SerializeToString()[:-5]])
def test_truncated_protobuf_is_a_400(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        items(parse, body, headers=PROTOBUF)
    assert caught.value.status == 400


async def post(service: Service, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return await service.http.post("/v1/logs", content=body, headers=headers)


async def test_success_says_nothing_of_a_partial_one(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await post(service, otlp_export("one").SerializeToString(), PROTOBUF)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == "application/x-protobuf"
        answer = await post(service, as_json(otlp_export("two")), JSON)
        assert (answer.status_code, answer.json()) == (200, {})
        assert answer.headers["content-type"] == "application/json"
        empty = await post(service, b"", PROTOBUF)
        assert empty.status_code == 200
        assert texts(valkey) == ("one", "two")


async def test_what_could_not_be_taken_is_a_partial_success_in_the_requests_own_type(
    valkey: Valkey,
) -> None:
    async with collecting(valkey) as service:
        export = otlp_export("x" * (otlp.MAX_RECORD_BYTES + 1), "taken")
        answer = await post(service, export.SerializeToString(), PROTOBUF)
        assert answer.status_code == 200
        told = ExportLogsServiceResponse.FromString(answer.content).partial_success
        assert told.rejected_log_records == 1
        assert "Record 0" in told.error_message
        answer = await post(service, as_json(export), JSON)
        assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "1"
        assert texts(valkey) == ("taken", "taken")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"\xff", PROTOBUF, 400, 3),
        (b"{", JSON, 400, 3),
        (b'{"resourceLogs":7}', JSON, 400, 3),
        (b"x" * 1001, JSON, 413, 3),
        (b"x" * 1001, PROTOBUF, 413, 3),
        (b"x", {**JSON, "content-encoding": "rot13"}, 415, 3),
    ],
)
async def test_an_error_is_a_status_in_the_requests_own_type(
    valkey: Valkey, body: bytes, headers: dict[str, str], status: int, code: int
) -> None:
    async with collecting(valkey, max_body_bytes=1000) as service:
        answer = await post(service, body, headers)
        assert answer.status_code == status
        assert answer.headers["content-type"] == headers["content-type"]
        if headers["content-type"] == "application/json":
            assert answer.json()["code"] == code
            assert answer.json()["message"]
        else:
            told = message("Status").FromString(answer.content)
            assert (told.code, bool(told.message)) == (code, True)
        assert stored(valkey) == []


async def test_another_type_is_415_in_plain_text_and_another_method_405(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await post(service, b"x", {"content-type": "text/html"})
        assert answer.status_code == 415
        assert answer.headers["content-type"].startswith("text/plain")
        assert (await service.http.get("/v1/logs")).status_code == 405


async def test_redis_away_is_a_status_that_exporters_retry() -> None:
    async with serving(redis_addr="unix:///nowhere/v.sock", role="collector") as service:
        answer = await post(service, otlp_export("one").SerializeToString(), PROTOBUF)
        assert answer.status_code == 503
        assert message("Status").FromString(answer.content).code == 14


def test_the_twins_for_json_have_the_names_of_protobuf() -> None:
    described = {field.name for field in LogRecord.DESCRIPTOR.fields}
    assert set(otlp.LogRecord.__struct_fields__) <= described
