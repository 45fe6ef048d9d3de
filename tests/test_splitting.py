import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.splitting import MAX_INDENT, Piece, split


def texts(body: bytes) -> list[bytes]:
    return [piece.text for piece in split(body)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", []),
        (b" \r\n\t", []),
        (b'{"a":1}{"b":[2]} {"c":{}}', [b'{"a":1}', b'{"b":[2]}', b'{"c":{}}']),
        (b'{"a":"}{\\"\\\\"}\n[1]\n"x"\n12', [b'{"a":"}{\\"\\\\"}', b"[1]", b'"x"', b"12"]),
        (b' [ {"a":1} ,[2],"x",3 ] ', [b'{"a":1}', b"[2]", b'"x"', b"3"]),
        (b'[{"a":1}]\n{"b":2}', [b'{"a":1}', b'{"b":2}']),
        (b"[1,\n]", [b"1"]),
        (b"{not} {json}", [b"{not}", b"{json}"]),
        (b"{not} json\n{}", [b"{not} json", b"{}"]),
        (b"[1] [2] x\n{}", [b"1", b"[2] x", b"{}"]),
        (b'{}\n[error] {"a":1}\n{}', [b"{}", b'[error] {"a":1}', b"{}"]),
        (b"12 Jan x\n404\n", [b"12 Jan x", b"404"]),
        (b'{"a":"x\ny"}', [b'{"a":"x', b'y"}']),
        (b'{"a":\n1}\n{"b":\n\n{}', [b'{"a":\n1}', b'{"b":', b"{}"]),
        (b"\xff\xfe x\n{}", [b"\xff\xfe x", b"{}"]),
    ],
)  # fmt: skip
def test_values_and_malformed_lines_are_pieces_in_order(body: bytes, expected: list[bytes]) -> None:
    assert texts(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{}{"a\n{}', [Piece(b"{}"), Piece(b'{"a', 2), Piece(b"{}")]),
        (b'{}\n {"a\n', [Piece(b"{}"), Piece(b'{"a')]),
        (b'{}{"a{}', [Piece(b"{}"), Piece(b'{"a{}', 2)]),
        (b'\n\n{"a{}', [Piece(b'{"a{}', 2)]),
        (b'[{},{"a},{}]', [Piece(b"{}"), Piece(b'{"a},{}]', 4)]),
        (b'[{},\n{"a},\n{}]', [Piece(b"{}"), Piece(b'{"a},'), Piece(b"{}")]),
        (b'[{}\n,{"a}\n,{}\n]', [Piece(b"{}"), Piece(b'{"a}'), Piece(b"{}")]),
        (b"[{}", [Piece(b"{}"), Piece(b"", 3)]),
        (b'[\n{},\n{"a', [Piece(b"{}"), Piece(b'{"a')]),
    ],
)
def test_text_that_may_hold_several_values_says_where_it_begins(
    body: bytes, expected: list[Piece]
) -> None:
    assert list(split(body)) == expected


def printed(style: Any, values: list[Any]) -> bytes:
    return "\n".join(json.dumps(value, indent=style) for value in values).encode()


@pytest.mark.parametrize("style", [1, 2, 4, "\t"])
def test_a_malformed_value_over_several_lines_is_one_piece(style: Any) -> None:
    values = [{"a": 1}, {"b": [{"c": "x"}, {}], "d": 2}, {"e": [1, 2]}]
    good = [json.dumps(value, indent=style).encode() for value in values]
    bad = printed(style, values).replace(b'"x"', b'"x')
    assert texts(bad) == [good[0], good[1].replace(b'"x"', b'"x'), good[2]]
    assert texts(printed(style, values).replace(b"\n}\n", b"\n\n", 1))[1:] == good[1:]
    array = json.dumps(values, indent=style).replace('"x"', '"x').encode()
    assert len(texts(array)) == 3


def test_a_malformed_value_between_brackets_as_javascript_prints_them() -> None:
    assert texts(b'[{\n  "a: 1\n}, {\n  "b": 2\n}]') == [b'{\n  "a: 1\n},', b'{\n  "b": 2\n}']


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, max_size=4), st.sampled_from([None, 1, 2, "\t"]), st.booleans())
def test_an_array_is_its_elements(elements: list[Any], indent: Any, ascii_only: bool) -> None:
    body = json.dumps(elements, indent=indent, ensure_ascii=ascii_only).encode()
    assert [json.loads(piece.text) for piece in split(body)] == elements


@given(
    st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=4),
    st.sampled_from([None, 1, 2, "\t"]),
    st.sampled_from(["", " ", "\n", "\r\n"]),
)
def test_objects_one_after_another_are_pieces(
    objects: list[Any], indent: Any, between: str
) -> None:
    body = between.join(json.dumps(each, indent=indent) for each in objects).encode()
    assert [json.loads(piece.text) for piece in split(body)] == objects


@given(st.binary() | st.text(alphabet='{}[]",:\\ \t\n\r1x').map(str.encode))
def test_the_pieces_of_any_bytes_leave_nothing_out(body: bytes) -> None:
    outside = b" \t\r\n,[]"
    kept = b"".join(piece.text for piece in split(body)).translate(None, outside)
    assert kept == body.translate(None, outside)


SIZE = 256 * 1024


def full_of(thing: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return before + thing * (SIZE // len(thing)) + after


STAIRS = b"\n".join(b" " * depth + b"[1," for depth in range(500))


@pytest.mark.parametrize(
    "body",
    [
        full_of(b"{\n"),
        full_of(b"["),
        full_of(b"[1,\n"),
        full_of(b'{"a'),
        full_of(b'{"a\n'),
        full_of(b'{"a":\n'),
        full_of(b'{"a":"b}\n{"a":"b"}\n'),
        full_of(b'\\"', b'"'),
        full_of(b'"'),
        full_of(b"{}{x}"),
        full_of(b"{}", STAIRS + b"\n"),
        full_of(b"{},", STAIRS + b"\n[[\n", b"x"),
        full_of(STAIRS + b"\n"),
        full_of(STAIRS + b"]" * 500 + b"x\n"),
        full_of(b" x\n", b"{\n"),
        full_of(b"".join(b" " * (depth % MAX_INDENT) + b"{\n" for depth in range(1_000))),
        full_of(b"\n", b"{", b"}x"),
        full_of(b" ", b"{\n", b"}x"),
        full_of(b"1 "),
        full_of(b"{} x\n"),
    ],
    ids=range(20),
)
def test_hostile_bodies_take_linear_time_and_memory(body: bytes) -> None:
    begun = time.process_time()
    for _ in split(body):
        pass
    assert time.process_time() - begun < 8
    tracemalloc.start()
    for _ in zip(range(1_000), split(body), strict=False):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * len(body)
