"""Random filters, and events that they often take: of few words, fields and values."""

import json
from random import Random
from typing import Any

from hypothesis import strategies as st

from logpipe.event import LEVELS, StoredEvent
from logpipe.filters.reading import MAX_REGEXES
from logpipe.filters.tree import (
    Compare,
    Match,
    Node,
    Pattern,
    Regex,
    Text,
    all_of,
    any_of,
    negation,
)
from logpipe.filters.tree import leaves as terms_of

CHARACTERS = "abkKsSfiIe5.-_/[]'\"\\* \n\x7f\u017fß\ufb01\u0130\u212aéÉ中😀\u2028"
WORDS = [
    "reset", "Kilo", "straße", "\ufb01n", "miss", "\u0130i", "/api", 'a"b', "C:\\x", "é", "中",
    "x-1", "us-east", "ok", "k", "ss", "500", "5e2", "True", "true", "None", "null", "1_0", "a\tb",
    "\x7f", "x7f", "INFO",
]  # fmt: skip
KEYS = ["status", "x", "x.y", "_z", "trace/id", "tags"]
FIELDS = [*KEYS, "metadata.x", "metadata.status", "source", "x.y.z", "nowhere"]

words = st.one_of(
    st.sampled_from(WORDS), st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=4)
)
texts = st.lists(
    st.one_of(words, words.map(str.upper), words.map(str.lower)), min_size=0, max_size=4
).map("".join)

expressions = st.sampled_from(
    [
        "res.t",
        "k",
        "^",
        "$",
        "a|b",
        r"\d+",
        "ss",
        "é",
        "^reset$",
        r"\bk",
        r"i\z",
        ".",
        "(?-i:K)",
        "[^a]",
    ]
)


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    drawn: list[str] = draw(st.lists(words, min_size=1, max_size=2))
    ends = draw(st.sampled_from([(), (), ("",)]))
    starts = draw(st.sampled_from([(), (), ("",)]))
    pattern = (*starts, *drawn, *ends)
    return pattern if draw(st.integers(0, 20)) else ("", "")


leaves: st.SearchStrategy[Node] = st.one_of(
    st.builds(Text, patterns()),
    st.builds(Text, words.map(lambda word: (word,))),
    st.builds(Match, st.sampled_from(FIELDS), patterns()),
    st.builds(Match, st.sampled_from(FIELDS), words.map(lambda word: (word,))),
    st.builds(
        Match,
        st.just("level"),
        st.sampled_from([("WARN",), ("INFO",), ("ERR", ""), ("", "")]),
    ),
    st.builds(Regex, st.sampled_from(["message", "message", "source", "x.y"]), expressions),
    st.builds(Compare, st.sampled_from(KEYS), st.sampled_from([">", "<="]), st.just(500.0)),
    st.builds(
        Compare,
        st.just("level"),
        st.sampled_from([">=", "<=", ">", "<"]),
        st.sampled_from(LEVELS),
    ),
)
nodes: st.SearchStrategy[Node] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(negation),
        st.lists(inner, min_size=2, max_size=3).map(all_of),
        st.lists(inner, min_size=2, max_size=3).map(any_of),
    ),
    max_leaves=6,
).filter(lambda node: sum(isinstance(leaf, Regex) for leaf in terms_of(node)) <= MAX_REGEXES)

scalars = st.one_of(
    texts, words, st.sampled_from([500, 500.0, 5e2, 10, 12, 1e22, 0.5, True, False, None])
)
values = st.one_of(
    scalars,
    scalars,
    st.lists(st.one_of(scalars, st.lists(scalars, max_size=2)), max_size=3),
    st.dictionaries(st.sampled_from(["y", "y.z", "z"]), scalars, max_size=2),
)
metadata = st.dictionaries(st.sampled_from(KEYS), values, max_size=3)
levels = st.sampled_from([*LEVELS, "AUDIT", "ERRATIC"])

events = st.builds(
    StoredEvent, source=st.one_of(words, texts), message=texts, level=levels, metadata=metadata
)


def hostile_json(event: StoredEvent, seed: int) -> bytes:
    """The event as a program might write it that is not logpipe: with random escapes, white space,
    an order of its own, keys that come twice, unknown fields, and without fields that have their
    default."""
    random = Random(seed)
    fields: list[tuple[str, Any]] = [
        (name, getattr(event, name)) for name in ("source", "message", "level", "metadata")
    ]
    if event.level == "INFO" and random.random() < 0.5:
        fields = [each for each in fields if each[0] != "level"]
    random.shuffle(fields)
    if random.random() < 0.3:
        fields.insert(0, (random.choice(["message", "level", "source"]), "reset"))
    if random.random() < 0.3:
        fields.insert(random.randrange(len(fields) + 1), ("other", {"level": ["ERROR", "x"]}))
    escaping = random.choice([0.0, 0.0, 0.1, 1.0])
    return _written(dict_of_pairs(fields), random, escaping).encode()


class dict_of_pairs:  # noqa: N801
    """An object whose keys may come twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _written(value: Any, random: Random, escaping: float) -> str:
    space = random.choice(["", "", " ", "\n", "\t "])
    if isinstance(value, dict):
        value = dict_of_pairs(list(value.items()))
    if isinstance(value, dict_of_pairs):
        pairs = (
            f"{_text(key, random, escaping)}{space}:{_written(each, random, escaping)}"
            for key, each in value.pairs
        )
        return "{" + space + f",{space}".join(pairs) + "}" + space
    if isinstance(value, list):
        return f"[{space}" + ",".join(_written(each, random, escaping) for each in value) + "]"
    if isinstance(value, str):
        return space + _text(value, random, escaping)
    return space + json.dumps(value) + space


_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "/": "\\/"}


def _text(text: str, random: Random, escaping: float) -> str:
    parts = []
    for character in text:
        must = character in '"\\' or character < " "
        if random.random() < escaping:
            units = character.encode("utf-16-be").hex()
            parts += [f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)]
        elif must or (character == "/" and random.random() < 0.5):
            parts.append(_SHORT[character] if character in _SHORT else f"\\u{ord(character):04x}")
        else:
            parts.append(character)
    return '"' + "".join(parts) + '"'
