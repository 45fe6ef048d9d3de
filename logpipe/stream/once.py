"""Idempotency keys: what names a request that may come again, and the bounds of what is kept."""

import hashlib
import math
from enum import StrEnum
from typing import NamedTuple

DIGEST_BYTES = 16
"""Of a body's digest: 2^64 bodies would have to be tried for two that share one."""

VALUE_BYTES = 1024
"""What the value of a key may have in Redis: digests, ids and receipt."""

RECEIPT_BYTES = VALUE_BYTES - 128
"""Of it the receipt; ids and one digest take 116 at most."""

MAX_BODIES = 32
"""Bodies of one key that are remembered where each of them is stored (`Rule.STORE`)."""

KEY_TTL_S = 600
"""How long a key is kept."""

KEYS_PERCENT = 5
"""Of Redis' maxmemory: what all keys of a stream may take."""

KEYS_BYTES = 64 * 1024 * 1024
"""The same where Redis has no maxmemory, or its user may not ask for it."""

KEY_OVERHEAD_BYTES = 160
"""What Redis takes for a key besides its name and value, at most: 86 to 99 bytes with Valkey 9.1,
104 to 157 with Redis 7.0 (used_memory over 10,000 to 131,000 keys with an expiry; the hash tables,
which double, make the difference)."""


class Rule(StrEnum):
    """What another body under a known key means; the values are those of the script."""

    REJECT = "reject"
    """A mistake of the sender: nothing is stored."""
    STORE = "store"
    """A request of its own: stored, and known from then on."""
    IGNORE = "ignore"
    """The same request."""


class Once(NamedTuple):
    """What makes a request known when it comes again: its key, and the digest of its body."""

    key: str
    digest: bytes
    rule: Rule = Rule.REJECT


def digest_of(body: bytes) -> bytes:
    """The digest of a body."""
    return hashlib.sha256(body).digest()[:DIGEST_BYTES]


class KeyLimits(NamedTuple):
    """How long a key is kept, and the memory that all keys of a stream may take."""

    ttl_ms: int = KEY_TTL_S * 1000
    percent: float = KEYS_PERCENT
    bytes: int = KEYS_BYTES

    def bound(self, maxmemory: float) -> int:
        """The bytes that keys may take; `maxmemory` is 0 for none and NaN where it is not known."""
        if math.isnan(maxmemory) or maxmemory <= 0:
            return self.bytes
        return int(maxmemory * self.percent / 100)


KEY_LIMITS = KeyLimits()
