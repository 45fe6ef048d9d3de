"""Heroku's log drains: octet-counted RFC 5424 without its structured data."""

from collections.abc import Iterator
from typing import Any

from logpipe.collector.answer import Answer, problem_answer
from logpipe.collector.receivers import fields, schema, syslog
from logpipe.collector.receivers.protocol import Batch, Item, Request, always
from logpipe.event import Event
from logpipe.problems import Problem

PATHS = ("/logplex",)


def parse(request: Request) -> Batch:
    """Each message is an event. Where fewer came than were announced, the last item is a 400
    `Problem`: what is missing is reported, and what came is stored."""
    return Batch(_items(request), always(Answer(204)))


def _items(request: Request) -> Iterator[Item]:
    drain = fields.present(logplex__drain_token=request.headers.get("logplex-drain-token"))
    count = 0
    for frame in syslog.frames_of(request.body, request.limit):
        count += 1
        yield event_of(frame, drain)
    announced = request.headers.get("logplex-msg-count", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > count:
        yield Problem(
            400, f"The body holds {count} messages, not {announced[:20]} (Logplex-Msg-Count)."
        )


def event_of(frame: syslog.Frame, drain: dict[str, Any]) -> Event:
    """The event of a message: behind the header all is text."""
    text = frame.data.rstrip(b"\r\n\0").decode(errors="replace")
    metadata = dict(drain)
    severity, rest = syslog.priority(text, metadata)
    header = syslog.HEADER.match(rest)
    if header is None:
        return schema.event_of("logplex", rest, severity, None, metadata)
    return syslog.finished(header, rest[header.end() :], severity, metadata)


def key(request: Request) -> str | None:
    """A frame keeps its id when it is sent again."""
    return request.headers.get("logplex-frame-id")


def refused(_: Request, problem: Problem) -> Answer:
    """As at `/ingest`: only the status is looked at."""
    return problem_answer(problem)
