"""Sessions of the page that were signed out, in a hash beside the stream: their ends by digest."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from redis.exceptions import ResponseError

from logpipe.stream.connections import Connections
from logpipe.stream.scripts import companion_key

log = logging.getLogger("logpipe")

REMOVED_AT_ONCE = 1_000
"""Fields whose time has ended that one call removes."""


class SignOuts:
    """The sessions at one stream."""

    def __init__(self, redis: Connections, stream: str) -> None:
        self._redis = redis
        self._key = companion_key(stream, "signed-out", "")
        self._refused = False

    async def exchange(self, sessions: Mapping[str, int]) -> Mapping[str, int]:
        """Adds sessions; returns all whose time has not ended.

        Raises `Unavailable`. Where the Redis user may not use the key, it is logged once and there
        are none: a session then ends in one process alone.
        """
        now = time.time()
        commands: list[tuple[Any, ...]] = []
        if sessions:
            pairs = [word for pair in sessions.items() for word in pair]
            commands.append(("HSET", self._key, *pairs))
            commands.append(("EXPIRE", self._key, max(1, int(max(sessions.values()) - now) + 1)))
        *added, found = await self._ask([*commands, ("HGETALL", self._key)])
        for answer in (*added, found):
            if isinstance(answer, ResponseError):
                self._complain(answer)
                return {}
        known = {digest.decode(): int(until) for digest, until in found.items()}
        over = [digest for digest, until in known.items() if until <= now]
        if over:
            await self._ask([("HDEL", self._key, *over[:REMOVED_AT_ONCE])])
        return {digest: until for digest, until in known.items() if until > now}

    async def _ask(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        redis = self._redis
        async with redis.translated(), redis.upkeep.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            # Not raised: this user can still use the stream, and its Redis is well.
            return list(await pipe.execute(raise_on_error=False))

    def _complain(self, error: ResponseError) -> None:
        if not self._refused:
            self._refused = True
            log.warning(
                "Redis: %s. Sessions that are signed out end in one process alone; docs/security.md"
                " has what its user needs",
                error,
            )
