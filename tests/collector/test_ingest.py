import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.collector.ingest import (
    MAX_KEY_LENGTH,
    MAX_REPORTED,
    Bounds,
    Intake,
    answer_of,
    append_of,
    require_length,
    scope_of,
    take_in,
)
from logpipe.decoding import Refusal
from logpipe.problems import Problem
from logpipe.stream import RECEIPT_BYTES, Appended
from tests.streams import once

LIMIT = 65_536
A = b'{"source":"a","message":"1"}'
B = b'{"source":"b","message":"2"}'
BAD = b'{"source":"c"}'


def bounds(size: int) -> Bounds:
    return Bounds(bytes=size, keys=1_000, events=200_000)


def messages(intake: Intake) -> list[str]:
    return [json.loads(event)["message"] for event in intake.events]


def refused(body: bytes, content_type: str = "application/json", limit: int = LIMIT) -> Problem:
    with pytest.raises(Problem) as caught:
        take_in(body, content_type, bounds(limit))
    return caught.value


def sized(size: int) -> bytes:
    """An event that measures exactly `size` bytes as the stream holds it."""
    fixed = len(take_in(b'{"source":"a","message":"","ts_unix_ms":1}', "", bounds(LIMIT)).events[0])
    return b'{"source":"a","message":"%b","ts_unix_ms":1}' % (b"x" * (size - fixed))


@pytest.mark.parametrize("spelling", ["application/json", " Application/JSON ; charset=utf-8", ""])
def test_one_object_is_answered_as_one(spelling: str) -> None:
    intake = take_in(A, spelling, bounds(LIMIT))
    assert intake.single
    assert messages(intake) == ["1"]


@pytest.mark.parametrize(
    "body",
    [
        b"[%b,%b]" % (A, B),
        A + B,
        A + b"\n" + B + b"\n",
        b" " + A + b"\r\n\t" + B,
        A.replace(b",", b",\n") + b"\n" + B,
    ],
    ids=["array", "concatenated", "lines", "spaced", "over several lines"],
)
def test_a_batch_keeps_its_order(body: bytes) -> None:
    intake = take_in(body, "application/json", bounds(LIMIT))
    assert messages(intake) == ["1", "2"]
    assert not intake.single
    assert intake.refusals == []


def test_a_batch_of_one_is_answered_as_a_batch() -> None:
    assert not take_in(b"[%b]" % A, "application/json", bounds(LIMIT)).single
    assert not take_in(A, "application/x-ndjson", bounds(LIMIT)).single
    assert not take_in(A + b"\n", "application/x-ndjson; charset=utf-8", bounds(LIMIT)).single


def test_a_refused_event_is_named_by_its_place_and_its_field() -> None:
    intake = take_in(b"\n".join([A, BAD, B, b'{"source":"d","message":1}']), "", bounds(LIMIT))
    assert messages(intake) == ["1", "2"]
    assert [(refusal.index, refusal.field) for refusal in intake.refusals] == [
        (1, "message"),
        (3, "message"),
    ]


@pytest.mark.parametrize("body", [b"", b" \n\t "])
@pytest.mark.parametrize("content_type", ["", "application/json", "application/x-ndjson"])
def test_an_empty_body_is_a_bad_request(body: bytes, content_type: str) -> None:
    assert refused(body, content_type).status == 400


def test_an_empty_array_is_a_bad_request() -> None:
    assert refused(b"[]").status == 400


@pytest.mark.parametrize("body", [b"not json", b"{", b"\xff\xfe", b"a=b&c=d", b"{]" + A])
@pytest.mark.parametrize("content_type", ["", "application/json", "application/x-ndjson"])
def test_what_is_not_json_is_a_bad_request(body: bytes, content_type: str) -> None:
    assert refused(body, content_type).status == 400


