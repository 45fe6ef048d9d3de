"""Which connections are admitted, which are closed for others, and who has a turn."""

import asyncio
import contextvars
import heapq
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from uvicorn.server import ServerState

STEPS_AT_ONCE = 2
"""Steps in one turn of the event loop, of all connections together. Each may begin a request, of
which the slowest (the page, `/metrics`) take some 5 ms until they first wait."""

TURN_S = 0.002
"""Seconds after which no further step is made in the same turn of the event loop."""

CROWDED_PERCENT = 80
"""Of the connections that there is room for: beyond it idle ones are closed for new ones."""

BATCH_PERCENT = 2
"""Of the connections that there is room for: this part is closed at once, because all clients are
looked at to choose the connections."""

MAX_HANDSHAKES = 256
"""Handshakes of TLS under way: each takes 110 KB (measured), a connection over TLS 35 KB."""

MAX_HEADS_BYTES = 8 * 1024 * 1024
"""Memory of large heads of requests that are coming or under way, as `protocol` estimates it: 50 of
the largest ones. Further ones are refused."""

LOOK_AGAIN_S = 0.1
"""Seconds until idle connections are looked for again after fewer were found than wanted."""

LAST_S = 0.2
"""What a connection without a request is left open at the end: its client may be sending one."""

Limited = Callable[[Mapping[str, int]], None]
"""Is called with the names of `limits.NAMES` that were hit, and how often each."""


class Turns:
    """Steps of connections with more to do than one request. Each client in turn has one made, of
    its own in the order in which they were added.

    However many connections send more than they wait for, other callbacks of the event loop run
    after `STEPS_AT_ONCE` steps or `TURN_S` seconds.
    """

    def __init__(self) -> None:
        self._steps: OrderedDict[str, _Steps] = OrderedDict()
        self._runs = False
        # Not the context of the request whose answer leads to a step: its id would go on.
        self._context = contextvars.Context()

    def add(self, step: Callable[[], None], client: str, *, urgent: bool = False) -> None:
        """Has a step of a client called soon, once; urgent ones before its others."""
        steps = self._steps.setdefault(client, _Steps(deque(), deque()))
        (steps.urgent if urgent else steps.others).append(step)
        if not self._runs:
            self._run_soon()

    def _run_soon(self) -> None:
        self._runs = True
        asyncio.get_running_loop().call_soon(self._run, context=self._context)

    def _run(self) -> None:
        until = time.monotonic() + TURN_S
        try:
            for _ in range(STEPS_AT_ONCE):
                self._next()()
                if not self._steps or time.monotonic() > until:
                    break
        finally:
            self._runs = False
            if self._steps:
                self._run_soon()

    def _next(self) -> Callable[[], None]:
        """The next step of the client that has waited longest; its others wait for all clients."""
        client, steps = self._steps.popitem(last=False)
        step = (steps.urgent or steps.others).popleft()
        if steps.urgent or steps.others:
            self._steps[client] = steps
        return step


class _Steps(NamedTuple):
    """What one client waits for."""

    urgent: deque[Callable[[], None]]
    others: deque[Callable[[], None]]


class Connection(Protocol):
    """What is to be known of a connection to choose those to close."""

    @property
    def begun(self) -> int:
        """How much of a request has come: 0 for nothing, 1 for part of a head, 2 for part of a
        body."""

    def close_for_room(self) -> None:
        """Closes it at once."""


class Peer:
    """The connections of one client, as `limits.client_of` tells them apart."""

    def __init__(self) -> None:
        self.connections = 0
        self.unused: dict[Connection, None] = {}
        """Those without a request that has come whole, in the order in which they became so. Each
        puts and removes itself."""

    def oldest(self, wanted: int) -> list[Connection]:
        """At most `wanted` unused ones: idle ones, then those of which part of a head has come,
        then those of which part of a body has."""
        chosen: tuple[list[Connection], ...] = ([], [], [])
        for connection in self.unused:
            if len(chosen[0]) == wanted:
                break
            chosen[connection.begun].append(connection)
        return [connection for each in chosen for connection in each][:wanted]


