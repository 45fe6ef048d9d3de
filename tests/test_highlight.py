"""Where a filter's words are found in a message."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logpipe.event import StoredEvent
from logpipe.filters import Filter, parse_filter
from logpipe.filters.highlight import MAX_MARKS, Highlight
from logpipe.filters.terms import REGEX_CHARACTERS
from tests import costs
from tests.helpers import fair_time

QUERIES = (
    "a", "ab OR é", "a*b", "-a b", "(a OR b) c", "/a+/", "/./", "/x*/", r"/\C/", '"a b"', "k", "s",
    "level:ERROR a",
)  # fmt: skip


def highlight(query: str) -> Highlight | None:
    return Filter(query).highlight


def found(query: str, text: str) -> list[str]:
    spans = highlight(parse_filter({"q": query}).query)
    assert spans is not None
    return [text[low:high] for low, high in spans(text)]


@given(
    st.sampled_from(QUERIES),
    st.text() | st.text("abék\u212as\u017f\n漢🎉"),
)
@example(r"/\C/", "é漢🎉")
def test_spans_are_in_order_and_within_the_text(query: str, text: str) -> None:
    spans = highlight(query)
    assert spans is not None
    edges = [edge for span in spans(text) for edge in span]
    assert edges == sorted(edges)
    assert all(low < high for low, high in spans(text))
    assert not edges or 0 <= edges[0] <= edges[-1] <= len(text)


@given(st.sampled_from([q for q in QUERIES if "C" not in q]), st.text("abék\n漢", max_size=40))
def test_spans_do_not_touch(query: str, text: str) -> None:
    spans = highlight(query)
    assert spans is not None
    edges = [edge for span in spans(text) for edge in span]
    assert len(set(edges)) == len(edges)


ascii_text = st.text(st.characters(codec="ascii"), max_size=60) | st.text("aAbB ", max_size=60)


@given(st.text("aAbBkKsS.*?+[(\\", min_size=1, max_size=3), ascii_text)
def test_a_word_is_marked_exactly_where_it_is_found_in_any_case(word: str, text: str) -> None:
    chosen = parse_filter({"text": word})
    spans = highlight(chosen.query)
    assert spans is not None
    folded = text.casefold()
    marked = {n for low, high in spans(text) for n in range(low, high)}
    wanted = {
        n for match in re.finditer(re.escape(word.casefold()), folded) for n in range(*match.span())
    }
    assert marked == wanted
    predicate = chosen.predicate
    assert predicate is not None
    assert bool(marked) == predicate(StoredEvent(message=text))


def test_beyond_ascii_characters_are_counted_and_not_bytes() -> None:
    assert found("größe", "漢字🎉 Größer, größe") == ["Größe", "größe"]


def test_one_character_that_folds_to_two_is_marked_whole() -> None:
    assert found("größe", "漢字🎉 GRÖSSE Größe, größe") == ["GRÖSSE", "Größe", "größe"]
    assert found("s", "ß İs") == ["ß", "s"]


def test_between_the_parts_of_a_wildcard_everything_is_marked_line_ends_included() -> None:
    assert found("begin*end", "a begin\nmiddle\nend z") == ["begin\nmiddle\nend"]


def test_regular_expressions_on_the_message_are_marked() -> None:
    assert found(r"/user-\d+/ source:/x/", "User-17 and user-4") == ["User-17", "user-4"]


def test_what_must_be_absent_and_what_other_fields_hold_is_not_marked() -> None:
    assert found("a -b NOT c source:d", "a b c d") == ["a"]
    for query in ("", "-a", "level:ERROR", "source:/a/", "region:eu*", "message:*"):
        assert highlight(parse_filter({"q": query}).query) is None


def test_a_part_of_a_character_is_no_place() -> None:
    assert found(r"/\B\C/", "aé") == []


def test_words_that_overlap_or_touch_are_one_mark() -> None:
    assert found("abc OR bcd OR ef", "xabcdefx") == ["abcdef"]


def test_so_many_places_are_marked_and_no_more() -> None:
    assert len(found("a", "a " * 1000)) == MAX_MARKS
    assert len(found("a OR b", "a b " * 1000)) == MAX_MARKS


def test_only_as_much_of_a_text_is_looked_at_as_a_regular_expression_sees() -> None:
    assert found("a", "x" * REGEX_CHARACTERS + "a") == []
    assert found("a", "x" * (REGEX_CHARACTERS - 1) + "a") == ["a"]


@pytest.mark.parametrize("character", ["k", "\u212a", "\u017f", "İ", "漢", "*k", "\\", "\x00"])
def test_the_longest_words_of_a_filter_are_found(character: str) -> None:
    word = (character * 1990)[:990]
    assert highlight(parse_filter({"text": word}).query) is not None


def test_an_empty_filter_marks_nothing() -> None:
    assert highlight(Filter().query) is None


def test_marking_what_costs_most_ends_within_its_steps() -> None:
    began = fair_time()
    for _, query, event in costs.PAIRS:
        marks = highlight(query)
        assert marks is None or len(marks(json.loads(event)["message"])) <= MAX_MARKS
    assert fair_time() - began < 30


def test_an_expression_that_looks_ahead_is_not_followed_for_ever() -> None:
    marks = highlight("/x.*y|x/")
    assert marks is not None
    assert len(marks("x" * 100)) == 1
    assert marks("x" * REGEX_CHARACTERS)
