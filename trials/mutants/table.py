"""What is measured: the modules with the tests that cover them, and the equivalent mutants."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).parent


class TableError(Exception):
    """The table names something that is not there."""


class Row(msgspec.Struct, frozen=True):
    """A module, or the Lua texts of some, and the test files that cover it, nearest first."""

    name: str
    paths: Sequence[str]
    tests: Sequence[str]

    @property
    def is_lua(self) -> bool:
        return self.name.startswith("lua:")


class Equivalent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mutant that behaves as the original: in the module of a row, `line` becomes `change`.

    White space does not count; several lines are joined by newlines.
    """

    module: str
    line: str
    change: str
    reason: str

    def is_it(self, before: str, after: str) -> bool:
        """Whether a change of these lines is this one."""
        return (_bare(self.line), _bare(self.change)) == (_bare(before), _bare(after))


def _bare(text: str) -> str:
    return "".join(text.split())


def read(name: str) -> dict[str, Any]:
    """A data file beside this module."""
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


def rows(table: Mapping[str, Any], root: Path, wanted: Iterable[str] = ()) -> list[Row]:
    """The rows of the table, or the wanted ones. Raises `TableError`."""
    found = {
        name: Row(name, entry.get("paths", [f"logpipe/{name}.py"]), entry["tests"])
        for name, entry in table.items()
    }
    if unknown := [name for name in wanted if name not in found]:
        raise TableError(f"no module of the table: {', '.join(unknown)}; it has {', '.join(found)}")
    for row in found.values():
        missing = [path for path in (*row.paths, *row.tests) if not (root / path).is_file()]
        if missing:
            raise TableError(f"table.toml, {row.name}: there is no {', '.join(missing)}")
    return [found[name] for name in wanted] or list(found.values())


def equivalents(names: Iterable[str]) -> list[Equivalent]:
    """The equivalent mutants that are known. Raises `TableError`."""
    known = msgspec.convert(read("equivalent.toml").get("mutant", []), list[Equivalent])
    if unknown := {each.module for each in known} - {*names}:
        raise TableError(f"equivalent.toml: no module of the table: {', '.join(unknown)}")
    return known