@pytest.mark.parametrize(
    "other",
    [
        b'{"source":"a","message":"Gr\xfc\xdfe"}',
        b'{"source":"a","message":"m","metadata":{"\xff":[{"a":"\xe2\x82"}]}}',
        b'{"source":"a","message":"m","skipped":{"a":"\xff"}}',
    ],
)
def test_text_that_is_not_utf8_is_a_bad_request_and_says_so(other: bytes) -> None:
    problem = refused(other)
    assert (problem.status, problem.detail) == (400, "Event 0: JSON is not UTF-8.")
    for body in (b"[%b,%b,%b]", b"%b\n%b\n%b", b"%b%b%b"):
        intake = take_in(body % (A, other, B), "", bounds(LIMIT))
        assert messages(intake) == ["1", "2"]
        assert [(r.index, r.status) for r in intake.refusals] == [(1, 400)]


def test_an_event_of_the_wrong_shape_is_unprocessable_and_the_field_is_named() -> None:
    problem = refused(BAD)
    assert problem.status == 422
    assert problem.members["errors"][0]["index"] == 0
    assert problem.members["errors"][0]["field"] == "message"
    assert "message" in problem.detail


def test_an_unknown_field_is_an_error_that_names_it() -> None:
    problem = refused(b'{"source":"a","message":"b","sauce":1}')
    assert problem.status == 422
    assert problem.members["errors"][0]["field"] == "sauce"


def test_a_batch_of_which_nothing_is_left_is_unprocessable() -> None:
    problem = refused(b"[%b,%b,1]" % (BAD, BAD))
    assert problem.status == 422
    assert [error["index"] for error in problem.members["errors"]] == [0, 1, 2]
    assert problem.members["rejected"] == 3
    assert "None of 3 events" in problem.detail


def test_lines_of_which_none_is_json_are_a_bad_request() -> None:
    assert refused(b'{\n{"a\n', "application/x-ndjson").status == 400


def test_an_event_of_exactly_the_limit_is_taken_and_one_byte_more_is_too_large() -> None:
    (stored,) = take_in(sized(1000), "", bounds(1000)).events
    assert len(stored) == 1000
    problem = refused(sized(1001), "", 1000)
    assert problem.status == 413
    assert "1001" in problem.detail
    assert "MAX_MESSAGE_BYTES" in problem.detail


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "application/json"])
def test_an_event_that_is_too_large_is_refused_alone_out_of_a_batch(content_type: str) -> None:
    body = b"\n".join([A, BAD, sized(1001), sized(1000), B, BAD])
    intake = take_in(body, content_type, bounds(1000))
    assert len(intake.events) == 3
    assert [(r.index, r.status) for r in intake.refusals] == [(1, 422), (2, 413), (5, 422)]


@pytest.mark.parametrize("body", [b"[%b]", b"[%b, %b]"])
def test_a_batch_of_nothing_but_events_that_are_too_large_is_too_large(body: bytes) -> None:
    filled = body.replace(b"%b", sized(1001))
    assert refused(filled, "", 1000).status == 413


def test_a_batch_refused_for_more_than_one_reason_is_unprocessable() -> None:
    assert refused(b"[%b,%b]" % (sized(1001), BAD), "", 1000).status == 422
    assert refused(BAD + b"\n{", "application/x-ndjson").status == 422


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/octet-stream", "application/x-www-form-urlencoded", "text/json"],
)
def test_a_type_that_says_nothing_leaves_it_to_the_first_byte(content_type: str) -> None:
    assert take_in(A, content_type, bounds(LIMIT)).single
    assert messages(take_in(b"[%b,%b]" % (A, B), content_type, bounds(LIMIT))) == ["1", "2"]
    assert messages(take_in(A + b"\n" + B, content_type, bounds(LIMIT))) == ["1", "2"]


@pytest.mark.parametrize(
    "content_type", ["image/png", "multipart/form-data; boundary=x", "application/xml", "nonsense"]
)
def test_another_media_type_is_refused_with_those_that_are_taken(content_type: str) -> None:
    problem = refused(A, content_type)
    assert problem.status == 415
    assert "application/x-ndjson" in problem.headers["Accept"]


def test_the_refusals_that_an_answer_spells_out_are_bounded_and_all_are_counted() -> None:
    count = MAX_REPORTED + 500
    problem = refused(b"[" + b",".join([BAD] * count) + b"]")
    assert len(problem.members["errors"]) == MAX_REPORTED
    assert problem.members["rejected"] == count
    told = answer(take_in(b"[" + b",".join([A] + [BAD] * count) + b"]", "", bounds(LIMIT)))
    assert told["rejected"] == count
    assert len(told["errors"]) == MAX_REPORTED
    assert told["errors_omitted"] == 500


