"""The bounds that are counted while logpipe runs: who may still read, and how fast one may send.

docs/limits.md has all bounds, these and those of one request.
"""

import asyncio
import ipaddress
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import NamedTuple
from weakref import WeakValueDictionary

from starlette.types import Scope

from logpipe.problems import Problem
from logpipe.settings import Settings
from logpipe.turns import Run, Turns

NAMES = (
    "body", "event", "batch", "metadata_keys", "metadata_depth", "head", "head_time", "body_time",
    "inflight", "rate", "subscribers", "subscribers_per_client", "groups", "syslog_connections",
    "connections", "keys", "stream_bytes", "stream_age", "scans", "look_back", "answers",
    "answer_rate", "filter_steps", "pipeline", "idle_connections", "syslog_time", "body_frames",
    "redis_connections", "handshakes", "handshake_time", "heads", "acks", "wrong_tokens",
    "sessions",
)  # fmt: skip
"""What `logpipe_limited_total` tells apart."""

BURST_S = 5.0
"""What a sender that was quiet may send at once, as seconds of its rate."""

ALWAYS_EVENTS = 1_000
"""Events of a batch that is accepted however low the rate is: shippers do not know the rate."""

STREAM_SHARE = 4
"""One request may append this part of what the stream keeps: a quarter of TRIM_MAXLEN's events, and
of TRIM_MAXBYTES."""

LEAST_SHARE = 100
"""Events that a request may have however small TRIM_MAXLEN is: a node of the stream holds as many,
and only whole nodes are trimmed."""
RETURNS_A_SECOND = 1_000
"""Subscribers of one process that are asked to come back in one second: half as many as a process
that takes its place can connect in that time (2,100, docs/performance.md)."""

MAX_SENDERS = 10_000
"""Senders whose rate is remembered; those that sent longest ago are forgotten."""


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 network of /64, which one host has."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


def sender_of(scope: Scope, token: str | None) -> str:
    """Whose rate a request counts for: the token's, which was admitted, else the address's."""
    if token:
        return f"token {token}"
    return requester_of(scope)


def requester_of(scope: Scope) -> str:
    """The client that a request came from; empty where that is not known."""
    client = scope.get("client")
    return client_of(client[0]) if client else ""


class LargestBatch(NamedTuple):
    """Events that one request may have, and what says so."""

    events: int
    why: str


