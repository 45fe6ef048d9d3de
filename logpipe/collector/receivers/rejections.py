"""The log of rejected events: senders of most protocols do not look at an answer to a batch."""

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context

from logpipe.problems import Problem

log = logging.getLogger("logpipe.receivers")

INTERVAL_S = 60.0
"""Between two lines of one protocol."""


class Rejections:
    """The rejected events of one protocol: the first are logged at once, those that follow by one
    line for each interval in which there were any. A line has their number and a reason, and
    nothing of what was sent. To be used in an event loop."""

    def __init__(self, protocol: str, interval_s: float = INTERVAL_S) -> None:
        self._protocol = protocol
        self._interval_s = interval_s
        self._count = 0
        self._reason = ""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, problems: Sequence[Problem]) -> None:
        """Logs these rejections, now or at the end of the interval."""
        if problems and not self._count:
            self._reason = problems[0].detail
        self._count += len(problems)
        if self._timer is None:
            self._report()

    def _report(self) -> None:
        self._timer = None
        if self._count:
            log.warning(
                "%s: events rejected: %d; the first: %s",
                self._protocol,
                self._count,
                self._reason,
            )
            self._count = 0
            # Not in the context of this request, whose id the next line would have.
            self._timer = asyncio.get_running_loop().call_later(
                self._interval_s, self._report, context=Context()
            )
