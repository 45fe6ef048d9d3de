import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logpipe.collector.receivers.loki import labels_of, parse
from logpipe.collector.receivers.protobuf import message
from logpipe.collector.receivers.protocol import Request
from logpipe.event import Event
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON, event, events, items
from tests.collector.receivers.samples import collecting, loki_push, outcomes, snappy, stored, texts
from tests.helpers import wait_until
from tests.servers import Valkey, serving

PATH = "/loki/api/v1/push"
NS = 1_710_000_000_123_456_789
PROTOBUF = {"content-type": "application/x-protobuf"}


def as_json(*streams: dict[str, Any]) -> bytes:
    return json.dumps({"streams": streams}).encode()


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{a="b"}', {"a": "b"}),
        ('{a="b", c="d"}', {"a": "b", "c": "d"}),
        ('{ a = "b" , c="d", }', {"a": "b", "c": "d"}),
        (r'{a="x\"y\\z\n"}', {"a": 'x"y\\z\n'}),
        ('{a="{b=\\"c\\", }"}', {"a": '{b="c", }'}),
        ("{}", {}),
        ("", {}),
        ("nonsense", {"labels": "nonsense"}),
        ('{a="b}', {"labels": '{a="b}'}),
        ('{a="b" c="d"}', {"labels": '{a="b" c="d"}'}),
    ],
)
def test_labels_are_read_with_their_escapes(text: str, labels: dict[str, str]) -> None:
    assert labels_of(text) == labels


def test_labels_of_any_length_take_their_time_once() -> None:
    for hostile in ('{a="' + "\\x" * 500_000, '{a="b' + " " * 1_000_000, "{" + "a" * 1_000_000):
        assert labels_of(hostile) == {"labels": hostile}
    assert labels_of('{a="' + "b" * 1_000_000 + '"}') == {"a": "b" * 1_000_000}


def test_labels_and_structured_metadata_are_metadata_and_tell_source_and_level() -> None:
    labels = {"job": "j", "service_name": "s", "level": "warn", "pod": "p", "a": "1"}
    extra = {"traceID": "t", "a": "2"}
    found = event(
        parse,
        as_json({"stream": labels, "values": [[str(NS), "line", extra]]}),
        headers=JSON | {"x-scope-orgid": "tenant"},
    )
    assert (found.source, found.level, found.message) == ("s", "WARN", "line")
    assert found.ts_unix_ms == 1_710_000_000_123
    assert found.metadata == {
        "job": "j", "service_name": "s", "k8s.pod.name": "p", "a": "1", "entry.a": "2",
        "trace_id": "t", "loki.tenant": "tenant",
    }  # fmt: skip


def test_protobuf_says_the_same_as_json() -> None:
    body = loki_push(
        ('{job="j", level="error"}', [(NS, b"one", {"k": "v"}), (NS, b"two", {})]),
        ('{job="k"}', [(0, b"three", {})]),
    )
    for coding in ({}, {"content-encoding": "snappy"}):
        given = body if coding else snappy(body)  # what a header names is unpacked by the intake
        one, two, three = events(parse, given, headers=PROTOBUF | coding)
        assert (one.source, one.level, one.ts_unix_ms) == ("j", "ERROR", 1_710_000_000_123)
        assert one.metadata == {"job": "j", "k": "v"}
        assert (two.message, two.metadata) == ("two", {"job": "j"})
        assert (three.message, three.source, three.ts_unix_ms) == ("three", "k", 0)


def test_the_first_versions_json_is_taken_as_well() -> None:
    entries = [{"ts": "2024-03-09T16:00:00Z", "line": "one"}, {"line": "two"}]
    one, two = events(parse, as_json({"labels": '{job="j"}', "entries": entries}), headers=JSON)
    assert (one.source, one.ts_unix_ms, one.message) == ("j", 1_710_000_000_000, "one")
    assert (two.ts_unix_ms, two.message) == (None, "two")


