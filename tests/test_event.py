import json
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from logpipe.decoding import PIECE_BYTES, Refusal
from logpipe.event import (
    LEVELS,
    MAX_DEPTH,
    MAX_TS_UNIX_MS,
    SMALL_BYTES,
    TEXT_FACTOR,
    Event,
    StoredEvent,
    encode,
    level_name,
    level_rank,
    read_entry,
    weight_of,
)
from logpipe.ids import END, StreamId
from tests.decoding import decode_json, decode_ndjson

NOW = 1_710_000_000_000
ID = StreamId(NOW, 3)

GOOD = b'{"source":"a","message":"b"}'
AB = Event("a", "b")


def an_event(**fields: Any) -> bytes:
    return json.dumps({"source": "a", "message": "b", **fields}).encode()


def with_metadata(raw: bytes) -> bytes:
    return b'{"source":"a","message":"b","metadata":{"x":' + raw + b"}}"


def nested(depth: int) -> bytes:
    return with_metadata(b"[" * depth + b"]" * depth)


def the_refusal(body: bytes) -> Refusal:
    events, refusals, alone = decode_json(body)
    assert events == []
    assert alone
    (refusal,) = refusals
    assert refusal.index == 0
    return refusal


def the_event(body: bytes) -> Event:
    events, refusals, _ = decode_json(body)
    assert refusals == []
    (event,) = events
    return event


# Bodies and how they are split


def test_one_object_is_one_event_and_answered_as_such() -> None:
    assert decode_json(b" \r\n" + GOOD + b"\n ") == ([AB], [], True)


def test_one_object_may_be_printed_over_many_lines() -> None:
    pretty = json.dumps({"source": "a", "message": "b"}, indent=2).encode()
    assert decode_json(pretty) == ([AB], [], True)


@pytest.mark.parametrize("body", [b"[%b,%b]", b" [ %b\n,\n%b ]\r\n", b"[%b , %b]"])
def test_an_array_is_its_events_in_order(body: bytes) -> None:
    second = an_event(message="c")
    assert decode_json(body % (GOOD, second)) == ([AB, Event("a", "c")], [], False)


def test_an_array_of_one_is_a_batch_and_of_none_is_empty() -> None:
    assert decode_json(b"[" + GOOD + b"]") == ([AB], [], False)
    assert decode_json(b"[]") == ([], [], False)


@pytest.mark.parametrize("between", [b"", b" ", b"\n", b"\r\n", b"\n\n", b"\t", b"\n \r\n"])
def test_concatenated_objects_are_events_in_order(between: bytes) -> None:
    body = GOOD + between + an_event(message="c") + between + GOOD
    assert decode_json(body) == ([AB, Event("a", "c"), AB], [], False)


def test_concatenated_objects_may_be_printed_over_many_lines() -> None:
    pretty = json.dumps({"source": "a", "message": "b"}, indent=2).encode()
    assert decode_json(pretty + pretty + b"\n" + pretty) == ([AB] * 3, [], False)


@pytest.mark.parametrize(
    "body",
    [
        GOOD + b"\n" + GOOD,
        GOOD + b"\n" + GOOD + b"\n",
        GOOD + b"\r\n" + GOOD + b"\r\n",
        b"\n\n" + GOOD + b"\n \r\n\n" + GOOD + b"\n\n",
    ],
)
def test_ndjson_is_an_event_a_line_and_blank_lines_do_not_count(body: bytes) -> None:
    assert decode_ndjson(body) == ([AB, AB], [])
    assert decode_json(body) == ([AB, AB], [], False)


def test_blank_lines_do_not_count_in_the_index_of_a_refusal() -> None:
    events, refusals = decode_ndjson(b"\n" + GOOD + b"\r\n\r\n  \nno json\r\n\n" + GOOD)
    assert events == [AB, AB]
    assert [(refusal.index, refusal.status) for refusal in refusals] == [(1, 400)]


@pytest.mark.parametrize("body", [b"", b" ", b"\n\r\n"])
def test_an_empty_body_holds_no_event(body: bytes) -> None:
    assert decode_ndjson(body) == ([], [])
    assert the_refusal(body).status == 400


def test_a_bad_first_object_does_not_take_those_behind_it_along() -> None:
    events, refusals, alone = decode_json(b'{"sorce":"a"}\n' + GOOD + GOOD)
    assert events == [AB, AB]
    assert [(refusal.index, refusal.field) for refusal in refusals] == [(0, "sorce")]
    assert not alone


@pytest.mark.parametrize(
    "bad",
    [
        with_metadata(b"9" * 5_000),
        with_metadata(b"1e999"),
        with_metadata(b"NaN"),
        b'{"source":"a","message":"\xff"}',
        b'{"source":"a","message":"tab\there"}',
        b'{"source":"a","message":"\\ud800"}',
    ],
    ids=lambda bad: repr(bad)[:50],
)
def test_what_only_msgspec_refuses_does_not_take_those_behind_it_along(bad: bytes) -> None:
    for between in (b"", b"\n"):
        events, refusals, _ = decode_json(GOOD + between + bad + between + GOOD)
        assert events == [AB, AB]
        assert [refusal.index for refusal in refusals] == [1]


