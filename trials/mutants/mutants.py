"""The mutants of a row of the table: all, a sample, and those that are equivalent."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trials.mutants import lua
from trials.mutants.table import Equivalent, Row


class Mutant(NamedTuple):
    """A changed source of one file, and the lines that differ, without the space around them."""

    path: str
    line: int
    before: str
    after: str
    code: str


class Place(NamedTuple):
    """Where a file can be mutated; `make` returns the mutated source."""

    path: str
    line: int
    source: str
    make: Callable[[], str]

    def mutant(self) -> Mutant | None:
        """None where the change makes no other program, or none that compiles."""
        code = self.make()
        try:
            compile(code, self.path, "exec")
        except SyntaxError:
            return None
        old, new = self.source.splitlines(), code.splitlines()
        start = _common(old, new)
        old, new = old[start:], new[start:]
        same = _common(old[::-1], new[::-1])
        before, after = _stripped(old[: len(old) - same]), _stripped(new[: len(new) - same])
        return Mutant(self.path, start + 1, before, after, code) if before != after else None


def _common(old: Sequence[str], new: Sequence[str]) -> int:
    return next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(old))


def _stripped(lines: Sequence[str]) -> str:
    return "\n".join(line.strip() for line in lines).strip()


def places(row: Row, root: Path, skip: Sequence[str]) -> Iterator[Place]:
    """Where the files of a row can be mutated, except on lines that match a pattern of `skip`."""
    if row.is_lua:
        places_in = lua.places
    else:
        from trials.mutants.python import places as places_in  # Cosmic Ray comes with this target
    for path in row.paths:
        source = (root / path).read_text(encoding="utf-8")
        lines = source.splitlines()
        for line, make in places_in(source):
            if not any(re.search(pattern, lines[line - 1]) for pattern in skip):
                yield Place(path, line, source, make)


def sample(found: Sequence[Place], most: int | None, seed: str) -> list[Mutant]:
    """Mutants of these places, none twice: at most so many, the same ones for the same seed."""
    drawn: dict[tuple[str, str], Mutant] = {}
    for place in random.Random(seed).sample(found, len(found)):
        if len(drawn) == most:
            break
        mutant = place.mutant()
        if mutant is not None:
            drawn.setdefault((mutant.path, mutant.code), mutant)
    return sorted(drawn.values(), key=lambda each: (each.path, each.line, each.after))


def unmatched(found: Sequence[Place], known: Sequence[Equivalent]) -> list[Equivalent]:
    """Those of the known equivalent mutants of a row that none of its places makes."""
    firsts = {each.line.partition("\n")[0] for each in known}
    made = [
        place.mutant()
        for place in found
        if place.source.splitlines()[place.line - 1].strip() in firsts
    ]
    there = [(mutant.before, mutant.after) for mutant in made if mutant is not None]
    return [each for each in known if not any(each.is_it(*changed) for changed in there)]
