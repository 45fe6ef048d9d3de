"""The event: what applications send, what the stream holds, and the way between.

Pure. An entry of the stream holds one field, `event`, with the JSON that `encode` makes; `Entry` is
that JSON again on its way out, with its id in front. What senders wrote is read in `decoding.py`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from logpipe.ids import StreamId

MAX_TS_UNIX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, after which calendars and clients disagree."""

MAX_DEPTH = 512
"""Levels of objects and arrays in the metadata. Without it the bound would be what the interpreter
has left of its stack, and one who reads from deeper down could not read what another has taken."""

MAX_SOURCE = 256
MAX_LEVEL = 32
"""Characters of a source and of a level."""

RESERVED = "logpipe"
"""Sources that begin with it, in any letter case, are for logpipe's own events: no sender can fake
them."""

IS_RESERVED = (
    f'must not begin with "{RESERVED}" (in any letter case), which is reserved for logpipe itself'
)
"""Why a source is rejected, as the end of a sentence."""


def is_reserved(source: str) -> bool:
    """Whether a source is rejected when it comes from outside."""
    return source[: len(RESERVED)].lower() == RESERVED


LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
RANK = {name: rank for rank, name in enumerate(LEVELS)}

# Spellings of syslog, log4j, Python, zap, Serilog and the OpenTelemetry severities.
_SPELLINGS = {
    "TRACE": ("trace", "trc", "verbose", "finest", "finer", "silly"),
    "DEBUG": ("debug", "dbg", "fine", "config"),
    "INFO": ("info", "inf", "information", "informational", "notice", "note", "log", "default"),
    "WARN": ("warn", "warning", "wrn"),
    "ERROR": ("error", "err", "eror", "severe", "failure"),
    "FATAL": ("fatal", "critical", "crit", "emerg", "emergency", "alert", "panic", "dpanic"),
}
_LEVEL_OF = {word: level for level, words in _SPELLINGS.items() for word in words}
_LEVEL_OF.update({word.upper(): level for word, level in list(_LEVEL_OF.items())})


def level_name(word: str) -> str:
    """The stored form of a level: one of `LEVELS` for known spellings, else `word` in capitals."""
    if level := _LEVEL_OF.get(word):
        return level
    capitals = word.upper()
    return _LEVEL_OF.get(capitals, capitals)


def level_rank(level: str) -> int:
    """0 (TRACE) to 5 (FATAL); a word of one's own ranks as INFO."""
    return RANK.get(level, RANK["INFO"])


class Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One log event; `ts_unix_ms` is None until `encode` fills in the time of receipt.

    Not tracked by the garbage collector: what JSON says holds no cycle.
    """

    source: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SOURCE)]
    message: str
    level: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LEVEL)] = "INFO"
    ts_unix_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TS_UNIX_MS)] | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


_encoder = msgspec.json.Encoder()
PIECE_EVENTS = 5_000

NOT_DECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for input that it cannot decode; text that is not UTF-8 is a `DecodeError` in
some of its versions and a `UnicodeDecodeError` in others."""


def encode(events: Sequence[Event], now_ms: int) -> list[bytes]:
    """The JSON that the stream holds, each on one line; `now_ms` is the time of receipt."""
    for event in events:
        if event.ts_unix_ms is None:
            event.ts_unix_ms = now_ms
    if len(events) == 1:
        return [_encoder.encode(events[0])]
    encoded: list[bytes] = []
    for at in range(0, len(events), PIECE_EVENTS):
        encoded += _encoder.encode_lines(events[at : at + PIECE_EVENTS]).split(b"\n")[:-1]
    return encoded


class StoredEvent(msgspec.Struct, gc=False):
    """An event read back from the stream; other writers may have added fields, which stay."""

    source: str = ""
    message: str = ""
    level: str = "INFO"
    ts_unix_ms: int | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class ReadEvent(StoredEvent, kw_only=True, omit_defaults=True):
    """The schema of an entry's JSON: an event behind its id in the stream."""

    id: str


class Stored(NamedTuple):
    """What became of events that were sent: how many are stored, from which id to which."""

    accepted: int
    first_id: str
    last_id: str


class Entry(NamedTuple):
    """An entry of the stream: its id, the event's JSON with the id in front, and the event."""

    id: StreamId
    json: bytes
    event: StoredEvent


TEXT_FACTOR = 12 / 5
"""Bytes in memory for each byte of JSON, of large events that are mostly ASCII text (measured)."""
ENTRY_MEMORY = 330
"""Bytes in memory of an entry beside its JSON, its message and its metadata (measured)."""
VALUE_MEMORY = 80
"""Of a short text, a number or an empty list, and its name or its place in a list (measured)."""
OBJECT_MEMORY = 184
"""Of an object with up to five members (measured)."""
SMALL_BYTES = 1024
"""Of entries up to this size, commas and braces in messages count as if they were in metadata."""


def weight_of(entries: Sequence[Entry]) -> int:
    """The bytes of some entries for bounds on what is kept in memory.

    They are those of the JSON, or the estimated memory / `TEXT_FACTOR` where that is more: a list
    of empty objects takes 25 times its JSON, a text with one emoji five times.
    """
    small = [entry.json for entry in entries if len(entry.json) <= SMALL_BYTES]
    large = [entry for entry in entries if len(entry.json) > SMALL_BYTES]
    return sum(map(_large_weight, large)) + _small_weight(small)


def _small_weight(texts: Sequence[bytes]) -> int:
    text = b"".join(texts)  # counted together, which takes a third of the time
    size = len(text)
    memory = (ENTRY_MEMORY - OBJECT_MEMORY) * len(texts) + 2 * size + _values_memory(text)
    if not text.isascii():
        memory += 3 * size
    return max(size, int(memory / TEXT_FACTOR))


def _large_weight(entry: Entry) -> int:
    _, json, event = entry
    size = len(json)
    memory = ENTRY_MEMORY + size + event.message.__sizeof__()
    if event.metadata:
        message = event.message.encode(errors="replace")
        memory += _values_memory(json) - OBJECT_MEMORY - _values_memory(message)
        if not json.isascii():
            # Four bytes a character, if there is an emoji.
            memory += 4 * max(0, size - len(message))
    return max(size, int(memory / TEXT_FACTOR))


def _values_memory(json: bytes) -> int:
    """The memory of what is in some JSON, but for texts; more where texts have commas or braces."""
    values = json.count(b",") + json.count(b"[")
    return VALUE_MEMORY * values + OBJECT_MEMORY * json.count(b"{")


_stored = msgspec.json.Decoder(StoredEvent)
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_entry(id_: StreamId, raw: bytes | None) -> Entry | None:
    """The entry that Redis gave, or None when it holds no event (another program's writing)."""
    if raw is None:
        return None
    try:
        event = _stored.decode(raw)
        if not raw.isascii():
            raw.decode()  # msgspec does not look into fields that it skips
        # Line ends and leading space between tokens are JSON, but would break SSE and NDJSON.
        if not raw.startswith(b'{"') or b"\n" in raw or b"\r" in raw:
            raw = msgspec.json.format(raw, indent=-1)
        if b'"id"' in raw:
            raw = _without_id(raw)
    except NOT_DECODED:
        return None
    head = b'{"id":"%d-%d"' % id_
    return Entry(id_, head + (b"}" if raw == b"{}" else b"," + raw[1:]), event)


def _without_id(raw: bytes) -> bytes:
    """An `id` of another writer's own must not hide the stream's: of two, JSON takes the last."""
    fields = _raw_fields.decode(raw)
    return raw if fields.pop("id", None) is None else _encoder.encode(fields)
