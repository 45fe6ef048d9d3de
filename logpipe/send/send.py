"""The whole of a send: a thread reads and makes batches, this one delivers them in order."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from logpipe.client.ingest import Collector
from logpipe.locks import locked, owner, sign
from logpipe.send.delivery import Delivery, StoppedError, UndeliverableError
from logpipe.send.progress import Screen, Totals
from logpipe.send.reading import Reading, Wanted
from logpipe.send.resume import BadFileError, Journal
from logpipe.send.spool import Handover, Pending, Spool
from logpipe.terminal import counted

HANDLED = (signal.SIGINT, signal.SIGTERM)

GRACE_S = 3.0
"""What delivering the last lines may take."""


class Stop:
    """While entered, `asked` is set by the first signal, upon which the sender finishes what it has
    read, within `GRACE_S`; another signal, or the end of that time, raises `StoppedError`."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._forgotten = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in HANDLED}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def forget(self) -> None:
        """There is nothing left to interrupt: what is to come takes a moment."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._forgotten = True

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._forgotten:
            return
        if self.asked.is_set():
            raise StoppedError
        self.asked.set()
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)


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
        whole = _deliver_all(reading, pending, journal, delivery, screen, totals)
        stop.forget()
        reading.end()
        totals.left = pending.left
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


def _deliver_all(
    reading: Reading,
    pending: Pending,
    journal: Journal,
    delivery: Delivery,
    screen: Screen,
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
            screen.advance(batch.size)
        whole = True
    except StoppedError:
        pass
    except UndeliverableError as error:
        screen.tell(str(error))
    return whole


def _say_the_sum(wanted: Wanted, totals: Totals, reading: Reading, screen: Screen) -> None:
    if reading.cut:
        screen.tell(f"{counted(reading.cut, 'line')} cut: too long; metadata.cut_from_bytes says")
    if totals.left and wanted.spool:
        screen.tell(f"{wanted.spool}: keeps what was not sent, for the next send with it")
    elif totals.left and wanted.resume:
        screen.tell(f"{wanted.resume}: the next send with it goes on with what was not sent")
    screen.tell_sum(totals)
