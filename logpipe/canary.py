"""The canary: a small event that goes all the way, from a collector to a subscriber.

Each collector process appends one every CANARY_S, numbered; each distributor process notes how old
they are when its live readers have had them, and which do not come.
They are events of the users' stream like others: `-source:logpipe.canary` hides them. No sender can
fake one: its source is reserved, and it is signed with a secret that is kept beside the stream.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec

from logpipe.event import MAX_TS_UNIX_MS, Event, StoredEvent, encode
from logpipe.fanout.hub import Hub
from logpipe.metrics import Metrics
from logpipe.problems import Problem, Unavailable
from logpipe.stream import Append, Appended

SOURCE = "logpipe.canary"

MAX_INSTANCES = 256
"""Collector processes whose numbers are remembered; those heard of longest ago are forgotten."""
MAX_LEFT_OUT = 100_000
"""Numbers that one canary may leave out: those of a day, at one a second. A larger number begins
anew, and counts none as lost."""
KNOWN_SECRETS = 2
"""Secrets that a distributor takes: the one of now, and the one before, for what was on its way."""
MAX_AGE_MS = 86_400_000
"""No canary is taken to be older, whatever it says itself; nor from the future: clocks differ."""


class Mark(msgspec.Struct, frozen=True):
    """What tells one canary from another: the collector process that sent it, and its number."""

    instance: Annotated[str, msgspec.Meta(max_length=64)]
    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class _Signed(msgspec.Struct, frozen=True):
    """The metadata of a canary."""

    instance: Annotated[str, msgspec.Meta(max_length=64)]
    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    signature: Annotated[str, msgspec.Meta(max_length=64)]


def canary(mark: Mark, secret: bytes) -> bytes:
    """The event, as the stream holds it."""
    now_ms = time.time_ns() // 1_000_000
    signed = {**msgspec.to_builtins(mark), "signature": signature_of(mark, now_ms, secret)}
    event = Event(SOURCE, f"canary {mark.number}", "TRACE", now_ms, signed)
    return encode([event], now_ms)[0]


def signature_of(mark: Mark, sent_ms: int, secret: bytes) -> str:
    """The signature of a canary that was sent at that time: HMAC-SHA-256, in hexadecimal."""
    signed = msgspec.json.encode([mark.instance, mark.number, sent_ms])
    return hmac.new(secret, signed, hashlib.sha256).hexdigest()


async def send_canaries(
    append: Callable[[Append], Awaitable[Appended]],
    secret: Callable[[], Awaitable[bytes]],
    metrics: Metrics,
    every_s: float,
) -> None:
    """Sends one every `every_s` seconds until it is cancelled, signed with what `secret` returns.

    A number is used up when the append was confirmed: only what was acknowledged can be lost.
    """
    mark = Mark(secrets.token_hex(8), 1)
    while True:
        try:
            await append(Append([canary(mark, await secret())]))
        except Problem:  # Redis is away, or takes nothing: logged elsewhere
            pass
        else:
            metrics.canary_sent.inc()
            mark = Mark(mark.instance, mark.number + 1)
        await asyncio.sleep(every_s)


async def await_canaries(hub: Hub, metrics: Metrics) -> None:
    """Notes, for ever, the canaries that come by the feed of this process.

    It reads the window behind the live readers, when they have been written to, and never the
    stream: a distributor that is behind has no more to do for being measured. (A window smaller
    than one read, SUBSCRIBER_QUEUE_LEN below BATCH_COUNT, may hide some.)
    """
    heard = Heard(metrics, hub.stream.secret.known)
    number = hub.window.next_number
    while True:
        change = hub.change
        number = max(number, hub.window.first_number)
        now_ms = time.time_ns() // 1_000_000
        while (batch := hub.window.get(number)) is not None:
            events = [entry.event for entry in batch.entries if entry.event.source == SOURCE]
            if events:
                await heard.note(events, now_ms)
            number += 1
        await change.wait()


class Heard:
    """The last number of each collector process, and what the metrics say of it.

    `secret` returns the stream's secret, None where there is none, or raises `Unavailable`.
    """

    def __init__(self, metrics: Metrics, secret: Callable[[], Awaitable[bytes | None]]) -> None:
        self._metrics = metrics
        self._secret = secret
        self._secrets: deque[bytes] = deque(maxlen=KNOWN_SECRETS)
        self._last: OrderedDict[str, int] = OrderedDict()

    async def note(self, events: Sequence[StoredEvent], now_ms: int) -> None:
        """Takes note of canaries that came together, and of none that is not signed.

        Where a signature is unknown, the secret is asked for once. Where there is no secret then,
        nothing is known of that process: its next canary is taken for its first.
        """
        asked = known = False
        for event in events:
            try:
                signed = msgspec.convert(event.metadata, _Signed)
            except msgspec.ValidationError:
                continue
            mark = Mark(signed.instance, signed.number)
            if not asked and not self._is_genuine(mark, event, signed.signature):
                asked, known = True, await self._ask()
            if self._is_genuine(mark, event, signed.signature):
                self._note(mark, event, now_ms)
            elif not known:
                self._last.pop(mark.instance, None)

    async def _ask(self) -> bool:
        """Asks for the secret of now; whether there is one."""
        try:
            secret = await self._secret()
        except Unavailable:
            return False
        if secret is not None and secret not in self._secrets:
            self._secrets.append(secret)
        return secret is not None

    def _is_genuine(self, mark: Mark, event: StoredEvent, signature: str) -> bool:
        sent_ms = event.ts_unix_ms
        if sent_ms is None or not 0 <= sent_ms <= MAX_TS_UNIX_MS:
            return False
        return any(
            hmac.compare_digest(signature_of(mark, sent_ms, secret).encode(), signature.encode())
            for secret in self._secrets
        )

    def _note(self, mark: Mark, event: StoredEvent, now_ms: int) -> None:
        """The first of a process says nothing of those before it; one that comes again, because its
        append was confirmed to nobody, counts once."""
        last = self._last.get(mark.instance, mark.number - 1)
        if mark.number <= last:
            return
        left_out = mark.number - last - 1
        self._metrics.canary_received.inc()
        self._metrics.canary_lost.inc(left_out if left_out <= MAX_LEFT_OUT else 0)
        age_ms = now_ms - (event.ts_unix_ms or now_ms)
        self._metrics.canary_latency_seconds.observe(min(max(0, age_ms), MAX_AGE_MS) / 1000)
        self._last[mark.instance] = mark.number
        self._last.move_to_end(mark.instance)
        if len(self._last) > MAX_INSTANCES:
            self._last.popitem(last=False)
