"""Events as lines: what a person sees, and what a terminal is never told."""

import json
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import width

from logpipe.continuity import Gap, Reason
from logpipe.event import LEVELS, Entry, StoredEvent
from logpipe.ids import StreamId
from logpipe.terminal import (
    LEVEL_STYLES,
    LONG_WORD,
    MIN_WIDTH,
    STYLES,
    Printer,
    caret_lines,
    local_time,
    metadata_text,
    printable,
    printable_json,
    wrapped,
)
from tests.hostile import HOSTILE

SGR = re.compile(r"\x1b\[[0-9;]*m")
TEXT = st.text(max_size=300) | st.sampled_from(HOSTILE)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def entry(message: str = "m", source: str = "s", level: str = "INFO", **given: Any) -> Entry:
    event = StoredEvent(source, message, level, given.get("ts", 0), given.get("metadata", {}))
    return Entry(StreamId(0, 1), b"{}", event)


def lines(*entries: Entry, columns: int | None = None, **look: bool) -> list[str]:
    text = Printer(**look).entries(entries, columns)
    assert text.endswith("\n")
    found = text.split("\n")[:-1]
    return [line for line in found if "── " not in line] if columns else found


def is_harmless(text: str) -> bool:
    return all(
        unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")
        for c in text.replace("\n", "").replace("\u200d", "")
    )


@given(
    TEXT, TEXT, TEXT, st.dictionaries(TEXT, JSON, max_size=4), st.integers(1, 120), st.booleans()
)
@settings(max_examples=300, deadline=None)
def test_lines_fit_and_have_no_control_characters(
    message: str, source: str, level: str, metadata: dict[str, Any], columns: int, cut: bool
) -> None:
    shown = Printer(color=True, cut=cut)
    text = shown.entries([entry(message, source, level, metadata=metadata)], columns)
    assert is_harmless(SGR.sub("", text))
    for line in text.split("\n"):
        assert width(line) <= max(columns, MIN_WIDTH)
    assert not cut or len(text.split("\n")) <= 3  # the day's, the event's, what is after its end
    piped = Printer(cut=cut).entries([entry(message, source, level, metadata=metadata)], None)
    assert is_harmless(piped)
    assert "\x1b" not in piped


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_shown_and_not_obeyed(text: str) -> None:
    for columns in (None, 40, 200):
        told = "\n".join(lines(entry(text, text[:50] or "s", text[:20]), columns=columns))
        assert is_harmless(told)


def test_escapes_say_what_was_there() -> None:
    assert printable("\x1b[2J\x00\u202e\U000e0001\x9b\r\n") == (
        "\\x1b[2J\\x00\\u202e\\U000e0001\\x9b\\r\\n"
    )
    assert printable("é 漢字 עברית\xa0\u3000") == "é 漢字 עברית\xa0\u3000"


@given(TEXT)
def test_printable_json_is_the_same_value(text: str) -> None:
    shown = printable_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(shown) == text
    assert shown.isprintable()


def test_joined_pictures_stay_one_and_other_joiners_show() -> None:
    family = "👩\u200d👩\u200d👧"
    assert printable(f"{family}!\n") == f"{family}!\\n"
    assert printable("a\u200db") == "a\\u200db"


def test_a_message_cannot_fake_a_line_of_another_event() -> None:
    forged = "ok\n16:00:00.000 FATAL root     gone\rover"
    first, second = lines(entry(forged), columns=100)
    assert first.endswith(" ok")
    assert re.fullmatch(r" {28}16:00:00.000 FATAL root     gone\\rover", second)


def test_columns_are_aligned_for_what_comes_together() -> None:
    found = lines(entry("one", "a"), entry("two", "a-longer-name"), entry("漢", "漢字漢字漢字"))
    places = [
        width(line[: line.index(word)])
        for line, word in zip(found, ("one", "two", "漢 "), strict=False)
        if word in line
    ]
    assert len(set(places)) == 1


def test_the_source_grows_with_what_was_seen_up_to_a_bound() -> None:
    printer = Printer()

    def line(source: str, columns: int | None) -> str:
        return printer.entries([entry("M", source)], columns).split("\n")[-2]

    before = line("a", 100).index("M")
    line("a" * 15, 100)
    assert line("a", 100).index("M") == before + 15 - 8
    assert f" {'b' * 23}… M" in line("b" * 200, 200)
    assert f" {'b' * 200} M" in line("b" * 200, None)


def test_a_long_message_hangs_beneath_its_column() -> None:
    first, *rest = lines(entry("word " * 40), columns=70)
    indent = first.index("word")
    assert len(rest) > 2
    assert all(re.fullmatch(rf" {{{indent}}}word.*", line) for line in rest)
    assert all(len(line) <= 70 for line in (first, *rest))


def test_indented_lines_of_a_message_stay_indented() -> None:
    first, second, third = lines(entry("Traceback:\n  File x\n\tcode\n"), columns=80)
    at = first.index("Traceback")
    assert (second[at:], third[at:]) == ("  File x", "    code")


def test_a_narrow_terminal_has_the_message_beneath_the_columns() -> None:
    head, *rest = lines(entry("some words that are wrapped"), columns=30)
    assert head.split() == [local_time(entry())[1], "INFO", "s"]
    assert [line[:4] for line in rest] == ["    "] * len(rest)
    assert " ".join(" ".join(rest).split()) == "some words that are wrapped"


