"""Files that are read, followed, renamed, emptied and found again."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logpipe.send import log
from logpipe.send.log import Log
from logpipe.send.position import Position

Rotate = Callable[[Path], None]


class Tail:
    """A log that is followed by hand, and what it gave."""

    def __init__(self, path: Path, positions: list[Position] | None = None) -> None:
        self.told: list[str] = []
        self.log = Log(str(path), "s", self.told.append)
        self.log.resume(positions or [])
        self.seen: list[str] = []
        self.numbers: list[int] = []

    def read(self) -> list[str]:
        """All that is there now."""
        while chunk := self.log.next():
            self.seen += [line.text.decode() for line in chunk.lines]
            self.numbers += range(chunk.first, chunk.first + len(chunk.lines))
        return self.seen

    def close(self) -> None:
        """Closes the files that are open."""
        for each in [*self.log._old, self.log._current]:
            if each is not None:
                each.close()

    def once(self) -> list[str]:
        """All that is there, without following."""
        stop = threading.Event()
        chunks = [chunk for chunk in self.log.chunks(stop) if chunk]
        return [line.text.decode() for chunk in chunks for line in chunk.lines]


def write(path: Path, *lines: object, end: str = "\n") -> None:
    with path.open("a") as out:
        out.write("\n".join(map(str, lines)) + end)


def rename(path: Path) -> None:
    for number in range(8, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.rename(path.with_name(f"{path.name}.{number + 1}"))
    path.rename(path.with_name(f"{path.name}.1"))


def copytruncate(path: Path) -> None:
    shutil.copy(path, path.with_name(f"{path.name}.{len(list(path.parent.iterdir()))}"))
    os.truncate(path, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


LONG = "a line that is long enough to be known again "


def test_later_lines_come_later_and_half_a_line_waits(path: Path) -> None:
    write(path, "one", "two", "thr", end="")
    tail = Tail(path)
    assert tail.read() == ["one", "two"]
    write(path, "ee", "four")
    assert tail.read() == ["one", "two", "three", "four"]
    assert tail.numbers == [1, 2, 3, 4]


def test_a_file_may_appear_later_and_that_is_told_once(path: Path) -> None:
    tail = Tail(path)
    assert tail.read() == tail.read() == []
    assert tail.told == [f"{path}: No such file or directory; waiting for it"]
    write(path, "one")
    assert tail.read() == ["one"]


def test_without_following_the_last_line_needs_no_end(path: Path) -> None:
    write(path, "one", "two", end="")
    tail = Tail(path)
    tail.log.open()
    assert tail.once() == ["one", "two"]
    (position,) = tail.log.positions()
    assert position.offset == path.stat().st_size
    assert tail.log.ended


@pytest.mark.parametrize(("rotate", "text"), [(rename, ""), (rename, LONG), (copytruncate, LONG)])
def test_nothing_is_lost_or_doubled_when_a_log_is_rotated(
    path: Path, rotate: Rotate, text: str
) -> None:
    tail = Tail(path)
    for n in range(0, 40, 4):
        write(path, *(f"{text}{n + i}" for i in range(2)))
        tail.read()
        write(path, *(f"{text}{n + i}" for i in range(2, 4)))
        rotate(path)
        path.touch()
        write(path, end="")
    tail.read()
    assert tail.seen == [f"{text}{n}" for n in range(40)]


def test_a_rotated_file_is_read_until_it_was_silent_for_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "one")
    tail = Tail(path)
    tail.read()
    with path.open("a") as writer:
        rename(path)
        write(path, "new")
        assert tail.read() == ["one", "new"]
        writer.write("late\nlast")
        writer.flush()
        assert tail.read() == ["one", "new", "late"]
    assert [position.rotated for position in tail.log.positions()] == [True, False]
    for old in tail.log._old:
        old.silent_at = 0
    assert tail.read() == ["one", "new", "late", "last"]
    assert tail.log._old == []
    assert Tail(path, tail.log.positions()).read() == []


def test_an_emptied_log_that_grew_again_is_read_from_its_start(path: Path) -> None:
    write(path, *(f"old {n}" for n in range(5)))
    tail = Tail(path)
    tail.read()
    path.write_text("")
    write(path, *(f"new {n}" for n in range(50)))
    assert tail.read() == [*(f"old {n}" for n in range(5)), *(f"new {n}" for n in range(50))]
    assert tail.numbers[5:] == list(range(1, 51))


def test_a_line_without_end_takes_no_more_memory_than_its_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "READ_BYTES", 1000)
    path.write_bytes(b"first\n" + b"x" * 3_000_000 + b"\nlast\n")
    tail = Tail(path)
    while chunk := tail.log.next():
        assert len(tail.log._current._last) <= 256  # type: ignore[union-attr]
        tail.seen += [line.text.decode()[:5] for line in chunk.lines]
    assert tail.seen == ["first", "xxxxx", "last"]
    (position,) = tail.log.positions()
    again = Tail(path, [position])
    assert again.read() == []


def test_from_the_end_is_only_what_comes_later(path: Path) -> None:
    write(path, "old")
    tail = Tail(path)
    tail.log.open(at_end=True)
    write(path, "new")
    assert tail.read() == ["new"]


def test_a_log_that_is_emptied_while_it_is_read_once_is_told(path: Path) -> None:
    write(path, "one")
    tail = Tail(path)
    tail.log.open()
    chunks = tail.log.chunks(threading.Event())
    assert next(chunks) is not None
    path.write_text("")
    assert [chunk.lines for chunk in chunks if chunk] == [[]]
    assert tail.told == [f"{path}: was emptied while it was read"]


def test_an_emptied_log_without_a_copy_begins_anew(path: Path) -> None:
    write(path, LONG)
    tail = Tail(path)
    tail.read()
    path.write_text("")
    assert tail.read() == [LONG]
    write(path, "new")
    assert tail.read() == [LONG, "new"]


# -- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rotations", [0, 1, 2])
@pytest.mark.parametrize("rotate", [rename, copytruncate])
def test_it_goes_on_where_it_was_though_the_log_was_rotated(
    path: Path, rotate: Rotate, rotations: int
) -> None:
    write(path, *(f"{LONG}{n}" for n in range(5)))
    tail = Tail(path)
    tail.read()
    write(path, *(f"{LONG}{n}" for n in range(5, 10)))
    for _ in range(rotations):
        rotate(path)
        path.touch()
    write(path, *(f"{LONG}{n}" for n in range(10, 12)))
    again = Tail(path, tail.log.positions())
    assert again.read() == [f"{LONG}{n}" for n in range(5, 12)]
    assert again.told == []
    assert again.numbers[0] == 6


def test_a_file_with_the_same_beginning_is_not_mistaken(path: Path) -> None:
    head = "# the same header in every file, longer than what is looked at" * 5
    write(path, head, "one")
    tail = Tail(path)
    tail.read()
    rename(path)
    write(path, head, "two")
    again = Tail(path, tail.log.positions())
    assert again.read() == [head, "two"]


def test_a_missing_log_is_reported_and_its_successor_read(path: Path) -> None:
    write(path, LONG, LONG)
    tail = Tail(path)
    tail.read()
    path.write_text("")
    write(path, "new")
    again = Tail(path, tail.log.positions())
    assert again.read() == ["new"]
    assert again.told == [
        f"{path}: the file that was read up to line 2 is gone, with what may have followed"
    ]


@pytest.mark.parametrize("rotate", [rename, copytruncate])
def test_several_rotations_while_nobody_looks_lose_nothing(path: Path, rotate: Rotate) -> None:
    write(path, *(f"{LONG}{n}" for n in range(2)))
    tail = Tail(path)
    tail.read()
    for n in range(2, 10, 2):
        write(path, *(f"{LONG}{n + i}" for i in range(2)))
        rotate(path)
        path.touch()
    write(path, f"{LONG}10")
    (path.parent / "app.log.bak").write_text("not a rotated log\n")
    (path.parent / "app.log.3.gz").write_text("nor this\n")
    again = Tail(path, tail.log.positions())
    assert again.read() == [f"{LONG}{n}" for n in range(2, 11)]
    assert tail.read() == [f"{LONG}{n}" for n in range(11)]


@pytest.mark.parametrize("text", ["", LONG])
def test_restarts_while_no_file_has_the_name_lose_no_lines(path: Path, text: str) -> None:
    write(path, f"{text}1")
    tail = Tail(path)
    tail.read()
    rename(path)
    for _ in range(3):
        tail = Tail(path, tail.log.positions())
        for old in tail.log._old:
            old.silent_at = 0
        assert tail.read() == []
    write(path, f"{text}2")
    rename(path)
    assert Tail(path, tail.log.positions()).read() == []
    write(path, f"{text}3")
    again = Tail(path, tail.log.positions())
    assert again.read() == [f"{text}2", f"{text}3"]
    assert Tail(path, again.log.positions()).read() == []


def test_a_link_is_followed_to_the_folder_of_its_file(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "pods" / "0.log"
    real.parent.mkdir()
    path.symlink_to(real)
    write(real, "one", "two")
    tail = Tail(path)
    tail.read()
    write(real, "three")
    rename(real)
    write(real, "four")
    assert Tail(path, tail.log.positions()).read() == ["three", "four"]


def test_files_that_were_finished_are_remembered_within_a_bound(path: Path) -> None:
    positions: list[Position] = []
    for n in range(log.PAST + 5):
        write(path, f"{LONG}{n}")
        tail = Tail(path, positions)
        tail.log.open()
        assert tail.once() == [f"{LONG}{n}"]
        positions = tail.log.positions()
        path.rename(path.with_name(f"app.log.{n}"))
    assert len(positions) == log.PAST + 1


def test_a_new_file_with_a_reused_inode_is_read_once(path: Path) -> None:
    write(path, LONG)
    tail = Tail(path)
    tail.read()
    (position,) = tail.log.positions()
    reused = msgspec.structs.replace(position, rotated=True)
    assert Tail(path, [reused, position]).read() == []


def test_a_finished_file_that_is_written_again_is_read_on(path: Path) -> None:
    write(path, LONG)
    tail = Tail(path)
    tail.read()
    rename(path)
    write(path, "new")
    once = Tail(path, tail.log.positions())
    once.log.open()
    assert once.once() == ["new"]
    write(path.with_name("app.log.1"), "late")
    again = Tail(path, once.log.positions())
    assert again.read() == ["late"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["write", "half", "read", "rename", "restart"]), max_size=25))
def test_each_line_comes_once_through_any_rotations(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "app.log"
    path.touch()
    tail, count, seen = Tail(path), 0, []
    tail.read()
    renamed = False
    for step in steps:
        if step == "write":
            write(path, f"{count} ")
            count += 1
        elif step == "half":
            write(path, "half", end="")
        elif step == "rename" and path.exists() and path.read_bytes().endswith(b"\n"):
            if not renamed:  # while nobody looks, one rotation is followed
                rename(path)
            renamed = True
        elif step == "read":
            tail.read()
            renamed = False
        elif step == "restart" and not renamed:
            tail.read()
            seen += tail.seen
            positions = tail.log.positions()
            tail.close()
            tail = Tail(path, positions)
    write(path, "end")
    tail.read()
    tail.close()
    numbers = [line.replace("half", "").strip() for line in seen + tail.seen]
    assert numbers == [*map(str, range(count)), "end"]
