"""From the text of a filter to its tree; errors say where and what to write instead."""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import re2
from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput, UnexpectedToken

from logpipe.event import RANK, level_name
from logpipe.filters import tree
from logpipe.filters.tree import (
    LEVEL,
    MESSAGE,
    Compare,
    Match,
    Node,
    Operator,
    Pattern,
    Regex,
    Text,
)

MAX_QUERY = 2_000
"""Characters of a filter."""
MAX_TERMS = 64
MAX_REGEXES = 4
MAX_PROGRAM = 256
"""Instructions of a compiled regular expression (RE2's measure). With the bound on what of a text
is looked at, it bounds the time an event can take: `.{900}` has thousands."""
MAX_NESTING = 32
"""Parentheses within each other."""
MAX_TOKENS = 640
"""Words, fields, operators, signs and parentheses of a filter: 64 terms with a field, a sign and
parentheses each have fewer. The parser takes 3 us for each."""
MAX_CLASSES = 8
"""Unicode classes (`\\pL`) of a regular expression: RE2 takes 0.1 ms for each."""

REGEX_MEMORY = 64 * 1024
"""Bytes that RE2 may use for one regular expression. Of it are the states that it finds while it
searches; where they need more, it searches without them, ten times slower or more."""

PARSED = 64
"""Trees that are kept, each of 30 KB at most."""

QUOTE_IT = 'to look for the text itself, quote it: "…"'


class FilterSyntaxError(ValueError):
    """A filter that cannot be read: where (0-based), what is wrong, and what to do about it."""

    def __init__(self, position: int, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.position = position
        self.what = what
        self.hint = hint


@lru_cache(maxsize=PARSED)
def parse(text: str) -> Node | None:
    """The tree of a filter; None for an empty one. Raises `FilterSyntaxError`."""
    if not text.strip():
        return None
    if len(text) > MAX_QUERY:
        raise FilterSyntaxError(MAX_QUERY, f"a filter has at most {MAX_QUERY} characters")
    _check_nesting(text)
    try:
        node: Node = _parser().parse(text)  # type: ignore[assignment]
    except _TooLarge as error:
        raise FilterSyntaxError(len(text), str(error)) from None
    except UnexpectedInput as error:
        raise _told(text, error) from None
    _check_size(text, node)
    return node


def regex(expression: str) -> Any:
    """The compiled expression: RE2's, which takes a time that is linear in the text.

    Raises `re2.error`.
    """
    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False
    options.max_mem = REGEX_MEMORY
    try:
        return re2.compile(expression, options)
    finally:
        re2.purge()  # the module keeps the last 128 otherwise


@lru_cache(maxsize=1)
def _parser() -> Lark:
    grammar = (Path(__file__).parent / "grammar.lark").read_text(encoding="utf-8")
    return Lark(
        grammar,
        parser="lalr",
        transformer=_Builder(),
        postlex=_Bounded(),
        maybe_placeholders=False,
    )


class _TooLarge(Exception):  # noqa: N818 - becomes a FilterSyntaxError
    pass


class _Bounded:
    """Ends the reading of a filter that has too many tokens or regular expressions."""

    always_accept = ()

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """The same tokens. Raises `_TooLarge`."""
        regexes = 0
        for count, token in enumerate(stream):
            regexes += token.type == "REGEX"
            if regexes > MAX_REGEXES:
                raise _TooLarge(f"a filter has at most {MAX_REGEXES} regular expressions")
            if count >= MAX_TOKENS:
                raise _TooLarge(f"a filter has at most {MAX_TOKENS} words and signs")
            yield token


@v_args(inline=True)
class _Builder(Transformer[Token, Node]):
    """Makes the nodes while the parser reads, so that no depth of a tree is walked later."""

    def any_of(self, *terms: Node) -> Node:
        return tree.any_of(list(terms))

    def all_of(self, *terms: Node) -> Node:
        return tree.all_of(list(terms))

    def negation(self, term: Node) -> Node:
        return tree.negation(term)

    def word(self, word: Token) -> Node:
        return Text(_pattern(word))

    def phrase(self, phrase: Token) -> Node:
        return Text(_phrase(phrase))

    def regex(self, expression: Token) -> Node:
        return Regex(MESSAGE, _expression(expression))

    def field_word(self, field: Token, word: Token) -> Node:
        return _field(field, _pattern(word))

    def field_phrase(self, field: Token, phrase: Token) -> Node:
        return _field(field, _phrase(phrase))

    def field_regex(self, field: Token, expression: Token) -> Node:
        return Regex(_name(field), _expression(expression))

    def comparison(self, field: Token, operator: Token, value: Token) -> Node:
        text = _phrase(value)[0] if value.type == "STRING" else value.value
        sign: Operator = operator.value
        if _name(field) == LEVEL:
            return Compare(LEVEL, sign, level(text, _at(value)))
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text, re.ASCII) is None:
            raise FilterSyntaxError(_at(value), f"after {sign} comes a number", QUOTE_IT)
        if math.isinf(number := float(text)):
            raise FilterSyntaxError(_at(value), "this number is too large")
        return Compare(_name(field), sign, number)


