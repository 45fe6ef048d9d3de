"""What a crowd of subscribers is sent, looked through once.

Those that asked the same are sent the same bytes. So a process keeps a reference of what was read;
a subscriber costs a comparison with it, and is looked through by itself only from where it
differs. That keeps up with a gigabyte a second.
"""

import socket

from logpipe.bench.events import Mark, Marks
from logpipe.bench.http import Body


class Reference:
    """What every subscriber is sent, as the first to receive it has seen it."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self.data = bytearray()
        self.base = 0  # the offset of its first byte, as what all have had is let go
        self.ends: list[int] = []
        self.marks: list[Mark] = []
        self._searched = 0

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.base + len(self.data)

    def extend(self, more: memoryview) -> None:
        """Takes what comes next, and looks for the marks in it."""
        self.data += more
        for end, mark in self._marks.find(self.data, self._searched - self.base):
            self.ends.append(self.base + end)
            self.marks.append(mark)
            self._searched = self.base + end
        self._searched = max(self._searched, self.end - Marks.LENGTH)

    def let_go(self, offset: int) -> None:
        """Forgets what lies before an offset."""
        gone = max(0, min(offset, self._searched) - self.base)
        del self.data[:gone]
        self.base += gone


class Subscriber:
    """One connection: how far it is in the reference, or what it was sent instead.

    `own` is what it has had since it differs; `timed`, where it is kept, how far it was and when,
    by a unix time in microseconds.
    """

    def __init__(
        self,
        sock: socket.socket,
        reference: Reference,
        marks: Marks,
        *,
        http: bool,
        timed: bool,
    ) -> None:
        self.sock = sock
        self.reference = reference
        self.body = Body(http=http)
        self.offset = 0
        self.timed: list[tuple[int, int]] | None = [] if timed else None
        self._marks = marks
        self._own = bytearray()
        self.differs = False
        self.own: list[tuple[int, Mark]] = []

    def take(self, piece: memoryview, now_us: int) -> None:
        """Bytes of the body, in their order."""
        if self.differs:
            self._look_through(piece, now_us)
            return
        reference = self.reference
        at = self.offset - reference.base
        known = min(len(piece), len(reference.data) - at)
        if known > 0 and not reference.data.startswith(piece[:known], at):
            self._leave(piece, now_us)
            return
        if known < len(piece):
            reference.extend(piece[known:])
        self.offset += len(piece)
        if self.timed is not None:
            self.timed.append((now_us, self.offset))

    @property
    def needs(self) -> int:
        """From which offset on it needs the reference."""
        return self.reference.end if self.differs else max(0, self.offset - Marks.LENGTH)

    def _leave(self, piece: memoryview, now_us: int) -> None:
        """From here on it is not sent what the others are."""
        self.differs = True
        reference = self.reference
        at = self.offset - reference.base
        self._own += reference.data[max(0, at - Marks.LENGTH) : at]
        self._look_through(piece, now_us, known=bool(self._own))

    def _look_through(self, piece: memoryview, now_us: int, *, known: bool = False) -> None:
        if known:  # marks that were complete before were seen in the reference
            before = self._marks.find(self._own)
            if before:
                del self._own[: before[-1][0]]
        self._own += piece
        found = self._marks.find(self._own)
        self.own += [(now_us, mark) for _, mark in found]
        del self._own[: found[-1][0] if found else max(0, len(self._own) - Marks.LENGTH)]
