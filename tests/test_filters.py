import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logpipe.event import LEVELS, StoredEvent, level_name, level_rank
from logpipe.filters import EVERYTHING, Filter, FilterError, parse_filter
from logpipe.filters.predicate import predicate_of
from logpipe.filters.reading import (
    MAX_QUERY,
    MAX_REGEXES,
    MAX_TERMS,
    MAX_TOKENS,
    FilterSyntaxError,
    parse,
)
from logpipe.filters.tree import And, Compare, Match, Node, Not, Or, Pattern, Regex, Text
from logpipe.filters.tree import all_of as and_
from logpipe.filters.tree import any_of as or_
from logpipe.filters.tree import negation as not_
from logpipe.filters.values import MISSING

DOCUMENT = Path(__file__).parent.parent / "docs" / "filters.md"


def takes(query: str, **fields: Any) -> bool:
    """Whether a filter takes an event with these fields."""
    event = StoredEvent(**{"source": "api", "message": "hello", "level": "INFO", **fields})
    accepts = parse_filter({"q": query}).predicate
    assert accepts is not None
    return accepts(event)


def short(name: str, value: str, **fields: Any) -> bool:
    """The same for a short form."""
    event = StoredEvent(**{"source": "api", "message": "hello", "level": "INFO", **fields})
    accepts = parse_filter({name: value}).predicate
    assert accepts is not None
    return accepts(event)


# -- the language ----------------------------------------------------------------------------------


def test_no_terms_take_everything_without_a_call() -> None:
    assert EVERYTHING.predicate is None
    assert parse_filter({}) == EVERYTHING
    assert parse_filter({"level": " ", "source": "", "text": "\t", "q": " \n"}) == EVERYTHING
    assert EVERYTHING.explain() == "every event"


EXAMPLE = (
    'level>=warn source:api* "connection reset" -healthz metadata.region:us-east-1'
    " (status:500 OR status:503)"
)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"level": "FATAL"}, True),
        ({"level": "INFO"}, False),
        ({"source": "web"}, False),
        ({"message": "connection closed"}, False),
        ({"message": "connection reset in /healthz"}, False),
        ({"metadata": {"region": "eu-west-1", "status": 503}}, False),
        ({"metadata": {"region": "us-east-1", "status": 404}}, False),
        ({"metadata": {"region": "us-east-1", "status": "500"}}, True),
        ({"metadata": {"region": "us-east-1"}}, False),
    ],
)
def test_all_terms_have_to_hold(change: dict[str, Any], taken: bool) -> None:
    event = {
        "source": "api-7",
        "level": "WARN",
        "message": "Connection RESET by peer",
        "metadata": {"region": "us-east-1", "status": 503},
    }
    assert takes(EXAMPLE, **{**event, **change}) is taken


@pytest.mark.parametrize(
    ("query", "message", "taken"),
    [
        ("reset", "Connection RESET by peer", True),
        ("RESET", "connection reset", True),
        ("connection reset", "reset of the connection", True),
        ('"connection reset"', "reset of the connection", False),
        ('"connection  reset"', "connection reset", False),
        ("straße", "STRASSE", True),
        ("conn*reset", "the connection was reset", True),
        ("conn*reset", "reset the connection", False),
        ("*", "", True),
        ('"*"', "anything", False),
        (r"a\*b", "a*b", True),
        (r"a\*b", "axb", False),
        (".*", "any.thing", True),
        (r'"say \"hi\" to C:\temp"', 'say "hi" to c:\\TEMP', True),
        ("/time.?out \\d+/", "Time-out 400 ms", True),
        ("/^time/", "a timeout", False),
        ("/a b/", "xa bx", True),
        (r"/api\/v\d/", "GET /api/v2", True),
        ("/api/users", "GET /api/users/7", True),
        ("/healthz", "GET /healthz", True),
        ("10:30:00", "at 10:30:00", True),
        ("http://db", "from http://db:80", True),
        ("user=42", "user=42", True),
        ("-hello", "hello", False),
        ("-hello", "bye", True),
        ("NOT hello", "bye", True),
        ("NOT -hello", "hello", True),
        ("a OR b", "b", True),
        ("a OR b c", "b", False),
        ("(a OR b) c", "bc", True),
        ("a AND b", "b", False),
        ("-(a OR b)", "c", True),
        ("or", "not this one", False),
        ("message:hel*", "say hello", True),
        ("message:/^hel+o$/", "hello", True),
        ("a-b", "a-b", True),
    ],
)
def test_words_phrases_and_regexes_look_in_the_message(
    query: str, message: str, taken: bool
) -> None:
    assert takes(query, message=message) is taken


