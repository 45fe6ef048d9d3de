"""A slice of `make fuzz`, what it is made of, and that it finds what is broken."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from logpipe.collector.receivers.table import PROTOCOLS
from tests.fuzz.__main__ import main
from tests.fuzz.client import offence, statuses_in
from tests.fuzz.requests import TARGETS, request, seeds
from tests.fuzz.run import Plan, growth
from tests.fuzz.streams import KINDS, Stream, stream


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    """`make fuzz` with these options, in a process of its own: coverage would double its time."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *options],
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=390,
    )


@pytest.mark.timeout(400)
def test_hostile_input_is_answered_and_leaves_nothing() -> None:
    """It is over before garbage is looked for the first time, so that memory has not settled."""
    run = fuzz("--bodies", "20000", "--streams", "2000", "--max-growth", "100")
    assert run.returncode == 0, run.stdout
    assert "nothing was found" in run.stdout
    for status in (200, 202, 204, 400, 413, 415, 422):
        assert f"{status}: " in run.stdout


@pytest.mark.timeout(400)
def test_a_receiver_that_is_broken_on_purpose_is_found() -> None:
    run = fuzz("--bodies", "2000", "--streams", "0", "--module", "tests.fuzz.broken")
    assert run.returncode == 1
    for word in ("/gelf", "500: ", "KeyError: 'text'"):
        assert word in run.stdout


def test_every_way_in_has_good_bodies_that_are_mutated() -> None:
    assert set(seeds()) == {"ingest", *PROTOCOLS}
    assert all(seeds().values())
    paths = {path for _, _, path in TARGETS}
    assert {path for each in PROTOCOLS.values() for path in each.paths} < paths


def test_a_case_follows_from_the_seed_and_its_number_alone() -> None:
    first = [request(7, n) for n in range(50)], [stream(7, n) for n in range(50)]
    again = [request(7, n) for n in range(50)], [stream(7, n) for n in range(50)]
    assert first == again
    assert request(8, 1) != request(7, 1)


def test_streams_are_spread_among_bodies_and_are_of_every_kind() -> None:
    kinds = [kind for kind, _ in Plan(90, 10).cases()]
    assert (kinds.count("body"), kinds.count("stream")) == (90, 10)
    assert kinds[:50].count("stream") == 5
    # Two of the kinds are one, which comes twice as often.
    assert len({stream(1, n).kind for n in range(2_000)}) == len(KINDS) - 1


OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("got", "statuses", "word"),
    [
        (OK, (), ""),
        (OK + b"HTTP/1.1 404 Not Found\r\n\r\n", (200, 404), ""),
        (b"", (), ""),
        (b"", (200,), "[] in place of [200]"),
        (OK + OK, (200,), "[200, 200] in place of [200]"),
        (b"SSH-2.0\r\n", (), "no HTTP"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", (), "500: "),
        (b"HTTP/1.1 404 Not Found\r\nx-request-id: smuggled\r\n\r\n", (), "was answered"),
    ],
)
def test_what_comes_back_from_a_stream_is_judged(
    got: bytes, statuses: tuple[int, ...], word: str
) -> None:
    found = offence(Stream("any", [], statuses=statuses), got, statuses_in(got))
    assert word in found
    assert bool(word) == bool(found)


def test_growth_is_what_comes_after_the_beginning() -> None:
    assert growth([*range(0, 250, 5), *[250] * 150]) == 0
    assert growth([100] * 100 + [*range(100, 200)]) == pytest.approx(90, abs=5)
    assert growth([5]) == 0


def test_a_case_is_shown_as_it_is_sent() -> None:
    for kind, sent in (("body", request(7, 3).on_the_wire()), ("stream", None)):
        shown = CliRunner().invoke(main, ["--show", kind, "--seed", "7", "--first", "3"])
        assert shown.exit_code == 0
        assert shown.stdout_bytes == (sent or b"".join(stream(7, 3).pieces))
