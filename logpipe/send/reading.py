"""The thread that reads, and what it was asked to read."""

import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from logpipe.event import IS_RESERVED, is_reserved
from logpipe.send.batch import Builder
from logpipe.send.inputs import Following, InOrder, Input, Stream
from logpipe.send.lines import Kind, Shaper
from logpipe.send.log import Log
from logpipe.send.position import Position
from logpipe.send.progress import Totals
from logpipe.send.resume import Journal
from logpipe.send.spool import Pending, Spool

STDIN = 0
JOIN_S = 2.0
"""What putting aside what was read may take."""


class BadUseError(Exception):
    """What was asked for cannot be; the words name the remedy."""


class Wanted(msgspec.Struct, frozen=True):
    """What is to be sent where; no files: standard input."""

    url: str
    token: str = ""
    files: Sequence[str] = ()
    source: str = ""
    level: str = "INFO"
    kind: Kind = "auto"
    detect_level: bool = False
    follow: bool = False
    from_end: bool = False
    resume: Path | None = None
    spool: Path | None = None
    spool_bytes: int = 1 << 30
    patience_s: float = 60.0


class Reading:
    """The thread that reads, and makes batches of what it has read."""

    def __init__(
        self,
        wanted: Wanted,
        journal: Journal,
        pending: Pending,
        tell: Callable[[str], None],
        totals: Totals,
        stop: threading.Event,
    ) -> None:
        self._pending = pending
        self._tell = tell
        self._totals = totals
        self._stop = stop
        self._shaper = Shaper(wanted.kind, wanted.level, detect=wanted.detect_level)
        self._builder = Builder(self._shaper)
        self._began = 0.0
        self._input = _input(wanted, _begin(journal, pending), tell)
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)
        self.size = self._input.size()
        self._failed = False

    @property
    def ended(self) -> bool:
        return self._input.ended and not self._failed

    @property
    def cut(self) -> int:
        return self._shaper.cut

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Ends the thread; the lines that it has read are queued."""
        self._stop.set()
        self._pending.stop()
        if self._thread.ident:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        self._failed = True
        try:
            self._read()
            self._failed = False
        except OSError as error:
            self._tell(f"the input cannot be read: {error.strerror}")
        finally:
            self._pending.finish()

    def _read(self) -> None:
        for chunk in self._input.chunks(self._stop):
            now = time.monotonic()
            if chunk is None:
                if now - self._began >= self._pending.linger_s:
                    self._put()
                continue
            if not self._builder.size:
                self._began = now
            for number, reason in self._builder.add(chunk, time.time_ns() // 1_000_000):
                self._totals.unfit += 1
                self._tell(f"{chunk.name}:{number}: refused: {reason}")
            if self._builder.full:
                self._put()
        self._put()

    def _put(self) -> None:
        if self._builder.size:
            self._pending.put(self._builder.take(self._input.positions()))


def _begin(journal: Journal, pending: Pending) -> list[Position]:
    """Where reading begins: after what waits to be sent."""
    flying = journal.in_flight
    newest = pending.newest() if isinstance(pending, Spool) else None
    if flying is not None:
        pending.put(flying)
        if isinstance(pending, Spool):
            journal.handed_over()
    positions = journal.begin()
    if newest is None:
        return positions
    paths = {each.path for each in newest.positions}
    return [*(each for each in positions if each.path not in paths), *newest.positions]


def _input(wanted: Wanted, begin: Sequence[Position], tell: Callable[[str], None]) -> Input:
    """What is read, opened where that must be. Raises `BadUseError`."""
    if not wanted.files:
        if sys.stdin is None:
            raise BadUseError("standard input is closed: name FILEs")
        return Stream(STDIN, "stdin", wanted.source or "stdin")
    inputs = [_opened(path, wanted, begin, tell) for path in wanted.files]
    if not wanted.follow:
        return InOrder(inputs)
    return Following([each for each in inputs if isinstance(each, Log)])


def _opened(
    path: str, wanted: Wanted, begin: Sequence[Position], tell: Callable[[str], None]
) -> Log | Stream:
    source = wanted.source or os.fsencode(Path(path).name).decode(errors="replace")
    if is_reserved(source):
        raise BadUseError(f"{path}: the source {IS_RESERVED}; name another by --source")
    try:
        if stat.S_ISFIFO(Path(path).stat().st_mode):
            if wanted.follow or wanted.resume:
                raise BadUseError(f"{path}: is a pipe, which is read once: no --follow or --resume")
            return Stream(os.open(path, os.O_RDONLY), path, source)
    except FileNotFoundError:
        pass
    log = Log(path, source, tell)
    known = [each for each in begin if each.path == str(Path(path).absolute())]
    log.resume(known)
    try:
        log.open(at_end=wanted.from_end and not known)
    except OSError as error:
        if not wanted.follow:
            remedy = ": --follow waits for it" if isinstance(error, FileNotFoundError) else ""
            raise BadUseError(f"{path}: {error.strerror}{remedy}") from None
    return log
