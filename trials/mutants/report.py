"""What was measured, as a table, and as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

Fate = Literal["killed", "timed out", "survived", "equivalent"]
FATES: tuple[Fate, ...] = ("killed", "timed out", "survived", "equivalent")


class Tried(msgspec.Struct, frozen=True):
    """A mutant and what became of it."""

    where: str
    before: str
    after: str
    fate: Fate
    seconds: float = 0.0

    def diff(self) -> str:
        """The change, line by line."""
        removed = [f"- {line}" for line in self.before.splitlines()]
        added = [f"+ {line}" for line in self.after.splitlines()]
        return "\n".join(f"    {line}" for line in (*removed, *added))


class Measured(msgspec.Struct, frozen=True):
    """The mutants of a module; `control`: whether the unchanged module passed after them."""

    module: str
    tried: Sequence[Tried]
    control: bool
    baseline_s: float = 0.0


def score(tried: Sequence[Tried]) -> float | None:
    """Percent of the mutants, without the equivalent ones, that were killed or timed out; None
    without any."""
    fates = Counter(each.fate for each in tried)
    total = len(tried) - fates["equivalent"]
    return 100 * (total - fates["survived"]) / total if total else None


def shortfalls(measured: Sequence[Measured], least: float, least_module: float) -> list[str]:
    """What is below the least scores, in percent: of all mutants, and of each module; and controls
    that failed."""
    rows = [("all", [each for one in measured for each in one.tried], least)]
    rows += [(one.module, list(one.tried), least_module) for one in measured]
    found = [
        f"{name}: {percent:.1f} %, at least {needed:g} % is needed"
        for name, tried, needed in rows
        if (percent := score(tried)) is not None and percent < needed
    ]
    return found + [
        f"{one.module}: the unchanged copy fails, so its score says nothing"
        for one in measured
        if not one.control
    ]


def table(measured: Sequence[Measured]) -> str:
    """A line for each module and one for all, in Markdown."""
    lines = ["| module | n | killed | timed out | survived | equivalent | score |"]
    lines.append("|" + " --- |" * 7)
    rows = [(one.module, list(one.tried)) for one in measured]
    for name, tried in [*rows, ("all", [each for _, some in rows for each in some])]:
        fates = Counter(each.fate for each in tried)
        percent = score(tried)
        cells = (name, len(tried), *(fates[fate] for fate in FATES))
        shown = "-" if percent is None else f"{percent:.0f} %"
        lines.append("| " + " | ".join(map(str, (*cells, shown))) + " |")
    return "\n".join(lines)


def survivors(measured: Sequence[Measured]) -> str:
    """Each mutant that survived: file, line and change."""
    tried = [each for one in measured for each in one.tried if each.fate == "survived"]
    return "\n".join(f"{each.where}\n{each.diff()}" for each in tried)


def controls(measured: Sequence[Measured]) -> str:
    """How many unchanged copies passed."""
    passed = sum(one.control for one in measured)
    return f"control: {passed} of {len(measured)} unchanged modules passed after their mutants"
