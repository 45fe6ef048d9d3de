import base64
import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logpipe.collector.receivers.firehose import from_base64, parse
from logpipe.collector.receivers.mixed import values_of
from logpipe.problems import Problem
from tests.collector.receivers.parsing import event, events, items
from tests.collector.receivers.samples import TOKEN, collecting, stored, texts
from tests.helpers import unmeasured
from tests.servers import Valkey, serving

ARN = "arn:aws:firehose:eu-central-1:1234:deliverystream/my-stream"
CLOUDWATCH = {
    "messageType": "DATA_MESSAGE", "owner": "1234", "logGroup": "/aws/lambda/f",
    "logStream": "2024/[1]x", "subscriptionFilters": ["sf"],
    "logEvents": [
        {"id": "e1", "timestamp": 1_710_000_000_123, "message": "START"},
        {"id": "e2", "timestamp": 1, "message": "END", "extractedFields": {"a": "b"}},
    ],
}  # fmt: skip


def delivery(*records: bytes) -> bytes:
    packed = [{"data": base64.b64encode(record).decode()} for record in records]
    return json.dumps({"requestId": "r1", "timestamp": 1, "records": packed}).encode()


@pytest.mark.parametrize("packed", [True, False])
def test_cloudwatchs_log_events_are_events(packed: bool) -> None:
    record = json.dumps(CLOUDWATCH).encode()
    attributes = json.dumps({"commonAttributes": {"env": "prod"}})
    first, second = events(
        parse,
        delivery(gzip.compress(record) if packed else record),
        headers={
            "x-amz-firehose-source-arn": ARN,
            "x-amz-firehose-common-attributes": attributes,
        },
    )
    assert (first.source, first.message) == ("/aws/lambda/f", "START")
    assert first.ts_unix_ms == 1_710_000_000_123
    assert first.metadata == {
        "log.record.uid": "e1", "aws.log.group.names": ["/aws/lambda/f"],
        "aws.log.stream.names": ["2024/[1]x"], "cloud.account.id": "1234",
        "aws.log.subscription_filters": ["sf"], "cloud.resource_id": ARN, "env": "prod",
    }  # fmt: skip
    assert second.metadata["extractedFields"] == {"a": "b"}


def test_a_control_message_only_asks_whether_anyone_is_there() -> None:
    control = json.dumps({**CLOUDWATCH, "messageType": "CONTROL_MESSAGE"}).encode()
    bare = b'{"messageType":"CONTROL_MESSAGE"}'
    assert items(parse, delivery(gzip.compress(control), control, bare)) == []


def test_other_records_are_json_or_lines() -> None:
    found = events(
        parse,
        delivery(b'{"msg":"a","level":"warn"}{"msg":"b"}', b"c\nd\n", gzip.compress(b"e"), b""),
        headers={"x-amz-firehose-source-arn": ARN},
    )
    assert [each.message for each in found] == ["a", "b", "c", "d", "e"]
    assert {each.source for each in found} == {"my-stream"}
    assert found[0].level == "WARN"


@pytest.mark.parametrize("pack", [lambda *a: gzip.compress(b"".join(a)), lambda *a: b"".join(
    map(gzip.compress, a)), lambda *a: b"".join(a), lambda *a: b"\n".join(a),
    lambda *a: b"[%b]" % b",".join(a)],
    ids=["one gzip", "several gzips", "not packed", "lines", "array"],
)  # fmt: skip
def test_messages_of_cloudwatch_are_taken_apart(pack: Callable[..., bytes]) -> None:
    def message(text: str, kind: str = "DATA_MESSAGE") -> bytes:
        entry = {"id": "1", "timestamp": 1_714_644_000_123, "message": text}
        told = {"messageType": kind, "owner": "1", "logGroup": "g", "logStream": "s"}
        return json.dumps({**told, "logEvents": [entry]}).encode()

    control = message("checking", "CONTROL_MESSAGE")
    found = events(parse, delivery(pack(message("m1"), control, message("m2"))))
    assert [(each.source, each.message) for each in found] == [("g", "m1"), ("g", "m2")]
    assert {each.ts_unix_ms for each in found} == {1_714_644_000_123}


@pytest.mark.parametrize(
    "line",
    [
        "[2024-05-02 10:00:00] ERROR boom", "{not json} plain text", '{"message":"cut in the mid',
        '{"id":1} was processed', "[12345]", "[]", '{"a":NaN}', "    at frame (x.js:1)",
        "[" * 5_000,
    ],
)  # fmt: skip
def test_what_is_not_json_is_a_line(line: str) -> None:
    for data in (line, f"{line}\n", f'{{"msg":"a"}}\n{line}\r\n\n{{"msg":"b"}}{{"msg":"c"}}'):
        found = [each.message for each in events(parse, delivery(data.encode()))]
        assert found == (["a", line, "b", "c"] if "msg" in data else [line])


def test_many_lines_that_look_like_json_take_their_time_once() -> None:
    for line in ("[[],", '{"a":"b",', '{"a":', "[1,", '{"b'):
        found = events(parse, delivery(f"{line}\n".encode() * 10_000))
        assert [each.message for each in found] == [line] * 10_000
    assert len(events(parse, delivery(b'{"message":"x"}' * 50_000))) == 50_000


