"""Messages of protobuf that no package ships, described in code for protobuf's own runtime.

Imports protobuf where it is needed: a process that gets no such request never loads it.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from logpipe.problems import Problem

MAX_REPEATED = 200_000
"""Messages of one repeated field, also those of which no event is made."""

Row = tuple[str, int, str]
"""A field: its name, its number, its type; `[]` before the type when it repeats."""

_TYPES = {"string": 9, "bytes": 12, "int64": 3, "int32": 5}
_MESSAGE, _OPTIONAL, _REPEATED = 11, 1, 3

MESSAGES: Mapping[str, Sequence[Row]] = {
    # Loki's push.proto. Its texts are bytes: one line that is no UTF-8 shall not keep others out.
    "PushRequest": (("streams", 1, "[]bytes"),),
    "Stream": (("labels", 1, "bytes"), ("entries", 2, "[]bytes")),
    "Entry": (
        ("timestamp", 1, "Timestamp"),
        ("line", 2, "bytes"),
        ("structured_metadata", 3, "[]Pair"),
    ),
    "Timestamp": (("seconds", 1, "int64"), ("nanos", 2, "int32")),
    "Pair": (("name", 1, "bytes"), ("value", 2, "bytes")),
    # The outer levels of OTLP's logs; what they hold is read by the classes of its own package.
    "Export": (("resource_logs", 1, "[]bytes"),),
    "ResourceLogs": (
        ("resource", 1, "bytes"),
        ("scope_logs", 2, "[]bytes"),
        ("schema_url", 3, "bytes"),
    ),
    "ScopeLogs": (("scope", 1, "bytes"), ("log_records", 2, "[]bytes"), ("schema_url", 3, "bytes")),
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
        for field, number, kind in rows:
            row = described.field.add(name=field, number=number)
            inner = kind.removeprefix("[]")
            row.label = _OPTIONAL if inner == kind else _REPEATED
            row.type = _TYPES.get(inner, _MESSAGE)
            if inner not in _TYPES:
                row.type_name = f".logpipe.{inner}"
    pool = DescriptorPool()
    pool.Add(file)
    return pool


def parsed(kind: Any, body: bytes) -> Any:
    """A message of a class. Raises a 400 `Problem`."""
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise Problem(400, f"This is no protobuf of the kind expected: {error}") from None


def each(kind: Any, bodies: Sequence[bytes]) -> Iterator[Any]:
    """The messages of a repeated field, one by one. Raises a 413 `Problem` for too many."""
    return (parsed(kind, body) for body in counted(bodies))


def counted(bodies: Sequence[bytes]) -> Sequence[bytes]:
    """The same. Raises a 413 `Problem` for more than a request may have."""
    if len(bodies) > MAX_REPEATED:
        raise too_many()
    return bodies


def too_many() -> Problem:
    """The 413 of more than `MAX_REPEATED`."""
    detail = f"A list of the request may have {MAX_REPEATED} messages."
    return Problem(413, detail, hits={"batch": 1})
