"""From what senders send to an event that the schema takes: nothing is refused for its form.

Senders repeat whole batches; one strange field must not keep the rest from getting in.
"""

import codecs
import io
import math
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from logpipe.decoding import MAX_VALUES, has_more_elements, has_more_values, is_deep, is_utf8
from logpipe.event import (
    MAX_DEPTH,
    MAX_LEVEL,
    MAX_SOURCE,
    MAX_TS_UNIX_MS,
    NOT_DECODED,
    Event,
    level_name,
)
from logpipe.problems import Problem
from logpipe.splitting import split
from logpipe.turns import pause

FULL_SOURCE = "log.source"
"""Where the whole of a source is that had to be cut."""

LEVEL_TEXT = "severity_text"
"""Where a level's word is as it was sent, if the event's level says it otherwise."""

LEVELS = (
    "level", "severity", "log.level", "severity_text", "severityText", "lvl", "loglevel",
    "log_level", "levelname", "detected_level",
)  # fmt: skip

SYSLOG_LEVELS = ("FATAL", "FATAL", "FATAL", "ERROR", "WARN", "INFO", "INFO", "DEBUG")
"""By syslog's severities, 0 to 7."""

SYSLOG_SEVERITY = "syslog.severity.code"

_PINO_NUMBERS = range(10, 70, 10)
_PINO_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
"""By the tens of bunyan's and pino's numbers, from 10."""

NAMES: Mapping[str, str] = {
    "host": "host.name",
    "hostname": "host.name",
    "filename": "log.file.path",
    "container_id": "container.id",
    "container_name": "container.name",
    "image_name": "container.image.name",
    "namespace": "k8s.namespace.name",
    "pod": "k8s.pod.name",
    "pod_name": "k8s.pod.name",
    "node_name": "k8s.node.name",
    "env": "deployment.environment.name",
    "version": "service.version",
    "traceid": "trace_id",
    "traceID": "trace_id",
    "traceId": "trace_id",
    "spanid": "span_id",
    "spanID": "span_id",
    "spanId": "span_id",
}
"""Common names of labels and tags, and what OpenTelemetry's semantic conventions call them."""

MAX_CONTAINERS = 1_000_000
"""Objects and arrays of a body of JSON, or one for each `LEAST_CONTAINER_BYTES` of it: an empty one
takes three bytes there and up to two hundred and forty in memory."""

LEAST_CONTAINER_BYTES = 16
"""What senders' own take on an average is more: an attribute of OTLP has two in 37."""

Decoded = TypeVar("Decoded")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"\d{1,20}(\.\d{0,20})?", re.ASCII)
LARGE_BYTES = 64 * 1024
"""A larger array is read element by element, and a larger text is looked at before it is read."""

MAX_CUT = 200_000
"""Elements of an array that are found by one call: it takes 20 ms (measured), in which no other
thread has a turn."""

REPLACED_BYTES = 64 * 1024
"""Bytes that are not UTF-8 are replaced in pieces of this size: the same."""

_HALF = re.compile(
    rb"(?:[^\\]|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F]..){1,65536}+"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})",
    re.DOTALL,
)
"""Half a surrogate pair, as its group, or all that is before one: bodies have many escapes."""
_Utf8 = codecs.getincrementaldecoder("utf-8")
_decode = msgspec.json.Decoder().decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def event_of(
    source: object, message: str, level: object, ts_unix_ms: int | None, metadata: dict[str, Any]
) -> Event:
    """An event within the schema; what had to be cut is whole in the metadata, which it keeps."""
    name = source if isinstance(source, str) else ""
    if len(name) > MAX_SOURCE:
        metadata = {**metadata, FULL_SOURCE: name}
    word = level_of(level)
    # Capitals may be longer than what they are of: ß is SS.
    stored = level_name(word[:MAX_LEVEL])[:MAX_LEVEL]
    said = _said(level, metadata) or word
    if stored != said.upper():
        metadata = {LEVEL_TEXT: said, **metadata}
    return Event(
        source=name[:MAX_SOURCE] or "unknown",
        message=message,
        level=stored,
        ts_unix_ms=ts_unix_ms,
        metadata=shallow(metadata),
    )


def _said(level: object, metadata: Mapping[str, Any]) -> str | None:
    """A number that says more than the level that it becomes."""
    if isinstance(level, bool) or not isinstance(level, int | float):
        return None
    exact = level in _PINO_NUMBERS or SYSLOG_SEVERITY in metadata
    return None if exact else str(level)


