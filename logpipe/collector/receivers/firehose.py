"""Amazon Data Firehose to an HTTP endpoint, also with what CloudWatch puts into it."""

import base64
import binascii
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from logpipe.collector.answer import Answer
from logpipe.collector.receivers import fields, generic
from logpipe.collector.receivers.protocol import Batch, Item, Request, always
from logpipe.collector.receivers.unpacking import by_its_first_bytes
from logpipe.problems import Problem
from logpipe.stream import digest_of

PATHS = ("/firehose",)


class Record(msgspec.Struct, gc=False):
    """A record, in base64."""

    data: str = ""


class Delivery(msgspec.Struct, rename="camel", gc=False):
    """The body of a request."""

    request_id: str = ""
    records: list[Record] = []


_decode = msgspec.json.Decoder(Delivery).decode


def parse(request: Request) -> Batch:
    """Each log event of CloudWatch, each JSON value and each other line is an event."""
    delivery = fields.decoded(_decode, request.body)
    answer = _told(request, 200, delivery.request_id)
    # The time in the body is that of the attempt.
    digest = digest_of(msgspec.json.encode(delivery.records))
    return Batch(_items(delivery, request), always(answer), digest=digest)


def _items(delivery: Delivery, request: Request) -> Iterator[Item]:
    arn = request.text("x-amz-firehose-source-arn")
    stream = arn.rpartition("/")[2] or "firehose"
    shared = _attributes(request) | fields.present(cloud__resource_id=arn)
    room = request.limit
    for record in delivery.records:
        data = by_its_first_bytes(_bytes(record.data), room)
        room -= len(data)
        for item in _of_record(data, stream):
            if not isinstance(item, Problem):
                item.metadata = fields.merge(item.metadata, shared, "firehose.")
            yield item


def _attributes(request: Request) -> dict[str, Any]:
    """What the delivery stream says of all its records."""
    text = request.text("x-amz-firehose-common-attributes")
    told = fields.json_value(text.encode()) if text else {}
    inner = told.get("commonAttributes") if isinstance(told, dict) else None
    return inner if isinstance(inner, dict) else fields.present(commonAttributes=text)


def _bytes(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        return data.encode(errors="replace")  # a text that was not packed, contrary to the rules


def _of_record(data: bytes, stream: str) -> Iterator[Item]:
    value = fields.json_value(data) if data.lstrip()[:1] == b"{" else None
    if isinstance(value, dict) and isinstance(value.get("logEvents"), list):
        yield from _of_cloudwatch(value)
    elif not (isinstance(value, dict) and value.get("messageType") == "CONTROL_MESSAGE"):
        yield from generic.items_of(data, "", generic.Names(), stream)


def _of_cloudwatch(told: dict[str, Any]) -> Iterator[Item]:
    """The log events; a control message only asks whether anyone is there."""
    if told.pop("messageType", "") == "CONTROL_MESSAGE":
        return
    group, stream = told.pop("logGroup", None), told.pop("logStream", None)
    shared = fields.present(
        aws__log__group__names=[group] if group else None,
        aws__log__stream__names=[stream] if stream else None,
        cloud__account__id=told.pop("owner", None),
        aws__log__subscription_filters=told.pop("subscriptionFilters", None),
    )
    entries = told.pop("logEvents")
    shared |= told
    for entry in entries:
        fitting = entry if isinstance(entry, dict) else {"message": entry}
        message = fields.text_of(fitting.pop("message", ""))
        ts_unix_ms = fields.ms_of(fields.pop(fitting, ("timestamp",), fields.is_time))
        metadata = fields.present(log__record__uid=fitting.pop("id", None)) | fitting
        fields.merge(metadata, shared, "cloudwatch.")
        yield fields.event_of(group or "cloudwatch", message, None, ts_unix_ms, metadata)


def token(request: Request) -> str | None:
    """The access key of the destination."""
    return request.headers.get("x-amz-firehose-access-key")


def key(request: Request) -> str | None:
    """A request keeps its id when it is sent again."""
    return request.headers.get("x-amz-firehose-request-id")


def refused(request: Request, problem: Problem) -> Answer:
    """As a success, with the reason."""
    answer = _told(request, problem.status, "", errorMessage=problem.detail)
    return answer._replace(headers=problem.headers)


def _told(request: Request, status: int, request_id: str, **members: Any) -> Answer:
    told = {
        "requestId": request.text("x-amz-firehose-request-id") or request_id,
        "timestamp": time.time_ns() // 1_000_000,
    }
    return Answer(status, "application/json", msgspec.json.encode(told | members))
