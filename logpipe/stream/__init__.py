"""The Redis Stream: the only package that speaks to Redis, and the names of its keys."""

from logpipe.stream.append import Append, Appended
from logpipe.stream.connections import NoGroupError
from logpipe.stream.group_scripts import gap_of
from logpipe.stream.groups import Claimed
from logpipe.stream.health import WRITES_ONLY, RedisHealth
from logpipe.stream.stream import Page, Stream

__all__ = [
    "WRITES_ONLY",
    "Append",
    "Appended",
    "Claimed",
    "NoGroupError",
    "Page",
    "RedisHealth",
    "Stream",
    "gap_of",
]
