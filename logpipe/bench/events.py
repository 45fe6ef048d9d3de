"""The events of a benchmark: each says in its message which one it is and when it was due."""

import re
from collections.abc import Callable, Sequence

Wrap = Callable[[Sequence[bytes]], bytes]
"""Makes a whole request of the JSON of some events."""

MARK_BYTES = 47
"""Length of a mark, which `marks` finds."""

_PLACE = b"@" * 8 + b" " + b"@" * 16


class Template:
    """Requests of `per_request` events of `size` bytes of JSON each, for one run.

    Only the request's number and due time differ between requests, so their length is constant:
    encoding a thousand events for each request would cost more than sending them.
    """

    def __init__(self, run: str, wrap: Wrap, *, per_request: int = 1, size: int = 200) -> None:
        self.per_request = per_request
        self._request = wrap([_event(run, index, size) for index in range(per_request)])

    def request(self, number: int, due_us: int) -> bytes:
        """The request with this number, counted from 0, due at a Unix time in microseconds."""
        return self._request.replace(_PLACE, b"%08d %016d" % (number, due_us))


def marks(run: str) -> re.Pattern[bytes]:
    """Finds the marks of a run: index in the request, number of the request, due time in us."""
    return re.compile(rb"bench %b (\d{5}) (\d{8}) (\d{16}) " % run.encode())


def _event(run: str, index: int, size: int) -> bytes:
    head = b'{"source":"bench","level":"INFO","message":"'
    mark = b"bench %b %05d %b " % (run.encode(), index, _PLACE)
    return head + mark + b"x" * max(0, size - len(head) - len(mark) - 2) + b'"}'
