"""A record of `logging` as an event's JSON: whatever the record holds, logpipe accepts it.

Called where the program logs, because what a record refers to may change afterwards. Data that is
not JSON becomes its text, and what is too large is cut where a reader sees it.
"""

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from logpipe.event import (
    LEVELS,
    MAX_LEVEL,
    MAX_SOURCE,
    MAX_TS_UNIX_MS,
    RANK,
    Event,
    is_reserved,
    level_name,
)

MAX_EVENT_BYTES = 65_536
"""An event's JSON: the default of MAX_MESSAGE_BYTES, over which a collector refuses."""

MAX_VALUES = 950
"""Values of one record's `extra`, nested ones counted; the rest is named by a mark. With what else
the metadata has that is within the default of MAX_METADATA_KEYS, over which a collector refuses."""

OTHER_SOURCE = "python"
"""The source of a record whose logger's name a collector would reject as a source."""
NOTICE_SOURCE = "handler"
"""The source of events about losses, unless the handler was given one."""

MAX_NESTING = 16
"""Levels of containers in `extra`; what is deeper becomes its text."""

CUT_TO = (24_000, 8_000, 2_000, 200)
"""Characters that texts of a too large event keep, tried in turn until it fits."""

_encode = msgspec.json.Encoder().encode
_MAX_INT, _MIN_INT = 2**63 - 1, -(2**63)
_STANDARD = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}
_UNNAMED = "Level "  # how logging calls a level's number that has no name


def event_of(record: logging.LogRecord, source: str | None, message: Callable[[], str]) -> bytes:
    """The event's JSON, at most `MAX_EVENT_BYTES`.

    `message` formats the record; where it raises, the event has the text that was to be formatted,
    the arguments, and the error as `logpipe.format_error`.
    """
    metadata = _origin(record)
    name = text(record.name)
    if source is None and is_reserved(name):
        source = OTHER_SOURCE
    if source is not None:
        metadata["otel.scope.name"] = name
    metadata |= _exception(record)
    words = _message(record, message, metadata)
    extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
    metadata |= plain(extra)
    event = Event(
        source=text(source or name)[:MAX_SOURCE] or "root",
        message=words,
        level=_level(record, metadata),
        ts_unix_ms=_moment(record.created),
        metadata=metadata,
    )
    return fitted(event)


def _origin(record: logging.LogRecord) -> dict[str, Any]:
    """Where it was logged, under OpenTelemetry's names."""
    found = {
        "code.file.path": record.pathname,
        "code.line.number": record.lineno,
        "code.function.name": record.funcName,
        "process.pid": record.process,
        "thread.id": record.thread,
        "thread.name": record.threadName,
        "asyncio.task.name": getattr(record, "taskName", None),
    }
    return {name: plain(value) for name, value in found.items() if value is not None}


def _exception(record: logging.LogRecord) -> dict[str, Any]:
    """The exception with its causes, and the stack if `stack_info` asked for it."""
    found: dict[str, Any] = {}
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, BaseException):
        kind = type(error)
        package = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        found["exception.type"] = f"{package}{kind.__qualname__}"
        found["exception.message"] = text(error)
        found["exception.stacktrace"] = _stacktrace(error)
    elif record.exc_text:  # all that is left after a way through another process
        found["exception.stacktrace"] = text(record.exc_text)
    if record.stack_info:
        found["code.stacktrace"] = text(record.stack_info)
    return found


def _stacktrace(error: BaseException) -> str:
    try:
        return text("".join(traceback.format_exception(error)).rstrip("\n"))
    except Exception as worse:  # noqa: BLE001 - an exception's own code may raise anything
        return f"<no stack trace: {type(worse).__name__}>"


def _message(
    record: logging.LogRecord, message: Callable[[], str], metadata: dict[str, Any]
) -> str:
    try:
        return text(message())
    except Exception as error:  # noqa: BLE001 - the arguments' own code may raise anything
        metadata["logpipe.format_error"] = f"{type(error).__name__}: {text(error)}"
        return f"{text(record.msg)} {text(record.args)}" if record.args else text(record.msg)


