"""The most expensive pairs of a filter and an event that are known, and the time that each takes.

`python -m tests.costs` prints the times; they count only on a machine that does nothing else.
"""

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from logpipe.event import read_entry
from logpipe.filters import Filter, parse_filter
from logpipe.filters.reading import MAX_QUERY, MAX_REGEXES, MAX_TERMS
from logpipe.ids import StreamId

EVENT_BYTES = 65_536
"""MAX_MESSAGE_BYTES: the bytes of an event as JSON."""


class Pair(NamedTuple):
    """A filter and an event that it is costly for."""

    name: str
    query: str
    event: bytes


def worst_pairs() -> list[tuple[str, bytes]]:
    """The text of each filter, and the JSON of its event."""
    return [(pair.query, pair.event) for pair in PAIRS]


def measure(rounds: int = 3) -> list[tuple[float, str]]:
    """The least processor time of each pair in some rounds, in seconds, and the pair's name."""
    return [(min(_seconds(pair) for _ in range(rounds)), pair.name) for pair in PAIRS]


def _seconds(pair: Pair) -> float:
    accepts = parse_filter({"q": pair.query}).predicate
    entry = read_entry(StreamId(1, 0), pair.event)
    assert accepts is not None
    assert entry is not None
    began = time.thread_time()
    accepts(entry.event)
    return time.thread_time() - began


def measure_marks(rounds: int = 3) -> list[tuple[float, str]]:
    """The same for marking what a filter finds in the message."""
    found = []
    for pair in PAIRS:
        marks = Filter(pair.query).highlight
        entry = read_entry(StreamId(1, 0), pair.event)
        assert entry is not None
        if marks is None:
            continue
        times = []
        for _ in range(rounds):
            began = time.thread_time()
            marks(entry.event.message)
            times.append(time.thread_time() - began)
        found.append((min(times), pair.name))
    return found


# -- events ----------------------------------------------------------------------------------------


