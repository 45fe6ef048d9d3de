import json
from typing import Any

import pytest

from logpipe.collector.receivers.loki import labels_of, parse
from logpipe.collector.receivers.protocol import Request
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON, event, events, items
from tests.collector.receivers.samples import collecting, loki_push, snappy, stored, texts
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
    "value", [[1, "x"], ["x", "x"], ["-1", "x"], ["1.5", "x"], ["1"], [], ["9" * 21, "x"]]
)
def test_a_time_that_is_no_text_of_nanoseconds_is_a_400(value: list[Any]) -> None:
    with pytest.raises(Problem) as caught:
        items(parse, as_json({"stream": {}, "values": [["1", "fine"], value]}), headers=JSON)
    assert caught.value.status == 400


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
    body = b"\x0a\x00" * 100_001
    if level == "entries":
        inner = b"\x12\x00" * 100_001
        body = b"\x0a\xc2\x9a\x0c" + inner
    with pytest.raises(Problem, match="events") as caught:
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