class Handshakes:
    """The handshakes of TLS that are under way, by client. Beyond `most` of them a new one closes
    the oldest of the client that has the most."""

    def __init__(self, limited: Limited, most: int = MAX_HANDSHAKES) -> None:
        self._limited = limited
        self._most = most
        self._count = 0
        self._of: dict[str, dict[Connection, None]] = {}

    def begin(self, connection: Connection, client: str) -> None:
        """Adds the handshake of a connection, which `end` removes. May close another one."""
        self._of.setdefault(client, {})[connection] = None
        self._count += 1
        if self._count > self._most:
            crowded = max(self._of, key=lambda client: len(self._of[client]))
            oldest = next(iter(self._of[crowded]))
            self.end(oldest, crowded)
            self._limited({"handshakes": 1})
            oldest.close_for_room()

    def end(self, connection: Connection, client: str) -> None:
        """Removes it, if it is there."""
        handshakes = self._of.get(client, {})
        if connection in handshakes:
            del handshakes[connection]
            self._count -= 1
            if not handshakes:
                del self._of[client]


class BoundedState(ServerState):
    """What the connections of a server share."""

    def __init__(self, limited: Limited, most_connections: int) -> None:
        super().__init__()
        self.limited = limited
        self.turns = Turns()
        self.handshakes = Handshakes(limited)
        self.draining = False
        """Whether each connection ends with its next answer."""
        self.ending = False
        """Whether connections without a request end, too."""
        self.heads_bytes = 0
        """Memory of large heads, by the protocol's estimate."""
        self._peers: dict[str, Peer] = {}
        self._most = most_connections
        self._crowded = most_connections * CROWDED_PERCENT // 100
        self._batch = max(1, most_connections * BATCH_PERCENT // 100)
        self._closing: set[Connection] = set()
        self._look_at = 0.0

    def hold_head(self, size: int) -> bool:
        """Counts `size` bytes of a large head until `release_head`; False where they do not fit."""
        if self.heads_bytes + size > MAX_HEADS_BYTES:
            self.limited({"heads": 1})
            return False
        self.heads_bytes += size
        return True

    def release_head(self, size: int) -> None:
        """Gives back what `hold_head` has counted."""
        self.heads_bytes -= size

    def join(self, address: str) -> Peer:
        """The peer of a new connection, which leaves it by `leave`."""
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer()
        peer.connections += 1
        return peer

    def leave(self, connection: Connection, address: str) -> None:
        """A connection has been lost."""
        self._closing.discard(connection)
        peer = self._peers[address]
        peer.unused.pop(connection, None)
        peer.connections -= 1
        if not peer.connections:
            del self._peers[address]

    def has_room(self) -> bool:
        """Whether there is room for the connection that was added last.

        Beyond `CROWDED_PERCENT` the peer with the most unused connections loses those that were
        unused for longest; where it has too few, so does the next one.
        """
        used = len(self.connections) - len(self._closing)
        if used > self._crowded and time.monotonic() >= self._look_at:
            wanted = used - self._crowded + self._batch
            closed = self._close_unused(wanted)
            if closed < wanted:
                self._look_at = time.monotonic() + LOOK_AGAIN_S
        # Those that close are open until the event loop has turned.
        return len(self.connections) <= self._most

    def _close_unused(self, wanted: int) -> int:
        """Closes `wanted` unused connections, or fewer where there are fewer; returns how many."""
        chosen: list[Connection] = []
        peers = heapq.nlargest(wanted, self._peers.values(), key=lambda peer: len(peer.unused))
        for peer in peers:
            if len(chosen) == wanted or not peer.unused:
                break
            oldest = peer.oldest(wanted - len(chosen))
            for connection in oldest:
                del peer.unused[connection]
            chosen += oldest
        self._closing.update(chosen)
        for connection in chosen:
            connection.close_for_room()
        if chosen:
            self.limited({"idle_connections": len(chosen)})
        return len(chosen)
