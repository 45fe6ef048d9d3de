"""When to come again: what asks for it, and how long to wait. Pure."""

import random

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 3.0
"""The pause between two attempts doubles from the first to the last, with jitter."""

NOT_NOW = (408, 425, 429)
MISDIRECTED = 421
"""A process on loopback does not know the host name by which it was asked."""
MISDIRECTED_REMEDY = "ask it by an address or localhost, or add the name to its ALLOWED_HOSTS"
"""Client errors that ask to come again."""


class Backoff:
    """The pauses between attempts that fail one after the other."""

    def __init__(self, first_s: float = FIRST_RETRY_S) -> None:
        self._first_s = self._next_s = first_s

    def pause_s(self) -> float:
        """The next pause; the one after it is longer."""
        pause_s = self._next_s * random.uniform(0.7, 1.3)  # noqa: S311 - jitter is no secret
        self._next_s = min(self._next_s * 2, LAST_RETRY_S)
        return pause_s

    def reset(self) -> None:
        """An attempt has succeeded."""
        self._next_s = self._first_s
