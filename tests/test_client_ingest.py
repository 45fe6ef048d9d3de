"""What a collector's answer means for the one who sends batches."""

import json
from typing import Any

import pytest

from logpipe.client.ingest import Later, Never, Refused, Taken, TooLarge, judge


def body(**members: Any) -> bytes:
    return json.dumps({"detail": "No.", **members}).encode()


@pytest.mark.parametrize(
    ("status", "answer", "verdict"),
    [
        (202, body(accepted=2, rejected=0, errors=[]), Taken(2, 0, [])),
        (
            202,
            body(accepted=1, rejected=2, errors=[{"index": 1, "error": "bad", "field": "level"}]),
            Taken(1, 2, [Refused(1, "bad")]),
        ),
        (202, b"ok", Never("is no collector")),
        (200, b"", Never("answers 200")),
        (404, b"<html>", Never("answers 404")),
        (404, body(), Never("answers 404: No.")),
        (408, body(), Later("answers 408: No.")),
        (429, b"", Later("answers 429")),
        (502, b"", Later("answers 502")),
        (503, body(), Later("answers 503: No.")),
        (413, body(), TooLarge("No.")),
        (413, b"", TooLarge("answers 413")),
        (
            413,
            body(rejected=2, errors=[{"index": n, "error": "big"} for n in range(2)]),
            Taken(0, 2, [Refused(0, "big"), Refused(1, "big")]),
        ),
        (422, body(), Taken(0, 2, [Refused(0, "No.")])),
        (400, body(), Taken(0, 2, [Refused(0, "No.")])),
        (400, b"", Never("answers 400")),
        (415, body(), Never("answers 415: No.")),
    ],
)
def test_each_answer_has_its_meaning(status: int, answer: bytes, verdict: Any) -> None:
    assert judge(status, {}, answer, 2) == verdict


def test_one_event_that_is_too_large_is_refused() -> None:
    assert judge(413, {}, body(), 1) == Taken(0, 1, [Refused(0, "No.")])


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_not_taken_has_its_remedy(status: int) -> None:
    verdict = judge(status, {}, b"", 1)
    assert isinstance(verdict, Never)
    assert "--token" in verdict.remedy


def test_a_host_name_that_is_not_known_has_its_remedy() -> None:
    verdict = judge(421, {}, body(), 1)
    assert isinstance(verdict, Never)
    assert "ALLOWED_HOSTS" in verdict.remedy


@pytest.mark.parametrize(("text", "seconds"), [("", 0.0), ("7", 7.0), ("soon", 0.0)])
def test_a_503_is_retried_when_the_collector_says(text: str, seconds: float) -> None:
    assert judge(503, {"retry-after": text}, b"", 1) == Later("answers 503", seconds)
