"""Names of fields: where a value is looked for, and what it is called in the metadata."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

NAMES: Mapping[str, str] = {
    "host": "host.name",
    "hostname": "host.name",
    "filename": "log.file.path",
    "container_id": "container.id",
    "container_name": "container.name",
    "image_name": "container.image.name",
    "namespace": "k8s.namespace.name",
    "pod": "k8s.pod.name",
    "pod_name": "k8s.pod.name",
    "node_name": "k8s.node.name",
    "env": "deployment.environment.name",
    "version": "service.version",
    "traceid": "trace_id",
    "traceID": "trace_id",
    "traceId": "trace_id",
    "spanid": "span_id",
    "spanID": "span_id",
    "spanId": "span_id",
}
"""Common names of labels and tags, and what OpenTelemetry's semantic conventions call them."""


def pop(fields: dict[str, Any], names: Iterable[str], fits: Callable[[Any], bool]) -> Any:
    """Takes out the first value that fits, by a name in which a dot may descend; None for none."""
    for name in names:
        value = _pop(fields, name, fits)
        if value is not None:
            return value
    return None


def _pop(fields: dict[str, Any], name: str, fits: Callable[[Any], bool]) -> Any:
    if name in fields and fits(fields[name]):
        return fields.pop(name)
    head, dot, rest = name.partition(".")
    inner = fields.get(head)
    if not dot or not isinstance(inner, dict):
        return None
    value = _pop(inner, rest, fits)
    if value is not None and not inner:
        del fields[head]
    return value


def first(fields: Mapping[str, Any], names: Iterable[str], fits: Callable[[Any], bool]) -> Any:
    """As `pop`, and leaves it there."""
    return next((value for name in names for value in _found(fields, name) if fits(value)), None)


def _found(fields: Mapping[str, Any], name: str) -> Iterator[Any]:
    if name in fields:
        yield fields[name]
    head, dot, rest = name.partition(".")
    inner = fields.get(head) if dot else None
    if isinstance(inner, dict):
        yield from _found(inner, rest)


def is_text(value: object) -> bool:
    """Whether it is a text that is not empty."""
    return isinstance(value, str) and value != ""


def merge(into: dict[str, Any], more: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Adds what is there not yet; a name that is taken by another value gets the prefix."""
    for name, value in more.items():
        if name not in into:
            into[name] = value
        elif into[name] != value:
            into[prefix + name] = value
    return into


def named(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels or tags under the names of the conventions; where two meet, the second keeps its."""
    found: dict[str, Any] = {}
    for name, value in labels.items():
        known = NAMES.get(name, name)
        found[name if known in found or (known != name and known in labels) else known] = value
    return found


def present(**values: Any) -> dict[str, Any]:
    """The values that are there, `__` in a name standing for a dot."""
    return {
        name.replace("__", "."): value
        for name, value in values.items()
        if value is not None and value != ""
    }
