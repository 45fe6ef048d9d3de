"""The end of a sender by a signal: the first lets it finish what it has read, within a limit."""

import signal
import threading
from types import FrameType
from typing import Self

HANDLED = (signal.SIGINT, signal.SIGTERM)

GRACE_S = 3.0
"""What delivering the last lines may take."""


class StoppedError(Exception):
    """There is no more time."""


class Stop:
    """Signals while it is entered. Whoever waits, waits with it and ends when it is set."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._forgotten = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in HANDLED}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def forget(self) -> None:
        """There is nothing left to interrupt: what is to come takes a moment."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._forgotten = True

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._forgotten:
            return
        if self.asked.is_set():
            raise StoppedError
        self.asked.set()
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
