"""What comes packed in other ways than a Content-Encoding that `body` knows: whole, in memory."""

from logpipe.collector.body import DAMAGED, UNPACKERS, too_large
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
"""First bytes by which packed data tells what it is; no JSON begins so."""

PIECE_BYTES = 16 * 1024


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


def by_its_first_bytes(data: bytes, limit: int) -> bytes:
    """The data unpacked, if it is packed. Raises a `Problem` as `from_snappy`."""
    coding = next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)
    if coding is not None:
        data = _unpacked(data, coding, limit)
    if len(data) > limit:
        raise too_large(limit)
    return data


def _unpacked(data: bytes, coding: str, limit: int) -> bytes:
    """The first bytes of what it unpacks to: all, or more than the limit."""
    unpacker = UNPACKERS[coding]()
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
