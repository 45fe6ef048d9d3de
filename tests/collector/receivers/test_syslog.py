from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logpipe.collector.receivers import syslog
from logpipe.collector.receivers.syslog import Frame, Frames, frames_of, parse, structured_data
from logpipe.event import Event
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON, events, items
from tests.collector.receivers.samples import collecting, counted, texts
from tests.servers import Valkey


def one(text: str, *, cut: bool = False) -> Event:
    return syslog.event_of(Frame(text.encode(), cut))


def test_everything_that_a_message_says_is_kept() -> None:
    found = one(
        '<165>1 2003-10-11T22:14:15.003Z h.example evntslog 111 ID47 [a@1 iut="3" b="x\\]\\"\\\\y"]'
        '[c k="1" k="2"] \ufeffAn event'
    )
    assert (found.source, found.level, found.message) == ("evntslog", "INFO", "An event")
    assert found.ts_unix_ms == 1_065_910_455_003
    assert found.metadata == {
        "syslog.facility.code": 20, "syslog.facility.name": "local4", "syslog.severity.code": 5,
        "host.name": "h.example", "syslog.procid": "111", "syslog.msg.id": "ID47",
        "syslog.structured_data": {"a@1": {"iut": "3", "b": 'x]"\\y'}, "c": {"k": "1, 2"}},
    }  # fmt: skip


def test_nil_values_are_nothing() -> None:
    found = one("<14>1 - - - - - -")
    assert (found.source, found.message, found.ts_unix_ms) == ("syslog", "", None)
    assert set(found.metadata) == {
        "syslog.facility.code", "syslog.facility.name", "syslog.severity.code",
    }  # fmt: skip
    assert one("<14>1 - h - - - - m").source == "h"


@pytest.mark.parametrize(
    ("severity", "level"),
    [*enumerate(["FATAL", "FATAL", "FATAL", "ERROR", "WARN", "INFO", "INFO", "DEBUG"])],
)
def test_a_priority_is_facility_and_severity(severity: int, level: str) -> None:
    found = one(f"<{23 * 8 + severity}>1 - h a - - - m")
    assert found.level == level
    assert found.metadata["syslog.facility.code"] == 23
    assert found.metadata["syslog.severity.code"] == severity


def test_a_message_of_the_older_form_is_read_as_well() -> None:
    found = one("<34>Oct 11 22:14:15 mymachine su[42]: 'su root' failed")
    assert (found.source, found.level, found.message) == ("su", "FATAL", "'su root' failed")
    assert found.ts_unix_ms is None
    assert found.metadata == {
        "syslog.facility.code": 4, "syslog.facility.name": "auth", "syslog.severity.code": 2,
        "syslog.timestamp": "Oct 11 22:14:15", "host.name": "mymachine", "syslog.procid": "42",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just text", "just text"),
        ("<192>no such priority", "<192>no such priority"),
        ("<14>text", "text"),
        ("<14>1 too few", "1 too few"),
        ("<x>1 - - - - - m", "<x>1 - - - - - m"),
        ("<14>1 not-a-time h a p i - m", "m"),
        ("<14>1 - h a p i [broken m", "[broken m"),
        ('<14>1 - h a p i [x a="b]m', '[x a="b]m'),
        ("<14>1 - h a p i [x]m", "[x]m"),
        ("<14>1 - h a p i m without data", "m without data"),
        ("", ""),
    ],
)
def test_any_text_is_a_message(text: str, message: str) -> None:
    assert one(text).message == message


def test_a_time_that_is_none_is_kept() -> None:
    assert one("<14>1 not-a-time h a p i - m").metadata["syslog.timestamp"] == "not-a-time"


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(), max_size=3))
def test_structured_data_comes_back_as_it_went(parameters: dict[str, str]) -> None:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")

    inner = "".join(f' {name}="{escaped(value)}"' for name, value in parameters.items())
    assert structured_data(f"[id{inner}] rest") == ({"id": parameters}, "rest")


def test_one_regular_expression_does_not_take_for_ever() -> None:
    hostile = "[a " + 'b="' * 50_000
    assert structured_data(hostile) == ({}, hostile)
    one("<14>" + "Oct 11 22:14:15 " + "x" * 100_000)


# -- framing -----------------------------------------------------------------------------------


def test_both_framings_are_told_apart_message_by_message() -> None:
    body = counted(b"<14>a\nb") + b"<14>c\r\n\n" + counted(b"<1>d") + b"\ne\0g\n5 <1>f"
    assert [each.data for each in frames_of(body, 100)] == [
        b"<14>a\nb", b"<14>c\r", b"<1>d", b"e", b"g", b"<1>f",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "500000 rows imported in 3 s", "5000 rows", "99999999 x", "2024 was a good year",
        "404 not found", "20 items imported", "12 Jan 2024 00:00:00 x", "3 frames omitted",
        "54 <1 minute elapsed", "54 <1", "54 <", "54 ", "54", "54 <1234>x", "54 <>x", "54  <14>x",
        "54 <x>y", "1 <14>shorter than its priority", "0 <14>x", "1234567890 <14>x",
    ],
)  # fmt: skip
def test_a_number_without_a_priority_behind_it_begins_a_line(line: str) -> None:
    text = line.encode()
    for before, after in ((b"", b""), (b"", b"\n"), (counted(b"<14>a\n"), b"\n<14>c\n")):
        frames = list(frames_of(before + text + after, 1000))
        assert Frame(text) in frames
        assert len(frames) == (3 if before else 1)


