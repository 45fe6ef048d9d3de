"""What `make newest` prints, and which tests it runs."""

from pathlib import Path

from tests.newest import failures, report, unbounded
from tests.without_servers import needs_servers

ROOT = Path(__file__).parents[1]


def test_only_upper_bounds_are_taken_away() -> None:
    given = ["a>=1", "b[x]>=1.2,<2", "c>=3,<4; python_version < '3.14'", "d<2"]
    assert unbounded(given) == ["b[x]>=1.2", 'c>=3; python_version < "3.14"', "d"]


def test_failed_tests_are_found_in_the_summary() -> None:
    output = """
FAILED tests/test_event.py::test_text[a - b] - assert 1
ERROR tests/test_wire.py
FAILED tests/test_event.py::test_other
2 failed, 3 passed in 1.00s
"""
    assert failures(output) == [
        "tests/test_event.py::test_other",
        "tests/test_event.py::test_text[a - b]",
        "tests/test_wire.py",
    ]


def test_a_warning_names_versions_and_tests() -> None:
    text = report("newest", ["a: installed is 2, locked is 1"], "1 tests fail", ["tests/t.py::t"])
    first, version, test, output = text.splitlines()
    assert first == "WARNING: newest (1 differ from the locks): 1 tests fail"
    assert version == "  a: installed is 2, locked is 1"
    assert test == "  tests/t.py::t"
    assert "report.txt" in output


def test_without_a_problem_there_is_no_warning() -> None:
    text = report("newest", [], "", [])
    assert text == "newest (as locked): the tests without servers pass"


def test_modules_that_start_servers_are_left_out() -> None:
    assert not needs_servers(ROOT / "tests/test_event.py")
    assert needs_servers(ROOT / "tests/test_stream.py")  # imports tests.servers
    assert needs_servers(ROOT / "tests/test_sentinel.py")  # by another module of tests
    assert needs_servers(ROOT / "tests/test_handler_process.py")  # starts Python


def test_many_tests_need_no_server() -> None:
    modules = list((ROOT / "tests").rglob("test_*.py"))
    assert sum(not needs_servers(module) for module in modules) >= 40