@pytest.mark.parametrize(
    ("query", "fields", "taken"),
    [
        ("source:api", {"source": "api"}, True),
        ("source:api", {"source": "api-1"}, False),
        ("source:API", {"source": "api"}, False),
        ("source:/^API-\\d$/", {"source": "api-1"}, True),
        ("level:warning", {"level": "WARN"}, True),
        ("level:err*", {"level": "ERROR"}, True),
        ("level:audit", {"level": "AUDIT"}, True),
        ("level:/^w/", {"level": "WARN"}, True),
        ("size:/^5/", {"metadata": {"size": 512}}, True),
        ("level>=warn", {"level": "ERROR"}, True),
        ("level>warn", {"level": "WARN"}, False),
        ("level<warn", {"level": "AUDIT"}, True),
        ("level<=warn", {"level": "ERROR"}, False),
        ("level:>=warn", {"level": "FATAL"}, True),
        ("ts_unix_ms>=1710000000000", {"ts_unix_ms": 1710000000000}, True),
        ("ts_unix_ms>5", {"ts_unix_ms": None}, False),
        ("status:500", {"metadata": {"status": 500}}, True),
        ("status:500", {"metadata": {"status": 500.0}}, True),
        ("status:500", {"metadata": {"status": "500"}}, True),
        ("status:5*", {"metadata": {"status": 503}}, True),
        ("status>=500", {"metadata": {"status": 500}}, True),
        ("status>=500", {"metadata": {"status": "503"}}, True),
        ("status>=500", {"metadata": {"status": "high"}}, False),
        ("status<500", {"metadata": {}}, False),
        ("-status:500", {"metadata": {}}, True),
        ("temp:-5", {"metadata": {"temp": -5}}, True),
        ("temp>-5.5", {"metadata": {"temp": -5}}, True),
        ("ok:true", {"metadata": {"ok": True}}, True),
        ("ok:1", {"metadata": {"ok": True}}, False),
        ("ok>=1", {"metadata": {"ok": True}}, False),
        ("gone:null", {"metadata": {"gone": None}}, True),
        ("gone:*", {"metadata": {"gone": None}}, False),
        ("user:*", {"metadata": {"user": {"id": 7}}}, True),
        ("user:7", {"metadata": {"user": {"id": 7}}}, False),
        ("user.id:7", {"metadata": {"user": {"id": 7}}}, True),
        ("metadata.user.id:7", {"metadata": {"user": {"id": 7}}}, True),
        ("http.status:500", {"metadata": {"http.status": 500}}, True),
        ("a.b.c:1", {"metadata": {"a.b": {"c": 1}}}, True),
        ("a.b.c:1", {"metadata": {"a.b": {}, "a": {"b.c": 1}}}, True),
        ("a.b.c:1", {"metadata": {"a": {"b": 1}}}, False),
        ("tags:red", {"metadata": {"tags": ["blue", "red"]}}, True),
        ("sizes>=5", {"metadata": {"sizes": [1, 7]}}, True),
        ("sizes>=5", {"metadata": {"sizes": [1, [7]]}}, False),
        ("region:OR", {"metadata": {"region": "OR"}}, True),
        ('path:"/api/"', {"metadata": {"path": "/api/"}}, True),
        ("path:/api/", {"metadata": {"path": "see /API/v1"}}, True),
        ("path:/x/", {"metadata": {}}, False),
        ("agent:Mozilla\\ *", {"metadata": {"agent": "Mozilla 5.0"}}, True),
    ],
)
def test_fields_are_the_events_own_or_looked_up_in_its_metadata(
    query: str, fields: dict[str, Any], taken: bool
) -> None:
    assert takes(query, **fields) is taken


