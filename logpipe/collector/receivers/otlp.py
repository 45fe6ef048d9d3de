"""OTLP over HTTP: `/v1/logs`, protobuf or JSON, answered in the type of the request."""

import base64
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from logpipe.collector.answer import Answer
from logpipe.collector.receivers import fields, json_text, otlp_json, schema, times
from logpipe.collector.receivers.protobuf import attempted, each, message, parsed
from logpipe.collector.receivers.protocol import Batch, Item, Outcome, Request, problems_of
from logpipe.collector.receivers.repeated import counted, elements
from logpipe.event import LEVELS, NOT_DECODED, Event, level_name
from logpipe.problems import Problem
from logpipe.turns import pause

PATHS = ("/v1/logs",)

PROTOBUF_TYPES = ("application/x-protobuf", "application/protobuf")
JSON_TYPE = "application/json"

MAX_RECORD_BYTES = 1024 * 1024
"""Of one record as it comes, of a resource and of a scope: far more than an event may have."""

MAX_DEPTH = 64
"""Levels of values within values; more of them are cut off. Protobuf's own bound is 100."""

TOO_DEEP = f"(nested over {MAX_DEPTH} levels)"

Read = TypeVar("Read")

_CODES = {400: 3, 401: 16, 403: 7, 413: 3, 415: 3, 422: 3, 429: 8, 503: 14}
"""gRPC's codes for HTTP's."""


class Logs(NamedTuple):
    """The logs of one resource: the resource, or why it cannot be read, and the logs by scope."""

    resource: Any
    schema_url: str
    scopes: Iterable["ScopedLogs | Problem"]


class ScopedLogs(NamedTuple):
    """The logs of one scope: the scope, or why it cannot be read, and the records, unread."""

    scope: Any
    schema_url: str
    records: Sequence[Any]


_decode_export = msgspec.json.Decoder(otlp_json.Export).decode
_decode_resource_logs = msgspec.json.Decoder(otlp_json.ResourceLogs).decode
_decode_scope_logs = msgspec.json.Decoder(otlp_json.ScopeLogs).decode
_read_resource = otlp_json.reader(otlp_json.Resource, "resource")
_read_scope = otlp_json.reader(otlp_json.Scope, "scope")
_read_record = otlp_json.reader(otlp_json.LogRecord)


def parse(request: Request) -> Batch:
    """Each log record is an event. What cannot be read is a `Problem` for each record that it
    costs, or one where the records cannot be read, either."""
    if request.media_type == JSON_TYPE:
        items = _items(_of_json(request.body), _read_record)
        return Batch(items, functools.partial(_answer, json=True))
    if request.media_type in PROTOBUF_TYPES:
        items = _items(_of_protobuf(request.body), functools.partial(parsed, message("LogRecord")))
        return Batch(items, functools.partial(_answer, json=False))
    raise Problem(415, f"Content-Type is {JSON_TYPE} or {PROTOBUF_TYPES[0]}.")


def _of_json(body: bytes) -> Iterator[Logs | Problem]:
    if not body.isascii():  # msgspec does not look into what it skips
        body = body.decode(errors="replace").encode()
    for raw in elements(json_text.decoded(_decode_export, body).resource_logs):
        pause()
        logs = _attempted(_decode_resource_logs, raw)
        if isinstance(logs, Problem):
            yield logs
        else:
            resource = _attempted(_read_resource, logs.resource)
            yield Logs(resource, _url(logs.schema_url), _scopes_of_json(logs.scope_logs))


def _scopes_of_json(array: msgspec.Raw) -> Iterator[ScopedLogs | Problem]:
    scopes = _attempted(elements, array)
    if isinstance(scopes, Problem):
        yield scopes
        return
    for raw in scopes:
        pause()
        logs = _attempted(_decode_scope_logs, raw)
        if isinstance(logs, Problem):
            yield logs
            continue
        records = _attempted(elements, logs.log_records)
        if isinstance(records, Problem):
            yield records
        else:
            scope = _attempted(_read_scope, logs.scope)
            yield ScopedLogs(scope, _url(logs.schema_url), records)


def _url(raw: msgspec.Raw) -> str:
    """A schema's; empty where it cannot be read."""
    value = json_text.json_value(bytes(raw))
    return "" if isinstance(value, Problem) else _text(value)


def _of_protobuf(body: bytes) -> Iterator[Logs | Problem]:
    for logs in each(message("ResourceLogs"), parsed(message("Export"), body).resource_logs):
        if isinstance(logs, Problem):
            yield logs
        else:
            resource = _attempted_message("Resource", logs.resource)
            yield Logs(resource, _text(logs.schema_url), _scopes_of_protobuf(logs.scope_logs))


def _scopes_of_protobuf(bodies: Sequence[bytes]) -> Iterator[ScopedLogs | Problem]:
    for logs in each(message("ScopeLogs"), bodies):
        if isinstance(logs, Problem):
            yield logs
        else:
            scope = _attempted_message("Scope", logs.scope)
            yield ScopedLogs(scope, _text(logs.schema_url), counted(logs.log_records))


def _attempted_message(name: str, body: bytes) -> Any:
    """The message, or why it cannot be read."""
    if len(body) > MAX_RECORD_BYTES:
        return Problem(413, f"The {name.lower()} has over {MAX_RECORD_BYTES} bytes.")
    return attempted(message(name), body)


