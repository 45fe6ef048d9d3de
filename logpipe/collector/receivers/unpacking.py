"""What comes packed in other ways than a Content-Encoding that `body` knows: whole, in memory."""

import asyncio

from logpipe.collector.body import DAMAGED, UNPACKERS, FrameBudget, too_large, unpacked
from logpipe.collector.inflight import Held
from logpipe.problems import Problem

MAX_RATIO = 64
"""More than a byte of snappy's block format can unpack to: a copy of 64 bytes takes three."""

MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x78\x01": "deflate",
    b"\x78\x5e": "deflate",
    b"\x78\x9c": "deflate",
    b"\x78\xda": "deflate",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""The first bytes of data in each coding. No JSON begins with any of them."""

PIECE_BYTES = 16 * 1024

IN_PLACE_BYTES = 1024 * 1024
"""A larger block of snappy is unpacked in a thread: 16 MiB take 16 ms (measured), for which the
library holds no lock of Python's."""


def from_snappy(block: bytes, limit: int) -> bytes:
    """The data of a block. Raises a `Problem`: 413 when it has more than `limit` bytes, 400 when it
    is damaged. The size that a block claims is not believed where its bytes cannot hold it."""
    import cramjam

    try:
        size = cramjam.snappy.decompress_raw_len(block)
        if size > limit:
            raise too_large(limit)
        if size > MAX_RATIO * len(block):
            raise Problem(400, "The body is no block of snappy: it is shorter than it claims.")
        return bytes(cramjam.snappy.decompress_raw(block))
    except (cramjam.DecompressionError, ValueError, OverflowError) as error:
        raise Problem(400, f"The body is no block of snappy: {error}") from None


async def snappy_body(block: bytes, limit: int, held: Held) -> bytes:
    """As `from_snappy`; `held` counts the data, and a large block holds up nothing else. Raises
    also a 503 `Problem` where there is no room for the data now."""
    size = claimed_size(block)
    if size <= limit:
        held.add(size)
    if size <= IN_PLACE_BYTES:
        return from_snappy(block, limit)
    return await asyncio.to_thread(from_snappy, block, limit)


def claimed_size(block: bytes) -> int:
    """The size that a block of snappy claims its data to have; 0 where it is no such block."""
    import cramjam

    try:
        return cramjam.snappy.decompress_raw_len(block)
    except (cramjam.DecompressionError, ValueError, OverflowError):
        return 0


def coding_of(data: bytes) -> str | None:
    """The coding of data, found by its first bytes; None where it is not packed."""
    return next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)


async def body_by_its_first_bytes(data: bytes, limit: int, held: Held) -> bytes:
    """As `by_its_first_bytes`, of a whole body: `held` counts the data, and everything else has its
    turns. Raises also a 503 `Problem` where there is no room for the data now."""
    coding = coding_of(data)
    return data if coding is None else await unpacked(data, coding, limit, held)


def by_its_first_bytes(data: bytes, limit: int, frames: FrameBudget) -> bytes:
    """The data unpacked, if it is packed. Raises a `Problem` as `from_snappy`, and a 413 one for
    more frames than are left."""
    coding = coding_of(data)
    if coding is not None:
        data = _unpacked(data, coding, limit, frames)
    if len(data) > limit:
        raise too_large(limit)
    return data


def _unpacked(data: bytes, coding: str, limit: int, frames: FrameBudget) -> bytes:
    """The first bytes of what it unpacks to: all, or more than the limit."""
    unpacker = UNPACKERS[coding](frames)
    found = bytearray()
    try:
        for at in range(0, len(data), PIECE_BYTES):
            for piece in unpacker.feed(data[at : at + PIECE_BYTES]):
                found += piece
                if len(found) > limit:
                    return bytes(found)
    except DAMAGED as error:
        raise Problem(400, f"The data is not {coding}: {error}") from None
    if not unpacker.complete:
        raise Problem(400, f"The data is not {coding}: it ends too early.")
    return bytes(found)