BROKEN = b'{"source":"s","message":"broken}'


@pytest.mark.parametrize("bad", [BROKEN, b"plain panic: boom", b"{broken", b"404 not", GOOD + b"x"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
def test_a_malformed_line_costs_itself(bad: bytes, end: bytes) -> None:
    events, refusals, alone = decode_json(end.join([GOOD, bad, bad, GOOD, bad]))
    assert events == [AB, AB]
    assert [(refusal.index, refusal.status) for refusal in refusals] == [
        (1, 400), (2, 400), (4, 400),
    ]  # fmt: skip
    assert [refusal.unread_from for refusal in refusals] == [None, None, None]
    assert not alone


def test_reading_goes_on_after_malformed_lines_before_the_first_event() -> None:
    events, refusals, alone = decode_json(b"\n".join([BROKEN, b"panic", GOOD]))
    assert (events, [refusal.index for refusal in refusals], alone) == ([AB], [0, 1], False)


def test_a_refusal_names_the_first_unread_byte() -> None:
    body = b" " + GOOD + BROKEN + GOOD
    events, refusals, alone = decode_json(body)
    assert events == [AB]
    assert [(each.index, each.unread_from) for each in refusals] == [(1, 1 + len(GOOD))]
    assert refusals[0].error.endswith(f"; its line was not read from byte {1 + len(GOOD)} on")
    assert not alone


def test_after_a_line_that_was_not_read_whole_comes_the_next() -> None:
    events, refusals, _ = decode_json(GOOD + BROKEN + GOOD + b"\n" + GOOD)
    assert events == [AB, AB]
    assert [(each.index, each.unread_from) for each in refusals] == [(1, len(GOOD))]


def test_malformed_objects_alone_are_as_many_refusals() -> None:
    events, refusals, alone = decode_json(b"\n".join([BROKEN] * 3))
    assert (events, [each.index for each in refusals], alone) == ([], [0, 1, 2], False)


PRETTY = json.dumps({"source": "a", "message": "b", "metadata": {"x": [{"y": 1}]}}, indent=2)
BROKEN_PRETTY = PRETTY.replace('"b"', '"b')


def test_a_malformed_object_over_several_lines_costs_itself() -> None:
    body = "\n".join([PRETTY, BROKEN_PRETTY, PRETTY, BROKEN_PRETTY[:40], PRETTY]).encode()
    events, refusals, _ = decode_json(body)
    assert [event.message for event in events] == ["b", "b", "b"]
    assert [(each.index, each.unread_from) for each in refusals] == [(1, None), (3, None)]


@pytest.mark.parametrize("indent", [2, 4, "\t"])
def test_a_malformed_element_of_a_printed_array_costs_itself(indent: int | str) -> None:
    events: list[dict[str, Any]] = [
        {"source": "a", "message": str(number), "metadata": {"x": [{"y": 1}]}}
        for number in range(5)
    ]
    body = json.dumps(events, indent=indent)
    body = body.replace('"1"', '"1').replace('"4"', '"4')
    found, refusals, _ = decode_json(body.encode())
    assert [event.message for event in found] == ["0", "2", "3"]
    assert [(each.index, each.status) for each in refusals] == [(1, 400), (4, 400)]


def test_an_array_is_read_on_after_a_malformed_line() -> None:
    for start, comma, end in ((b"[", b",\n", b"]"), (b"[\n", b"\n,", b"\n]"), (b"[", b",\n", b"")):
        body = start + comma.join([GOOD, BROKEN, GOOD, b"nonsense", GOOD, BROKEN]) + end
        events, refusals, alone = decode_json(body)
        assert events == [AB, AB, AB]
        assert [each.index for each in refusals] == [1, 3, 5]
        assert not alone


@pytest.mark.parametrize(
    "bad", [with_metadata(b"NaN"), with_metadata(b"tru"), b"{broken}", b'{"source":"a"}']
)
def test_an_element_whose_end_is_known_costs_itself(bad: bytes) -> None:
    events, refusals, _ = decode_json(b"[%b,%b,%b]" % (GOOD, bad, GOOD))
    assert events == [AB, AB]
    assert [(each.index, each.unread_from) for each in refusals] == [(1, None)]


@pytest.mark.parametrize(
    ("body", "unread_from"),
    [
        (b"[" + GOOD, 29),
        (b"[" + GOOD + b"]{", 30),
        (b"[" + GOOD + b"," + BROKEN + b"," + GOOD + b"]", 30),
        (b"[" + GOOD + b"," + GOOD + GOOD + b"]", 30),
    ],
)
def test_an_array_that_breaks_off_says_from_where_on_it_was_not_read(
    body: bytes, unread_from: int
) -> None:
    events, refusals, alone = decode_json(body)
    assert events == [AB]
    assert not alone
    assert [(each.index, each.status, each.unread_from) for each in refusals] == [
        (1, 400, unread_from)
    ]


@pytest.mark.parametrize("body", [b"[,]", b"[{]", b"[2024-05-02 10:00:00] boom", b"[" + BROKEN])
def test_an_array_without_an_element_that_is_json_is_refused(body: bytes) -> None:
    events, refusals, alone = decode_json(body)
    assert events == []
    assert not alone
    assert [(refusal.index, refusal.status) for refusal in refusals] == [(0, 400)]


def test_a_comma_behind_the_last_element_is_no_event() -> None:
    assert decode_json(b"[" + GOOD + b",\n]") == ([AB], [], False)


def test_refusals_of_an_array_name_index_and_field() -> None:
    body = b"[" + b",".join([GOOD, b"5", an_event(source=5), GOOD, b'{"source":"a"}']) + b"]"
    events, refusals, alone = decode_json(body)
    assert events == [AB, AB]
    assert not alone
    assert refusals == [
        Refusal(1, None, "must be an object, not a whole number", 422),
        Refusal(2, "source", "source: must be a text, not a whole number", 422),
        Refusal(4, "message", "message: is required", 422),
    ]


def pieces(bad: list[bytes]) -> st.SearchStrategy[list[tuple[bool, bytes]]]:
    good = st.builds(
        lambda text, indent: json.dumps({"source": "s", "message": text}, indent=indent).encode(),
        st.text(),
        st.sampled_from([None, 1]),
    )
    piece = st.one_of(
        good.map(lambda raw: (True, raw)), st.sampled_from(bad).map(lambda raw: (False, raw))
    )
    return st.lists(piece, min_size=2, max_size=8)


REFUSED = [
    b"{}",
    b'{"source":"a"}',
    b'{"source":"a","message":"b","x":[{}]}',
    b'{"source":"","message":"b"}',
    b'{"source":"a","message":"b","ts_unix_ms":-1}',
    b'"a text } { "',
    with_metadata(b"1e999"),
    b'{"source":"a","message":"\xff"}',
]
UNLEXED = [
    b'{"source":"a","message":"\\ud800"}',
    b'{"source":"a","message":"\x01"}',
    with_metadata(b"-Infinity"),
]
NO_JSON = [b"{", b"}", b"no json", b"\xff\xfe", b'{"a":1}{', b"[" * 3_000, b"null x"]


def judge(mix: list[tuple[bool, bytes]], events: list[Event], refusals: list[Refusal]) -> None:
    assert [event.message for event in events] == [
        json.loads(raw)["message"] for good, raw in mix if good
    ]
    assert [refusal.index for refusal in refusals] == [
        index for index, (good, _) in enumerate(mix) if not good
    ]
    assert all(refusal.error for refusal in refusals)


@given(pieces(REFUSED), st.sampled_from([b",", b" ,\n"]))
def test_an_array_gives_exactly_its_good_events(
    mix: list[tuple[bool, bytes]], comma: bytes
) -> None:
    events, refusals, alone = decode_json(b"[" + comma.join(raw for _, raw in mix) + b"]")
    judge(mix, events, refusals)
    assert not alone


@given(
    pieces(REFUSED + UNLEXED), st.lists(st.sampled_from([b"", b" ", b"\n", b"\r\n"]), min_size=8)
)
def test_concatenated_objects_give_exactly_the_good_events(
    mix: list[tuple[bool, bytes]], between: list[bytes]
) -> None:
    body = b"".join(raw + space for (_, raw), space in zip(mix, between, strict=False))
    events, refusals, alone = decode_json(body)
    judge(mix, events, refusals)
    assert not alone


SEVERAL = b'{"a":1}{'
"""On one line: counted by its objects."""


@given(
    pieces([each for each in REFUSED + UNLEXED + NO_JSON if each != SEVERAL]),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\n"]), min_size=8),
    st.booleans(),
)
def test_ndjson_gives_exactly_the_good_events(
    mix: list[tuple[bool, bytes]], ends: list[bytes], ends_its_last_line: bool
) -> None:
    lines = [(good, raw.replace(b"\n", b"")) for good, raw in mix]
    body = b"".join(raw + end for (_, raw), end in zip(lines, ends, strict=False))
    judge(lines, *decode_ndjson(body if ends_its_last_line else body.rstrip(b"\r\n\t ")))


def test_a_bad_line_of_ndjson_costs_no_objects_of_another_line() -> None:
    events, refusals = decode_ndjson(GOOD + GOOD + b"\nbad\n" + GOOD + SEVERAL + b"\n")
    assert len(events) == 3
    end = 2 * len(GOOD) + len(b"\nbad\n") + len(GOOD) + len(SEVERAL)
    assert [(each.index, each.unread_from) for each in refusals] == [
        (2, None), (4, None), (5, end - 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "start"),
    [
        (b'[{"source":"s","message":"b},' + GOOD + b"," + GOOD + b"]", 1),
        (b'{"source":"s","message":"b}' + GOOD + GOOD, 0),
        (GOOD + b"," + GOOD + b"," + GOOD, 0),
    ],
)
def test_a_line_that_may_hold_several_events_is_named(body: bytes, start: int) -> None:
    events, [refusal], _ = decode_json(body)
    assert (events, refusal.unread_from) == ([], start)
    assert f"not read from byte {start} on" in refusal.error


def test_a_malformed_line_in_brackets_counts_once() -> None:
    events, refusals, _ = decode_json(b'["x" y]\n' + GOOD + b"\n" + GOOD)
    assert (len(events), len(refusals)) == (2, 1)


tokens = st.lists(
    st.sampled_from(
        [
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b'"',
            b"\\",
            b"\n",
            b"\r",
            b" ",
            b"1",
            b"-",
            b"e9",
            b"null",
            b"true",
            b'"source"',
            b'"message"',
            b'"a"',
            b"\xff",
            b"\xed\xa0\x80",
            b"\\ud800",
            GOOD,
            b'{"source":"a","message":',
            b'"metadata":{',
            b'"level":"x"',
            b"\xef\xbb\xbf",
        ]
    ),
    max_size=30,
).map(b"".join)


OPENING, CLOSING = b'{"source":"s","metadata":{"x":[1,', b"]"
MALFORMED = [
    BROKEN,
    b"plain panic: boom",
    b"[error] 12#12: x",
    b"[2024-05-02 10:00:00] {x} boom",
    b"{worker-1} started",
    b'{"source":"s","mes',
    OPENING,
    b'"x": 1},',
    b"}",
    CLOSING,
    GOOD + b"trailing",
    GOOD + b",",
    b"12:00:01 late",
    b"\xff\xfe",
    b"\tat Main.java:7",
]


@given(
    st.lists(st.text(), min_size=1),
    st.lists(st.tuples(st.integers(0, 10), st.sampled_from(MALFORMED)), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
)
def test_malformed_lines_between_good_ones_cost_themselves(
    texts: list[str], between: list[tuple[int, bytes]], end: bytes
) -> None:
    lines = [(True, an_event(message=text)) for text in texts]
    for place, bad in between:
        lines.insert(place, (False, bad))
    body = end.join(line for _, line in lines)
    judge(lines, *decode_ndjson(body))
    # With lines that may follow, these two are one value; a bracket at the start begins an array.
    one_value = ((False, OPENING), (False, CLOSING)) in pairwise(lines)
    if body[:1] != b"[" and not one_value:
        events, refusals, _ = decode_json(body)
        judge(lines, events, refusals)
        unread = [each for each in refusals if each.unread_from is not None]
        assert len(unread) == sum(b"{" in line[1:] for good, line in lines if not good)


def test_malformed_lines_that_are_one_value_count_once() -> None:
    value = [OPENING, CLOSING, b'"x": 1},', b"}"]
    events, [refusal], _ = decode_json(b"\n".join([GOOD, *value, GOOD]))
    assert len(events) == 2
    assert refusal.index == 1


@settings(max_examples=300)
@given(st.one_of(st.binary(), tokens))
def test_any_bytes_are_events_or_refusals_and_never_an_error(body: bytes) -> None:
    by_json = decode_json(body)[:2]
    for events, refusals in (by_json, decode_ndjson(body)):
        assert all(refusal.status in (400, 422) and refusal.error for refusal in refusals)
        indexes = [refusal.index for refusal in refusals]
        assert indexes == sorted(set(indexes))
        for event in events:
            assert read_entry(ID, encode([event], NOW)[0]) is not None


# The schema


@pytest.mark.parametrize(
    ("body", "field", "error"),
    [
        (b"{}", "source", "source: is required"),
        (b'{"source":"a"}', "message", "message: is required"),
        (
            an_event(sorce="x"),
            "sorce",
            "sorce: is no field of an event; data of your own goes to metadata",
        ),
        (an_event(**{"": 1}), "", ": is no field of an event; data of your own goes to metadata"),
        (
            an_event(**{"é\n`": 1}),
            "é\n`",
            "é\n`: is no field of an event; data of your own goes to metadata",
        ),
        (an_event(source=5), "source", "source: must be a text, not a whole number"),
        (an_event(source=None), "source", "source: must be a text, not null"),
        (an_event(source=""), "source", "source: must not be empty"),
        (an_event(source="a" * 257), "source", "source: must have at most 256 characters"),
        (an_event(message=[]), "message", "message: must be a text, not an array"),
        (an_event(level=3), "level", "level: must be a text, not a whole number"),
        (an_event(level=""), "level", "level: must not be empty"),
        (an_event(level="x" * 33), "level", "level: must have at most 32 characters"),
        (an_event(metadata=[]), "metadata", "metadata: must be an object, not an array"),
        (an_event(metadata=None), "metadata", "metadata: must be an object, not null"),
        (an_event(ts_unix_ms=-1), "ts_unix_ms", "ts_unix_ms: must be at least 0"),
        (
            an_event(ts_unix_ms=MAX_TS_UNIX_MS + 1),
            "ts_unix_ms",
            f"ts_unix_ms: must be at most {MAX_TS_UNIX_MS}",
        ),
        (an_event(ts_unix_ms="1"), "ts_unix_ms", "ts_unix_ms: must be a whole number, not a text"),
        (
            an_event(ts_unix_ms=1.5),
            "ts_unix_ms",
            "ts_unix_ms: must be a whole number, not a decimal number",
        ),
        (
            an_event(ts_unix_ms=True),
            "ts_unix_ms",
            "ts_unix_ms: must be a whole number, not true or false",
        ),
        (b"null", None, "must be an object, not null"),
        (b"[]", None, "must be an object, not an array"),
        (b'"a"', None, "must be an object, not a text"),
        (b"5", None, "must be an object, not a whole number"),
    ],
)
def test_what_breaks_the_schema_is_refused_by_its_field(
    body: bytes, field: str | None, error: str
) -> None:
    events, (refusal, *_) = decode_ndjson(body)
    assert events == []
    if body[:1] != b"[":
        assert refusal == the_refusal(body)
        assert (refusal.field, refusal.error, refusal.status) == (field, error, 422)


@pytest.mark.parametrize("value", ["1e308", "1e18", "99999999999999999999", "-0.5", '"2024"'])
def test_a_time_that_no_calendar_knows_is_refused(value: str) -> None:
    refusal = the_refusal(b'{"source":"a","message":"b","ts_unix_ms":%s}' % value.encode())
    assert (refusal.field, refusal.status) == ("ts_unix_ms", 422)


def test_an_unknown_field_cannot_pass_for_another() -> None:
    assert the_refusal(an_event(**{"x - at `$.source": 1})).field == "x - at `$.source"


def test_the_bounds_themselves_are_allowed() -> None:
    event = the_event(an_event(source="é" * 256, level="x" * 32, ts_unix_ms=MAX_TS_UNIX_MS))
    assert (len(event.source), len(event.level)) == (256, 32)
    assert event.ts_unix_ms == MAX_TS_UNIX_MS
    assert the_event(an_event(ts_unix_ms=0, message="")).ts_unix_ms == 0


def test_the_optional_fields_have_their_defaults() -> None:
    assert the_event(GOOD) == Event("a", "b", "INFO", None, {})
    assert the_event(an_event(ts_unix_ms=None)).ts_unix_ms is None


def test_of_duplicate_keys_the_last_counts_everywhere() -> None:
    event = the_event(b'{"source":"x","source":"a","message":"b","level":"err","level":"warn"}')
    assert (event.source, event.level) == ("a", "WARN")
    entry = read_entry(ID, b'{"level":"ERROR","level":"WARN"}')
    assert entry is not None
    assert entry.event.level == json.loads(entry.json)["level"] == "WARN"


# Hostile JSON


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"no json", "invalid character"),
        (b'{"source":"a","message":"b"', "ends too early"),
        (b"\xef\xbb\xbf" + GOOD, "invalid character"),
        (with_metadata(b"NaN"), "invalid character"),
        (with_metadata(b"Infinity"), "invalid character"),
        (with_metadata(b"01"), "invalid number"),
        (with_metadata(b"'x'"), "invalid character"),
        (b'{"source":"a","message":"\\ud800"}', "ends too early"),
        (b'{"source":"a","message":"\\udc00"}', "surrogate"),
        (b'{"source":"a","message":"\\ud800\\u0041"}', "surrogate"),
        (b'{"source":"a","message":"\xed\xa0\x80"}', "JSON is not UTF-8"),
        (b'{"source":"a","message":"\xff"}', "JSON is not UTF-8"),
        (b'{"source":"a","message":"\xc0\xaf"}', "JSON is not UTF-8"),
        (b'{"source":"a","message":"b","\xff":1}', "JSON is not UTF-8"),
        (b'{"source":"a","message":"a\nb"}', "invalid character"),
        (b'{"source":"a","message":"\\x41"}', "invalid escape"),
        (nested(1_100), "JSON is nested too deeply"),
        (nested(30_000), "JSON is nested too deeply"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_no_json_is_refused_without_naming_a_field(body: bytes, error: str) -> None:
    refusal = the_refusal(body)
    assert (refusal.field, refusal.status) == (None, 400)
    assert error in refusal.error


Result = TypeVar("Result")


def deeper_down(frames: int, act: Callable[[], Result]) -> Result:
    return deeper_down(frames - 1, act) if frames else act()


@pytest.mark.parametrize("depth", [1, 100, 500, MAX_DEPTH])
def test_deep_metadata_that_was_taken_is_read_from_any_depth_of_the_stack(depth: int) -> None:
    event = the_event(nested(depth))
    raw = deeper_down(100, lambda: encode([event], NOW)[0])
    entry = deeper_down(200, lambda: read_entry(ID, raw))
    assert entry is not None
    assert b"[" * depth + b"]" * depth in entry.json


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900])
def test_metadata_over_the_depth_is_refused_alone(depth: int) -> None:
    arrays = nested(depth)
    objects = with_metadata(b'{"y":1,"x":' * depth + b"[]" + b"}" * depth)
    told = f"metadata: is nested over {MAX_DEPTH} levels"
    for deep in (arrays, objects):
        expected = [Refusal(1, "metadata", told, 400, "metadata_depth")]
        assert the_refusal(deep).error == told
        assert decode_json(b"[%b,%b,%b]" % (GOOD, deep, GOOD)) == ([AB, AB], expected, False)
        assert decode_json(GOOD + deep + GOOD) == ([AB, AB], expected, False)
        assert decode_json(b"\n".join([GOOD, deep, GOOD])) == ([AB, AB], expected, False)
        assert decode_ndjson(b"\n".join([GOOD, deep, GOOD])) == ([AB, AB], expected)
        spread = deep.replace(b"[", b"[\n").replace(b"{", b"{\n")
        assert the_refusal(spread).error == told
        assert not decode_ndjson(spread + b"\n" + spread)[0]


def test_wide_metadata_is_not_deep() -> None:
    wide: dict[str, Any] = {"x": [{"y": [[], {}]}] * 2_000}
    assert the_event(an_event(metadata=wide)).metadata == wide


@pytest.mark.parametrize("depth", [1_100, 30_000])
def test_json_too_deep_for_the_parser_is_refused_and_never_an_error(depth: int) -> None:
    events, refusals = decode_ndjson(GOOD + b"\n" + nested(depth) + b"\n" + GOOD)
    assert events == [AB, AB]
    assert [(refusal.index, refusal.status) for refusal in refusals] == [(1, 400)]
    # Where its end cannot be found, what follows is refused with it; each Python has its own limit.
    events, refusals, _ = decode_json(GOOD + nested(depth) + GOOD)
    assert events in ([AB], [AB, AB])
    assert [(refusal.index, refusal.status) for refusal in refusals] == [(1, 400)]
    events, refusals, _ = decode_json(b"[" + nested(depth) + b"," + GOOD + b"]")
    assert events in ([], [AB])
    assert [(refusal.index, refusal.status) for refusal in refusals] == [(0, 400)]


@pytest.mark.parametrize("number", ["9007199254740993", "9" * 19, "9" * 30, "-" + "9" * 4_000])
def test_big_integers_keep_every_digit(number: str) -> None:
    raw = encode([the_event(with_metadata(number.encode()))], NOW)[0]
    assert raw.endswith(b'"metadata":{"x":' + number.encode() + b"}}")


@pytest.mark.parametrize("number", ["9" * 5_000, "1e400", "-1e400"])
def test_numbers_beyond_all_bounds_are_refused_by_their_field(number: str) -> None:
    refusal = the_refusal(with_metadata(number.encode()))
    assert (refusal.field, refusal.status) == ("metadata", 422)


@pytest.mark.parametrize(
    "text", ["\x00", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\U0010ffff"]
)
def test_control_and_direction_characters_are_kept_as_they_are(text: str) -> None:
    event = the_event(an_event(source=text, message=text, metadata={text: text}))
    assert (event.source, event.message, event.metadata) == (text, text, {text: text})
    assert b"\n" not in encode([event], NOW)[0]


# Levels

SPELLINGS = {
    "TRACE": "trace trc verbose finest finer silly",
    "DEBUG": "debug dbg fine config",
    "INFO": "info inf information informational notice note log default",
    "WARN": "warn warning wrn",
    "ERROR": "error err eror severe failure",
    "FATAL": "fatal critical crit emerg emergency alert panic dpanic",
}


@pytest.mark.parametrize(
    ("level", "word"),
    [(level, word) for level, words in SPELLINGS.items() for word in words.split()],
)
def test_known_spellings_become_one_of_the_six_levels(level: str, word: str) -> None:
    for spelling in (word, word.upper(), word.title(), word[0].upper() + word[1:]):
        assert level_name(spelling) == level
        assert the_event(an_event(level=spelling)).level == level


@pytest.mark.parametrize(
    ("word", "kept"), [("audit", "AUDIT"), ("Slow Query", "SLOW QUERY"), ("30", "30")]
)
def test_other_words_are_kept_in_capitals_and_rank_as_info(word: str, kept: str) -> None:
    assert the_event(an_event(level=word)).level == kept
    assert level_rank(kept) == level_rank("INFO")


def test_levels_rank_in_their_order() -> None:
    assert [level_rank(level) for level in LEVELS] == list(range(6))


@given(st.text())
@example("\u017fevere")
@example("ß")
def test_the_stored_form_of_a_level_is_its_own_stored_form(word: str) -> None:
    assert level_name(level_name(word)) == level_name(word)


# The way into the stream and out of it

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**40), 10**40),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=6,
)
levels = st.one_of(
    st.sampled_from(LEVELS),
    st.text(min_size=1, max_size=32).filter(lambda word: len(word.upper()) <= 32),
)
timestamps = st.one_of(st.none(), st.integers(0, MAX_TS_UNIX_MS))
any_event = st.builds(
    Event,
    st.text(min_size=1, max_size=256),
    st.text(),
    levels.map(level_name),
    timestamps,
    st.dictionaries(st.text(), json_values),
)


