"""Mutations of the Lua texts in a module: its scripts are string constants."""

import io
import re
import tokenize
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, chain
from typing import NamedTuple

_OPPOSITE = {"==": "~=", "~=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_BOUNDARY = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_WORDS = {"and": "or", "or": "and", "+": "-", "-": "+", "true": "false", "false": "true"}
_SCRIPT = re.compile(r'"""\n.*\b(?:redis\.p?call|local)\b', re.DOTALL)
_LITERAL = re.compile(r"'(?:[^'\\\n]|\\.)*'|--[^\n]*")
_CALL = re.compile(
    r"(?:^[ \t]*|\b(?:then|else|do) )((?:redis\.p?call|call|record)\()", re.MULTILINE
)
_ASSIGNMENT = re.compile(r"^[ \t]*(?!local\b|[ \t])([\w.\[\]#, +]+ = [^\n]*)$", re.MULTILINE)
_CONDITION = re.compile(r"\b(?:if|elseif|while) ([^\n]+?) (?:then|do)\b")


class Change(NamedTuple):
    """A replacement of `text[start:end]`."""

    start: int
    end: int
    new: str

    def made(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]


def places(source: str) -> Iterator[tuple[int, Callable[[], str]]]:
    """Where the Lua texts of a module can be mutated: the line, and what makes the source."""
    starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and _SCRIPT.match(token.string):
            begin = starts[token.start[0] - 1] + token.start[1]
            for start, end, new in changes(token.string):
                change = Change(begin + start, begin + end, new)
                yield source.count("\n", 0, change.start) + 1, partial(change.made, source)


def changes(text: str) -> Iterator[Change]:
    """The mutations of a Lua text.

    Comparisons, `and` and `or`, arithmetic, small numbers, negated conditions, `not` and `pcall`
    that are removed, and calls and assignments that are dropped. Lua's strings and comments stay.
    """
    literals = [found.span() for found in _LITERAL.finditer(text)]
    for change in chain(_words(text), _conditions(text), _dropped(text)):
        if not any(start <= change.start < end for start, end in literals):
            yield change


def _words(text: str) -> Iterator[Change]:
    for found in re.finditer(r"(?<= )(?:[=~<>]=|[<>+-]|and|or|true|false)(?=[ \n])", text):
        for table in (_OPPOSITE, _BOUNDARY, _WORDS):
            if found[0] in table:
                yield Change(*found.span(), table[found[0]])
    for found in re.finditer(r"(?<![\w.%])\d\b(?!\.\d)", text):
        yield Change(*found.span(), str(int(found[0]) + 1))
        if found[0] != "0":
            yield Change(*found.span(), str(int(found[0]) - 1))
    for found in re.finditer(r"\bnot |(?<=redis\.)p(?=call)", text):
        yield Change(*found.span(), "")


def _conditions(text: str) -> Iterator[Change]:
    for found in _CONDITION.finditer(text):
        yield Change(*found.span(1), f"not ({found[1]})")


def _dropped(text: str) -> Iterator[Change]:
    for found in _CALL.finditer(text):
        depths = accumulate({"(": 1, ")": -1}.get(each, 0) for each in text[found.end(1) - 1 :])
        length = next(n for n, depth in enumerate(depths) if depth == 0)
        yield Change(found.start(1), found.end(1) + length, "")
    for found in _ASSIGNMENT.finditer(text):
        if all(found[1].count(a) == found[1].count(b) for a, b in ("()", "{}")):
            yield Change(*found.span(1), "")
