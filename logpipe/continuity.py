"""Whether a cursor still connects to the stream, and if not, what lies in between.

The promise "the ids received and the gaps told add up to all ids" rests on `gap_after`. Where the
entry of the cursor itself is still in the stream, nothing after it can have been trimmed, because
trimming takes from the front; that proof is cheap and needs nothing here. This module judges the
other case from what `XINFO STREAM` says.
"""

from typing import Literal, NamedTuple

import msgspec

from logpipe.ids import START, StreamId

Reason = Literal["trimmed", "slow", "reset"]


class Cursor(NamedTuple):
    """All up to `id` has been read; `position` is how many entries that were, where known.

    The position counts from the first entry that the stream ever had, so that the difference of
    two positions is an exact number of entries, trimmed ones included.
    """

    id: StreamId
    position: int | None = None

    def unproven(self) -> "Cursor":
        """The cursor once nothing proves that the stream is still the one that was read.

        A position means nothing then; and `START`, which fits every stream, becomes an id that
        fits none, so that a reader who had nothing yet is told of what it missed.
        """
        return Cursor(max(self.id, START.after()))


class Bounds(NamedTuple):
    """What `XINFO STREAM` says of a stream; all zero and None for a key that does not exist."""

    first: StreamId | None
    """The oldest entry kept."""
    last: StreamId
    """The last id that was ever given, which may be trimmed by now."""
    added: int | None
    """How many entries it ever had; None before Redis 7."""
    length: int
    deleted: StreamId
    """The greatest id that was deleted on its own (XDEL), `START` where none was."""
    newest: StreamId | None = None
    """The newest entry kept."""

    @property
    def trimmed(self) -> bool:
        """Whether any entry may have gone."""
        return self.added is None or self.added > self.length

    def spans(self, witness: StreamId) -> bool:
        """Whether this can be the stream that held an entry `witness`, or had nothing then.

        A flush leaves a stream whose ids are all above; only trimming past it looks the same.
        """
        if witness == START or self.first is None:
            return True
        return self.first <= witness <= self.last

    @property
    def position_before_first(self) -> int | None:
        """How many entries have gone; XDEL leaves holes that make it unknown."""
        if self.added is None or self.deleted != START:
            return None
        return self.added - self.length


NO_STREAM = Bounds(None, START, 0, 0, START)


class Gap(msgspec.Struct, frozen=True):
    """Entries between `after` and `before` (both exclusive) that a subscriber will not get.

    `count` is exact or None. `resume` is the cursor that continues behind the gap.
    """

    reason: Reason
    after: StreamId
    before: StreamId
    count: int | None
    resume: StreamId


def gap_after(cursor: Cursor, bounds: Bounds) -> Gap | None:
    """What is missing between a cursor whose entry the stream does not hold and the stream.

    None where nothing is, or where the stream is empty, so that there is no other side yet.
    """
    first = bounds.first
    if first is None or cursor.id == bounds.last:
        return None
    if cursor.id > first:
        # Trimming cannot have taken it. XDEL can, up to `last`; else the id is of another stream.
        return None if cursor.id <= bounds.deleted else _gap("reset", cursor, first, None)
    if cursor.id == first.before():
        return None
    if not bounds.trimmed:
        return None if cursor.id == START else _gap("reset", cursor, first, None)
    position = 0 if cursor.id == START else cursor.position
    if position is None or bounds.position_before_first is None:
        return _gap("trimmed", cursor, first, None)
    count = bounds.position_before_first - position
    if count < 0:
        return _gap("reset", cursor, first, None)
    return _gap("trimmed", cursor, first, count) if count else None


def _gap(reason: Reason, cursor: Cursor, first: StreamId, count: int | None) -> Gap:
    return Gap(reason, cursor.id, first, count, first.before())
