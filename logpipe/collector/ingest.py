"""What becomes of a body: events to append, refusals to report, and the answer for both."""

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import msgspec

from logpipe.decoding import Refusal, TooManyEventsError, decode_json, decode_ndjson, has_more_keys
from logpipe.event import IS_RESERVED, Event, encode, is_reserved
from logpipe.limits import largest_batch
from logpipe.problems import Problem
from logpipe.settings import Settings
from logpipe.stream import RECEIPT_BYTES, Append, Appended, Once
from logpipe.turns import pause

MAX_REPORTED = 1_000
"""Refusals that one answer spells out; `rejected` counts them all."""

KEY_BYTES = 5
"""What a key of metadata takes in JSON at the least, as `"":0,`: in fewer bytes there are not so
many, and nobody needs to count them."""

MAX_KEY_LENGTH = 256
"""Characters of an Idempotency-Key."""

JSON_TYPES = frozenset({"application/json", "text/json"})
NDJSON_TYPES = frozenset(
    {
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/json-lines",
        "application/stream+json",
    }
)
UNTYPED = frozenset(
    {
        "",
        "application/octet-stream",
        "text/plain",
        "application/x-www-form-urlencoded",  # curl's own for --data
    }
)
"""Types that say nothing of the content: its first byte decides."""


class Intake(msgspec.Struct, frozen=True, gc=False):
    """The encoded events of one body, in order, and what was refused of it; `once` is what the
    request has as a key."""

    events: list[bytes]
    refusals: list[Refusal]
    single: bool
    once: Once | None = None


class Single(msgspec.Struct, frozen=True):
    """The answer to one event: its id in the stream."""

    id: str


