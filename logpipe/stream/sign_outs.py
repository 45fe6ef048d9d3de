"""Sessions of the page that were signed out, in a sorted set beside the stream: digests by end."""

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from redis.exceptions import ResponseError

from logpipe.stream.connections import Connections
from logpipe.stream.scripts import Script, companion_key

log = logging.getLogger("logpipe")

MAX_SESSIONS = 2_000
"""Sessions that are kept: 285 that are signed out each day. Beyond that new ones are refused: to
forget one that is kept would let its cookie be used again."""
MAX_AHEAD_S = 7 * 86_400 + 3_600
"""How far ahead an end may be: the longest life of a session, and an hour for clocks that differ.
A later end is taken for this one."""

# KEYS: the sorted set. ARGV: the time in seconds, how many are kept, then digests, each with its
# end. Gives all that are kept, as a digest and its end each, and how many were refused. One text is
# read at once by the client, and thousands of small ones are not.
_EXCHANGE = Script.of("""
local key, now, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local over = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, most)
if #over > 0 then redis.call('ZREM', key, unpack(over)) end
local kept = redis.call('ZRANGE', key, 0, most - 1, 'WITHSCORES')
local places, refused, added = {}, 0, false
for i = 1, #kept, 2 do places[kept[i]] = i end
for i = 3, #ARGV, 2 do
  local digest, ends = ARGV[i], ARGV[i + 1]
  local place = places[digest]
  if not place and #kept >= 2 * most then
    refused = refused + 1
  elseif not place or tonumber(kept[place + 1]) < tonumber(ends) then
    redis.call('ZADD', key, ends, digest)
    place = place or #kept + 1
    places[digest], kept[place], kept[place + 1] = place, digest, ends
    added = true
  end
end
if added then
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  redis.call('EXPIRE', key, math.max(1, math.ceil(tonumber(last[2]) - now) + 1))
end
return {table.concat(kept, ' '), refused}
""")


def lasting(sessions: Mapping[str, int], now: float) -> dict[str, int]:
    """Those of the sessions whose time has not ended, none with an end beyond `MAX_AHEAD_S`."""
    latest = int(now + MAX_AHEAD_S)
    return {digest: min(until, latest) for digest, until in sessions.items() if until > now}


class SignOuts:
    """The sessions at one stream."""

    def __init__(
        self,
        redis: Connections,
        stream: str,
        count_limited: Callable[[Mapping[str, int]], None] = lambda _: None,
    ) -> None:
        self._redis = redis
        self._key = companion_key(stream, "signed-out", "")
        self._count_limited = count_limited
        self._denied = False
        self._full = False

    async def exchange(self, sessions: Mapping[str, int]) -> Mapping[str, int]:
        """Adds sessions, as far as there is room for them; returns all that are kept and whose time
        has not ended, at most `MAX_SESSIONS`.

        Raises `Unavailable`. Where the Redis user may not use the key, it is logged once and there
        are none: a session then ends in one process alone.
        """
        now = time.time()
        pairs = itertools.chain.from_iterable(lasting(sessions, now).items())
        redis = self._redis
        async with redis.translated():
            try:
                kept, refused = await _EXCHANGE.run(
                    redis.upkeep, [self._key], int(now), MAX_SESSIONS, *pairs
                )
            except ResponseError as error:
                # Not raised: this user can still use the stream, and its Redis is well.
                self._complain(error)
                return {}
        found = _sessions_in(kept)
        self._note(refused, is_full=len(found) >= MAX_SESSIONS)
        return found

    def _note(self, refused: int, *, is_full: bool) -> None:
        if refused:
            self._count_limited({"sessions": refused})
        if refused and not self._full:
            self._full = True
            log.warning(
                "Redis keeps %d sessions that were signed out, as many as it may: new ones end in"
                " one process alone",
                MAX_SESSIONS,
            )
        self._full = self._full and is_full  # so that it is logged once each time

    def _complain(self, error: ResponseError) -> None:
        if not self._denied:
            self._denied = True
            log.warning(
                "Redis: %s. Sessions that are signed out end in one process alone; docs/security.md"
                " has what its user needs",
                error,
            )


def _sessions_in(kept: Any) -> dict[str, int]:
    words = kept.decode().split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))
