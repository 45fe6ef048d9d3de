"""The lock files: which versions they hold, and what of them is installed."""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def locked(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock and its hashes."""
    text = path.read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    found = []
    for line in filter(str.strip, lines):
        requirement, *hashes = line.split(" --hash=")
        found.append((Requirement(requirement.strip()), [each.strip() for each in hashes]))
    return found


def versions(name: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    """The versions that a lock holds for an environment, which is this one unless given."""
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement, _ in locked(ROOT / name)
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }


def differences(expected: Mapping[str, str], installed: Callable[[str], str]) -> list[str]:
    """A line for each distribution whose installed version is not the expected one.

    `installed` returns a version or raises PackageNotFoundError.
    """
    found = []
    for name, version in expected.items():
        try:
            actual = installed(name)
        except PackageNotFoundError:
            found.append(f"{name}: not installed, locked is {version}")
        else:
            if actual != version:
                found.append(f"{name}: installed is {actual}, locked is {version}")
    return found
