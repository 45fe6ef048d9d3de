import os
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logpipe.event import StoredEvent, read_entry
from logpipe.filters import EVERYTHING, Filter, parse_filter
from logpipe.filters.needed import SMALL_BYTES
from logpipe.filters.raw import _FOLDED_TO_ASCII, LARGE_BYTES
from logpipe.filters.tree import Node
from logpipe.ids import StreamId
from tests.filtering import events, hostile_json, nodes

EXAMPLES = int(os.environ.get("EXAMPLES", "500"))


def may_match(query: str, raw: bytes) -> bool:
    judge = parse_filter({"q": query}).may_match
    assert judge is not None
    return judge(raw)


def written(message: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"source": "api", "message": message, **fields})


@settings(max_examples=EXAMPLES, deadline=None)
@given(nodes, events, st.integers(0, 2**32))
def test_no_event_that_a_filter_takes_is_skipped(node: Node, event: StoredEvent, seed: int) -> None:
    chosen = Filter(str(node))
    judge, accepts = chosen.may_match, chosen.predicate
    assert accepts is not None
    for raw in (msgspec.json.encode(event), hostile_json(event, seed)):
        entry = read_entry(StreamId(1, 0), raw)
        if judge is not None and not judge(raw):
            assert entry is None or not accepts(entry.event), (chosen.query, raw)


@settings(max_examples=EXAMPLES, deadline=None)
@given(nodes, st.lists(events, min_size=2, max_size=40), st.integers(0, 2**32))
def test_events_are_rejected_together_only_where_each_is(
    node: Node, given_events: list[StoredEvent], seed: int
) -> None:
    judge = Filter(str(node)).may_match
    if judge is None:
        return
    raws = [hostile_json(event, seed + at) for at, event in enumerate(given_events)]
    for separator in (b"\n", b" " * LARGE_BYTES):
        if not judge(separator.join(raws)):
            assert not any(map(judge, raws)), raws


@pytest.mark.parametrize("size", [0, LARGE_BYTES, 3 * LARGE_BYTES])
@pytest.mark.parametrize("word", ["reset", "connection_reset_by_peer", "%", "kk", "stra\u00dfe"])
def test_words_are_found_wherever_they_are_in_a_text(word: str, size: int) -> None:
    for before in (0, size // 2, size):
        for spelled in (word, word.upper(), word.title()):
            filled = "-" * before + spelled + "-" * (size - before)
            assert may_match(f'"{word}"', written(filled))
            assert may_match(f'"{word}"', written(filled + " \u4e2d"))
    rejected = "-" * size + word[:-1] + "-" + word[1:]
    assert not may_match(f'"{word}"', written(rejected))
    assert not may_match(f'"{word}"', written(rejected + " \u4e2d"))
    assert may_match(f'"{word}"', written(rejected)[:-1] + rb',"a":"\u0041"}')
    assert not may_match(f'"{word}"', written(rejected)[:-1] + rb',"a":"\n\\"}')


@pytest.mark.parametrize(
    ("query", "raw"),
    [
        ("timeout", written("all is well")),
        ("timeout", written("größer")),
        ("größe", written("all is well")),
        ("größe", written("maß")),
        ("time*out", written("without")),
        ("/healthz", written("GET /")),
        ('"a \\"word\\""', written('a "letter"')),
        ("level:error", written("an ERROR")),
        ("level>=error", written("m", level="WARN")),
        ("source:web", written("the web")),
        ("source:web*", written("other")),
        ("region:eu-west", written("m", metadata={"region": "eu-east"})),
        ("status:500", written("m", metadata={"code": 500})),
        ("trace_id:*", written("m", metadata={"span_id": 1})),
        ("took_ms>5", written("m", metadata={"size": 9})),
        ("refused OR reset", written("closed")),
        ("(refused OR reset) level:error", written("reset")),
        ("reset -(a OR b)", written("closed")),
    ],
)
def test_events_without_the_words_are_rejected_undecoded(query: str, raw: bytes) -> None:
    entry = read_entry(StreamId(1, 0), raw)
    accepts = parse_filter({"q": query}).predicate
    assert entry is not None
    assert accepts is not None
    assert not accepts(entry.event)
    assert not may_match(query, raw)


@pytest.mark.parametrize("query", ["-reset", "/re.et/", "level:info", "*", "reset OR -x", r"\"\\"])
def test_filters_without_certain_words_have_no_early_check(query: str) -> None:
    assert parse_filter({"q": query}).may_match is None
    assert EVERYTHING.may_match is None


@pytest.mark.parametrize(
    ("query", "raw"),
    [
        ("reset", rb'{"message":"\u0072eset"}'),
        ("/healthz", rb'{"message":"\/healthz"}'),
        ("kilo", '{"message":"\u212ailo"}'.encode()),
        ("miss", '{"message":"mi\u017f\u017f"}'.encode()),
        ("strasse", '{"message":"stra\u00dfe"}'.encode()),
        ("STRAẞE", b'{"message":"strasse"}'),
        ("fin", '{"message":"\ufb01n"}'.encode()),
        ("i\u0307", '{"message":"\u0130"}'.encode()),
        ("ok", b'{"message":"no","message":"OK"}'),
        ("level>=warn", b'{"level":"ERROR"}'),
        ("status:1_0", b'{"metadata":{"status":10}}'),
        ("status:5*0", b'{"metadata":{"status":500}}'),
        ("x:*one*", b'{"metadata":{"x":[[null]]}}'),
    ],
)
def test_other_ways_to_write_the_words_are_found(query: str, raw: bytes) -> None:
    entry = read_entry(StreamId(1, 0), raw)
    accepts = parse_filter({"q": query}).predicate
    assert entry is not None
    assert accepts is not None
    assert accepts(entry.event)
    assert may_match(query, raw)


def test_large_events_are_rejected_by_words_but_not_by_fields() -> None:
    raw = written("m" * SMALL_BYTES)
    assert may_match("region:eu-west", raw)
    assert not may_match("region:eu-west word", raw)
    assert not may_match("word", raw)


def test_fields_of_a_filter_with_many_conditions_are_not_looked_for() -> None:
    many = " ".join(f"a{n}:value" for n in range(20))
    assert parse_filter({"q": many}).may_match is None
    for query in ("a.b.c.d.e:value", "a:/expression/", "a:1*2*3*4", "a:value /a.{20}b/ /b.{20}c/"):
        assert parse_filter({"q": query}).may_match is None
    assert not may_match(f"{many} word", written("m"))


def test_bytes_that_are_not_text_are_left_to_the_decoder() -> None:
    assert may_match("sas", b'{"message":"s\xff"}')


def test_the_letters_that_other_characters_fold_to_are_known() -> None:
    others = map(chr, range(128, sys.maxunicode + 1))
    assert {part for each in others for part in each.casefold() if part.isascii()} == set(
        _FOLDED_TO_ASCII
    )
