"""Rows: events, gaps, and what is left out."""

import html
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.continuity import Gap
from logpipe.event import read_entry
from logpipe.filters import parse_filter
from logpipe.ids import StreamId
from logpipe.ui.rows import FOLD_CHARACTERS, FOLD_LINES, View, gap_row, left_out_row, row, view_of
from tests.hostile import HOSTILE
from tests.ui.pieces import ID, Seen, entry, messages_of


def test_a_row_shows_time_level_source_message_and_metadata() -> None:
    seen = Seen(
        row(
            entry(
                source="api",
                level="WARN",
                message="slow",
                ts_unix_ms=1710000000123,
                metadata={"region": "us-east-1", "n": 5, "deep": {"a": [1, None]}},
            )
        )
    )
    tag, attributes = seen.elements[0]
    assert (tag, attributes["class"], attributes["data-id"]) == ("div", "row warn", str(ID))
    assert seen.texts["when"] == "2024-03-09 16:00:00.123Z"
    assert seen.texts["level"] == "WARN"
    assert seen.texts["source"] == "api"
    assert seen.texts["meta"] == 'region=us-east-1 n=5 deep={"a":[1,null]}'
    assert seen.texts["message"].startswith("slow ")
    when = seen.elements[1][1]
    assert when["href"] == f"/?at={ID}"
    assert when["data-ms"] == "1710000000123"
    assert when["title"] == f"2024-03-09 16:00:00.123 UTC, id {ID}"


def test_a_row_holds_all_of_the_event_but_the_message() -> None:
    large = {"n": 10**30, "f": 1.5, '"': ["<b>"]}
    found = entry(source="a&b", level="AUDIT", message="not twice", metadata=large)
    facts = Seen(row(found)).elements[0][1]["data-event"]
    assert msgspec.json.decode(facts or "") == {
        "id": str(ID),
        "ts_unix_ms": None,
        "source": "a&b",
        "level": "AUDIT",
        "metadata": large,
    }


def test_a_level_of_ones_own_is_shown_and_names_no_class() -> None:
    seen = Seen(row(entry(level='X" ONLOAD="')))
    assert seen.elements[0][1]["class"] == "row other"
    assert seen.texts["level"] == 'X" ONLOAD="'


@pytest.mark.parametrize(
    ("event", "time"),
    [
        ({}, "2024-03-09 16:00:00.000Z"),
        ({"ts_unix_ms": 0}, "1970-01-01 00:00:00.000Z"),
        ({"ts_unix_ms": -1}, "1969-12-31 23:59:59.999Z"),
        ({"ts_unix_ms": 253402300799999}, "9999-12-31 23:59:59.999Z"),
        ({"ts_unix_ms": 10**18}, " 1000000000000000.000Z"),
        ({"ts_unix_ms": -(10**18)}, " -1000000000000000.000Z"),
        ({"ts_unix_ms": 10**4000}, f" {10**3997}.000Z"),
    ],
)
def test_any_time_that_another_writer_stored_is_shown(event: dict[str, Any], time: str) -> None:
    assert Seen(row(entry(**event))).texts["when"] == time


def test_any_metadata_that_another_writer_stored_is_shown() -> None:
    large = {"n": 10**30, "f": 1.5, "t": True, "<b>": "<i>"}
    assert Seen(row(entry(metadata=large))).texts["meta"] == f"n={10**30} f=1.5 t=true <b>=<i>"


def test_metadata_that_could_just_be_read_is_shown_or_left_out_where_the_stack_is_deeper() -> None:
    raw = b'{"metadata":{"deep":%b1%b}}' % (b"[" * 900, b"]" * 900)
    found = read_entry(ID, raw)
    assert found is not None

    def row_from_below(levels: int) -> str:
        return row_from_below(levels - 1) if levels else row(found, View(("deep",)))

    text = Seen(row_from_below(250)).texts["column"]
    assert text in ("…", f"{'[' * 900}1{']' * 900}")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_every_field(text: str) -> None:
    found = entry(source=text, level=text, message=text, metadata={text: text, "n": text})
    made = row(found, View((text, "n")))
    seen = Seen(made)
    tags = [tag for tag, _ in seen.elements if tag != "span"]
    assert tags in (["div", "a", "b"], ["div", "a", "b", "button"])  # that of a long message
    allowed = {
        "div": {"class", "data-id", "data-event"},
        "a": {"class", "href", "data-ms", "title"},
        "span": {"class", "data-key", "hidden"},
        "button": {"class", "type", "aria-expanded"},
        "b": {"class"},
    }
    for tag, attributes in seen.elements:
        assert set(attributes) <= allowed[tag]
    assert "<script" not in made
    assert seen.elements[1][1]["href"] == f"/?at={ID}"


def test_metadata_with_a_column_have_it_instead_of_their_place_behind_the_message() -> None:
    found = entry(metadata={"region": "eu", "http": {"status": 500}, "n": 1})
    html = row(found, View(("region", "http.status", "none")))
    columns = [a["data-key"] for _, a in Seen(html).elements if a.get("class") == "column"]
    assert columns == ["region", "http.status", "none"]
    assert Seen(html).texts["column"] == "eu500"
    assert Seen(html).texts["meta"] == 'http={"status":500} n=1'
    assert "meta" not in Seen(row(entry(metadata={"a": 1}), View(("a",)))).texts


