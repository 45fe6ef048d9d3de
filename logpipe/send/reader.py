"""One open file: its next lines, and the position after them."""

import os
from pathlib import Path

from logpipe.send.batch import Chunk
from logpipe.send.lines import Line, Splitter
from logpipe.send.position import MARK_BYTES, Position, mark

READ_BYTES = 64 * 1024


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
        """Closes the file."""
        os.close(self._file)

    def restart(self) -> None:
        """Begins anew, as the file did."""
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
        """When it was last written."""
        return os.fstat(self._file).st_mtime_ns

    def remaining(self) -> int:
        """Bytes up to the end as it is now."""
        return max(0, os.fstat(self._file).st_size - self.offset)

    def position(self, *, rotated: bool) -> Position:
        """Where the lines given so far end."""
        return Position(
            path=str(Path(self.path).absolute()),
            inode=os.fstat(self._file).st_ino,
            offset=self.offset,
            line=self._line,
            head=mark(self._head[: self.offset]),
            tail=mark(self._tail),
            rotated=rotated,
        )