@pytest.mark.parametrize("key", ["", "k" * (MAX_KEY_LENGTH + 1)])
def test_an_idempotency_key_has_a_length(key: str) -> None:
    with pytest.raises(Problem) as caught:
        require_length(key)
    assert caught.value.status == 400
    assert "Idempotency-Key" in caught.value.detail


@pytest.mark.parametrize("key", ["k", "k" * MAX_KEY_LENGTH, "\xe9 \x7f"])
def test_an_idempotency_key_may_have_any_characters(key: str) -> None:
    require_length(key)


@given(st.lists(st.tuples(st.text(), st.sampled_from(["a", "b"]), st.text()), unique=True))
def test_two_senders_or_protocols_share_no_key(senders: list[tuple[str, str, str]]) -> None:
    assert len({scope_of(*sender[1:]) + sender[0] for sender in senders}) == len(senders)


@given(st.lists(st.builds(Refusal, st.integers(0, 10**6), st.text(max_size=9), st.text())))
def test_what_is_kept_of_an_answer_has_room(refusals: list[Refusal]) -> None:
    intake = Intake([A] * 200_000, refusals, False, once("k"))
    receipt = append_of(intake).receipt
    assert len(receipt) <= RECEIPT_BYTES
    first = json.loads(answer_of(intake, Appended("1-0", "1-1", b"", False)))
    again = json.loads(answer_of(intake, Appended("1-0", "1-1", receipt, True)))
    listed = again.pop("errors")
    assert listed == first.pop("errors")[: len(listed)]
    assert again.pop("errors_omitted", 0) == len(refusals) - len(listed)
    first.pop("errors_omitted", None)
    assert again == first


def test_a_key_of_a_single_event_keeps_no_receipt() -> None:
    intake = Intake([A], [], True, once("k"))
    assert append_of(intake).receipt == b""
    assert json.loads(answer_of(intake, Appended("1-0", "1-0", b"", True))) == {"id": "1-0"}


def answer(intake: Intake) -> Any:
    return json.loads(answer_of(intake, Appended("1-0", "1-1", b"", False)))


def test_one_stored_object_is_answered_with_its_id() -> None:
    assert answer(Intake([A], [], True)) == {"id": "1-0"}


def test_a_batch_is_answered_with_its_counts_its_ids_and_what_was_refused() -> None:
    refusal = Refusal(1, "message", "missing", 422)
    assert answer(Intake([A, B], [refusal], False)) == {
        "accepted": 2,
        "rejected": 1,
        "first_id": "1-0",
        "last_id": "1-1",
        "errors": [{"index": 1, "error": "missing", "field": "message"}],
    }


def test_a_refusal_of_no_certain_field_names_none() -> None:
    assert answer(Intake([A], [Refusal(0, None, "no JSON", 400)], False))["errors"] == [
        {"index": 0, "error": "no JSON"}
    ]


# -- reserved sources ------------------------------------------------------------------------------

OURS = b'{"source":"LogPipe.canary","message":"m"}'


def test_a_reserved_source_is_422_and_names_the_field() -> None:
    problem = refused(OURS)
    assert problem.status == 422
    (error,) = problem.members["errors"]
    assert (error["index"], error["field"]) == (0, "source")
    assert error["error"].startswith('source: must not begin with "logpipe"')


@pytest.mark.parametrize("form", [b"[%b,%b,%b]", b"%b\n%b\n%b", b"%b%b%b"])
def test_in_a_batch_a_reserved_source_costs_itself(form: bytes) -> None:
    intake = take_in(form % (A, OURS, B), "application/json", bounds(LIMIT))
    assert messages(intake) == ["1", "2"]
    assert [(each.index, each.field, each.status) for each in intake.refusals] == [
        (1, "source", 422)
    ]


def test_it_is_found_beside_events_of_other_faults() -> None:
    intake = take_in(b"\n".join((BAD, A, OURS, BAD, OURS)), "", bounds(LIMIT))
    assert messages(intake) == ["1"]
    assert [each.index for each in intake.refusals] == [0, 2, 3, 4]
