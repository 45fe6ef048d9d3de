"""What compiled filters take of memory, and what a filter costs before it is used."""

import gc
import json
import subprocess
import sys

import pytest

from logpipe.event import StoredEvent
from logpipe.filters import FilterError, parse_filter
from logpipe.filters.compiled import IDLE_BYTES, LOOKS, MAX_BYTES, Compiled, memory_of
from logpipe.filters.reading import MAX_QUERY, REGEX_MEMORY, FilterSyntaxError, parse
from tests.helpers import fair_time


def distinct(number: int, regexes: int = 1) -> str:
    return " OR ".join(f"/x{number}y{n}/" for n in range(regexes))


# -- what is kept ------------------------------------------------------------------------------


def test_a_filter_that_is_used_stays_compiled() -> None:
    used = {distinct(0), distinct(1)}
    compiled = Compiled(used.__contains__, idle_bytes=3 * REGEX_MEMORY)
    first = compiled.predicate(distinct(0))
    for number in range(1, 20):
        compiled.predicate(distinct(number))
    assert compiled.predicate(distinct(0)) is first


def test_filters_that_nobody_uses_are_forgotten_beyond_a_size() -> None:
    compiled = Compiled(lambda _: False, idle_bytes=3 * REGEX_MEMORY)
    for number in range(20):
        compiled.predicate(distinct(number))
        assert compiled.bytes <= 3 * REGEX_MEMORY
    assert len(compiled) == 2


def test_used_filters_are_made_again_beyond_a_size() -> None:
    compiled = Compiled(lambda _: True, max_bytes=3 * REGEX_MEMORY, idle_bytes=0)
    first = compiled.predicate(distinct(0))
    for number in range(1, 20):
        compiled.predicate(distinct(number))
        assert compiled.bytes <= 3 * REGEX_MEMORY
    again = compiled.predicate(distinct(0))
    assert again is not first
    assert again is not None
    assert again(StoredEvent(message="x0y0"))


def test_what_was_used_last_is_forgotten_last() -> None:
    compiled = Compiled(lambda _: False, idle_bytes=3 * REGEX_MEMORY)
    first = compiled.predicate(distinct(0))
    for number in range(1, 20):
        compiled.predicate(distinct(number))
        assert compiled.predicate(distinct(0)) is first


def test_a_new_filter_looks_at_few_of_those_in_use() -> None:
    looks = 0

    def in_use(query: str) -> bool:
        nonlocal looks
        looks += 1
        return True

    compiled = Compiled(in_use, idle_bytes=0)
    for number in range(500):
        compiled.predicate(f"w{number}")
    assert len(compiled) == 500
    assert looks <= 500 * LOOKS


def test_filters_without_a_user_are_found_among_those_in_use() -> None:
    used = {f"used{number}" for number in range(100)}
    compiled = Compiled(used.__contains__, idle_bytes=0)
    for number in range(100):
        compiled.predicate(f"idle{number}")
        compiled.predicate(f"used{number}")
    for number in range(100, 100 + 300 // LOOKS):
        used.add(f"used{number}")
        compiled.predicate(f"used{number}")
    assert len(compiled) == len(used)


def test_a_filter_is_one_object_while_it_is_used() -> None:
    one = parse_filter({"q": "level:warn   only-once"})
    assert parse_filter({"level": "warning", "text": "only-once"}) is one


def test_a_filter_larger_than_all_room_works() -> None:
    compiled = Compiled(lambda _: False, max_bytes=0, idle_bytes=0)
    accepts = compiled.predicate("a OR b")
    assert accepts is not None
    assert accepts(StoredEvent(message="b"))


def test_regular_expressions_weigh_most() -> None:
    def weight(query: str) -> int:
        node = parse(query)
        assert node is not None
        return memory_of(query, node)

    assert weight("word") < 10_000 < REGEX_MEMORY < weight("/a/") < weight("/a/ /b/")
    assert weight(distinct(1, 4)) * 200 < MAX_BYTES
    assert weight(" ".join(f"w{n:02}" for n in range(64))) < IDLE_BYTES / 10


GROWTH = """
import gc, json, sys
from logpipe.event import StoredEvent
from logpipe.filters import parse_filter

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

event = StoredEvent(message="abaabbab" * 60)
used = []
for number in range(-20, int(sys.argv[1])):
    query = " OR ".join(f"/(?:[ab]?a?){{8}}a[ab]{{1{n}}}z{number}/" for n in range(4))
    chosen = parse_filter({"q": query})
    chosen.predicate(event)
    if number % 5 == 0:
        chosen.highlight(event.message)
    if sys.argv[2] == "used":
        used.append(chosen)
    if number == -1:
        before = resident()
print(json.dumps(resident() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("use", "most"), [("once", 16_000_000), ("used", 1.5 * MAX_BYTES)])
def test_distinct_filters_take_a_bounded_memory(use: str, most: float) -> None:
    command = [sys.executable, "-c", GROWTH, "400", use]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout) < most


def test_a_filter_without_a_user_is_forgotten_with_the_next() -> None:
    query = distinct(4711, 4)
    chosen = parse_filter({"q": query})
    first = chosen.predicate
    for number in range(100):
        other = parse_filter({"q": distinct(number, 4)})
        assert other.predicate is not None
    assert chosen.predicate is first
    del chosen, other
    gc.collect()
    for number in range(100):
        assert parse_filter({"q": distinct(number, 4)}).predicate is not None
    assert parse_filter({"q": query}).predicate is not first


# -- what a filter costs before it is used -------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("-" * 1999 + "a", "words and signs"),
        (("(" * 31 + "a" + ")" * 31 + " ") * 31, "words and signs"),
        ("a " * 1000, "words and signs"),
        ("/x/ " * 500, "regular expressions"),
        ("/" + r"\pL" * 600 + "/", "too large"),
        ("/" + r"\pL" * 3 + "/", "too large"),
        ('"' + '\\"' * 900, "not closed"),
        ("((a{100}){100}){100}".join("//"), "not a regular expression"),
    ],
)
def test_a_filter_made_to_be_slow_is_refused_at_once(query: str, words: str) -> None:
    began = fair_time()
    for _ in range(20):
        with pytest.raises(FilterSyntaxError, match=words):
            parse(query[:MAX_QUERY])
    assert fair_time() - began < 5


@pytest.mark.parametrize("parameter", ["level", "source", "text", "q"])
def test_a_parameter_longer_than_a_filter_is_refused(parameter: str) -> None:
    with pytest.raises(FilterError, match="at most 2000 characters") as caught:
        parse_filter({parameter: "warn" + "," * MAX_QUERY + "x"})
    assert caught.value.parameter == parameter
    assert caught.value.position == (MAX_QUERY if parameter == "q" else None)


def test_quoted_and_escaped_parentheses_are_no_nesting() -> None:
    assert str(parse('"' + "(" * 40 + '" b')) == '"' + "(" * 40 + '" b'
    assert parse(r"\(" * 40) is not None
    with pytest.raises(FilterSyntaxError, match="levels deep"):
        parse(r"\" " + "(" * 33 + "a" + ")" * 33)
