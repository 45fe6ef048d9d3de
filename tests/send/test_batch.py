"""What one request carries, and how it is taken apart."""

import gzip
import json

import msgspec
import pytest

from logpipe.send.batch import BATCH_EVENTS, Batch, Builder, Chunk, Run, parts
from logpipe.send.lines import Line, Shaper


def built(*texts: bytes, name: str = "log", first: int = 1) -> Batch:
    builder = Builder(Shaper())
    builder.add(Chunk(name, name, first, [Line(text, len(text) + 1) for text in texts]), 0)
    return builder.take([])


def messages(batch: Batch) -> list[str]:
    return [json.loads(line)["message"] for line in gzip.decompress(batch.body).splitlines()]


def test_each_event_knows_its_line_though_others_were_skipped() -> None:
    batch = built(b"a", b"", b"b", b"c", first=7)
    assert batch.runs == [Run("log", 7, 1), Run("log", 9, 2)]
    assert [batch.place(index) for index in range(4)] == ["log:7", "log:9", "log:10", "?"]
    assert (batch.events, batch.size) == (3, 7)


def test_invalid_lines_are_returned_and_the_others_kept() -> None:
    builder = Builder(Shaper("json"))
    lines = [Line(text, 1) for text in (b'{"message":"a"}', b"x", b'{"message":"b"}')]
    assert [number for number, _ in builder.add(Chunk("log", "log", 1, lines), 0)] == [2]
    assert messages(builder.take([])) == ["a", "b"]


def test_the_parts_are_all_of_it_under_keys_that_stay_the_same() -> None:
    batch = built(*(b"%d" % n for n in range(5)), b"", b"6", first=10)
    one, two = parts(batch, 2)
    assert messages(one) + messages(two) == messages(batch)
    assert [one.place(i) for i in range(3)] + [two.place(i) for i in range(3)] == [
        batch.place(i) for i in range(6)
    ]
    assert [each.key for each in parts(batch, 2)] == [f"{batch.key}.0", f"{batch.key}.1"]
    three = list(parts(batch, 3))
    assert [each.events for each in three] == [2, 2, 2]
    assert [text for each in three for text in messages(each)] == messages(batch)


@pytest.mark.parametrize(("events", "full"), [(BATCH_EVENTS - 1, False), (BATCH_EVENTS, True)])
def test_it_is_full_with_its_bound_of_events(events: int, *, full: bool) -> None:
    builder = Builder(Shaper())
    builder.add(Chunk("log", "log", 1, [Line(b"x", 2)] * events), 0)
    assert builder.full is full
    assert builder.take([]).events == events
    assert builder.size == 0


def test_it_comes_back_from_json_as_it_was() -> None:
    batch = built(b"a", b"b")
    assert msgspec.json.decode(msgspec.json.encode(batch), type=Batch) == batch
