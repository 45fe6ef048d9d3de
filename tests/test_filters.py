import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logpipe.event import LEVELS, StoredEvent, level_rank
from logpipe.filters import EVERYTHING, Filter, FilterError, parse_filter


def takes(
    chosen: Filter, *, source: str = "api", message: str = "hello", level: str = "INFO"
) -> bool:
    accepts = chosen.predicate
    assert accepts is not None
    return accepts(StoredEvent(source=source, message=message, level=level))


def test_no_terms_take_everything_without_a_call() -> None:
    assert EVERYTHING.predicate is None
    assert parse_filter({}) == EVERYTHING
    assert parse_filter({"level": " ", "source": "", "text": "\t", "q": " "}) == EVERYTHING


def test_terms_come_from_their_parameters_without_the_space_around_them() -> None:
    parameters = {"level": " warn ", "source": "api", "text": " a b ", "tail": "5"}
    assert parse_filter(parameters) == Filter(level="warn", source="api", text="a b")


def test_equal_filters_are_one_key_and_share_one_predicate() -> None:
    one = parse_filter({"level": "warn", "source": "api*"})
    other = parse_filter({"source": "api* ", "level": "warn"})
    assert one == other
    assert hash(one) == hash(other)
    assert one.predicate is other.predicate
    assert one != Filter(level="warn", source="api")


def test_all_terms_must_match() -> None:
    chosen = Filter(level=">=warn", source="api", text="reset")
    assert takes(chosen, level="ERROR", message="connection reset")
    assert not takes(chosen, level="INFO", message="connection reset")
    assert not takes(chosen, level="ERROR", message="connection lost")
    assert not takes(chosen, level="ERROR", message="connection reset", source="web")


@pytest.mark.parametrize("level", ["warn", "WARNING", "Wrn", " warn ", "debug,warn", "warn,,"])
def test_a_level_is_found_by_any_of_its_spellings(level: str) -> None:
    assert takes(Filter(level=level), level="WARN")
    assert not takes(Filter(level=level), level="ERROR")


def test_several_levels_are_any_of_them() -> None:
    chosen = Filter(level="debug, err,audit")
    taken = [name for name in (*LEVELS, "AUDIT", "OTHER") if takes(chosen, level=name)]
    assert taken == ["DEBUG", "ERROR", "AUDIT"]


@given(st.sampled_from(LEVELS), st.sampled_from([*LEVELS, "AUDIT"]))
def test_a_least_level_takes_that_level_and_all_above(least: str, level: str) -> None:
    chosen = parse_filter({"level": f">= {least.lower()}"})
    assert takes(chosen, level=level) == (level_rank(level) >= level_rank(least))


@pytest.mark.parametrize("level", [">=", ">=audit", ">=warn,error", ">=>=warn", ">= "])
def test_a_least_level_must_be_one_that_ranks(level: str) -> None:
    with pytest.raises(FilterError, match=r"after >= comes one of TRACE, DEBUG") as caught:
        parse_filter({"level": level})
    assert caught.value.parameter == "level"


def test_the_language_of_q_is_refused_rather_than_ignored() -> None:
    with pytest.raises(FilterError, match="level, source and text") as caught:
        parse_filter({"q": "level:warn"})
    assert caught.value.parameter == "q"


@pytest.mark.parametrize(
    ("pattern", "source", "matches"),
    [
        ("api", "api", True),
        ("api", "api-1", False),
        ("api", "API", False),
        ("api*", "api", True),
        ("api*", "api-1", True),
        ("api*", "my-api", False),
        ("*api", "my-api", True),
        ("*api*", "my-api-1", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a**b", "a\nb", True),
        ("*", "", True),
        ("*", "any", True),
        ("a.c", "abc", False),
        ("a.*", "a.c", True),
        ("[a]?(", "[a]?(", True),
        ("web, api*", "api-1", True),
        ("web, api*", "web", True),
        ("web, api*", "job", False),
        ("é*", "été", True),
    ],
)
def test_a_source_is_a_name_or_a_pattern_with_stars(
    pattern: str, source: str, matches: bool
) -> None:
    assert takes(Filter(source=pattern), source=source) is matches


def naive(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return naive(pattern[1:], name) or (bool(name) and naive(pattern, name[1:]))
    return bool(name) and name[0] == pattern[0] and naive(pattern[1:], name[1:])


names = st.text("ab.", max_size=8)
patterns = st.text("ab.**", min_size=1, max_size=7)


@given(st.lists(patterns, min_size=1, max_size=3), names)
@example(["*ab*ba*"], "aba")
@example(["a*a"], "a")
@example(["*a*b"], "aabab")
def test_stars_match_what_a_naive_matcher_matches(wanted: list[str], name: str) -> None:
    expected = any(naive(pattern, name) for pattern in wanted)
    assert takes(Filter(source=",".join(wanted)), source=name) == expected


@pytest.mark.parametrize(
    "pattern",
    ["*a*a*a*a*a*a*a*b", "a*" * 127 + "b", "*" * 5_000 + "b", "*a" * 4_000, "*aaaaaaaab*" * 20],
    ids=lambda pattern: pattern[:16],
)
def test_a_pattern_made_to_backtrack_costs_next_to_nothing(pattern: str) -> None:
    accepts = Filter(source=pattern).predicate
    assert accepts is not None
    event = StoredEvent(source="a" * 256)
    began = time.perf_counter()
    for _ in range(100):
        assert not accepts(event)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    ("text", "message", "matches"),
    [
        ("reset", "Connection RESET by peer", True),
        ("RESET", "connection reset", True),
        ("connection  reset", "connection reset", False),
        ("straße", "STRASSE", True),
        ("İ", "i̇stanbul", True),
        (".*", "anything", False),
        ("a,b", "a,b", True),
        ("a,b", "a", False),
    ],
)
def test_a_text_is_looked_for_in_the_message_in_any_case(
    text: str, message: str, matches: bool
) -> None:
    assert takes(Filter(text=text), message=message) is matches


@given(st.text(min_size=1), st.text(), st.text())
def test_a_text_is_found_wherever_it_stands(text: str, left: str, right: str) -> None:
    assert takes(Filter(text=text), message=left + text + right)


@given(st.dictionaries(st.sampled_from(["level", "source", "text", "q"]), st.text()))
def test_any_parameters_are_a_filter_that_runs_or_a_filter_error(
    parameters: dict[str, str],
) -> None:
    try:
        chosen = parse_filter(parameters)
    except FilterError as error:
        parameter, chosen = error.parameter, EVERYTHING
    else:
        parameter = ""
    assert parameter in ("", *parameters)
    accepts = chosen.predicate
    assert (accepts is None) == (chosen == EVERYTHING)
    if accepts is not None:
        assert accepts(StoredEvent(source="a", message="b")) in (True, False)
