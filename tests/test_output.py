"""A command's standard output, and who is told that it has colours."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from logpipe.output import Output, wants_color


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


def test_a_pipe_that_another_has_made_non_blocking_gets_all_bytes() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = bytes(range(256)) * 4096
    with os.fdopen(reader, "rb") as source, ThreadPoolExecutor(1) as thread:
        got = thread.submit(source.read)
        with os.fdopen(writer, "wb", buffering=0) as stream:
            Output(stream).write(data)
        assert got.result(10) == data
