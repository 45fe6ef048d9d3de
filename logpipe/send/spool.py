"""Batches that wait to be sent: two in memory, or as many in a folder as its bound allows.

Both are handed over between the thread that reads and the one that sends. `put` waits while they
are full, unless all is to end; then one more is taken rather than lost.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from logpipe.event import NOT_DECODED
from logpipe.send.batch import Batch
from logpipe.send.resume import write_whole

READ_AHEAD = 2
"""Batches that wait in memory."""

SPOOL_LINGER_S = 1.0
"""While batches wait in a folder, the next one is filled for so long: fewer, larger files."""

WRITE_AGAIN_S = 1.0
"""Between two attempts to write where there is no room."""

_SUFFIX = ".batch"


class _Waiting:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.finished_at = math.inf
        """The time (monotonic) of `finish`."""
        self._stopped = False

    @property
    def _is_finished(self) -> bool:
        return self.finished_at < math.inf

    def finish(self) -> None:
        """Says that no more batches are put."""
        with self._changed:
            self.finished_at = time.monotonic()
            self._changed.notify_all()

    def stop(self) -> None:
        """Lets `put` wait no longer."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Handover(_Waiting):
    linger_s = 0.0
    broken = 0

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[Batch] = deque()

    @property
    def left(self) -> int:
        return sum(batch.events for batch in self._waiting)

    def put(self, batch: Batch) -> None:
        """Adds one; waits for room."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < READ_AHEAD or self._stopped)
            self._waiting.append(batch)
            self._changed.notify_all()

    def get(self) -> Batch | None:
        """The oldest, the same one until it is done; None when all are done and no more come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_finished)
            return self._waiting[0] if self._waiting else None

    def done(self) -> None:
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()


class _Kept(NamedTuple):
    number: int
    events: int
    size: int


def _kept_in(folder: Path) -> list[_Kept]:
    found = []
    for path in folder.glob(f"*{_SUFFIX}"):
        number, _, events = path.stem.partition("-")
        if number.isdigit() and events.isdigit():
            found.append(_Kept(int(number), int(events), path.stat().st_size))
    return sorted(found)


class Spool(_Waiting):
    """In a folder, each batch a file: what was put there outlives the process. `broken` counts the
    events of files that could not be read."""

    def __init__(self, folder: Path, bound: int, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._folder = folder
        self._bound = bound
        self._tell = tell
        self.broken = 0
        for left in folder.glob(f".*{_SUFFIX}.*"):
            left.unlink(missing_ok=True)  # the writing of it was cut off
        self._waiting = deque(_kept_in(folder))
        self._bytes = sum(each.size for each in self._waiting)
        self._next = self._waiting[-1].number + 1 if self._waiting else 1

    @property
    def left(self) -> int:
        return sum(each.events for each in self._waiting)

    def _file(self, kept: _Kept) -> Path:
        return self._folder / f"{kept.number:012d}-{kept.events}{_SUFFIX}"

    @property
    def linger_s(self) -> float:
        """How long a batch may wait to be filled."""
        return SPOOL_LINGER_S if len(self._waiting) > 1 else 0.0

    def newest(self) -> Batch | None:
        return self._read(self._waiting[-1]) if self._waiting else None

    def put(self, batch: Batch) -> None:
        """Writes one; waits for room, and says so."""
        data = msgspec.json.encode(batch)
        with self._changed:
            if not self._has_room(len(data)):
                self._tell(
                    f"{self._folder}: the spool is full ({self._bytes:,} of {self._bound:,} bytes):"
                    " nothing more is read until the collector has taken some"
                )
                self._changed.wait_for(lambda: self._has_room(len(data)))
            kept = _Kept(self._next, batch.events, len(data))
            self._write(self._file(kept), data)
            self._waiting.append(kept)
            self._bytes += len(data)
            self._next += 1
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return self._bytes + size <= self._bound or not self._waiting or self._stopped

    def _write(self, path: Path, data: bytes) -> None:
        told = False
        while True:
            try:
                return write_whole(path, data)
            except OSError as error:
                if self._stopped:
                    raise
                if not told:
                    told = True
                    self._tell(f"{self._folder}: cannot be written: {error.strerror}; trying again")
                self._changed.wait(WRITE_AGAIN_S)

    def get(self) -> Batch | None:
        """The oldest, the same one until it is done; None when all are done and no more come."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_finished)
                if not self._waiting:
                    return None
                oldest = self._waiting[0]
            if batch := self._read(oldest):
                return batch
            self._set_aside(oldest)

    def _read(self, kept: _Kept) -> Batch | None:
        try:
            return msgspec.json.decode(self._file(kept).read_bytes(), type=Batch)
        except (OSError, *NOT_DECODED):
            return None

    def _set_aside(self, kept: _Kept) -> None:
        path = self._file(kept)
        self.broken += kept.events
        self._tell(f"{path}: is no batch, and is left as {path.stem}.broken")
        if path.exists():
            path.rename(path.with_suffix(".broken"))
        self._forget()

    def done(self) -> None:
        self._file(self._waiting[0]).unlink(missing_ok=True)
        self._forget()

    def _forget(self) -> None:
        with self._changed:
            self._bytes -= self._waiting.popleft().size
            self._changed.notify_all()


Pending = Handover | Spool
