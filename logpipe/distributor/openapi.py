"""The distributor's operations for /openapi.json."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from logpipe import sse
from logpipe.distributor.ack import Acknowledged
from logpipe.distributor.app import MAX_GROUP_NAME, SIGNED_OUT
from logpipe.event import ReadEvent
from logpipe.fanout.streaming import NDJSON
from logpipe.groups.member import DEFAULT_IN_FLIGHT, MAX_IN_FLIGHT
from logpipe.openapi import (
    BAD_PARAMETER,
    JSON,
    PLAIN,
    REFUSED,
    TEXT,
    UNAVAILABLE,
    Operation,
    Parameter,
    Reply,
    Schema,
    Shape,
    problems,
)
from logpipe.parameters import HEADER_PARAMETERS, MAX_LIMIT, MAX_TAIL
from logpipe.settings import Settings
from logpipe.subscribers import Listed

EVENTS: Schema = {"description": "Server-Sent Events with JSON as their data."}


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


_SESSIONS: Mapping[str, Shape] = {
    JSON: {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
}


class Page(msgspec.Struct):
    """A page of the history. `next` goes back as `cursor` until it is null, also when `events` is
    empty. `searched_to` is the id of the last entry that was examined, or null."""

    events: list[ReadEvent]
    next: str | None
    searched_to: str | None


def operations(settings: Settings) -> Iterator[Operation]:
    """The operations of a distributor with these settings."""
    start = (
        Parameter("last_event_id", "Resume right after this id."),
        Parameter("Last-Event-ID", "The same as a header, which takes precedence.", place="header"),
        *(Parameter(name, "The same as the header, for clients that cannot set one.")
          for name in HEADER_PARAMETERS),
        Parameter("since", f"Where to begin: {_TIME}", {**TEXT, "default": "latest"}),
        Parameter("tail", "Begin with the newest N matching events; the search is bounded.",
                  _whole(0, MAX_TAIL)),
        Parameter("on_lag", "What happens to a subscriber that is too slow.",
                  _one_of("catchup", "skip", default="catchup")),
        Parameter("delivery", "All events to each subscriber, or each event to one of a group.",
                  _one_of("broadcast", "shared", default=settings.delivery)),
        Parameter("group", "The consumer group of `shared`.",
                  {**TEXT, "maxLength": MAX_GROUP_NAME, "default": settings.consumer_group}),
        Parameter("ack", "`client`: the subscriber acknowledges each event with /ack.",
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
        "Subscribe to the live stream: events, and `hello`, `gap`, `progress`, `bye` between them.",
        {
            200: Reply("An endless stream.", {sse.MEDIA_TYPE: EVENTS, NDJSON.media_type: TEXT}),
            **BAD_PARAMETER,
            **REFUSED,
            **problems(s409="The group has another filter: `group_filter`."),
        },
        parameters=(*_FILTERS, *start),
        guard="read",
    )  # fmt: skip
    yield Operation(
        "/ack",
        "Acknowledge events that a member of a consumer group holds (`ack=client`).",
        {
            200: Reply("How many ids the member held, and how many not.", {JSON: Acknowledged}),
            **problems(s413="Too many ids."),
            **BAD_PARAMETER,
            **REFUSED,
            **UNAVAILABLE,
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
        "Read the history, one page at a time.",
        {
            200: Reply("A page of the history.", {JSON: Page}),
            **BAD_PARAMETER,
            **REFUSED,
            **UNAVAILABLE,
        },
        parameters=(
            *_FILTERS,
            Parameter("from", f"No event before this: {_TIME}"),
            Parameter("to", f"No event after this: {_TIME}"),
            Parameter("limit", "Maximum events of a page.", _whole(1, MAX_LIMIT, default=100)),
            Parameter("order", "`desc`: the newest first.", _one_of("asc", "desc", default="desc")),
            Parameter("cursor", "`next` of the previous page."),
        ),
        guard="read",
    )
    yield Operation(
        "/subscribers",
        "The subscribers of this process, and how far behind each is.",
        {200: Reply("The connected subscribers.", {JSON: Listed}), **REFUSED, **UNAVAILABLE},
        guard="operate",
    )
    yield Operation(
        SIGNED_OUT,
        "For processes that serve the page alone: add sessions that were signed out, and return"
        " all that are kept.",
        {
            200: Reply("The end of each session, as a unix time in seconds, by digest.", _SESSIONS),
            **problems(
                s400="The body has another shape.",
                s404="This process has no tokens, and so no sessions.",
                s413="The body is too large.",
                s415="The Content-Type is not application/json.",
            ),
            **REFUSED,
            **UNAVAILABLE,
        },
        ("POST",),
        takes=_SESSIONS,
        guard="sessions",
    )