def test_a_line_that_is_no_utf8_is_taken() -> None:
    found = event(parse, snappy(loki_push(('{a="b"}', [(1, b"caf\xe9", {})]))), headers=PROTOBUF)
    assert found.message == "caf\ufffd"
    found = event(parse, b'{"streams":[{"stream":{},"values":[["1","caf\xe9"]]}]}', headers=JSON)
    assert found.message == "caf\ufffd"


@pytest.mark.parametrize(
    "value",
    [[1, "x"], ["x", "x"], ["-1", "x"], ["1.5", "x"], ["1"], [], ["9" * 21, "x"], 7, "x", {}, None],
)
def test_a_value_without_a_time_or_a_line_is_rejected_alone(value: Any) -> None:
    values = [["1", "one"], value, ["2", "two"]]
    one, rejected, two = items(parse, as_json({"stream": {}, "values": values}), headers=JSON)
    assert isinstance(rejected, Problem)
    assert rejected.status == 400
    assert [each.message for each in (one, two) if isinstance(each, Event)] == ["one", "two"]


@pytest.mark.parametrize(
    "stream",
    [7, None, [], {}, {"values": 7}, {"values": {}}, {"entries": "x"}, {"entries": [7]},
     {"stream": {}, "Values": [["1", "x"]]}, {"labels": "{}", "entries": [{"Line": "x"}]}],
)  # fmt: skip
def test_a_stream_that_cannot_be_read_is_rejected_alone(stream: Any) -> None:
    good = {"stream": {"job": "j"}, "values": [["1", "good"]]}
    before, rejected, after = items(parse, as_json(good, stream, good), headers=JSON)
    assert isinstance(rejected, Problem)
    assert before == after == Event("j", "good", ts_unix_ms=0, metadata={"job": "j"})


@pytest.mark.parametrize(
    ("labels", "metadata"),
    [("{a=\"b\"}", {"a": "b"}), ("x", {"labels": "x"}), (7, {"labels": "7"}), (None, {}),
     ([], {}), ({"a": 7}, {"a": 7})],
)  # fmt: skip
def test_labels_of_any_type_are_kept(labels: Any, metadata: dict[str, Any]) -> None:
    found = event(parse, as_json({"stream": labels, "values": [["1", "x"]]}), headers=JSON)
    assert found.metadata == metadata


def test_a_message_of_protobuf_that_cannot_be_read_is_rejected_alone() -> None:
    stream = loki_push(("{}", [(1, b"one", {})]))[2:]
    broken = message("Stream")(entries=[b"\xff", b"\x12\x03two"]).SerializeToString()
    push = message("PushRequest")(streams=[stream, b"\xff", broken]).SerializeToString()
    one, *rejected, two = items(parse, snappy(push), headers=PROTOBUF)
    assert [isinstance(each, Problem) for each in rejected] == [True, True]
    assert [each.message for each in (one, two) if isinstance(each, Event)] == ["one", "two"]


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(odd | st.lists(st.integers(0, 999) | odd, max_size=4)))
def test_all_good_values_of_a_mixture_are_stored_in_order(parts: list[Any]) -> None:
    """A part is anything, or a stream of good values (numbers) and of anything."""
    streams = [
        {"stream": {}, "values": [["1", f"good {v}"] if v.__class__ is int else v for v in part]}
        if isinstance(part, list)
        else part
        for part in parts
    ]
    sent = [f"good {v}" for p in parts if isinstance(p, list) for v in p if v.__class__ is int]
    found = items(parse, as_json(*streams), headers=JSON)
    texts = [each.message for each in found if isinstance(each, Event)]
    assert [text for text in texts if text.startswith("good ")] == sent


