"""Text that may be JSON, or lines, or both: nothing of it is rejected."""

from collections.abc import Iterator
from typing import Any

from logpipe.collector.receivers import json_text
from logpipe.splitting import split


def values_of(text: str) -> Iterator[Any]:
    """The JSON objects of a text, also those of arrays, as dicts; each other line as a text. An
    object ends where its line ends or the next one begins: with words behind it, it is a line.
    Raises a 413 `Problem` for more objects and arrays than a body may have."""
    body = text.strip(" \t\r\n").encode()
    if whole := _objects(body):
        yield from whole
        return
    body = text.encode()
    at = 0
    for piece in split(body, array=False):
        start = body.find(piece.text, at)
        at = start + len(piece.text)
        if objects := _objects(piece.text):
            yield from objects
            continue
        before = body[body.rfind(b"\n", 0, start) + 1 : start]
        indentation = b"" if before.strip() else before
        for line in (indentation + piece.text).decode().split("\n"):
            if line.strip():
                yield line.removesuffix("\r")


def _objects(text: bytes) -> list[dict[str, Any]]:
    """The object or objects that a text of JSON is; empty for any other text."""
    if text[:1] not in (b"{", b"["):
        return []
    value = json_text.json_value(text)
    found = value if isinstance(value, list) else [value]
    return found if all(isinstance(each, dict) for each in found) else []
