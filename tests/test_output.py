"""A command's standard output, and who is told that it has colours."""

import asyncio
import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from logpipe.output import InterruptedWriteError, Output, run_until_stopped, wants_color


@pytest.mark.parametrize(
    ("choice", "environ", "terminal", "wanted"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"TERM": "dumb"}, True, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"FORCE_COLOR": "1"}, False, True),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
    ],
)
def test_who_gets_colours(
    choice: str, environ: dict[str, str], *, terminal: bool, wanted: bool
) -> None:
    assert wants_color(choice, environ, terminal=terminal) is wanted


def test_a_non_blocking_pipe_gets_all_bytes() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = bytes(range(256)) * 4096
    with os.fdopen(reader, "rb") as source, ThreadPoolExecutor(1) as thread:
        got = thread.submit(source.read)
        with os.fdopen(writer, "wb", buffering=0) as stream:
            Output(stream).write(data)
        assert got.result(10) == data


def test_after_an_interrupt_nothing_more_is_written() -> None:
    """A signal between two writes: the next might wait for its reader for ever."""
    stream = io.BytesIO()
    out = Output(stream)
    out.write(b"one")
    out.interrupt()
    with pytest.raises(InterruptedWriteError):
        out.write(b"two")
    assert stream.getvalue() == b"one"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_two_writes_ends_work_that_never_waits(number: int) -> None:
    out = Output(io.BytesIO())

    async def work() -> None:
        signal.raise_signal(number)
        while True:
            out.write(b"more")

    before = signal.getsignal(number)
    assert run_until_stopped(work(), out)
    assert signal.getsignal(number) is before


def test_a_reader_that_has_left_ends_it_without_a_signal() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=0) as stream:
        os.close(reader)
        out = Output(stream)
        assert not run_until_stopped(asyncio.sleep(30), out)

        async def write() -> None:
            out.write(b"x")

        assert not run_until_stopped(write(), out)


def test_an_output_that_is_no_terminal_has_no_width() -> None:
    assert Output(io.BytesIO()).columns() is None
