"""No input makes a parser fail in any other way than by a refusal."""

import base64
import contextlib
import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.collector.ingest import Bounds
from logpipe.collector.receivers.packing import Packed, pack
from logpipe.collector.receivers.protocol import Batch, Outcome, Request
from logpipe.collector.receivers.table import PROTOCOLS
from logpipe.event import NOT_DECODED
from logpipe.problems import Problem
from logpipe.stream import Appended
from tests.collector.receivers.samples import SAMPLES, Sample, snappy
from tests.decoding import decode_json

WORDS = (
    "message", "level", "source", "time", "timestamp", "event", "fields", "host", "streams",
    "stream", "values", "labels", "entries", "ts", "line", "resourceLogs", "resource",
    "attributes", "key", "value", "stringValue", "arrayValue", "kvlistValue", "scopeLogs",
    "scope", "logRecords", "timeUnixNano", "severityNumber", "body", "traceId", "index", "create",
    "_index", "_id", "delete", "ddtags", "hostname", "short_message", "_x", "records", "data",
    "requestId", "logEvents", "logGroup", "messageType", "metadata", "1710000000000000000", "",
)  # fmt: skip

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS) | st.text(max_size=5)
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """A good body with some bytes of another value, or gone, or more of them."""
    data = bytearray(body)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 4)))
        data[start:end] = draw(st.binary(max_size=6))
    return bytes(data)


def judged(sample: Sample, body: bytes, headers: dict[str, str] | None = None) -> None:
    """Parses, encodes, and answers for each way that it may end."""
    protocol = PROTOCOLS[sample.protocol]
    given = {name.lower(): value for name, value in sample.headers.items()}
    request = Request(
        {"content-type": sample.content_type, **given, **(headers or {})}, body=body, limit=10_000
    )
    try:
        batch = protocol.parse(request)
        packed = pack(batch.items, Bounds(2_000, 100, 1_000), 10_000, 1)
    except Problem as refusal:
        statuses = [refusal.status, protocol.refused(request, refusal).status]
    except NOT_DECODED:
        return  # the intake makes a 400 of it
    else:
        statuses = []
        _judge(batch, packed)
    assert all(400 <= status < 500 for status in statuses)


def _judge(batch: Batch, packed: Packed) -> None:
    for event in packed.events:
        assert len(event) <= 2_000
        _, refusals, _ = decode_json(event)
        assert refusals == []
    stored: Outcome = Appended("1-0", "1-0", b"", False)
    outcomes = [problem or stored for problem in packed.problems]
    with contextlib.suppress(Problem):
        assert batch.answer(outcomes).status < 300
    assert not batch.keys or len(batch.keys) == len(outcomes)


every = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


@every
@given(st.data())
def test_a_damaged_body_is_taken_or_refused(sample: Sample, data: st.DataObject) -> None:
    judged(sample, data.draw(damaged(sample.body)))


@every
@given(body=st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(sample: Sample, body: bytes) -> None:
    judged(sample, body)
    judged(sample, snappy(body))


@every
@given(value=values, more=values)
def test_any_json_is_taken_or_refused(sample: Sample, value: Any, more: Any) -> None:
    first, second = json.dumps(value).encode(), json.dumps(more).encode()
    for body in (first, first + second, first + b"\n" + second, b"[%b,%b]" % (first, second)):
        judged(sample, body, {"content-type": "application/json"})


@given(value=values)
def test_any_record_of_a_delivery_is_taken_or_refused(value: Any) -> None:
    record = json.dumps({"logEvents": [value], "logGroup": value}).encode()
    for data in (record, gzip.compress(record), gzip.compress(record)[:-9]):
        packed = base64.b64encode(data).decode()
        judged(SAMPLES["firehose"], json.dumps({"records": [{"data": packed}]}).encode())


@given(value=values)
def test_any_attributes_of_a_delivery_are_taken(value: Any) -> None:
    for told in (value, {"commonAttributes": value}):
        headers = {"x-amz-firehose-common-attributes": json.dumps(told)}
        judged(SAMPLES["firehose"], SAMPLES["firehose"].body, headers)


@given(text=st.text(alphabet='<>0123456789 -[]="\\abcT:.Z\ufeff\n', max_size=60))
def test_any_line_of_syslog_is_taken(text: str) -> None:
    for name in ("syslog", "logplex"):
        judged(SAMPLES[name], text.encode(), {"logplex-msg-count": ""})
        judged(SAMPLES[name], f"<14>1 {text}".encode(), {"logplex-msg-count": ""})
