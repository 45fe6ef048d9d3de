"""The resume file: what was sent of which files, and the batch that may have been."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from logpipe.event import NOT_DECODED
from logpipe.send.batch import Batch
from logpipe.send.position import Position


class BadFileError(Exception):
    """A file that this program keeps its state in cannot be used; the words name the remedy."""


class State(msgspec.Struct, frozen=True):
    version: int
    taken: str = ""
    """Key of the last batch that was taken."""
    positions: list[Position] = []
    in_flight: Batch | None = None
    """Was about to be sent after the positions. It is sent again, under the same key."""


VERSION = 1


def load(path: Path) -> State:
    """The state; an empty one where there is no file. Raises `BadFileError`."""
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return State(VERSION)
    except OSError as error:
        raise BadFileError(f"{path}: cannot be read: {error.strerror}") from None
    except NOT_DECODED:
        raise BadFileError(
            f"{path}: is no resume file: name another, or remove it to begin anew"
        ) from None
    if state.version != VERSION:
        raise BadFileError(f"{path}: was written by another version: remove it to begin anew")
    return state


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file in one step, readable for its owner alone. Raises OSError."""
    file, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(data)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


class Journal:
    """Keeps a resume file up to date; without a path it keeps nothing.

    Positions of files that are not read now stay as they were.
    """

    def __init__(self, path: Path | None, paths: Sequence[str]) -> None:
        self._path = path
        self._state = load(path) if path else State(VERSION)
        self._others = [each for each in self._state.positions if each.path not in paths]

    @property
    def in_flight(self) -> Batch | None:
        """The batch that may not have been stored."""
        return self._state.in_flight

    def begin(self) -> list[Position]:
        flying = self._state.in_flight
        return flying.positions if flying else self._state.positions

    def knows(self, batch: Batch) -> bool:
        """Whether this batch was taken already."""
        return self._state.taken == batch.key

    def sending(self, batch: Batch) -> None:
        """To be called before it is sent. Raises `BadFileError`."""
        self._save(State(VERSION, self._state.taken, self._state.positions, batch))

    def taken(self, batch: Batch) -> None:
        """To be called once it was taken. Raises `BadFileError`."""
        self._save(State(VERSION, batch.key, [*self._others, *batch.positions]))

    def handed_over(self) -> None:
        """To be called when the batch in flight is kept elsewhere. Raises `BadFileError`."""
        self._save(State(VERSION, self._state.taken, self.begin()))

    def _save(self, state: State) -> None:
        self._state = state
        if self._path is None:
            return
        try:
            write_whole(self._path, msgspec.json.encode(state))
        except OSError as error:
            raise BadFileError(
                f"{self._path}: cannot be written: {error.strerror}: name another with --resume"
            ) from None
