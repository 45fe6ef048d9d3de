"""Bytes into lines, in bounded memory, and lines into events."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.send.lines import (
    MAX_LINE_BYTES,
    MAX_TEXT_BYTES,
    Kind,
    Line,
    NotAnEventError,
    Shaper,
    Splitter,
    leading_level,
)
from tests.decoding import decode_ndjson

LIMIT = 8
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b"\x00\xff", b"", b"long line "])
TEXTS = st.lists(ENDS, max_size=40).map(b"".join)


def lines_of(pieces: list[bytes]) -> tuple[list[Line], list[int]]:
    """The lines of bytes that come in these pieces, and the offsets after each."""
    splitter = Splitter(LIMIT)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    lines += splitter.rest()
    offsets, at = [], 0
    for line in lines:
        at += line.size
        offsets.append(at)
    return lines, offsets


@given(TEXTS, st.data())
def test_lines_and_offsets_do_not_depend_on_chunks(text: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert lines_of(pieces) == lines_of([text])


@given(TEXTS)
def test_the_lines_are_those_between_line_ends_cut_at_the_limit(text: bytes) -> None:
    lines, offsets = lines_of([text])
    whole = text.split(b"\n")
    wanted = whole[:-1] if whole[-1] == b"" else whole
    assert [line.text for line in lines] == [each.removesuffix(b"\r")[:LIMIT] for each in wanted]
    assert (offsets[-1] if offsets else 0) == len(text)


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_what_is_pending_is_what_no_line_has_taken(pieces: list[bytes]) -> None:
    splitter = Splitter(LIMIT)
    fed = taken = 0
    for piece in pieces:
        taken += sum(line.size for line in splitter.feed(piece))
        fed += len(piece)
        assert splitter.pending == fed - taken
        assert len(splitter._begun) <= LIMIT + 1


def test_a_line_of_the_limit_is_whole_and_one_byte_more_is_cut() -> None:
    assert lines_of([b"x" * LIMIT + b"\r\n"])[0] == [Line(b"x" * LIMIT, LIMIT + 2)]
    assert lines_of([b"x" * LIMIT + b"y\n"])[0] == [Line(b"x" * LIMIT, LIMIT + 2)]


NOW = 1_710_000_000_000


def shaped(text: bytes, kind: Kind = "auto", **options: Any) -> Any:
    event = Shaper(kind, **options).event(Line(text, len(text) + 1), "here", NOW)
    return json.loads(event) if event else None


def test_text_becomes_a_message_with_source_level_and_time() -> None:
    wanted = {"source": "here", "level": "WARN", "ts_unix_ms": NOW, "message": " hello"}
    assert shaped(b" hello", level="warning") == wanted


@pytest.mark.parametrize("text", [b"", b"  ", b"\t"])
@pytest.mark.parametrize("kind", ["auto", "text", "json"])
def test_blank_lines_are_no_events(text: bytes, kind: Kind) -> None:
    assert shaped(text, kind) is None


@pytest.mark.parametrize("kind", ["auto", "json"])
def test_an_event_is_kept_and_given_a_missing_source(kind: Kind) -> None:
    event = b'{"source":"x","message":"m","metadata":{"a":[1,2]},"level":"odd"}'
    assert Shaper(kind, "ERROR").event(Line(event, 99), "here", NOW) == event
    assert shaped(b'{ "message": "m"}', kind) == {"source": "here", "message": "m"}


@pytest.mark.parametrize(
    "text", [b"{}", b'{"message":1}', b'{"msg":"pino"}', b"{half", b"{}{}", b'{"message":"m"} x']
)
def test_what_is_no_event_is_text_unless_it_has_to_be_one(text: bytes) -> None:
    assert shaped(text)["message"] == text.decode()


def test_text_is_text_where_that_is_asked_for() -> None:
    assert shaped(b'{"message":"m"}', "text")["message"] == '{"message":"m"}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"hello", "JSON is malformed"),
        (b'{"message":', "too early"),
        (b"[1]", "must be an object, not an array"),
        (b"{}{}", "source: is required"),
        (b'{"a":' * 2000, "JSON"),
    ],
)
def test_a_line_that_must_be_an_event_is_rejected_with_a_reason(text: bytes, why: str) -> None:
    with pytest.raises(NotAnEventError, match=why):
        shaped(text, "json")


def test_an_event_that_was_too_long_to_be_read_whole_is_refused() -> None:
    line = Line(b'{"message":"' + b"x" * (MAX_LINE_BYTES - 12), MAX_LINE_BYTES + 1)
    with pytest.raises(NotAnEventError, match="over 1048576"):
        Shaper("json").event(line, "here", NOW)


@given(st.binary(max_size=200), st.sampled_from(["auto", "text"]))
def test_binary_junk_is_an_event_that_the_collector_takes(text: bytes, kind: Kind) -> None:
    event = Shaper(kind).event(Line(text, len(text)), "here", NOW)
    events, refusals = decode_ndjson(event)
    assert refusals == []
    assert b"\n" not in event
    assert len(events) == (1 if text.strip() else 0)


@pytest.mark.parametrize("character", ["x", '"', "\x01", "漢", "\U0001f600"])
def test_a_long_line_is_cut_and_says_how_long_it_was(character: str) -> None:
    shaper = Shaper()
    text = (character * 70_000).encode()
    event = shaper.event(Line(text, len(text) + 1), "here", NOW)
    found = json.loads(event)
    assert found["message"].rstrip("…") == character * (len(found["message"]) - 1)
    assert found["metadata"] == {"cut_from_bytes": len(text) + 1}
    assert MAX_TEXT_BYTES * 0.99 < len(event) < 65_536
    assert shaper.cut == 1


def test_a_line_of_the_bound_is_whole_and_one_byte_more_is_cut() -> None:
    shaper = Shaper()
    room = MAX_TEXT_BYTES - 2  # the quotes
    assert b"cut_from" not in shaper.event(Line(b"x" * room, room), "here", NOW)
    assert b"cut_from" in shaper.event(Line(b"x" * (room + 1), room + 1), "here", NOW)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("ERROR it broke", "ERROR"),
        ("[warning] careful", "WARN"),
        ("warn: careful", "WARN"),
        ("2024-03-01T12:00:00.123Z  CRIT down", "FATAL"),
        ("2024-03-01 12:00:00,123 [DEBUG] x", "DEBUG"),
        ("INFO", "INFO"),
        ("error is what began this sentence", None),
        ("Default route is up", None),
        ("ERRORS happen", None),
        ("GET / 200", None),
        ("main[3]: ERROR", None),
        ("", None),
    ],
)
def test_the_level_that_a_line_begins_with(text: str, level: str | None) -> None:
    assert leading_level(text) == level
    if text:
        assert shaped(text.encode(), detect=True, level="fatal")["level"] == (level or "FATAL")
        assert shaped(text.encode(), level="fatal")["level"] == "FATAL"
