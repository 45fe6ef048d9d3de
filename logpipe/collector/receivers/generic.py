"""JSON of any shape, and plain lines: `/ingest/json`. The fields of the event are guessed."""

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import msgspec

from logpipe.collector.answer import Answer, problem_answer
from logpipe.collector.ingest import (
    JSON_TYPES,
    MAX_REPORTED,
    NDJSON_TYPES,
    Receipt,
    Reported,
)
from logpipe.collector.receivers import fields, json_text, levels, schema, times
from logpipe.collector.receivers.protocol import (
    Batch,
    Item,
    Outcome,
    Request,
    problems_of,
    raise_if_none_taken,
)
from logpipe.event import Event
from logpipe.problems import Problem

PATHS = ("/ingest/json",)

MESSAGES = (
    "message", "msg", "log", "_msg", "line", "event", "body", "short_message", "text", "MESSAGE",
)  # fmt: skip
SOURCES = (
    "source", "service", "service.name", "service_name", "app", "application", "container_name",
    "container.name", "kubernetes.container_name", "logger", "logger_name", "log.logger", "host",
    "hostname", "host.name", "host.hostname",
)  # fmt: skip
TIMES = (
    "ts_unix_ms", "@timestamp", "timestamp", "time", "ts", "date", "_time", "datetime",
    "eventTime", "timeUnixNano",
)  # fmt: skip

PARAMETERS = ("message_field", "level_field", "source_field", "time_field", "source", "level")
"""Parameters of `/ingest/json`; each is also a header, such as `X-Logpipe-Source`."""

UNTYPED = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
"""Types that say nothing of the content: its first byte decides."""

MAX_LOOKED_AT = 1_000
"""Values among which an object is looked for in a body without a type."""

MAX_NAME = 256
"""Characters of a field's name that a request chooses."""

MAX_NAMES = 20
"""Of such names for one field: each is looked for in each event."""


class Names(NamedTuple):
    """Where the event's fields are looked for, and values that stand for them."""

    message: Sequence[str] = MESSAGES
    level: Sequence[str] = levels.LEVELS
    source: Sequence[str] = SOURCES
    time: Sequence[str] = TIMES
    given_source: str = ""
    given_level: str = ""


def parse(request: Request) -> Batch:
    """Each value or line is an event."""
    items = items_of(request.body, _format(request.media_type), names_of(request), "json")
    return Batch(items, _answer)


def names_of(request: Request) -> Names:
    """The names that a request chooses by parameters such as `message_field=a,b.c`, or by headers
    such as `X-Logpipe-Message-Field`, and the guesses where it chooses none. Raises a 400 `Problem`
    for too many."""

    def chosen(name: str) -> str:
        return request.query.get(name) or request.text(f"x-logpipe-{name.replace('_', '-')}")

    def names(name: str, guesses: Sequence[str]) -> Sequence[str]:
        found = tuple(each[:MAX_NAME] for each in chosen(name).split(",") if each)
        if len(found) > MAX_NAMES:
            raise Problem(400, f"{name}: may have {MAX_NAMES} names.")
        return found or guesses

    return Names(
        names("message_field", MESSAGES),
        names("level_field", levels.LEVELS),
        names("source_field", SOURCES),
        names("time_field", TIMES),
        chosen("source"),
        chosen("level"),
    )


def _format(media_type: str) -> str:
    """`json`, `ndjson`, `text`, or `` where the body decides. Raises a 415 `Problem`."""
    if media_type in NDJSON_TYPES:
        return "ndjson"
    if media_type in JSON_TYPES or media_type.endswith("+json"):
        return "json"
    if media_type == "text/plain":
        return "text"
    if media_type in UNTYPED:
        return ""
    raise Problem(
        415,
        f"Content-Type {media_type[:64]!r} is not taken: use application/json,"
        " application/x-ndjson or text/plain.",
        headers={"Accept": "application/json, application/x-ndjson, text/plain"},
    )