def largest_batch(settings: Settings) -> LargestBatch:
    """The least of what the settings say: MAX_BATCH_EVENTS, a part of TRIM_MAXLEN, so that no
    request erases the stream, and what a sender's rate lets pass at once."""
    share = max(LEAST_SHARE, settings.trim_maxlen // STREAM_SHARE)
    found = [
        LargestBatch(settings.max_batch_events, "MAX_BATCH_EVENTS"),
        LargestBatch(share, "a quarter of TRIM_MAXLEN"),
    ]
    if settings.rate_per_token:
        burst = int(settings.rate_per_token * BURST_S)
        found.append(
            LargestBatch(max(ALWAYS_EVENTS, burst), f"{BURST_S:.0f} seconds of RATE_PER_TOKEN")
        )
    return min(found, key=lambda each: each.events)


class Rates:
    """So many events a second a sender, `BURST_S` seconds of them at once.

    A request is charged one event when it begins, and its others once their number is known. A
    batch may take more than is left (up to `largest_batch`): those after it wait until that is
    paid for, so that in the long run the rate holds.
    """

    def __init__(self, per_s: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._now = now
        self._paid_at: OrderedDict[str, float] = OrderedDict()
        """When a sender may send all of its burst again."""

    def wait_s(self, sender: str) -> float:
        """How long until this sender may send one event more; 0: it may now."""
        wait_s = self._owed_s(sender) - (BURST_S - 1 / self._per_s)
        return wait_s if wait_s > 1e-6 else 0.0

    def _owed_s(self, sender: str) -> float:
        """How long until this sender may send all of its burst again."""
        return self._paid_at.get(sender, 0.0) - self._now()

    def begin(self, sender: str) -> None:
        """Charges a request that begins one event. Raises a 429 `Problem` for a sender that has to
        wait, before anything of the request is read."""
        if self.wait_s(sender):
            raise self._refusal(sender)
        self.spend(sender, 1)

    def charge(self, sender: str, events: int) -> None:
        """Charges a request that has begun for all its events but the one of `begin`. Raises a 429
        `Problem` where others of the sender, which began at the same time, have taken more than
        there was."""
        if events > 1:
            if self._owed_s(sender) > BURST_S + 1e-6:
                raise self._refusal(sender)
            self.spend(sender, events - 1)

    def give_back(self, sender: str, events: int) -> None:
        """Takes back the charge of events that were not stored, apart from the one of `begin`."""
        if events > 1 and sender in self._paid_at:
            self._paid_at[sender] -= (events - 1) / self._per_s

    def _refusal(self, sender: str) -> Problem:
        return Problem(
            429,
            f"More than {self._per_s} events a second (RATE_PER_TOKEN).",
            headers={"Retry-After": str(math.ceil(self.wait_s(sender)))},
            hits={"rate": 1},
        )

    def spend(self, sender: str, events: int) -> None:
        """Counts events that are sent."""
        self._paid_at[sender] = (
            max(self._paid_at.get(sender, 0.0), self._now()) + events / self._per_s
        )
        self._paid_at.move_to_end(sender)
        if len(self._paid_at) > MAX_SENDERS:
            self._paid_at.popitem(last=False)


@contextmanager
def charged(rates: Rates | None, sender: str | None, events: int, stored: int) -> Iterator[None]:
    """A context in which the events of a request are stored; without rates or a sender it does
    nothing. They are charged as by `Rates.charge`; the `stored` ones of them are given back where
    they could not be, for want of room or of Redis: the sender is asked to send them again."""
    if rates is None or sender is None:
        yield
        return
    rates.charge(sender, events)
    try:
        yield
    except Problem as problem:
        if problem.status in (413, 503):
            rates.give_back(sender, stored)
        raise


class Seats:
    """The subscribers of a process: so many in all, and of each client (0: as many as there are).

    Apart from all that has to do with sending: readers take nothing from writers.
    """

    def __init__(self, most: int, most_per_client: int = 0) -> None:
        self.most = most
        self.most_per_client = most_per_client
        self.taken = 0
        self.returns = Returns()
        """For those whose streams end."""
        self.turns = Turns()
        """For what each subscriber is sent: filtering, encoding, rows of the page."""
        self.parsing = Turns()
        """For the filters of requests, of all endpoints together."""
        self._of_client: Counter[str] = Counter()
        self._subscribers = _Lanes()
        self._filters = _Lanes()

    def lacking(self, address: str) -> str:
        """The name of the limit where there is no seat for a client; empty where there is one."""
        if self.taken >= self.most:
            return "subscribers"
        if 0 < self.most_per_client <= self._of_client[client_of(address)]:
            return "subscribers_per_client"
        return ""

    def take(self, address: str) -> str:
        """Takes a seat, to be given back by `leave`; the name of the limit where there is none."""
        client = client_of(address)
        if limit := self.lacking(address):
            return limit
        self.taken += 1
        self._of_client[client] += 1
        return ""

    def leave(self, address: str) -> None:
        """Gives a seat back."""
        client = client_of(address)
        self.taken -= 1
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]

    async def in_turn(self, address: str, work: Iterator[None]) -> None:
        """As `turns.run`, with one subscriber of each client at a time in the queue for a turn: a
        subscriber waits for one turn of each other client, however many subscribers that has."""
        await self._subscribers.run(self.turns, address, work)

    def parsing_for(self, scope: Scope) -> Run:
        """As `parsing.run`, for the filter of one request: with one request of each client at a
        time in the queue for a turn."""
        return partial(self._filters.run, self.parsing, requester_of(scope))

    def why(self, limit: str) -> str:
        """What one is told who got none."""
        if limit == "subscribers":
            return f"{self.most} subscribers are connected here already (MAX_SUBSCRIBERS)"
        return (
            f"{self.most_per_client} subscribers of this address are connected here already"
            " (MAX_SUBSCRIBERS_PER_CLIENT)"
        )


class Returns:
    """Turns for subscribers to come back whose streams this process ends, `RETURNS_A_SECOND` of
    them in each second, however many streams end together and for whatever reason."""

    def __init__(
        self, a_second: float = RETURNS_A_SECOND, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._each_s = 1 / a_second
        self._now = now
        self._free_at = 0.0

    def wait_s(self) -> float:
        """Takes the next turn; how many seconds it is away."""
        now = self._now()
        turn = max(now, self._free_at)
        self._free_at = turn + self._each_s
        return turn - now


class FairSeats:
    """Seats for short work, for which clients wait in turn: a client that asks for many at the same
    time waits longer, and the others do not."""

    def __init__(self, seats: int) -> None:
        self.free = seats
        """Seats that are not taken."""
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def seat(self, address: str) -> AsyncIterator[None]:
        """A seat for the client at an address, given back at the end of the context."""
        if self.free:
            self.free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(client_of(address), deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._give()
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        """Gives a seat to the client that has waited longest; its others wait for all clients."""
        while self._waiting:
            client, turns = self._waiting.popitem(last=False)
            while turns:
                turn = turns.popleft()
                if not turn.done():  # else it was cancelled
                    if turns:
                        self._waiting[client] = turns
                    turn.set_result(None)
                    return
        self.free += 1


class _Lanes:
    """For each client with work under way, a lock for which its works queue."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, turns: Turns, address: str, work: Iterator[None]) -> None:
        """As `turns.run`, with one work of each client at a time in the queue for a turn."""
        lock = self._locks.setdefault(client_of(address), asyncio.Lock())
        done = False
        while not done:
            async with lock:
                done = await turns.turn(work)