class Reported(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event of a batch that was not taken, by its index, why, and its field where it is one.

    `unread_from_byte` is there where malformed text may have held more than one event: the body,
    counted from 0 and without compression, was not read from there to the end of the line.
    """

    index: int
    error: str
    field: str | None = None
    unread_from_byte: int | None = None


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a batch: how many are stored, from which id to which, and what was refused:
    `MAX_REPORTED` of it at most, or what was kept of it with an idempotency key."""

    accepted: int
    rejected: int
    first_id: str
    last_id: str
    errors: list[Reported]
    errors_omitted: int = 0
    """Of those that were refused, how many `errors` does not list."""


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a receipt with an idempotency key."""

    accepted: int
    rejected: int
    errors: list[Reported]


class Bounds(NamedTuple):
    """What one event and one request may have: MAX_MESSAGE_BYTES, MAX_METADATA_KEYS, and the events
    of a request (`limits.largest_batch`) with what says so."""

    bytes: int
    keys: int
    events: int
    why: str = "MAX_BATCH_EVENTS"

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        """Those of the settings."""
        batch = largest_batch(settings)
        return cls(settings.max_message_bytes, settings.max_metadata_keys, batch.events, batch.why)


def take_in(body: bytes, content_type: str, bounds: Bounds) -> Intake:
    """Decodes, checks and encodes. Raises a `Problem` when nothing is left to append."""
    single = False
    encoding = _Encoding(bounds)
    try:
        if _is_ndjson(content_type):
            found, refusals = decode_ndjson(body, encoding, bounds.events)
        elif not body or body.isspace():
            raise Problem(400, "The body is empty: send a JSON event, an array or lines of them.")
        else:
            found, refusals, single = decode_json(body, encoding, bounds.events)
    except TooManyEventsError:
        raise too_many(bounds) from None
    events, refusals = encoding.separated(found, refusals)
    if not events:
        raise _nothing_taken(refusals)
    return Intake(events, refusals, single)


def too_many(bounds: Bounds) -> Problem:
    """The 413 of a request with more events than it may have."""
    return Problem(
        413,
        f"Event {bounds.events} is one too many: a request may have {bounds.events} events"
        f" ({bounds.why}). Send smaller batches.",
        hits={"batch": 1},
        limit=bounds.events,
        max_events=bounds.events,
    )


@lru_cache(maxsize=256)
def _is_ndjson(content_type: str) -> bool:
    """Whether a body is lines of JSON by its type. Raises a 415 `Problem` for other types."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in NDJSON_TYPES:
        return True
    if media_type in JSON_TYPES or media_type in UNTYPED:
        return False
    raise Problem(
        415,
        f"Content-Type {media_type[:64]!r} is not taken: use application/json or"
        " application/x-ndjson.",
        headers={"Accept": "application/json, application/x-ndjson"},
    )


class _Encoding:
    """Encodes events as they are stored, a refusal in place of each that is too large or has a
    reserved source."""

    __slots__ = ("_bounds", "_now_ms", "_refused")

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._now_ms = time.time_ns() // 1_000_000
        self._refused = False

    def __call__(self, events: Sequence[Event]) -> list[bytes | Refusal]:
        encoded = encode(events, self._now_ms)
        bounds = self._bounds
        # The first letter alone takes a third of the time.
        reserved = [each for each in events if each.source[0] in "lL" and is_reserved(each.source)]
        if not encoded or (
            len(max(encoded, key=len)) <= min(bounds.bytes, KEY_BYTES * bounds.keys)
            and not reserved
        ):
            return cast("list[bytes | Refusal]", encoded)
        found: list[bytes | Refusal] = []
        for event, whole in zip(events, encoded, strict=True):
            pause()
            refusal = _refusal(bounds, event, len(whole))
            self._refused |= refusal is not None
            found.append(refusal or whole)
        return found

    def separated(
        self, found: list[bytes | Refusal], refusals: list[Refusal]
    ) -> tuple[list[bytes], list[Refusal]]:
        """The events, and all refusals by index; `refusals` are those of what is not among
        `found`."""
        if not self._refused:
            return cast("list[bytes]", found), refusals
        events: list[bytes] = []
        taken = {refusal.index for refusal in refusals}
        indexes = (index for index in itertools.count() if index not in taken)
        for index, each in zip(indexes, found, strict=False):
            if isinstance(each, Refusal):
                refusals.append(msgspec.structs.replace(each, index=index))
            else:
                events.append(each)
        return events, sorted(refusals, key=lambda refusal: refusal.index)


def _refusal(bounds: Bounds, event: Event, size: int) -> Refusal | None:
    """Why an event is not taken, with an index of 0; None where it is."""
    if is_reserved(event.source):
        return Refusal(0, "source", f"source: {IS_RESERVED}", 422)
    if size > bounds.bytes:
        error = f"the event has {size} bytes, over {bounds.bytes} (MAX_MESSAGE_BYTES)"
        return Refusal(0, None, error, 413, "event")
    if size > KEY_BYTES * bounds.keys and has_more_keys(event.metadata, bounds.keys):
        error = f"metadata: has over {bounds.keys} keys (MAX_METADATA_KEYS)"
        return Refusal(0, "metadata", error, 422, "metadata_keys")
    return None


def _nothing_taken(refusals: Sequence[Refusal]) -> Problem:
    if not refusals:
        return Problem(400, "The body holds no event.")
    statuses = {refusal.status for refusal in refusals}
    status = statuses.pop() if len(statuses) == 1 else 422
    first = refusals[0]
    detail = f"Event {first.index}: {first.error}."
    if len(refusals) > 1:
        detail = f"None of {len(refusals)} events was taken. {detail}"
    hits, errors = hits_of(refusals), msgspec.to_builtins(reported(refusals))
    members = {"rejected": len(refusals), "errors": errors}
    if omitted := len(refusals) - len(errors):
        members["errors_omitted"] = omitted
    return Problem(status, detail, hits=hits, **members)


def hits_of(refusals: Sequence[Refusal]) -> Counter[str]:
    """How often which limit was hit."""
    return Counter(refusal.limit for refusal in refusals if refusal.limit)


def reported(refusals: Sequence[Refusal]) -> list[Reported]:
    """The refusals as an answer lists them."""
    return [_reported(refusal) for refusal in refusals[:MAX_REPORTED]]


def _reported(refusal: Refusal) -> Reported:
    return Reported(refusal.index, refusal.error, refusal.field, refusal.unread_from)


def scope_of(protocol: str, token: str | None) -> str:
    """What the name of an idempotency key begins with: no two protocols and no two tokens share
    one. The token goes into it as a digest."""
    owner = hashlib.sha256(token.encode()).hexdigest() if token else ""
    return f"{protocol}\n{owner}\n"


def require_length(key: str) -> None:
    """Raises a 400 `Problem` for an Idempotency-Key that is empty or too long."""
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise Problem(400, f"Idempotency-Key must have 1 to {MAX_KEY_LENGTH} characters.")


def append_of(intake: Intake) -> Append:
    """What is appended, and what is kept of its answer where it has a key."""
    return Append(intake.events, intake.once, b"" if intake.once is None else _kept_of(intake))


def _kept_of(intake: Intake) -> bytes:
    """The answer to a batch without ids, with as many errors as there is room for; of a single
    event nothing is kept but its id."""
    if intake.single:
        return b""
    counts = len(intake.events), len(intake.refusals)
    room = RECEIPT_BYTES - len(msgspec.json.encode(_Kept(*counts, [])))
    errors: list[Reported] = []
    for error in map(_reported, intake.refusals):
        room -= len(msgspec.json.encode(error)) + 1
        if room < 0:
            break
        errors.append(error)
    return msgspec.json.encode(_Kept(*counts, errors))


def answer_of(intake: Intake, appended: Appended) -> bytes:
    """The body of the 202. A repeated request gets what the first one was answered, but for errors
    that were not kept."""
    if appended.repeated:
        if not appended.receipt:
            return msgspec.json.encode(Single(appended.first))
        kept = msgspec.json.decode(appended.receipt, type=_Kept)
    elif intake.single:
        return msgspec.json.encode(Single(appended.first))
    else:
        kept = _Kept(len(intake.events), len(intake.refusals), reported(intake.refusals))
    omitted = kept.rejected - len(kept.errors)
    ids = appended.first, appended.last
    return msgspec.json.encode(Receipt(kept.accepted, kept.rejected, *ids, kept.errors, omitted))