def event(message: str = "", /, **metadata: object) -> bytes:
    """The JSON of an event."""
    fields = {"source": "a", "level": "INFO", "message": message, "metadata": metadata}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def filled(text: str, end: str = "") -> bytes:
    """An event whose message is a text as often as there is room, and an end."""
    room = EVENT_BYTES - len(event()) - len(json.dumps(end, ensure_ascii=False).encode())
    return event(text * (room // len(text.encode())) + end)


def listed(value: Any) -> bytes:
    """An event whose `a` is a list of a value as often as there is room."""
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) + 1
    return event(a=[value] * ((EVENT_BYTES - len(event(a=[]))) // size))


def nested(depth: int, key: str = "a") -> bytes:
    """An event whose metadata is an object within an object, so many times."""
    value: Any = 1
    for _ in range(depth):
        value = {key: value}
    return event(a=value)


def many(terms: Iterator[str], joined: str = " OR ") -> str:
    """As many of the terms as a filter may have."""
    chosen: list[str] = []
    for _, term in zip(range(MAX_TERMS), terms, strict=False):
        if len(joined.join([*chosen, term])) > MAX_QUERY:
            break
        chosen.append(term)
    return joined.join(chosen)


# -- pairs -----------------------------------------------------------------------------------------


def _words(character: str, length: int) -> Iterator[str]:
    """Words of one character with another in the middle, each in another place."""
    for at in range(length - 1, 0, -1):
        yield character * at + "!" + character * (length - at)
    for at in range(length - 1, 0, -1):
        yield character * at + "?" + character * (length - at)


def _wildcards(character: str, length: int) -> Iterator[str]:
    return (f"{character}*{word}" for word in _words(character, length))


def _all_found(character: str, length: int) -> Pair:
    """Words that are all found, at the end of the message."""
    query = many(_words(character, length), " ")
    end = " ".join(word for word in query.split())
    return Pair(f"words of {length} x {character!a}, at the end", query, filled(character, end))


def _pairs() -> Iterator[Pair]:
    lists = {"empty texts": "", "texts": "x0x0x0x0", "floats": 1.1234567890123457e-300,
             "short floats": 0.1, "long integers": 10**4299, "objects": {"a": 1},
             "lists": [0.1, "a"], "empty lists": [], "truths": True, "long texts": "x0" * 2_000,
             "integers": 2**63 + 1, "spaces": " " * 4_000, "numbers": "1" * 4_000}  # fmt: skip
    queries = {"comparisons": (f"a>{n}" for n in range(1000, 2000)),
               "wildcards": (f"a:*x{n}*y" for n in range(64)),
               "values": (f"a:{n}.5" for n in range(64)),
               "long wildcards": ("a:*" + "x0" * n + "y*" for n in range(10, 25)),
               "patterns": (f"a:/x{n}.*y/" for n in range(MAX_REGEXES))}  # fmt: skip
    for query_name, terms in queries.items():
        query = many(terms)
        for name, value in lists.items():
            yield Pair(f"{query_name} on a list of {name}", query, listed(value))
        yield Pair(f"{query_name} on a nested list", query, event(a=[[""] * 20_000]))
        yield Pair(f"{query_name} on a text", query, event(a="x0" * 32_000))
        yield Pair(f"{query_name} on an object", query, event(a={str(n): 0.1 for n in range(6000)}))
    dots = "a." * 990 + "a:x"
    yield Pair("dots on nested metadata", dots, nested(500))
    yield Pair(
        "dots on keys with dots",
        dots,
        event(**{"a." * n + "a": {} for n in range(250)}),
    )
    yield Pair("short paths", many("a." * 13 + f"{n}:x" for n in range(64)), nested(500))
    for character in ("a", "İ", "\u0390", "漢", "🎉"):
        for length in (4, 6, 15, 28):
            query = many(_words(character, length))
            name = f"words of {length} x {character!a}"
            yield Pair(name, query, filled(character))
            yield Pair(f"wildcards, {name}", many(_wildcards(character, length)), filled(character))
            yield _all_found(character, length)
        size = min(29_900, 65_000 // len(character.encode()))
        query = many(_words(character, 98))
        yield Pair(f"words of 98 x {character!a}", query, event(character * size))
    few = " OR ".join("a" * n + "ba" * 3 for n in range(80, 84))
    yield Pair("few words and an expression", f"{few} OR /(?:[ab]?){{60}}z/", event("a" * 29_000))
    yield from _expressions()


EXPRESSIONS = (
    "(?:(?:(?:aa*){30}){2}){2}z",
    "(?:a*){60}z",
    "(?:(?:[ab]){30}){0,8}c$",
    "(?:[ab]){30}.?a.*[a-k]",
    "(?:(?:[^c]|(?:[ab]?){10})b){0,8}z",
    r"\B(?:a*){10}(?:[ab]?){60}zz",
    "(?:(?:b?(?s:.)){0,8}[a-k])+🎉z",
    "(?:(?:[ab]?b?){10}b?){5}z",
    r"(?:[ab]?\B){60}z",
    "(?:[ab]?a?){20}a[ab]{25}z",
    "a[ab]{120}z",
    "(a|b|ab|ba|aa|bb){20}a[ab]{20}z",
    "a[ab]{12}z",
    "x.*y|x",
)
"""Expressions for which RE2 is slow: its states do not fit into its memory."""


def _expressions() -> Iterator[Pair]:
    bits = "".join("ab"[n * n // 7 % 2] for n in range(60_000))
    texts = {"a": "a" * 60_000, "a and b": bits, "🎉": "🎉" * 16_000, "x": "x" * 60_000}
    for expression in EXPRESSIONS:
        for name, text in texts.items():
            for size in (100, 480, 1_000, 2_000, 16_384):
                query = f"/{expression}/"
                yield Pair(f"{expression} on {size} x {name}", query, event(text[:size]))
                four = " OR ".join([f"/{expression}/", f"/{expression}y/", f"/{expression}yx/",
                                    f"/{expression}q/"])  # fmt: skip
                yield Pair(f"four {expression} on {size} x {name}", four, event(text[:size]))
    words = many(_words("a", 15), " OR ").split(" OR ")[:58]
    words += [f"/{expression}/" for expression in EXPRESSIONS[:4]]
    yield Pair("words and expressions", " OR ".join(words), filled("a"))


PAIRS = list(_pairs())


if __name__ == "__main__":
    for seconds, name in sorted(measure(), reverse=True)[:20]:
        print(f"{seconds * 1000:8.2f} ms  {name}")
    print("marks")
    for seconds, name in sorted(measure_marks(), reverse=True)[:10]:
        print(f"{seconds * 1000:8.2f} ms  {name}")
