import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.collector.receivers import fields, json_text, schema, times
from logpipe.event import MAX_DEPTH, MAX_TS_UNIX_MS, Event, encode
from logpipe.problems import Problem
from tests.decoding import decode_json


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (1_710_000_000, 1_710_000_000_000),
        (1_710_000_000_123, 1_710_000_000_123),
        (1_710_000_000_123_456, 1_710_000_000_123),
        (1_710_000_000_123_456_789, 1_710_000_000_123),
        (1_710_000_000.1239, 1_710_000_000_124),
        ("1710000000.123", 1_710_000_000_123),
        ("1710000000123456789", 1_710_000_000_123),
        (" 1710000000 ", 1_710_000_000_000),
        ("2024-03-09T16:00:00Z", 1_710_000_000_000),
        ("2024-03-09T16:00:00.123456789Z", 1_710_000_000_123),
        ("2024-03-09T18:00:00+02:00", 1_710_000_000_000),
        ("2024-03-09 16:00:00.123", 1_710_000_000_123),
        ("2024-03-09", 1_709_942_400_000),
        (0, 0),
        (10**11 - 1, (10**11 - 1) * 1000),
        (10**11, 10**11),
        (10**14 - 1, 10**14 - 1),
        (10**14, 10**11),
        (10**17 - 1, 10**14 - 1),
        (10**17, 10**11),
        (MAX_TS_UNIX_MS * 1_000_000, MAX_TS_UNIX_MS),
    ],
)
def test_a_time_is_understood_by_its_size_or_its_form(value: object, ms: int) -> None:
    assert times.ms_of(value) == ms


@pytest.mark.parametrize(
    "value",
    [
        None, True, -1, "-1", "", "yesterday", "1e9", "nan", float("nan"), float("inf"), -0.5,
        10**30, "9" * 21, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", [], {},
        "٣", "1969-12-31",
    ],
)  # fmt: skip
def test_what_is_no_time_of_an_event_is_none(value: object) -> None:
    assert times.ms_of(value) is None


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("warning", "WARN"), ("Error", "ERROR"), (" info ", "INFO"), ("custom", "CUSTOM"),
        (0, "FATAL"), (3, "ERROR"), (4, "WARN"), (6, "INFO"), (7, "DEBUG"), ("3", "ERROR"),
        (10, "TRACE"), (20, "DEBUG"), (30, "INFO"), (40, "WARN"), (50, "ERROR"), (60, "FATAL"),
        (35, "INFO"), (99, "99"), (-1, "-1"), (None, "INFO"), (True, "INFO"), ([], "INFO"),
        ("", "INFO"), (3.0, "ERROR"), ("ß" * 32, "SS" * 16),
    ],
)  # fmt: skip
def test_a_level_is_a_word_or_a_number_of_syslog_or_of_pino(value: object, level: str) -> None:
    assert schema.event_of("a", "b", value, None, {}).level == level


@pytest.mark.parametrize(
    ("word", "metadata"),
    [
        (30, {}),
        (35, {"severity_text": "35"}),
        (5, {"severity_text": "5"}),
        (None, {}),
        ("info", {}),
        ("FATAL", {}),
        ("custom", {}),
        ("warning", {"severity_text": "warning"}),
        ("notice", {"severity_text": "notice"}),
        ("l" * 33, {"severity_text": "l" * 33}),
    ],
)
def test_a_levels_own_word_is_kept_where_the_level_says_it_otherwise(
    word: object, metadata: dict[str, str]
) -> None:
    assert schema.event_of("a", "b", word, None, {}).metadata == metadata


@pytest.mark.parametrize(("depth", "text"), [(MAX_DEPTH - 1, False), (MAX_DEPTH + 1, True)])
def test_what_is_nested_too_deeply_becomes_a_text(depth: int, text: bool) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    found = schema.event_of("a", "b", None, None, {"deep": value, "other": 1}).metadata
    assert isinstance(found["deep"], str) is text
    assert found["other"] == 1


def test_what_merges_loses_nothing() -> None:
    assert fields.merge({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}, "x.") == {
        "a": 1, "b": 2, "x.b": 3, "c": 4,
    }  # fmt: skip
    assert fields.named({"host": "a", "host.name": "b"}) == {"host": "a", "host.name": "b"}
    assert fields.named({"host": "a", "hostname": "b"}) == {"host.name": "a", "hostname": "b"}


def test_a_dot_in_a_name_descends_or_belongs_to_it() -> None:
    found: dict[str, Any] = {"log": {"level": "a"}, "log.level": "b", "x": {"y": {"z": 1}}}
    assert fields.first(found, ("log.level",), fields.is_text) == "b"
    assert fields.pop(found, ("log.level",), fields.is_text) == "b"
    assert fields.pop(found, ("log.level",), fields.is_text) == "a"
    assert fields.first(found, ("x.y.z",), lambda value: value == 1) == 1
    assert fields.pop(found, ("x.y.z",), lambda value: value == 1) == 1
    assert found == {}


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b"", []),
        (b" \n", []),
        (b'{"a":1}', [{"a": 1}]),
        (b"[1, [2]]", [1, [2]]),
        (b'{"a":1}{"b":2}[3]\n"4"{"c":5}\n6', [{"a": 1}, {"b": 2}, 3, "4", {"c": 5}, 6]),
        (b'{"a":\n1}\n{"b":2}', [{"a": 1}, {"b": 2}]),
        (b'"caf\xe9"', ["caf\ufffd"]),
        (b'{"a":1,"\xe9":[{"b":"\xe9"}]}', [{"a": 1, "\ufffd": [{"b": "\ufffd"}]}]),
        (b'["\xe9 \\ud83d", "\xe2\x82"]', ["\ufffd \ufffd", "\ufffd"]),
        (rb'[1,"a\ud83d",2]', [1, "a\ufffd", 2]),
        (rb'"\ud83d\ude00\ude00\\ud83d\n"', ["\U0001f600\ufffd\\ud83d\n"]),
    ],
)
def test_json_comes_as_one_value_an_array_or_one_after_another(
    body: bytes, values: list[Any]
) -> None:
    assert list(json_text.json_values(body)) == values


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (b'{"a":1}{"b":', [dict, Problem]),
        (b'{"a":1}\n{"b":\npanic: boom\n{"c":3}', [dict, Problem, Problem, dict]),
        (b"[1,tru,2]", [int, Problem, int]),
        (b"[1,2", [int, int, Problem]),
        (b"[" * 100_000, [Problem]),
        (b'{"a":1}' + b'{"a":' * 100_000, [dict, Problem]),
        (b"\xff\xfe", [Problem]),
        (b"nonsense", [Problem]),
    ],
    ids=range(8),
)
def test_what_is_no_json_is_a_problem_in_its_place(body: bytes, kinds: list[type]) -> None:
    assert [type(value) for value in json_text.json_values(body)] == kinds


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    anything, st.text(), anything, st.none() | st.integers(), st.dictionaries(st.text(), anything)
)
def test_every_event_made_here_is_one_that_the_schema_takes(
    source: Any, message: str, level: Any, ts: int | None, metadata: dict[str, Any]
) -> None:
    made = schema.event_of(source, message, level, times.ms_within(ts), metadata)
    assert isinstance(made, Event)
    (encoded,) = encode([made], 1)
    _, refusals, _ = decode_json(encoded)
    assert refusals == []
    json.loads(encoded)
