"""Splunk's HTTP Event Collector, as Docker's own driver and many shippers send to it."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from logpipe.auth import token_of
from logpipe.collector.answer import Answer
from logpipe.collector.receivers import fields, generic, json_text, levels, schema, times
from logpipe.collector.receivers.protocol import (
    Batch,
    Item,
    Outcome,
    Request,
    raise_if_none_taken,
)
from logpipe.event import Event
from logpipe.problems import Problem

BASE = "/services/collector"
PATHS = (BASE, f"{BASE}/event", f"{BASE}/event/1.0")
RAW_PATHS = (f"{BASE}/raw", f"{BASE}/raw/1.0")
HEALTH_PATHS = (f"{BASE}/health", f"{BASE}/health/1.0")

# What an envelope says for those after it, too.
_KNOWN = {
    "host": "host.name",
    "source": "com.splunk.source",
    "sourcetype": "com.splunk.sourcetype",
    "index": "com.splunk.index",
}
_ORIGINS = ("com.splunk.source", "com.splunk.sourcetype", "host.name")
_NAMES = generic.Names(source=("service.name", "service", "tag"))


def parse(request: Request) -> Batch:
    """Each envelope's event is one. A wrong envelope is a `Problem` with Splunk's code and the
    number of the event, and keeps no other out: senders drop a batch that is answered 400."""
    return Batch(_items(request.body), _answer)


def _answer(outcomes: Sequence[Outcome]) -> Answer:
    if not outcomes:
        raise _bad(5, "No data")
    raise_if_none_taken(outcomes)
    return _told(200, 0, "Success")


def _items(body: bytes) -> Iterator[Item]:
    carried: dict[str, Any] = {}
    for number, envelope in enumerate(json_text.json_values(body)):
        if not isinstance(envelope, dict):
            yield _bad(6, "Invalid data format", number)
            continue
        carried |= {name: envelope[name] for name in _KNOWN if name in envelope}
        if envelope.get("event") is None:
            yield _bad(12, "Event field is required", number)
        elif envelope["event"] == "":
            yield _bad(13, "Event field cannot be blank", number)
        else:
            yield _event({**envelope, **carried})


def _event(envelope: dict[str, Any]) -> Event:
    event = _inner(envelope.pop("event"))
    ts_unix_ms = times.ms_of(fields.pop(envelope, ("time",), times.is_time))
    added = envelope.pop("fields", None)
    metadata = fields.named(added) if isinstance(added, dict) else fields.present(fields=added)
    level = fields.pop(metadata, levels.LEVELS, levels.is_level)
    about = _about(envelope)
    origins = [metadata.get("service.name"), event.source, *map(about.get, _ORIGINS)]
    fields.merge(metadata, event.metadata, "event.")
    fields.merge(metadata, about, "splunk.")
    return schema.event_of(
        next(filter(fields.is_text, origins), "splunk"),
        event.message,
        level or event.level,
        event.ts_unix_ms if ts_unix_ms is None else ts_unix_ms,
        metadata,
    )


def _inner(value: Any) -> Event:
    """What an envelope holds, as far as it tells an event by itself; without a source it is ``."""
    if not isinstance(value, dict):
        return Event("", schema.text_of(value))
    if value.get("source") in ("stdout", "stderr"):  # Docker's
        value["log.iostream"] = value.pop("source")
    source = fields.first(value, _NAMES.source, fields.is_text)
    event = generic.event_of(value, _NAMES, "splunk")
    event.source = source or ""
    return event


def _about(envelope: dict[str, Any]) -> dict[str, Any]:
    """What an envelope says besides, by the names that OpenTelemetry gives it."""
    about = {known: envelope.pop(name, None) for name, known in _KNOWN.items()}
    told = {name: schema.text_of(value) for name, value in about.items() if value is not None}
    return fields.present(**told) | envelope


def parse_raw(request: Request) -> Batch:
    """Each line is an event; parameters say of all what an envelope says of one."""
    about = {name: request.query[name] for name in _KNOWN if request.query.get(name)}
    lines = (line.decode(errors="replace") for line in json_text.lines_of(request.body) if line)
    return Batch((_event({**about, "event": line}) for line in lines), _answer)


def token(request: Request) -> str | None:
    """`Splunk TOKEN`, or a parameter."""
    return token_of(request.headers.get("authorization"), "splunk") or request.query.get("token")


def health(*, serves: bool) -> Answer:
    """Whether events are taken now; asked without a token."""
    if serves:
        return _told(200, 17, "HEC is healthy")
    return _told(503, 18, "HEC is unhealthy, queues are full")


def refused(_: Request, problem: Problem) -> Answer:
    """Splunk's number for what was wrong, and its words; ours beside them."""
    code, text = problem.members.get("splunk") or {
        401: (2, "Token is required"),
        403: (4, "Invalid token"),
        429: (9, "Server is busy"),
        503: (9, "Server is busy"),
    }.get(problem.status, (6, "Invalid data format"))
    members = {"invalid-event-number": problem.members.get("number"), "detail": problem.detail}
    answer = _told(
        problem.status, code, text, **{k: v for k, v in members.items() if v is not None}
    )
    return answer._replace(headers=problem.answered_headers())


def _bad(code: int, text: str, number: int | None = None) -> Problem:
    return Problem(400, text, splunk=(code, text), number=number)


def _told(status: int, code: int, text: str, **members: Any) -> Answer:
    body = msgspec.json.encode({"text": text, "code": code, **members})
    return Answer(status, "application/json", body)
