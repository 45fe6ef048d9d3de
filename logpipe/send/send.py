"""The whole of a send: a thread reads and makes batches, this one delivers them in order."""

import math
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from logpipe.client.ingest import Collector
from logpipe.locks import locked, owner, sign
from logpipe.send.batch import Builder
from logpipe.send.delivery import Delivery, UndeliverableError
from logpipe.send.files import Following, InOrder, Input, Log, Stream
from logpipe.send.position import Position
from logpipe.send.progress import Screen, Totals
from logpipe.send.resume import BadFileError, Journal
from logpipe.send.shape import Kind, Shaper
from logpipe.send.spool import Handover, Pending, Spool
from logpipe.send.stop import Stop, StoppedError
from logpipe.terminal import counted

STDIN = 0
JOIN_S = 2.0
"""What the reading thread may take to put aside what it has."""


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


def send(wanted: Wanted, screen: Screen, stop: Stop) -> int:
    """Sends until all is sent, or it is told to end; the exit status.

    Raises `BadUseError`, and `BadFileError` for a resume file or a spool that cannot be used.
    """
    totals = Totals()
    with ExitStack() as stack:
        if wanted.resume:
            stack.enter_context(_held(wanted.resume.with_name(f"{wanted.resume.name}.lock")))
        paths = [str(Path(path).absolute()) for path in wanted.files]
        journal = Journal(wanted.resume, paths)
        pending = _pending(wanted, screen.tell, stack)
        reading = Reading(wanted, journal, pending, screen.tell, totals, stop.asked)
        collector = stack.enter_context(closing(Collector(wanted.url, wanted.token)))
        delivery = Delivery(
            collector.post,
            wanted.url,
            screen.tell,
            totals,
            stop=stop.asked,
            patience_s=wanted.patience_s,
            patient_until=_patient_until(wanted, pending),
        )
        stack.callback(screen.close)
        screen.show(totals, reading.size)
        whole = _deliver_all(reading, pending, journal, delivery, screen.tell, totals)
    _say_the_sum(wanted, totals, reading, screen)
    lacking = totals.refused or totals.unfit or totals.left or pending.broken
    return 0 if whole and reading.ended and not lacking else 1


def _patient_until(wanted: Wanted, pending: Pending) -> Callable[[], float]:
    """Patience counts once there is nothing else to do: never while it follows, and with a spool
    when all is in it."""
    if wanted.follow:
        return lambda: math.inf
    if wanted.spool:
        return lambda: pending.finished_at
    return lambda: -math.inf


def _pending(wanted: Wanted, tell: Callable[[str], None], stack: ExitStack) -> Pending:
    folder = wanted.spool
    if folder is None:
        return Handover()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(_held(folder / "lock"))
        spool = Spool(folder, wanted.spool_bytes, tell)
    except OSError as error:
        raise BadFileError(
            f"{folder}: cannot be used: {error.strerror}: name another with --spool"
        ) from None
    if spool.left:
        tell(f"{folder}: {counted(spool.left, 'line')} of an earlier run come first")
    return spool


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keeps others out by a locked file. Raises `BadFileError`."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadFileError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        if not locked(file):
            raise BadFileError(
                f"{path}: is held by another send{owner(path)}: stop it, or name another"
            )
        sign(file, os.getpid())
        yield
    finally:
        os.close(file)


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

    @property
    def ended(self) -> bool:
        """Whether all was read."""
        return self._input.ended

    @property
    def cut(self) -> int:
        """Lines that were too long."""
        return self._shaper.cut

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def end(self) -> None:
        """Has it put aside what it has."""
        self._stop.set()
        self._pending.stop()
        if self._thread.ident:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            self._read()
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


def _deliver_all(
    reading: Reading,
    pending: Pending,
    journal: Journal,
    delivery: Delivery,
    tell: Callable[[str], None],
    totals: Totals,
) -> bool:
    """Delivers until there is no more; whether that was the end of the input."""
    whole = False
    try:
        reading.start()
        while batch := pending.get():
            if not journal.knows(batch):
                if not isinstance(pending, Spool):  # which has it on disk already
                    journal.sending(batch)
                if batch.events:
                    delivery.deliver(batch)
                journal.taken(batch)
            pending.done()
            totals.size += batch.size
        whole = True
    except StoppedError:
        pass
    except UndeliverableError as error:
        tell(str(error))
    reading.end()
    totals.left = pending.left
    return whole


def _say_the_sum(wanted: Wanted, totals: Totals, reading: Reading, screen: Screen) -> None:
    if reading.cut:
        screen.tell(f"{counted(reading.cut, 'line')} cut: too long; metadata.cut_from_bytes says")
    if totals.left and wanted.spool:
        screen.tell(f"{wanted.spool}: keeps what was not sent, for the next send with it")
    elif totals.left and wanted.resume:
        screen.tell(f"{wanted.resume}: the next send with it goes on with what was not sent")
    screen.tell_sum(totals)
