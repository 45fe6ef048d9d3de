"""The one intake of all protocols: token, body, parser, append, answer."""

import asyncio
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple, cast
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from logpipe import auth
from logpipe.collector.answer import Answer, give
from logpipe.collector.appender import ANSWER_WITHIN_S, Appender
from logpipe.collector.body import read_body
from logpipe.collector.inflight import Held
from logpipe.collector.ingest import Bounds, require_length, scope_of
from logpipe.collector.receivers.packing import Packed, appends_of, at_once, packing
from logpipe.collector.receivers.protocol import (
    Batch,
    Outcome,
    Protocol,
    Request,
    raise_if_none_taken,
)
from logpipe.collector.receivers.rejections import Rejections
from logpipe.collector.receivers.unpacking import body_by_its_first_bytes, snappy_body
from logpipe.event import NOT_DECODED
from logpipe.limits import Rates, charged, sender_of
from logpipe.metrics import Metrics
from logpipe.problems import Problem
from logpipe.settings import Settings
from logpipe.stream import Append, Once, Rule, digest_of
from logpipe.tokens import Tokens
from logpipe.turns import in_thread

LARGE_BYTES = 64 * 1024
"""A larger body is read in a thread: its parser takes a few milliseconds or more."""

APPENDS_AT_ONCE = 1_000
"""Events with keys of their own that wait for Redis together."""

HELD_S = ANSWER_WITHIN_S
"""How long after its body a request may be refused at the latest, where the refusal waits for
Redis: four attempts without a pause, as official clients make, then outlast a restart."""

MAX_PARAMETERS = 100
"""Parameters of a query string."""


class Process(NamedTuple):
    """What all receivers of a process stand on."""

    settings: Settings
    tokens: Tokens
    appender: Appender
    metrics: Metrics
    rates: Rates | None = None


def request_of(scope: Scope, limit: int) -> Request:
    """The head of a request; of a header or parameter that comes twice, the first."""
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in reversed(scope["headers"])
    }
    try:
        text = scope["query_string"].decode("latin-1")
        query = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        query = []
    parameters = scope.get("path_params", {})
    return Request(headers, dict(reversed(query)), parameters, b"", limit, scope["method"])


class _Admitted(NamedTuple):
    """A request that may be read: its token, None where none is needed, and whose rate it is."""

    token: str | None
    sender: str


class _Key(NamedTuple):
    """An idempotency key of a request, and what another body means under it."""

    text: str
    rule: Rule


class _Read(NamedTuple):
    """A request whose body was read: its items, and its idempotency key."""

    batch: Batch
    packed: Packed
    once: Once | None


