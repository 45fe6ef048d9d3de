"""Snappy's block format, in which Loki's senders pack protobuf, and others their bodies."""

from logpipe.collector.body import too_large
from logpipe.problems import Problem

MAX_RATIO = 64
"""What a byte of the block format can unpack to at most: a copy of 64 bytes takes three."""


def unpacked(block: bytes, limit: int) -> bytes:
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
