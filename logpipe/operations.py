"""What each role answers, as a literal table for /openapi.json; a test holds it against the routes.

Shapes are the structs that the answers are made of; bounds and choices are those of the code.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from logpipe import sse
from logpipe.collector.app import PATH as INGEST
from logpipe.collector.body import UNPACKERS
from logpipe.collector.ingest import (
    JSON_TYPES,
    MAX_KEY_LENGTH,
    NDJSON_TYPES,
    Receipt,
    Single,
)
from logpipe.collector.receivers import (
    datadog,
    elasticsearch,
    firehose,
    gelf,
    generic,
    loki,
    otlp_json,
    splunk,
)
from logpipe.collector.receivers.otlp import JSON_TYPE, PROTOBUF_TYPES
from logpipe.collector.receivers.table import ALIAS, PROTOCOLS
from logpipe.distributor.ack import Acknowledged
from logpipe.distributor.app import MAX_GROUP_NAME, SIGNED_OUT
from logpipe.event import Event, ReadEvent
from logpipe.fanout.streaming import NDJSON
from logpipe.groups.member import DEFAULT_IN_FLIGHT, MAX_IN_FLIGHT
from logpipe.limits import largest_batch
from logpipe.metrics import MEDIA_TYPE as METRICS_TYPE
from logpipe.openapi import BYTES, TEXT, Guard, Operation, Parameter, Reply, Schema, Shape
from logpipe.parameters import HEADER_PARAMETERS, MAX_LIMIT, MAX_TAIL
from logpipe.problems import MEDIA_TYPE as PROBLEM_TYPE
from logpipe.problems import Document
from logpipe.settings import Role, Settings
from logpipe.subscribers import Listed
from logpipe.ui.sending import FIELDS
from logpipe.watch import Health

JSON = "application/json"
LINES = "application/x-ndjson"
HTML = "text/html; charset=utf-8"
PLAIN = "text/plain; charset=utf-8"
OBJECT: Schema = {"type": "object"}
EVENTS: Schema = {"description": "Server-Sent Events, each with JSON or HTML as its data."}

PROBLEM: Mapping[str, Shape] = {PROBLEM_TYPE: Document}


def _problems(**says: str) -> dict[int, Reply]:
    """Replies that are problem documents, by `s400="…"`."""
    return {int(name[1:]): Reply(said, PROBLEM) for name, said in says.items()}


_TOKENS = _problems(
    s401="A token is needed.",
    s403="This token is not allowed here, or a web page of another origin asks.",
    s429="Too many wrong tokens came from this address; Retry-After says when to come again.",
)
_AWAY = _problems(s503="Redis cannot serve now; Retry-After says when to come again.")
_BAD = _problems(s400="A parameter is wrong; `parameter` names it.")


def _one_of(*words: str, default: str) -> Schema:
    return {"type": "string", "enum": [*words], "default": default}


def _whole(low: int, high: int, **more: Any) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, **more}


_FILTERS = (
    Parameter("q", "A filter, as docs/filters.md has it."),
    Parameter("level", "Levels, like `error`, `warn,error` or `>=warn`."),
    Parameter("source", "Sources, like `api*,worker`."),
    Parameter("text", "A phrase in the message."),
)
_TIME = "`10m`, a unix time in s or ms, RFC 3339, an id, `earliest` or `latest`."


# -- every role ---------------------------------------------------------------------------------

PROBES = (
    Operation("/livez", "Whether the event loop turns.", {200: Reply("It does.", {JSON: OBJECT})}),
    Operation(
        "/healthz",
        "Whether this process is ready, and what is wrong.",
        {200: Reply("Ready.", {JSON: Health}), 503: Reply("Not ready.", {JSON: Health})},
    ),
    Operation(
        "/metrics",
        "Metrics for Prometheus.",
        {200: Reply("They.", {METRICS_TYPE: TEXT}), **_TOKENS},
        guard="admin",
    ),
    Operation("/openapi.json", "This document.", {200: Reply("It.", {JSON: OBJECT})}),
)


# -- the collector ------------------------------------------------------------------------------

_KEY = Parameter(
    "Idempotency-Key",
    "The same request with the same key and token is stored once within ten minutes; another body"
    " with it is 422.",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
    "header",
)


def _refusals(settings: Settings) -> dict[int, Reply]:
    largest = largest_batch(settings)
    return {
        **_problems(
            s400="Nothing of it is JSON, or holds an event.",
            s408="The body did not come in time.",
            s413=f"Over MAX_BODY_BYTES ({settings.max_body_bytes}), MAX_MESSAGE_BYTES"
            f" ({settings.max_message_bytes}), or over {largest.events} events ({largest.why}).",
            s415=f"Another media type, or a coding that is not {', '.join(UNPACKERS)}.",
            s422="No event fits the schema (`errors` lists them), or the Idempotency-Key came with"
            " another body.",
            s429="Over RATE_PER_TOKEN; Retry-After says when to come again.",
            s503="Redis cannot serve now, or has no room for the Idempotency-Key; Retry-After says"
            " when to come again.",
        ),
        **_TOKENS,
    }


def _ingest(settings: Settings) -> Operation:
    most = largest_batch(settings).events
    batch = Annotated[list[Event], Meta(min_length=1, max_length=most)]
    return Operation(
        INGEST,
        "Stores events: one, an array, or lines of them.",
        {
            202: Reply("Redis has confirmed what is not in `errors`.", {JSON: (Single, Receipt)}),
            **_refusals(settings),
        },
        ("POST",),
        (_KEY,),
        {
            **dict.fromkeys(sorted(JSON_TYPES), Event | batch),
            **dict.fromkeys(sorted(NDJSON_TYPES), TEXT),
        },
        "ingest",
    )


class Spoken(NamedTuple):
    """A protocol in media types: what is taken, and the replies to what is taken and refused."""

    says: str
    takes: Mapping[str, Shape]
    success: int
    told: Mapping[str, Shape]
    refused: Mapping[str, Shape] = PROBLEM
    also: Mapping[int, str] = {}
    """What a status says besides what it says in all protocols."""


_ERRORS: Schema = {
    "type": "object",
    "properties": {"errors": {"type": "array", "items": TEXT}},
    "required": ["errors"],
}
_CODED: Schema = {
    "type": "object",
    "properties": {"text": TEXT, "code": {"type": "integer"}},
    "required": ["text", "code"],
}
_DELIVERED: Schema = {
    "type": "object",
    "properties": {"requestId": TEXT, "timestamp": {"type": "integer"}, "errorMessage": TEXT},
    "required": ["requestId", "timestamp"],
}
_BULK: Schema = {
    "type": "object",
    "properties": {
        "took": {"type": "integer"},
        "errors": {"type": "boolean"},
        "items": {"type": "array", "items": OBJECT},
    },
    "required": ["took", "errors", "items"],
}
_CAUSE: Schema = {
    "type": "object",
    "properties": {"error": OBJECT, "status": {"type": "integer"}},
    "required": ["error", "status"],
}
_EXPORTED: Mapping[str, Shape] = {JSON_TYPE: OBJECT, PROTOBUF_TYPES[0]: BYTES}
_OTLP_REFUSED: Mapping[str, Shape] = {**_EXPORTED, "text/plain": TEXT}

_LINES = {LINES: TEXT, JSON: TEXT}
_GELF: Schema = {
    "type": "object",
    "properties": {"short_message": TEXT, "host": TEXT, "level": {"type": "integer"}},
    "required": ["short_message"],
}
_HEC: Schema = {
    "type": "object",
    "properties": {"event": {"not": {"enum": [None, ""]}}, "fields": OBJECT},
    "required": ["event"],
}
_OBJECTS: Schema = {"type": "array", "items": OBJECT}
_PROTOBUF = dict.fromkeys(PROTOBUF_TYPES, BYTES)

SPOKEN: Mapping[str, Spoken] = {
    "json": Spoken(
        "JSON of any shape, or lines.",
        {JSON: BYTES, LINES: TEXT, PLAIN: TEXT},
        202,
        {JSON: Receipt},
    ),
    "loki": Spoken(
        "Loki's push.", {JSON: loki.JsonPush, PROTOBUF_TYPES[0]: BYTES}, 204, {}, {PLAIN: TEXT}
    ),
    "otlp": Spoken(
        "OTLP's logs.", {JSON_TYPE: otlp_json.Export, **_PROTOBUF}, 200, _EXPORTED, _OTLP_REFUSED
    ),
    "elasticsearch": Spoken(
        "Elasticsearch's bulk.",
        _LINES,
        200,
        {JSON: _BULK},
        {JSON: _CAUSE},
        {
            200: "To the bulk helper for JavaScript, also where Redis cannot serve now: then items"
            " have the status 429.",
            429: "To the bulk helper for Python, Redis cannot serve now.",
        },
    ),
    "splunk": Spoken("Splunk's HEC.", {JSON: _HEC}, 200, {JSON: _CODED}, {JSON: _CODED}),
    "splunk-raw": Spoken(
        "Splunk's HEC, lines.", {PLAIN: TEXT}, 200, {JSON: _CODED}, {JSON: _CODED}
    ),
    "datadog": Spoken(
        "Datadog's logs, v2.", {JSON: _OBJECTS}, 202, {JSON: OBJECT}, {JSON: _ERRORS}
    ),
    "datadog-v1": Spoken(
        "Datadog's logs, v1.", {JSON: _OBJECTS}, 200, {JSON: OBJECT}, {JSON: _ERRORS}
    ),
    "gelf": Spoken("Graylog's GELF.", {JSON: _GELF}, 202, {}),
    "logplex": Spoken("Heroku's drains.", {"application/logplex-1": TEXT, PLAIN: TEXT}, 204, {}),
    "firehose": Spoken(
        "Amazon Data Firehose.",
        {JSON: firehose.Delivery},
        200,
        {JSON: _DELIVERED},
        {JSON: _DELIVERED},
    ),
    "syslog": Spoken("Syslog over HTTP.", {"application/syslog": TEXT, PLAIN: TEXT}, 204, {}),
}
"""The protocols of the receivers' table."""

