"""How far a file was read, told so that the file is found again under another name.

A name says little: logs are renamed, or copied and emptied. What says it is the inode, and a mark
of the first bytes and of those before the position: a copy has them, a successor has not. The
device is left out, because its number may change when a machine starts anew.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

MARK_BYTES = 256
"""Looked at, at the beginning of a file and before a position."""
LEAST_BYTES = 32
"""Of a file that is taken for the one that was read by its content alone."""


class Position(msgspec.Struct, frozen=True):
    """A place in a file: `offset` bytes and `line` lines are before it."""

    path: str
    inode: int
    offset: int
    line: int
    head: str
    """Mark of the first bytes, at most `MARK_BYTES` and none after the offset."""
    tail: str
    """Mark of as many bytes before the offset."""
    rotated: bool = False
    """Whether another file has taken its name."""


def mark(data: bytes) -> str:
    """A short digest: positions are kept where log lines should not be."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def holds(file: int, position: Position) -> bool:
    """Whether an open file has the bytes that were read up to there."""
    length = min(MARK_BYTES, position.offset)
    if os.fstat(file).st_size < position.offset:
        return False
    head = os.pread(file, length, 0)
    tail = os.pread(file, length, position.offset - length)
    return (mark(head), mark(tail)) == (position.head, position.tail)


def find(position: Position) -> Path | None:
    """The file that a position is in, whatever its name is now; None when it is not in its folder.

    Copies are found, too, and that they are the same so far is all that counts. The folder is that
    which a link leads to.
    """
    known = Path(position.path)
    if _matches(known, position, by_inode=True):
        return known
    names = list(_siblings(known.resolve()))
    for by_inode in (True, False):
        for path in names:
            if _matches(path, position, by_inode=by_inode):
                return path
    return None


def later(path: Path, since_ns: int, known: Iterable[Position]) -> list[Path]:
    """The files that had this name after the one last written then, and lost it before anyone
    looked, oldest first: those whose name has a number or a date added, and that nobody knows."""
    path = path.resolve()
    added = re.compile(re.escape(path.name) + r"[.-]\d[\d.:T_-]*")
    found = [each for each in _siblings(path) if added.fullmatch(each.name)]
    found = [each for each in found if _written(each) >= since_ns]
    known = list(known)
    new = (each for each in found if not any(_matches(each, one, by_inode=True) for one in known))
    return sorted(new, key=_written)


def _siblings(path: Path) -> Iterator[Path]:
    stem = path.name.partition(".")[0] or path.name
    try:
        found = [each for each in path.parent.iterdir() if each.name.startswith(stem)]
    except OSError:
        return
    yield from sorted(found, key=_changed, reverse=True)


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _changed(path: Path) -> int:
    """When a file was last written or renamed; of several that match, the newest is meant."""
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0


def _matches(path: Path, position: Position, *, by_inode: bool) -> bool:
    if not by_inode and position.offset < LEAST_BYTES:
        return False
    try:
        if not path.is_file() or (by_inode and path.stat().st_ino != position.inode):
            return False
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return holds(file, position)
    finally:
        os.close(file)
