"""Stream ids: the one numbering of logpipe, and the ways in which people name a point in time.

A Redis Stream id `<ms>-<seq>` orders all events of all collectors; it is the SSE id, the resume
point and the cursor of the history. Two unsigned 64-bit numbers, compared as a pair.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

MAX_PART = 2**64 - 1
"""Redis keeps each half of an id in 64 bits."""

_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_AGE = re.compile(r"(\d{1,9})(ms|s|m|h|d)", re.ASCII)
UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SECONDS_BELOW = 100_000_000_000
"""Unix times below this are seconds (until the year 5138), others milliseconds (since 1973)."""


class StreamId(NamedTuple):
    """An id of a stream's entry; as text `ms-seq`."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    def before(self) -> "StreamId":
        """The greatest id below this one; `START` stays where it is."""
        if self.seq:
            return StreamId(self.ms, self.seq - 1)
        return StreamId(self.ms - 1, MAX_PART) if self.ms else self

    def after(self) -> "StreamId":
        """The least id above this one; `END` stays where it is."""
        if self.seq < MAX_PART:
            return StreamId(self.ms, self.seq + 1)
        return StreamId(self.ms + 1, 0) if self.ms < MAX_PART else self


START = StreamId(0, 0)
"""Below every entry: Redis gives no entry the id 0-0."""
END = StreamId(MAX_PART, MAX_PART)


def parse_id(text: str) -> StreamId:
    """`1710000000000-3`, or `1710000000000` for its first entry. ValueError for all else."""
    match = _ID.fullmatch(text)
    if match is None:
        raise ValueError("not a stream id, which looks like 1710000000000-0")
    ms, seq = int(match[1]), int(match[2] or 0)
    if ms > MAX_PART or seq > MAX_PART:
        raise ValueError("not a stream id: a half of it is over 64 bits")
    return StreamId(ms, seq)


def from_wire(raw: bytes) -> StreamId:
    """An id as Redis sends it."""
    ms, _, seq = raw.partition(b"-")
    return StreamId(int(ms), int(seq))


def parse_since(text: str, now_ms: int) -> StreamId | None:
    """The least id of the span that `text` names, or None for `latest`.

    `10m`, `2h` (ms, s, m, h, d) count back from `now_ms`; a unix time is in s or ms by its size;
    RFC 3339 needs its offset; a full stream id is itself; `earliest` is `START`. ValueError tells
    what is allowed.
    """
    if text == "latest":
        return None
    if text == "earliest":
        return START
    if age := _AGE.fullmatch(text):
        return StreamId(max(0, now_ms - int(age[1]) * UNIT_MS[age[2]]), 0)
    if "-" in text and _ID.fullmatch(text):
        return parse_id(text)
    if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text, re.ASCII):
        number = float(text)
        return StreamId(round(number * 1000 if number < _SECONDS_BELOW else number), 0)
    try:
        moment = datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(
            "not a time: use 10m, 2h, a unix time in s or ms, RFC 3339 with its offset,"
            " a stream id, earliest or latest"
        )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return StreamId(max(0, (moment - epoch) // timedelta(milliseconds=1)), 0)
