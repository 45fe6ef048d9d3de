"""The details of an event: a tree, and what can be done with each value."""

import contextlib
import html
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logpipe.event import StoredEvent
from logpipe.filters import FilterError, parse_filter
from logpipe.problems import Problem
from logpipe.ui.details import MAX_DEPTH, MAX_PATH, MAX_VALUES, details
from logpipe.ui.reading import columns_of, details_of
from tests.hostile import HOSTILE
from tests.ui.pieces import Seen

FACTS = {"id": "5-1", "source": "api", "level": "WARN", "ts_unix_ms": 7}


def tools_of(facts: dict[str, Any], action: str) -> list[str]:
    """What the buttons of one kind hold."""
    found = re.findall(rf'data-do="{action}" data-text="([^"]*)"', details(facts))
    return [html.unescape(each) for each in found]


def test_the_fields_and_the_metadata_are_a_tree() -> None:
    metadata = {"http": {"status": 500, "tags": ["a", None]}, "empty": {}}
    seen = Seen(details({**FACTS, "metadata": metadata}))
    assert seen.texts["key"] == "sourcelevelts_unix_msmetadatahttpstatustags01empty"
    assert seen.texts["value text"] == "apiWARNa"
    assert seen.texts["value json"] == "7500null{}"
    assert [a["href"] for tag, a in seen.elements if tag == "a"] == ["/?at=5-1"] * 2


def test_without_time_or_metadata_there_is_no_line_for_them() -> None:
    seen = Seen(details({"id": "5-1", "source": "a", "level": "INFO", "ts_unix_ms": None}))
    assert seen.texts["key"] == "sourcelevel"
    assert "Copy metadata" not in seen.texts["links"]


def test_each_value_can_be_copied_filtered_for_and_out_and_given_a_column() -> None:
    facts = {**FACTS, "metadata": {"region": "eu west", "http": {"status": 500}, "l": ["x"]}}
    terms = [
        "source:api", "level:WARN", "ts_unix_ms:7", 'metadata.region:"eu west"',
        "metadata.http.status:500",
    ]  # fmt: skip
    assert tools_of(facts, "filter") == [sign + term for term in terms for sign in ("", "-")]
    assert tools_of(facts, "column") == ["region", "http.status"]
    *values, whole = tools_of(facts, "copy")
    assert values == ["api", "WARN", "7", "eu west", "500", "x"]
    assert json.loads(whole) == facts["metadata"]
    assert "\n  " in whole


def test_a_number_of_thirty_digits_keeps_them_all() -> None:
    number = 123456789012345678901234567890
    facts = json.dumps({**FACTS, "metadata": {"n": number}})
    seen = Seen(details_of(facts))
    assert str(number) in seen.texts["value json"]
    assert tools_of(json.loads(facts), "filter")[-2] == f"metadata.n:{number}"


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(HOSTILE)
    | st.sampled_from(
        ["", "*", "a*", "OR", "-5", "a:b", "//x", "/x/", '"', "\\", "null", "1e3", ">=5", "(a"]
    )
)
keys = st.text(max_size=8) | st.sampled_from(
    ["a", "b", "a.b", "http.status", "", ".", "metadata", "level", "source", "message", "é", "x/",
     "@type", "k-1", "OR", "ts_unix_ms", "metadata.a"]
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(keys, values, max_size=5),
    st.text(max_size=12) | st.sampled_from(HOSTILE),
    st.text(max_size=12) | st.sampled_from(["warning", "AUDIT", "audit", "ERROR", "error"]),
    st.none() | st.integers(0, 2**60),
)
@example({"a.b": 1, "a": {"b": 2}}, "s", "INFO", None)
@example({"": 1, ".": 2, "metadata": {"a": 3}, "metadata.a": 4}, "s", "INFO", None)
@example({"a": ""}, "", "warning", 0)
def test_every_filter_that_is_offered_can_be_read_and_takes_the_event(
    metadata: dict[str, Any], source: str, level: str, ts_unix_ms: int | None
) -> None:
    try:
        raw = msgspec.json.encode([metadata, source, level])
    except UnicodeEncodeError:  # half a surrogate pair
        return
    metadata, source, level = msgspec.json.decode(raw)
    facts = {"source": source, "level": level, "ts_unix_ms": ts_unix_ms, "metadata": metadata}
    event = StoredEvent(source, "m", level, ts_unix_ms, metadata)
    for term in tools_of(facts, "filter"):
        predicate = parse_filter({"q": term}).predicate
        assert predicate is not None
        assert predicate(event) is not term.startswith("-"), term
    for name in tools_of(facts, "column"):
        assert columns_of({"cols": name}) == (name,)