def level(word: str, position: int) -> str:
    """The known level that a word names. Raises `FilterSyntaxError`."""
    name = level_name(word)
    if name not in RANK:
        raise FilterSyntaxError(position, f"{word} is no level that has a rank", _one_of_levels())
    return name


def _one_of_levels() -> str:
    return f"the levels in order are {', '.join(RANK)}"


def _field(field: Token, pattern: Pattern) -> Node:
    name = _name(field)
    if name == MESSAGE:
        return Text(pattern)
    if name == LEVEL:
        alone = len(pattern) == 1
        pattern = (level_name(pattern[0]),) if alone else tuple(part.upper() for part in pattern)
    return Match(name, pattern)


def _name(field: Token) -> str:
    if field.value.strip(".") == "metadata":
        hint = "name one of its keys: metadata.region:us-east-1"
        raise FilterSyntaxError(_at(field), "metadata is an object", hint)
    return str(field.value)


def _pattern(word: Token) -> Pattern:
    """The parts of a word between its wildcards; runs of `*` are one."""
    parts = [""]
    for escape, star, other in re.findall(r'\\([\s()"\\*:<>/-])|(\*+)|(.)', word.value, re.DOTALL):
        if star:
            parts.append("")
        else:
            parts[-1] += escape or other
    return tuple(parts)


def _phrase(phrase: Token) -> Pattern:
    text = re.sub(r'\\(["\\])', r"\1", phrase.value[1:-1])
    if not text:
        raise FilterSyntaxError(
            _at(phrase), "an empty text is in everything", "name what to look for"
        )
    return (text,)


def _expression(token: Token) -> str:
    expression = str(token.value[1:-1])
    too_large = FilterSyntaxError(
        _at(token), "the regular expression is too large", "repeat less: .{900} counts each time"
    )
    if len(re.findall(r"\\[pP]", expression)) > MAX_CLASSES:
        raise too_large
    try:
        compiled = regex(expression)
    except re2.error as error:
        said = error.args[0]
        words = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        if words.startswith("pattern too large"):
            raise too_large from None
        hint = "the syntax is RE2's: no look-around, no back references"
        raise FilterSyntaxError(_at(token), f"not a regular expression: {words}", hint) from None
    if compiled.programsize > MAX_PROGRAM:
        raise too_large
    return expression


def _at(token: Token) -> int:
    return token.start_pos or 0


def _check_nesting(text: str) -> None:
    """Raises `FilterSyntaxError`: the tree is walked by recursion."""
    depth = 0
    for match in re.finditer(r'\\.|"(?:[^"\\]|\\.|\\\Z)*(?:"|\Z)|[()]', text, re.DOTALL):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth > MAX_NESTING:
            raise FilterSyntaxError(match.start(), f"nested more than {MAX_NESTING} levels deep")


def _check_size(text: str, node: Node) -> None:
    terms = list(tree.leaves(node))
    if len(terms) > MAX_TERMS:
        raise FilterSyntaxError(len(text), f"a filter has at most {MAX_TERMS} terms")


_AT_CHARACTER = {
    '"': ("this quote is not closed", 'a quote within a phrase is written \\"'),
    ":": ("a field and its value stand without spaces: level:error", QUOTE_IT),
    "<": ("a field and a number stand without spaces: status<500", QUOTE_IT),
    ">": ("a field and a number stand without spaces: status>=500", QUOTE_IT),
    "-": ("nothing follows the minus", "it excludes what follows at once: -healthz"),
    ")": ("there is no parenthesis to close, or nothing in it", QUOTE_IT),
    "\\": ("nothing follows the backslash", QUOTE_IT),
}


def _told(text: str, error: UnexpectedInput) -> FilterSyntaxError:
    """The parser's complaint in words for people."""
    position = error.pos_in_stream or 0
    expected = getattr(error, "expected", None) or getattr(error, "accepts", None) or set()
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        if "RPAR" in expected:
            return FilterSyntaxError(len(text), "a closing parenthesis is missing")
        return FilterSyntaxError(len(text), "a term is expected here", "words, field:value or (…)")
    word = re.match(r"(?:OR|AND|NOT)(?![^\s()])", text[position:])
    if word is not None:
        hint = f'to look for the word itself, quote it: "{word[0]}"'
        return FilterSyntaxError(position, f"{word[0]} stands between two terms", hint)
    what, hint = _AT_CHARACTER.get(
        text[position : position + 1], ("this is not expected", QUOTE_IT)
    )
    return FilterSyntaxError(position, what, hint)
