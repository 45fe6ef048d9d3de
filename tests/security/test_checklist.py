"""docs/security.md names what proves each line: all of it exists. SECURITY.md says where to go."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", TEXT, re.MULTILINE)


def test_all_items_are_there() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 29))


@pytest.mark.parametrize(("number", "item", "proofs"), ROWS)
def test_each_names_tests_that_exist(number: str, item: str, proofs: str) -> None:
    """A test that was renamed is renamed there as well."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proofs)
    assert named, f"{number} {item}: an item without a proof is a wish"
    assert len(named) == proofs.count("`") // 2
    for path, name in named:
        assert re.search(rf"def {name}\b", (ROOT / path).read_text(encoding="utf-8")), name


def test_who_finds_a_hole_is_told_where_to_go_with_it() -> None:
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", policy, re.MULTILINE)
    assert headings == [
        "Supported versions",
        "Reporting a vulnerability",
        "In scope",
        "Where logpipe comes from",
        "Hardening",
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(SECURITY.md)" in readme
    assert "(docs/security.md)" in readme


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/security.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets
    for target in targets:
        assert ((ROOT / name).parent / target).exists(), target
