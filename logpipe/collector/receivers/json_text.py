"""JSON as senders write it: several values in one body, halves of surrogate pairs, bytes that are
not UTF-8."""

import codecs
import io
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from logpipe.decoding import MAX_VALUES, has_more_elements, has_more_values, is_utf8
from logpipe.event import NOT_DECODED
from logpipe.problems import Problem
from logpipe.splitting import split
from logpipe.turns import pause

MAX_CONTAINERS = 1_000_000
"""Objects and arrays of a body of JSON, or one for each `LEAST_CONTAINER_BYTES` of it: an empty one
takes three bytes there and up to two hundred and forty in memory."""

LEAST_CONTAINER_BYTES = 16
"""What senders' own take on an average is more: an attribute of OTLP has two in 37."""

Decoded = TypeVar("Decoded")

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
