"""How far it is, in one line: drawn over and over on a terminal, and wiped for every word."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec

from logpipe.output import Output
from logpipe.terminal import bar, counted, printable

DRAW_S = 0.2
RATE_S = 5.0
"""The rate is that of the last seconds."""
WIPE = "\r\x1b[K"


class Totals(msgspec.Struct):
    """What became of the lines so far. Each field is written by one thread."""

    size: int = 0
    """Bytes of the input that are dealt with."""
    sent: int = 0
    refused: int = 0
    unfit: int = 0
    """Refused without asking the collector."""
    left: int = 0
    """Read, and neither."""

    def __str__(self) -> str:
        parts = [f"{counted(self.sent, 'line')} sent ({amount(self.size)})"]
        if refused := self.refused + self.unfit:
            parts.append(f"{refused:,} refused")
        if self.left:
            parts.append(f"{self.left:,} not sent")
        return ", ".join(parts)


def amount(size: int) -> str:
    """Bytes for people."""
    if size < 1000:
        return f"{size} B"
    power = min(4, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:,.1f} {'kMGT'[power - 1]}B"


def line(totals: Totals, total: int | None, rate: float, columns: int) -> str:
    """The bar and the figures, in at most so many columns."""
    figures = f"{counted(totals.sent, 'line')}  {rate:,.0f}/s"
    if total is None:
        return f"{amount(totals.size)}  {figures}"[: columns - 1]
    part = min(1.0, totals.size / total) if total else 1.0
    size = f"{amount(totals.size)} of {amount(total)}"
    return f"{part:4.0%} {bar(part)} {size}  {figures}"[: columns - 1]


class Screen:
    """Writes words for people, and on a terminal how far it is beneath them."""

    def __init__(self, out: Output, over_echo: str = "") -> None:
        self._out = out
        self._over_echo = over_echo
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._line: Callable[[int], str] | None = None
        self._thread = threading.Thread(target=self._draw_on, daemon=True)

    def tell(self, words: str) -> None:
        """Writes a line, of which a terminal obeys nothing."""
        with self._lock:
            self._write(f"{self._wiped()}logpipe: {printable(words)}\n")

    def tell_sum(self, totals: Totals) -> None:
        """Writes what became of all, over what a terminal shows of a key that ended it."""
        with self._lock:
            self._write(f"{self._over_echo}{totals}\n")

    def show(self, totals: Totals, total: int | None) -> None:
        """Begins to draw, where there is a terminal."""
        if not self._out.terminal:
            return
        rate = Rate()

        def current(columns: int) -> str:
            return line(totals, total, rate.of(totals.sent, time.monotonic()), columns)

        self._line = current
        self._thread.start()

    def close(self) -> None:
        """Wipes it away."""
        self._over.set()
        with self._lock:
            self._write(self._wiped())
            self._line = None

    def _wiped(self) -> str:
        return WIPE if self._line else ""

    def _draw_on(self) -> None:
        while not self._over.is_set():
            with self._lock:
                if self._line and (columns := self._out.columns()):
                    self._write(f"{WIPE}{self._line(columns)}")
            self._over.wait(DRAW_S)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # that nobody listens is no reason not to send
            self._out.write(text.encode(errors="replace"))


class Rate:
    """Of a count that grows."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, count: int, now: float) -> float:
        """A second, over the last seconds."""
        self._seen.append((now, count))
        while now - self._seen[0][0] > RATE_S:
            self._seen.popleft()
        first, before = self._seen[0]
        return (count - before) / (now - first) if now > first else 0.0
