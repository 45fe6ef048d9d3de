"""Loki's push: JSON, and protobuf packed by snappy, as Promtail, Alloy and Docker's driver send."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from logpipe.collector.answer import Answer
from logpipe.collector.receivers import fields, json_text, levels, schema, times
from logpipe.collector.receivers.protobuf import each, message, parsed
from logpipe.collector.receivers.protocol import Batch, Item, Request, always
from logpipe.collector.receivers.repeated import Array, elements
from logpipe.collector.receivers.unpacking import claimed_size, from_snappy
from logpipe.event import NOT_DECODED, Event
from logpipe.problems import Problem
from logpipe.turns import pause

PATHS = ("/loki/api/v1/push", "/api/prom/push")
READY_PATHS = ("/ready",)

SOURCES = (
    "service_name", "service", "app", "application", "app_name", "name", "app_kubernetes_io_name",
    "container", "container_name", "k8s_container_name", "compose_service", "component",
    "workload", "job", "k8s_job_name", "host", "hostname",
)  # fmt: skip
"""Labels by which Loki itself tells services, most telling first."""

LARGE_BYTES = 64 * 1024
"""Unpacked; a larger push is read in a thread, as a larger body is."""

MAX_KNOWN_LABELS = 1024
"""Characters of labels that are remembered: a sender repeats its own with every push."""

_LABEL = re.compile(r'\s*([^\s={},"]+)\s*=\s*"((?:[^"\\]++|\\.)*+)"\s*(?:,|$)', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}


class JsonPush(msgspec.Struct, gc=False):
    """The body of a push as JSON. A stream is an object with `stream` and `values`, or as the first
    version had it, with `labels` and `entries`."""

    streams: Array


class JsonStream(msgspec.Struct, gc=False):
    """A stream of such a push, nothing of it read yet; what is not there is empty."""

    stream: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    labels: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    values: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    entries: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


_decode = msgspec.json.Decoder(JsonPush).decode
_decode_stream = msgspec.json.Decoder(JsonStream).decode


def parse(request: Request) -> Batch:
    """Each value of each stream is an event; one that cannot be read is a `Problem` by itself."""
    tenant = request.text("x-scope-orgid")
    if request.media_type == "application/json":
        items = _of_json(json_text.decoded(_decode, request.body), tenant)
    else:
        items = _of_protobuf(request, tenant)
    return Batch(items, always(Answer(204)))


def _of_json(push: JsonPush, tenant: str) -> Iterator[Item]:
    for raw in elements(push.streams):
        pause()
        stream = _stream_of(bytes(raw))
        if isinstance(stream, dict):
            yield from _of_stream(stream, tenant)
        else:
            yield stream if isinstance(stream, Problem) else Problem(400, "A stream is an object.")


def _stream_of(text: bytes) -> Any:
    """A stream, or a `Problem`. Of a large one the lists are read element by element."""
    if len(text) <= LARGE_BYTES:
        return json_text.json_value(text)
    try:
        stream = json_text.decoded(_decode_stream, text)
    except NOT_DECODED as error:
        return Problem(400, f"A stream cannot be read: {error}")
    found: dict[str, Any] = {}
    for name in stream.__struct_fields__:
        raw = bytes(getattr(stream, name))
        if name in _LISTS and raw.startswith(b"["):
            found[name] = map(json_text.json_value, map(bytes, elements(msgspec.Raw(raw))))
        elif raw:
            found[name] = json_text.json_value(raw)
    return found


def _of_stream(stream: dict[str, Any], tenant: str) -> Iterator[Item]:
    given = stream.get("stream") or stream.get("labels") or {}
    labels = given if isinstance(given, dict) else labels_of(schema.text_of(given))
    if "values" not in stream and "entries" not in stream:
        yield Problem(400, "A stream has values.")
    for name, read in _LISTS.items():
        listed = stream.get(name)
        if isinstance(listed, list | map):
            yield from (read(labels, value, tenant) for value in listed)
        elif listed is not None:
            yield Problem(400, f"The {name} of a stream are a list.")


def _of_value(labels: Mapping[str, Any], value: Any, tenant: str) -> Item:
    if not isinstance(value, list) or len(value) < 2:
        return Problem(400, "A value is a list of a time and a line.")
    ts, line, *rest = value
    if not isinstance(ts, str) or not re.fullmatch(r"\d{1,20}", ts, re.ASCII):
        return Problem(400, "The time of a value is a text of nanoseconds.")
    extra = rest[0] if rest and isinstance(rest[0], dict) else {}
    return _event(labels, extra, schema.text_of(line), int(ts) // 1_000_000, tenant)


def _of_entry(labels: Mapping[str, Any], entry: Any, tenant: str) -> Item:
    """Of the first version."""
    if not isinstance(entry, dict) or "line" not in entry:
        return Problem(400, "An entry is an object with a line.")
    return _event(labels, {}, schema.text_of(entry["line"]), times.ms_of(entry.get("ts")), tenant)


_LISTS = {"values": _of_value, "entries": _of_entry}


def is_packed(request: Request) -> bool:
    """Whether the body of a push is packed still: by snappy, whether a header says so or not."""
    coding = request.headers.get("content-encoding", "").strip().lower()
    return request.media_type != "application/json" and coding in ("", "identity")


def holds_more(request: Request) -> bool:
    """Whether a push that is packed still says that it is large."""
    return is_packed(request) and claimed_size(request.body) > LARGE_BYTES


def _of_protobuf(request: Request, tenant: str) -> Iterator[Item]:
    body = from_snappy(request.body, request.limit) if is_packed(request) else request.body
    push = parsed(message("PushRequest"), body)
    for stream in each(message("Stream"), push.streams):
        if isinstance(stream, Problem):
            yield stream
            continue
        labels = labels_of(_text(stream.labels))
        for entry in each(message("Entry"), stream.entries):
            yield entry if isinstance(entry, Problem) else _of_message(labels, entry, tenant)


def _of_message(labels: Mapping[str, Any], entry: Any, tenant: str) -> Event:
    extra = {_text(pair.name): _text(pair.value) for pair in entry.structured_metadata}
    return _event(labels, extra, _text(entry.line), _time_of(entry), tenant)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _time_of(entry: Any) -> int | None:
    if not entry.HasField("timestamp"):
        return None
    return int(entry.timestamp.seconds) * 1000 + int(entry.timestamp.nanos) // 1_000_000


def _event(
    labels: Mapping[str, Any], extra: Mapping[str, Any], line: str, ts: int | None, tenant: str
) -> Event:
    found = fields.merge(dict(labels), extra, "entry.")
    level = fields.pop(found, levels.LEVELS, levels.is_level)
    source = fields.first(found, SOURCES, fields.is_text)
    metadata = fields.named(found) | fields.present(loki__tenant=tenant)
    return schema.event_of(source or "loki", line, level, times.ms_within(ts), metadata)


def labels_of(text: str) -> Mapping[str, str]:
    """The labels of `{a="b", c="d"}`; a text that is written otherwise is a label by itself."""
    return _known_labels(text) if len(text) <= MAX_KNOWN_LABELS else _labels(text)


@functools.lru_cache(maxsize=1024)
def _known_labels(text: str) -> Mapping[str, str]:
    return _labels(text)


def _labels(text: str) -> Mapping[str, str]:
    inner = text.strip().removeprefix("{").removesuffix("}").strip()
    labels, at = {}, 0
    while at < len(inner):
        label = _LABEL.match(inner, at)
        if label is None:
            return {"labels": text}
        labels[label[1]] = _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), label[2])
        at = label.end()
    return labels


def ready(*, serves: bool) -> Answer:
    """Whether events are taken now."""
    return Answer(
        200 if serves else 503, "text/plain", b"ready\n" if serves else b"Redis is away\n"
    )


def refused(_: Request, problem: Problem) -> Answer:
    """A line of text. What is wrong for good is 400: by any other status some senders repeat it."""
    status = 400 if problem.status in (413, 415, 422) else problem.status
    body = f"{problem.detail}\n".encode()
    return Answer(status, "text/plain; charset=utf-8", body, problem.answered_headers())
