"""OTLP over HTTP: `/v1/logs`, protobuf or JSON, answered in the type of the request."""

import base64
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from logpipe.collector.answer import Answer
from logpipe.collector.receivers import fields
from logpipe.collector.receivers.protobuf import (
    MAX_REPEATED,
    counted,
    each,
    message,
    parsed,
    too_many,
)
from logpipe.collector.receivers.protocol import (
    Batch,
    Item,
    Outcome,
    Request,
    problems_of,
    raise_if_none_taken,
)
from logpipe.decoding import has_more_elements
from logpipe.event import LEVELS, NOT_DECODED, Event, level_name
from logpipe.problems import Problem

PATHS = ("/v1/logs",)

PROTOBUF_TYPES = ("application/x-protobuf", "application/protobuf")
JSON_TYPE = "application/json"

MAX_RECORD_BYTES = 1024 * 1024
"""Of one record as it comes: far more than an event may have."""

MAX_DEPTH = 64
"""Levels of values within values; more of them are cut off. Protobuf's own bound is 100."""

TOO_DEEP = f"(nested over {MAX_DEPTH} levels)"

Decoded = TypeVar("Decoded")

_CODES = {400: 3, 401: 16, 403: 7, 413: 3, 415: 3, 422: 3, 429: 8, 503: 14}
"""gRPC's codes for HTTP's."""


class AnyValue(msgspec.Struct, rename="camel", gc=False):
    """The JSON twin of the message of that name, and so on: fields are named as in protobuf, so
    that one mapping reads both."""

    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | None = None
    double_value: float | None = None
    array_value: "ArrayValue | None" = None
    kvlist_value: "KeyValueList | None" = None
    bytes_value: str | None = None

    def WhichOneof(self, _: str) -> str | None:  # noqa: N802 - protobuf calls it so
        """The name of the field that is set."""
        return next((n for n in self.__struct_fields__ if getattr(self, n) is not None), None)


class KeyValue(msgspec.Struct, gc=False):
    key: str = ""
    value: AnyValue | None = None


class ArrayValue(msgspec.Struct, gc=False):
    values: list[AnyValue] = []


class KeyValueList(msgspec.Struct, gc=False):
    values: list[KeyValue] = []


class Resource(msgspec.Struct, gc=False):
    attributes: list[KeyValue] = []


class Scope(msgspec.Struct, gc=False):
    name: str = ""
    version: str = ""
    attributes: list[KeyValue] = []


class LogRecord(msgspec.Struct, rename="camel", gc=False):
    time_unix_nano: int = 0
    observed_time_unix_nano: int = 0
    severity_number: int | str = 0
    severity_text: str = ""
    body: AnyValue | None = None
    attributes: list[KeyValue] = []
    dropped_attributes_count: int = 0
    flags: int = 0
    trace_id: str = ""
    span_id: str = ""
    event_name: str = ""


class ScopeLogs(msgspec.Struct, rename="camel", gc=False):
    scope: Scope | None = None
    log_records: Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array"})] = (
        msgspec.field(default_factory=functools.partial(msgspec.Raw, b"[]"))
    )
    schema_url: str = ""


class ResourceLogs(msgspec.Struct, rename="camel", gc=False):
    resource: Resource | None = None
    scope_logs: list[ScopeLogs] = []
    schema_url: str = ""


class Export(msgspec.Struct, rename="camel", gc=False):
    resource_logs: list[ResourceLogs] = []


# Not strict: a 64-bit number comes as a text.
_decode = msgspec.json.Decoder(Export, strict=False).decode
_decode_record = msgspec.json.Decoder(LogRecord, strict=False).decode
_decode_records = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse(request: Request) -> Batch:
    """Each log record is an event."""
    if request.media_type == JSON_TYPE:
        return Batch(_of_json(request.body), functools.partial(_answer, json=True))
    if request.media_type in PROTOBUF_TYPES:
        return Batch(_of_protobuf(request.body), functools.partial(_answer, json=False))
    raise Problem(415, f"Content-Type is {JSON_TYPE} or {PROTOBUF_TYPES[0]}.")


def _of_json(body: bytes) -> Iterator[Item]:
    read = functools.partial(_read, _decode_record)
    for resource_logs in _read(_decode, body).resource_logs:
        source, resource = _resource(resource_logs.resource, resource_logs.schema_url)
        for logs in resource_logs.scope_logs:
            shared = fields.merge(_scope(logs.scope, logs.schema_url), resource, "resource.")
            for raw in _records(bytes(logs.log_records)):
                yield _item(read, bytes(raw), source, shared)


def _read(decode: Callable[[bytes], Decoded], text: bytes) -> Decoded:
    """What a decoder makes of JSON in which null stands for a field's default, as protobuf has it.
    Senders have few of them: only where one was met are they looked for."""
    try:
        return fields.decoded(decode, text)
    except msgspec.ValidationError:
        if b"null" not in text:
            raise
        value = _without_nulls(fields.decoded(msgspec.json.decode, text))
        return decode(msgspec.json.encode(value))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _records(array: bytes) -> Sequence[msgspec.Raw]:
    """The records, none of which is read yet. They are counted first: even so each takes seventy
    bytes, however small it is."""
    if has_more_elements(array, MAX_REPEATED):
        raise too_many()
    return _decode_records(array)