@given(any_event)
def test_an_event_is_the_same_after_encoding_and_decoding(event: Event) -> None:
    raw = encode([event], NOW)[0]
    assert b"\n" not in raw
    assert b"\r" not in raw
    assert decode_json(raw) == ([event], [], True)
    assert decode_ndjson(raw + b"\n" + raw) == ([event, event], [])


def test_the_time_of_receipt_is_filled_in_where_none_was_given() -> None:
    assert json.loads(encode([Event("a", "b")], NOW)[0])["ts_unix_ms"] == NOW
    assert json.loads(encode([Event("a", "b", ts_unix_ms=0)], NOW)[0])["ts_unix_ms"] == 0


@given(any_event)
def test_an_entry_is_the_event_with_its_id_in_front(event: Event) -> None:
    raw = encode([event], NOW)[0]
    entry = read_entry(ID, raw)
    assert entry is not None
    assert entry.json == b'{"id":"1710000000000-3",' + raw[1:]
    assert msgspec.json.decode(entry.json) == {"id": str(ID), **msgspec.json.decode(raw)}
    stored = StoredEvent(event.source, event.message, event.level, event.ts_unix_ms, event.metadata)
    assert (entry.id, entry.event) == (ID, stored)


foreign = st.dictionaries(
    st.text().filter(lambda name: name not in ("source", "message", "level", "ts_unix_ms")),
    json_values,
    max_size=4,
)