def _attempted(read: Callable[[msgspec.Raw], Read], raw: msgspec.Raw) -> Read | Problem:
    """What is read of JSON, or why it cannot be. Raises the 413 `Problem` of a request that has too
    much of something."""
    try:
        return read(raw)
    except NOT_DECODED as error:
        return Problem(400, f"It cannot be read: {error}")
    except Problem as problem:
        if problem.status == 413:
            raise
        return problem


def _items(resources: Iterable[Logs | Problem], read: Callable[[Any], Any]) -> Iterator[Item]:
    for logs in resources:
        if isinstance(logs, Problem):
            yield logs
            continue
        broken = logs.resource if isinstance(logs.resource, Problem) else None
        source, resource = (None, {}) if broken else _resource(logs.resource, logs.schema_url)
        for scoped in logs.scopes:
            if isinstance(scoped, Problem):
                yield scoped
            elif broken or isinstance(scoped.scope, Problem):
                yield from itertools.repeat(broken or scoped.scope, len(scoped.records))
            else:
                found = _scope(scoped.scope, scoped.schema_url)
                shared = fields.merge(found, resource, "resource.")
                yield from (_item(read, raw, source, shared) for raw in scoped.records)


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
    attributes = _attributes(resource.attributes)
    source = attributes.get("service.name")
    return source, attributes | fields.present(schema_url=schema_url)


def _scope(scope: Any, schema_url: str) -> dict[str, Any]:
    found = fields.present(
        otel__scope__schema_url=schema_url,
        otel__scope__name=_text(scope.name),
        otel__scope__version=_text(scope.version),
    )
    return fields.merge(found, _attributes(scope.attributes), "otel.scope.")


def _event(record: Any, source: Any, shared: Mapping[str, Any]) -> Event:
    metadata = fields.present(
        trace_id=_hex(record.trace_id),
        span_id=_hex(record.span_id),
        trace_flags=record.flags or None,
        event__name=_text(record.event_name),
        dropped_attributes_count=record.dropped_attributes_count or None,
    )
    if record.time_unix_nano and record.observed_time_unix_nano:
        # A text: a number of that size loses its last digits in a browser.
        metadata["observed_time_unix_nano"] = str(record.observed_time_unix_nano)
    fields.merge(metadata, _attributes(record.attributes), "attributes.")
    fields.merge(metadata, shared, "resource.")
    level, said = _level(record)
    ts_unix_ms = times.ms_within(
        (record.time_unix_nano or record.observed_time_unix_nano) // 1_000_000
    )
    body = _value(record.body)
    message = _text(record.event_name) if body is None else schema.text_of(body)
    metadata |= said
    return schema.event_of(
        source or "unknown_service", message, level, ts_unix_ms or None, metadata
    )


def _level(record: Any) -> tuple[str, dict[str, Any]]:
    """The level, and what the record says of it beyond."""
    number, text = record.severity_number, _text(record.severity_text)
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
    return {_text(pair.key): _value(pair.value, depth) for pair in pairs}


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
    if kind == "string_value":
        return _text(inner)
    if kind == "bytes_value" and isinstance(inner, bytes):
        return base64.b64encode(inner).decode()
    if kind == "double_value" and not math.isfinite(inner):
        return str(inner)
    return inner


def _text(value: Any) -> str:
    """A text of JSON, or of protobuf, where it is bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else schema.text_of(value)


def _hex(identifier: bytes | str) -> str:
    return identifier.hex() if isinstance(identifier, bytes) else identifier.lower()


def _answer(outcomes: Sequence[Outcome], *, json: bool) -> Answer:
    """A partial success says how many were rejected and names the first. It is also the answer
    where all were: the sender does not repeat them either way."""
    problems = problems_of(outcomes)
    if not problems:
        return Answer(200, JSON_TYPE, b"{}") if json else Answer(200, PROTOBUF_TYPES[0])
    index, first = problems[0]
    reason = f"Record {index}: {first.detail}"
    if json:
        partial = {"rejectedLogRecords": str(len(problems)), "errorMessage": reason}
        return Answer(200, JSON_TYPE, msgspec.json.encode({"partialSuccess": partial}))
    success = message("PartialSuccess")(rejected_log_records=len(problems), error_message=reason)
    response = message("ExportResponse")(partial_success=success)
    return Answer(200, PROTOBUF_TYPES[0], response.SerializeToString())


def refused(request: Request, problem: Problem) -> Answer:
    """A google.rpc.Status; a plain text where the request's type is none of this protocol's."""
    code = _CODES.get(problem.status, 2)
    if request.media_type == JSON_TYPE:
        body = msgspec.json.encode({"code": code, "message": problem.detail})
        return Answer(problem.status, JSON_TYPE, body, problem.answered_headers())
    if request.media_type not in PROTOBUF_TYPES:
        return Answer(
            problem.status, "text/plain", problem.detail.encode(), problem.answered_headers()
        )
    body = message("Status")(code=code, message=problem.detail).SerializeToString()
    return Answer(problem.status, PROTOBUF_TYPES[0], body, problem.answered_headers())
