"""Events within the schema, of whatever a sender wrote.

Senders repeat whole batches, so nothing is rejected for its form: one strange field must not keep
the rest from being stored.
"""

from typing import Any

import msgspec

from logpipe.collector.receivers.levels import LEVEL_TEXT, _said, level_of
from logpipe.decoding import is_deep
from logpipe.event import (
    MAX_DEPTH,
    MAX_LEVEL,
    MAX_SOURCE,
    Event,
    level_name,
)

FULL_SOURCE = "log.source"
"""Where the whole of a source is that had to be cut."""


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