def crlf(raw: bytes) -> bytes:
    return raw.replace(b"\n", b"\r\n")


@given(
    foreign,
    st.sampled_from([None, 0, 1, "\t"]),
    st.booleans(),
    st.sampled_from([bytes, crlf, lambda raw: b" \n" + raw + b" "]),
)
@example({}, None, True, lambda raw: b" {\t} ")
@example({"id": "its own"}, None, True, bytes)
@example({"x": 1, "id": None}, 1, True, crlf)
def test_an_entry_of_another_writer_is_one_line_of_the_same_json_with_the_stream_s_id(
    fields: dict[str, Any],
    indent: int | str | None,
    ascii_only: bool,
    written: Callable[[bytes], bytes],
) -> None:
    assume(isinstance(fields.get("metadata", {}), dict))
    raw = written(json.dumps(fields, indent=indent, ensure_ascii=ascii_only).encode())
    entry = read_entry(ID, raw)
    assert entry is not None
    assert entry.json.startswith(b'{"id":"1710000000000-3"')
    assert b"\n" not in entry.json
    assert b"\r" not in entry.json
    assert json.loads(entry.json) == {**json.loads(raw), "id": str(ID)}
    assert json.loads(entry.json, object_pairs_hook=len) == len({"id": 0, **fields})


