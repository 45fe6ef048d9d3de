"""When a request is sent again: the answers that ask for it, and the pauses between attempts.

Pure, and of the standard library alone.
"""

import email.utils
import random

NOT_NOW = (408, 425, 429)
"""Client errors that ask the sender to retry."""


def asks_to_retry(status: int) -> bool:
    """Returns whether a status is that of a temporary failure."""
    return status >= 500 or status in NOT_NOW


def retry_after_s(value: str | None, now: float) -> float | None:
    """The seconds until the time that a Retry-After header names, in seconds or as a date.

    `now` is the unix time. None without a header, and for one that names no time.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return None


class Backoff:
    """The pauses between failed attempts: they double from `first_s` to `last_s` seconds, with a
    jitter of 30 %."""

    def __init__(self, first_s: float = 0.2, last_s: float = 3.0) -> None:
        self._first_s = self._next_s = first_s
        self._last_s = last_s

    def pause_s(self) -> float:
        pause_s = self._next_s * random.uniform(0.7, 1.3)  # noqa: S311 - jitter is no secret
        self._next_s = min(self._next_s * 2, self._last_s)
        return pause_s

    def reset(self) -> None:
        """Begins with `first_s` again, after an attempt that succeeded."""
        self._next_s = self._first_s
