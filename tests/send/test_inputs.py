"""Streams, files one after the other, files in turns."""

import os
import threading
from pathlib import Path

import pytest

from logpipe.send import inputs
from logpipe.send.inputs import Following, InOrder, Stream
from logpipe.send.log import Log
from tests.send.test_log import write


def test_files_are_read_in_order_or_followed_in_turns(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        write(path, path.name, path.name)
    logs = [Log(str(path), "s", print) for path in paths]
    for log in logs:
        log.open()
    assert InOrder(logs).size() == 8
    stop = threading.Event()
    following = Following(logs)
    names = []
    for chunk in following.chunks(stop):
        if chunk is None:
            stop.set()
        else:
            names.append(Path(chunk.name).name)
    assert names == ["a", "b"]
    assert [each.line for each in following.positions()] == [2, 2]
    assert following.size() is None


def test_a_stream_is_read_to_its_end_and_a_file_has_a_size(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, "a", "b", "c", end="")
    file = os.open(path, os.O_RDONLY)
    stream = Stream(file, "stdin", "stdin")
    assert stream.size() == 5
    chunks = [chunk for chunk in stream.chunks(threading.Event()) if chunk]
    assert [line.text for chunk in chunks for line in chunk.lines] == [b"a", b"b", b"c"]
    assert stream.ended
    os.close(file)


def test_an_idle_stream_says_so_and_a_stopped_one_has_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inputs, "DRAIN_S", 0.0)
    reader, writer = os.pipe()
    stream = Stream(reader, "stdin", "stdin")
    stop = threading.Event()
    chunks = stream.chunks(stop)
    os.write(writer, b"a\nb")
    first = next(chunks)
    assert first is not None
    assert [line.text for line in first.lines] == [b"a"]
    assert next(chunks) is None
    stop.set()
    assert [line.text for chunk in chunks if chunk for line in chunk.lines] == [b"b"]
    assert not stream.ended
    os.close(reader)
    os.close(writer)