@pytest.mark.parametrize(
    ("query", "position", "words"),
    [
        ("level: error", 5, "without spaces"),
        ("status >= 500", 7, "without spaces"),
        ("<html>", 0, "without spaces"),
        ("a OR", 4, "a term is expected"),
        ("a NOT", 5, "a term is expected"),
        ("OR a", 0, "OR stands between"),
        ("a AND OR b", 6, "OR stands between"),
        ("(a b", 4, "parenthesis is missing"),
        ("a b)", 3, "no parenthesis to close"),
        ("()", 1, "nothing in it"),
        ('a "b', 2, "not closed"),
        ('""', 0, "empty text"),
        ("a - b", 2, "nothing follows the minus"),
        ("a\\", 1, "nothing follows the backslash"),
        ("level>=audit", 7, "no level that has a rank"),
        ("status>=high", 8, "comes a number"),
        ("status>1e999", 7, "too large"),
        ("metadata:x", 0, "is an object"),
        ("a /(b/", 2, "not a regular expression"),
        (r"/(a)\1/", 0, "not a regular expression"),
        ("/.{900}/", 0, "expression is too large"),
        ("(" * 33 + "a" + ")" * 33, 32, "levels deep"),
        ("a" * (MAX_QUERY + 1), MAX_QUERY, "at most"),
        ("a " * MAX_TERMS + "b", 2 * MAX_TERMS + 1, "at most"),
        ("/a/ " * MAX_REGEXES + "/b/", 4 * MAX_REGEXES + 3, "at most"),
    ],
)
def test_an_error_says_where_and_what(query: str, position: int, words: str) -> None:
    with pytest.raises(FilterError, match=words) as caught:
        parse_filter({"q": query})
    assert caught.value.parameter == "q"
    assert caught.value.position == position


