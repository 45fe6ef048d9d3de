"""Findings as lines for people."""

from collections.abc import Iterator, Sequence

from logpipe.doctor.checks import CHECKS, Finding, State
from logpipe.terminal import printable

MARKS: dict[State, tuple[str, str]] = {
    "ok": ("✓", "32"),
    "warning": ("!", "33"),
    "wrong": ("✗", "31"),
}
"""The sign of a state, and its colour on a terminal."""

MAX_DETAIL = 300
"""Characters of a finding; more than that is somebody else's page."""

_WIDTH = max(map(len, CHECKS))


def lines(findings: Sequence[Finding], *, color: bool) -> Iterator[str]:
    """A line for each finding, of which a terminal obeys nothing but its colour; a remedy is in it,
    after an arrow."""
    for each in findings:
        mark, style = MARKS[each.state]
        mark = f"\x1b[{style}m{mark}\x1b[0m" if color else mark
        words = each.detail[:MAX_DETAIL] + (f" → {each.remedy}" if each.remedy else "")
        yield f"{mark} {each.check:<{_WIDTH}}  {printable(words)}"


def sound(findings: Sequence[Finding]) -> bool:
    """Whether nothing is wrong; a warning is not."""
    return all(each.state != "wrong" for each in findings)
