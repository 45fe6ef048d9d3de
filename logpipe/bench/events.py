"""The events of a benchmark: each carries a mark that says which one it is and when it was due.

A request is a template of constant length, in which only the number of the request and the time
are put in: to build a thousand events anew would cost more than to send them.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

_PLACE = b"@" * 8 + b" " + b"@" * 16
"""Where the number of the request and the due time in microseconds go."""


class Mark(NamedTuple):
    """What an event of a run says of itself; `number` counts the run's events from 0."""

    number: int
    due_us: int


class Template:
    """Requests of `per_request` events each, of `size` bytes of JSON, for one run.

    `wrap` makes the whole request of the events' JSON; its length must not depend on digits.
    """

    def __init__(
        self,
        run: str,
        wrap: Callable[[Sequence[bytes]], bytes],
        *,
        per_request: int = 1,
        size: int = 200,
    ) -> None:
        self.per_request = per_request
        self._request = wrap([_event(run, index, size) for index in range(per_request)])

    def request(self, number: int, due_us: int) -> bytes:
        """The request of a number, counted from 0, whose events were due at a unix time."""
        return self._request.replace(_PLACE, b"%08d %016d" % (number, due_us))


def _event(run: str, index: int, size: int) -> bytes:
    head = b'{"source":"bench","level":"INFO","message":"'
    mark = b"bench %b %05d %b " % (run.encode(), index, _PLACE)
    return head + mark + b"x" * max(0, size - len(head) - len(mark) - 2) + b'"}'


class Marks:
    """Finds the marks of a run in text as it comes from a subscription."""

    LENGTH = len("bench 01234567 00000 ") + len(_PLACE) + 1

    def __init__(self, run: str, per_request: int = 1) -> None:
        self._per_request = per_request
        self._pattern = re.compile(rb"bench %b (\d{5}) (\d{8}) (\d{16}) " % run.encode())

    def find(self, text: bytes | bytearray, start: int = 0) -> list[tuple[int, Mark]]:
        """The marks that are whole, each with the offset behind it."""
        return [
            (
                found.end(),
                Mark(int(found[2]) * self._per_request + int(found[1]), int(found[3])),
            )
            for found in self._pattern.finditer(text, start)
        ]