def test_a_filter_has_at_most_so_many_words_and_signs() -> None:
    terms = MAX_TOKENS // 10
    assert terms <= MAX_TERMS
    most = " ".join(["((((a))))", "(((((a)))))"] * (terms // 2))  # nine and eleven
    assert parse_filter({"q": most}).predicate is not None
    with pytest.raises(FilterError, match=f"at most {MAX_TOKENS} words and signs"):
        parse_filter({"q": f"-{most}"})


def test_an_error_says_what_to_write_instead() -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter({"q": "Error: timeout"})
    assert caught.value.hint == 'to look for the text itself, quote it: "…"'


def test_a_filter_explains_itself() -> None:
    assert parse_filter({"q": EXAMPLE + " /a+/ -source:/b/ took>2.5 user:*"}).explain() == (
        'events where level is WARN or above and source is like "api*" and the message contains'
        ' "connection reset" and not the message contains "healthz" and metadata.region is'
        ' "us-east-1" and (status is "500" or status is "503") and the message matches /a+/ and not'
        " source matches /b/ and took is more than 2.5 and user is there"
    )


@pytest.mark.parametrize(
    "expression", ["(a+)+$", "(a|aa)+$", "(x+x+)+y", "(.*a){10}c", "a[ab]{60}c", "a.{20}z"]
)
def test_a_regex_made_to_backtrack_does_not_stall_the_process(expression: str) -> None:
    accepts = parse_filter({"q": f"/{expression}/"}).predicate
    assert accepts is not None
    event = StoredEvent(source="a", message="ab" * 32_000)
    began = time.thread_time()
    accepts(event)
    assert time.thread_time() - began < 0.5


# -- properties ------------------------------------------------------------------------------------

parts = st.text(st.sampled_from(list('ab. "*\\()/-:<>\n~é')), max_size=4)


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    drawn = draw(st.lists(parts, min_size=1, max_size=3))
    if len(drawn) == 1:
        return (drawn[0] or "x",)
    return (drawn[0], *(part for part in drawn[1:-1] if part), drawn[-1])


names = st.sampled_from(["source", "status", "user.id", "metadata.x", "a-b/c", "_z", "@t"])
regexes = st.sampled_from(["a+b", r"a\/b", r"\d", "[ab]*", "a b", "(a|b)c", '"', "^$", "a#"])
numbers = st.floats(allow_nan=False, allow_infinity=False)
signs = st.sampled_from([">=", "<=", ">", "<"])
leaves: st.SearchStrategy[Node] = st.one_of(
    st.builds(Text, patterns()),
    st.builds(Match, names, patterns()),
    st.builds(Match, st.just("level"), st.sampled_from([("WARN",), ("AUDIT",), ("ERR", "")])),
    st.builds(Regex, st.sampled_from(["message", "source", "x.y"]), regexes),
    st.builds(Compare, names, signs, numbers),
    st.builds(Compare, st.just("level"), signs, st.sampled_from(LEVELS)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(not_),
        st.lists(inner, min_size=2, max_size=3).map(and_),
        st.lists(inner, min_size=2, max_size=3).map(or_),
    ),
    max_leaves=8,
).filter(lambda node: str(node).count("/") < 2 * MAX_REGEXES)


@given(trees)
@example(Text(("http:", "x")))
@example(Text(("OR",)))
@example(Match("source", ("-", "")))
@example(Not(And((Text(("-a",)), Text(("a:b",))))))
def test_what_a_tree_prints_is_read_back_as_that_tree(node: Node) -> None:
    assert parse(str(node)) == node


values = st.one_of(
    parts,
    st.integers(-5, 600),
    st.sampled_from([0.5, 1e300, True, False, None]),
    st.lists(st.one_of(parts, st.integers(0, 3)), max_size=2),
)
stored = st.builds(
    StoredEvent,
    source=parts,
    message=st.text(st.sampled_from(list('abAB. "*\\()/-:<>é1')), max_size=12),
    level=st.sampled_from([*LEVELS, "AUDIT"]),
    metadata=st.dictionaries(
        st.sampled_from(["status", "x", "a-b/c", "_z", "@t", "x.y", "user.id"]), values
    ),
)


@given(trees, stored)
@example(Regex("x.y", "^$"), StoredEvent(metadata={"x.y": "\n"}))
@example(Match("x", ("", "")), StoredEvent(metadata={"x": []}))
def test_the_predicate_agrees_with_a_naive_evaluator(node: Node, event: StoredEvent) -> None:
    assert predicate_of(node)(event) == naive(node, event)


def naive(node: Node, event: StoredEvent) -> bool:
    """The meaning of a tree, without any thought of speed."""
    match node:
        case And(terms):
            return all(naive(term, event) for term in terms)
        case Or(terms):
            return any(naive(term, event) for term in terms)
        case Not(term):
            return not naive(term, event)
        case Text(pattern):
            folded = tuple(part.casefold() for part in pattern)
            return like(("", *folded, ""), event.message.casefold())
        case Regex(field, expression):
            texts = [written(value) for value in found(field, event)]
            # RE2's `$` is the end alone; Python's is also before a newline there.
            found_in = re.compile(expression.replace("$", r"\Z"), re.IGNORECASE)
            return any(found_in.search(text) for text in texts)
        case Match(field, ("", "")):
            return any(value is not None for value in found(field, event))
        case Match(field, pattern):
            return any(equal(pattern, value) for value in each(found(field, event)))
        case Compare("level", sign, value):
            return ordered(level_rank(event.level), sign, level_rank(str(value)))
        case Compare(field, sign, value):
            return any(
                ordered(number, sign, value)
                for number in map(as_number, each(found(field, event)))
                if number is not None
            )


def found(field: str, event: StoredEvent) -> list[Any]:
    """The values of a field: one or none."""
    if field in ("source", "level", "message"):
        return [getattr(event, field)]
    name = field.removeprefix("metadata.")
    return [event.metadata[name]] if name in event.metadata else []


def each(values: list[Any]) -> list[Any]:
    return [v for value in values for v in (value if isinstance(value, list) else [value])]


def written(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if is_list(value) else json.dumps(value)


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def equal(pattern: Pattern, value: Any) -> bool:
    number = as_number(value)
    if number is not None and not isinstance(value, str) and len(pattern) == 1:
        wanted = as_number(pattern[0])
        return like(pattern, str(value)) or wanted == number
    return like(pattern, written(value))


def as_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (ValueError, TypeError):
        return None


def ordered(left: float, sign: str, right: Any) -> bool:
    holds: bool = {">=": left >= right, "<=": left <= right, ">": left > right, "<": left < right}[
        sign
    ]
    return holds


def like(pattern: Pattern, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern)), text, re.DOTALL) is not None


@given(st.text(st.sampled_from(list('ab:>=<"\\()/- *ORNTAD.é\n')), max_size=30))
def test_any_text_is_a_filter_or_an_error_with_a_position(text: str) -> None:
    try:
        node = parse(text)
    except FilterSyntaxError as error:
        node, position = None, error.position
    else:
        position = 0
    assert 0 <= position <= len(text)
    if node is not None:
        assert parse(str(node)) == node
        assert node.explain()
        assert predicate_of(node)(StoredEvent(source="a", message="b")) in (True, False)


# -- sharing ---------------------------------------------------------------------------------------


def test_equal_filters_are_one_key_and_share_one_predicate_however_they_are_written() -> None:
    one = parse_filter({"level": "warn", "source": "api*"})
    other = parse_filter({"q": "  level:WARNING AND   source:api*"})
    assert one == other == Filter("level:WARN source:api*")
    assert hash(one) == hash(other)
    assert one.predicate is other.predicate


# -- short forms -----------------------------------------------------------------------------------


def test_the_short_forms_and_the_language_are_anded() -> None:
    chosen = parse_filter({"q": "a OR b", "level": " >=warn ", "source": "api", "text": "x y"})
    assert chosen.query == '(a OR b) level>=WARN source:api "x y"'


@pytest.mark.parametrize("parameter", ["level", "source"])
def test_a_list_that_names_nothing_is_an_error(parameter: str) -> None:
    with pytest.raises(FilterError, match="names nothing") as caught:
        parse_filter({parameter: " , "})
    assert caught.value.parameter == parameter


@pytest.mark.parametrize("level", ["warn", "WARNING", "Wrn", " warn ", "debug,warn", "warn,,"])
def test_a_level_is_found_by_any_of_its_spellings(level: str) -> None:
    assert short("level", level, level="WARN")
    assert not short("level", level, level="ERROR")


def test_several_levels_are_any_of_them() -> None:
    wanted = "debug, err,audit"
    taken = [name for name in (*LEVELS, "AUDIT", "OTHER") if short("level", wanted, level=name)]
    assert taken == ["DEBUG", "ERROR", "AUDIT"]


@given(st.sampled_from(LEVELS), st.sampled_from([*LEVELS, "AUDIT"]))
def test_a_least_level_takes_that_level_and_all_above(least: str, level: str) -> None:
    taken = short("level", f">= {least.lower()}", level=level)
    assert taken == (level_rank(level) >= level_rank(least))


@pytest.mark.parametrize("level", [">=", ">=audit", ">=warn,error", ">=>=warn", ">= "])
def test_a_least_level_must_be_one_that_ranks(level: str) -> None:
    with pytest.raises(FilterError, match="no level that has a rank") as caught:
        parse_filter({"level": level})
    assert caught.value.parameter == "level"
    assert caught.value.position is None
    assert "TRACE, DEBUG" in caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "source", "taken"),
    [
        ("api", "api-1", False),
        ("api*", "api", True),
        ("api*", "my-api", False),
        ("*api*", "my-api-1", True),
        ("a*a", "a", False),
        ("a**b", "a\nb", True),
        ("*", "any", True),
        ("a.c", "abc", False),
        ("[a]?(", "[a]?(", True),
        ("web, api*", "api-1", True),
        ("web, api*", "job", False),
        ("é*", "été", True),
    ],
)
def test_a_source_is_a_name_or_a_pattern_with_stars(pattern: str, source: str, taken: bool) -> None:
    assert short("source", pattern, source=source) is taken