_READY: Mapping[str, Shape] = {"text/plain": TEXT}


def _receivers(settings: Settings) -> Iterator[Operation]:
    for name, protocol in PROTOCOLS.items():
        says, takes, success, told, refused, also = SPOKEN[name]
        replies = {success: Reply("Redis has confirmed what was taken.", told)} | {
            status: Reply(each.says, refused) for status, each in _refusals(settings).items()
        }
        for status, more in also.items():
            replies[status] = replies[status]._replace(says=f"{replies[status].says} {more}")
        replies[408] = _refusals(settings)[408]  # the connection's own word
        for path in protocol.paths:
            yield Operation(
                path,
                says,
                replies,
                protocol.methods,
                (_KEY,),
                takes,
                "ingest",
            )


def _asked() -> Iterator[Operation]:
    """What senders ask before they send."""
    ready = {200: Reply("Events are taken.", _READY), 503: Reply("Redis is away.", _READY)}
    healthy = {
        200: Reply("Events are taken.", {JSON: _CODED}),
        503: Reply("Redis is away.", {JSON: _CODED}),
    }
    valid = {200: Reply("It is.", {JSON: OBJECT})} | {
        status: Reply(each.says, {JSON: _ERRORS}) for status, each in _TOKENS.items()
    }
    known = {
        200: Reply("What its clients expect.", {JSON: OBJECT}),
        503: Reply("Asked for the cluster's health: Redis cannot serve now.", {JSON: _CAUSE}),
        404: Reply("It is none.", {JSON: _CAUSE, **PROBLEM}),
    } | {status: Reply(each.says, {JSON: _CAUSE}) for status, each in _TOKENS.items()}
    for paths, methods, says, replies in (
        (loki.READY_PATHS, ("GET",), "Whether Loki's senders may send.", ready),
        (splunk.HEALTH_PATHS, ("GET",), "Whether Splunk's senders may send.", healthy),
        (splunk.PATHS, ("OPTIONS",), "Docker's question before it sends.", {200: Reply("Yes.")}),
        (gelf.PATHS, ("OPTIONS",), "Whether GELF is taken.", {204: Reply("Yes.")}),
        (generic.PATHS, ("GET",), "Whether JSON is taken.", {200: Reply("Yes.")}),
        (datadog.VALIDATE_PATHS, ("GET",), "Whether a key is valid.", valid),
        (
            elasticsearch.OTHER_PATHS,
            ("GET", "PUT", "POST", "DELETE"),
            "What Elasticsearch's clients ask besides.",
            known,
        ),
    ):  # fmt: skip
        yield from (Operation(path, says, replies, methods) for path in paths)