def level_of(value: object) -> str:
    """A level's word; INFO where there is none. Numbers are syslog's to 7, pino's from 10."""
    if isinstance(value, str):
        word = value.strip()
        if not re.fullmatch(r"\d{1,2}", word, re.ASCII):
            return word or "INFO"
        value = int(word)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "INFO"
    if 0 <= value < len(SYSLOG_LEVELS):
        return SYSLOG_LEVELS[int(value)]
    if 10 <= value < 70:
        return _PINO_LEVELS[int(value) // 10 - 1]
    return str(value)


def shallow(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with what is nested too deeply as its JSON text."""
    if not is_deep(metadata):
        return metadata
    return {
        name: text_of(value) if is_deep({name: value}) else value
        for name, value in metadata.items()
    }


def text_of(value: object) -> str:
    """A text as it is, anything else as its JSON."""
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except RecursionError:
        return f"(nested over {MAX_DEPTH} levels)"


def ms_of(value: object) -> int | None:
    """Milliseconds since 1970 of a number of s, ms, µs or ns, told apart by its size, or of a text
    as RFC 3339 has it, UTC where it says nothing else. None for what is no such time."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return _calendar(text)
        value = float(text) if "." in text else int(text)
    if isinstance(value, int):
        found = _magnitude(value)
    elif isinstance(value, float) and math.isfinite(value):
        found = round(value * 1000) if abs(value) < 1e11 else _magnitude(int(value))
    else:
        return None
    return ms_within(found)


def ms_within(ms: int | None) -> int | None:
    """The time where an event may have it."""
    return ms if ms is not None and 0 <= ms <= MAX_TS_UNIX_MS else None


def _magnitude(number: int) -> int:
    if number < 10**11:
        return number * 1000
    if number < 10**14:
        return number
    return number // 1000 if number < 10**17 else number // 1_000_000


def _calendar(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text[:64])
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        found = (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        return None
    return ms_within(found)


def pop(fields: dict[str, Any], names: Iterable[str], fits: Callable[[Any], bool]) -> Any:
    """Takes out the first value that fits, by a name in which a dot may descend; None for none."""
    for name in names:
        value = _pop(fields, name, fits)
        if value is not None:
            return value
    return None


def _pop(fields: dict[str, Any], name: str, fits: Callable[[Any], bool]) -> Any:
    if name in fields and fits(fields[name]):
        return fields.pop(name)
    head, dot, rest = name.partition(".")
    inner = fields.get(head)
    if not dot or not isinstance(inner, dict):
        return None
    value = _pop(inner, rest, fits)
    if value is not None and not inner:
        del fields[head]
    return value


def first(fields: Mapping[str, Any], names: Iterable[str], fits: Callable[[Any], bool]) -> Any:
    """As `pop`, and leaves it there."""
    return next((value for name in names for value in _found(fields, name) if fits(value)), None)


def _found(fields: Mapping[str, Any], name: str) -> Iterator[Any]:
    if name in fields:
        yield fields[name]
    head, dot, rest = name.partition(".")
    inner = fields.get(head) if dot else None
    if isinstance(inner, dict):
        yield from _found(inner, rest)


def is_text(value: object) -> bool:
    """Whether it is a text that is not empty."""
    return isinstance(value, str) and value != ""


def is_level(value: object) -> bool:
    """Whether it may be a level."""
    return is_text(value) or (isinstance(value, int | float) and not isinstance(value, bool))


def is_time(value: object) -> bool:
    """Whether it is a time that an event may have."""
    return ms_of(value) is not None


def merge(into: dict[str, Any], more: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Adds what is there not yet; a name that is taken by another value gets the prefix."""
    for name, value in more.items():
        if name not in into:
            into[name] = value
        elif into[name] != value:
            into[prefix + name] = value
    return into


def named(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels or tags under the names of the conventions; where two meet, the second keeps its."""
    found: dict[str, Any] = {}
    for name, value in labels.items():
        known = NAMES.get(name, name)
        found[name if known in found or (known != name and known in labels) else known] = value
    return found


def present(**values: Any) -> dict[str, Any]:
    """The values that are there, `__` in a name standing for a dot."""
    return {
        name.replace("__", "."): value
        for name, value in values.items()
        if value is not None and value != ""
    }


def decoded(decode: Callable[[bytes], Decoded], body: bytes) -> Decoded:
    """What a decoder makes of a body. Bytes that are not UTF-8 are replaced, and so is half a
    surrogate pair, as JavaScript writes it where a text was cut. Raises a 413 `Problem` for more
    objects and arrays than a body may have."""
    _require_few_containers(body)
    try:
        return decode(body)
    except (RecursionError, msgspec.ValidationError):
        raise
    except NOT_DECODED:
        text = body if is_utf8(body) else replaced(body)
        if b"\\u" in text:
            text = _without_halves(text)
        if text == body:
            raise
        return decode(text)


def _without_halves(text: bytes) -> bytes:
    """The text with U+FFFD for each half of a surrogate pair; it holds no more than one copy."""
    found = bytearray()
    at = 0
    for part in _HALF.finditer(text):
        found += rb"\ufffd" if part[1] else part[0]
        at = part.end()
    return bytes(found + text[at:])


def replaced(text: bytes) -> bytes:
    """The text with U+FFFD for what is not UTF-8. Other threads have their turn meanwhile."""
    if len(text) <= REPLACED_BYTES:
        return text.decode(errors="replace").encode()
    decoder = _Utf8(errors="replace")
    found = bytearray()
    for at in range(0, len(text), REPLACED_BYTES):
        last = at + REPLACED_BYTES >= len(text)
        found += decoder.decode(text[at : at + REPLACED_BYTES], final=last).encode()
        pause()
    return bytes(found)


def require_few_values(text: bytes) -> None:
    """Raises a 413 `Problem` for what has more values than one event may have."""
    if has_more_values(text):
        raise Problem(413, f"The JSON has over {MAX_VALUES} values.", hits={"event": 1})


def _require_few_containers(body: bytes) -> None:
    most = max(MAX_CONTAINERS, len(body) // LEAST_CONTAINER_BYTES)
    if len(body) > most and body.count(b"{") + body.count(b"[") > most:
        detail = f"The JSON has over {most} objects and arrays."
        raise Problem(413, detail, hits={"batch": 1})


def lines_of(body: bytes) -> Iterator[bytes]:
    """The lines of a body without their ends, one by one: a list of them may take far more than the
    body."""
    for line in io.BytesIO(body):
        pause()
        yield line.rstrip(b"\r\n")


def json_values(body: bytes) -> Iterator[Any]:
    """The values of one JSON text, of an array, or of texts one after another; an array among
    these is its elements.

    Malformed text is a 400 `Problem` in its place, with the member `unread_from_byte` where it is
    not known to be one value (`splitting.Piece`). Raises as `decoded`. A byte
    order mark before the first is skipped.
    """
    text = body.removeprefix(BOM_UTF8)
    mark = len(body) - len(text)
    values = _values_at_once(text)
    if values is not None:
        yield from values
        return
    for piece in split(text):
        value = json_value(piece.text)
        if isinstance(value, Problem) and piece.unread_from is not None:
            value = _unread(value, mark + piece.unread_from)
        yield from value if isinstance(value, list) else (value,)


def _values_at_once(text: bytes) -> Iterable[Any] | None:
    """The values of one JSON text; None where there may be several, or what is no JSON. Of a large
    array each element is read as it is asked for."""
    start = text.lstrip()[:1]
    if not start:
        return ()
    if len(text) > LARGE_BYTES:
        _require_few_containers(text)
        try:
            if start == b"[":
                if has_more_elements(text.strip(), MAX_CUT):
                    return None
                return map(json_value, map(bytes, _decode_array(text)))
            _decode_raw(text)
        except NOT_DECODED:
            return None
    whole = json_value(text)
    if isinstance(whole, Problem):
        return None
    return whole if isinstance(whole, list) else (whole,)


def _unread(problem: Problem, start: int) -> Problem:
    detail = f"{problem.detail} Its line was not read from byte {start} on."
    return Problem(problem.status, detail, unread_from_byte=start)


def json_value(text: bytes) -> Any:
    """The value of a JSON text, bytes that are not UTF-8 replaced. A `Problem` for no JSON, 400, or
    for more values than one event may have, 413."""
    try:
        require_few_values(text)
        return decoded(_decode, text)
    except Problem as problem:
        if "event" not in problem.hits:
            raise
        return problem
    except RecursionError:
        return Problem(400, "The JSON is nested too deeply.")
    except NOT_DECODED as error:
        return Problem(400, f"The JSON cannot be read: {error}.")
