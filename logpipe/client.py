"""The other roles over HTTP: what a page uses whose process runs neither of them.

`RemoteDistributor` and `RemoteCollector` are the twins of a subscription to the hub and of
`collector.submit`, and keep the same promises: a lost connection is resumed after the last id.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self

import httpx
import msgspec

from logpipe import sse
from logpipe.continuity import Cursor, Gap
from logpipe.event import NOT_DECODED, Entry, StoredEvent
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import StreamId, parse_id
from logpipe.messages import Batch, Bye, Hello, Item, Message, Notice, Progress, Start
from logpipe.problems import Problem
from logpipe.settings import Settings
from logpipe.subscription import goodbye

log = logging.getLogger("logpipe.client")

CONNECT_TIMEOUT_S = 3.0
SILENCE_S = 60.0
"""A stream without even a heartbeat for so long is dead; HEARTBEAT_S is 15 by default, and three
of them where it is longer."""

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 3.0
"""The pause between two attempts doubles from the first to the last, with jitter."""

QUEUE_LEN = 64
"""Items read ahead for one page; then the distributor is read no further."""

UNKNOWN_ID = "unknown"
"""Sent for a Last-Event-ID that was none, so that the distributor tells the same gap."""

CUT_OFF = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""The collector may have had the request: it is sent once more, with the same key."""

_event = msgspec.json.Decoder(StoredEvent)


def http_client() -> httpx.AsyncClient:
    """One pool of connections for all pages, without a limit: each open page holds one."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None),
        timeout=httpx.Timeout(10.0, connect=CONNECT_TIMEOUT_S),
        trust_env=False,
    )


class RemoteCollector:
    """Sends one event's JSON to COLLECTOR_URL."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient) -> None:
        self._url = f"{settings.collector_url.rstrip('/')}/ingest"
        self._headers = {"Content-Type": "application/json", **_bearer(settings.ingest_tokens)}
        self._http = http

    async def __call__(self, event: bytes) -> str:
        """The id of the stored event. Raises a `Problem`: the collector's own, a 502 or a 503."""
        headers = {**self._headers, "Idempotency-Key": str(uuid.uuid4())}
        try:
            try:
                answer = await self._http.post(self._url, content=event, headers=headers)
            except CUT_OFF:
                answer = await self._http.post(self._url, content=event, headers=headers)
        except httpx.HTTPError as error:
            detail = f"The collector cannot be reached: {_shown(error)}"
            raise Problem(503, detail, headers={"Retry-After": "1"}) from None
        return _stored_id(answer)


def _stored_id(answer: httpx.Response) -> str:
    status = answer.status_code
    if status in (401, 403):
        # Not passed on: it is about this process's token, not about the user's.
        raise Problem(502, f"The collector refuses this page's token ({status}): INGEST_TOKENS.")
    try:
        document = answer.json()
        if status == 202:
            return str(document["id"])
        detail, errors = str(document["detail"]), document.get("errors", [])
    except (ValueError, LookupError, TypeError):
        raise Problem(502, f"What answers as the collector is none ({status}).") from None
    passed_on = {k: v for k, v in answer.headers.items() if k == "retry-after"}
    raise Problem(status if status >= 400 else 502, detail, headers=passed_on, errors=errors)


