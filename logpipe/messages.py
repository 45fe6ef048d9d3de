"""What a subscriber can be told: batches of entries, and the named messages between them."""

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self

import msgspec

from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry, weight_of
from logpipe.filters import Filter
from logpipe.ids import StreamId

Delivery = Literal["broadcast", "shared"]
OnLag = Literal["catchup", "skip"]


class Start(msgspec.Struct, frozen=True):
    """Where a subscription begins; all unset means with the next entry.

    `resume` is the id of the last entry that was had; it wins over the others. `unknown` stands
    for a Last-Event-ID that is no id. `since` is the least id wanted; `tail` is how many of the
    newest matching entries come first.
    """

    resume: StreamId | None = None
    unknown: bool = False
    since: StreamId | None = None
    tail: int | None = None
    on_lag: OnLag = "catchup"


class Hello(NamedTuple):
    """The first message of every subscription.

    `id` is the id after which the subscription begins; None with `tail`, where the first entry or
    `Progress` after it says so. `filter` is the text of a group's filter, None for a broadcast and
    where it is not known; `member` is the name of a subscriber that acknowledges for itself.
    """

    id: StreamId | None
    first: StreamId | None
    last: StreamId | None
    delivery: Delivery
    version: str
    filter: str | None = None
    member: str | None = None


class Progress(NamedTuple):
    """All up to `id` was read, and no entry since the last message matches the filter.

    `looked_back_to` is set where `tail` has found fewer entries than were asked for, because the
    search ended at its limit: entries up to this id were not looked at.
    """

    id: StreamId
    looked_back_to: StreamId | None = None


class Bye(NamedTuple):
    """The server ends this stream; `retry_ms` is when to come back, None until the response that
    sends it has decided that."""

    reason: str
    retry_ms: int | None = None


RETRY_MS = (500, 3000)
"""When subscribers are asked to come back, spread so that they do not all come at once; where many
streams end together, from their turn on (`limits.Returns`)."""


def retry_ms(wait_s: float = 0.0) -> int:
    """A time after which to come back, which differs from one subscriber to the next: from
    `wait_s` seconds on."""
    return int(wait_s * 1000) + random.randint(*RETRY_MS)  # noqa: S311


FULL_RETRY_MS = (2_000, 10_000)
"""When those who found no room are asked to try again."""


def full(reason: str) -> Bye:
    """A `Bye` that ends a stream as soon as it has begun, because too much is asked here: an error
    status would end an EventSource for good."""
    return Bye(reason, random.randint(*FULL_RETRY_MS))  # noqa: S311


class Notice(NamedTuple):
    """The stream is connected but has nothing to give yet, and why."""

    reason: str


Message = Hello | Gap | Progress | Bye | Notice


def named(
    message: Hello | Gap | Progress | Bye,
) -> tuple[str, StreamId | None, dict[str, Any]]:
    """The name of a message, the cursor that it moves to, and its data."""
    match message:
        case Hello(id, first, last, delivery, version, chosen, member):
            greeting = {
                "first_id": str(first) if first else None,
                "last_id": str(last) if last else None,
                "delivery": delivery,
                "version": version,
            }
            if chosen is not None:
                greeting["filter"] = chosen
            if member is not None:
                greeting["member"] = member
            return "hello", id, greeting
        case Gap(reason, after, before, count, resume):
            told = {"reason": reason, "after": str(after), "before": str(before), "count": count}
            return "gap", resume, told
        case Progress(id, looked_back_to):
            limited = {"looked_back_to": str(looked_back_to)} if looked_back_to else {}
            return "progress", id, {"id": str(id), **limited}
        case Bye(reason, retry_ms):
            return "bye", None, {"reason": reason, "retry_ms": retry_ms}


