"""Elasticsearch's `_bulk`, and what its clients ask before they use it: under `/elasticsearch`."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from logpipe.collector.answer import Answer
from logpipe.collector.receivers import fields, generic
from logpipe.collector.receivers.protocol import Batch, Item, Outcome, Request
from logpipe.problems import Problem
from logpipe.stream import Appended, Once, Rule, digest_of

BASE = "/elasticsearch"
PATHS = (f"{BASE}/_bulk", f"{BASE}/{{index}}/_bulk", f"{BASE}/{{index}}/{{type}}/_bulk")
METHODS = ("POST", "PUT")
OTHER_PATHS = (BASE, f"{BASE}/{{rest:path}}")

PRODUCT = {"X-Elastic-Product": "Elasticsearch"}
"""The official clients use no server that does not answer so."""

INDEX = "elasticsearch.index"
DOCUMENT_ID = "elasticsearch.id"

NAMES = generic.Names(
    source=(
        "service.name", "service", "app", "application", "kubernetes.container.name",
        "kubernetes.container_name", "container.name", "container_name", "log.logger",
        "logger_name", "agent.name", "host.name", "host", "hostname",
    ),
    time=("@timestamp", "timestamp", "time", "ts", "date"),
)  # fmt: skip
"""Where documents of the Elastic Common Schema have what an event has, and others."""

_ABOUT = {
    "name": "logpipe",
    "cluster_name": "logpipe",
    "cluster_uuid": "logpipe",
    "version": {
        "number": "8.9.0",
        "build_flavor": "default",
        "build_type": "docker",
        "lucene_version": "9.7.0",
        "minimum_wire_compatibility_version": "7.17.0",
        "minimum_index_compatibility_version": "7.0.0",
    },
    "tagline": "You Know, for Search",
}
_LICENSE = {
    "license": {
        "uid": "00000000-0000-0000-0000-000000000000",
        "type": "basic",
        "mode": "basic",
        "status": "active",
        "expiry_date_in_millis": 4_000_000_000_000,
    }
}
_KNOWN: Mapping[str, Any] = {
    "": _ABOUT,
    "_license": _LICENSE,
    "_cluster/health": {"cluster_name": "logpipe", "status": "green", "timed_out": False},
    "_nodes/http": {"_nodes": {"total": 0, "successful": 0, "failed": 0}, "nodes": {}},
}


class Action(NamedTuple):
    """A line of a bulk body with the document that follows it."""

    verb: str
    target: str
    id: str | None
    document: bytes | None


def parse(request: Request) -> Batch:
    """Each document is an event; each action has an answer, in order."""
    actions: list[Action] = []
    keys: list[Once | None] = []
    items = _items(request, actions, keys)
    return Batch(items, lambda outcomes: _answer(actions, outcomes), keys)


def _items(request: Request, actions: list[Action], keys: list[Once | None]) -> Iterator[Item]:
    """The events, and beside each its action and its key, so that no more of these are kept than
    there may be events."""
    for action in actions_of(request.body, request.path.get("index", "")):
        actions.append(action)
        keys.append(_once(action))
        yield _item(action)
    if not actions:
        raise Problem(400, "The request has no body.")


def actions_of(body: bytes, index: str) -> Iterator[Action]:
    """The actions of a body. Raises a 400 `Problem` when a line is none: what follows is then not
    known to be an action or a document."""
    lines = (stripped for line in fields.lines_of(body) if (stripped := line.strip()))
    for line in lines:
        action = fields.json_value(line)
        if not isinstance(action, dict) or len(action) != 1:
            raise Problem(400, "A line that should be an action is none.")
        verb, given = next(iter(action.items()))
        told = given if isinstance(given, dict) else {}
        name, id_ = told.get("_index"), told.get("_id")
        if verb not in ("index", "create", "update", "delete"):
            raise Problem(400, f"The action {verb[:64]!r} is not known.")
        document = None if verb == "delete" else next(lines, None)
        yield Action(
            verb,
            name if isinstance(name, str) else index or "logs",
            str(id_) if isinstance(id_, str | int) and id_ != "" else None,
            document,
        )


def _once(action: Action) -> Once | None:
    """The document's own key: to create one that is there is a conflict, to index one with another
    content is an event of its own."""
    if action.id is None:
        return None
    rule = Rule.IGNORE if action.verb == "create" else Rule.STORE
    return Once(f"{action.target}\n{action.id}", digest_of(action.document or b""), rule)


def _item(action: Action) -> Item:
    if action.verb in ("update", "delete"):
        return Problem(400, f"A log is only added to: it takes no {action.verb}.")
    if action.document is None:
        return Problem(400, "The document is missing.")
    document = fields.json_value(action.document)
    if isinstance(document, Problem):
        return document
    event = generic.event_of(document, NAMES, action.target)
    told = {INDEX: action.target} | ({DOCUMENT_ID: action.id} if action.id else {})
    event.metadata = fields.merge(event.metadata, told, "_")
    return event


def _answer(actions: Sequence[Action], outcomes: Sequence[Outcome]) -> Answer:
    """The same for a batch that came before, but for what cannot be created twice."""
    outcomes = [_conflict_of(*each) for each in zip(actions, outcomes, strict=True)]
    items = [_told(*each) for each in zip(actions, outcomes, itertools.count())]
    failed = any(isinstance(outcome, Problem) for outcome in outcomes)
    return _json(200, {"took": 1, "errors": failed, "items": items})


def _conflict_of(action: Action, outcome: Outcome) -> Outcome:
    known = isinstance(outcome, Appended) and outcome.repeated
    if known and action.verb == "create" and action.id is not None:
        return Problem(409, f"[{action.id}]: version conflict, document already exists")
    return outcome


def _told(action: Action, outcome: Outcome, number: int) -> dict[str, Any]:
    told: dict[str, Any] = {"_index": action.target, "_id": action.id}
    if isinstance(outcome, Problem):
        error = {"type": _type(outcome.status), "reason": outcome.detail}
        return {action.verb: {**told, "status": outcome.status, "error": error}}
    told["_id"] = action.id or f"{outcome.first}-{number}"
    return {action.verb: {**told, "result": "created", "status": 201}}


def probe(request: Request) -> Answer:
    """The answer to what is no bulk request.

    Templates and policies are there when they are asked for and taken when they are sent. Nothing
    that could be a document is taken without being stored.
    """
    method, name = request.method, request.path.get("rest", "").strip("/")
    if method == "HEAD":
        return _json(200, None)
    if method == "GET":
        return _json(200, _KNOWN.get(name, {}))
    settings = name.startswith("_") and not name.startswith(("_doc", "_create", "_update"))
    if method == "PUT" and (settings or "/" not in name):
        return _json(200, {"acknowledged": True})
    raise Problem(404, "Documents are taken by _bulk.")


def refused(_: Request, problem: Problem) -> Answer:
    """An error as Elasticsearch has it."""
    cause = {"type": _type(problem.status), "reason": problem.detail}
    body = {"error": {"root_cause": [cause], **cause}, "status": problem.status}
    answer = _json(problem.status, body)
    return answer._replace(headers={**answer.headers, **problem.headers})


def _type(status: int) -> str:
    if status in (401, 403):
        return "security_exception"
    if status == 409:
        return "version_conflict_engine_exception"
    return "es_rejected_execution_exception" if status >= 429 else "illegal_argument_exception"


def _json(status: int, value: Any) -> Answer:
    body = b"" if value is None else msgspec.json.encode(value)
    return Answer(status, "application/json", body, PRODUCT)
