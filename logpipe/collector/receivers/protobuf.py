"""Messages of protobuf that no package ships, described in code for protobuf's own runtime.

Imports protobuf where it is needed: a process that gets no such request never loads it.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from logpipe.collector.receivers.repeated import MAX_REPEATED, counted, too_many
from logpipe.problems import Problem
from logpipe.turns import pause

Row = tuple[str, int, str]
"""A field: its name, its number, its type; `[]` before the type when it repeats, `|` when it is one
of the oneof `value`."""

_TYPES = {
    "double": 1, "int64": 3, "int32": 5, "fixed64": 6, "fixed32": 7, "bool": 8, "string": 9,
    "bytes": 12, "uint32": 13,
}  # fmt: skip
_MESSAGE, _OPTIONAL, _REPEATED = 11, 1, 3

_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED: Mapping[int, int] = {1: 8, 5: 4}
"""Types on the wire that have a size, in bytes."""

_MORE, _MAX_VARINT = 0x80, 10

MESSAGES: Mapping[str, Sequence[Row]] = {
    # Loki's push.proto. Texts of requests are bytes: one that is not UTF-8 keeps no other out.
    "PushRequest": (("streams", 1, "[]bytes"),),
    "Stream": (("labels", 1, "bytes"), ("entries", 2, "[]bytes")),
    "Entry": (
        ("timestamp", 1, "Timestamp"),
        ("line", 2, "bytes"),
        ("structured_metadata", 3, "[]Pair"),
    ),
    "Timestamp": (("seconds", 1, "int64"), ("nanos", 2, "int32")),
    "Pair": (("name", 1, "bytes"), ("value", 2, "bytes")),
    # OTLP's logs.
    "Export": (("resource_logs", 1, "[]bytes"),),
    "ResourceLogs": (
        ("resource", 1, "bytes"),
        ("scope_logs", 2, "[]bytes"),
        ("schema_url", 3, "bytes"),
    ),
    "ScopeLogs": (("scope", 1, "bytes"), ("log_records", 2, "[]bytes"), ("schema_url", 3, "bytes")),
    "Resource": (("attributes", 1, "[]KeyValue"),),
    "Scope": (
        ("name", 1, "bytes"),
        ("version", 2, "bytes"),
        ("attributes", 3, "[]KeyValue"),
    ),
    "LogRecord": (
        ("time_unix_nano", 1, "fixed64"),
        ("severity_number", 2, "int32"),
        ("severity_text", 3, "bytes"),
        ("body", 5, "AnyValue"),
        ("attributes", 6, "[]KeyValue"),
        ("dropped_attributes_count", 7, "uint32"),
        ("flags", 8, "fixed32"),
        ("trace_id", 9, "bytes"),
        ("span_id", 10, "bytes"),
        ("observed_time_unix_nano", 11, "fixed64"),
        ("event_name", 12, "bytes"),
    ),
    "AnyValue": (
        ("string_value", 1, "|bytes"),
        ("bool_value", 2, "|bool"),
        ("int_value", 3, "|int64"),
        ("double_value", 4, "|double"),
        ("array_value", 5, "|ArrayValue"),
        ("kvlist_value", 6, "|KeyValueList"),
        ("bytes_value", 7, "|bytes"),
    ),
    "ArrayValue": (("values", 1, "[]AnyValue"),),
    "KeyValueList": (("values", 1, "[]KeyValue"),),
    "KeyValue": (("key", 1, "bytes"), ("value", 2, "AnyValue")),
    "ExportResponse": (("partial_success", 1, "PartialSuccess"),),
    "PartialSuccess": (("rejected_log_records", 1, "int64"), ("error_message", 2, "string")),
    # google.rpc.Status, without its details.
    "Status": (("code", 1, "int32"), ("message", 2, "string")),
}
"""Inner messages are bytes where there may be many: an empty one takes two bytes on the wire and a
hundred in memory, so that they are counted first and then read one by one."""


@functools.cache
def message(name: str) -> Any:
    """The class of one of `MESSAGES`."""
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(_pool().FindMessageTypeByName(f"logpipe.{name}"))


@functools.cache
def _pool() -> Any:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool

    file = FileDescriptorProto(name="logpipe.proto", package="logpipe", syntax="proto3")
    for name, rows in MESSAGES.items():
        described: Any = file.message_type.add(name=name)
        if any(kind.startswith("|") for _, _, kind in rows):
            described.oneof_decl.add(name="value")
        for field, number, kind in rows:
            row = described.field.add(name=field, number=number)
            inner = kind.lstrip("[]|")
            row.label = _REPEATED if kind.startswith("[]") else _OPTIONAL
            if kind.startswith("|"):
                row.oneof_index = 0
            row.type = _TYPES.get(inner, _MESSAGE)
            if inner not in _TYPES:
                row.type_name = f".logpipe.{inner}"
    pool = DescriptorPool()
    pool.Add(file)
    return pool


def parsed(kind: Any, body: bytes) -> Any:
    """A message of a class. Raises a `Problem`: 400 for other bytes, 413 for more fields than a
    list may have elements."""
    from google.protobuf.message import DecodeError

    if _has_more_fields(body, MAX_REPEATED):
        raise too_many()
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise Problem(400, f"This is no protobuf of the kind expected: {error}") from None


def _has_more_fields(body: bytes, most: int) -> bool:
    """Whether a message has more fields than that on its own level; what is no protobuf ends it.
    The runtime builds all of them before it says how many there are."""
    size = len(body)
    if size <= 2 * most:
        return False
    at = 0
    for _ in range(most + 1):
        pause()
        if at >= size:
            return False
        tag = body[at]
        at = at + 1 if tag < _MORE else _after_varint(body, at)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            start = at
            at = _after_varint(body, start)
            at += _varint(body[start:at])
        elif kind in _FIXED:
            at += _FIXED[kind]
        elif kind == _VARINT:
            at = _after_varint(body, at)
    return True


def _after_varint(body: bytes, at: int) -> int:
    end = at
    for end in range(at, min(at + _MAX_VARINT, len(body))):
        if body[end] < _MORE:
            break
    return end + 1


def _varint(encoded: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded))


def each(kind: Any, bodies: Sequence[bytes]) -> Iterator[Any]:
    """The messages of a repeated field, one by one; a 400 `Problem` in place of one that cannot be
    read. Raises a 413 `Problem` for too many."""
    return (attempted(kind, body) for body in counted(bodies))


def attempted(kind: Any, body: bytes) -> Any:
    """As `parsed`, but the `Problem` of what cannot be read is returned."""
    pause()
    try:
        return parsed(kind, body)
    except Problem as problem:
        if problem.status == 413:
            raise
        return problem
