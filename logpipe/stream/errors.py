"""What errors of Redis mean: the one place that turns them into those of this package."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import redis.exceptions
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from logpipe.problems import BUSY, Unavailable
from logpipe.stream.health import HeldUp, Kind, RedisHealth
from logpipe.stream.pool import PoolExhaustedError

NO_ANSWER = "no answer"


class NoGroupError(Exception):
    """The consumer group does not exist, as after a flush."""


class Translator:
    """Turns errors of Redis into `Unavailable`, and reports them to the health of Redis.

    `key` is the stream's; `trouble` may say why an embedded engine is down, in better words than
    the connection's error; `count_limited` counts how often a limit was hit.
    """

    def __init__(
        self,
        health: RedisHealth,
        held_up: HeldUp,
        key: str,
        trouble: Callable[[], str | None],
        count_limited: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._health = health
        self._held_up = held_up
        self._key = key
        self._trouble = trouble
        self._count_limited = count_limited

    @asynccontextmanager
    async def translated(self, *, trying: bool = False) -> AsyncIterator[None]:
        """Raise `Unavailable` for every error of Redis, and `NoGroupError` for a missing group.

        Where this process has no connection left, or was held up for most of the time that the
        command had, the error is `BUSY` and no state of Redis. While the login is refused nothing
        is sent at all, except by the monitor (`trying`).
        """
        if self._health.kind == "auth" and not trying:
            raise self._health.unavailable()
        watch = Stopwatch(self._held_up)
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            try:
                yield
            finally:
                # Python 3.11's `wait_for`, by which redis-py sends, may swallow a cancellation:
                # then an endless loop would never end, nor the process that waits for it.
                swallowed = task is not None and task.cancelling() > cancelled
                task = None  # it keeps the exception that ends it, which refers to this frame
                if swallowed:
                    raise asyncio.CancelledError
        except (RedisError, OSError, TimeoutError, PoolExhaustedError) as error:
            if str(error).startswith("NOGROUP"):
                raise NoGroupError(str(error)) from None
            if why := self._busy(error, watch):
                raise Unavailable(BUSY, why) from error
            self._health.report(*self.diagnose(error))
            raise self._health.unavailable() from error

    def _busy(self, error: Exception, watch: "Stopwatch") -> str:
        """Say why the load of this process has caused an error; empty where it has not."""
        if isinstance(error, PoolExhaustedError) or str(error) == _NO_CONNECTION_LEFT:
            self._count_limited({"redis_connections": 1})
            return "all connections of this process to Redis are in use"
        if watch.held_s > watch.turned_s and _timed_out(error):
            return "this process did not come to read the answer of Redis in time"
        return ""

    def diagnose(self, error: Exception) -> tuple[Kind, str]:
        """Return the state that an error means, and a sentence that anyone may read."""
        while isinstance(error.__cause__, RedisError):
            error = error.__cause__  # redis-py wraps the error of a greeting over a unix socket
        known = next((row[1:] for row in _BY_CLASS if isinstance(error, row[0])), None)
        known = known or _BY_WORD.get(str(error).removeprefix("ERR ").partition(" ")[0])
        if known is None and isinstance(error, ResponseError):
            # For an unknown command Redis repeats the arguments: passwords, events.
            said, _, _ = str(error).partition(", with args beginning with")
            known = ("error", " ".join(said.split()))
        if known is not None:
            kind, detail = known
            return kind, detail.replace("{key}", self._key)
        if trouble := self._trouble():
            return "away", trouble
        if tls := _tls_trouble(error):
            return "away", tls
        if isinstance(error, _TIMEOUTS):
            return "away", NO_ANSWER
        return "away", "cannot be reached"


class Stopwatch:
    """The time since it was made, and in how much of it the event loop turned."""

    def __init__(self, held_up: HeldUp) -> None:
        self._held_up = held_up
        self._began = time.monotonic()
        self._held_before = held_up.seconds

    @property
    def held_s(self) -> float:
        return self._held_up.seconds - self._held_before

    @property
    def turned_s(self) -> float:
        return time.monotonic() - self._began - self.held_s


def _timed_out(error: BaseException | None) -> bool:
    """Whether an error was caused by a time limit."""
    while error is not None and not isinstance(error, _TIMEOUTS):
        error = error.__cause__
    return error is not None


_NO_CONNECTION_LEFT = "No connection available."
"""What redis-py's pool says, in a plain `ConnectionError`, once the wait for a connection is over.
"""

_TIMEOUTS = (TimeoutError, redis.exceptions.TimeoutError)

_BY_CLASS: tuple[tuple[type[Exception], Kind, str], ...] = (
    (AuthenticationError, "auth", "the user or password is refused"),
    (NoPermissionError, "auth", "the user may not use the stream's commands"),
    (BusyLoadingError, "away", "loading its data"),
    (OutOfMemoryError, "full", "out of memory (maxmemory)"),
    (ReadOnlyError, "read-only", "a read-only replica"),
    (ClusterDownError, "away", "the Cluster does not serve the stream's slot (CLUSTERDOWN)"),
    (AskError, "away", "the stream's slot is on its way to another node"),
    (TryAgainError, "away", "the stream's slot is on its way to another node"),
    (InvalidResponse, "away", "what answers there is no Redis"),
)
_BY_WORD: dict[str, tuple[Kind, str]] = {
    "WRONGTYPE": ("wrong-type", "the key {key} is not a stream"),
    "MISCONF": ("disk", "cannot write to its disk (MISCONF)"),
    "OOM": ("full", "out of memory (maxmemory)"),
    "READONLY": ("read-only", "a read-only replica"),
    "NOAUTH": ("auth", "a password is wanted"),
    "WRONGPASS": ("auth", "the user or password is refused"),
    "ACL": ("auth", "the user may not use the stream's commands"),
    "LOADING": ("away", "loading its data"),
    "NOPERM": ("auth", "the user may not use the stream's commands"),
    "max": ("clients", "no connection left (maxclients)"),
    "NOREPLICAS": ("read-only", "too few replicas to write (NOREPLICAS)"),
}
"""By the first word of an error that redis-py gives no class of its own."""


def _tls_trouble(error: BaseException | None) -> str | None:
    """What is wrong with the encryption, where that is what an error goes back to."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "TLS fails; is it a rediss:// port?"
    return None