async def test_rejected_values_are_counted_and_a_400_where_none_is_good(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for values, status in (([["1", "a"], [1, "b"]], 204), ([[1, "b"], ["1"]], 400)):
            body = as_json({"stream": {}, "values": values})
            assert (await service.http.post(PATH, content=body, headers=JSON)).status_code == status
        assert await outcomes(service, "loki") == {"accepted": 1, "rejected": 3}
        assert texts(valkey) == ("a",)


def test_a_time_beyond_the_calendar_is_that_of_receipt() -> None:
    body = snappy(loki_push(("{}", [(10**24, b"x", {})])))
    assert event(parse, body, headers=PROTOBUF).ts_unix_ms is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x05abc",
        snappy(b"\xff\xff\xff"),
        snappy(loki_push(('{a="b"}', [(1, b"x" * 100, {})]))[:-20]),
        snappy(loki_push(('{a="b"}', [(1, b"x" * 100, {})])))[:-20],
        b"\xff\xff\xff\xff\x0f" + b"x" * 20,
        b"\x80\x80\x80\x04" + b"x" * 20,  # claims 8 MiB in 20 bytes
        b"\xff" * 30,
    ],
    ids=range(8),
)
def test_damaged_snappy_or_protobuf_is_a_400_and_claims_are_not_believed(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        items(parse, body, headers=PROTOBUF)
    assert caught.value.status in (400, 413)


def test_a_bomb_is_refused_by_the_size_that_it_unpacks_to() -> None:
    bomb = snappy(b"\0" * 10_000)
    assert len(bomb) < 1000
    with pytest.raises(Problem) as caught:
        items(parse, bomb, headers=PROTOBUF, limit=9_999)
    assert caught.value.status == 413


@pytest.mark.parametrize("level", ["streams", "entries"])
def test_many_empty_messages_are_counted_before_they_are_read(level: str) -> None:
    body = b"\x0a\x00" * 200_001
    if level == "entries":
        inner = b"\x12\x00" * 200_001
        body = b"\x0a\x82\xb5\x18" + inner
    with pytest.raises(Problem, match="elements") as caught:
        items(parse, snappy(body), headers=PROTOBUF)
    assert caught.value.status == 413


def test_a_push_of_nothing_is_nothing() -> None:
    assert list(parse(Request(JSON, body=b'{"streams":[]}')).items) == []
    assert list(parse(Request(PROTOBUF, body=snappy(b""))).items) == []


async def test_success_is_204_without_a_body_also_for_nothing(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        values = [[str(NS + number), f"{number}"] for number in range(3)]
        two = as_json(
            {"stream": {"job": "a"}, "values": values}, {"stream": {"job": "b"}, "values": values}
        )
        for body in (two, b'{"streams":[]}'):
            answer = await service.http.post(PATH, content=body, headers=JSON)
            assert (answer.status_code, answer.content) == (204, b"")
        assert texts(valkey) == ("0", "1", "2") * 2
        legacy = await service.http.post("/api/prom/push", content=two, headers=JSON)
        assert legacy.status_code == 204
        assert len(stored(valkey)) == 12


async def test_what_is_wrong_for_good_is_a_400_in_plain_text(valkey: Valkey) -> None:
    async with collecting(valkey, max_body_bytes=200) as service:
        for body, headers in (
            (b"nonsense", JSON),
            (b'{"streams":[{"stream":{},"values":[[1,"x"]]}]}', JSON),
            (b'{"strooms":[{"stream":{},"values":[["1","x"]]}]}', JSON),
            (b"x" * 201, JSON),
            (b"x", JSON | {"content-encoding": "rot13"}),
            (b"\xff\xff", PROTOBUF),
        ):
            answer = await service.http.post(PATH, content=body, headers=headers)
            assert answer.status_code == 400
            assert answer.headers["content-type"].startswith("text/plain")
        assert stored(valkey) == []


async def test_ready_says_whether_redis_is_there(valkey: Valkey) -> None:
    async with collecting(valkey) as service:

        async def ready() -> bool:
            answer = await service.http.get("/ready")
            return (answer.status_code, answer.text) == (200, "ready\n")

        await wait_until(ready, "it is ready")
    async with serving(redis_addr="unix:///nowhere/v.sock", role="collector") as service:
        assert (await service.http.get("/ready")).status_code == 503