@pytest.mark.parametrize("value", ["eu", "a b", 'say "hi"', "*", "-1", 5, -5, 1.5, True, None])
def test_of_common_values_each_has_its_filter(value: Any) -> None:
    assert len(tools_of({**FACTS, "metadata": {"key": value}}, "filter")) == 8


@pytest.mark.parametrize(
    "value", ["", "a\nb", "a\x00b", "a\u202eb", "x" * 2000, "y" * 65_536, {"a": {}}, []]
)
def test_what_nobody_could_type_or_send_has_no_filter(value: Any) -> None:
    facts = {"source": "", "level": "warning", "metadata": {"key": value}}
    assert tools_of(facts, "filter") == []


def test_the_longest_filter_that_is_offered_is_one_that_is_taken() -> None:
    longest = max(
        (
            term
            for size in range(1900, 2010)
            for term in tools_of({"metadata": {"k": "x" * size}}, "filter")
        ),
        key=len,
    )
    parse_filter({"q": longest})
    with pytest.raises(FilterError):
        parse_filter({"q": f"{longest}x"})


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    facts = {"id": text, "source": text, "level": text, "metadata": {text: text, "n": [text]}}
    seen = Seen(details(facts))
    tags = {tag for tag, _ in seen.elements}
    assert tags <= {"ul", "li", "span", "button", "p", "a"}
    for _, attributes in seen.elements:
        allowed = {"class", "type", "data-do", "data-text", "title", "aria-label", "href"}
        assert set(attributes) <= allowed


# -- bounds -----------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"k": value}
    return value


def test_deeper_down_the_rest_is_one_line_of_json() -> None:
    seen = Seen(details({**FACTS, "metadata": nested(100)}))
    assert len(seen.texts["key"].removeprefix("sourcelevelts_unix_msmetadata")) == MAX_DEPTH
    assert '{"k":{"k":' in seen.texts["value json"]


def test_no_depth_is_a_fault() -> None:
    for depth in (1, 100, 512):
        assert details_of(deep(depth)).startswith("<ul")
    for depth in range(700, 1010, 5):
        with contextlib.suppress(Problem):
            assert details_of(deep(depth)).startswith("<ul")
    with pytest.raises(Problem) as told:
        details_of(deep(5_000))
    assert told.value.status == 422


def deep(depth: int) -> str:
    return json.dumps(FACTS)[:-1] + f', "metadata": {"[" * depth}{"]" * depth}}}'


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "…", '{"a": 1'])
def test_what_is_no_event_is_told(text: str) -> None:
    with pytest.raises(Problem) as told:
        details_of(text)
    assert told.value.status == 422


@pytest.mark.parametrize(
    "metadata",
    [
        {"k" * 30_000: {f"k{n}": n for n in range(3_000)}},
        {"k": list(range(20_000))},
        {"k": {f"k{n}": {} for n in range(5_000)}},
        {"k": [[[[1] * 5 for _ in range(5)] for _ in range(5)] for _ in range(100)]},
        {"k": "x" * 60_000},
        {"\x7f" * 10_000: "\x7f" * 10_000},
        {"deep": [[0] * 10_000 for _ in range(3)]},
    ],
)
def test_the_tree_stays_in_proportion_to_the_event(metadata: dict[str, Any]) -> None:
    made = details({**FACTS, "metadata": metadata})
    assert len(made) < 3_000_000
    assert made.count("<li>") <= MAX_VALUES + 5


def test_metadata_that_would_grow_with_their_indents_are_copied_without() -> None:
    metadata: Any = [1] * 10_000
    for _ in range(300):
        metadata = [metadata]
    *_, whole = tools_of({"metadata": {"k": metadata}}, "copy")
    assert json.loads(whole) == {"k": metadata}
    assert "\n" not in whole


def test_a_path_that_is_too_long_has_no_filter_and_no_part_in_labels() -> None:
    made = details({"metadata": {"k" * MAX_PATH: {"a": 1}}})
    assert made.count("k" * MAX_PATH) == made.count(f'class="key">{"k" * MAX_PATH}<') + 1  # copy


@pytest.mark.parametrize("metadata", [[1, {"a": 2}], "text", 5, True])
def test_facts_that_are_no_events_are_shown_without_a_filter(metadata: Any) -> None:
    assert tools_of({"source": "s", "level": "INFO", "metadata": metadata}, "filter") == [
        "source:s", "-source:s", "level:INFO", "-level:INFO",
    ]  # fmt: skip
