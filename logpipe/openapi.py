"""An OpenAPI 3.1 document made of operations: pure, types in, JSON's values out.

A type of the code stands for its schema, which msgspec makes; what is no type of the code (the
words of other protocols) is a schema by itself.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

Schema = Mapping[str, Any]
Shape = Any
"""A type of the code, a schema as a mapping, or several of either as a tuple: one of them."""

TEXT: Schema = {"type": "string"}
BYTES: Schema = {}
"""Of what is no JSON."""

Guard = Literal["", "ingest", "read", "admin", "operate", "sessions"]

_OPEN = re.compile(r"\{(\w+)(?::\w+)?\}")
_REFERENCE = "#/components/schemas/{name}"


class Parameter(NamedTuple):
    """What may be in the query, or in a header."""

    name: str
    says: str
    schema: Schema = TEXT
    place: Literal["query", "header"] = "query"


class Reply(NamedTuple):
    """An answer: what it means, and the shape of its body by media type; none has no body."""

    says: str
    shapes: Mapping[str, Shape] = {}


class Operation(NamedTuple):
    """A path, as routes have it, with some of its methods; the shapes of a body by media type;
    what may be answered; and whose tokens it needs, where there are any."""

    path: str
    says: str
    replies: Mapping[int, Reply]
    methods: Sequence[str] = ("GET",)
    parameters: Sequence[Parameter] = ()
    takes: Mapping[str, Shape] = {}
    guard: Guard = ""

    @property
    def template(self) -> str:
        """The path without what routes say of its open parts."""
        return _OPEN.sub(r"{\1}", self.path)


def document(
    operations: Iterable[Operation], version: str, guarded: Mapping[Guard, bool]
) -> dict[str, Any]:
    """The document; `guarded` says which tokens are set."""
    listed = [*operations]
    schemas = _Schemas(listed)
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        for method in operation.methods:
            told = _operation(operation, method, schemas, guarded)
            paths.setdefault(operation.template, {})[method.lower()] = told
    return {
        "openapi": "3.1.0",
        "info": {"title": "logpipe", "version": version, "license": {"name": "MIT"}},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


class _Schemas:
    """The schemas of all types that operations name, made once."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        shapes = [shape for each in operations for shape in _shapes(each)]
        types = [shape for shape in shapes if not isinstance(shape, Mapping | tuple)]
        made, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
        self.components = {name: _on_one_line(schema) for name, schema in components.items()}
        self._made = [(shape, schema) for shape, schema in zip(types, made, strict=True)]

    def of(self, shape: Shape) -> Schema:
        """The schema of a shape."""
        if isinstance(shape, tuple):
            return {"anyOf": [self.of(each) for each in shape]}
        if isinstance(shape, Mapping):
            return shape
        return next(schema for known, schema in self._made if known == shape)


def _on_one_line(schema: dict[str, Any]) -> dict[str, Any]:
    if "description" not in schema:
        return schema
    return {**schema, "description": " ".join(schema["description"].split())}


def _shapes(operation: Operation) -> Iterator[Shape]:
    replies = (shape for reply in operation.replies.values() for shape in reply.shapes.values())
    for shape in (*operation.takes.values(), *replies):
        yield from shape if isinstance(shape, tuple) else (shape,)


def _operation(
    operation: Operation, method: str, schemas: _Schemas, guarded: Mapping[Guard, bool]
) -> dict[str, Any]:
    named = [{"name": name, "in": "path", "required": True, "schema": TEXT}
             for name in _OPEN.findall(operation.path)]  # fmt: skip
    told: dict[str, Any] = {
        "summary": operation.says,
        "operationId": f"{method.lower()} {operation.template}",
        "responses": {
            str(status): _reply(reply, schemas) for status, reply in operation.replies.items()
        },
    }
    if parameters := [*named, *map(_parameter, operation.parameters)]:
        told["parameters"] = parameters
    if operation.takes:
        told["requestBody"] = {"required": True, "content": _content(operation.takes, schemas)}
    if guarded.get(operation.guard):
        told["security"] = [{"bearer": []}]
    return told


def _parameter(parameter: Parameter) -> dict[str, Any]:
    name, says, schema, place = parameter
    return {"name": name, "in": place, "description": says, "schema": schema}


def _reply(reply: Reply, schemas: _Schemas) -> dict[str, Any]:
    told: dict[str, Any] = {"description": reply.says}
    if reply.shapes:
        told["content"] = _content(reply.shapes, schemas)
    return told


def _content(shapes: Mapping[str, Shape], schemas: _Schemas) -> dict[str, Any]:
    return {media_type: {"schema": schemas.of(shape)} for media_type, shape in shapes.items()}
