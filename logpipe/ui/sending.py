"""The form that sends test events: from its fields to events, from a refusal to its fields."""

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import ClientDisconnect, Request

from logpipe.event import NOT_DECODED
from logpipe.problems import Problem

FIELDS = ("source", "level", "message", "metadata")
COUNTS = (1, 10, 100)
"""How many events one click may send."""
MAX_FIELDS = 128

Pairs = list[tuple[str, str]]


async def form_of(request: Request, limit: int) -> Pairs:
    """The fields of a form, in order. Raises a `Problem`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise Problem(415, "This takes a form: application/x-www-form-urlencoded.")
    body = await _body(request, 3 * limit + 4096)
    try:
        return parse_qsl(body.decode(), True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:  # UnicodeDecodeError included
        raise Problem(400, "The form is not UTF-8, or has too many fields.") from None


async def _body(request: Request, limit: int) -> bytes:
    """The body. A little more than allowed is read to its end, so that the answer is seen."""
    body = bytearray()
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                body += chunk
            if size > 16 * limit:
                break
    except ClientDisconnect:
        raise Problem(400, "The form was cut off.") from None
    if size > limit:
        raise Problem(413, "The event is too large.")
    return bytes(body)


def events_of(form: Pairs) -> bytes:
    """The events of the form, as JSON for the collector to judge. Raises a `Problem`."""
    # Line ends are CRLF on the way from a form, whatever was typed. No level: the default.
    fields = {name: text.replace("\r\n", "\n") for name, text in form}
    event: dict[str, Any] = {name: fields[name] for name in FIELDS[:3] if name in fields}
    if not event.get("level"):
        event.pop("level", None)
    if metadata := _metadata(form):
        event["metadata"] = metadata
    count = _count(fields.get("count") or "1")
    try:
        return msgspec.json.encode(_numbered(event, count) if count > 1 else event)
    except RecursionError:
        raise _wrong("This is nested too deep.") from None


def _numbered(event: dict[str, Any], count: int) -> list[dict[str, Any]]:
    if "message" not in event:
        return [event]  # for the collector to tell
    message = event["message"]
    return [{**event, "message": f"{message} ({n} of {count})"} for n in range(1, count + 1)]


def _count(text: str) -> int:
    if text not in map(str, COUNTS):
        raise Problem(422, f"One click sends {', '.join(map(str, COUNTS))} events.")
    return int(text)


def _metadata(form: Pairs) -> dict[str, Any]:
    """The rows of keys and values, those without either left out."""
    keys = [text.strip() for name, text in form if name == "key"]
    values = [text for name, text in form if name == "value"]
    metadata: dict[str, Any] = {}
    for key, value in zip(keys, values, strict=False):
        if not key and not value:
            continue
        if not key:
            raise _wrong("A value needs a key.")
        if key in metadata:
            raise _wrong(f"The key {key} is there twice.")
        metadata[key] = _value(value)
    return metadata


def _wrong(error: str) -> Problem:
    return Problem(422, error, errors=[{"index": 0, "field": "metadata", "error": error}])


def _value(text: str) -> Any:
    """What was typed: JSON where it is JSON, as `200`, `true` or `{"a": 1}`, else a text."""
    with contextlib.suppress(*NOT_DECODED):
        return msgspec.json.decode(text)
    return text


def errors_by_field(problem: Problem) -> dict[str, str]:
    """What is wrong with which field of the form; empty when it is about none of them."""
    errors: Sequence[dict[str, Any]] = problem.members.get("errors") or ()
    return {
        error["field"]: error["error"].removeprefix(f"{error['field']}: ")
        for error in errors
        if error.get("field") in FIELDS
    }
