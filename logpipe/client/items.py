"""The items that Server-Sent Events stand for: the inverse of `streaming.SseEncoder`."""

from collections.abc import Iterator

import msgspec

from logpipe import sse
from logpipe.continuity import Gap
from logpipe.event import Entry, StoredEvent
from logpipe.ids import StreamId
from logpipe.messages import Batch, Hello, Item, Message, Progress
from logpipe.positions import read_id, read_position


class _OwnId(msgspec.Struct):
    id: str


_event = msgspec.json.Decoder(StoredEvent)
_own_id = msgspec.json.Decoder(_OwnId)


def items_of(told: Iterator[sse.ServerSentEvent]) -> Iterator[Item]:
    """Items of events as they came; runs of plain ones become one batch.

    Raises `NOT_DECODED`, LookupError, TypeError or ValueError for what no distributor sends.
    """
    run: list[Entry] = []
    for each in told:
        if each.event == "message":
            data = each.data.encode()
            run.append(Entry(_id_of(each), data, _event.decode(data)))
            continue
        if run:
            yield Batch.of(run)
            run = []
        if (message := _named(each)) is not None:
            yield message
    if run:
        yield Batch.of(run)


def _named(told: sse.ServerSentEvent) -> Message | None:
    """The message of a named event; None for those that are about the connection alone."""
    data = msgspec.json.decode(told.data)
    match told.event:
        case "gap":
            ends = read_id(data["after"]), read_id(data["before"])
            count = msgspec.convert(data["count"], int | None)
            return Gap(data["reason"], *ends, count, read_id(told.id))
        case "progress":
            return Progress(read_id(told.id))
        case "hello":
            first, last = _id(data.get("first_id")), _id(data.get("last_id"))
            return Hello(read_id(told.id), first, last, "broadcast", data["version"])
    return None


def _id_of(told: sse.ServerSentEvent) -> StreamId:
    if "." in told.id:
        return read_position(told.id, _own_id.decode(told.data).id)
    return read_id(told.id)


def _id(text: str | None) -> StreamId | None:
    return read_id(text) if text else None
