"""The tree of a filter: nodes that print themselves in the language and explain themselves."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

Pattern = tuple[str, ...]
"""The literal parts between the wildcards: `api*` is ("api", ""), a plain text one part alone."""

Operator = Literal[">=", "<=", ">", "<"]

ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
"""What an operator compares."""

MESSAGE = "message"
LEVEL = "level"

_SPECIAL_ANYWHERE = re.compile(r'[\s()"\\*]')
_SPECIAL_IN_WORD = re.compile(r'[\s()"\\*:<>]')
_SPECIAL_FIRST = "-/:<>"
_KEYWORDS = ("OR", "AND", "NOT")
_COMPARED = {
    ">=": ("or more", "or above"),
    "<=": ("or less", "or below"),
    ">": ("more than", "above"),
    "<": ("less than", "below"),
}


class Text(msgspec.Struct, frozen=True):
    """The message contains a pattern, in any case of its letters."""

    pattern: Pattern

    def __str__(self) -> str:
        return printed(self.pattern)

    def explain(self) -> str:
        """The node as an English clause."""
        return f"the message contains {_quoted('*'.join(self.pattern))}"


class Match(msgspec.Struct, frozen=True):
    """A field's whole value fits a pattern."""

    field: str
    pattern: Pattern

    def __str__(self) -> str:
        return f"{self.field}:{printed(self.pattern)}"

    def explain(self) -> str:
        """The node as an English clause."""
        if self.pattern == ("", ""):
            return f"{self.field} is there"
        like = "is" if len(self.pattern) == 1 else "is like"
        return f"{self.field} {like} {_quoted('*'.join(self.pattern))}"


class Regex(msgspec.Struct, frozen=True):
    """A regular expression is found in a field, in any case of its letters."""

    field: str
    expression: str

    def __str__(self) -> str:
        prefix = "" if self.field == MESSAGE else f"{self.field}:"
        return f"{prefix}/{self.expression}/"

    def explain(self) -> str:
        """The node as an English clause."""
        name = "the message" if self.field == MESSAGE else self.field
        return f"{name} matches /{self.expression}/"


class Compare(msgspec.Struct, frozen=True):
    """A field's number, or the rank of its level, stands in an order to a value."""

    field: str
    operator: Operator
    value: float | str

    def __str__(self) -> str:
        return f"{self.field}{self.operator}{self._shown}"

    @property
    def _shown(self) -> str:
        if isinstance(self.value, float) and self.value.is_integer() and abs(self.value) < 2**53:
            return str(int(self.value))
        return str(self.value)

    def explain(self) -> str:
        """The node as an English clause."""
        words = _COMPARED[self.operator][self.field == LEVEL]
        if self.operator in (">", "<"):
            return f"{self.field} is {words} {self._shown}"
        return f"{self.field} is {self._shown} {words}"


class Not(msgspec.Struct, frozen=True):
    """The term does not hold."""

    term: "Node"

    def __str__(self) -> str:
        return f"-{_grouped(self.term, And, Or)}"

    def explain(self) -> str:
        """The node as an English clause."""
        return f"not {_explained(self.term, And, Or)}"


class And(msgspec.Struct, frozen=True):
    """All of two or more terms hold; none of them is an `And`."""

    terms: "tuple[Node, ...]"

    def __str__(self) -> str:
        return " ".join(_grouped(term, Or) for term in self.terms)

    def explain(self) -> str:
        """The node as an English clause."""
        return " and ".join(_explained(term, Or) for term in self.terms)


class Or(msgspec.Struct, frozen=True):
    """One of two or more terms holds; none of them is an `Or`."""

    terms: "tuple[Node, ...]"

    def __str__(self) -> str:
        return " OR ".join(map(str, self.terms))

    def explain(self) -> str:
        """The node as an English clause."""
        return " or ".join(_explained(term, And) for term in self.terms)


Node = Text | Match | Regex | Compare | Not | And | Or


def all_of(terms: list[Node]) -> Node:
    """One node for terms that all have to hold."""
    flat = [each for term in terms for each in (term.terms if isinstance(term, And) else (term,))]
    return And(tuple(flat)) if len(flat) > 1 else flat[0]


def any_of(terms: list[Node]) -> Node:
    """One node for terms of which one has to hold."""
    flat = [each for term in terms for each in (term.terms if isinstance(term, Or) else (term,))]
    return Or(tuple(flat)) if len(flat) > 1 else flat[0]


def negation(term: Node) -> Node:
    """The opposite of a node."""
    return term.term if isinstance(term, Not) else Not(term)


def ordered(node: Node) -> Node:
    """The node with the terms of each `And` and `Or` in one order and each of them once, so that
    filters that differ in nothing else are equal."""
    match node:
        case And(terms):
            return all_of(_ordered(terms))
        case Or(terms):
            return any_of(_ordered(terms))
        case Not(term):
            return Not(ordered(term))
        case _:
            return node


def _ordered(terms: "tuple[Node, ...]") -> list[Node]:
    return sorted({ordered(term) for term in terms}, key=str)


def leaves(node: Node) -> Iterator[Text | Match | Regex | Compare]:
    """The terms that look at an event."""
    match node:
        case And(terms) | Or(terms):
            for term in terms:
                yield from leaves(term)
        case Not(term):
            yield from leaves(term)
        case _:
            yield node


def printed(pattern: Pattern) -> str:
    """A pattern as the language writes it: plain where that can be read back, else quoted; with
    wildcards, special characters are escaped one by one."""
    text = "*".join(pattern)
    if len(pattern) > 1:
        escaped = "*".join(_SPECIAL_IN_WORD.sub(r"\\\g<0>", part) for part in pattern)
        return f"\\{escaped}" if escaped[0] in _SPECIAL_FIRST else escaped
    plain = text and text[0] not in _SPECIAL_FIRST and not _SPECIAL_ANYWHERE.search(text)
    return text if plain and text not in _KEYWORDS and not _like_field(text) else _quoted(text)


def _like_field(text: str) -> bool:
    return re.match(r"[A-Za-z_@][\w.@/-]*(?::|[<>])", text) is not None


def _quoted(text: str) -> str:
    return '"' + re.sub(r'["\\]', r"\\\g<0>", text) + '"'


def _grouped(node: Node, *kinds: type) -> str:
    return f"({node})" if isinstance(node, kinds) else str(node)


def _explained(node: Node, *kinds: type) -> str:
    return f"({node.explain()})" if isinstance(node, kinds) else node.explain()
