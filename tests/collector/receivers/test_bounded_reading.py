"""Large and hostile bodies: no call builds much before its size is known, and nothing is lost."""

import json
import tracemalloc
from typing import Any

import pytest

from logpipe import splitting
from logpipe.collector.receivers import datadog, gelf, generic, json_text, loki, otlp, syslog
from logpipe.collector.receivers.protobuf import message, parsed
from logpipe.collector.receivers.repeated import MAX_REPEATED
from logpipe.decoding import (
    MAX_VALUES,
    PIECE_BYTES,
    WINDOW_BYTES,
    has_more_elements,
    has_more_values,
)
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON, event, events, items
from tests.decoding import decode_json, decode_ndjson

PROTOBUF = {"content-type": "application/x-protobuf"}
LINE = b'{"source":"a","message":"m"}\n'


class _Unbuilt:
    @staticmethod
    def FromString(body: bytes) -> Any:  # noqa: N802 - protobuf calls it so
        raise AssertionError("a message was built")


@pytest.mark.parametrize(
    "field",
    [b"\x0a\x00", b"\x78\x01", b"\x7d\0\0\0\0", b"\x79" + b"\0" * 8, b"\x8a\x80\x01\x00"],
    ids=["bytes", "varint", "fixed32", "fixed64", "long tag"],
)
def test_fields_of_protobuf_are_counted_before_they_are_built(field: bytes) -> None:
    with pytest.raises(Problem, match="elements") as caught:
        parsed(_Unbuilt, field * (MAX_REPEATED + 1))
    assert caught.value.status == 413


def test_as_many_fields_of_protobuf_as_allowed_are_read() -> None:
    push = parsed(message("PushRequest"), b"\x0a\x02\x12\x00" * MAX_REPEATED)
    assert len(push.streams) == MAX_REPEATED


@pytest.mark.parametrize("end", [b"\x0a\xff", b"\x0a" + b"\xff" * 11, b"\xff"])
def test_damaged_protobuf_of_any_size_is_a_400(end: bytes) -> None:
    with pytest.raises(Problem) as caught:
        parsed(message("PushRequest"), b"\x0a\x84\x80\x40" + b"\0" * (1 << 20) + end)
    assert caught.value.status == 400


def test_a_resource_far_over_an_event_costs_only_its_records() -> None:
    export = message("Export")()
    for size in (1, 2 << 20):
        logs = message("ResourceLogs")()
        logs.resource = b"\x0a\x00" if size == 1 else bytes(size)
        logs.scope_logs.append(message("ScopeLogs")(log_records=[b""]).SerializeToString())
        export.resource_logs.append(logs.SerializeToString())
    kept, refused = items(otlp.parse, export.SerializeToString(), headers=PROTOBUF)
    assert not isinstance(kept, Problem)
    assert isinstance(refused, Problem)
    assert refused.status == 413


def wide(values: int) -> bytes:
    """An event of which the metadata has a list of this number of values."""
    return b'{"source":"a","message":"m","metadata":{"a":[%s]}}' % b",".join([b"0"] * values)


def test_an_event_of_too_many_values_is_refused_and_no_other() -> None:
    body = LINE + wide(PIECE_BYTES + MAX_VALUES) + b"\n" + LINE
    for found, refused in (decode_json(body)[:2], decode_ndjson(body)):
        assert [each.message for each in found] == ["m", "m"]
        assert [(each.index, each.status, each.limit) for each in refused] == [(1, 413, "event")]
    found, refused, alone = decode_json(wide(MAX_VALUES))
    assert (found, alone, refused[0].status) == ([], True, 413)


def test_values_are_not_counted_in_texts_or_behind_the_first() -> None:
    text = json.dumps({"a": ',[{\\"' * MAX_VALUES}).encode()
    assert not has_more_values(text)
    assert not has_more_values(LINE * MAX_VALUES)
    assert has_more_values(b'{"a":' + b"[" * MAX_VALUES + b"]" * MAX_VALUES + b"}")
    assert event(generic.parse, text, headers=JSON).message == text.decode().replace(" ", "")


def test_an_object_of_too_many_values_is_a_problem_of_its_own() -> None:
    body = b'{"short_message":"a"}\n{"short_message":"b","_c":[' + b"0," * MAX_VALUES + b"0]}\n"
    kept, refused = items(gelf.parse, body + b"\n", headers=JSON)
    assert not isinstance(kept, Problem)
    assert isinstance(refused, Problem)
    assert (refused.status, refused.hits) == (413, {"event": 1})