def items_of(body: bytes, form: str, names: Names, source: str) -> Iterator[Item]:
    """The events of a body; `source` is theirs where they say nothing of it."""
    for value in _values(body, form):
        yield value if isinstance(value, Problem) else event_of(value, names, source)


def _values(body: bytes, form: str) -> Iterator[Any]:
    if form == "json":
        return json_text.json_values(body)
    text = body.removeprefix(BOM_UTF8)
    if form == "ndjson":
        return _of_json_lines(text)
    if form == "" and text.lstrip()[:1] in (b"{", b"[", b""):
        return _json_or_lines(body)
    return _lines(text)


def _lines(body: bytes) -> Iterator[str]:
    return (line.decode(errors="replace") for line in json_text.lines_of(body) if line)


def _of_json_lines(body: bytes) -> Iterator[Any]:
    for line in map(bytes.strip, json_text.lines_of(body)):
        if line:
            value = json_text.json_value(line)
            yield from value if isinstance(value, list) else (value,)


def _json_or_lines(body: bytes) -> Iterator[Any]:
    """The values of a body that begins as JSON does; its lines where it has malformed text and, in
    the first `MAX_LOOKED_AT` values, no object: text may begin with a bracket, too."""
    values = json_text.json_values(body)
    first = next(values, None)
    if isinstance(first, dict):
        yield first
        yield from values
        return
    is_text = False
    for value in chain((first,), islice(values, MAX_LOOKED_AT)):
        if isinstance(value, dict):
            is_text = False
            break
        is_text = is_text or isinstance(value, Problem)
    yield from _lines(body.removeprefix(BOM_UTF8)) if is_text else json_text.json_values(body)


def event_of(value: Any, names: Names, source: str) -> Event:
    """The event of a JSON value. What is not taken for a field of the event is its metadata."""
    if not isinstance(value, dict):
        named = names.given_source or source
        return schema.event_of(named, schema.text_of(value), names.given_level, None, {})
    found_source = fields.first(value, names.source, fields.is_text)
    if value.get("source") == found_source:
        value.pop("source", None)  # any other name says more than that it is the source
    level = names.given_level or fields.pop(value, names.level, levels.is_level)
    ts_unix_ms = times.ms_of(fields.pop(value, names.time, times.is_time))
    message = fields.pop(value, names.message, fields.is_text)
    if message is None:
        # Of an object that has no text to show, the whole is shown.
        message = schema.text_of(value)
    found_source = names.given_source or found_source or source
    return schema.event_of(found_source, message, level, ts_unix_ms, _metadata(value))


def _metadata(rest: dict[str, Any]) -> dict[str, Any]:
    """What is left of an object; its own `metadata` is not put into another one."""
    inner = rest.get("metadata")
    if not isinstance(inner, dict):
        return rest
    del rest["metadata"]
    return fields.merge(inner, rest, "_")


def _answer(outcomes: Sequence[Outcome]) -> Answer:
    if not outcomes:
        raise Problem(400, "The body holds no event.")
    problems = problems_of(outcomes)
    errors = [
        Reported(i, each.detail, None, each.members.get("unread_from_byte"))
        for i, each in problems[:MAX_REPORTED]
    ]
    omitted = len(problems) - len(errors)
    try:
        raise_if_none_taken(outcomes)
    except Problem as problem:
        members = {"rejected": len(problems), "errors": msgspec.to_builtins(errors)}
        if omitted:
            members["errors_omitted"] = omitted
        raise Problem(problem.status, problem.detail, **members) from None
    stored = [each for each in outcomes if not isinstance(each, Problem)]
    told = Receipt(len(stored), len(problems), stored[0].first, stored[-1].last, errors, omitted)
    return Answer(202, "application/json", msgspec.json.encode(told))


def refused(_: Request, problem: Problem) -> Answer:
    """As at `/ingest`."""
    return problem_answer(problem)
