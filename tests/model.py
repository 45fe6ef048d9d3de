"""The promise as a model, without any I/O: a stream's log, and what a reader of it may receive.

The ids and the gaps that a reader received add up to all ids: each entry of the log that its filter
takes, from where it began, came exactly once and in order, or lies in a gap.
"""

from collections.abc import Iterable
from typing import NamedTuple

from logpipe.continuity import Gap
from logpipe.ids import START, StreamId

LOST = "neither received nor reported as missing"
TWICE = "received twice, or out of order"
MISCOUNTED = "a gap with a wrong count"
MISPLACED = "a gap that is no range, or not all missing"
NOT_ASKED_FOR = "received though it was not asked for"


class LawBrokenError(AssertionError):
    """What a subscriber received breaks the promise; the message begins with one of the above."""


class Written(NamedTuple):
    """An entry of the log."""

    id: StreamId
    source: str


class Log:
    """Every entry that was ever appended, over all lives of the stream, and those still kept.

    Ids rise over all lives: who flushes waits until the clock has gone on.
    """

    def __init__(self) -> None:
        self.begun = False
        """Whether the processes run that read it."""
        self.all: list[Written] = []
        self.kept: list[Written] = []
        self.flushed_at = 0
        """How many entries there were when the stream was flushed last."""

    @property
    def last(self) -> StreamId:
        """The newest id; `START` where there was none yet."""
        return self.all[-1].id if self.all else START

    @property
    def last_kept(self) -> StreamId:
        """The newest id that is kept; `START` where none is."""
        return self.kept[-1].id if self.kept else START

    def append(self, new: list[Written]) -> None:
        """Takes note of entries."""
        assert not self.all or self.last < new[0].id
        self.all += new
        self.kept += new

    def trim(self, keep: int) -> None:
        """Only the newest are kept."""
        self.kept = self.kept[max(0, len(self.kept) - keep) :]

    def lose(self, count: int) -> None:
        """Of all that was ever appended, only what the first `count` were is still there."""
        lost = set(self.all[count:])
        self.kept = [written for written in self.kept if written not in lost]

    def keep(self, ids: set[StreamId]) -> None:
        """Only these are still there: all that a server has that takes over."""
        kept = [written for written in self.kept if written.id in ids]
        assert len(kept) == len(ids), "a server has what the one before did not keep"
        self.kept = kept

    def flush(self) -> None:
        """The stream is gone; the next entry begins another."""
        self.kept = []
        self.flushed_at = len(self.all)


def is_in(id_: StreamId, gaps: Iterable[Gap]) -> bool:
    """Whether one of the gaps reports this id as missing."""
    return any(gap.after < id_ < gap.before for gap in gaps)


class Reader:
    """One subscriber over all its connections; `source` is its filter, None for every event.

    `resume` is the id that it would send as Last-Event-ID. A reader that changes its filter has
    one more segment: what follows the id at which it resumed is judged by the new one.
    """

    def __init__(self, log: Log, source: str | None) -> None:
        self.log = log
        self.begin: StreamId | None = None
        self.resume: StreamId | None = None
        self.passed = START
        self.received: list[StreamId] = []
        self.gaps: list[Gap] = []
        self._since = 0
        self._segments: list[tuple[StreamId, str | None]] = [(START, source)]

    def __repr__(self) -> str:
        gaps = [f"{gap.reason} {gap.after}..{gap.before}" for gap in self.gaps]
        flushed = self.log.all[self.log.flushed_at :][:1]
        return (
            f"<Reader from {self.begin}, received {len(self.received)}: {self.received[-3:]},"
            f" {gaps=}, segments {self._segments}, the first since a flush {flushed}>"
        )

    @property
    def newest(self) -> StreamId:
        """The id received last; `START` before the first."""
        return self.received[-1] if self.received else START

    @property
    def source(self) -> str | None:
        """The filter of now."""
        return self._segments[-1][1]

    def change_filter(self, source: str | None) -> None:
        """The next connection has another filter."""
        if self.resume is None:
            self._segments = [(START, source)]
        else:
            self._segments.append((self.resume, source))

    def reconnect(self) -> None:
        """A new connection, by `resume`; 0-0 is the beginning of whatever stream there is then."""
        if self.resume == START:
            self.begin = None

    def take_hello(self, begin: StreamId | None) -> None:
        """The first message of a connection; without an id, what follows says where it begins."""
        if begin is None:
            return
        self.begin_at(begin)
        if self.resume is None:
            self.resume = begin
        assert begin <= self.resume

    def begin_at(self, begin: StreamId) -> None:
        """The id after which the subscription begins, unless an earlier connection has said so."""
        if self.begin is None:
            self.begin = begin
            self._since = self.log.flushed_at if begin == START else 0
            assert begin <= self.log.last

    def take_gap(self, gap: Gap) -> None:
        """Checks what a gap says against the log as it is now."""
        missing = [w for w in self.log.all[self._since :] if gap.after < w.id < gap.before]
        if gap.count is not None and not gap.count == len(missing) > 0:
            raise LawBrokenError(f"{MISCOUNTED}: {gap}, {len(missing)} are missing: {self}")
        held = gap.reason != "slow" and not set(self.log.kept).isdisjoint(missing)
        if held or gap.after >= gap.before or gap.before <= self.newest:
            raise LawBrokenError(f"{MISPLACED}: {gap}: {self}")
        self.gaps.append(gap)
        self.progress(gap.resume)

    def take_entry(self, id_: StreamId) -> None:
        """An event that was received."""
        if id_ <= self.newest:
            raise LawBrokenError(f"{TWICE}: {id_} after {self.newest}")
        self.received.append(id_)
        self.progress(id_)

    def progress(self, id_: StreamId) -> None:
        """All up to an id has been dealt with."""
        self.resume = id_
        self.passed = max(self.passed, id_)

    def check(self) -> None:
        """Raises `LawBrokenError` unless the ids received and the gaps add up to all ids."""
        assert self.begin is not None
        # Who begins with whatever stream there is may be given by a window what was before a flush.
        got = set(self.received) - {written.id for written in self.log.all[: self._since]}
        for written in self.log.all[self._since :]:
            wanted = self._wanted(written)
            if written.id in got:
                if not wanted:
                    raise LawBrokenError(f"{NOT_ASKED_FOR}: {written}, against the filter: {self}")
                got.remove(written.id)
            elif wanted and written.id > self.begin and not is_in(written.id, self.gaps):
                raise LawBrokenError(f"{LOST}: {written.id}: {self}")
        if got:
            raise LawBrokenError(f"{NOT_ASKED_FOR}: {sorted(got)}, which were never appended")

    def _wanted(self, written: Written) -> bool:
        source = next(s for after, s in reversed(self._segments) if after < written.id)
        return source in (None, written.source)