@given(patterns(), parts)
@example(("", "ab", "ba", ""), "aba")
@example(("a", "a"), "a")
def test_stars_match_what_a_naive_matcher_matches(pattern: Pattern, name: str) -> None:
    assert predicate_of(Match("source", pattern))(StoredEvent(source=name)) == like(pattern, name)


def test_a_pattern_made_to_backtrack_costs_next_to_nothing() -> None:
    accepts = parse_filter({"source": "*a" * 500 + "b"}).predicate
    assert accepts is not None
    event = StoredEvent(source="a" * 256)
    began = time.thread_time()
    for _ in range(100):
        assert not accepts(event)
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize(
    ("text", "message", "taken"),
    [
        ("connection  reset", "connection reset", False),
        ("a OR b", "b", False),
        (".*", "anything", False),
        ("a,b", "A,B", True),
    ],
)
def test_a_text_is_taken_literally(text: str, message: str, taken: bool) -> None:
    assert short("text", text, message=message) is taken


@given(st.dictionaries(st.sampled_from(["level", "source", "text", "q"]), st.text()))
@example({"q": " ".join("a" * 60), "source": ",".join("b" * 9)})
def test_any_parameters_are_a_filter_that_runs_or_a_filter_error(
    parameters: dict[str, str],
) -> None:
    try:
        chosen = parse_filter(parameters)
    except FilterError as error:
        parameter, chosen = error.parameter, EVERYTHING
    else:
        parameter = "q"
    assert parameter in ("q", *parameters)
    accepts = chosen.predicate
    assert (accepts is None) == (chosen == EVERYTHING)
    if accepts is not None:
        assert accepts(StoredEvent(source="a", message="b")) in (True, False)


