"""The resume file: what it says before and after each batch."""

from pathlib import Path

import msgspec
import pytest

from logpipe.send.batch import Batch
from logpipe.send.position import Position
from logpipe.send.resume import BadFileError, Journal, load
from tests.send.test_batch import built


def position(path: str, offset: int) -> Position:
    return Position(path, 1, offset, offset, "head", "tail")


def batch(*positions: Position) -> Batch:
    return msgspec.structs.replace(built(b"a"), positions=list(positions))


def test_a_batch_is_recorded_before_it_is_sent_and_after(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state"
    journal = Journal(path, ["/a"])
    assert journal.in_flight is None
    journal.sending(flying := batch(position("/a", 5)))
    after_a_kill = Journal(path, ["/a"])
    assert after_a_kill.in_flight == flying
    assert after_a_kill.begin() == flying.positions
    assert not after_a_kill.knows(flying)
    after_a_kill.taken(flying)
    at_last = Journal(path, ["/a"])
    assert (at_last.in_flight, at_last.begin()) == (None, flying.positions)
    assert at_last.knows(flying)


def test_positions_of_files_that_are_not_read_now_stay(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Journal(path, ["/a", "/b"]).taken(batch(position("/a", 1), position("/b", 1)))
    Journal(path, ["/b"]).taken(batch(position("/b", 2)))
    assert load(path).positions == [position("/a", 1), position("/b", 2)]


def test_a_batch_that_is_kept_elsewhere_is_in_flight_no_more(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Journal(path, ["/a"]).sending(batch(position("/a", 5)))
    journal = Journal(path, ["/a"])
    journal.handed_over()
    assert load(path).in_flight is None
    assert journal.begin() == [position("/a", 5)]


def test_without_a_file_it_keeps_nothing(tmp_path: Path) -> None:
    journal = Journal(None, ["/a"])
    journal.sending(batch())
    journal.taken(batch())
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    journal = Journal(path, ["/a"])
    journal.taken(batch(position("/a", 1)))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(BadFileError, match="state: cannot be written: No space left on device"):
        journal.taken(batch(position("/a", 2)))
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    assert load(path).positions == [position("/a", 1)]
    assert path.stat().st_mode & 0o777 == 0o600
