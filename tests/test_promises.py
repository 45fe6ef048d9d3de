"""docs/promises.md names what proves each line: all of it exists."""

import re
from pathlib import Path

import pytest

from tests.chaos.scenarios import SCENARIOS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/promises.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("path", "name"), re.findall(r"`(tests/\w+\.py)::(\w+)`", TEXT))
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    """A test that was renamed is renamed there as well."""
    assert re.search(rf"def {name}\b", (ROOT / path).read_text(encoding="utf-8"))


def test_every_scenario_that_is_named_exists() -> None:
    """Also those within a sentence."""
    named = set(re.findall(r"`((?:[a-z0-9]+-)+[a-z0-9]+)`", TEXT))
    assert named <= SCENARIOS.keys()


def test_every_scenario_is_named() -> None:
    """A fault that is tried is one that an operator may look up."""
    promised = {name for name, scenario in SCENARIOS.items() if scenario.breaks is None}
    assert not [name for name in promised if f"`{name}`" not in TEXT]


def test_every_line_of_a_table_names_its_proof() -> None:
    """A promise without one is a wish."""
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line]
    heads = ("| Redis |", "| | proved", "| fault |", "| replicas", "| of |")
    bare = [
        row for row in rows if "`" not in row.rpartition(" | ")[2] and not row.startswith(heads)
    ]
    assert not bare
