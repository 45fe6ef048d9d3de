"""Entries as Redis sends them."""

import math
from collections.abc import Iterator, Sequence

from logpipe.event import Entry, read_entry
from logpipe.ids import StreamId, from_wire
from logpipe.turns import Turns

FIELD = b"event"
"""The one field of an entry: the event's JSON."""

RawEntry = tuple[bytes, Sequence[bytes] | None]
"""An entry as hiredis reads it: its id, then its fields and values in turn (None: deleted)."""


def entry_of(raw: RawEntry) -> tuple[StreamId, Entry | None]:
    """The id of an entry, and the entry; None for one that holds no event."""
    id_ = from_wire(raw[0])
    return id_, read_entry(id_, event_json(raw[1]))


def event_json(fields: Sequence[bytes] | None) -> bytes | None:
    """The event's JSON in the fields of a `RawEntry`; None where there is none."""
    if not fields:
        return None
    if fields[0] == FIELD:
        return fields[1]
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(FIELD)


async def decoded(
    raw: Sequence[RawEntry], turns: Turns, most: float = math.inf
) -> list[tuple[StreamId, Entry | None]]:
    """`entry_of` of many, in turns: of all, or of the first ones whose JSON has `most` bytes or
    little more."""
    pairs: list[tuple[StreamId, Entry | None]] = []

    def decoding() -> Iterator[None]:
        size = 0
        for each in raw:
            pairs.append(pair := entry_of(each))
            if (entry := pair[1]) is not None:
                size += len(entry.json)
                if size >= most:
                    return
            yield

    await turns.run(decoding())
    return pairs
