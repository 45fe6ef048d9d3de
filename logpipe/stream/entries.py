"""Entries as Redis sends them."""

from logpipe.event import Entry, read_entry
from logpipe.ids import StreamId, from_wire

FIELD = b"event"
"""The one field of an entry: the event's JSON."""


def entry_of(id_: bytes, fields: dict[bytes, bytes] | None) -> tuple[StreamId, Entry | None]:
    """An entry as Redis sends it; None for one that holds no event."""
    where = from_wire(id_)
    return where, read_entry(where, fields.get(FIELD) if fields else None)
