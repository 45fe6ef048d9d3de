"""The Redis Stream: the only package that speaks to Redis, and the names of its keys."""

from logpipe.stream.append import Append, Appended, Declined
from logpipe.stream.disk import Disk, free_bytes
from logpipe.stream.entries import FIELD, RawEntry, event_json
from logpipe.stream.errors import NoGroupError
from logpipe.stream.group_scripts import gap_of
from logpipe.stream.groups import Claimed
from logpipe.stream.health import WRITES_ONLY, RedisHealth
from logpipe.stream.monitor import Memory
from logpipe.stream.once import RECEIPT_BYTES, KeyLimits, Once, Rule, digest_of
from logpipe.stream.stream import Page, Stream

__all__ = [
    "FIELD",
    "RECEIPT_BYTES",
    "WRITES_ONLY",
    "Append",
    "Appended",
    "Claimed",
    "Declined",
    "Disk",
    "KeyLimits",
    "Memory",
    "NoGroupError",
    "Once",
    "Page",
    "RawEntry",
    "RedisHealth",
    "Rule",
    "Stream",
    "digest_of",
    "event_json",
    "free_bytes",
    "gap_of",
]
