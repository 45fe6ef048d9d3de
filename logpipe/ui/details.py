"""The whole of an event as a tree of HTML, with what can be done with each value."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from markupsafe import escape

from logpipe.filters.predicate import written
from logpipe.filters.tree import Match
from logpipe.ui.text import shown

MAX_DEPTH = 24
"""Deeper down the rest is one line of JSON."""

# What the language of filters takes for the name of a field.
_FIELD = re.compile(r"[A-Za-z_@][\w.@/-]*", re.ASCII)


def details(facts: Mapping[str, Any]) -> str:
    """The fields of an event; `facts` is all of it but the message."""
    id_ = shown(str(facts.get("id", "")))
    own = [("source", facts.get("source")), ("level", facts.get("level"))]
    if facts.get("ts_unix_ms") is not None:
        own.append(("ts_unix_ms", facts["ts_unix_ms"]))
    lines = [_line(name, name, value) for name, value in own]
    if metadata := facts.get("metadata"):
        lines.append(_node("metadata", "metadata", metadata, 0))
    return (
        f'<ul class="tree">{"".join(lines)}</ul><p class="links">'
        f'<a href="/?at={id_}" data-do="context">Show in context</a>'
        f'<a href="/?at={id_}" data-do="link" data-text="/?at={id_}">Copy link</a>'
        f"{_copy_all(facts.get('metadata'))}</p>"
    )


def _copy_all(metadata: Any) -> str:
    if not metadata:
        return ""
    text = escape(msgspec.json.format(msgspec.json.encode(metadata), indent=2).decode())
    return f'<button type="button" data-do="copy" data-text="{text}">Copy metadata</button>'


def _node(key: str, path: str, value: Any, depth: int) -> str:
    inner = list(_children(value, path)) if depth < MAX_DEPTH else []
    if not inner:
        return _line(key, path, value)
    items = "".join([_node(name, below, each, depth + 1) for name, below, each in inner])
    return f'<li><span class="key">{shown(key)}</span><ul>{items}</ul></li>'


def _children(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield str(name), f"{path}.{name}", each
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield str(number), "", each


def _line(key: str, path: str, value: Any) -> str:
    """One value, and buttons: to copy it, to filter for it or without it, to give it a column."""
    plain = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    kind = "text" if isinstance(value, str) else "json"
    return (
        f'<li><span class="key">{shown(key)}</span> <span class="value {kind}">{shown(plain)}'
        f'</span><span class="tools">{_tools(path, value, plain)}</span></li>'
    )


def _tools(path: str, value: Any, plain: str) -> str:
    tools = _button("copy", plain, "Copy", f"Copy the value of {path or 'this item'}")
    if not _FIELD.fullmatch(path) or isinstance(value, (dict, list)):
        return tools
    term = str(Match(path, (written(value),)))
    tools += _button("filter", term, "+", f"Filter for {term}")
    tools += _button("filter", f"-{term}", "\u2212", f"Filter out {term}")
    if path.startswith("metadata."):
        name = path.removeprefix("metadata.")
        tools += _button("column", name, "Column", f"Give {name} a column")
    return tools


def _button(action: str, text: str, face: str, label: str) -> str:
    told = escape(label)
    return (
        f'<button type="button" data-do="{action}" data-text="{escape(text)}" title="{told}"'
        f' aria-label="{told}">{face}</button>'
    )