@pytest.mark.parametrize("raw", [b"{}", b"{ }", b"{}  ", b" {}", b"{\n}", b"{\t}\r\n"])
def test_an_object_without_fields_is_an_entry_with_its_id_alone(raw: bytes) -> None:
    entry = read_entry(END, raw)
    assert entry is not None
    assert entry.json.strip() == b'{"id":"%s"}' % str(END).encode()
    assert entry.event == StoredEvent()


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b" ",
        b"junk",
        b"[]",
        b"5",
        b"null",
        b'"text"',
        b"{",
        GOOD + b"x",
        GOOD + GOOD,
        b"\xef\xbb\xbf" + GOOD,
        b'{"source":5}',
        b'{"level":null}',
        b'{"metadata":[]}',
        b'{"ts_unix_ms":"now"}',
        b'{"message":"\xff"}',
        b'{"other":"\xff"}',
        b'{"\xff":1}',
        b'{"other":"a\nb"}',
        b'{"other":"\\ud800"}',
        nested(30_000),
        b'{\n"other":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    ],
    ids=lambda raw: repr(raw)[:40],
)
def test_what_another_program_wrote_that_is_no_event_is_no_entry(raw: bytes | None) -> None:
    assert read_entry(ID, raw) is None


@settings(max_examples=300)
@given(st.one_of(st.binary(), tokens))
def test_any_bytes_in_the_stream_are_one_line_of_json_or_no_entry(raw: bytes) -> None:
    entry = read_entry(ID, raw)
    if entry is not None:
        assert b"\n" not in entry.json
        assert msgspec.json.decode(entry.json)["id"] == str(ID)


