"""Datadog's logs: version 2 as its agent, Vector and Fluent Bit send, and version 1."""

from collections.abc import Iterator
from typing import Any

import msgspec

from logpipe.collector.answer import Answer
from logpipe.collector.receivers import fields, generic, json_text, levels, schema
from logpipe.collector.receivers.protocol import Batch, Item, Request, always
from logpipe.event import Event
from logpipe.problems import Problem

PATHS = ("/api/v2/logs",)
V1_PATHS = ("/v1/input", "/v1/input/{token}")
VALIDATE_PATHS = ("/api/v1/validate",)

MAX_TAGS = 10_000
"""Of one event: far more than it may have as metadata."""

_NAMES = generic.Names(
    message=("message", "msg", "log", "text"),
    level=("status", *levels.LEVELS),
    source=("service", "service.name", "ddsource"),
    time=("timestamp", "@timestamp", "date", "time"),
)


def parse(request: Request) -> Batch:
    """Each object is an event; a request without any keeps the connection alive."""
    return Batch(_items(request.body), always(Answer(202, "application/json", b"{}")))


def parse_v1(request: Request) -> Batch:
    """The same, answered by 200."""
    return Batch(_items(request.body), always(Answer(200, "application/json", b"{}")))


def _items(body: bytes) -> Iterator[Item]:
    for value in json_text.json_values(body):
        if isinstance(value, Problem):
            yield value
        elif value != {}:
            yield _event(value if isinstance(value, dict) else {"message": value})


def _event(entry: dict[str, Any]) -> Event:
    tags = entry.pop("ddtags", "")
    told = _tags(tags) if isinstance(tags, str) else {"ddtags": tags}
    about = fields.present(host__name=entry.pop("hostname", None))
    if fields.is_text(entry.get("service")):
        about |= fields.present(datadog__log__source=entry.pop("ddsource", None))
    message = entry.get("message")
    if isinstance(message, dict):
        del entry["message"]
        fields.merge(entry, message, "message.")
    elif message is not None:
        entry["message"] = schema.text_of(message)
    event = generic.event_of(entry, _NAMES, "datadog")
    for more in (about, told):
        fields.merge(event.metadata, more, "datadog.")
    return event


def _tags(text: str) -> dict[str, Any]:
    """`k:v,k:v`; one that comes twice has a list, one without a value is true. What is behind the
    first `MAX_TAGS` is one tag."""
    found: dict[str, Any] = {}
    for tag in filter(None, (each.strip() for each in text.split(",", MAX_TAGS))):
        name, colon, value = tag.partition(":")
        new = value if colon else True
        if name not in found:
            found[name] = new
        elif isinstance(found[name], list):
            found[name].append(new)
        else:
            found[name] = [found[name], new]
    return fields.named(found)


def valid(_: Request) -> Answer:
    """That the key was let through."""
    return Answer(200, "application/json", b'{"valid":true}')


def token(request: Request) -> str | None:
    """`DD-API-KEY`, a parameter, or version 1's path."""
    return (
        request.headers.get("dd-api-key")
        or request.query.get("dd-api-key")
        or request.query.get("api_key")
        or request.path.get("token")
    )


def refused(_: Request, problem: Problem) -> Answer:
    """The errors as a list, as versions 1 and 2 both have had them."""
    body = msgspec.json.encode({"errors": [problem.detail]})
    return Answer(problem.status, "application/json", body, problem.answered_headers())
