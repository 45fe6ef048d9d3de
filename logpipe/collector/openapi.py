"""The collector's operations for /openapi.json: `/ingest` and `/ingest/json`."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from logpipe.collector.app import PATH
from logpipe.collector.body import UNPACKERS
from logpipe.collector.ingest import JSON_TYPES, MAX_KEY_LENGTH, NDJSON_TYPES, Receipt, Single
from logpipe.collector.receivers import generic
from logpipe.collector.receivers.table import PROTOCOLS
from logpipe.event import Event
from logpipe.limits import largest_batch
from logpipe.openapi import JSON, PLAIN, REFUSED, TEXT, Operation, Parameter, Reply, problems
from logpipe.settings import Settings

_KEY = Parameter(
    "Idempotency-Key",
    "Makes a retry safe: the same request with the same key and token is stored once within ten"
    " minutes. Another body with the same key is 422.",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
    "header",
)


def operations(settings: Settings) -> Iterator[Operation]:
    """The operations of a collector with these settings."""
    largest = largest_batch(settings)
    refusals = {
        **problems(
            s400="The body is not JSON, or holds no event.",
            s408="The body did not arrive in time.",
            s413=f"Over MAX_BODY_BYTES ({settings.max_body_bytes}), MAX_MESSAGE_BYTES"
            f" ({settings.max_message_bytes}), or over {largest.events} events ({largest.why}).",
            s415=f"Another media type, or a Content-Encoding that is not {', '.join(UNPACKERS)}.",
            s422="No event fits the schema (`errors` lists them), or the Idempotency-Key came with"
            " another body.",
            s429="Over RATE_PER_TOKEN; Retry-After says when to try again.",
            s503="Redis is unavailable, or has no room for the Idempotency-Key; Retry-After says"
            " when to try again.",
        ),
        **REFUSED,
    }
    batch = Annotated[list[Event], Meta(min_length=1, max_length=largest.events)]
    stored = "Redis has confirmed every event that is not in `errors`."
    yield Operation(
        PATH,
        "Store events: one object, an array, or one object per line.",
        {202: Reply(stored, {JSON: (Single, Receipt)}), **refusals},
        ("POST",),
        (_KEY,),
        {
            **dict.fromkeys(sorted(JSON_TYPES), Event | batch),
            **dict.fromkeys(sorted(NDJSON_TYPES), TEXT),
        },
        "ingest",
    )
    for path in generic.PATHS:
        yield Operation(
            path,
            "Store JSON of any shape, or lines of text.",
            {202: Reply(stored, {JSON: Receipt}), **refusals},
            PROTOCOLS["json"].methods,
            (_KEY,),
            {JSON: {}, **dict.fromkeys(sorted(NDJSON_TYPES), TEXT), PLAIN: TEXT},
            "ingest",
        )
        yield Operation(path, "Ask whether JSON is accepted.", {200: Reply("It is accepted.")})
