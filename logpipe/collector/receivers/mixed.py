"""Text that may be JSON, or lines, or both: nothing of it is refused."""

import json
import re
from collections.abc import Iterator
from typing import Any

from logpipe.collector.receivers import fields

MAX_FAILURES = 100
"""Places that look like JSON and are not, after which an object has to end on the line on which it
begins: each attempt may read to the end of the text."""

_scanner = json.JSONDecoder(parse_int=len, parse_float=len)
"""Finds where a value ends, keeping little of it; `fields` reads it."""
_BLANK = re.compile(r"[ \t\r\n]*")
_SPACE = re.compile(r"[ \t\r]*")


def values_of(text: str) -> Iterator[Any]:
    """The JSON objects of a text, also those of arrays, as dicts; each other line as a text. An
    object ends where its line ends or the next one begins: with words behind it, it is a line.
    Raises a 413 `Problem` for more objects and arrays than a body may have."""
    at = _end(_BLANK, text, 0)
    if whole := _objects(text[at:]):
        yield from whole
        return
    at = failures = 0
    line_end = -1
    while (start := _end(_BLANK, text, at)) < len(text):
        if start > line_end:
            line_end = text.find("\n", start) % (len(text) + 1)  # -1 is the end of the text
        if text[start] in "{[":
            end = _json_end(text, start, len(text) if failures < MAX_FAILURES else line_end)
            objects = _objects(text[start:end])
            if objects:
                yield from objects
                at = end
                continue
            failures += 1
        line_start = max(at, text.rfind("\n", at, start) + 1)
        yield text[line_start:line_end].removesuffix("\r")
        at = line_end


def _json_end(text: str, start: int, limit: int) -> int:
    """Where the JSON ends that begins at `start`, if it ends before `limit` and nothing but more
    JSON follows on its line; else `start`."""
    # Nothing is copied where there is no need: with each line of a large text that would be all.
    source, begin = (text, start) if limit == len(text) else (text[start:limit], 0)
    try:
        _, end = _scanner.raw_decode(source, begin)
    except (ValueError, RecursionError):
        return start
    end += start - begin
    after = _end(_SPACE, text, end)
    return end if text[after : after + 1] in ("", "\n", "{", "[") else start


def _objects(text: str) -> list[dict[str, Any]]:
    """The object or objects that a text of JSON is; none for any other text."""
    if text[:1] not in ("{", "["):
        return []
    value = fields.json_value(text.encode())
    found = value if isinstance(value, list) else [value]
    return found if all(isinstance(each, dict) for each in found) else []


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
