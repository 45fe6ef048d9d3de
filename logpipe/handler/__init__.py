"""Python's `logging` into logpipe: one line, and neither Redis nor a web framework imported.

    from logpipe.handler import LogpipeHandler

    logging.getLogger().addHandler(LogpipeHandler("http://127.0.0.1:8080"))

docs/python.md has dictConfig, Django, uvicorn, structlog and loguru.
"""

import atexit
import logging
import os
import ssl
import sys
import threading
import time
import weakref

from logpipe.event import IS_RESERVED, is_reserved
from logpipe.handler.outbox import QUEUE_FULL, Outbox
from logpipe.handler.record import counted, event_of
from logpipe.handler.sender import Sender, complain, here
from logpipe.handler.transport import Transport

__all__ = ["LogpipeHandler"]

MAX_DEPTH = 2
"""Records within records: what an object logs while it is formatted is taken, but no deeper."""

ABORT_S = 0.2
"""How long the end of a cut off request is waited for."""

MAX_NUMBER = 10**9
"""What an argument may be: more seconds than anybody waits, more events than memory holds."""


class LogpipeHandler(logging.Handler):
    """Sends records to the collector at `url`, in order, each once, from a thread of its own.

    A logging call never waits for the network and never raises: events wait in a queue of
    `capacity`, and while it is full the newest are dropped, counted, and told in the stream by an
    event of level WARN. A batch that was not answered is sent again, under the same key, until it
    is; one that is refused (4xx) is dropped. A forked process starts with an empty queue.

    `source` is the events' source, the logger's name unless given; a logger whose name a collector
    would reject as a source (`event.RESERVED`) has the source `python`. `token` is one of the
    collector's INGEST_TOKENS. `interval` is how many seconds an event waits for others to be sent
    with, `timeout` how many each step of a request may take, `flush_timeout` how many `flush` and
    `close` wait, and the end of the program. Numbers may be texts, as in configuration files.
    `context` is for https with certificates of one's own. Raises ValueError for a bad argument.
    """

    def __init__(
        self,
        url: str,
        *,
        source: str | None = None,
        token: str | None = None,
        level: int | str = logging.NOTSET,
        capacity: int | str = 10_000,
        interval: float | str = 0.2,
        timeout: float | str = 10.0,
        flush_timeout: float | str = 5.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.flush_timeout = _number("flush_timeout", flush_timeout)
        self._capacity = int(_number("capacity", capacity))
        self._interval = _number("interval", interval)
        self._source = source or None
        if is_reserved(source or ""):
            raise ValueError(f"source={source!r} {IS_RESERVED}")
        self._connection = (url, token, _number("timeout", timeout), context)
        self._begin()
        super().__init__(level)  # last: logging flushes at the end whatever it has heard of
        _handlers.add(self)

    def _begin(self) -> None:
        """An empty queue, no thread, and a connection that is not yet open."""
        self._outbox = Outbox(self._capacity, self._interval)
        self._sender = Sender(self._outbox, Transport(*self._connection), self._source)
        self._thread: threading.Thread | None = None
        self._gave_up_at: tuple[int, int] | None = None
        self._starting = threading.Lock()  # never released by the caller that starts the thread
        # The thread of a handler that nobody holds any more sends what is left, and ends.
        self._finalizer = weakref.finalize(self, self._outbox.close)
        self._finalizer.atexit = False

    @property
    def dropped(self) -> int:
        """How many events of this process were not stored: no room, refused, or left at the end."""
        return self._outbox.dropped

    def handle(self, record: logging.LogRecord) -> bool:
        """Takes a record, unless it comes from the thread of such a handler.

        Without the handler's lock: an object that is slow to format holds up its own thread alone.
        """
        if here.sending:
            return False
        passed = self.filter(record)
        if sys.version_info >= (3, 12) and isinstance(passed, logging.LogRecord):
            record = passed
        if passed:
            self.emit(record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Puts the record's event into the queue, or counts it as dropped. Never raises."""
        if self._outbox.full:
            self._outbox.drop(QUEUE_FULL)
        elif here.depth >= MAX_DEPTH:
            self._outbox.drop("logged while a record was formatted")
        else:
            self._put(record)

    def _put(self, record: logging.LogRecord) -> None:
        here.depth += 1
        try:
            formatted = self.formatter.format if self.formatter else logging.LogRecord.getMessage
            event = event_of(record, self._source, lambda: formatted(record))
            if self._outbox.put(event) and self._thread is None:
                self._started()
        except Exception as error:  # noqa: BLE001 - a program must not fail because it logs
            self._outbox.drop(f"{type(error).__name__} in the handler")
        finally:
            here.depth -= 1

    def _started(self) -> bool:
        """Starts the thread unless that was done; whether there is one."""
        if not self._starting.acquire(blocking=False):
            return True
        thread = threading.Thread(target=self._sender.run, name="logpipe-handler", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # too many threads, or too late for one
            self._starting.release()
            return False
        self._thread = thread
        _flush_where_atexit_does_not_run()
        return True

    def flush(self, timeout: float | None = None) -> bool:  # type: ignore[override] # says more
        """Waits until what was logged before is stored or refused; whether that was done in time.

        At most `timeout` seconds (`flush_timeout` unless given), and not beyond the end's deadline.
        """
        if here.sending or (self._outbox.held and not self._started()):
            return False
        done = self._outbox.wait(self._deadline(timeout))
        self._gave_up_at = None if done else self._outbox.progress
        return done

    def _deadline(self, timeout: float | None = None) -> float:
        seconds = self.flush_timeout if timeout is None else timeout
        end = _exit_began[0] + self.flush_timeout if _exit_began else float("inf")
        return min(time.monotonic() + seconds, end)

    def close(self) -> None:
        """Sends what is left, for at most `flush_timeout`; what is not stored then is dropped.

        Records that come later are dropped, too. A second call does nothing.
        """
        super().close()
        if self._outbox.closed:
            return
        self._outbox.close()
        deadline = self._deadline()
        if self._outbox.held and not self._started():
            # Python 3.12 has no new thread for what is first logged at the interpreter's end.
            self._sender.run_until(deadline)
        # `logging.shutdown` has flushed already: nothing is waited for twice in vain.
        elif self._gave_up_at != self._outbox.progress and self.flush():
            self._join(deadline - time.monotonic())  # it may still have a loss to tell
        if left := self._outbox.abandon():
            complain(f"{counted(left)} not sent before the end")
            self._sender.transport.abort()
        self._join(ABORT_S)

    def _join(self, seconds: float) -> None:
        if self._thread is not None and not here.sending:
            self._thread.join(max(0.0, seconds))

    def _renew(self) -> None:
        """In a forked process: what the parent has is the parent's to send.

        Its locks may be held by threads that are not here: nothing is asked of them, and the old
        objects are kept, so that nothing is finalized either.
        """
        closed = self._outbox.closed
        self._finalizer.detach()
        self._sender.transport.forget()
        _inherited.append(self._sender)
        self._begin()
        if closed:
            self._outbox.close()


_handlers: weakref.WeakSet[LogpipeHandler] = weakref.WeakSet()
_inherited: list[Sender] = []
_exit_began: list[float] = []


def _number(name: str, value: float | str) -> float:
    number = float(value)
    if not 0 < number <= MAX_NUMBER:
        raise ValueError(f"{name} must be a number over 0, not {value!r}")
    return number


def _begin_exit() -> None:
    """From now on each handler has its `flush_timeout`, however often it is flushed."""
    _exit_began.append(time.monotonic())


def _after_fork() -> None:
    _exit_began.clear()
    for handler in list(_handlers):
        handler._renew()  # noqa: SLF001 - of this module


def _flush_where_atexit_does_not_run() -> None:
    """A process of multiprocessing ends without `atexit`, after finalizers of its own."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        finalize = sys.modules["multiprocessing.util"].Finalize
        finalize(None, _flush_all, exitpriority=-100)


def _flush_all() -> None:
    _begin_exit()
    for handler in list(_handlers):
        handler.flush()


# After logging's own, thus run before it: `logging.shutdown` then flushes and closes in time.
atexit.register(_begin_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
