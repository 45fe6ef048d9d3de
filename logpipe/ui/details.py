"""The whole of an event as a tree of HTML, with what can be done with each value."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from markupsafe import escape

from logpipe.event import level_name
from logpipe.filters.reading import MAX_QUERY
from logpipe.filters.tree import Match
from logpipe.filters.values import looked_up, written
from logpipe.ui.rows import MAX_COLUMN_NAME
from logpipe.ui.text import shown

MAX_DEPTH = 24
MAX_VALUES = 2_000
"""Deeper down, and beyond so many values, the rest is one line of JSON."""
MAX_PATH = 200
"""Characters of a path that is named on every button below it."""
MAX_INDENTED = 256 * 1024
"""Bytes of metadata that are copied with indents."""

# What the language of filters takes for the name of a field.
_FIELD = re.compile(r"[A-Za-z_@][\w.@/-]*", re.ASCII)


def details(facts: Mapping[str, Any]) -> str:
    """The fields of an event; `facts` is all of it but the message.

    Raises RecursionError for what is nested too deep.
    """
    id_ = escape(facts.get("id") or "")
    return (
        f'<ul class="tree">{"".join(_Tree(facts).lines())}</ul><p class="links">'
        f'<a href="/?at={id_}" data-do="context">Show in context</a>'
        f'<a href="/?at={id_}" data-do="link" data-text="/?at={id_}">Copy link</a>'
        f"{_copy_all(facts.get('metadata'))}</p>"
    )


def _copy_all(metadata: Any) -> str:
    if not metadata:
        return ""
    text = msgspec.json.encode(metadata)
    indented = msgspec.json.format(text, indent=2)
    told = escape((indented if len(indented) <= MAX_INDENTED else text).decode())
    return f'<button type="button" data-do="copy" data-text="{told}">Copy metadata</button>'


class _Tree:
    """The lines of one event; `room` is how many values may still have lines of their own."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts
        self._metadata = facts.get("metadata")
        self._room = MAX_VALUES

    def lines(self) -> Iterator[str]:
        for name in ("source", "level"):
            yield self._line(name, name, self._facts.get(name))
        if self._facts.get("ts_unix_ms") is not None:
            yield self._line("ts_unix_ms", "ts_unix_ms", self._facts["ts_unix_ms"])
        if self._metadata:
            yield self._node("metadata", "metadata", self._metadata, 0)

    def _node(self, key: str, path: str, value: Any, depth: int) -> str:
        size = len(value) if isinstance(value, (dict, list)) else 0
        if not 0 < size <= self._room or depth >= MAX_DEPTH:
            return self._line(key, path, value)
        self._room -= size
        inner = _children(value, path)
        items = "".join([self._node(name, below, each, depth + 1) for name, below, each in inner])
        return f'<li><span class="key">{shown(key)}</span><ul>{items}</ul></li>'

    def _line(self, key: str, path: str, value: Any) -> str:
        """One value, and buttons: to copy it, to filter for it or without it, for a column."""
        plain = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        kind = "text" if isinstance(value, str) else "json"
        return (
            f'<li><span class="key">{shown(key)}</span> <span class="value {kind}">{shown(plain)}'
            f'</span><span class="tools">{"".join(self._tools(path, value, plain))}</span></li>'
        )

    def _tools(self, path: str, value: Any, plain: str) -> Iterator[str]:
        yield _button("copy", plain, "Copy", f"Copy the value of {path or 'this item'}")
        if not self._is_found(path, value):
            return
        if term := _term(path, written(value)):
            yield _button("filter", term, "+", f"Filter for {term}")
            yield _button("filter", f"-{term}", "\u2212", f"Filter out {term}")
        name = path.removeprefix("metadata.")
        if name != path and 0 < len(name) <= MAX_COLUMN_NAME:
            yield _button("column", name, "Column", f"Give {name} a column")

    def _is_found(self, path: str, value: Any) -> bool:
        """Whether a filter that names the path finds this value, and no other."""
        if not _FIELD.fullmatch(path) or isinstance(value, (dict, list)):
            return False
        name = path.removeprefix("metadata.")
        return name == path or looked_up(self._metadata or {}, name) is value


def _term(path: str, text: str) -> str:
    """The filter for a value; empty where none that can be typed would take it."""
    strange = not text.isprintable() or (path == "level" and level_name(text) != text)
    if not text or strange or path.strip(".") == "metadata":
        return ""
    term = str(Match(path, (text,)))
    return term if len(term) < MAX_QUERY else ""


def _children(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            below = f"{path}.{name}"
            yield str(name), below if path and len(below) <= MAX_PATH else "", each
    else:
        for number, each in enumerate(value):
            yield str(number), "", each


def _button(action: str, text: str, face: str, label: str) -> str:
    told = escape(label)
    return (
        f'<button type="button" data-do="{action}" data-text="{escape(text)}" title="{told}"'
        f' aria-label="{told}">{face}</button>'
    )