def _level(record: logging.LogRecord, metadata: dict[str, Any]) -> str:
    """A name of one's own is kept, its number beside it; a bare number ranks between the names."""
    name = level_name(text(record.levelname).strip()[:MAX_LEVEL])[:MAX_LEVEL]
    if name in RANK:
        return name
    metadata["logging.levelno"] = plain(record.levelno)
    if name and not name.startswith(_UNNAMED.upper()):
        return name
    try:
        return LEVELS[max(0, min(record.levelno // 10, 5))]
    except Exception:  # noqa: BLE001 - a made-up record may hold anything
        return "INFO"


def _moment(created: float) -> int:
    try:
        return max(0, min(int(created * 1000), MAX_TS_UNIX_MS))
    except Exception:  # noqa: BLE001 - a made-up record may hold anything
        return time.time_ns() // 1_000_000


def text(value: object) -> str:
    """`str(value)` whatever its code does, as UTF-8 can hold it (half characters spelled out)."""
    if type(value) is str and value.isascii():
        return value
    try:
        found = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
        found = str.__str__(found)  # of a subclass: what it holds
        return found if found.isascii() else found.encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001 - an object's own code may raise anything
        return f"<unprintable {type(value).__name__}>"


def plain(value: object) -> Any:
    """The value as JSON has it; what is no JSON becomes its text.

    Containers are copied, up to `MAX_VALUES` values and `MAX_NESTING` levels; a mark says how many
    values are missing.
    """
    return _plain(value, iter(range(MAX_VALUES)), ())


def _plain(value: Any, room: Iterator[int], within: tuple[int, ...]) -> Any:
    kind = type(value)
    if (
        value is None
        or kind is bool
        or (kind is int and _MIN_INT <= value <= _MAX_INT)
        or (kind is float and math.isfinite(value))
    ):
        return value
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return text(value)
    if id(value) in within:
        return f"<circular {kind.__name__}>"
    if len(within) >= MAX_NESTING:
        return text(value)
    try:
        # A copy: another thread may change it meanwhile.
        copied = value.copy() if isinstance(value, dict) else list(value)
        items = copied.items() if isinstance(copied, dict) else enumerate(copied)
        inner = (*within, id(value))
        kept = [
            (key, _plain(item, room, inner)) for (key, item), _ in zip(items, room, strict=False)
        ]
        left = len(copied) - len(kept)
        mark = f"[cut: {left} of {len(copied)} values]"
        if isinstance(value, dict):
            return {text(key): item for key, item in kept} | ({"…": mark} if left else {})
        return [item for _, item in kept] + ([f"… {mark}"] if left else [])
    except Exception:  # noqa: BLE001 - a subclass's own code may raise anything
        return text(value)


def fitted(event: Event) -> bytes:
    """The event's JSON; over `MAX_EVENT_BYTES`, its long texts are cut, then its metadata."""
    encoded = _encode(event)
    whole = len(encoded)
    for limit in CUT_TO:
        if len(encoded) <= MAX_EVENT_BYTES:
            return encoded
        # The message is what people read: it keeps twice as much.
        event.message = cut(event.message, 2 * limit)
        event.metadata = _shortened(event.metadata, limit)
        encoded = _encode(event)
    if len(encoded) > MAX_EVENT_BYTES:
        event.metadata = {"…": f"[cut: the metadata of an event of {whole} bytes]"}
        encoded = _encode(event)
    return encoded


def _shortened(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return cut(value, limit)
    if isinstance(value, dict):
        return {cut(name, limit): _shortened(item, limit) for name, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item, limit) for item in value]
    return value


def cut(words: str, limit: int) -> str:
    """Begin and end of a text that is longer than `limit` characters, and how much is missing."""
    if len(words) <= limit:
        return words
    end = limit // 4
    return f"{words[: limit - end]}… [cut: {len(words) - limit} characters] …{words[-end:]}"


def notice_of(count: int, reason: str, source: str | None, since_ms: int) -> bytes:
    """The event that says what the handler had to drop since that time."""
    return _encode(
        Event(
            source=text(source or NOTICE_SOURCE)[:MAX_SOURCE],
            level="WARN",
            message=f"logpipe handler dropped {counted(count)}: {reason}",
            ts_unix_ms=time.time_ns() // 1_000_000,
            metadata={
                "logpipe.dropped": count,
                "logpipe.dropped_since_unix_ms": since_ms,
                "logpipe.dropped_reason": reason,
            },
        )
    )


def counted(events: int) -> str:
    return "1 event" if events == 1 else f"{events} events"
