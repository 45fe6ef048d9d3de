"""OTLP as JSON: the twins of protobuf's messages, and what is made of values of another type than
they should have, so that an odd value costs no other."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from logpipe.collector.receivers import json_text, schema
from logpipe.collector.receivers.repeated import Array

Twin = TypeVar("Twin", bound=msgspec.Struct)

_KINDS = (
    "stringValue", "boolValue", "intValue", "doubleValue", "arrayValue", "kvlistValue",
    "bytesValue",
)  # fmt: skip


class AnyValue(msgspec.Struct, rename="camel", gc=False):
    """The twin of the message of that name, and so on: fields are named as in protobuf, so that
    one mapping reads both."""

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


_null = functools.partial(msgspec.Raw, b"null")


class ScopeLogs(msgspec.Struct, rename="camel", gc=False):
    scope: msgspec.Raw = msgspec.field(default_factory=_null)
    log_records: Array = msgspec.field(default_factory=_null)
    schema_url: msgspec.Raw = msgspec.field(default_factory=_null)


class ResourceLogs(msgspec.Struct, rename="camel", gc=False):
    resource: msgspec.Raw = msgspec.field(default_factory=_null)
    scope_logs: Array = msgspec.field(default_factory=_null)
    schema_url: msgspec.Raw = msgspec.field(default_factory=_null)


class Export(msgspec.Struct, rename="camel", gc=False):
    """A request; each element of its lists is read by itself."""

    resource_logs: Array = msgspec.field(default_factory=_null)


def reader(twin: type[Twin], name: str = "") -> Callable[[msgspec.Raw], Twin]:
    """A function that reads JSON as a twin. A value of another type than it should have is kept as
    text, in its place or else as an attribute; null stands for a field's default, as protobuf has
    it. What is not an object is an attribute by that name; without one it is an error. The function
    raises as `json_text.decoded`."""
    # Not strict: a 64-bit number comes as a text.
    strict = msgspec.json.Decoder(twin, strict=False).decode

    def read(raw: msgspec.Raw) -> Twin:
        text = bytes(raw)
        json_text.require_few_values(text)
        try:
            return json_text.decoded(strict, text)
        except msgspec.ValidationError:
            given = json_text.decoded(msgspec.json.decode, text)
        if name and not isinstance(given, dict):
            given = {"attributes": None if given is None else {name: given}}
        return _loose(twin, given)

    return read


def _loose(twin: type[Twin], given: Any) -> Twin:
    if not isinstance(given, dict):
        raise msgspec.ValidationError("Expected an object")
    found: Any = twin()
    odd: list[KeyValue] = []
    for field in msgspec.structs.fields(twin):
        value = given.get(field.encode_name)
        if value is None:
            continue
        try:
            setattr(found, field.name, _READ.get(field.name, schema.text_of)(value))
        except ValueError:
            odd.append(KeyValue(field.name, AnyValue(schema.text_of(value))))
    found.attributes = [*found.attributes, *odd]
    return cast("Twin", found)


def _whole(value: Any) -> int:
    """A whole number, also of a decimal one or of a text. Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = schema.text_of(value)
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not math.isfinite(number):
        raise ValueError(value)
    return int(number)


def _severity(value: Any) -> int | str:
    return value if isinstance(value, str) else _whole(value)


def any_value(value: Any) -> AnyValue | None:
    """What an AnyValue stands for, and what stands there instead, as it is."""
    if value is None:
        return None
    if isinstance(value, dict):
        return _of_kinds({name: inner for name, inner in value.items() if inner is not None})
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return (
        AnyValue(double_value=value)
        if isinstance(value, float)
        else AnyValue(schema.text_of(value))
    )


def _of_kinds(value: dict[str, Any]) -> AnyValue | None:
    if not value:
        return None
    kind, inner = next(((k, value[k]) for k in _KINDS if k in value), ("", value))
    if kind == "arrayValue" and isinstance(inner, dict):
        values = [any_value(each) or AnyValue() for each in _listed(inner.get("values"))]
        return AnyValue(array_value=ArrayValue(values))
    if kind == "kvlistValue" and isinstance(inner, dict):
        return AnyValue(kvlist_value=KeyValueList(_pairs(inner.get("values"))))
    try:
        return (
            msgspec.convert({kind: inner}, AnyValue, strict=False)
            if kind
            else AnyValue(schema.text_of(inner))
        )
    except msgspec.ValidationError:
        return AnyValue(schema.text_of(inner))


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]


def _pairs(given: Any) -> list[KeyValue]:
    """Pairs of a key and a value, also of an object of them; what is no pair has its number for a
    key."""
    if isinstance(given, dict):
        return [KeyValue(key, any_value(value)) for key, value in given.items()]
    return [
        KeyValue(schema.text_of(each.get("key") or ""), any_value(each.get("value")))
        if isinstance(each, dict)
        else KeyValue(f"attribute.{number}", any_value(each))
        for number, each in enumerate(_listed(given))
    ]


_READ: dict[str, Callable[[Any], Any]] = {
    "time_unix_nano": _whole,
    "observed_time_unix_nano": _whole,
    "severity_number": _severity,
    "dropped_attributes_count": _whole,
    "flags": _whole,
    "body": any_value,
    "attributes": _pairs,
}
"""How the fields of records, resources and scopes are read that are not texts."""
