"""Parsers as pure functions, in tests."""

from collections.abc import Callable
from typing import Any

from logpipe.collector.receivers.protocol import Batch, Request
from logpipe.event import Event
from logpipe.problems import Problem

JSON = {"content-type": "application/json"}


def items(parse: Callable[[Request], Batch], body: bytes, **given: Any) -> list[Event | Problem]:
    """What a parser makes of a body; `given` is the rest of the request."""
    return list(parse(Request(body=body, **given)).items)


def events(parse: Callable[[Request], Batch], body: bytes, **given: Any) -> list[Event]:
    """The same, where all of it has to be taken."""
    found = items(parse, body, **given)
    assert not [each for each in found if isinstance(each, Problem)], found
    return [each for each in found if isinstance(each, Event)]


def event(parse: Callable[[Request], Batch], body: bytes, **given: Any) -> Event:
    """The same, where it is one."""
    (found,) = events(parse, body, **given)
    return found
