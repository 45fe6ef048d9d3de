"""The handler's bounded queue: events wait in it until a batch of them has been sent.

All methods may be called from any thread, also by a signal handler that interrupts one of them.
"""

import threading
import time
import uuid
from collections import deque
from typing import NamedTuple

MAX_HELD_BYTES = 16 * 1024 * 1024
"""JSON that waits or is being sent, whatever the number of events: the bound on memory."""

BATCH_EVENTS = 1_000
"""Of one request, the events that tell a loss among them: what a collector accepts whatever
RATE_PER_TOKEN is."""
BATCH_BYTES = 1024 * 1024
"""One request holds at most so much before compression: what proxies take unasked."""

QUEUE_FULL = "queue full"

MAX_REASONS = 20
"""Of losses that wait to be told: a server's words may be others each time."""

OTHER_REASONS = "other reasons"
"""Stands for those beyond."""


class Loss(NamedTuple):
    """Events that were dropped for one reason, since the unix time in milliseconds."""

    reason: str
    events: int
    since_ms: int


class Batch(NamedTuple):
    """Events of one request, the losses that it tells, and the key by which a resend is known."""

    events: list[bytes]
    losses: list[Loss]
    key: str


def batch(events: list[bytes], losses: list[Loss]) -> Batch:
    """A batch with a key of its own."""
    return Batch(events, losses, uuid.uuid4().hex)


class Outbox:
    """At most `capacity` events and `MAX_HELD_BYTES`, those being sent included.

    The newest is dropped when it is full: what waits then tells how the trouble began, the hole has
    one place, and a program in trouble does not pay for formatting what cannot be kept.
    """

    def __init__(self, capacity: int, interval: float) -> None:
        self.capacity = capacity
        self.interval = interval
        self.dropped = 0
        self.closed = False
        self.deadline = float("inf")  # after it (monotonic), nothing is sent any more
        self._given_up = False
        self.flowing = False  # the last request was taken: a loss can be told at once
        self._events: deque[bytes] = deque()
        self._bytes = 0  # of the events held
        self._added = self._done = 0
        self._urged = 0  # up to this one, events are not held back to fill a batch
        self._waiting = 0  # how many are in `wait`
        self._since = 0.0  # when the oldest waiting event came
        self._losses: dict[str, Loss] = {}
        # Reentrant: a signal handler or a destructor may log while its own thread is in here.
        self._changed = threading.Condition(threading.RLock())

    @property
    def held(self) -> int:
        """How many events wait or are being sent."""
        return self._added - self._done

    @property
    def abandoned(self) -> bool:
        """Whether what is held is not to be sent any more."""
        return self._given_up or time.monotonic() >= self.deadline

    @property
    def progress(self) -> tuple[int, int]:
        """How many events were added, and how many of them are settled."""
        return self._added, self._done

    @property
    def full(self) -> bool:
        return self.held >= self.capacity or self._bytes >= MAX_HELD_BYTES

    def put(self, event: bytes) -> bool:
        """Takes the event in, or counts it as dropped; whether it was taken."""
        with self._changed:
            if self.closed:
                self.drop("handler closed")
                return False
            if self.full or self._bytes + len(event) > MAX_HELD_BYTES:
                self.drop(QUEUE_FULL)
                return False
            self._events.append(event)
            self._bytes += len(event)
            self._added += 1
            if len(self._events) == 1:
                self._since = time.monotonic()
            if len(self._events) in (1, BATCH_EVENTS) or self._bytes >= BATCH_BYTES:
                self._changed.notify_all()
            return True

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts events as dropped; a later batch tells it."""
        with self._changed:
            self.dropped += count
            self._add_loss(Loss(reason, count, time.time_ns() // 1_000_000))

    def untold(self, losses: list[Loss]) -> None:
        """Takes back losses that could not be told."""
        with self._changed:
            for loss in losses:
                self._add_loss(loss)

    def _add_loss(self, loss: Loss) -> None:
        if loss.reason not in self._losses and len(self._losses) >= MAX_REASONS - 1:
            loss = loss._replace(reason=OTHER_REASONS)
        if known := self._losses.get(loss.reason):
            since = min(known.since_ms, loss.since_ms)
            loss = Loss(loss.reason, known.events + loss.events, since)
        self._losses[loss.reason] = loss
        self._changed.notify_all()

    def take(self) -> Batch | None:
        """Waits for the next batch, until one is full or its oldest event `interval` old.

        None when the outbox is closed and everything in it was taken.
        """
        with self._changed:
            while not (self._events or (self._losses and self.flowing)):
                if self.closed:
                    return None
                self._changed.wait()
            self._changed.wait_for(self._is_ripe, self._since + self.interval - time.monotonic())
            losses, self._losses = list(self._losses.values()), {}
            return batch(self._popped(BATCH_EVENTS - len(losses)), losses)

    def _is_ripe(self) -> bool:
        return (
            self.closed
            or len(self._events) >= BATCH_EVENTS
            or self._bytes >= BATCH_BYTES
            or self._urged > self._done
        )

    def _popped(self, most: int) -> list[bytes]:
        events: list[bytes] = []
        size = 0
        while self._events and len(events) < most:
            size += len(self._events[0])
            if events and size > BATCH_BYTES:
                break
            events.append(self._events.popleft())
        return events

    def settle(self, events: list[bytes]) -> None:
        """These events of the batch last taken need no more room: they are stored or dropped."""
        with self._changed:
            if not self._given_up:
                self._done += len(events)
                self._bytes -= sum(map(len, events))
                self._changed.notify_all()

    def pause(self, seconds: float, *, hurry: bool) -> bool:
        """Waits before a batch is sent again; with `hurry` only while nobody is in `wait`.

        Whether it was cut short.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: self.abandoned or (hurry and self._waiting > 0),
                min(seconds, max(0.0, self.deadline - time.monotonic())),
            )

    def wait(self, deadline: float) -> bool:
        """Has all that is held now sent; whether that was done by `deadline` (monotonic)."""
        with self._changed:
            target = self._urged = self._added
            self._waiting += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(
                    lambda: self._done >= target, max(0.0, deadline - time.monotonic())
                )
            finally:
                self._waiting -= 1

    def close(self) -> None:
        """Takes no more events; what is held is still sent."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def abandon(self) -> int:
        """Gives up what is held, and counts it as dropped. Returns how many events that were."""
        with self._changed:
            self.closed = self._given_up = True
            left = self.held
            self.dropped += left
            self._done = self._added
            self._events.clear()
            self._bytes = 0
            self._changed.notify_all()
            return left
