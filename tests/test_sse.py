import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logpipe.sse import HEARTBEAT, Parser, ServerSentEvent, comment, frame


def parse(*chunks: str) -> list[ServerSentEvent]:
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def split(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[left:right] for left, right in pairwise(edges)]


characters = st.characters(codec="utf-8")
hostile = st.text(st.one_of(st.sampled_from("\r\n: \0\ufeff\u2028\u0085\x0bdat"), characters))
names = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


@given(hostile, st.one_of(st.just(""), names), st.one_of(st.just(""), names), cuts)
@example("x\nid: 9\nevent: evil", "1-0", "gap", [])
@example("", "", "", [])
@example("\r\r\n\n", "1-0", "", [7, 8, 9])
def test_a_frame_is_parsed_back_whatever_it_holds_and_wherever_it_is_cut(
    data: str, id_: str, event: str, places: list[int]
) -> None:
    sent = frame(data.encode(), id=id_.encode(), event=event.encode()).decode()
    # A value that holds NUL is no id, by the standard.
    known = id_ if "\0" not in id_ else ""
    expected = ServerSentEvent(re.sub(r"\r\n?", "\n", data), event or "message", known)
    assert parse(*split(sent, places)) == [expected]


@given(st.lists(hostile, max_size=5), cuts)
def test_frames_in_a_row_stay_apart(datas: list[str], places: list[int]) -> None:
    sent = "".join(
        frame(data.encode(), id=b"%d-0" % number).decode() for number, data in enumerate(datas)
    )
    parsed = parse(*split(sent, places))
    assert [event.id for event in parsed] == [f"{number}-0" for number in range(len(datas))]
    assert [event.data for event in parsed] == [re.sub(r"\r\n?", "\n", data) for data in datas]


lines = st.lists(
    st.sampled_from(
        [
            "",
            "",
            "data: a",
            "data:",
            "data",
            "data:  b",
            "id: 1",
            "id",
            "event: e",
            "retry: 5",
            ":c",
        ]
    ),
    max_size=12,
)


@given(lines, st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=12, max_size=12), cuts)
def test_the_three_line_ends_and_all_cuts_give_the_same_events(
    written: list[str], ends: list[str], places: list[int]
) -> None:
    mixed = "".join(line + end for line, end in zip(written, ends, strict=False))
    # A `\r` right before the `\n` of an empty line would be one line end, not two.
    if len(re.findall(r"\r\n|\r|\n", mixed)) == len(written):
        assert parse(mixed) == parse("".join(line + "\n" for line in written))
    assert parse(*split(mixed, places)) == parse(mixed)


@given(st.text(), cuts)
def test_any_text_is_parsed_without_an_error_and_alike_in_any_pieces(
    text: str, places: list[int]
) -> None:
    assert parse(*split(text, places)) == parse(text)


def test_the_examples_of_the_standard() -> None:
    assert parse("data: YHOO\ndata: +2\ndata: 10\n\n") == [ServerSentEvent("YHOO\n+2\n10")]
    stream = (
        ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third\n\n"
    )
    assert parse(stream) == [
        ServerSentEvent("first event", id="1"),
        ServerSentEvent("second event"),
        ServerSentEvent(" third"),
    ]
    assert parse("data\n\ndata\ndata\n\ndata:") == [ServerSentEvent(""), ServerSentEvent("\n")]
    assert parse("data:test\n\ndata: test\n\n") == [ServerSentEvent("test")] * 2


def test_an_id_stays_for_the_events_after_it() -> None:
    assert parse("id: 1\ndata: a\n\ndata: b\n\n")[1] == ServerSentEvent("b", id="1")


def test_an_id_alone_moves_the_cursor_without_an_event() -> None:
    parser = Parser()
    assert list(parser.feed("id: 7-0\n\n")) == []
    assert parser.last_id == "7-0"


def test_the_cursor_does_not_move_to_an_event_that_was_cut_off() -> None:
    parser = Parser()
    assert len(list(parser.feed("id: 1-0\ndata: a\n\nid: 2-0\ndata: b\n"))) == 1
    assert parser.last_id == "1-0"


