"""Whether a filter may take an event, judged by the event's JSON before it is decoded.

A filter's literal words are looked for in the bytes. That costs a tenth of decoding, and rejects
most events of a search for something rare.
"""

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import re2

from logpipe.filters.needed import (
    SMALL_BYTES,
    Clause,
    Leaf,
    clauses,
    is_definite,
    is_light,
    levels_of,
    rating,
)
from logpipe.filters.tree import Compare, Match, Node, Pattern, Text

MayMatch = Callable[[bytes], bool]
"""A function of an event's JSON, or of that of several events one after the other: False only where
the filter rejects all of them."""

MAX_CLAUSES = 4
"""Clauses that are checked: those with the longest words."""

LARGE_BYTES = 2_048
"""From this size on RE2 looks for words in any case: it makes no copy in lower case, and is two to
four times as fast. It takes a microsecond to begin, in which smaller texts are searched otherwise.
"""
_PREFIX = 9
"""RE2 looks for a literal of up to so many bytes without its automaton."""
_WORD_MEMORY = 16 * 1024
"""Bytes that RE2 may use for one such word; it takes about 4,300 in all."""

_ESCAPED = re.compile(r'["\\/\x00-\x1f]')
r"""Characters that JSON may write as an escape other than `\u`, which is treated apart."""

_DEFAULT_LEVEL = "INFO"

_FOLDED_TO_ASCII = frozenset("afhijklnstwy")
"""ASCII letters in the case folding of characters that are not ASCII, such as the Kelvin sign."""
_OTHER_RUNS = re.compile("[" + "".join(sorted(_FOLDED_TO_ASCII)) + "]|[^\x00-\x7f]")

_OWN_FIELDS = ("source", "level", "message", "ts_unix_ms")

_AS_NUMBERS = frozenset("0123456789.e+-infa")
"""Characters of numbers as Python writes them, which may differ from how JSON has them."""


class _Needles(NamedTuple):
    """What to look for instead of a leaf: one of them is in the JSON where the leaf holds."""

    folded: tuple[str, ...] = ()
    """Looked for in the text in its case folding."""
    exact: tuple[bytes, ...] = ()
    """Looked for in the bytes."""
    nested: bool = False
    """Whether a list within a list may hold it in other characters."""


def may_match_of(node: Node) -> MayMatch | None:
    """What rejects events by their JSON; None where the filter has no words to look for.

    JSON that cannot be decoded may have either result.
    """
    light = is_light(node)

    def rate(leaf: Leaf) -> int:
        needles = _needles(leaf) if light or is_definite(leaf) else None
        return min(map(len, (*needles.folded, *needles.exact))) if needles else 0

    found = sorted(clauses(node, rate), key=lambda clause: -rating(clause, rate))
    return _all([_meets(clause) for clause in found[:MAX_CLAUSES]]) if found else None


def _all(conditions: list[MayMatch]) -> MayMatch:
    first, *rest = conditions
    if not rest:
        return first
    others = _all(rest)
    return lambda raw: first(raw) and others(raw)


def _meets(clause: Clause) -> MayMatch:
    """Whether one of the needles of a clause is in the JSON, or may be there in other bytes."""
    needles = [found for leaf in clause if (found := _needles(leaf))]
    folded = tuple(dict.fromkeys(word for each in needles for word in each.folded))
    exact = tuple(dict.fromkeys(word for each in needles for word in each.exact))
    nested = any(each.nested for each in needles)
    meets = _has_folded(folded, exact) if folded else _has_exact(exact)
    if all(map(is_definite, clause)):
        return meets
    return lambda raw: len(raw) > SMALL_BYTES or meets(raw) or (nested and raw.count(b"[") > 1)


class _Word:
    """An ASCII word in lower case, looked for in large texts in any case."""

    def __init__(self, word: bytes) -> None:
        self.word = word

    @cached_property
    def _end(self) -> Any:
        # The beginning is less rare: of other words, and of those that come together.
        return _literal(self.word[-_PREFIX:], case_sensitive=False)

    def is_in(self, raw: bytes) -> bool:
        if self._end.search(raw) is None:
            return False
        return len(self.word) <= _PREFIX or self.word in raw.lower()


def _literal(word: bytes, *, case_sensitive: bool) -> Any:
    options = re2.Options()
    options.literal = True
    options.case_sensitive = case_sensitive
    options.never_capture = True
    options.encoding = re2.Options.Encoding.LATIN1
    options.max_mem = _WORD_MEMORY
    options.log_errors = False
    try:
        return re2.compile(word, options)
    finally:
        re2.purge()  # the module keeps the last 128 otherwise


