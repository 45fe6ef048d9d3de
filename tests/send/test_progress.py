"""What is shown of how far it is."""

import io

import pytest

from logpipe.output import Output
from logpipe.send.progress import Rate, Screen, Totals, amount, line


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


def test_the_line_fits_the_terminal() -> None:
    totals = Totals(size=500, sent=1234)
    assert line(totals, 1000, 99.6, 100) == (
        f" 50% {'#' * 15}{'.' * 15} 500 B of 1.0 kB  1,234 lines  100/s"
    )
    assert line(totals, None, 0.0, 100) == "500 B  1,234 lines  0/s"
    assert line(totals, 0, 0.0, 100).startswith("100% ")
    assert len(line(totals, 1000, 99.6, 20)) == 19


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.of(100, 0.0) == 0.0
    assert rate.of(300, 2.0) == 100.0
    assert rate.of(300, 100.0) == 0.0


def test_words_cannot_steer_a_terminal_and_a_reader_that_has_left_is_no_error() -> None:
    stream = io.BytesIO()
    screen = Screen(Output(stream))
    screen.tell("a\x1b[2J\nb")
    assert stream.getvalue() == b"logpipe: a\\x1b[2J\\nb\n"
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        Screen(Output(full)).tell("a")
