"""When a request is sent again."""

import pytest

from logpipe.handler.retry import Backoff, asks_to_retry, retry_after_s

NOW = 1_710_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7),
        (" 7 ", 7),
        ("-7", None),
        ("nan", None),
        ("soon", None),
        ("Sat, 09 Mar 2024 16:00:30 GMT", 30),
        ("Sat, 09 Mar 2024 15:00:00 GMT", 0),
        ("9" * 5_000, 999_999_999),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text, NOW) == seconds


def test_pauses_double_up_to_a_bound_and_begin_again() -> None:
    backoff = Backoff(1.0, 5.0)
    for expected in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert 0.7 * expected <= backoff.pause_s() <= 1.3 * expected
    backoff.reset()
    assert 0.7 <= backoff.pause_s() <= 1.3


def test_pauses_differ_so_that_senders_do_not_come_together() -> None:
    assert len({Backoff().pause_s() for _ in range(10)}) > 1


def test_only_temporary_failures_ask_to_retry() -> None:
    assert all(map(asks_to_retry, (408, 425, 429, 500, 502, 503)))
    assert not any(map(asks_to_retry, (202, 301, 400, 401, 403, 404, 413, 422)))