@pytest.mark.parametrize(
    ("body", "frames"),
    [
        (b"x" * 10 + b"\n", [(10, False)]),
        (b"x" * 11 + b"\n", [(10, True)]),
        (b"x" * 11 + b"\0yy\n", [(10, True), (2, False)]),
        (b"x" * 10, [(10, False)]),
        (b"x" * 11, [(10, True)]),
        (b"x" * 100 + b"\nyy\n", [(10, True), (2, False)]),
        (b"10 <1>" + b"x" * 7, [(10, False)]),
        (b"11 <1>" + b"x" * 8, [(10, True)]),
        (b"100 <1>" + b"x" * 97 + b"5 <1>yy", [(10, True), (5, False)]),
        (b"11 <1>" + b"x" * 2, [(5, True)]),
        (b"5 <1>", [(3, True)]),
        (b"5 xx", [(4, False)]),
        (b"123", [(3, False)]),
        (b"1234567890 x", [(10, True)]),
        (b"0 x\n", [(3, False)]),
    ],
)
def test_a_message_over_the_limit_is_cut_and_says_so(
    body: bytes, frames: list[tuple[int, bool]]
) -> None:
    assert [(len(each.data), each.cut) for each in frames_of(body, 10)] == frames
    assert one("x", cut=True).metadata == {"log.truncated": True}


PARTS = [b"6 <9>abc", b"\n", b"x", b"12 ", b"\0", b"<1>y\n", b"9", b" ", b"z" * 30, b"<", b">"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(PARTS)), st.lists(st.integers(1, 7), min_size=1))
def test_it_does_not_matter_in_which_pieces_a_stream_comes(
    parts: list[bytes], sizes: list[int]
) -> None:
    body = b"".join(parts)
    whole = list(frames_of(body, 10))
    frames, got, at = Frames(10), [], 0
    for size in sizes * len(body):
        got += frames.feed(body[at : at + size])
        at += size
    assert got + frames.end() == whole


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=20)))
def test_counted_messages_come_back_as_they_went(texts: list[bytes]) -> None:
    messages = [b"<14>" + text for text in texts]
    assert [each.data for each in frames_of(counted(*messages), 100)] == messages


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.booleans(), st.from_regex(rb"\d{0,4} ?(<\d{0,2})?[a-z ]{0,9}[a-z]", fullmatch=True)
        )
    ),
    st.integers(1, 5),
)
def test_lines_and_counted_messages_may_follow_in_any_order(
    messages: list[tuple[bool, bytes]], size: int
) -> None:
    """Whatever number a line begins with, and wherever the reads of the stream end."""
    body = b"".join(
        counted(b"<14>%b\n" % text) if by_count else text + b"\n" for by_count, text in messages
    )
    frames = Frames(100)
    found = [each for at in range(0, len(body), size) for each in frames.feed(body[at : at + size])]
    found += frames.end()
    assert [each.data.removeprefix(b"<14>").rstrip() for each in found] == [t for _, t in messages]


def test_no_more_than_one_message_is_held() -> None:
    frames = Frames(10)
    for _ in range(1000):
        frames.feed(b"x" * 1000)
    assert len(frames.end()) == 0


# -- over HTTP ---------------------------------------------------------------------------------


def test_json_belongs_elsewhere() -> None:
    with pytest.raises(Problem) as caught:
        items(parse, b"{}", headers=JSON)
    assert caught.value.status == 415


@pytest.mark.parametrize("content_type", ["", "application/syslog", "text/plain"])
def test_a_body_has_either_framing(content_type: str) -> None:
    headers: dict[str, Any] = {"content-type": content_type}
    for body in (b"<14>a\n<14>b", counted(b"<14>a", b"<14>b")):
        assert [each.message for each in events(parse, body, headers=headers)] == ["a", "b"]


async def test_success_is_204_also_for_nothing(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for body in (b"<14>1 - h a - - - m\n", b"", b"\n\n"):
            answer = await service.http.post("/syslog", content=body)
            assert (answer.status_code, answer.content) == (204, b"")
        assert texts(valkey) == ("m",)


async def test_lines_that_begin_with_a_number_are_whole(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for body in (
            b"404 not found here\n500 error\nplain\n",
            b"10 items processed\nother line\n",
        ):
            answer = await service.http.post(
                "/syslog", content=body, headers={"Content-Type": "text/plain"}
            )
            assert answer.status_code == 204
        assert texts(valkey) == (
            "404 not found here", "500 error", "plain", "10 items processed", "other line",
        )  # fmt: skip