def test_json_that_breaks_off_behind_a_wrong_field_is_no_json() -> None:
    """The checks stop at the first wrong field; the answer must not depend on where that is."""
    assert decode_json(b'{"source":1,"message":')[1][0].status == 400
    assert decode_json(b'{"source":1,"message":"m"}')[1][0].status == 422


def test_the_name_of_an_unknown_field_is_repeated_up_to_a_bound() -> None:
    """An answer must not grow with what was sent."""
    refusal = decode_json(an_event(**{"x" * 5000: 1}))[1][0]
    assert refusal.field == "x" * 100
    assert len(refusal.error) < 200


def many(count: int, extra: bytes = b"") -> list[bytes]:
    """Events of about 300 bytes, numbered."""
    return [
        b'{"source":"a","message":"%d %s"%b}' % (number, b"x" * 250, extra)
        for number in range(count)
    ]


LARGE = PIECE_BYTES // 250


@pytest.mark.parametrize("separator", [b"\n", b"\n\n", b"\r\n"])
def test_a_large_body_of_lines_is_read_whole_and_in_order(separator: bytes) -> None:
    lines = many(LARGE)
    events, refusals = decode_ndjson(separator.join(lines))
    assert not refusals
    assert [int(event.message.split()[0]) for event in events] == list(range(LARGE))
    assert encode(events, NOW)[-1].startswith(lines[-1][:-1])
    assert len(encode(events, NOW)) == LARGE