# -- the document ----------------------------------------------------------------------------------

ROWS = re.findall(r"^\| `([^`|]+)` \| .* \| (.*) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)


def shown(cell: str) -> StoredEvent:
    fields = json.loads(cell.strip("`"))
    level = level_name(fields.pop("level", "info"))
    return StoredEvent(**{"source": "api", "message": "", **fields, "level": level})


@pytest.mark.parametrize(("query", "taken", "left"), ROWS)
def test_every_example_of_the_document_does_what_it_says(query: str, taken: str, left: str) -> None:
    accepts = parse_filter({"q": query}).predicate
    assert accepts is not None
    assert accepts(shown(taken))
    assert not accepts(shown(left))


def test_the_document_has_at_least_twenty_examples() -> None:
    assert len(ROWS) >= 20


BIG = 2**53 + 1
"""An integer that no float is."""


@pytest.mark.parametrize("many", [1, 20])
@pytest.mark.parametrize(
    ("query", "value", "taken"),
    [
        ("region:*o*", {"o": 1}, False),
        ("region:*o*", [{"o": 1}], False),
        ("region:*o*", [{"o": 1}, "oslo"], True),
        ("region:*u*", None, True),
        ("region:eu", None, False),
        ("region:null", None, True),
        ("region:null", 0, False),
        ('region:"{}"', {}, False),
        ("region:true", True, True),
        ("region:eu", [None, "eu"], True),
        ("region:eu", [None, "us"], False),
        (f"region:{BIG}", BIG, True),
        (f"region:{BIG}", float(BIG), True),
        ("region:1.0", 1, True),
        ("region>=1", None, False),
        ("region>=1", [True, "2"], True),
        ("region>=1", [True, {"a": 2}], False),
        ("region:/o/", {"o": 1}, True),
    ],
)
def test_a_value_of_any_type_fits_as_it_is_written(
    query: str, value: Any, taken: bool, many: int
) -> None:
    """Also in a list that is too long to be looked at without counting steps."""
    found = value if many == 1 else [value] * many
    if isinstance(value, list) and many > 1:
        found = value * many
    assert takes(query, metadata={"region": found}) is taken


@pytest.mark.parametrize(
    "query",
    ["region:*o*", "region:*", "region:null", "region:/o/", "region>=0", f'region:"{MISSING}"'],
    ids=["part", "any", "null", "expression", "number", "the text of the marker"],
)
@pytest.mark.parametrize("path", ["", "a.", "a.b.c.d.e."])
def test_no_pattern_fits_a_field_that_is_missing(query: str, path: str) -> None:
    assert not takes(path + query, metadata={"a": {"b": {"c": {"d": {"e": {}}}}}, "other": "o"})
