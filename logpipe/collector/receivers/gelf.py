"""Graylog's GELF over HTTP: one message, or one a line."""

from collections.abc import Iterator, Sequence
from typing import Any

from logpipe.collector.answer import Answer, problem_answer
from logpipe.collector.receivers import fields, json_text, levels, schema, times
from logpipe.collector.receivers.protocol import (
    Batch,
    Item,
    Outcome,
    Request,
    raise_if_none_taken,
)
from logpipe.event import Event
from logpipe.problems import Problem

PATHS = ("/gelf",)

_SOURCES = (
    "service.name", "service", "app", "application", "application_name", "container_name",
)  # fmt: skip
_NAMES = {
    "full_message": "log.record.original",
    "file": "code.file.path",
    "line": "code.line.number",
    "facility": "gelf.facility",
}


def parse(request: Request) -> Batch:
    """Each message is an event. An array is refused, as Graylog does: it would be one message."""
    if request.body.lstrip()[:1] == b"[":
        raise Problem(400, "GELF is an object, or one a line; not an array.")
    return Batch(_items(request.body), _answer)


def _answer(outcomes: Sequence[Outcome]) -> Answer:
    if not outcomes:
        raise Problem(400, "The body holds no message.")
    raise_if_none_taken(outcomes)
    return Answer(202)


def _items(body: bytes) -> Iterator[Item]:
    for value in json_text.json_values(body):
        if isinstance(value, Problem):
            yield value
        elif not isinstance(value, dict):
            yield Problem(400, "A message is an object.")
        elif value.get("short_message") is None and value.get("message") is None:
            yield Problem(400, "short_message: is required")
        else:
            yield _event(value)


def _event(message: dict[str, Any]) -> Event:
    short = message.pop("short_message", None)
    text = schema.text_of(message.pop("message") if short is None else short)
    level = fields.pop(message, ("level",), levels.is_level)
    message.pop("version", None)
    ts_unix_ms = times.ms_of(fields.pop(message, ("timestamp",), times.is_time))
    extras = {k[1:]: message.pop(k) for k in list(message) if k.startswith("_") and len(k) > 1}
    source = fields.first(extras, _SOURCES, fields.is_text)
    own = {_NAMES.get(name, name): value for name, value in message.items()}
    host = own.pop("host", None)
    severity = level if isinstance(level, int | float) else None
    metadata = fields.present(host__name=host, syslog__severity__code=severity)
    fields.merge(metadata, own, "gelf.")
    fields.merge(metadata, fields.named(extras), "_")
    name = source or (host if fields.is_text(host) else "gelf")
    return schema.event_of(name, text, level, ts_unix_ms, metadata)


def refused(_: Request, problem: Problem) -> Answer:
    """As at `/ingest`: Graylog's own is no format."""
    return problem_answer(problem)
