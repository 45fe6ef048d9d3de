"""The secret of a stream: who can only send and read events does not know it.

It is kept in a key beside the stream. A flush, or a failover that loses the key, makes a new one.
"""

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from redis.exceptions import NoPermissionError

from logpipe.problems import Unavailable
from logpipe.stream.connections import Connections
from logpipe.stream.scripts import companion_key

log = logging.getLogger("logpipe.redis")

SECRET_BYTES = 32
"""As many as the digest by which canaries are signed (SHA-256)."""


class StreamSecret:
    """The secret of one stream, for canaries."""

    def __init__(self, redis: Connections, stream: str) -> None:
        self._redis = redis
        self._key = companion_key(stream, "canary", "")
        self._refused = False

    async def made(self) -> bytes:
        """The secret; a new one where there was none. Raises `Unavailable`."""
        async with self._translated(), self._redis.upkeep.pipeline(transaction=True) as pipe:
            pipe.set(self._key, secrets.token_bytes(SECRET_BYTES), nx=True)
            pipe.get(self._key)
            _, secret = await pipe.execute()
        found: bytes = secret
        return found

    async def known(self) -> bytes | None:
        """The secret; None where there is none. Raises `Unavailable`."""
        async with self._translated():
            found: bytes | None = await cast(Any, self._redis.upkeep).get(self._key)
        return found

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Errors as `Unavailable`. That the user may not use the key is logged once, and no state
        of Redis: everything but the canary works."""
        refused = False
        async with self._redis.translated():
            try:
                yield
            except NoPermissionError:
                refused = True
        if not refused:
            return
        if not self._refused:
            self._refused = True
            log.warning("this user of Redis may not use the key %s: no canaries", self._key)
        raise Unavailable("auth", "the user may not use the key of the canary's secret")
