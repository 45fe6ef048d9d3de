"""What is read: a stream, files one after the other, or files that are followed."""

import os
import select
import stat
import time
from collections.abc import Iterator, Sequence
from threading import Event
from typing import Protocol

from logpipe.send.batch import Chunk
from logpipe.send.lines import Line, Splitter
from logpipe.send.log import READ_BYTES, Log
from logpipe.send.position import Position

POLL_S = 0.1
"""Between two looks at files, or at a stream, that have nothing new."""
DRAIN_S = 1.0
"""A pipe is read on for so long when the sender is told to end: what writes to it may have been
told so, too, and its last words are worth having."""


class Input(Protocol):
    """Gives chunks in order, and None where there is nothing to read right now."""

    @property
    def ended(self) -> bool:
        """Whether it was read to its end."""

    def chunks(self, stop: Event) -> Iterator[Chunk | None]: ...

    def positions(self) -> list[Position]:
        """Where the chunks read so far end."""

    def size(self) -> int | None:
        """Bytes to read; None where that is not known."""


class Stream:
    """Standard input, or a file that is a pipe."""

    def __init__(self, file: int, name: str, source: str) -> None:
        self._file = file
        self._name = name
        self._source = source
        self._splitter = Splitter()
        self._number = 1
        self.ended = False

    def chunks(self, stop: Event) -> Iterator[Chunk | None]:
        deadline: float | None = None
        while deadline is None or time.monotonic() < deadline:
            if stop.is_set() and deadline is None:
                deadline = time.monotonic() + (0 if os.isatty(self._file) else DRAIN_S)
            if not self._ready(0):
                yield None
                if not self._ready(POLL_S):
                    continue
            data = os.read(self._file, READ_BYTES)
            if not data:
                self.ended = True
                break
            yield self._chunk(self._splitter.feed(data))
        yield self._chunk(self._splitter.rest())

    def _ready(self, timeout: float) -> bool:
        poll = select.poll()  # select() takes no descriptor beyond 1023
        poll.register(self._file, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def _chunk(self, lines: list[Line]) -> Chunk:
        first = self._number
        self._number += len(lines)
        return Chunk(self._name, self._source, first, lines)

    def positions(self) -> list[Position]:
        return []

    def size(self) -> int | None:
        found = os.fstat(self._file)
        return found.st_size if stat.S_ISREG(found.st_mode) else None


class InOrder:
    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = inputs

    @property
    def ended(self) -> bool:
        return all(each.ended for each in self._inputs)

    def chunks(self, stop: Event) -> Iterator[Chunk | None]:
        for each in self._inputs:
            yield from each.chunks(stop)

    def positions(self) -> list[Position]:
        return [position for each in self._inputs for position in each.positions()]

    def size(self) -> int | None:
        sizes = [each.size() for each in self._inputs]
        return None if None in sizes else sum(size or 0 for size in sizes)


class Following:
    """Files that are read for ever, in turns, as `tail -F` does. Its end is when it is told to."""

    ended = True

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def chunks(self, stop: Event) -> Iterator[Chunk | None]:
        while not stop.is_set():
            news = False
            for log in self._logs:
                if chunk := log.next():
                    news = True
                    yield chunk
            if not news:
                yield None
                stop.wait(POLL_S)

    def positions(self) -> list[Position]:
        return [position for log in self._logs for position in log.positions()]

    def size(self) -> int | None:
        return None
