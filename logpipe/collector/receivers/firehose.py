"""Amazon Data Firehose to an HTTP endpoint, also with what CloudWatch puts into it."""

import binascii
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from logpipe.collector.answer import Answer
from logpipe.collector.body import FrameBudget
from logpipe.collector.receivers import fields, generic, json_text, schema, times
from logpipe.collector.receivers.mixed import values_of
from logpipe.collector.receivers.protocol import Batch, Item, Outcome, Request, problems_of
from logpipe.collector.receivers.repeated import Array, elements
from logpipe.collector.receivers.unpacking import by_its_first_bytes
from logpipe.decoding import is_utf8
from logpipe.event import Event
from logpipe.problems import Problem
from logpipe.stream import digest_of
from logpipe.turns import pause

PATHS = ("/firehose",)

UNDECODABLE = "log.undecodable"
"""In the metadata of a record's events: what it should have been and is not, `base64`,
`compression`, or `record`, an object with data. Then the record is stored as it came."""


BASE64_BYTES = 1024 * 1024
"""Bytes of base64, a multiple of four, that are read without a pause: 4 ms."""


class Delivery(msgspec.Struct, rename="camel", gc=False):
    """The body of a request. Each record is an object with `data` in base64."""

    records: Array
    request_id: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b'""'))


_decode = msgspec.json.Decoder(Delivery).decode


def parse(request: Request) -> Batch:
    """Each log event of CloudWatch, each JSON object and each other line is an event."""
    delivery = json_text.decoded(_decode, request.body)
    records = elements(delivery.records)
    request_id = json_text.json_value(bytes(delivery.request_id))
    if isinstance(request_id, Problem):
        raise request_id
    answer = _told(request, 200, schema.text_of(request_id))
    # Not of the body: the time in it is that of the attempt.
    digest = digest_of(bytes(delivery.records))
    return Batch(_items(records, request), _whole(answer), digest=digest)


def _whole(answer: Answer) -> Callable[[Sequence[Outcome]], Answer]:
    """Success only where nothing was rejected: Firehose deletes what is answered 200, and keeps
    anything else in its bucket. What was stored is not stored again, by the request's id."""

    def answered(outcomes: Sequence[Outcome]) -> Answer:
        for _, problem in problems_of(outcomes):
            raise problem
        return answer

    return answered


def _items(records: Sequence[msgspec.Raw], request: Request) -> Iterator[Item]:
    arn = request.text("x-amz-firehose-source-arn")
    stream = arn.rpartition("/")[2] or "firehose"
    shared = _attributes(request) | fields.present(cloud__resource_id=arn)
    room, frames = request.limit, FrameBudget()
    for record in records:
        data, undecodable = _data(bytes(record), room, frames)
        room -= len(data)
        found = fields.present(**{UNDECODABLE: undecodable})
        for event in _of_record(data, stream):
            event.metadata = fields.merge(found | event.metadata, shared, "firehose.")
            yield event


def _data(raw: bytes, room: int, frames: FrameBudget) -> tuple[bytes, str]:
    """The data of a record, and what it should have been and is not. Raises a 413 `Problem`."""
    record = json_text.json_value(raw)
    text = record.get("data") if isinstance(record, dict) else None
    if not isinstance(text, str):
        return raw, "record"
    try:
        data = from_base64(text)
    except ValueError:
        return text.encode(errors="replace"), "base64"
    try:
        return by_its_first_bytes(data, room, frames), ""
    except Problem as problem:
        if problem.status != 400:  # it is packed, and too much
            raise
    # A line may begin with the same bytes as packed data.
    return (data, "") if is_utf8(data) else (text.encode(), "compression")


def from_base64(text: str, size: int = BASE64_BYTES) -> bytes:
    """The bytes that a text in base64 stands for, read in pieces of `size` characters, a multiple
    of four; the last has up to twice as many. Raises ValueError or `binascii.Error`, which is one.
    """
    encoded = text.encode("ascii")
    pieces = []
    at = 0
    while len(encoded) - at > 2 * size:
        piece = encoded[at : at + size]
        if b"=" in piece:
            raise ValueError("padding is not at the end")
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
        at += size
        pause()
    pieces.append(binascii.a2b_base64(encoded[at:], strict_mode=True))
    return b"".join(pieces)


def _attributes(request: Request) -> dict[str, Any]:
    """What the delivery stream says of all its records."""
    text = request.text("x-amz-firehose-common-attributes")
    told = json_text.json_value(text.encode()) if text else {}
    inner = told.get("commonAttributes") if isinstance(told, dict) else None
    return inner if isinstance(inner, dict) else fields.present(commonAttributes=text)


def _of_record(data: bytes, stream: str) -> Iterator[Event]:
    for value in values_of(data.decode(errors="replace")):
        if not isinstance(value, dict):
            yield schema.event_of(stream, value, None, None, {})
        elif value.get("messageType") == "CONTROL_MESSAGE":
            continue  # CloudWatch only asks whether the destination answers
        elif isinstance(value.get("logEvents"), list) and value["logEvents"]:
            yield from _of_cloudwatch(value)
        else:
            yield generic.event_of(value, generic.Names(), stream)


def _of_cloudwatch(batch: dict[str, Any]) -> Iterator[Event]:
    """The log events of one message; there may be several of them in a record."""
    batch.pop("messageType", None)
    group, stream = batch.pop("logGroup", None), batch.pop("logStream", None)
    shared = fields.present(
        aws__log__group__names=[group] if group else None,
        aws__log__stream__names=[stream] if stream else None,
        cloud__account__id=batch.pop("owner", None),
        aws__log__subscription_filters=batch.pop("subscriptionFilters", None),
    )
    entries = batch.pop("logEvents")
    shared |= batch
    for entry in entries:
        fitting = entry if isinstance(entry, dict) else {"message": entry}
        message = schema.text_of(fitting.pop("message", ""))
        ts_unix_ms = times.ms_of(fields.pop(fitting, ("timestamp",), times.is_time))
        metadata = fields.present(log__record__uid=fitting.pop("id", None)) | fitting
        fields.merge(metadata, shared, "cloudwatch.")
        yield schema.event_of(group or "cloudwatch", message, None, ts_unix_ms, metadata)


def token(request: Request) -> str | None:
    """The access key of the destination."""
    return request.headers.get("x-amz-firehose-access-key")


def key(request: Request) -> str | None:
    """A request keeps its id when it is sent again."""
    return request.headers.get("x-amz-firehose-request-id")


def refused(request: Request, problem: Problem) -> Answer:
    """As a success, with the reason."""
    answer = _told(request, problem.status, "", errorMessage=problem.detail)
    return answer._replace(headers=problem.answered_headers())


def _told(request: Request, status: int, request_id: str, **members: Any) -> Answer:
    told = {
        "requestId": request.text("x-amz-firehose-request-id") or request_id,
        "timestamp": time.time_ns() // 1_000_000,
    }
    return Answer(status, "application/json", msgspec.json.encode(told | members))