class Receiver:
    """The endpoint of one protocol, as an ASGI application."""

    def __init__(self, name: str, protocol: Protocol, process: Process) -> None:
        self._name = name
        self._protocol = protocol
        self._settings, self._tokens, self._appender, self._metrics, self._rates = process
        self._bounds = Bounds.of(self._settings)
        self._rejections = Rejections(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, every outcome in the protocol's own words."""
        request = request_of(scope, self._settings.max_body_bytes)
        held = Held(self._appender.inflight)
        try:
            admitted = self._admitted(scope, request)
            key = _key_of(self._protocol, request)
            with held:
                body = await self._body(request, receive, held)
                read = await self._read(request._replace(body=body), key)
                del body
            began = time.monotonic()
            outcomes = await self._take(read, admitted)
            answer = self._answered(request, read.batch, outcomes)
            held_back = self._protocol.answers_unavailable and any(map(_is_failure, outcomes))
            del read, outcomes  # nothing but the answer waits
            if held_back:
                await self._appender.health.recovered(began + HELD_S - time.monotonic())
        except ClientDisconnect:
            return
        except Problem as problem:
            self._metrics.count_limited(problem.hits)
            answer = self._protocol.refused(request, problem.with_traceback(None))
        except Exception:
            self._metrics.receiver_requests.labels(self._name, 500).inc()
            raise  # to be answered and logged as every fault
        self._metrics.receiver_requests.labels(self._name, answer.status).inc()
        await give(answer, receive, send, body_read=held.complete)

    def _admitted(self, scope: Scope, request: Request) -> _Admitted:
        """Who sends; raises a `Problem` for one who may not now."""
        token = admit(self._name, self._protocol, scope, request, self._tokens)
        if self._rates is None:
            return _Admitted(token, "")
        sender = sender_of(scope, token)
        self._rates.begin(sender)
        return _Admitted(token, sender)

    async def _body(self, request: Request, receive: Receive, held: Held) -> bytes:
        coding = request.headers.get("content-encoding", "").strip().lower()
        length = request.headers.get("content-length", "")
        limit = request.limit
        told = self._protocol.tells_packing
        if told and "," in coding:
            coding = ""  # a list of what might be, as one sender has it
        if coding == "snappy":
            return await snappy_body(await read_body(receive, "", length, limit, held), limit, held)
        body = await read_body(receive, coding, length, limit, held)
        return await body_by_its_first_bytes(body, limit, held) if told else body

    async def _read(self, request: Request, key: _Key | None) -> _Read:
        self._metrics.body_bytes.inc(len(request.body))
        steps = self._reading(request, key)
        if len(request.body) <= LARGE_BYTES and not self._protocol.holds_more(request):
            return await self._in_turns(steps)
        async with self._appender.inflight.reading:
            return await in_thread(lambda: at_once(steps))

    async def _in_turns(self, steps: Generator[None, None, _Read]) -> _Read:
        """What steps return. The first is taken at once; before each further one everything else
        has its turn, and among all requests one at a time is taken."""
        try:
            next(steps)
            while True:
                async with self._appender.inflight.seat:
                    await asyncio.sleep(0)
                    next(steps)
        except StopIteration as end:
            return cast(_Read, end.value)

    async def _take(self, read: _Read, admitted: _Admitted) -> list[Outcome]:
        """An outcome for each item. Events that could not be stored for want of room or of Redis
        are not charged: the sender is asked to send them again."""
        rates, sender, events = self._rates, admitted.sender, read.packed.events
        with charged(rates, sender, len(read.packed.problems), len(events)):
            self._appender.require_share(events)
            outcomes = await self._store(read, admitted.token)
        if rates is not None:
            rates.give_back(sender, sum(map(_is_failure, outcomes)))
        return outcomes

    def _answered(self, request: Request, batch: Batch, outcomes: Sequence[Outcome]) -> Answer:
        """The answer to outcomes, which are counted here, whether or not it refuses the request."""
        self._count(outcomes)
        try:
            return batch.answer(outcomes)
        except Problem as problem:
            return self._protocol.refused(request, problem.with_traceback(None))

    def _reading(self, request: Request, key: _Key | None) -> Generator[None, None, _Read]:
        """Reads a request in steps."""
        now_ms = time.time_ns() // 1_000_000
        try:
            batch = self._protocol.parse(request)
            packed = yield from packing(
                batch.items, self._bounds, self._settings.max_body_bytes, now_ms
            )
        except NOT_DECODED as error:
            raise Problem(400, f"The body cannot be read: {error}") from None
        if key is None:
            return _Read(batch, packed, None)
        digest = batch.digest or digest_of(request.body)
        return _Read(batch, packed, Once(key.text, digest, key.rule))

    async def _store(self, read: _Read, token: str | None) -> list[Outcome]:
        """An outcome for each item. Raises a `Problem` when Redis has taken nothing of them, unless
        it is unavailable and the protocol answers that itself."""
        batch, packed, once = read
        scope = scope_of(self._name, token)
        taken = [i for i, problem in enumerate(packed.problems) if problem is None]
        keys = [_within(f"{scope}item\n", batch.keys[i]) for i in taken] if batch.keys else ()
        once = _within(scope, once)
        stored = await self._append(list(appends_of(packed.events, keys, once)) if taken else [])
        if not (self._protocol.answers_unavailable and any(map(_is_failure, stored))):
            raise_if_none_taken(stored)
        given = iter(stored)
        return [problem or next(given) for problem in packed.problems]

    async def _append(self, appends: Sequence[Append]) -> list[Outcome]:
        """An outcome for each event; once some had to be put off, the rest is not tried.

        Events without a key come last: where the others are refused for want of room for their
        keys, the sender repeats the request, which would store events without a key again.
        """
        outcomes: dict[int, Outcome] = {}
        failed: Outcome | None = None
        for keyed in (True, False):
            places = [i for i, each in enumerate(appends) if (each.once is not None) == keyed]
            for at in range(0, len(places), APPENDS_AT_ONCE):
                some = places[at : at + APPENDS_AT_ONCE]
                if failed is not None:
                    outcomes.update(dict.fromkeys(some, failed))
                    continue
                results = await asyncio.gather(*(self._append_one(appends[i]) for i in some))
                outcomes.update(zip(some, results, strict=True))
                failed = next(filter(_is_failure, results), None)
        return [outcomes[i] for i, append in enumerate(appends) for _ in append.events]

    async def _append_one(self, append: Append) -> Outcome:
        try:
            return await self._appender.append(append)
        except Problem as problem:
            # Its frames would hold the events, and the outcomes it: a cycle.
            return problem.with_traceback(None)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        for problem in {id(each): each for each in outcomes if isinstance(each, Problem)}.values():
            self._metrics.count_limited(problem.hits)  # once, however many events it is due to
        rejected: list[Problem] = []
        failed = repeated = 0
        for outcome in outcomes:
            if not isinstance(outcome, Problem):
                repeated += outcome.repeated
            elif _is_failure(outcome):
                failed += 1
            else:
                rejected.append(outcome)
        self._rejections.add(rejected)
        counted = {"rejected": len(rejected), "failed": failed, "repeated": repeated}
        counted["accepted"] = len(outcomes) - sum(counted.values())
        for word, count in counted.items():
            if count:
                self._metrics.receiver_events.labels(self._name, word).inc(count)
        self._metrics.events_rejected.inc(len(rejected))


def _is_failure(outcome: Outcome) -> bool:
    """Whether it is not due to the item."""
    return isinstance(outcome, Problem) and outcome.status >= 500


def admit(
    name: str, protocol: Protocol, scope: Scope, request: Request, tokens: Tokens
) -> str | None:
    """The token, wherever the protocol has it; None where none is needed. Raises a 401, 403 or 429
    `Problem`."""
    if not tokens.ingest:
        return None
    token = protocol.token(request) or auth.token_of(request.headers.get("authorization"))
    if not token:
        raise auth.missing("token")
    return tokens.admit(scope, name, token, tokens.ingest)


def _within(scope: str, once: Once | None) -> Once | None:
    return once and Once(scope + once.key, once.digest, once.rule)


def _key_of(protocol: Protocol, request: Request) -> _Key | None:
    """The request's idempotency key: the protocol's own, else the header's. Raises a 400 `Problem`.

    The word before it keeps the kinds apart: a header's line end would have been refused.
    """
    if own := protocol.key(request):
        return _Key(f"own\n{own}", Rule.STORE)
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    require_length(key)
    return _Key(f"key\n{key}", Rule.REJECT)
