"""The items that Server-Sent Events stand for: the inverse of `streaming.SseEncoder`."""

from collections.abc import Iterator

import msgspec

from logpipe import sse
from logpipe.continuity import Gap
from logpipe.event import Entry, StoredEvent
from logpipe.ids import StreamId, parse_id
from logpipe.messages import Batch, Bye, Hello, Item, Message, Progress

_event = msgspec.json.Decoder(StoredEvent)


def entry_of(id_: str, json: bytes) -> Entry:
    """The entry that a distributor has sent. Raises `NOT_DECODED`, ValueError."""
    return Entry(parse_id(id_), json, _event.decode(json))


def items_of(told: Iterator[sse.ServerSentEvent]) -> Iterator[Item]:
    """Items of events as they came; runs of plain ones become one batch.

    Raises `NOT_DECODED`, LookupError, TypeError or ValueError for what no distributor sends.
    """
    run: list[Entry] = []
    for each in told:
        if each.event == "message":
            run.append(entry_of(each.id, each.data.encode()))
            continue
        if run:
            yield Batch.of(run)
            run = []
        if (message := _named(each)) is not None:
            yield message
    if run:
        yield Batch.of(run)


def _named(told: sse.ServerSentEvent) -> Message | None:
    """The message of a named event; None for a name that is not known."""
    data = msgspec.json.decode(told.data)
    match told.event:
        case "gap":
            ends = parse_id(data["after"]), parse_id(data["before"])
            count = msgspec.convert(data["count"], int | None)
            return Gap(data["reason"], *ends, count, parse_id(told.id))
        case "progress":
            return Progress(parse_id(told.id), _id(data.get("looked_back_to")))
        case "hello":
            first, last = _id(data.get("first_id")), _id(data.get("last_id"))
            shared = {name: data.get(name) for name in ("filter", "member")}
            delivery = data.get("delivery", "broadcast")
            return Hello(_id(told.id), first, last, delivery, data["version"], **shared)
        case "bye":
            return Bye(data["reason"], msgspec.convert(data["retry_ms"], int))
    return None


def _id(text: str | None) -> StreamId | None:
    return parse_id(text) if text else None