def test_a_bad_line_in_a_large_body_is_the_only_one_refused() -> None:
    lines = many(LARGE)
    lines[LARGE // 2] = b'{"source":"a"}'
    events, refusals = decode_ndjson(b"\n".join(lines))
    assert len(events) == LARGE - 1
    assert [refusal.index for refusal in refusals] == [LARGE // 2]


def test_objects_that_span_lines_are_read_in_a_large_body_too() -> None:
    lines = [line.replace(b",", b",\n") for line in many(LARGE)]
    events, refusals = decode_ndjson(b"\n".join(lines))
    assert (len(events), refusals) == (LARGE, [])


def test_a_large_array_is_read_whole_and_in_order() -> None:
    lines = many(LARGE)
    events, refusals, single = decode_json(b"[" + b",".join(lines) + b"]")
    assert (len(events), refusals, single) == (LARGE, [], False)
    assert events[-1].message.startswith(f"{LARGE - 1} ")


# -- what entries weigh ----------------------------------------------------------------------------

HEAD = b'{"source":"a","level":"INFO","message":"%b","ts_unix_ms":1,"metadata":%b}'


@pytest.mark.parametrize(
    ("message", "metadata"),
    [
        (b"GET /items/1", b'{"region":"r1","status":201,"user":"abc","path":"/a/b/c"}'),
        (("x" * 800 + "😀").encode(), b"{}"),
        (b"", b'{"a":[%b]}' % b",".join([b"{}"] * 5_000)),
        (b"", b'{"a":[%b]}' % b",".join([b"[]"] * 5_000)),
        (b"", b'{"a":[%b]}' % b",".join([b"[[[[]]]]"] * 2_000)),
        (b"", b'{"a":' * 90 + b"1" + b"}" * 90),
        (b"", b'{"a":[%b]}' % b",".join([b'"ab"'] * 5_000)),
        (b"", b'{"a":[%b]}' % b",".join([b"1.5"] * 5_000)),
        (b"", b'{"a":[%b]}' % b",".join(['"😀"'.encode()] * 5_000)),
        (b"", b'{"a":"%b"}' % ("x" * 50_000 + "😀").encode()),
        (("x" * 50_000 + "😀").encode(), b"{}"),
        (b"x" * 50_000, b"{}"),
        (
            ("x" * 15_000 + "😀").encode(),
            b'{"a":"%b"}' % ("x" * 45_000 + "😀").encode(),
        ),
        (b"", b"{%b}" % b",".join([b'"%d":%d' % (n, n) for n in range(1_000)])),
    ],
)
def test_an_entry_weighs_about_what_it_takes_in_memory(message: bytes, metadata: bytes) -> None:
    raw = HEAD % (message, metadata)
    tracemalloc.start()
    try:
        entries = [read_entry(StreamId(2**41, n), bytes(bytearray(raw))) for n in range(20)]
        memory, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    weight = weight_of([entry for entry in entries if entry is not None])
    assert 0.75 * memory < weight * TEXT_FACTOR < 4 * memory


def test_entries_of_about_one_size_weigh_about_the_same() -> None:
    weights = []
    for size in range(SMALL_BYTES - 100, SMALL_BYTES):
        entry = read_entry(StreamId(1, 0), HEAD % (b"x" * size, b"{}"))
        assert entry is not None
        weights.append(weight_of([entry]))
    assert max(weights) < 1.5 * min(weights)


def test_commas_and_braces_of_a_message_weigh_nothing() -> None:
    weights = [
        weight_of([entry])
        for text in (b"a word ", b"a,{}[] ")
        if (entry := read_entry(StreamId(1, 0), HEAD % (text * 5_000, b'{"a":1}')))
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("space", [b"\n", b"\r", b"\r\n"])
def test_line_ends_between_members_of_anothers_json_are_removed(space: bytes) -> None:
    entry = read_entry(ID, b'{"source":"a",' + space + b'"message":"b"}')
    assert entry is not None
    assert entry.json == b'{"id":"%d-%d","source":"a","message":"b"}' % ID
