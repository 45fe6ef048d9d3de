"""What a hostile body may take, by protocol: many tiny things, which pack to almost nothing."""

import tracemalloc

import pytest

from logpipe.collector.ingest import Bounds, take_in
from logpipe.collector.receivers import json_text, repeated
from logpipe.collector.receivers.packing import pack
from logpipe.collector.receivers.protocol import Request
from logpipe.collector.receivers.table import PROTOCOLS
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON

BODY_BYTES = 4 * 1024 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024
BOUNDS = Bounds(65_536, keys=1_000, events=1_000)
TEXT = {"content-type": "text/plain"}


def full_of(thing: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """A body of so many of these as it holds; the last has no comma."""
    count = (BODY_BYTES - len(before) - len(after)) // len(thing)
    return before + (thing * count).removesuffix(b",") + after


@pytest.mark.parametrize(
    ("protocol", "headers", "body"),
    [
        ("syslog", {}, full_of(b"a\n")),
        ("logplex", {}, full_of(b"a\n")),
        ("json", TEXT, full_of(b"ab\n")),
        ("json", {"content-type": "application/x-ndjson"}, full_of(b"1\n")),
        ("json", JSON, full_of(b"{},", b"[", b"]")),
        ("json", JSON, full_of(b"{}")),
        ("datadog", JSON, full_of(b"{},", b"[", b"]")),
        ("gelf", JSON, full_of(b"{}")),
        ("splunk", JSON, full_of(b"[]\n")),
        ("splunk-raw", {}, full_of(b"ab\n")),
        ("elasticsearch", JSON, full_of(b'{"delete":0}\n')),
        ("firehose", JSON, full_of(b"{},", b'{"records":[', b"]}")),
        ("firehose", JSON, full_of(b"0,", b'{"records":[', b"]}")),
        ("loki", JSON, full_of(b"{},", b'{"streams":[', b"]}")),
        ("loki", JSON, full_of(b"0,", b'{"streams":[', b"]}")),
        ("loki", JSON, full_of(b"[],", b'{"streams":[{"values":[', b"]}]}")),
        ("otlp", JSON, full_of(b"{},", b'{"resourceLogs":[', b"]}")),
        ("otlp", JSON, full_of(b"{},", b'{"resourceLogs":[{"scopeLogs":[', b"]}]}")),
        ("otlp", JSON, full_of(b"0,", b'{"resourceLogs":[{"scopeLogs":[', b"]}]}")),
        (
            "otlp",
            JSON,
            full_of(b"0,", b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[', b"]}]}]}"),
        ),
    ],
)
def test_very_many_tiny_things_are_refused_in_little_memory(
    protocol: str, headers: dict[str, str], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        repeated, "MAX_REPEATED", 10_000
    )  # to find twenty times as many takes a second
    request = Request(headers=headers, body=body)
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as caught:
            pack(PROTOCOLS[protocol].parse(request).items, BOUNDS, BODY_BYTES, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 5 * BODY_BYTES


@pytest.mark.parametrize("end", [b"", b"{bad"])
@pytest.mark.parametrize(
    ("separator", "content_type"),
    [
        (b"\n", "application/x-ndjson"),
        (b"\n", "application/json"),
        (b",", "application/json"),
    ],
)
def test_events_of_many_tiny_objects_are_taken_in_little_memory(
    separator: bytes, content_type: str, end: bytes
) -> None:
    event = b'{"source":"a","message":"","metadata":{"a":[%b]}}' % b",".join([b"{}"] * 900)
    events = [event] * (BODY_BYTES // len(event))
    body = separator.join([*events, end] if end else events)
    if separator == b",":
        body = b"[" + body + b"]"
    tracemalloc.start()
    try:
        intake = take_in(body, content_type, BOUNDS._replace(events=10_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(intake.events) == len(events)
    assert len(intake.refusals) == bool(end)
    assert peak < 4 * MAX_BODY_BYTES  # 53 MiB; decoded all at once, it is 104 MiB


def test_a_broken_text_of_escapes_is_looked_through_in_little_memory() -> None:
    body = full_of(b"\\n", b'{"a":"')
    tracemalloc.start()
    try:
        assert isinstance(json_text.json_value(body), Problem)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * BODY_BYTES
