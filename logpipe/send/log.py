"""A log file by its name, through everything that rotates it."""

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event

from logpipe.send.batch import Chunk
from logpipe.send.lines import Line, Splitter
from logpipe.send.position import LEAST_BYTES, MARK_BYTES, Position, find, holds, later, mark

ROTATED_S = 5.0
"""A file that lost its name is followed until it has been silent for so long: its writer may not
have noticed yet."""
PAST = 8
"""Files of a name that were read to their end and are remembered, the newest."""

READ_BYTES = 64 * 1024

Tell = Callable[[str], None]


class EmptiedError(Exception):
    """The file was cut, or cut and written anew: what was read of it is gone."""


class Reader:
    """An open file and how far it was read, from a position that it `holds`."""

    def __init__(self, file: int, path: str, source: str, begin: Position | None = None) -> None:
        self.path = path
        self.silent_at = 0.0
        """When a file that lost its name is given up, unless it is written to again."""
        self._file = file
        self._source = source
        self._begin(begin.offset if begin else 0, begin.line if begin else 0)

    def _begin(self, offset: int, line: int) -> None:
        self.offset = offset
        self._line = line
        length = min(MARK_BYTES, offset)
        self._head = os.pread(self._file, length, 0)
        self._tail = self._last = os.pread(self._file, length, offset - length)
        self._splitter = Splitter()
        os.lseek(self._file, offset, os.SEEK_SET)

    def close(self) -> None:
        os.close(self._file)

    def restart(self) -> None:
        self._begin(0, 0)

    def skip(self) -> None:
        """Goes to the end; lines are counted from there."""
        self._begin(os.fstat(self._file).st_size, 0)

    def read(self) -> Chunk | None:
        """The next lines, of which there may be none yet; None at the end of the file.

        Raises `EmptiedError`.
        """
        data = os.read(self._file, READ_BYTES)
        if self._emptied():  # only now: what was read before that is the file's as it was
            raise EmptiedError
        if not data:
            return None
        if len(self._head) < MARK_BYTES:
            self._head += data[: MARK_BYTES - len(self._head)]
        chunk = self._chunk(self._splitter.feed(data))
        window = self._last + data
        if chunk.lines:
            end = len(window) - self._splitter.pending
            self._tail = window[max(0, end - MARK_BYTES) : end]
        self._last = window[-MARK_BYTES:]
        return chunk

    def rest(self) -> Chunk:
        """The last line, though it has no end."""
        self._tail = self._last
        return self._chunk(self._splitter.rest())

    def _chunk(self, lines: list[Line]) -> Chunk:
        chunk = Chunk(self.path, self._source, self._line + 1, lines)
        self._line += len(lines)
        self.offset += sum(line.size for line in lines)
        return chunk

    def _emptied(self) -> bool:
        if os.fstat(self._file).st_size < self.offset + self._splitter.pending:
            return True
        return os.pread(self._file, len(self._head), 0) != self._head

    def is_at(self, path: str) -> bool | None:
        """Whether it still has that name; None when nothing has."""
        try:
            return os.path.samestat(Path(path).stat(), os.fstat(self._file))
        except OSError:
            return None

    def written_ns(self) -> int:
        return os.fstat(self._file).st_mtime_ns

    def remaining(self) -> int:
        """Bytes up to the end as it is now."""
        return max(0, os.fstat(self._file).st_size - self.offset)

    def position(self, *, rotated: bool) -> Position:
        """The position after the lines returned so far."""
        return Position(
            path=str(Path(self.path).absolute()),
            inode=os.fstat(self._file).st_ino,
            offset=self.offset,
            line=self._line,
            head=mark(self._head[: self.offset]),
            tail=mark(self._tail),
            rotated=rotated,
        )