@pytest.mark.parametrize("element", [b"-1.25e-300", b'"a,]"', b"[0,{}]", b"12", b"null", b'"\\""'])
def test_elements_are_counted_exactly_over_several_windows(element: bytes) -> None:
    count = 3 * WINDOW_BYTES // (len(element) + 1)
    array = b"[" + b",".join([element] * count) + b"]"
    assert has_more_elements(array, count - 1)
    assert not has_more_elements(array, count)


def test_elements_behind_one_of_many_windows_are_counted() -> None:
    array = b'["' + b"a" * (2 * WINDOW_BYTES) + b'"' + b",0" * 1_000 + b"]"
    assert has_more_elements(array, 1_000)
    assert not has_more_elements(array, 1_001)


def test_a_large_array_is_read_element_by_element() -> None:
    body = b"[" + b",".join([b'{"message":"m","a":{"b":{}}}'] * 100_000) + b"]"
    tracemalloc.start()
    first = next(json_text.json_values(body))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first["message"] == "m"
    assert peak < 6 * len(body)


@pytest.mark.parametrize("bad", [b"x", b'{"message":"\\ud800"}', b'{"message":"\xff"}', b"1e999"])
def test_a_bad_element_of_a_large_array_costs_itself(bad: bytes) -> None:
    good = b'{"message":"m"}'
    body = b"[" + b",".join([good] * 5_000 + [bad] + [good] * 10) + b"]"
    found = list(json_text.json_values(body))
    assert found[:5_000] == [{"message": "m"}] * 5_000
    replaced = {"message": "\N{REPLACEMENT CHARACTER}"}
    assert isinstance(found[5_000], Problem) or found[5_000] == replaced


def test_bytes_and_halves_of_pairs_are_replaced_as_in_small_texts() -> None:
    part = b'\xff\xc3\xa4\xe2\x82\\ud800\\ud83d\\ude00\\\\ud800\\n"'
    small = json_text.json_value(b'"' + part)
    for count in (1, 7_000):
        found = json_text.json_value(b'"' + part[:-1] * count + b'"')
        assert found == small * count


def test_values_longer_than_a_window_are_found_between_bad_ones() -> None:
    long = b'{"a":"' + b'\\"{' * splitting.WINDOW_BYTES + b'"}'
    body = b"[" + long + b",{]," + b"{}]\n" + long + b"\n" + long
    found = [piece.text for piece in splitting.split(body)]
    assert found.count(long) == 3


def test_a_large_stream_of_loki_is_read_as_a_small_one() -> None:
    values: list[Any] = [
        ["1710000000000000000", "ä"],
        ["x"],
        ["1710000000000000000", "b", {"c": "d"}],
    ]
    for count in (1, 3_000):
        stream = {"stream": {"app": "a"}, "values": values * count, "more": 1}
        body = json.dumps({"streams": [stream]}).encode()
        found = items(loki.parse, body, headers=JSON)
        assert len(found) == 3 * count
        assert [isinstance(each, Problem) for each in found[-3:]] == [False, True, False]
        assert found[-1].metadata["c"] == "d"  # type: ignore[union-attr]
    odd = json.dumps({"streams": [{"stream": {"a": "b" * 70_000}, "values": {}}]}).encode()
    (problem,) = items(loki.parse, odd, headers=JSON)
    assert isinstance(problem, Problem)
    assert "are a list" in problem.detail


def test_blank_lines_of_syslog_are_passed_over_together() -> None:
    frames = syslog.Frames(8_192)
    found = frames.feed(b"\n\r\n \0" * 200_000 + b" <1>a\n\n\n<1>b\n")
    assert [frame.data for frame in found] == [b" <1>a", b"<1>b"]
    assert frames.ended < 100


def test_tags_beyond_the_first_ones_are_one_tag() -> None:
    tags = ",".join(f"t{number}:1" for number in range(datadog.MAX_TAGS + 5))
    body = json.dumps([{"message": "m", "ddtags": tags}]).encode()
    (found,) = events(datadog.parse, body, headers=JSON)
    assert len(found.metadata) <= datadog.MAX_TAGS + 1
    assert found.metadata["t0"] == "1"
