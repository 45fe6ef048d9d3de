"""logpipe's own log, on stderr: one record a line, whatever a record holds."""

import json
import logging
import os
import queue
import select
import stat
import sys
import time
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from typing import IO

from logpipe import request_ids

MAX_QUEUED = 10_000
"""Records that are queued while stderr is not being read; more are dropped and counted."""

FLUSH_S = 0.5
"""How long the end of the process waits for queued records to be written."""

_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}


def configure(level: str, style: str, stream: IO[str] | None = None) -> None:
    """Sends the log of logpipe and its server to stderr; `style` is auto, text or json."""
    root = logging.getLogger()
    root.handlers = [_handler(style, stream or sys.stderr)]
    root.setLevel(logging.WARNING)
    logging.getLogger("logpipe").setLevel(level.upper())
    # What uvicorn says at INFO (start, stop) is said by logpipe in a line of its own; at WARNING it
    # has a line for every malformed request, so that anyone could fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def _handler(style: str, out: IO[str] | None) -> logging.Handler:
    if out is None:  # the process was started without one
        return logging.NullHandler()
    terminal = out.isatty()
    as_text = style == "text" or (style == "auto" and terminal)
    handler = QueuedHandler(out.fileno()) if may_block(out) else logging.StreamHandler(out)
    handler.setFormatter(TextFormatter(colour=terminal) if as_text else JsonFormatter())
    return handler


def one_line(text: str) -> str:
    """The text with line ends and control characters spelled out, so that none forges a record."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TextFormatter(logging.Formatter):
    """For people: time, level, message; a traceback keeps its lines, indented."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback behind it, if there is one."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname:<8}"
        if self._colour:
            level = f"\033[{_COLOURS.get(record.levelname, '0')}m{level}\033[0m"
        line = f"{moment} {level} {one_line(record.getMessage())}"
        if id_ := request_ids.current():
            line += f" [{id_}]"
        if record.exc_info:
            for each in self.formatException(record.exc_info).split("\n"):
                line += "\n  " + one_line(each)
        return line


SOURCE = "serve"
"""Of its events: a source that begins with `logpipe` would be rejected."""


class JsonFormatter(logging.Formatter):
    """For machines: an event as logpipe takes it, so that it can carry its own log."""

    def format(self, record: logging.LogRecord) -> str:
        metadata = {"logger": record.name}
        if id_ := request_ids.current():
            metadata["request_id"] = id_
        if record.exc_info:
            metadata["exception"] = _whole(self.formatException(record.exc_info))
        event = {
            "source": SOURCE,
            "level": _LEVELS.get(record.levelname, record.levelname),
            "message": _whole(record.getMessage()),
            "ts_unix_ms": int(record.created * 1000),
            "metadata": metadata,
        }
        # In ASCII: a terminal that shows it is safe from what a message holds.
        return json.dumps(event).replace("\x7f", "\\u007f")


def _whole(text: str) -> str:
    """The text with half characters, as of a file name that is not UTF-8, spelled out."""
    return text.encode(errors="backslashreplace").decode()


def may_block(out: IO[str]) -> bool:
    """Returns whether a write may wait for a reader, as that to a pipe or a terminal."""
    try:
        mode = os.fstat(out.fileno()).st_mode
    except (OSError, ValueError):  # not a file of the system, as in a test
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


class QueuedHandler(QueueHandler):
    """Formats records and queues them for a thread that writes to a descriptor.

    Logging never waits for the reader of stderr: written from the event loop, a log that is not
    being read would stop a collector after some 64 KiB.
    """

    queue: "queue.Queue[logging.LogRecord]"

    def __init__(
        self, descriptor: int, capacity: int = MAX_QUEUED, flush_s: float = FLUSH_S
    ) -> None:
        super().__init__(queue.Queue(capacity))
        self._flush_s = flush_s
        self._dropped = 0
        _Writer(self.queue, descriptor).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                text = "dropped %d log records: stderr is not being read"
                fields = {"name": "logpipe", "levelno": logging.WARNING, "levelname": "WARNING"}
                notice = logging.makeLogRecord({**fields, "msg": text, "args": (self._dropped,)})
                self.queue.put_nowait(self.prepare(notice))
                self._dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Waits until all records are written, at most `flush_s` seconds."""
        with self.queue.all_tasks_done:
            self.queue.all_tasks_done.wait_for(
                lambda: not self.queue.unfinished_tasks, self._flush_s
            )


class _Writer(QueueListener):
    # With a `logging.Handler` for the descriptor, the end of the process would wait for its lock.

    def __init__(self, records: "queue.Queue[logging.LogRecord]", descriptor: int) -> None:
        super().__init__(records)
        self._descriptor = descriptor

    def handle(self, record: logging.LogRecord) -> None:
        rest = f"{record.msg}\n".encode(errors="backslashreplace")
        # Not through `sys.stderr`: the end of the process would wait for its lock.
        with suppress(OSError):
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process has made the pipe non-blocking
                    select.select([], [self._descriptor], [])