class Log:
    """A file by its name, and those that had the name before and are not read to their end."""

    def __init__(self, path: str, source: str, tell: Tell) -> None:
        self._path = path
        self._source = source
        self._tell = tell
        self._current: Reader | None = None
        self._old: list[Reader] = []
        self._past: deque[Position] = deque(maxlen=PAST)
        self._left: Reader | None = None
        """The file that lost the name, until the next file of that name is open."""
        self._left_ns = 0
        """When `_left` was last written, as of the moment it was left."""
        self._told = ""
        self.ended = False

    def resume(self, positions: Sequence[Position]) -> None:
        """Goes on where it was, in files that were renamed or copied meanwhile, too."""
        for position in positions:
            reader = self._found(position)
            if reader is None:
                if not position.rotated:
                    self._tell(
                        f"{self._path}: the file that was read up to line {position.line:,} is"
                        " gone, with what may have followed"
                    )
            elif not reader.is_at(self._path):
                self._retire(reader, left=not position.rotated)
            elif position.rotated:  # the new file has got the number of one that was removed
                reader.close()
            else:
                self._current = reader

    def open(self, *, at_end: bool = False) -> None:
        """Opens the file unless it is open. Raises OSError."""
        if self._current is None:
            file = os.open(self._path, os.O_RDONLY)
            if stat.S_ISDIR(os.fstat(file).st_mode):
                os.close(file)
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._current = Reader(file, self._path, self._source)
            if at_end:
                self._current.skip()
            self._retire_unseen()

    def _found(self, position: Position) -> Reader | None:
        try:
            path = find(position)
            file = os.open(path, os.O_RDONLY) if path else -1
        except OSError:
            return None
        if path is None:
            return None
        if not holds(file, position):
            os.close(file)
            return None
        return Reader(file, self._path, self._source, position)

    def _retire(self, reader: Reader, *, left: bool = False) -> None:
        """Reads on in a file that lost the name; it may be the one that was `left` for another."""
        reader.silent_at = time.monotonic() + ROTATED_S
        self._old.append(reader)
        if left:
            self._left, self._left_ns = reader, reader.written_ns()

    def _retire_unseen(self) -> None:
        """Reads the files between the one that was left and the current one: a log may be renamed
        more than once before anyone looks."""
        if self._left is None:
            return
        for path in later(Path(self._path).absolute(), self._left_ns, self.positions()):
            with suppress(OSError):
                reader = Reader(os.open(path, os.O_RDONLY), self._path, self._source)
                self._retire(reader)
        self._left = None

    def _finish(self, reader: Reader) -> Chunk:
        """The last line of a file that lost its name. That it was read is remembered."""
        rest = reader.rest()
        self._old.remove(reader)
        if (
            reader.offset >= LEAST_BYTES
        ):  # of fewer, only the number would be known, which is reused
            self._past.append(reader.position(rotated=True))
        reader.close()
        return rest

    def chunks(self, stop: Event) -> Iterator[Chunk | None]:
        """All there is, the last line as well where it has no end."""
        for old in list(self._old):
            yield from self._until_end(old, stop)
            if not stop.is_set():
                yield self._finish(old)
        if self._current:
            yield from self._until_end(self._current, stop)
            if not stop.is_set():
                yield self._current.rest()
        self.ended = not stop.is_set()

    def _until_end(self, reader: Reader, stop: Event) -> Iterator[Chunk]:
        try:
            while not stop.is_set() and (chunk := reader.read()):
                yield chunk
        except EmptiedError:
            self._tell(f"{self._path}: was emptied while it was read")

    def next(self) -> Chunk | None:
        """What was written since; None where nothing was."""
        is_open = self._is_open()  # first: with the new file, files between it and the old show
        for old in list(self._old):
            if chunk := self._next_of_old(old):
                return chunk
        return self._next_of_current() if is_open else None

    def _next_of_old(self, reader: Reader) -> Chunk | None:
        chunk = None
        with suppress(EmptiedError):
            chunk = reader.read()
        now = time.monotonic()
        if chunk:
            reader.silent_at = now + ROTATED_S
        elif now > reader.silent_at and reader is not self._left:
            rest = self._finish(reader)
            return rest if rest.lines else None
        return chunk

    def _next_of_current(self) -> Chunk | None:
        reader = self._current
        assert reader is not None
        # Asked before the read: then what the read does not give was not there.
        renamed = reader.is_at(self._path) is False
        try:
            chunk = reader.read()
        except EmptiedError:
            self._on_emptied(reader)
            return self.next()
        if chunk is None and renamed:
            self._retire(reader, left=True)
            self._current = None
            return self.next()
        return chunk

    def _on_emptied(self, reader: Reader) -> None:
        """Who empties a log has copied it before, with lines that were not read yet."""
        copy = self._found(reader.position(rotated=False))
        if copy is not None and copy.is_at(self._path):
            copy.close()
        elif copy is not None:
            self._retire(copy, left=True)
        reader.restart()
        self._retire_unseen()

    def _is_open(self) -> bool:
        try:
            self.open()
        except OSError as error:
            if self._told != error.strerror:
                self._told = error.strerror or ""
                self._tell(f"{self._path}: {error.strerror}; waiting for it")
            return False
        self._told = ""
        return True

    def positions(self) -> list[Position]:
        """Of all files, those that lost the name first.

        The one that was left counts as not rotated until its successor is open: a later resume has
        to look for the files between the two.
        """
        found = [*self._past]
        found += [reader.position(rotated=reader is not self._left) for reader in self._old]
        return [*found, self._current.position(rotated=False)] if self._current else found

    def size(self) -> int | None:
        """Bytes that are there now and were not read."""
        readers = [*self._old, self._current] if self._current else self._old
        return sum(reader.remaining() for reader in readers)