def _collector(settings: Settings) -> Iterator[Operation]:
    yield _ingest(settings)
    for each in (*_receivers(settings), *_asked()):
        for prefix in ("", ALIAS):
            yield each._replace(path=prefix + each.path)


# -- the distributor ----------------------------------------------------------------------------


_SESSIONS: Mapping[str, Shape] = {
    JSON: {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
}


class Page(msgspec.Struct):
    """A page of the history; `next` goes back as `cursor` until it is null, also when there are no
    `events`. `searched_to` is the id of the last entry that was looked at; null where there is
    none."""

    events: list[ReadEvent]
    next: str | None
    searched_to: str | None


def _distributor(settings: Settings) -> Iterator[Operation]:
    start = (
        Parameter("last_event_id", "Resume right after this id."),
        Parameter("Last-Event-ID", "The same, and it wins.", place="header"),
        *(Parameter(name, "As the header, for clients that set none.")
          for name in HEADER_PARAMETERS),
        Parameter("since", f"Where to begin: {_TIME}", {**TEXT, "default": "latest"}),
        Parameter("tail", "First so many of the newest that match; the search is bounded.",
                  _whole(0, MAX_TAIL)),
        Parameter("on_lag", "What happens to a reader that is too slow.",
                  _one_of("catchup", "skip", default="catchup")),
        Parameter("delivery", "To each, or each to one of a group.",
                  _one_of("broadcast", "shared", default=settings.delivery)),
        Parameter("group", "The consumer group of `shared`.",
                  {**TEXT, "maxLength": MAX_GROUP_NAME, "default": settings.consumer_group}),
        Parameter("ack", "`client`: the subscriber acknowledges each event by /ack.",
                  {"type": "string", "enum": ["client"]}),
        Parameter("ack_wait", "When an event that is not acknowledged goes to another member, like"
                  " `30s`; a number alone is in milliseconds. Default: PENDING_IDLE_MS."),
        Parameter("max_in_flight", "How many events a member may hold unacknowledged.",
                  _whole(1, MAX_IN_FLIGHT, default=DEFAULT_IN_FLIGHT)),
        Parameter("filter", "Sets the group's filter for all its members.",
                  {"type": "string", "enum": ["replace"]}),
    )  # fmt: skip
    yield Operation(
        "/subscribe",
        "The live stream: events, and `hello`, `gap`, `progress` and `bye` between them.",
        {
            200: Reply("A stream without end.", {sse.MEDIA_TYPE: EVENTS, NDJSON.media_type: TEXT}),
            **_BAD,
            **_TOKENS,
            **_problems(s409="The group has another filter: `group_filter`."),
        },
        parameters=(*_FILTERS, *start),
        guard="read",
    )  # fmt: skip
    yield Operation(
        "/ack",
        "Acknowledges events that a member of a consumer group holds (`ack=client`).",
        {
            200: Reply("How many the member held, and how many it did not.", {JSON: Acknowledged}),
            **_problems(s413="Too many ids."),
            **_BAD,
            **_TOKENS,
            **_AWAY,
        },
        ("POST",),
        (
            Parameter("group", "The consumer group.",
                      {**TEXT, "maxLength": MAX_GROUP_NAME, "default": settings.consumer_group}),
            Parameter("member", "The member id of the subscription's `hello`."),
        ),
        {JSON: {"type": "array", "items": TEXT}, PLAIN: TEXT},
        "read",
    )  # fmt: skip
    yield Operation(
        "/events",
        "The history, a page at a time.",
        {200: Reply("A page.", {JSON: Page}), **_BAD, **_TOKENS, **_AWAY},
        parameters=(
            *_FILTERS,
            Parameter("from", f"None before this: {_TIME}"),
            Parameter("to", f"None after this: {_TIME}"),
            Parameter("limit", "Events of a page.", _whole(1, MAX_LIMIT, default=100)),
            Parameter("order", "Which come first.", _one_of("asc", "desc", default="desc")),
            Parameter("cursor", "`next` of the page before."),
        ),
        guard="read",
    )
    yield Operation(
        "/subscribers",
        "Who reads from this process, and how far behind.",
        {200: Reply("They.", {JSON: Listed}), **_TOKENS, **_AWAY},
        guard="operate",
    )
    yield Operation(
        SIGNED_OUT,
        "For pages that run alone: adds sessions that were signed out, and returns all that are"
        " kept.",
        {
            200: Reply("The end of each session, as a unix time in seconds, by digest.", _SESSIONS),
            **_problems(
                s400="The body is something else.",
                s404="This process has no tokens, and so no sessions.",
                s413="The body is too large.",
                s415="The Content-Type is not application/json.",
            ),
            **_TOKENS,
            **_AWAY,
        },
        ("POST",),
        takes=_SESSIONS,
        guard="sessions",
    )


# -- the page -----------------------------------------------------------------------------------

_STRANGE = _problems(s421="A name that is not this page's (ALLOWED_HOSTS).")
_ELSEWHERE = _problems(s403="It comes from another site.")
_UNFIT = _problems(s400="The form cannot be read.", s413="It is too large.", s415="It is no form.")
_TO_LOGIN = {303: Reply("To sign in, or onward.")}
_PART = {HTML: TEXT}
_FOUND = {200: Reply("A part of the page.", _PART)}
_READ: Mapping[int, Reply] = {**_BAD, **_TOKENS, **_AWAY}
_SENT = dict.fromkeys(
    (200, 400, 401, 403, 413, 415, 422, 429, 502, 503, 504),
    Reply("What became of it, for the form.", _PART),
)


def _form(*names: str) -> Mapping[str, Shape]:
    fields: Schema = {"type": "object", "properties": dict.fromkeys(names, TEXT)}
    return {"application/x-www-form-urlencoded": fields}


def _shown() -> Iterator[Operation]:
    page = _FOUND | {400: Reply("The page, with what is wrong.", _PART)} | _TO_LOGIN
    feed = {200: Reply("Rows as Server-Sent Events.", {sse.MEDIA_TYPE: EVENTS})}
    volume = {200: Reply("Counts by time and level.", {JSON: OBJECT})}
    file = {200: Reply("A file.", {NDJSON.media_type: TEXT, "text/csv; charset=utf-8": TEXT})}
    asset = {200: Reply("A file.", {"*/*": BYTES}), **_problems(s404="There is none.")}
    for path, says, replies in (
        ("/", "The page.", page),
        ("/ui/stream", "The page's live stream.", {**feed, **_READ}),
        ("/ui/rows", "Older rows.", {**_FOUND, **_READ}),
        ("/ui/filter", "What a filter takes, in words.", _FOUND | _TOKENS),
        ("/ui/volume", "How many events came when.", {**volume, **_READ}),
        ("/ui/download", "All that matches, as a file.", {**file, **_READ}),
        ("/login", "The form for a token.", _FOUND | _TO_LOGIN),
        ("/static/{path:path}", "The page's own files.", asset),
    ):
        yield Operation(path, says, {**replies, **_STRANGE}, guard="read")
    for path, says, replies in (
        ("/status", "The operator's page.", _FOUND | _TO_LOGIN),
        ("/ui/status", "What changes of it.", _FOUND | _TOKENS),
    ):
        yield Operation(path, says, {**replies, **_STRANGE}, guard="operate")


def _submitted() -> Iterator[Operation]:
    details = _FOUND | _UNFIT | _TOKENS | _problems(s422="Nested too deep to be shown.")
    unknown = {403: Reply("Not a token, or from another site.", {**_PART, **PROBLEM})}
    for path, says, replies, takes in (
        ("/ui/details", "The details of a row.", details, _form("event")),
        ("/ui/send", "Stores the form's events.", _SENT, _form(*FIELDS)),
        ("/login", "Takes a token.", _TO_LOGIN | _UNFIT | unknown, _form("token")),
        ("/ui/logout", "Forgets the browser's tokens.", _TO_LOGIN | _ELSEWHERE, {}),
    ):
        yield Operation(path, says, {**replies, **_STRANGE}, ("POST",), takes=takes)


def _ui(_: Settings) -> Iterator[Operation]:
    yield from _shown()
    yield from _submitted()


_OF_ROLE = {"collector": _collector, "distributor": _distributor, "ui": _ui}


def guarded(settings: Settings) -> dict[Guard, bool]:
    """Which tokens are set: whose operations are not open to all."""
    return {
        "ingest": bool(settings.ingest_tokens),
        "read": bool(settings.read_tokens),
        "admin": bool(settings.admin_tokens),
        "operate": bool(settings.admin_tokens or settings.read_tokens),
        "sessions": bool(settings.ingest_tokens or settings.read_tokens or settings.admin_tokens),
    }


def operations(settings: Settings) -> list[Operation]:
    """All that a process with these settings answers."""
    roles: list[Role] = sorted(settings.roles)
    return [*PROBES, *(each for role in roles for each in _OF_ROLE[role](settings))]