def test_an_event_without_data_is_not_dispatched_and_leaves_nothing_behind() -> None:
    assert parse("event: gap\n\ndata: a\n\n") == [ServerSentEvent("a")]


def test_an_empty_data_line_is_an_event_with_empty_data() -> None:
    assert parse("event: gap\ndata:\n\n") == [ServerSentEvent("", "gap")]


def test_the_last_event_name_wins_and_an_empty_one_is_message() -> None:
    assert parse("event: a\nevent: b\ndata\n\n")[0].event == "b"
    assert parse("event: a\nevent:\ndata\n\n")[0].event == "message"


def test_an_id_with_nul_is_ignored() -> None:
    assert parse("id: 1\nid: 2\0\ndata: a\n\n") == [ServerSentEvent("a", id="1")]


def test_an_unfinished_event_at_the_end_is_not_dispatched() -> None:
    assert parse("data: a\n") == []
    assert parse("data: a") == []


def test_an_event_that_ends_by_carriage_returns_does_not_wait_for_more() -> None:
    assert parse("data: a\r\r") == [ServerSentEvent("a")]
    assert parse("data: a\r\n\r") == [ServerSentEvent("a")]


def test_a_line_end_in_two_pieces_is_one() -> None:
    assert parse("data: a\r", "\ndata: b\r", "", "\n\r", "\n") == [ServerSentEvent("a\nb")]
    assert parse("data: a\r", "\n", "\n", "data: b\n\n") == [
        ServerSentEvent("a"),
        ServerSentEvent("b"),
    ]


def test_a_byte_order_mark_is_skipped_at_the_very_start_only() -> None:
    assert parse("", "\ufeff", "data: a\n\n") == [ServerSentEvent("a")]
    assert parse("data: a\n\n", "\ufeffdata: b\n\n") == [ServerSentEvent("a")]
    assert parse("\ufeff\ufeffdata: a\n\n") == []


def test_unknown_fields_and_other_spellings_are_skipped() -> None:
    assert parse("Data: a\nDATA: b\n data: c\nfoo: d\ndata : e\ndata: f\n\n")[0].data == "f"


def test_a_heartbeat_is_a_colon_and_one_line_end() -> None:
    assert HEARTBEAT == b":\n"


def test_heartbeats_of_older_distributors_are_skipped() -> None:
    assert parse(":\n\n: away\n\nretry: 5\n\ndata: a\n\n:\n\n") == [ServerSentEvent("a")]


def test_comments_and_heartbeats_are_skipped() -> None:
    parser = Parser()
    assert list(parser.feed(HEARTBEAT.decode() + comment("hi: there").decode())) == []
    assert list(parser.feed("data: a\n: in between\ndata: b\n\n")) == [ServerSentEvent("a\nb")]


@given(hostile)
def test_a_comment_is_one_line_whatever_it_holds(text: str) -> None:
    sent = comment(text)
    assert sent.startswith(b": ")
    assert re.findall(rb"\r|\n", sent) == [b"\n"]
    assert parse(sent.decode()) == []


def test_retry_is_kept_for_the_reconnect() -> None:
    parser = Parser()
    sent = frame(b"{}", event=b"bye", retry_ms=2500)
    assert list(parser.feed(sent.decode())) == [ServerSentEvent("{}", "bye")]
    assert parser.retry_ms == 2500


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.5", "1s", "٣", "²", " 5", "9" * 5_000])
def test_a_retry_that_is_no_number_is_ignored(value: str) -> None:
    parser = Parser()
    assert list(parser.feed(f"retry: 100\nretry: {value}\n\n")) == []
    assert parser.retry_ms == 100


def test_the_last_comment_with_words_is_kept_for_people_until_an_event_comes() -> None:
    parser = Parser()
    assert list(parser.feed(": Redis is away\n:\n")) == []
    assert parser.comment == "Redis is away"
    assert len(list(parser.feed("data: x\n\n"))) == 1
    assert parser.comment == ""
