"""Bodies of requests to a distributor, bounded together, and the ids in those to `/ack`."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager

import msgspec
from starlette.requests import ClientDisconnect

from logpipe.ids import StreamId, parse_id
from logpipe.problems import RETRY_AFTER_S, Problem

MAX_ACK_BYTES = 300_000
"""Of the body of one request: as many ids as a member may hold (`member.MAX_IN_FLIGHT`)."""

MAX_ACKS_BYTES = 2 * 1024 * 1024
"""Of the bodies of all requests under way in a process."""

CLIENT_PART = 4
"""One client may have this part of them."""

BODY_S = 5.0
"""In which a body has to come: it is a few packets."""

IDS_AT_ONCE = 256
"""Ids that are read before everything else goes on."""

MAX_SHOWN = 64
"""Characters of what is no id that an error repeats."""


class Acknowledged(msgspec.Struct, frozen=True):
    """What `/ack` answers: how many entries the member held and no longer does, and how many it did
    not hold: acknowledged before, given to another member, or never its own."""

    acknowledged: int
    unknown: int


class Bodies:
    """The bodies of requests under way, whose bytes are bounded: `one` of each, `most` of all, and
    of one client its part of these. `limit` is the one of `limits.NAMES` that is counted."""

    def __init__(
        self, most: int = MAX_ACKS_BYTES, one: int = MAX_ACK_BYTES, limit: str = "acks"
    ) -> None:
        self.held: Counter[str] = Counter()
        """Bytes by client."""
        self._most = most
        self._one = one
        self._limit = limit

    @contextmanager
    def body(self, client: str) -> Iterator["Body"]:
        """A body of a client, counted until the end of the context."""
        body = Body(self, client)
        try:
            yield body
        finally:
            self._add(client, -len(body.content))

    def take(self, client: str, size: int, more: int) -> None:
        """Counts more bytes of a body that has `size` by then. Raises a `Problem`: 413 for a body
        that is too large, 503 where there is no room for it."""
        self._add(client, more)
        if size > self._one:
            raise Problem(413, f"More than {self._one} bytes: send several requests.")
        if self.held.total() > self._most or self.held[client] > self._most / CLIENT_PART:
            raise Problem(
                503,
                "Too many requests of this kind are under way here; send this one again.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
                hits={self._limit: 1},
            )

    def _add(self, client: str, size: int) -> None:
        self.held[client] += size
        if not self.held[client]:
            del self.held[client]


class Body:
    """One body as it comes."""

    def __init__(self, bodies: Bodies, client: str) -> None:
        self.content = bytearray()
        self._bodies = bodies
        self._client = client

    async def receive(self, pieces: AsyncIterable[bytes], within_s: float = BODY_S) -> None:
        """Takes the pieces of the body. Raises a `Problem` as `Bodies.take`, 408 for a body that
        comes too slowly, and 400 where its client leaves."""
        try:
            async with asyncio.timeout(within_s):
                async for piece in pieces:
                    self.content += piece
                    self._bodies.take(self._client, len(self.content), len(piece))
        except TimeoutError:
            raise Problem(408, f"The body did not come within {within_s:g} s.") from None
        except ClientDisconnect:
            raise Problem(400, "The body was cut off.") from None


def reading(body: bytes, found: list[StreamId]) -> Iterator[None]:
    """Adds the ids of a JSON array of texts, or of lines, to a list, as work for `Turns`. Raises a
    400 `Problem`, which names the first one that is not an id."""
    for index, text in enumerate(_texts(body.strip())):
        try:
            found.append(parse_id(text))
        except ValueError as error:
            shown = text[:MAX_SHOWN]
            raise Problem(400, f"Id {index}: {shown!r} is {error}.", index=index) from None
        if index % IDS_AT_ONCE == 0:
            yield


def _texts(body: bytes) -> list[str]:
    if body.startswith(b"["):
        try:
            return msgspec.json.decode(body, type=list[str])
        except msgspec.DecodeError as error:
            raise Problem(400, f"The body must be a JSON array of ids as texts: {error}.") from None
    try:
        return [line.strip() for line in body.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise Problem(400, "The body must be a JSON array of ids, or an id a line.") from None
