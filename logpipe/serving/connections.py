"""What the connections of a server share: turns at the event loop, and the room for them."""

import asyncio
import contextvars
import heapq
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Protocol, cast

from uvicorn.server import ServerState

STEPS_AT_ONCE = 8
"""Steps in one turn of the event loop, of all connections together. The slowest request that a step
may begin (`/metrics`) takes some 5 ms."""

TURN_S = 0.002
"""Seconds after which no further step is made in the same turn of the event loop."""

CROWDED_PERCENT = 80
"""Of the connections that there is room for: beyond it idle ones are closed for new ones."""

BATCH_PERCENT = 2
"""Of the connections that there is room for: so many are closed at once, because all connections
are looked at to choose them (3 ms for 10,000)."""

LOOK_AGAIN_S = 0.1
"""Seconds until idle connections are looked for again after fewer were found than wanted."""

Limited = Callable[[Mapping[str, int]], None]
"""Is called with the names of `limits.NAMES` that were hit, and how often each."""


class Turns:
    """Steps of connections with more to do than one request, in the order in which they were added.

    However many connections send more than they wait for, other callbacks of the event loop run
    after `STEPS_AT_ONCE` steps or `TURN_S` seconds.
    """

    def __init__(self) -> None:
        self._steps: deque[Callable[[], None]] = deque()
        # Not the context of the request whose answer leads to a step: its id would go on.
        self._context = contextvars.Context()

    def add(self, step: Callable[[], None]) -> None:
        """Has a step called soon, once."""
        self._steps.append(step)
        if len(self._steps) == 1:
            self._run_soon()

    def _run_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._run, context=self._context)

    def _run(self) -> None:
        until = time.monotonic() + TURN_S
        try:
            for _ in range(min(STEPS_AT_ONCE, len(self._steps))):
                # It stays in the queue while it runs, so that `add` schedules no second run.
                self._steps[0]()
                self._steps.popleft()
                if time.monotonic() > until:
                    break
        except BaseException:
            self._steps.popleft()
            raise
        finally:
            if self._steps:
                self._run_soon()


class Connection(Protocol):
    """What is to be known of a connection to choose those to close."""

    peer: str
    """The address as `limits.client_of` gives it."""

    @property
    def unused(self) -> bool:
        """Whether no request is under way; part of a head may have come."""

    @property
    def idle_since(self) -> tuple[bool, float]:
        """Whether part of a head has come, and since when no request is under way."""

    def close_for_room(self) -> None:
        """Closes it."""


class BoundedState(ServerState):
    """What the connections of a server share."""

    def __init__(self, limited: Limited, most_connections: int) -> None:
        super().__init__()
        self.limited = limited
        self.turns = Turns()
        self._most = most_connections
        self._crowded = most_connections * CROWDED_PERCENT // 100
        self._batch = max(1, most_connections * BATCH_PERCENT // 100)
        self._closing: set[Connection] = set()
        self._look_at = 0.0

    def admit(self, new: Connection) -> bool:
        """Whether there is room for a connection, which has been added.

        Beyond `CROWDED_PERCENT` the address with the most unused connections loses those that were
        unused for longest.
        """
        used = len(self.connections) - len(self._closing)
        if used > self._crowded and time.monotonic() >= self._look_at:
            wanted = used - self._crowded + self._batch
            others = cast("set[Connection]", self.connections) - {new}
            chosen = to_close(others, wanted)
            if len(chosen) < wanted:
                self._look_at = time.monotonic() + LOOK_AGAIN_S
            self._closing.update(chosen)
            for connection in chosen:
                connection.close_for_room()
            if chosen:
                self.limited({"idle_connections": len(chosen)})
            used -= len(chosen)
        return used <= self._most

    def forget(self, connection: Connection) -> None:
        """A connection has been lost."""
        self._closing.discard(connection)


def to_close(connections: Iterable[Connection], wanted: int) -> list[Connection]:
    """At most so many unused connections, of the address that has the most of them; where these are
    not enough, also of the next one. Of an address those come first that were idle for longest,
    then those of which part of a head has come."""
    unused = defaultdict[str, list[Connection]](list)
    for connection in connections:
        if connection.unused:
            unused[connection.peer].append(connection)
    chosen: list[Connection] = []
    for of_peer in heapq.nlargest(wanted, unused.values(), key=len):
        if len(chosen) == wanted:
            break
        chosen += heapq.nsmallest(wanted - len(chosen), of_peer, key=attrgetter("idle_since"))
    return chosen
