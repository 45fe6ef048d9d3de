"""What a send shows."""

import io
import os
import pty
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from logpipe.output import Output
from logpipe.send.progress import Screen, Totals, amount


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123.5 kB"),
        (45_600_000, "45.6 MB"),
        (10**12, "1.0 TB"),
        (10**15, "1,000.0 TB"),
    ],
)
def test_bytes_for_people(size: int, words: str) -> None:
    assert amount(size) == words


def test_the_sum_names_only_what_there_is() -> None:
    assert str(Totals(size=2, sent=1)) == "1 line sent (2 B)"
    told = str(Totals(size=5000, sent=1234, refused=2, unfit=1, left=10))
    assert told == "1,234 lines sent (5.0 kB), 3 refused, 10 not sent"


def test_words_cannot_steer_a_terminal_nor_fail_a_send() -> None:
    stream = io.BytesIO()
    screen = Screen(Output(stream))
    screen.tell("a\x1b[2J\nb")
    assert stream.getvalue() == b"logpipe: a\\x1b[2J\\nb\n"
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        Screen(Output(full)).tell("a")


class Terminal(Output):
    """A terminal of so many columns that keeps what it is given."""

    def __init__(self, columns: int) -> None:
        self.stream = io.BytesIO()
        super().__init__(self.stream)
        self.terminal = True
        self._columns = columns

    def columns(self) -> int | None:
        return self._columns

    @property
    def last(self) -> str:
        return self.stream.getvalue().decode().rpartition("\r\x1b[K")[2]


def until(condition: Callable[[], bool]) -> None:
    """Returns once a thread has made the condition true; fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_bar_shows_the_part_that_was_sent() -> None:
    terminal, totals = Terminal(100), Totals(size=500, sent=1)
    screen = Screen(terminal)
    screen.show(totals, 1000)
    screen.advance(500)
    until(lambda: terminal.last == f"{'#' * 15}{'.' * 15}  50%  500 B of 1.0 kB  1 line  1/s")
    screen.tell("words")
    until(lambda: "\r\x1b[Klogpipe: words\n\r\x1b[K#" in terminal.stream.getvalue().decode())
    screen.close()
    assert terminal.last == ""


def test_without_a_total_figures_are_shown_alone() -> None:
    terminal = Terminal(100)
    screen = Screen(terminal)
    screen.show(Totals(size=500, sent=1234), None)
    until(lambda: terminal.last == "500 B  1,234 lines  1,234/s")
    screen.close()


def test_the_bar_fits_a_narrow_terminal() -> None:
    terminal = Terminal(20)
    screen = Screen(terminal)
    screen.show(Totals(), 1000)
    until(lambda: len(terminal.last) == 19)
    screen.close()


def test_an_empty_file_is_done() -> None:
    terminal, totals = Terminal(100), Totals()
    screen = Screen(terminal)
    screen.show(totals, 0)
    screen.advance(0)
    until(lambda: terminal.last.startswith("#" * 30 + " 100%"))
    screen.close()


def test_a_terminal_that_is_not_read_does_not_stop_the_delivery() -> None:
    controller, terminal = pty.openpty()
    os.set_blocking(terminal, False)
    with suppress(BlockingIOError):
        while True:  # until the terminal takes no more
            os.write(terminal, b"x" * 4096)
    os.set_blocking(terminal, True)
    with open(terminal, "wb", buffering=0) as stream:  # noqa: PTH123
        screen = Screen(Output(stream))
        screen.show(Totals(), 1000)
        for _ in range(1000):
            screen.advance(1)
        os.close(controller)
        screen.close()
