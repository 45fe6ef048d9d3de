"""Times as senders write them: numbers of seconds to nanoseconds, and RFC 3339."""

import math
import re
from datetime import UTC, datetime, timedelta

from logpipe.event import (
    MAX_TS_UNIX_MS,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_NUMBER = re.compile(r"\d{1,20}(\.\d{0,20})?", re.ASCII)


def ms_of(value: object) -> int | None:
    """Milliseconds since 1970 of a number of s, ms, µs or ns, distinguished by size, or of a text
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


def is_time(value: object) -> bool:
    """Whether it is a time that an event may have."""
    return ms_of(value) is not None
