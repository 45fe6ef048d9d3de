import base64
import json
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from logpipe.collector.receivers import otlp, otlp_json
from logpipe.collector.receivers.otlp import parse
from logpipe.collector.receivers.protobuf import message
from logpipe.event import Event
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON, event, events, items
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
                            dict.fromkeys(otlp_json.LogRecord.__struct_encode_fields__),
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
    records = [{"body": {"stringValue": "one"}}, "text", 7, {"body": {}}]
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}
    found = items(parse, json.dumps(body).encode(), headers=JSON)
    assert [isinstance(each, Problem) for each in found] == [False, True, True, False]
    scope = message("ScopeLogs")(
        log_records=[b"\x2a\x03\x0a\x01a", b"\xff\xff", b"\x2a\x03\x0a\x01\xff"]
    )
    logs = message("ResourceLogs")(scope_logs=[scope.SerializeToString()])
    export = message("Export")(resource_logs=[logs.SerializeToString()])
    found = items(parse, export.SerializeToString(), headers=PROTOBUF)
    assert [isinstance(each, Problem) for each in found] == [False, True, False]
    assert isinstance(found[2], Event)
    assert found[2].message == "\ufffd"


@pytest.mark.parametrize(
    ("given", "metadata"),
    [
        ({"timeUnixNano": "x"}, {"time_unix_nano": "x"}),
        ({"timeUnixNano": True, "flags": "x"}, {"time_unix_nano": "true", "flags": "x"}),
        ({"observedTimeUnixNano": {}}, {"observed_time_unix_nano": "{}"}),
        ({"severityText": ["x"]}, {}),
        ({"severityNumber": 18.0}, {"severity_number": 18}),
        ({"severityNumber": [1]}, {"severity_number": "[1]"}),
        ({"traceId": 5, "spanId": ["x"]}, {"trace_id": "5", "span_id": '["x"]'}),
        ({"flags": 1.0, "droppedAttributesCount": "2"},
         {"trace_flags": 1, "dropped_attributes_count": 2}),
        ({"attributes": {"a": 1, "b": "x"}}, {"a": 1, "b": "x"}),
        ({"attributes": "text"}, {"attribute.0": "text"}),
        ({"attributes": [7, None, {"key": "k", "value": {"intValue": "1"}}]},
         {"attribute.0": 7, "attribute.1": None, "k": 1}),
        ({"attributes": [{"key": 7, "value": {"intValue": 1}}, {"key": "a", "value": "plain"}]},
         {"7": 1, "a": "plain"}),
        ({"attributes": [{"key": "a", "value": [1, {"b": 2}]}]}, {"a": '[1,{"b":2}]'}),
        ({"attributes": [{"key": "a", "value": {"newValue": 1}}, 1]},
         {"a": '{"newValue":1}', "attribute.1": 1}),
        ({"attributes": [
            {"key": "a", "value": {"arrayValue": {"values": [{"intValue": "n"}, 2]}}}]},
         {"a": ["n", 2]}),
        ({"attributes": [{"key": "a", "value": {"arrayValue": [1]}}]}, {"a": "[1]"}),
        ({"attributes": [{"key": "a", "value": {"kvlistValue": {"values": {"x": 1}}}}]},
         {"a": {"x": 1}}),
        ({"attributes": [{"key": "a", "value": v} for v in (
            {"boolValue": "x"}, )]}, {"a": "x"}),
        ({"attributes": [{"key": "a", "value": {"doubleValue": []}}]}, {"a": "[]"}),
        ({"attributes": [{"key": "a", "value": {"bytesValue": 7}}]}, {"a": "7"}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_kept(given: Any, metadata: dict[str, Any]) -> None:
    found = record_of(body={"stringValue": "m"}, **given)
    assert found.message == "m"
    assert found.metadata == metadata


@pytest.mark.parametrize(
    ("body", "text"),
    [("plain", "plain"), (7, "7"), ([1], "[1]"), (True, "true"), ({"intValue": "n/a"}, "n/a"),
     ({"stringValue": {"a": 1}}, '{"a":1}'), ({"kvlistValue": 7}, "7")],
)  # fmt: skip
def test_a_body_that_is_no_value_is_a_text(body: Any, text: str) -> None:
    assert record_of(body=body).message == text


@pytest.mark.parametrize(
    "time", [1.71e18, "1.71e18", "1710000000000000000", 1_710_000_000_000_000_000]
)
def test_a_time_may_be_written_in_other_ways(time: Any) -> None:
    found = record_of(timeUnixNano=time)
    assert (found.ts_unix_ms, found.metadata) == (1_710_000_000_000, {})


def logs_of(text: str, **resource_logs: Any) -> dict[str, Any]:
    return {"scopeLogs": [{"logRecords": [{"body": {"stringValue": text}}]}], **resource_logs}


@pytest.mark.parametrize(
    ("shop", "metadata"),
    [
        ({"resource": {"attributes": [{"key": "process.pid", "value": {"intValue": "n/a"}}]}},
         {"process.pid": "n/a"}),
        ({"resource": {"attributes": [{"key": "a", "value": "plain"}]}}, {"a": "plain"}),
        ({"resource": "shop"}, {"resource": "shop"}),
        ({"resource": {"attributes": 7}}, {"attribute.0": 7}),
        ({"schemaUrl": 7}, {"schema_url": "7"}),
        ({"scopeLogs": [{"scope": "lib", "logRecords": [{"body": {"stringValue": "shop"}}]}]},
         {"scope": "lib"}),
        ({"scopeLogs": [{"scope": {"name": 7}, "logRecords": [{"body": {"stringValue": "shop"}}]}]},
         {"otel.scope.name": "7"}),
    ],
)  # fmt: skip
def test_an_odd_value_of_a_resource_or_scope_costs_nothing(
    shop: dict[str, Any], metadata: dict[str, Any]
) -> None:
    body = {"resourceLogs": [logs_of("good"), logs_of("shop", **shop), logs_of("good")]}
    found = events(parse, json.dumps(body).encode(), headers=JSON)
    assert [each.message for each in found] == ["good", "shop", "good"]
    assert [each.metadata for each in found] == [{}, metadata, {}]


@pytest.mark.parametrize(
    "shop",
    [7, "x", [], {"scopeLogs": 7}, {"scopeLogs": [7]}, {"scopeLogs": [{"logRecords": "x"}]},
     {"scopeLogs": [{"logRecords": [7]}]}],
)  # fmt: skip
def test_what_cannot_be_read_of_a_resource_is_rejected_alone(shop: Any) -> None:
    body = json.dumps({"resourceLogs": [logs_of("a"), shop, logs_of("b")]}).encode()
    before, rejected, after = items(parse, body, headers=JSON)
    assert isinstance(rejected, Problem)
    assert [isinstance(each, Event) for each in (before, after)] == [True, True]


def three_services() -> ExportLogsServiceRequest:
    export = ExportLogsServiceRequest()
    for name in ("good", "shop caf!", "good"):
        logs = export.resource_logs.add(schema_url=f"http://{name}")
        logs.resource.attributes.add(key="service.name").value.string_value = name
        logs.resource.attributes.add(key=f"key {name}").value.string_value = name
        scope_logs = logs.scope_logs.add(schema_url=f"http://{name}")
        scope_logs.scope.name = scope_logs.scope.version = name
        record = scope_logs.log_records.add(severity_text=name, event_name=name)
        record.body.string_value = name
        record.attributes.add(key="list").value.array_value.values.add().string_value = name
    return export


@pytest.mark.parametrize("kind", ["protobuf", "json"])
def test_text_that_is_not_utf8_has_replacements(kind: str) -> None:
    export = three_services()
    body = export.SerializeToString() if kind == "protobuf" else as_json(export)
    headers = PROTOBUF if kind == "protobuf" else JSON
    good, found, again = events(parse, body.replace(b"caf!", b"caf\xe9"), headers=headers)
    assert good == again
    text = "shop caf\ufffd"
    assert (found.source, found.message, found.level) == (text, text, text.upper())
    assert found.metadata == {
        "event.name": text, "list": [text], "otel.scope.name": text, "otel.scope.version": text,
        "otel.scope.schema_url": f"http://{text}", "schema_url": f"http://{text}",
        "service.name": text, f"key {text}": text,
    }  # fmt: skip


def test_an_unreadable_resource_costs_only_its_own_records() -> None:
    record = LogRecord(severity_text="x").SerializeToString()

    def logs(resource: bytes, *scopes: bytes) -> bytes:
        scope_logs = [
            message("ScopeLogs")(scope=scope, log_records=[record, record]).SerializeToString()
            for scope in scopes
        ]
        packed = message("ResourceLogs")(resource=resource, scope_logs=scope_logs)
        return bytes(packed.SerializeToString())

    export = message("Export")(
        resource_logs=[logs(b"", b"", b"\xff"), logs(b"\xff", b""), b"\xff", logs(b"", b"")]
    )
    found = items(parse, export.SerializeToString(), headers=PROTOBUF)
    assert [isinstance(each, Event) for each in found] == [
        True, True, False, False, False, False, False, True, True,
    ]  # fmt: skip


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["key", "value", "attributes", "intValue", "values", "arrayValue", "name"]),
        inner, max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip
"""Any JSON, with some names of OTLP's."""


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_all_good_records_of_a_mixture_are_stored_in_order(data: st.DataObject) -> None:
    """Whatever stands beside and above them."""
    sent: list[str] = []

    def records() -> list[Any]:
        made: list[Any] = []
        for good in data.draw(st.lists(st.booleans(), max_size=3)):
            if good:
                sent.append(f"good {len(sent)}")
                made.append({"body": {"stringValue": sent[-1]}, "attributes": data.draw(odd)})
            else:
                made.append(data.draw(odd))
        return made

    def scopes() -> list[Any]:
        return [
            {"scope": data.draw(odd), "schemaUrl": data.draw(odd), "logRecords": records()}
            if good
            else data.draw(odd)
            for good in data.draw(st.lists(st.booleans(), max_size=2))
        ]

    resources = [
        {"resource": data.draw(odd), "scopeLogs": scopes()} if good else data.draw(odd)
        for good in data.draw(st.lists(st.booleans(), max_size=3))
    ]
    found = items(parse, json.dumps({"resourceLogs": resources}).encode(), headers=JSON)
    texts = [each.message for each in found if isinstance(each, Event)]
    assert [text for text in texts if text.startswith("good ")] == sent


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=6) | st.integers(0, 999)))
def test_all_good_records_of_protobuf_are_stored_in_order(parts: list[bytes | int]) -> None:
    sent = [part for part in parts if isinstance(part, int)]
    packed = []
    for part in parts:
        records = [b"\xff"]
        if isinstance(part, int):
            records.append(otlp_export(str(part)).resource_logs[0].scope_logs[0].log_records[0]
                           .SerializeToString())  # fmt: skip
        scope = message("ScopeLogs")(log_records=records)
        logs = message("ResourceLogs")(scope_logs=[scope.SerializeToString(), b"\xff"])
        packed.append(part if isinstance(part, bytes) else logs.SerializeToString())
    export = message("Export")(resource_logs=packed)
    found = items(parse, export.SerializeToString(), headers=PROTOBUF)
    good = [each for each in found if isinstance(each, Event) and each.message.isdecimal()]
    assert [int(each.message) for each in good] == sent


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
    with pytest.raises(Problem, match="elements") as caught:
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
    assert set(otlp_json.LogRecord.__struct_fields__) <= described


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("Export", ExportLogsServiceRequest), ("ResourceLogs", ResourceLogs),
        ("ScopeLogs", ScopeLogs), ("Resource", Resource), ("Scope", InstrumentationScope),
        ("LogRecord", LogRecord), ("AnyValue", AnyValue), ("ArrayValue", ArrayValue),
        ("KeyValueList", KeyValueList), ("KeyValue", KeyValue),
        ("ExportResponse", ExportLogsServiceResponse), ("PartialSuccess", ExportLogsPartialSuccess),
    ],
)  # fmt: skip
def test_the_messages_are_those_of_opentelemetry(name: str, official: Any) -> None:
    """With texts and what is read later as bytes, and enums as numbers."""
    fields = official.DESCRIPTOR.fields_by_name
    for field in message(name).DESCRIPTOR.fields:
        same = fields[field.name]
        assert (field.number, field.is_repeated) == (same.number, same.is_repeated)
        if field.type == field.TYPE_BYTES:
            assert same.type in (same.TYPE_BYTES, same.TYPE_STRING, same.TYPE_MESSAGE)
        else:
            assert field.type == same.type or same.type == same.TYPE_ENUM
        assert (field.containing_oneof is None) == (same.containing_oneof is None)