def test_metadata_follows_the_message_or_goes_beneath() -> None:
    told = {"region": "eu", "http": {"status": 500, "path": "/a b"}, "tags": ["x"], "none": None}
    assert metadata_text(told) == (
        'region=eu http.status=500 http.path="/a b" tags=["x"] none=null'
    )
    (line,) = lines(entry("short", metadata={"a": 1}), columns=80)
    assert line.endswith("short  a=1")
    *_, last = lines(entry("x" * 50, metadata={"a": "b" * 20}), columns=80)
    assert last.strip() == f"a={'b' * 20}"
    *_, last = lines(entry("a\nb", metadata={"a": 1}))
    assert last.strip() == "a=1"
    (line,) = lines(entry("", metadata={"a": 1}), columns=80)
    assert line.endswith("s        a=1")


def test_metadata_as_deep_as_it_is_allowed_is_shown() -> None:
    deep: dict[str, Any] = {}
    for _ in range(511):
        deep = {"a": deep}
    assert metadata_text(deep).startswith("a.a.a.a")


def test_cut_gives_an_event_one_line() -> None:
    (line,) = lines(entry("one\ntwo " + "x" * 70_000, metadata={"a": 1}), columns=60, cut=True)
    assert "one\\ntwo x" in line
    assert line.endswith("x…")
    assert width(line) == 60
    (line,) = lines(entry("one\ntwo", metadata={"a": 1}), cut=True)
    assert line.endswith("one\\ntwo  a=1")


def test_the_longest_words_are_wrapped_at_once() -> None:
    for word in ("x" * 60_000, "漢" * 20_000):
        found = wrapped(f"a {word} b", 59)
        assert "".join(found).replace(" ", "") == f"a{word}b"
        assert max(map(width, found)) <= 59
    assert wrapped("y" * (LONG_WORD - 1), 100)[0] == "y" * 100


def test_times_are_local_or_those_of_the_id() -> None:
    at = StreamId(1710000000123, 0)
    told = local_time(Entry(at, b"", StoredEvent(ts_unix_ms=None)))
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.123", told[1])
    assert told == local_time(entry(ts=1710000000123))
    assert local_time(entry(ts=10**30)) == ("????-??-??", "??:??:??.000")


def test_a_new_day_is_a_line_on_a_terminal_else_a_column() -> None:
    day, time = local_time(entry())
    printer = Printer()
    first = printer.entries([entry(), entry()], 80).split("\n")
    assert [line == f"── {day} ──" for line in first] == [True, False, False, False]
    assert Printer().entries([entry()], None).startswith(f"{day} {time} INFO")


def test_colours_are_for_those_who_want_them() -> None:
    plain = lines(entry(metadata={"a": 1}), columns=80)
    colored = lines(entry(metadata={"a": 1}), columns=80, color=True)
    assert SGR.sub("", colored[0]) == plain[0]
    assert f"\x1b[{LEVEL_STYLES['INFO']}mINFO\x1b[0m" in colored[0]
    assert colored[0].endswith("\x1b[2ma=1\x1b[0m")
    assert set(LEVEL_STYLES) == set(LEVELS)


@pytest.mark.parametrize("style", [*LEVEL_STYLES.values(), *STYLES.values()])
def test_colours_are_readable_on_black_and_on_white(style: str) -> None:
    """By the contrast of WCAG 2; dim text is the terminal's own colour."""
    inks = re.findall(r"38;5;(\d+)", style)
    grounds = re.findall(r"48;5;(\d+)", style)
    for ink in inks:
        for ground in [_luminance(int(grounds[0]))] if grounds else [0.0, 1.0]:
            low, high = sorted((_luminance(int(ink)), ground))
            assert (high + 0.05) / (low + 0.05) > 3.3


def _luminance(color: int) -> float:
    steps = (0, 95, 135, 175, 215, 255)
    red, green, blue = (steps[(color - 16) // by % 6] / 255 for by in (36, 6, 1))
    linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04 else c / 12.92 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("reason", "count", "told"),
    [
        ("trimmed", 213, "213 events are missing: trimmed before they could be read"),
        ("trimmed", 1, "1 event is missing: trimmed before they could be read"),
        ("slow", 1234, "1,234 events are missing: skipped, this reader was too slow"),
        ("reset", None, "an unknown number of events is missing: the stream was emptied or rep"),
    ],
)
def test_a_gap_is_a_sentence(reason: Reason, count: int | None, told: str) -> None:
    gap = Gap(reason, StreamId(1710, 0), StreamId(1712, 0), count, StreamId(1711, 9))
    line = Printer().gap(gap, None)
    assert line.startswith(f"── {told}")
    assert line.endswith(" (1710-0 … 1712-0) ──\n")
    narrow = Printer(color=True).gap(gap, 40)
    assert max(map(width, narrow.split("\n"))) <= 40


def test_a_reason_that_is_not_known_is_shown_and_not_obeyed() -> None:
    reason: Any = "\x1b]0;mine\x07"
    gap = Gap(reason, StreamId(1710, 0), StreamId(1712, 0), 1, StreamId(1711, 9))
    assert "missing: \\x1b]0;mine\\x07 (1710-0" in Printer().gap(gap, None)


def test_a_caret_stands_beneath_the_place_whatever_is_before_it() -> None:
    query, caret = caret_lines("漢\x1b level:", 3)
    assert query[: len("漢\\x1b ")] == "漢\\x1b "
    assert width(caret) == width("漢\\x1b ") + 1
