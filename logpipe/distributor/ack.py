"""What `/ack` is sent: ids of events that a member of a consumer group has finished with."""

from collections.abc import AsyncIterable

import msgspec

from logpipe.ids import StreamId, parse_id
from logpipe.problems import Problem

MAX_ACK_BYTES = 1024 * 1024
"""Of the body of one request: 40,000 ids."""

MAX_SHOWN = 64
"""Characters of what is no id that an error repeats."""


class Acknowledged(msgspec.Struct, frozen=True):
    """What `/ack` answers: how many entries the member held and no longer does, and how many it did
    not hold: acknowledged before, given to another member, or never its own."""

    acknowledged: int
    unknown: int


async def received(pieces: AsyncIterable[bytes]) -> bytes:
    """A body of up to `MAX_ACK_BYTES`. Raises a 413 `Problem`."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > MAX_ACK_BYTES:
            raise Problem(413, f"More than {MAX_ACK_BYTES} bytes of ids: send them in parts.")
    return bytes(body)


def ids_of(body: bytes) -> list[StreamId]:
    """The ids of a JSON array of texts, or of lines. Raises a 400 `Problem`, which names the first
    one that is none."""
    found: list[StreamId] = []
    for index, text in enumerate(_texts(body.strip())):
        try:
            found.append(parse_id(text))
        except ValueError as error:
            shown = text[:MAX_SHOWN]
            raise Problem(400, f"Id {index}: {shown!r} is {error}.", index=index) from None
    return found


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