def _of_protobuf(body: bytes) -> Iterator[Item]:
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as Message
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage

    read = functools.partial(parsed, Message)
    for resource_logs in each(
        message("ResourceLogs"), parsed(message("Export"), body).resource_logs
    ):
        told = parsed(ResourceMessage, resource_logs.resource)
        source, resource = _resource(told, resource_logs.schema_url.decode(errors="replace"))
        for logs in each(message("ScopeLogs"), resource_logs.scope_logs):
            scope = parsed(InstrumentationScope, logs.scope)
            found = _scope(scope, logs.schema_url.decode(errors="replace"))
            shared = fields.merge(found, resource, "resource.")
            for raw in counted(logs.log_records):
                yield _item(read, raw, source, shared)


def _item(read: Any, raw: Any, source: Any, shared: Mapping[str, Any]) -> Item:
    """The event of a record; one that cannot be read or is far too large keeps no other out."""
    if memoryview(raw).nbytes > MAX_RECORD_BYTES:
        return Problem(413, f"The record has over {MAX_RECORD_BYTES} bytes.")
    try:
        return _event(read(raw), source, shared)
    except NOT_DECODED as error:
        return Problem(400, f"The record cannot be read: {error}")
    except Problem as problem:
        return problem


def _resource(resource: Any, schema_url: str) -> tuple[Any, dict[str, Any]]:
    """The source of a resource's records, and what they have in common."""
    attributes = _attributes(resource.attributes) if resource else {}
    source = attributes.get("service.name")
    return source, attributes | fields.present(schema_url=schema_url)


def _scope(scope: Any, schema_url: str) -> dict[str, Any]:
    found = fields.present(otel__scope__schema_url=schema_url)
    if scope:
        found |= fields.present(otel__scope__name=scope.name, otel__scope__version=scope.version)
        fields.merge(found, _attributes(scope.attributes), "otel.scope.")
    return found


def _event(record: Any, source: Any, shared: Mapping[str, Any]) -> Event:
    metadata = fields.present(
        trace_id=_hex(record.trace_id),
        span_id=_hex(record.span_id),
        trace_flags=record.flags or None,
        event__name=record.event_name,
        dropped_attributes_count=record.dropped_attributes_count or None,
    )
    if record.time_unix_nano and record.observed_time_unix_nano:
        # A text: a number of that size loses its last digits in a browser.
        metadata["observed_time_unix_nano"] = str(record.observed_time_unix_nano)
    fields.merge(metadata, _attributes(record.attributes), "attributes.")
    fields.merge(metadata, shared, "resource.")
    level, said = _level(record)
    ts_unix_ms = fields.ms_within(
        (record.time_unix_nano or record.observed_time_unix_nano) // 1_000_000
    )
    body = _value(record.body)
    message = record.event_name if body is None else fields.text_of(body)
    metadata |= said
    return fields.event_of(
        source or "unknown_service", message, level, ts_unix_ms or None, metadata
    )


def _level(record: Any) -> tuple[str, dict[str, Any]]:
    """The level, and what the record says of it beyond."""
    number, text = record.severity_number, record.severity_text
    if isinstance(number, str):  # an enum's name, which JSON should not but may have
        name = number.removeprefix("SEVERITY_NUMBER_")
        return text or name.rstrip("234"), fields.present(severity_number=number)
    if not 1 <= number <= 24:
        return text, fields.present(severity_number=number or None)
    level = LEVELS[(number - 1) // 4]
    said: dict[str, Any] = {} if number % 4 == 1 else {"severity_number": number}
    if text and level_name(text) != level:
        said["severity_text"] = text
    return level, said


def _attributes(pairs: Any, depth: int = MAX_DEPTH) -> dict[str, Any]:
    return {pair.key: _value(pair.value, depth) for pair in pairs}


def _value(value: Any, depth: int = MAX_DEPTH) -> Any:
    """What an AnyValue stands for, as JSON has it."""
    kind = value.WhichOneof("value") if value is not None else None
    if kind is None:
        return None
    if depth == 0:
        return TOO_DEEP
    inner = getattr(value, kind)
    if kind == "array_value":
        return [_value(each, depth - 1) for each in inner.values]
    if kind == "kvlist_value":
        return _attributes(inner.values, depth - 1)
    if kind == "bytes_value" and isinstance(inner, bytes):
        return base64.b64encode(inner).decode()
    if kind == "double_value" and not math.isfinite(inner):
        return str(inner)
    return inner


def _hex(identifier: bytes | str) -> str:
    return identifier.hex() if isinstance(identifier, bytes) else identifier.lower()


def _answer(outcomes: Sequence[Outcome], *, json: bool) -> Answer:
    """A partial success names the first of what was refused; the sender does not repeat that."""
    problems = problems_of(outcomes)
    raise_if_none_taken(outcomes)
    if not problems:
        return Answer(200, JSON_TYPE, b"{}") if json else Answer(200, PROTOBUF_TYPES[0])
    index, first = problems[0]
    told = f"Record {index}: {first.detail}"
    if json:
        partial = {"rejectedLogRecords": str(len(problems)), "errorMessage": told}
        return Answer(200, JSON_TYPE, msgspec.json.encode({"partialSuccess": partial}))
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = len(problems)
    response.partial_success.error_message = told
    return Answer(200, PROTOBUF_TYPES[0], response.SerializeToString())


def refused(request: Request, problem: Problem) -> Answer:
    """A google.rpc.Status; a plain text where the request's type is none of this protocol's."""
    code = _CODES.get(problem.status, 2)
    if request.media_type == JSON_TYPE:
        body = msgspec.json.encode({"code": code, "message": problem.detail})
        return Answer(problem.status, JSON_TYPE, body, problem.headers)
    if request.media_type not in PROTOBUF_TYPES:
        return Answer(problem.status, "text/plain", problem.detail.encode(), problem.headers)
    body = message("Status")(code=code, message=problem.detail).SerializeToString()
    return Answer(problem.status, PROTOBUF_TYPES[0], body, problem.headers)