_UNICODE_ESCAPE = _literal(b"\\u", case_sensitive=True)


def _has_unicode_escape(raw: bytes) -> bool:
    """Whether a character may be written as `\\u1234`."""
    if b"\\" not in raw:
        return False
    # Python's search for two bytes is slow.
    return b"\\u" in raw if len(raw) < LARGE_BYTES else _UNICODE_ESCAPE.search(raw) is not None


def _has_exact(words: tuple[bytes, ...]) -> MayMatch:
    def has(raw: bytes) -> bool:
        for word in words:
            if word in raw:
                return True
        return _has_unicode_escape(raw)

    return has


def _has_ascii(words: tuple[bytes, ...]) -> MayMatch:
    """Whether a text has one of some words in lower case, which it may have in any case."""
    searches = tuple(map(_Word, words))

    def has(raw: bytes) -> bool:
        if len(raw) >= LARGE_BYTES:
            return any(each.is_in(raw) for each in searches)
        lowered = raw.lower()
        for word in words:  # noqa: SIM110 - a generator takes twice the time
            if word in lowered:
                return True
        return False

    return has


def _has_folded(words: tuple[str, ...], exact: tuple[bytes, ...]) -> MayMatch:
    has_ascii = _has_ascii(tuple(word.encode() for word in words if word.isascii()))
    has_exact = _has_exact(exact)
    # In a text that is not ASCII, these can have no other character as their origin.
    runs = tuple(_longest(_OTHER_RUNS, [word]).encode() for word in words)

    def has(raw: bytes) -> bool:
        if has_ascii(raw) or has_exact(raw):
            return True
        return not raw.isascii() and has_beyond_ascii(raw)

    def has_beyond_ascii(raw: bytes) -> bool:
        lowered = raw.lower()
        if not any(run in lowered for run in runs):
            return False
        try:
            text = raw.decode().casefold()
        except UnicodeDecodeError:
            return True
        return any(word in text for word in words)

    return has


def _needles(leaf: Leaf) -> _Needles | None:
    """What the JSON of an event has for which a leaf holds; None where nothing is certain."""
    match leaf:
        case Text(pattern):
            word = _longest(_ESCAPED, [part.casefold() for part in pattern])
            return _Needles(folded=(word,)) if word else None
        case Match("source", pattern):
            return _exact(pattern)
        case Match("level", pattern):
            wildcard = ".*".join(map(re.escape, pattern))
            default = re.fullmatch(wildcard, _DEFAULT_LEVEL, re.DOTALL)
            return None if default else _exact(pattern)
        case Compare("level"):
            names = levels_of(leaf)  # INFO stands for a missing level and for every unknown word
            if not names or _DEFAULT_LEVEL in names:
                return None
            return _Needles(exact=tuple(b'"%s"' % name.encode() for name in names))
        case _ if leaf.field in _OWN_FIELDS:
            return None
        case Match(field, pattern) if len(value := _value(pattern)) > len(_key(field)):
            return _Needles(exact=(value,), nested=True)
        case _:
            key = _key(leaf.field)
            return _Needles(exact=(key,)) if key else None


def _exact(pattern: Pattern) -> _Needles | None:
    """The needle of a text that is compared in its own case."""
    whole = len(pattern) == 1 and not _ESCAPED.search(pattern[0])
    word = f'"{pattern[0]}"' if whole else _longest(_ESCAPED, pattern)
    return _Needles(exact=(word.encode(errors="replace"),)) if word else None


def _key(field: str) -> bytes:
    """What the name of the field's innermost key contains."""
    return _longest(_ESCAPED, [field.rpartition(".")[2]]).encode(errors="replace")


def _value(pattern: Pattern) -> bytes:
    """What a value of the metadata contains that fits the pattern; empty where that is not certain:
    JSON may write one number in several ways."""
    if len(pattern) == 1 and _is_number(pattern[0]):
        return b""
    parts = [part for each in pattern for part in _ESCAPED.split(each)]
    word = max((part for part in parts if not _AS_NUMBERS.issuperset(part)), key=len, default="")
    return word.encode(errors="replace")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _longest(separators: re.Pattern[str], texts: Iterable[str]) -> str:
    """The longest part of the texts in which there is no separator."""
    return max((part for text in texts for part in separators.split(text)), key=len)