def test_what_the_filter_found_is_marked() -> None:
    view = view_of(parse_filter({"q": "sl level:INFO"}), ())
    assert "<mark>sl</mark>ow" in row(entry(message="slow"), view)
    assert view_of(parse_filter({}), ["a"]) == View(("a",), None)


# -- long messages ----------------------------------------------------------------------------


def parts_of(message: str) -> tuple[str, str]:
    """The beginning that is shown, and the rest behind the button."""
    made = row(entry(message=message))
    shown, _, rest = made.partition('<button type="button" class="more"')
    rest = rest.partition('<span class="rest" hidden>')[2]
    begin = shown.partition('class="message">')[2]
    if not rest:
        return Seen(begin.removesuffix("</span></div>")).original, ""
    return Seen(begin).original, Seen(rest.removesuffix("</span></span></div>")).original


@pytest.mark.parametrize(
    ("message", "begin"),
    [
        ("x" * FOLD_CHARACTERS, FOLD_CHARACTERS),
        ("x" * (FOLD_CHARACTERS * 6 // 5), FOLD_CHARACTERS * 6 // 5),
        ("x" * (FOLD_CHARACTERS * 6 // 5 + 1), FOLD_CHARACTERS),
        ("x" * 65_536, FOLD_CHARACTERS),
        ("a\n" * FOLD_LINES, 2 * FOLD_LINES),
        ("a\n" * FOLD_LINES * 2, 2 * FOLD_LINES - 1),
        ("\n" * 100, FOLD_LINES - 1),
    ],
)
def test_a_long_message_shows_its_beginning_and_has_the_rest(message: str, begin: int) -> None:
    shown, rest = parts_of(message)
    assert len(shown) == begin
    assert shown + rest == message


def test_the_button_says_how_long_it_is() -> None:
    assert "show all 65,536 characters<" in row(entry(message="x" * 65_536))


@given(
    st.integers(FOLD_CHARACTERS - 60, FOLD_CHARACTERS + 2),
    st.sampled_from(["\x1b[31m", "\x1b[38;2;255;100;100m", "\r\n"]),
)
def test_a_message_is_not_folded_within_a_colour_or_a_line_end(at: int, piece: str) -> None:
    shown, rest = parts_of("x" * at + piece + "x" * FOLD_CHARACTERS)
    plain = piece.replace("\r\n", "\n") if piece == "\r\n" else ""
    assert shown + rest == "x" * at + plain + "x" * FOLD_CHARACTERS


@given(st.text("a\n\r\x1b[1m", max_size=100).map(lambda text: text * 40))
def test_however_it_is_folded_nothing_is_missing(message: str) -> None:
    shown, rest = parts_of(message)
    assert [each for each in shown + rest if each == "a"] == ["a"] * message.count("a")


def test_messages_of_rows_are_told_apart() -> None:
    assert messages_of(row(entry(message="a")) + row(entry(message="<b>"))) == ["a", "<b>"]


# -- gaps and samples -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "reason", "said"),
    [
        (1, "trimmed", "1 event is missing"),
        (12345, "slow", "12,345 events are missing"),
        (None, "reset", "An unknown number of events are missing"),
        (2, "other", "reason unknown"),
    ],
)
def test_a_gap_is_a_row_that_says_what_is_missing(
    count: int | None, reason: Any, said: str
) -> None:
    gap = Gap(reason, StreamId(1, 2), StreamId(3, 4), count, StreamId(3, 3))
    text = Seen(gap_row(gap)).texts["gap"]
    assert said in text
    assert "1-2" in text
    assert "3-4" in text


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (StreamId(7, 1), "after 7-1 and before 9-0"),
        (StreamId(7, 0).before(), "from 7-0 on and before 9-0"),
        (StreamId(0, 0), "missing before 9-0"),
    ],
)
def test_a_gap_names_ids_that_people_can_read(after: StreamId, said: str) -> None:
    gap = Gap("trimmed", after, StreamId(9, 0), None, StreamId(9, 0).before())
    assert said in Seen(gap_row(gap)).texts["gap"]


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 more event between"), (1234, "1,234 more events")]
)
def test_what_a_sample_leaves_out_is_a_row_with_the_way_to_it(count: int, said: str) -> None:
    made = left_out_row(count, StreamId(5, 0), StreamId(7, 1), '/?q="><script>')
    seen = Seen(made)
    assert said in seen.texts["left-out"]
    assert [a["href"] for tag, a in seen.elements if tag == "a"] == ['/?q="><script>']


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.text(), st.lists), max_size=4))
def test_any_metadata_reach_the_page_as_they_are(metadata: dict[str, Any]) -> None:
    raw = json.dumps({"metadata": metadata}).encode("utf-8", "surrogatepass")
    if (found := read_entry(ID, raw)) is not None:
        attribute = row(found).partition('data-event="')[2].partition('"')[0]
        facts = msgspec.json.decode(html.unescape(attribute))
        assert facts["metadata"] == found.event.metadata
