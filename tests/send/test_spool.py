"""Batches that wait: in order, each until it is done, within a bound."""

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from logpipe.send.batch import Batch
from logpipe.send.spool import READ_AHEAD, Handover, Pending, Spool
from tests.helpers import wait_until
from tests.send.test_batch import built

BATCHES = [built(b"%d" % n) for n in range(6)]
SIZE = max(len(msgspec.json.encode(batch)) for batch in BATCHES)


def make_spool(folder: Path, told: list[str] | None = None, bound: int = 1 << 20) -> Spool:
    return Spool(folder, bound, (told if told is not None else []).append)


def drained(pending: Pending) -> list[Batch]:
    pending.finish()
    found = []
    while batch := pending.get():
        found.append(batch)
        pending.done()
    return found


@pytest.mark.parametrize("make", [lambda _: Handover(), make_spool])
def test_they_come_in_order_and_each_stays_until_it_is_done(
    make: Callable[[Path], Pending], tmp_path: Path
) -> None:
    pending = make(tmp_path)
    pending.put(BATCHES[0])
    pending.put(BATCHES[1])
    assert pending.left == 2
    assert pending.get() == pending.get() == BATCHES[0]
    assert drained(pending) == BATCHES[:2]
    assert pending.left == 0


@pytest.mark.parametrize(
    ("make", "room"),
    [(lambda _: Handover(), READ_AHEAD), (lambda path: make_spool(path, bound=3 * SIZE), 3)],
)
async def test_n_fit_and_one_more_waits_until_one_is_done(
    make: Callable[[Path], Pending], room: int, tmp_path: Path
) -> None:
    pending = make(tmp_path)
    for batch in BATCHES[:room]:
        pending.put(batch)
    more = threading.Thread(target=pending.put, args=[BATCHES[room]])
    more.start()
    await wait_until(lambda: pending._changed._waiters, "it waits")  # type: ignore[attr-defined]
    assert pending.left == room
    pending.get()
    pending.done()
    more.join(10)
    assert drained(pending) == BATCHES[1 : room + 1]


async def test_a_full_spool_says_so_and_at_the_end_takes_one_more(tmp_path: Path) -> None:
    told: list[str] = []
    spool = make_spool(tmp_path, told, bound=SIZE)
    spool.put(BATCHES[0])
    more = threading.Thread(target=spool.put, args=[BATCHES[1]])
    more.start()
    await wait_until(lambda: told, "it says so")
    assert f"the spool is full ({spool._bytes} of {SIZE} bytes): nothing more is read" in told[0]
    spool.stop()
    more.join(10)
    assert drained(spool) == BATCHES[:2]


def test_a_batch_over_the_bound_goes_alone(tmp_path: Path) -> None:
    spool = make_spool(tmp_path, bound=1)
    spool.put(BATCHES[0])
    assert drained(spool) == BATCHES[:1]


def test_kept_batches_come_first_and_half_written_ones_go(tmp_path: Path) -> None:
    before = make_spool(tmp_path)
    for batch in BATCHES[:3]:
        before.put(batch)
    before.get()
    before.done()
    (tmp_path / ".000000000009-1.batch.x").write_text("half")
    spool = make_spool(tmp_path)
    assert spool.newest() == BATCHES[2]
    spool.put(BATCHES[3])
    assert spool.left == 3
    assert drained(spool) == BATCHES[1:4]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_batch_is_left_aside_and_counted(tmp_path: Path) -> None:
    told: list[str] = []
    spool = make_spool(tmp_path, told)
    for batch in BATCHES[:3]:
        spool.put(batch)
    (tmp_path / "000000000001-1.batch").write_text("{}")
    (tmp_path / "000000000003-1.batch").unlink()
    assert drained(spool) == BATCHES[1:2]
    assert spool.broken == 2
    assert [path.name for path in tmp_path.iterdir()] == ["000000000001-1.broken"]
    assert len(told) == 2


async def test_a_spool_that_cannot_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.send.spool.WRITE_AGAIN_S", 0.01)
    told: list[str] = []
    folder = tmp_path / "gone"
    spool = make_spool(folder, told)
    writing = threading.Thread(target=spool.put, args=[BATCHES[0]])
    writing.start()
    await wait_until(lambda: told, "it says so")
    assert "cannot be written: No such file or directory" in told[0]
    folder.mkdir()
    writing.join(10)
    assert drained(spool) == BATCHES[:1]
    assert len(told) == 1


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    make_spool(tmp_path).put(BATCHES[0])
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]
