"""What a send shows: lines for people, a progress bar on a terminal, and the totals."""

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from click import progressbar

from logpipe.output import Output
from logpipe.terminal import counted, printable

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

DRAW_S = 0.2
"""Between two drawings of the bar."""
WIPE = "\r\x1b[K"


class Totals(msgspec.Struct):
    """What became of the lines so far. Each field is written by one thread."""

    size: int = 0
    """Bytes of the input that are stored or rejected."""
    sent: int = 0
    refused: int = 0
    unfit: int = 0
    """Refused without asking the collector."""
    left: int = 0
    """Read, but neither stored nor rejected."""

    def __str__(self) -> str:
        parts = [f"{counted(self.sent, 'line')} sent ({amount(self.size)})"]
        if refused := self.refused + self.unfit:
            parts.append(f"{refused:,} refused")
        if self.left:
            parts.append(f"{self.left:,} not sent")
        return ", ".join(parts)


def amount(size: int) -> str:
    """`1.2 kB`, `45.6 MB`."""
    if size < 1000:
        return f"{size} B"
    power = min(4, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:,.1f} {'kMGT'[power - 1]}B"


class Screen:
    """Writes lines for people, and on a terminal a progress bar beneath them.

    A thread draws the bar, so that a terminal that is not being read does not stop the delivery.
    """

    def __init__(self, out: Output, over_echo: str = "") -> None:
        self._out = out
        self._over_echo = over_echo
        self._lock = threading.RLock()
        self._bar: ProgressBar[None] | None = None
        self._closed = threading.Event()

    def tell(self, words: str) -> None:
        """Writes a line, with control characters as escapes."""
        with self._lock:
            wipe = WIPE if self._bar else ""
            self._write(f"{wipe}logpipe: {printable(words)}\n")

    def tell_sum(self, totals: Totals) -> None:
        """Writes the totals, over the `^C` that a terminal shows after Ctrl-C."""
        self._write(f"{self._over_echo}{totals}\n")

    def show(self, totals: Totals, total: int | None) -> None:
        """Shows a bar, or figures alone where the bytes to read are not known."""
        if not self._out.terminal:
            return
        began = time.monotonic()

        def figures(_: None) -> str:
            rate = totals.sent / max(1.0, time.monotonic() - began)
            of = "" if total is None else f" of {amount(total)}"
            return f"{amount(totals.size)}{of}  {counted(totals.sent, 'line')}  {rate:,.0f}/s"

        self._bar = progressbar(
            (_ for _ in ()),
            length=total,
            width=30,
            item_show_func=figures,
            empty_char=".",
            bar_template="%(info)s" if total is None else "%(bar)s %(info)s",
        )
        threading.Thread(target=self._draw, daemon=True).start()

    def advance(self, size: int) -> None:
        """Adds to what is done, without waiting for the terminal."""
        if self._bar:
            self._bar.make_step(size)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._bar:
                self._write(WIPE)
            self._bar = None

    def _draw(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                if self._bar and (columns := self._out.columns()):
                    self._write(f"{WIPE}{self._bar.format_progress_line()[: columns - 1]}")
            self._closed.wait(DRAW_S)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a reader that has left is no reason not to send
            self._out.write(text.encode(errors="replace"))