class RemoteDistributor:
    """Subscribes at DISTRIBUTOR_URL."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient) -> None:
        self.url = f"{settings.distributor_url.rstrip('/')}/subscribe"
        self.headers = {"Accept": sse.MEDIA_TYPE, **_bearer(settings.read_tokens)}
        self.heartbeat_s = settings.heartbeat_s
        self.http = http
        self.open: set[RemoteSubscription] = set()
        self._closing = False

    def __call__(self, start: Start, chosen: Filter) -> "RemoteSubscription":
        """A subscription; enter it to connect."""
        return RemoteSubscription(self, start, chosen)

    def opened(self, subscription: "RemoteSubscription") -> None:
        """Called by a subscription that was entered."""
        self.open.add(subscription)
        if self._closing:
            subscription.end("the server is stopping")

    def close(self) -> None:
        """Ends all subscriptions with a `Bye`, and those to come."""
        self._closing = True
        for subscription in self.open:
            subscription.end("the server is stopping")


class RemoteSubscription:
    """One subscription over as many connections as it takes.

    Each of them begins with a `Hello`, so that one after a `Notice` says that it goes on.
    """

    client = ""
    confirms = False
    filter = EVERYTHING
    """The distributor has filtered already."""

    def __init__(self, distributor: RemoteDistributor, start: Start, chosen: Filter) -> None:
        self._distributor = distributor
        self._parameters = _parameters(start, chosen)
        resume = UNKNOWN_ID if start.unknown else None
        self._after = str(start.resume) if start.resume is not None else resume
        self._from_now = start in (Start(), Start(on_lag="skip"))
        self.connected_ms = time.time_ns() // 1_000_000
        self._queue: asyncio.Queue[Item] = asyncio.Queue(QUEUE_LEN)
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._told = ""
        self._retry_s = FIRST_RETRY_S

    def __enter__(self) -> Self:
        self._task = asyncio.create_task(self._follow(), name="remote subscription")
        self._task.add_done_callback(self._on_done)
        self._distributor.opened(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._distributor.open.discard(self)
        if self._task is not None:
            self._task.cancel()

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            log.error("a remote subscription has died", exc_info=task.exception())
            self.end("an error of this server")

    def end(self, reason: str) -> None:
        """Ends it with a `Bye`. What waits is dropped: the cursor of the reader is before it."""
        if self._task is not None:
            self._task.cancel()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(goodbye(reason))

    async def next(self) -> Sequence[Item] | None:
        """The next items: none when a heartbeat is due, None when the subscription is over."""
        if self._over:
            return None
        try:
            async with asyncio.timeout(self._distributor.heartbeat_s):
                items = [await self._queue.get()]
        except TimeoutError:
            return []
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        self._over = isinstance(items[-1], Bye)
        return items

    async def sent(self) -> None:
        """Nothing: a broadcast is not acknowledged."""

    async def _follow(self) -> None:
        """Reads for ever; the one loop that reconnects."""
        while True:
            parser = sse.Parser()
            trouble = "the distributor has ended the stream"
            try:
                async with aclosing(self._items(parser)) as items:
                    async for item in items:
                        await self._queue.put(item)
                        self._passed(item)
            except (httpx.HTTPError, *NOT_DECODED, LookupError, TypeError, ValueError) as error:
                trouble = _trouble(error)
            if trouble != self._told:
                self._told = trouble
                await self._queue.put(Notice(trouble))
            asked_s = (parser.retry_ms or 0) / 1000
            await asyncio.sleep(max(asked_s, self._retry_s * random.uniform(0.7, 1.3)))  # noqa: S311
            self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)

    def _passed(self, item: Item) -> None:
        """Moves the cursor: only now, so that what was not queued is asked for again."""
        match item:
            case Batch():
                self._after = str(item.end.id)
            case Gap():
                self._after = str(item.resume)
            case Hello(id) | Progress(id):
                self._after = str(id)
        self._told = ""
        if not isinstance(item, Hello):
            self._retry_s = FIRST_RETRY_S

    async def _items(self, parser: sse.Parser) -> AsyncGenerator[Item]:
        """What one connection gives. Raises httpx.HTTPError, or as `_taken` does."""
        headers = dict(self._distributor.headers)
        parameters = dict(self._parameters)
        if self._after is not None:
            headers["Last-Event-ID"] = self._after
        elif self._from_now and self._told:
            # The page was there before the distributor: what was sent since then is new to it.
            parameters["since"] = f"{self.connected_ms}-0"
        silence_s = max(SILENCE_S, 3 * self._distributor.heartbeat_s)
        stream = self._distributor.http.stream(
            "GET",
            self._distributor.url,
            params=parameters,
            headers=headers,
            timeout=httpx.Timeout(CONNECT_TIMEOUT_S, read=silence_s),
        )
        async with stream as response:
            response.raise_for_status()
            if not response.headers.get("content-type", "").startswith(sse.MEDIA_TYPE):
                raise ValueError("what answers there is no distributor")
            async for text in response.aiter_text():
                for item in _taken(parser.feed(text)):
                    yield item


def _taken(told: Iterator[sse.ServerSentEvent]) -> Iterator[Item]:
    """Items of events as they came; runs of plain ones become one batch.

    Raises `NOT_DECODED`, LookupError, TypeError or ValueError for what no distributor sends.
    """
    run: list[Entry] = []
    for each in told:
        if each.event == "message":
            data = each.data.encode()
            run.append(Entry(parse_id(each.id), data, _event.decode(data)))
            continue
        if run:
            yield _batch(run)
            run = []
        if (message := _named(each)) is not None:
            yield message
    if run:
        yield _batch(run)


def _named(told: sse.ServerSentEvent) -> Message | None:
    """The message of a named event; None for those that are about the connection alone."""
    data = msgspec.json.decode(told.data)
    match told.event:
        case "gap":
            ends = parse_id(data["after"]), parse_id(data["before"])
            return Gap(data["reason"], *ends, data["count"], parse_id(told.id))
        case "progress":
            return Progress(parse_id(told.id))
        case "hello":
            first, last = _id(data.get("first_id")), _id(data.get("last_id"))
            return Hello(parse_id(told.id), first, last, "broadcast", data["version"])
    return None


def _batch(run: list[Entry]) -> Batch:
    return Batch(Cursor(run[0].id.before()), Cursor(run[-1].id), run)


def _parameters(start: Start, chosen: Filter) -> dict[str, str]:
    """The query of `/subscribe` for a start and a filter."""
    given: Mapping[str, Any] = {
        "delivery": "broadcast",
        "on_lag": start.on_lag,
        "since": start.since,
        "tail": start.tail,
        "q": chosen.query,
    }
    return {name: str(value) for name, value in given.items() if value not in (None, "")}


def _bearer(tokens: Sequence[str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}


def _id(text: str | None) -> StreamId | None:
    return parse_id(text) if text else None


def _trouble(error: Exception) -> str:
    """One sentence for the page, the same each time."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the distributor refuses this page's token ({status}): READ_TOKENS"
        return f"the distributor answers {status}"
    if isinstance(error, httpx.HTTPError):
        return f"the distributor cannot be reached: {_shown(error)}"
    return f"the distributor is not understood: {_shown(error)}"


def _shown(error: Exception) -> str:
    return str(error) or type(error).__name__
