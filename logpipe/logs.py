"""logpipe's own log, on stderr: one record a line, whatever a record holds."""

import json
import logging
import sys
import time
from typing import IO

from logpipe import request_ids
from logpipe.outlet import Outlet, may_block

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
    handler = Outlet(out.fileno()) if may_block(out) else logging.StreamHandler(out)
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
        """The event's JSON."""
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