@pytest.mark.parametrize(
    ("record", "text", "undecodable"),
    [
        (b'{"data":"caf\xc3\xa9!"}', "café!", "base64"),
        (b'{"data":"[x] not packed"}', "[x] not packed", "base64"),
        (b'{"data":"H4tiYWQ="}', "H4tiYWQ=", "compression"),
        (b'{"data":7}', '{"data":7}', "record"),
        (b'{"Data":"eA=="}', '{"Data":"eA=="}', "record"),
        (b"null", "null", "record"),
        (b'"text"', '"text"', "record"),
    ],
)
def test_a_record_that_cannot_be_decoded_is_stored_as_text(
    record: bytes, text: str, undecodable: str
) -> None:
    body = b'{"records":[{"data":"Yg=="},%b,{"data":"Yw=="}]}' % record
    before, found, after = events(parse, body)
    assert (before.message, after.message) == ("b", "c")
    assert (found.message or found.metadata["Data"]) == text
    assert found.metadata["log.undecodable"] == undecodable
    assert "log.undecodable" not in before.metadata | after.metadata


def test_a_line_may_begin_as_packed_data_does() -> None:
    assert event(parse, delivery(b"x^2 + y")).message == "x^2 + y"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.from_regex(r"[{\[a-z0-9 \":,.]*[a-z]", fullmatch=True),
            st.integers(0, 99).map(lambda number: json.dumps({"message": f"json {number}"})),
        ),
        max_size=8,
    )
)
def test_all_of_a_record_is_stored_in_order(lines: list[str]) -> None:
    found = events(parse, delivery("\n".join(lines).encode()))
    kept = [line for line in lines if line.strip()]
    assert [each.message for each in found] == [
        json.loads(line)["message"] if '"message": ' in line else line for line in kept
    ]


@pytest.mark.parametrize(
    "group", ["", None, 7, "g" * 512, ["x"]], ids=["empty", "null", "number", "long", "list"]
)
def test_a_log_group_of_any_kind_is_no_reason_to_fail(group: Any) -> None:
    record = json.dumps({**CLOUDWATCH, "logGroup": group, "logEvents": [7, None, {}]}).encode()
    assert len(events(parse, delivery(record))) == 3


def test_what_a_record_unpacks_to_is_bounded_for_all_together() -> None:
    record = gzip.compress(b"x" * 600)
    assert len(events(parse, delivery(record), limit=1000)) == 1
    with pytest.raises(Problem) as caught:
        items(parse, delivery(record, record), limit=1000)
    assert caught.value.status == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"{}", b'{"records":7}', b'{"Records":[]}'])
def test_what_is_no_delivery_is_a_400(body: bytes) -> None:
    with pytest.raises((Problem, ValueError)):
        items(parse, body)


async def test_the_answer_repeats_the_id_of_the_request(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        headers = {"X-Amz-Firehose-Request-Id": "r1", "X-Amz-Firehose-Protocol-Version": "1.0"}
        for _ in range(2):
            answer = await service.http.post("/firehose", content=delivery(b"a"), headers=headers)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["requestId"] == "r1"
            assert set(answer.json()) == {"requestId", "timestamp"}
        assert texts(valkey) == ("a",)  # the second time it was the same request
        other = {**headers, "X-Amz-Firehose-Request-Id": "r2"}
        await service.http.post("/firehose", content=delivery(b"b"), headers=other)
        assert texts(valkey) == ("a", "b")


async def test_an_error_says_why_in_the_same_form(valkey: Valkey) -> None:
    headers = {"X-Amz-Firehose-Request-Id": "r1"}
    async with collecting(valkey, ingest_tokens=TOKEN) as service:
        for key, status in ((None, 401), ("wrong", 403)):
            given = headers | ({"X-Amz-Firehose-Access-Key": key} if key else {})
            answer = await service.http.post("/firehose", content=delivery(b"a"), headers=given)
            assert answer.status_code == status
            assert answer.json()["requestId"] == "r1"
            assert answer.json()["errorMessage"]
        bad = await service.http.post(
            "/firehose", content=b"{", headers={**headers, "X-Amz-Firehose-Access-Key": TOKEN}
        )
        assert (bad.status_code, bad.json()["requestId"]) == (400, "r1")
        assert stored(valkey) == []
    async with serving(redis_addr="unix:///nowhere/v.sock", role="collector") as service:
        answer = await service.http.post("/firehose", content=delivery(b"a"), headers=headers)
        assert (answer.status_code, answer.json()["requestId"]) == (503, "r1")


@pytest.mark.parametrize(
    "text",
    ["[[],\n" * 100 + "[]," * 300_000, '{"a":\n' * 100_000, '{"a\n' * 100_000, "[1,\n" * 100_000],
    ids=range(4),
)
def test_text_like_json_takes_linear_time(text: str) -> None:
    """Each of the lines could be read to the end of the text."""
    with unmeasured():
        begun = time.process_time()
        assert len(list(values_of(text))) > 100
        assert time.process_time() - begun < 4


@given(
    st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode())
    | st.text(alphabet="AQg=+/ \né", max_size=24)
)
@example("QQ==QQ==")
@example("QUJDRA==")
@example("QUJD=")
def test_base64_in_pieces_is_as_in_one(text: str) -> None:
    try:
        whole: bytes | None = base64.b64decode(text, validate=True)
    except ValueError:
        whole = None
    for size in (4, 8, 1024):
        if whole is None:
            with pytest.raises(ValueError):
                from_base64(text, size)
        else:
            assert from_base64(text, size) == whole
