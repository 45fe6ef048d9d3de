"""Bodies of JSON into events, with a `Refusal` for each part that is not an event.

Pure. Large bodies are decoded in pieces, between which other threads have their turn, and nothing
is kept of what is more than was allowed. A malformed event costs itself (`splitting.py`).
"""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import msgspec

from logpipe.event import MAX_DEPTH, NOT_DECODED, RANK, Event, level_name
from logpipe.splitting import Piece, split
from logpipe.turns import pause

T = TypeVar("T")
Convert = Callable[[list[Event]], list[T]]
"""Makes something of each of some events, as soon as they are decoded: decoded events may have 26
times as many bytes as their JSON (measured, of tiny objects)."""

GROUP_BYTES = 64 * 1024
"""JSON of single events that are converted together."""

PIECE_BYTES = 1024 * 1024
"""Decoded by one call at the most, where it can be cut: some milliseconds."""

CUT_NUMBER = 2
"""Bytes at the end of a number that is cut which may not be taken for a part of it, as in `1e-`."""

WINDOW_BYTES = 256 * 1024
"""In so much of an array the ends of its elements are looked for at a time."""

UNCOUNTED_BYTES = 64 * 1024
"""An array up to this size is decoded before its elements are counted: the first that is no event
ends that, and of events it has 2,400 at the most."""

MAX_VALUES = 200_000
"""Values of one event: members, elements, objects and arrays. They take two bytes each at the
least, so that such an event is far over MAX_MESSAGE_BYTES, and half a microsecond (measured) in
which no other thread has a turn."""

MAX_NAME_SHOWN = 100
"""Characters of an unknown field's name that a refusal repeats."""


class Refusal(msgspec.Struct, frozen=True):
    """Why one event of a body was not taken.

    `status` is the answer it deserves when it came alone: 400 not JSON, 413 too large, 422 schema.
    `limit` is the one of `limits.NAMES` that it is over, if it is; `unread_from` is that of
    `splitting.Piece`.
    """

    index: int
    field: str | None
    error: str
    status: int
    limit: str = ""
    unread_from: int | None = None


class TooManyEventsError(Exception):
    """A body has more events than were allowed."""


class TooManyValuesError(Exception):
    """An event has more than `MAX_VALUES`."""


class TooDeepError(RecursionError):
    """The metadata of an event is nested over `MAX_DEPTH`."""


class _Object(msgspec.Struct, gc=False):
    """Any object, nothing of which is kept."""


_event = msgspec.json.Decoder(Event)
_raw = msgspec.json.Decoder(msgspec.Raw)
_raw_array = msgspec.json.Decoder(list[msgspec.Raw])
_event_array = msgspec.json.Decoder(list[Event])
_object_array = msgspec.json.Decoder(list[_Object])
_scanner = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
"""Finds where a value ends, and leaves it to msgspec to judge what is in it."""

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRUCTURE = re.compile(rb'["\[{,\]}]')
_PART_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.){0,4096}+', re.DOTALL)
"""Bounded, as no other thread has a turn while a match is looked for."""

