"""What a filter costs for one event, and what becomes of an event for which that is too much."""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from logpipe.event import LEVELS, StoredEvent, read_entry
from logpipe.filters import parse_filter
from logpipe.filters.predicate import EXCEEDED, MAX_STEPS, predicate_of, verdict_of
from logpipe.filters.reading import MAX_QUERY, MAX_REGEXES, parse
from logpipe.filters.tree import And, Compare, Match, Node, Not, Or, Regex, Text, leaves
from logpipe.filters.values import MISSING, Steps, looked_up
from logpipe.ids import StreamId
from logpipe.metrics import Metrics
from tests import costs
from tests.helpers import fair_time
from tests.servers import Valkey, serving, subscribed
from tests.test_filters import naive

CALLS = 120_000
"""Functions that a filter calls for one event, at most: 30 ns each."""

ALONE = StoredEvent(source="api", message="hello", level="WARN")
LARGE = StoredEvent(
    source="api", message="hello", level="WARN", metadata={"a": ["x"] * 60_000, "b": 1}
)
"""An event for which a term on `a` that looks at all its values exceeds the bound."""


def calls(function: Callable[[], object]) -> int:
    """How many functions, of Python and of C, are called meanwhile: a cost without a clock."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def takes(query: str, event: StoredEvent) -> bool:
    accepts = parse_filter({"q": query}).predicate
    assert accepts is not None
    return accepts(event)


def steps_of(query: str, event: StoredEvent) -> int:
    """The steps that a filter takes for an event when they are counted from the first term on."""
    node = parse(query)
    assert node is not None
    steps = Steps(MAX_STEPS)
    verdict_of(node)(event, steps)
    return MAX_STEPS - steps.left


COUNTED = 'logpipe_limited_total{limit="filter_steps"}'


def limited() -> float:
    metrics = Metrics()
    before = EXCEEDED.events
    takes("a:y", LARGE)
    assert EXCEEDED.events == before + 1
    (line,) = (
        line for line in metrics.exposition().decode().splitlines() if line.startswith(COUNTED)
    )
    return float(line.split()[1])


# -- beyond the bound --------------------------------------------------------------------------


def test_an_event_that_costs_too_much_is_taken_and_counted() -> None:
    assert takes("a:y", LARGE)
    assert takes("-a:y", LARGE)
    assert limited() == 1


def test_an_event_within_the_bound_is_not_counted() -> None:
    before = EXCEEDED.events
    assert takes("a:x", LARGE)  # the first value is looked at, and no other
    assert not takes("-a:x", LARGE)
    assert not takes("b:2", LARGE)
    assert EXCEEDED.events == before


@pytest.mark.parametrize(
    ("query", "taken"),
    [
        ("a:y", True),
        ("NOT a:y", True),
        ("a:y hello", True),
        ("a:y bye", False),
        ("bye a:y", False),
        ("-a:y bye", False),
        ("a:y level:error", False),
        ("a:y level>=error", False),
        ("a:y source:web*", False),
        ("a:y b:2", False),
        ("a:y OR hello", True),
        ("a:y OR bye", True),
        ("-(a:y OR hello)", False),
        ("-(a:y bye)", True),
        ("(a:y OR bye) (a:z OR bye)", True),
        ("(a:y OR hello) bye", False),
        ("-(a:y hello)", True),
        ("a:y -b:1", False),
    ],
)
def test_an_unknown_term_decides_nothing_alone(query: str, taken: bool) -> None:
    assert takes(query, LARGE) is taken


@pytest.mark.parametrize("order", [1, -1])
def test_cheap_terms_are_known_after_a_costly_one(order: int) -> None:
    terms = ["a:y", "b:2"][::order]
    assert not takes(" ".join(terms), LARGE)


def test_words_are_known_beside_expressions_beyond_the_bound() -> None:
    message = "a" * 65_000
    costly = "/(?:[ab]?a?){20}b/ OR a:y"
    event = StoredEvent(message=message + " end", metadata={"a": ["x"] * 100})
    words = " ".join(f"{'a' * n}!" for n in range(1, 50))
    assert takes(f"({costly}) end", event)
    assert not takes(f"({costly}) end {words}", event)
    assert not takes(f"({costly}) -end", event)


def test_short_texts_are_searched_by_any_expression() -> None:
    before = EXCEEDED.events
    for expression in costs.EXPRESSIONS:
        query = " OR ".join(f"/{expression}{end}/" for end in ("", "y", "yx", "q"))
        assert takes(query, StoredEvent(message="ab" * 100)) in (True, False)
    assert EXCEEDED.events == before


def test_ordinary_expressions_search_long_messages() -> None:
    before = EXCEEDED.events
    message = "GET /api/users/7 200 in 3 ms " * 500
    assert not takes(r"/time.?out \d+/ /status 5\d\d/", StoredEvent(message=message))
    assert takes(r"/users\/\d+ \d+ in \d+ ms/", StoredEvent(message=message))
    assert EXCEEDED.events == before


def test_long_lists_of_words_are_compared_whole() -> None:
    before = EXCEEDED.events
    tags = [f"tag-{n}" for n in range(3_000)]
    assert takes("tags:tag-2999", StoredEvent(metadata={"tags": tags}))
    assert not takes("tags:tag-3000", StoredEvent(metadata={"tags": tags}))
    assert takes("sizes>2999", StoredEvent(metadata={"sizes": list(range(3_001))}))
    assert EXCEEDED.events == before


def test_a_path_is_looked_up_for_the_page_in_few_steps() -> None:
    value: dict[str, Any] = {"a": 1}
    for _ in range(100):
        value = {"a": value}
    assert looked_up({"a.b": {"c": 1}}, "a.b.c") == 1
    assert looked_up(value, "a." * 10 + "a") is not MISSING
    assert looked_up(value, "a." * 90 + "b") is MISSING


# -- the cost ------------------------------------------------------------------------------------


def test_the_worst_known_pairs_cost_a_bounded_number_of_steps() -> None:
    for name, query, event in costs.PAIRS:
        assert len(event) <= costs.EVENT_BYTES, name
        entry = read_entry(StreamId(1, 0), event)
        assert entry is not None
        assert steps_of(query, entry.event) <= MAX_STEPS, name


def test_the_worst_known_pairs_cost_a_bounded_number_of_calls() -> None:
    for name, query, event in costs.PAIRS:
        if "(" in name:
            continue  # RE2 is one call, whatever it takes
        entry, accepts = read_entry(StreamId(1, 0), event), parse_filter({"q": query}).predicate
        assert entry is not None
        assert accepts is not None
        assert calls(partial(accepts, entry.event)) <= CALLS, name


def test_all_worst_known_pairs_take_seconds_together() -> None:
    began = fair_time()
    for seconds, name in costs.measure(1):
        assert seconds < 3, name
    assert fair_time() - began < 30


heavy_texts = st.one_of(
    st.sampled_from(["", "x", "1", "nan", "1" * 300, "x0" * 200, " " * 300, "İ" * 50]),
    st.text(st.sampled_from("ax01.é"), max_size=6),
)
scalars = st.one_of(heavy_texts, st.sampled_from([0.1, 1.5e-300, 7, 2**70, 10**300, True, None]))
small = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["a", "a.a", "a.a.a", "b"]), inner, max_size=3),
    ),
    max_leaves=4,
)
contents = st.one_of(
    small, st.builds(lambda value, times: [value] * times, small, st.sampled_from([1, 17, 900]))
)


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {"a": value}
    return value


def fits(event: StoredEvent) -> bool:
    return len(json.dumps([event.message, event.metadata])) <= costs.EVENT_BYTES


events = st.builds(
    lambda message, times, a, b, depth: StoredEvent(
        source="api",
        message=message * times,
        level="WARN",
        metadata={"a": nested(a, depth), "b": b},
    ),
    heavy_texts,
    st.sampled_from([1, 30, 200]),
    contents,
    contents,
    st.sampled_from([0, 0, 3, 60]),
).filter(fits)

fields = st.sampled_from(["a", "b", "a.a", "a." * 9 + "a", "a." * 40 + "b", "message", "missing"])
parts = st.sampled_from(["x", "x0", "0x" * 9 + "y", "1", "0.1", "É", "i̇"])
terms: st.SearchStrategy[Node] = st.one_of(
    st.builds(Text, st.lists(parts, min_size=1, max_size=3).map(tuple)),
    st.builds(Match, fields.filter(lambda name: name != "message"), parts.map(lambda p: (p,))),
    st.builds(
        Match,
        fields.filter(lambda name: name != "message"),
        st.lists(parts, min_size=1, max_size=4).map(lambda found: ("", *found, "")),
    ),
    st.builds(Compare, fields, st.sampled_from([">", "<="]), st.sampled_from([0.5, 1e300])),
    st.builds(Regex, fields, st.sampled_from(["x[ax]{20}y", "x.*y", r"^\d+$", "0"])),
    st.builds(Match, st.just("source"), st.sampled_from([("api",), ("", "x", "")])),
    st.builds(Compare, st.just("level"), st.just(">="), st.sampled_from(LEVELS)),
)


def within(node: Node) -> bool:
    found = list(leaves(node))
    return (
        len(str(node)) <= MAX_QUERY
        and sum(isinstance(leaf, Regex) for leaf in found) <= MAX_REGEXES
    )


filters = st.one_of(
    st.lists(terms, min_size=1, max_size=3)
    .flatmap(lambda few: st.sampled_from([1, 8, 20]).map(lambda times: (few * times)[:60]))
    .map(lambda found: Or(tuple(found)) if len(found) > 1 else found[0]),
    st.recursive(
        terms,
        lambda inner: st.one_of(
            inner.map(Not),
            st.lists(inner, min_size=2, max_size=3).map(lambda found: And(tuple(found))),
            st.lists(inner, min_size=2, max_size=3).map(lambda found: Or(tuple(found))),
        ),
        max_leaves=8,
    ),
).filter(within)


@settings(max_examples=150, deadline=None)
@given(filters, events)
def test_no_pair_that_is_searched_for_costs_more(node: Node, event: StoredEvent) -> None:
    accepts, steps = predicate_of(node), Steps(MAX_STEPS)
    verdict_of(node)(event, steps)
    count = calls(lambda: accepts(event))
    target(float(count), label="calls")
    target(float(MAX_STEPS - steps.left), label="steps")
    assert 0 <= steps.left <= MAX_STEPS
    assert count <= CALLS


@settings(max_examples=150, deadline=None)
@given(filters, events)
def test_no_event_is_left_out_that_has_to_be_taken(node: Node, event: StoredEvent) -> None:
    before = EXCEEDED.events
    taken = predicate_of(node)(event)
    assert predicate_of(node)(event) is taken
    unbounded = verdict_of(node)(event, Steps(10**9))
    if EXCEEDED.events == before:
        assert taken is unbounded
    else:
        assert taken
    values = list(event.metadata.values())
    paths = [leaf.field for leaf in leaves(node) if not isinstance(leaf, Text)]
    if not any("." in path for path in paths) and "{" not in json.dumps(values):
        assert unbounded is naive(node, event)


# -- in a server -----------------------------------------------------------------------------------


async def test_a_reader_gets_an_event_that_its_filter_cannot_judge(valkey: Valkey) -> None:
    costly = {"source": "a", "message": "costly", "metadata": {"a": [""] * 21_000}}
    query = " OR ".join(f"a>{number}" for number in range(1_000, 1_064))
    async with (
        serving(redis_addr=valkey.url) as service,
        subscribed(service.url, q=query) as reader,
    ):
        assert (await reader.next()).event == "hello"
        for event in ({"source": "a", "message": "other"}, costly):
            assert (await service.http.post("/ingest", json=event)).status_code == 202
        (live,) = await reader.until(1)
        history = (await service.http.get("/events", params={"q": query})).json()["events"]
        metrics = (await service.http.get("/metrics")).text
    assert live["message"] == "costly"
    assert [event["message"] for event in history] == ["costly"]
    (line,) = (each for each in metrics.splitlines() if each.startswith(COUNTED))
    # Live and from the history; once more where the live reader had to go on by itself.
    assert float(line.removeprefix(COUNTED)) in (2, 3)