class Subscription(Protocol):
    """A source of items for one subscriber, whatever stands behind it."""

    client: str
    """The address of who reads, as far as it is known."""
    connected_ms: int
    """When it began, as a unix time."""

    confirms: bool
    """Whether `sent` may be called only when the bytes have left this process."""

    @property
    def filter(self) -> Filter: ...
    async def next(self) -> "Sequence[Item] | None":
        """The next items; none when a heartbeat is due; None at the end."""

    async def sent(self) -> None:
        """Called when what `next` gave last was written to the subscriber."""

    async def follow(self, writer: Any) -> None:
        """Has a `live.Writer` written to without `next`, as long as that can be; else returns."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *_: object) -> None: ...


class Encoder(Protocol):
    """A format of the stream. One instance each: its identity is the key of the shared chunks."""

    @property
    def media_type(self) -> str: ...
    @property
    def heartbeat(self) -> bytes: ...
    def entries(self, entries: Sequence[Entry]) -> bytes: ...
    def message(self, message: Message) -> bytes: ...


MAX_FILTERS = 128
MAX_CHUNK_BYTES = 1024 * 1024
MAX_FOUND = 16_384
"""Bounds on what a batch keeps for its readers, who may have any number of filters: the filters,
the bytes of encoded chunks, and the entries in the lists of what the filters take (8 bytes each).
Beyond them, what was made first is made again where it is wanted."""


class Batch:
    """Consecutive entries, with the chunks of bytes that its subscribers share.

    `start` is the cursor before the first entry and `end` the one after the last. Entries that
    hold no event are counted by the cursors and missing in `entries`.
    """

    __slots__ = (
        "_chunk_bytes",
        "_chunks",
        "_found",
        "_matching",
        "_weight",
        "end",
        "entries",
        "keepers",
        "size",
        "start",
    )

    def __init__(self, start: Cursor, end: Cursor, entries: list[Entry]) -> None:
        self.start = start
        self.end = end
        self.entries = entries
        self.size = sum(len(entry.json) for entry in entries)
        self._weight = -1
        self.keepers: Keepers | None = None
        """Where batches that stay in memory together are counted."""
        # By the text of a filter: a `Filter` here would count as one in use.
        self._matching: dict[str, list[Entry]] = {}
        self._found = 0
        """Entries in these lists."""
        self._chunks: dict[tuple[Encoder, str], bytes] = {}
        self._chunk_bytes = 0

    @classmethod
    def of(cls, entries: list[Entry]) -> Self:
        """Some entries, at least one; what lies before the first is not known."""
        return cls(Cursor(entries[0].id.before()), Cursor(entries[-1].id), entries)

    @property
    def weight(self) -> int:
        """Its bytes for bounds on memory, as of `weight_of`."""
        if self._weight < 0:
            self._weight = weight_of(self.entries)
        return self._weight

    def matching(self, chosen: Filter) -> list[Entry]:
        """The entries that the filter takes, found once for all subscribers with that filter."""
        found = self.kept(chosen)
        if found is None:
            accepts = chosen.predicate
            found = (
                self.entries if accepts is None else [e for e in self.entries if accepts(e.event)]
            )
            self.keep(chosen, found)
        return found

    def kept(self, chosen: Filter) -> list[Entry] | None:
        """The entries that the filter takes, where they were found already. Never compiles it."""
        return self._matching.get(chosen.query) if chosen.query else self.entries

    def keep(self, chosen: Filter, found: list[Entry]) -> None:
        """Keeps the entries that the filter takes, for `matching`."""
        if not chosen.query:
            return
        self._found += len(found) - len(self._matching.pop(chosen.query, ()))
        self._matching[chosen.query] = found
        while len(self._matching) > MAX_FILTERS or (
            self._found > MAX_FOUND and len(self._matching) > 1
        ):
            self._found -= len(self._matching.pop(next(iter(self._matching))))
        self._use()

    def chunk(self, encoder: Encoder, chosen: Filter) -> bytes:
        """The bytes of the matching entries, encoded once a format and filter; empty for none."""
        key = (encoder, chosen.query)
        chunk = self._chunks.get(key)
        if chunk is None:
            found = self.matching(chosen)
            chunk = encoder.entries(found) if found else b""
            self._keep(key, chunk)
        self._use()
        return chunk

    def _keep(self, key: tuple[Encoder, str], chunk: bytes) -> None:
        self._chunks[key] = chunk
        self._chunk_bytes += len(chunk)
        while len(self._chunks) > MAX_FILTERS or self._chunk_bytes > MAX_CHUNK_BYTES:
            self._chunk_bytes -= len(self._chunks.pop(next(iter(self._chunks))))

    def _use(self) -> None:
        if self.keepers is not None:
            self.keepers.use(self)

    def forget_chunks(self) -> None:
        """Gives back the memory of the shared chunks, and of what filters take."""
        self._chunks.clear()
        self._chunk_bytes = 0
        self._matching.clear()
        self._found = 0


class Keepers:
    """Of the batches that stay in memory together, those that keep chunks: the `most` that readers
    used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._batches: OrderedDict[Batch, None] = OrderedDict()

    def add(self, batch: Batch) -> None:
        """Counts a batch from now on, whenever it is used."""
        batch.keepers = self
        self.use(batch)

    def use(self, batch: Batch) -> None:
        """Has the batch keep chunks; the one that was used longest ago may lose its own."""
        self._batches[batch] = None
        self._batches.move_to_end(batch)
        if len(self._batches) > self._most:
            self._batches.popitem(last=False)[0].forget_chunks()

    def remove(self, batch: Batch) -> None:
        """Counts a batch no more: it lives only as long as its readers hold it."""
        batch.keepers = None
        self._batches.pop(batch, None)


Item = Batch | Message