_NESTING = (dict, list)
_AT_FIELD = re.compile(r"^(?P<what>.*) - at `\$\.(?P<field>\w+).*`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>.*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)

_KINDS = {
    "str": "a text",
    "int": "a whole number",
    "int | null": "a whole number",
    "float": "a decimal number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
}
_WORDS = (
    (re.compile(r"^Expected `str` of length >= 1$"), "must not be empty"),
    (re.compile(r"^Expected `str` of length <= (\d+)$"), r"must have at most \1 characters"),
    (re.compile(r"^Expected `int` >= (\d+)$"), r"must be at least \1"),
    (re.compile(r"^Expected `int` <= (\d+)$"), r"must be at most \1"),
)
_MISTAKEN = re.compile(r"^Expected `(.*)`, got `(.*)`$")


def decode_json(
    body: bytes, convert: Convert[T], most: int = sys.maxsize
) -> tuple[list[T], list[Refusal], bool]:
    """Converted events and refusals of one object, an array or concatenated objects, in the body's
    order.

    The third value says whether the body was one object, to be answered as such. Raises
    `TooManyEventsError` for more than `most`, with what is refused.
    """
    text = body.strip()
    if text[:1] == b"[":
        return *_decode_array(body, text, convert, most), False
    try:
        return convert(_events_of(text)), [], True
    except TooManyValuesError:
        alone = _too_many_values(0)
        with contextlib.suppress(*NOT_DECODED):
            _raw.decode(text)
            return [], [alone], True
    except NOT_DECODED as error:
        alone = _refusal(0, text, error)
        if alone.status == 422 or isinstance(error, TooDeepError):
            return [], [alone], True
    if b"\n" in text:
        try:
            return _decode_lines(text, convert, most), [], False
        except NOT_DECODED:
            pass  # objects that span lines, or a bad one among them: the slow way tells which
    pieces = _first(most, split(body))
    events, refusals = _decode_pieces(pieces, convert)
    objects = sum(piece.text[:1] == b"{" for piece in pieces)
    malformed = all(refusal.status == 400 for refusal in refusals)
    if not events and objects < 2 and malformed:
        if unread := [each for each in refusals if each.unread_from is not None]:
            return [], unread[:1], True
        return [], [alone], True  # one malformed object, which may have line ends in a text
    return events, refusals, False


def decode_ndjson(
    body: bytes, convert: Convert[T], most: int = sys.maxsize
) -> tuple[list[T], list[Refusal]]:
    """Converted events and refusals of a body of lines, each an object or several; blank lines do
    not count.

    Raises `TooManyEventsError` for more than `most`.
    """
    with contextlib.suppress(*NOT_DECODED):
        return _decode_lines(body, convert, most), []
    return _decode_pieces(_first(most, _pieces_of_lines(body)), convert)


def _pieces_of_lines(body: bytes) -> Iterator[Piece]:
    """The lines, of which one that begins with an object may hold several."""
    start = 0
    for line in _split_lines(body):
        pause()
        if line.lstrip()[:1] == b"{":
            for text, unread_from in split(line):
                yield Piece(text, None if unread_from is None else start + unread_from)
        elif text := line.strip():
            yield Piece(text)
        start += len(line)


def _no_more_than(most: int, events: list[Event]) -> list[Event]:
    if len(events) > most:
        raise TooManyEventsError
    return events


def _first(most: int, pieces: Iterable[Piece]) -> list[Piece]:
    """All of them, which no memory is spent on before they are known not to be too many."""
    found = list(islice(pieces, min(most + 1, sys.maxsize)))
    if len(found) > most:
        raise TooManyEventsError
    return found


def _split_lines(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        end = body.find(b"\n", at) + 1 or len(body)
        yield body[at:end]
        at = end


def _decode_array(
    body: bytes, text: bytes, convert: Convert[T], most: int
) -> tuple[list[T], list[Refusal]]:
    if len(text) <= UNCOUNTED_BYTES:
        with contextlib.suppress(*NOT_DECODED):
            return convert(_no_more_than(most, _checked(_event_array.decode(text), len(text)))), []
    if has_more_elements(text, most):
        raise TooManyEventsError
    try:
        if len(text) > PIECE_BYTES:
            return _decode_elements(text, convert)
        if len(text) > UNCOUNTED_BYTES:
            return convert(_checked(_event_array.decode(text), len(text))), []
    except NOT_DECODED:
        pass
    try:
        return _decode_elements(text, convert)
    except NOT_DECODED:
        return _decode_pieces(_first(most, split(body)), convert)


def _decode_elements(text: bytes, convert: Convert[T]) -> tuple[list[T], list[Refusal]]:
    """Raises what `NOT_DECODED` has for what is no array."""
    return _decode_pieces((Piece(bytes(raw)) for raw in _raw_array.decode(text)), convert)


def has_more_elements(array: bytes, most: int) -> bool:
    """Whether an array has more elements than that, or one of over `WINDOW_BYTES` and over
    `MAX_VALUES`; what is no JSON ends it. Keeps none of them.

    Where all are objects, as they should be, msgspec counts them, ten times as fast (measured).
    """
    # Each element but the last has a comma: most arrays are known to be short by that alone.
    if len(array) <= 2 * most or array.count(b",") < most:
        return False
    if array.count(b"{") <= 4 * most:
        with contextlib.suppress(*NOT_DECODED):
            return len(_object_array.decode(array)) > most
    at, count, start, window = 1, 0, 1, ""
    while count < len(array):
        pause()
        at = _after_space(array, at)
        try:
            end = start + _scanner.raw_decode(window, at - start)[1]
        except (ValueError, RecursionError):
            end = start + len(window)
        if end >= start + len(window) - CUT_NUMBER and start + len(window) < len(array):
            if at > start or not window:
                start, window = at, array[at : at + WINDOW_BYTES].decode("latin-1")
                continue
            end = _end_of_value(array, at, MAX_VALUES)
            if end < 0:
                return True
            if end < start + len(window) - CUT_NUMBER:
                break  # it ends in the window, and is no JSON
        count += 1
        at = _after_space(array, end)
        if count > most or array[at : at + 1] != b",":
            break
        at += 1
    return count > most


def has_more_values(text: bytes, most: int = MAX_VALUES) -> bool:
    """Whether the first value of a text has more values in it than that, on all levels."""
    if len(text) <= 2 * most:
        return False
    if text.count(b",") + text.count(b"{") + text.count(b"[") <= most:
        return False
    return _end_of_value(text, 0, most) < 0


def _end_of_value(text: bytes, at: int, most: int) -> int:
    """The end of the value that begins there, by its brackets and strings alone; -1 where it has
    more values in it than that. Other threads have their turn meanwhile."""
    count = depth = 0
    while (found := _STRUCTURE.search(text, at)) is not None:
        pause()
        at = found.end()
        token = text[at - 1 : at]
        if token == b'"':
            at = _after_string(text, at)
            if not depth:
                return at
        elif token in b"]}":
            depth -= 1
            if depth <= 0:
                return at if depth == 0 else at - 1
        elif not depth and token == b",":
            return at - 1
        else:
            depth += token != b","
            count += 1
            if count > most:
                return -1
    return len(text)


def _after_string(text: bytes, at: int) -> int:
    """The end of a string whose content begins there, or of the text."""
    while (found := _PART_OF_STRING.match(text, at)) is not None and found.end() > at:
        at = found.end()
    return at + 1


def _after_space(text: bytes, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _decode_pieces(pieces: Iterable[Piece], convert: Convert[T]) -> tuple[list[T], list[Refusal]]:
    converted: list[T] = []
    refusals: list[Refusal] = []
    events: list[Event] = []
    size = 0
    for index, (text, unread_from) in enumerate(pieces):
        pause()
        if size > GROUP_BYTES:
            converted += convert(events)
            events, size = [], 0
        size += len(text)
        try:
            events += _events_of(text)
        except TooManyValuesError:
            refusals.append(_too_many_values(index))
        except NOT_DECODED as error:
            refusal = _refusal(index, text, error)
            if unread_from is not None:
                refusal = _unread(refusal, unread_from)
            refusals.append(refusal)
    return converted + convert(events), refusals


def _events_of(text: bytes) -> list[Event]:
    """The one event of a text. Raises what `NOT_DECODED` has, and `TooManyValuesError`."""
    if has_more_values(text):
        raise TooManyValuesError
    return _checked([_event.decode(text)], len(text))


def _too_many_values(index: int) -> Refusal:
    error = f"the event has over {MAX_VALUES} values"
    return Refusal(index, None, error, 413, "event")


def _unread(refusal: Refusal, start: int) -> Refusal:
    error = f"{refusal.error}; its line was not read from byte {start} on"
    return msgspec.structs.replace(refusal, error=error, unread_from=start)


def _checked(events: list[Event], longest: int) -> list[Event]:
    """The events with their levels as stored; `TooDeepError` when one is over `MAX_DEPTH`.

    `longest` is what the JSON of one of them may have: most are too short to be deep.
    """
    for event in events:
        if event.level not in RANK:
            event.level = level_name(event.level)
    if longest > 2 * MAX_DEPTH and any(
        is_deep(event.metadata) for event in events if event.metadata
    ):
        raise TooDeepError
    return events


def _decode_lines(text: bytes, convert: Convert[T], most: int) -> list[T]:
    """All events of lines, converted; a large text in pieces, between which the thread pauses.
    Raises what `NOT_DECODED` has, and `TooManyEventsError` for more than `most`."""
    if len(text) <= PIECE_BYTES:
        return convert(_no_more_than(most, _checked_lines(text)))
    # Not in an `except` block: the error would keep what was converted before it.
    with contextlib.suppress(*NOT_DECODED):
        return _decode_cut(text, b"\n", convert, most)
    return _decode_cut(text, b"\n{", convert, most)  # an object that spans lines may have been cut


def _decode_cut(text: bytes, start: bytes, convert: Convert[T], most: int) -> list[T]:
    converted: list[T] = []
    for piece in _pieces(text, start):
        if len(piece) > 2 * PIECE_BYTES:
            raise msgspec.DecodeError("It has no place to cut")
        events = _checked_lines(piece)
        if len(converted) + len(events) > most:
            raise TooManyEventsError
        converted += convert(events)
        pause()
    return converted


def _pieces(text: bytes, start: bytes) -> Iterator[bytes]:
    """Cuts behind a line end, of those that `start` begins with, where there are some."""
    at = 0
    while at < len(text):
        end = text.find(start, at + PIECE_BYTES) + 1 or len(text)
        yield text[at:end]
        at = end


def _checked_lines(text: bytes) -> list[Event]:
    events = _event.decode_lines(text)
    lines = text.split(b"\n")
    spans = len(lines) > len(events) + 1  # msgspec lets an object go on in the next line
    return _checked(events, len(text) if spans else max(map(len, lines)))


def has_more_keys(metadata: dict[str, Any], most: int) -> bool:
    """Whether there are more keys than that, on all levels."""
    count = 0
    level: list[Any] = [metadata]
    while level and count <= most:
        count += sum(len(outer) for outer in level if isinstance(outer, dict))
        children = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [child for group in children for child in group if child.__class__ in _NESTING]
    return count > most


def is_deep(metadata: dict[str, Any]) -> bool:
    """Whether it is nested over `MAX_DEPTH` levels."""
    level = [value for value in metadata.values() if value.__class__ in _NESTING]
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        children = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [child for group in children for child in group if child.__class__ in _NESTING]
    return bool(level)


def _refusal(index: int, piece: bytes, error: Exception) -> Refusal:
    if isinstance(error, TooDeepError):
        told = f"metadata: is nested over {MAX_DEPTH} levels"
        return Refusal(index, "metadata", told, 400, "metadata_depth")
    if isinstance(error, RecursionError):
        return Refusal(index, None, "JSON is nested too deeply", 400, "metadata_depth")
    if not is_utf8(piece):
        return Refusal(index, None, "JSON is not UTF-8", 400)
    if isinstance(error, msgspec.ValidationError):
        # msgspec stops at the first field that is wrong; there may be no JSON behind it.
        try:
            _raw.decode(piece)
        except NOT_DECODED as worse:
            return _refusal(index, piece, worse)
        return Refusal(index, *_told(str(error)), 422)
    if str(error) == "Input data was truncated":
        return Refusal(index, None, "JSON ends too early, or has half a surrogate pair", 400)
    return Refusal(index, None, str(error), 400)


def is_utf8(text: bytes) -> bool:
    """Whether the text is UTF-8. The class of a decoder's exception does not say so: msgspec's
    versions differ in it, and none of them looks into fields that it skips."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _told(text: str) -> tuple[str | None, str]:
    """The field of msgspec's complaint, and the complaint in words for people."""
    if match := _UNKNOWN.match(text):  # first: such a field may be named like any complaint
        field = match["field"][:MAX_NAME_SHOWN]
        return field, f"{field}: is no field of an event; data of your own goes to metadata"
    if match := _MISSING.match(text):
        return match["field"], f"{match['field']}: is required"
    if match := _AT_FIELD.match(text):
        return match["field"], f"{match['field']}: {_in_words(match['what'])}"
    return None, _in_words(text)


def _in_words(what: str) -> str:
    for pattern, words in _WORDS:
        if pattern.match(what):
            return pattern.sub(words, what)
    if match := _MISTAKEN.match(what):
        wanted, got = (_KINDS.get(kind, kind) for kind in match.groups())
        return f"must be {wanted}, not {got}"
    return what[:1].lower() + what[1:]
