"""From items to what is appended: encoded, within the bounds of one event and of a request."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from logpipe.collector.ingest import KEY_BYTES, Bounds, too_many
from logpipe.collector.receivers.protocol import Item
from logpipe.collector.receivers.schema import text_of
from logpipe.decoding import has_more_keys
from logpipe.event import IS_RESERVED, Event, encode, is_reserved
from logpipe.problems import Problem
from logpipe.stream import Append, Once
from logpipe.turns import pause

T = TypeVar("T")

MAX_GROWTH = 4
"""Times MAX_BODY_BYTES that the events of a request may have together: what many share, such as
the attributes of a resource, is written once in a request and with every event here."""

LEAST_BODY_BYTES = 1024 * 1024
"""Where MAX_BODY_BYTES is less, the events of a request may grow as if it were this."""

CUT = "log.truncated_from_bytes"
"""In the metadata of an event that was cut to MAX_MESSAGE_BYTES: its size before."""


class Packed(NamedTuple):
    """The encoded events of a request, and for each item None or why it was not taken."""

    events: list[bytes]
    problems: list[Problem | None]


MORE_KEYS = "log.more_metadata"
"""In the metadata of an event that had over MAX_METADATA_KEYS: the rest of them, as JSON text."""


ITEMS_AT_ONCE = 200
"""Items of one step: made and encoded in 2 ms at the most, where they are tiny."""


def pack(items: Iterable[Item], bounds: Bounds, max_body: int, now_ms: int) -> Packed:
    """Encodes. Raises a 413 `Problem` for more than one request may bring."""
    return at_once(packing(items, bounds, max_body, now_ms))


def packing(
    items: Iterable[Item], bounds: Bounds, max_body: int, now_ms: int
) -> Generator[None, None, Packed]:
    """As `pack`, in steps."""
    packed = Packed([], [])
    limit = MAX_GROWTH * max(max_body, LEAST_BODY_BYTES)
    size = 0
    for item in items:
        if len(packed.problems) >= bounds.events:
            raise too_many(bounds)
        if packed.problems and not len(packed.problems) % ITEMS_AT_ONCE:
            yield
        pause()
        if isinstance(item, Problem):
            packed.problems.append(item)
            continue
        if is_reserved(item.source):
            packed.problems.append(Problem(422, f"The source {IS_RESERVED}."))
            continue
        whole = _encoded(item, now_ms)
        if len(whole) > KEY_BYTES * bounds.keys and has_more_keys(item.metadata, bounds.keys):
            item.metadata = fewer_keys(item.metadata, bounds.keys)
            whole = _encoded(item, now_ms)
        size += len(whole)
        if size > limit:
            raise Problem(413, f"The events have over {limit} bytes together.", hits={"batch": 1})
        event = whole if len(whole) <= bounds.bytes else _cut(item, len(whole), bounds.bytes)
        if event is not None:
            packed.events.append(event)
        packed.problems.append(None if event else _over(len(whole), bounds.bytes))
    return packed


def at_once(steps: Generator[None, None, T]) -> T:
    """What steps return, without a pause between them."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)


def fewer_keys(metadata: dict[str, Any], most: int) -> dict[str, Any]:
    """The metadata with what is nested as its JSON text, and the last keys together as one."""
    flat = {
        name: text_of(value) if isinstance(value, dict | list) else value
        for name, value in metadata.items()
    }
    if len(flat) <= most:
        return flat
    names = list(flat)
    rest = {name: flat[name] for name in names[most - 1 :]}
    return {**{name: flat[name] for name in names[: most - 1]}, MORE_KEYS: text_of(rest)}


def _over(size: int, limit: int) -> Problem:
    return Problem(
        413,
        f"The event has {size} bytes, over {limit} (MAX_MESSAGE_BYTES).",
        hits={"event": 1},
    )


def _encoded(event: Event, now_ms: int) -> bytes:
    return encode([event], now_ms)[0]


def _cut(event: Event, size: int, limit: int) -> bytes | None:
    """The event with as much of its message as fits; where its metadata alone is too large, without
    that. None where not even the rest fits."""
    for metadata in (event.metadata, {}):
        marked = {**metadata, CUT: size}
        shell = Event(event.source, "", event.level, event.ts_unix_ms, marked)
        room = limit - len(_encoded(shell, 0))
        if room >= 0:
            shell.message = _fitting(event.message, room)
            return _encoded(shell, 0)
    return None


def _fitting(text: str, room: int) -> str:
    """As much of the beginning of a text as has at most `room` bytes in JSON."""
    fits, too_much = 0, min(len(text), room) + 1
    while too_much - fits > 1:
        middle = (fits + too_much) // 2
        if len(msgspec.json.encode(text[:middle])) - 2 <= room:
            fits = middle
        else:
            too_much = middle
    return text[:fits]


def appends_of(
    events: Sequence[bytes], keys: Sequence[Once | None], once: Once | None
) -> Iterator[Append]:
    """An append for each event with a key of its own, and one for each run of events without.

    `keys` is empty or has one an event; `once` is the request's, which the runs have among them,
    each by its number.
    """
    if not any(keys):
        yield Append(events, once)
        return
    runs = 0
    for keyed, run in groupby(range(len(events)), key=lambda i: keys[i] is not None):
        places = list(run)
        if keyed:
            yield from (Append([events[i]], keys[i]) for i in places)
            continue
        part = once and once._replace(key=f"{once.key}\n{runs}")
        yield Append(events[places[0] : places[-1] + 1], part)
        runs += 1
