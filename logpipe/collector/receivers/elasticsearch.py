"""Elasticsearch's `_bulk`, and what its clients ask before they use it: under `/elasticsearch`."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from logpipe.collector.answer import Answer
from logpipe.collector.receivers import fields, generic, json_text
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
HEALTH = "_cluster/health"
_KNOWN: Mapping[str, Any] = {
    "": _ABOUT,
    "_license": _LICENSE,
    HEALTH: {"cluster_name": "logpipe", "status": "green", "timed_out": False},
    "_nodes/http": {"_nodes": {"total": 0, "successful": 0, "failed": 0}, "nodes": {}},
}


VERBS = ("index", "create", "update", "delete")

REFUSED_ITEMS = "items"
"""200, and the status 429 for each item that was not stored."""

REFUSED_REQUEST = "request"
"""The status 429 for the whole request."""

RETRIED_BY_HELPERS: Mapping[str, str] = {"js": REFUSED_ITEMS, "py": REFUSED_REQUEST}
"""By language, what the bulk helper of the official client sends again while Redis is unavailable.

The helper for JavaScript ends at any status but 200 and repeats items of status 429. The one for
Python repeats a request of status 429, and by default raises for an item of any error. All other
senders have the status 503: Fluent Bit, Filebeat, Logstash, Vector and Fluentd repeat such a
request; of these, Fluentd and Vector give items of status 429 up, and some versions of Fluent Bit
those beside an item that was stored."""


class Action(NamedTuple):
    """A line of a bulk body with the document that follows it, or what is wrong with the line."""

    verb: str
    target: str
    id: str | None = None
    document: bytes | None = None
    problem: Problem | None = None


def parse(request: Request) -> Batch:
    """Each document is an event; each action has an answer, in order."""
    actions: list[Action] = []
    keys: list[Once | None] = []
    items = _items(request, actions, keys)
    form = _form_while_unavailable(request)
    return Batch(items, lambda outcomes: _answer(actions, outcomes, form), keys)


def _form_while_unavailable(request: Request) -> str | None:
    """How the sender learns that it has to repeat what was not stored; None for a status 503."""
    header = request.headers.get("x-elastic-client-meta", "")
    meta = dict(pair.strip().partition("=")[::2] for pair in header.split(","))
    if meta.get("h") != "bp":  # the mark of a bulk helper
        return None
    return next((form for name, form in RETRIED_BY_HELPERS.items() if name in meta), None)


def _items(request: Request, actions: list[Action], keys: list[Once | None]) -> Iterator[Item]:
    """The events, and beside each its action and its key, so that no more of these are kept than
    there may be events. Raises a 400 `Problem` for a body without an action."""
    for action in actions_of(request.body, request.path.get("index", "")):
        actions.append(action)
        keys.append(_once(action))
        yield _item(action)
    if all(action.problem for action in actions):
        raise (actions and actions[0].problem) or Problem(400, "The request has no body.")


def actions_of(body: bytes, index: str) -> Iterator[Action]:
    """The actions of a body. A line that should be an action and is not costs itself and its
    document: reading continues at the line after it, where that is an action, else behind that."""
    lines = (
        (number, stripped)
        for number, line in enumerate(json_text.lines_of(body), 1)
        if (stripped := line.strip())
    )
    default = index or "logs"
    for number, line in lines:
        action = _action_in(line, default)
        if action is None:
            yield Action("index", default, problem=_no_action(number))
            action = _action_in(next(lines, (0, b""))[1], default)
            if action is None:
                continue
        if action.verb != "delete":
            action = action._replace(document=next(lines, (0, None))[1])
        yield action


def _action_in(line: bytes, index: str) -> Action | None:
    """The action of a line, by its first key; what follows that key counts for nothing, as in
    Elasticsearch. None where the line is not an action."""
    value = json_text.json_value(line)
    if not isinstance(value, dict):
        return None
    verb, given = next(iter(value.items()), ("", None))
    if verb not in VERBS or not (given is None or isinstance(given, dict)):
        return None
    name, id_ = (given or {}).get("_index"), (given or {}).get("_id")
    return Action(
        verb,
        name if isinstance(name, str) else index,
        str(id_) if isinstance(id_, str | int) and id_ != "" else None,
    )


def _no_action(number: int) -> Problem:
    detail = f"Line {number} is not an action, an object whose first key is one of "
    return Problem(400, f"{detail}{', '.join(VERBS)}.")


def _once(action: Action) -> Once | None:
    """The document's own key: to create one that is there is a conflict, to index one with another
    content is an event of its own."""
    if action.id is None:
        return None
    rule = Rule.IGNORE if action.verb == "create" else Rule.STORE
    key = msgspec.json.encode([action.target, action.id]).decode()
    return Once(key, digest_of(action.document or b""), rule)


def _item(action: Action) -> Item:
    if action.problem is not None:
        return action.problem
    if action.verb in ("update", "delete"):
        return Problem(400, f"A log is only added to: it takes no {action.verb}.")
    if action.document is None:
        return Problem(400, "The document is missing.")
    document = json_text.json_value(action.document)
    if isinstance(document, Problem):
        return document
    event = generic.event_of(document, NAMES, action.target)
    told = {INDEX: action.target} | ({DOCUMENT_ID: action.id} if action.id else {})
    event.metadata = fields.merge(event.metadata, told, "_")
    return event


def _answer(actions: Sequence[Action], outcomes: Sequence[Outcome], form: str | None) -> Answer:
    """The same for a batch that came before, but for what cannot be created twice. Raises a
    `Problem` where Redis has not confirmed all, unless the sender repeats single items."""
    for outcome in outcomes:
        if isinstance(outcome, Problem) and outcome.status >= 500 and form != REFUSED_ITEMS:
            raise _too_many(outcome) if form == REFUSED_REQUEST else outcome
    outcomes = [_conflict_of(*each) for each in zip(actions, outcomes, strict=True)]
    items = [_told(*each) for each in zip(actions, outcomes, itertools.count())]
    failed = any(isinstance(outcome, Problem) for outcome in outcomes)
    return _json(200, {"took": 1, "errors": failed, "items": items})


def _too_many(problem: Problem) -> Problem:
    """The same as Elasticsearch says it of a full queue."""
    return Problem(429, problem.detail, headers=problem.answered_headers())


def _conflict_of(action: Action, outcome: Outcome) -> Outcome:
    known = isinstance(outcome, Appended) and outcome.repeated
    if known and action.verb == "create" and action.id is not None:
        return Problem(409, f"[{action.id}]: version conflict, document already exists")
    return outcome


def _told(action: Action, outcome: Outcome, number: int) -> dict[str, Any]:
    told: dict[str, Any] = {"_index": action.target, "_id": action.id}
    if isinstance(outcome, Problem):
        outcome = _too_many(outcome) if outcome.status >= 500 else outcome
        error = {"type": _type(outcome.status), "reason": outcome.detail}
        return {action.verb: {**told, "status": outcome.status, "error": error}}
    told["_id"] = action.id or f"{outcome.first}-{number}"
    return {action.verb: {**told, "result": "created", "status": 201}}


def probe(request: Request, unavailable: Problem | None) -> Answer:
    """The answer to what is no bulk request. The cluster's health is a `Problem` while Redis is
    `unavailable`: some senders ask for it before they repeat a request, and at once if it is good.

    Templates and policies are there when they are asked for and taken when they are sent. Nothing
    that could be a document is taken without being stored.
    """
    method, name = request.method, request.path.get("rest", "").strip("/")
    if name == HEALTH and unavailable is not None:
        raise unavailable
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
    return answer._replace(headers={**answer.headers, **problem.answered_headers()})


def _type(status: int) -> str:
    if status in (401, 403):
        return "security_exception"
    if status == 409:
        return "version_conflict_engine_exception"
    return "es_rejected_execution_exception" if status >= 429 else "illegal_argument_exception"


def _json(status: int, value: Any) -> Answer:
    body = b"" if value is None else msgspec.json.encode(value)
    return Answer(status, "application/json", body, PRODUCT)
