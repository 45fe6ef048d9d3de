"""An OpenAPI 3.1 document made of operations, and the shapes and replies that several roles share.

Pure: types in, JSON values out. A type of the code stands for its schema, which msgspec makes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from logpipe.problems import MEDIA_TYPE as PROBLEM_TYPE
from logpipe.problems import Document

Schema = Mapping[str, Any]
Shape = Any
"""A type of the code, a schema as a mapping, or several of either as a tuple: one of them."""

JSON = "application/json"
PLAIN = "text/plain; charset=utf-8"

TEXT: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}

Guard = Literal["", "ingest", "read", "admin", "operate", "sessions"]
"""Which tokens an operation needs, where such tokens are set; "" for none."""

DESCRIPTION = (
    "The API of this process' roles. The paths of other log protocols (Loki, OTLP, Elasticsearch"
    " and others) are described in docs/shippers/README.md."
)

_REFERENCE = "#/components/schemas/{name}"


class Parameter(NamedTuple):
    """A parameter of the query, or a header."""

    name: str
    says: str
    schema: Schema = TEXT
    place: Literal["query", "header"] = "query"


class Reply(NamedTuple):
    """An answer: what it means, and the shape of its body by media type, empty where there is no
    body."""

    says: str
    shapes: Mapping[str, Shape] = {}


class Operation(NamedTuple):
    """What a path answers to one or more methods. `takes` has the shapes of the request's body by
    media type."""

    path: str
    says: str
    replies: Mapping[int, Reply]
    methods: Sequence[str] = ("GET",)
    parameters: Sequence[Parameter] = ()
    takes: Mapping[str, Shape] = {}
    guard: Guard = ""


def problems(**says: str) -> dict[int, Reply]:
    """Replies that are problem documents, by `s400="…"`."""
    return {int(name[1:]): Reply(said, {PROBLEM_TYPE: Document}) for name, said in says.items()}


BAD_PARAMETER = problems(s400="A parameter is wrong; `parameter` names it.")
REFUSED = problems(
    s401="A token is needed.",
    s403="This token is not allowed here, or the request comes from a web page of another origin.",
    s429="Too many wrong tokens came from this address; Retry-After says when to try again.",
)
UNAVAILABLE = problems(s503="Redis is unavailable; Retry-After says when to try again.")


def document(
    operations: Iterable[Operation], version: str, guarded: Mapping[Guard, bool]
) -> dict[str, Any]:
    """The document; `guarded` says which tokens are set."""
    listed = [*operations]
    schemas = _Schemas(listed)
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        for method in operation.methods:
            described = _operation(operation, method, schemas, guarded)
            paths.setdefault(operation.path, {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "logpipe",
            "description": DESCRIPTION,
            "version": version,
            "license": {"name": "MIT"},
        },
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
    described: dict[str, Any] = {
        "summary": operation.says,
        "operationId": f"{method.lower()} {operation.path}",
        "responses": {
            str(status): _reply(reply, schemas) for status, reply in operation.replies.items()
        },
    }
    if operation.parameters:
        described["parameters"] = [
            {"name": name, "in": place, "description": says, "schema": schema}
            for name, says, schema, place in operation.parameters
        ]
    if operation.takes:
        described["requestBody"] = {"required": True, "content": _content(operation.takes, schemas)}
    if guarded.get(operation.guard):
        described["security"] = [{"bearer": []}]
    return described


def _reply(reply: Reply, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"description": reply.says}
    if reply.shapes:
        described["content"] = _content(reply.shapes, schemas)
    return described


def _content(shapes: Mapping[str, Shape], schemas: _Schemas) -> dict[str, Any]:
    return {media_type: {"schema": schemas.of(shape)} for media_type, shape in shapes.items()}
