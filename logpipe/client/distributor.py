"""The live stream of a distributor over HTTP: one subscription that resumes by itself.

`RemoteDistributor` is the twin of the hub, and its subscriptions keep the same promise: after a
lost connection they go on after the last id.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self

import httpx
import msgspec

from logpipe import sse
from logpipe.client.connection import (
    CONNECT_TIMEOUT_S,
    MISDIRECTED,
    MISDIRECTED_REMEDY,
    bearer,
    shown,
)
from logpipe.client.items import items_of
from logpipe.continuity import Gap
from logpipe.event import NOT_DECODED
from logpipe.fanout.live import Writer
from logpipe.filters import EVERYTHING, Filter
from logpipe.handler.retry import Backoff, asks_to_retry
from logpipe.ids import StreamId
from logpipe.messages import Batch, Bye, Hello, Item, Notice, Progress, Start

log = logging.getLogger("logpipe.client")

SILENCE_S = 60.0
"""A stream without even a heartbeat for so long is dead; HEARTBEAT_S is 15 by default, and three
of them where it is longer."""

QUEUE_LEN = 64
"""Items read ahead for one subscriber; then the distributor is read no further."""

UNKNOWN_ID = "unknown"
"""Sent for a Last-Event-ID that was none, so that the distributor tells the same gap."""

ACK_TIMEOUT_S = 10.0
"""How long the answer to an acknowledgement may take."""

MAX_REFUSAL = 65_536
"""Bytes of a refusal that are read."""

UNREACHABLE = "the distributor cannot be reached"
"""How a `Notice` begins when there is no connection."""

NOT_US = (400, 401, 403)
"""The only refusals that count once the distributor was there: a proxy in front of one that
restarts answers 404 or a page of its own."""


class Refused(Exception):  # noqa: N818 - an outcome as a `Problem` is
    """An answer that no retry will change: its status and its problem document, empty where what
    answered is no distributor."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(f"the distributor answers {status}")
        self.status = status
        self.document = document


class RemoteDistributor:
    """Subscribes at a base URL, with the first of the tokens. `heartbeat_s` is how often an idle
    subscription gives nothing, so that its subscriber can write a heartbeat."""

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        *,
        tokens: Sequence[str] = (),
        heartbeat_s: float = 15.0,
    ) -> None:
        self.url = f"{url.rstrip('/')}/subscribe"
        self._ack_url = f"{url.rstrip('/')}/ack"
        self._tokens = tokens
        self.heartbeat_s = heartbeat_s
        self.http = http
        self.open: set[RemoteSubscription] = set()
        self._closing = False

    def __call__(
        self, start: Start, query: Mapping[str, str], *, insist: bool = True
    ) -> "RemoteSubscription":
        """A subscription; enter it to connect. `query` holds parameters of `/subscribe`, which the
        distributor judges. Who does not `insist` gets a refusal raised instead of a `Notice`."""
        return RemoteSubscription(self, start, query, insist=insist)

    @property
    def headers(self) -> dict[str, str]:
        """Those of a request, with the token that is the first now."""
        return {"Accept": sse.MEDIA_TYPE, **bearer(self._tokens)}

    async def acknowledge(self, group: str, member: str, ids: Sequence[StreamId]) -> int:
        """Acknowledges entries that a member of a group holds; how many it no longer held. Raises
        httpx.HTTPError, and `Refused` for an answer that is no success."""
        answer = await self.http.post(
            self._ack_url,
            params={"group": group, "member": member},
            headers=bearer(self._tokens),
            content="\n".join(map(str, ids)),
            timeout=httpx.Timeout(ACK_TIMEOUT_S),
        )
        if answer.status_code != 200:
            raise Refused(answer.status_code, await _document(answer))
        return int(answer.json()["unknown"])

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

    def __init__(
        self,
        distributor: RemoteDistributor,
        start: Start,
        query: Mapping[str, str],
        *,
        insist: bool,
    ) -> None:
        self._distributor = distributor
        self._insist = insist
        self._parameters = {**_parameters(start), **query}
        resume = UNKNOWN_ID if start.unknown else None
        self._after = str(start.resume) if start.resume is not None else resume
        self._from_now = not self._parameters.keys() & {"since", "tail"}
        self.connected_ms = time.time_ns() // 1_000_000
        self._queue: asyncio.Queue[Item | Refused] = asyncio.Queue(QUEUE_LEN)
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._greeted = False
        self._refused: Refused | None = None
        self._told = ""
        self._backoff = Backoff()

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
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a remote subscription has died", exc_info=error)
            self.end("an error of this server")

    def end(self, reason: str) -> None:
        """Ends it with a `Bye`. What waits is dropped: the cursor of the reader is before it."""
        if self._task is not None:
            self._task.cancel()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(Bye(reason))

    async def next(self) -> Sequence[Item] | None:
        """The next items: none when a heartbeat is due, None when the subscription is over.

        Raises `Refused` after all that came before it, unless it insists.
        """
        if self._refused is not None:
            raise self._refused
        if self._over:
            return None
        try:
            async with asyncio.timeout(self._distributor.heartbeat_s):
                first = await self._queue.get()
        except TimeoutError:
            return []
        items = list(self._waiting(first))
        if not items:
            return await self.next()  # a refusal and nothing before it
        self._over = isinstance(items[-1], Bye)
        return items

    def _waiting(self, item: Item | Refused) -> Iterator[Item]:
        """This item and those that wait; a refusal is the last and is kept."""
        while not isinstance(item, Refused):
            yield item
            if self._queue.empty():
                return
            item = self._queue.get_nowait()
        self._refused = item

    async def follow(self, writer: Writer) -> None:
        """Returns at once: there is no window here."""

    async def sent(self) -> None:
        """Returns at once: a broadcast is not acknowledged."""

    async def _follow(self) -> None:
        """Reads until it is refused, for ever if it insists; the one loop that reconnects."""
        while True:
            parser = sse.Parser()
            trouble = "the distributor has ended the stream"
            try:
                async with aclosing(self._items(parser)) as items:
                    async for item in items:
                        if isinstance(item, Bye):  # of this connection, not of the subscription
                            trouble = f"{trouble}: {item.reason}"
                            break
                        if isinstance(item, Hello):
                            parser.retry_ms = None  # for an EventSource, which has no backoff
                        await self._queue.put(item)
                        self._passed(item)
            except Refused as refused:
                if self._is_final(refused.status):
                    await self._queue.put(refused)
                    return
                trouble = _trouble(refused)
            except (httpx.HTTPError, *NOT_DECODED, LookupError, TypeError, ValueError) as error:
                trouble = _trouble(error)
            if trouble != self._told:
                self._told = trouble
                await self._queue.put(Notice(trouble))
            await self._pause(parser.retry_ms or 0)

    async def _pause(self, asked_ms: int) -> None:
        """Waits before the next attempt: what the distributor asked for, or longer each time."""
        await asyncio.sleep(max(asked_ms / 1000, self._backoff.pause_s()))

    def _is_final(self, status: int) -> bool:
        """Whether an answer that is no stream ends the subscription."""
        if self._insist or asks_to_retry(status):
            return False
        return status in NOT_US or not self._greeted

    def _passed(self, item: Item) -> None:
        """Moves the cursor: only now, so that what was not queued is asked for again."""
        match item:
            case Batch():
                self._after = str(item.end.id)
            case Gap():
                self._after = str(item.resume)
            case Hello(id):
                # Without an id, as with `tail`, the next connection asks for the same again.
                self._after = str(id) if id is not None else self._after
                self._greeted = True
            case Progress(id):
                self._after = str(id)
        if isinstance(item, Notice):
            return
        self._told = ""
        if not isinstance(item, Hello):
            self._backoff.reset()

    async def _items(self, parser: sse.Parser) -> AsyncGenerator[Item]:
        """What one connection gives. Raises `Refused`, httpx.HTTPError, or as `items_of` does."""
        headers = dict(self._distributor.headers)
        parameters = dict(self._parameters)
        if self._after is not None:
            headers["Last-Event-ID"] = self._after
        elif self._from_now and self._told:
            # The subscriber was there before the distributor: what was sent since is new to it.
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
            media_type = response.headers.get("content-type", "")
            if response.status_code != 200 or not media_type.startswith(sse.MEDIA_TYPE):
                raise Refused(response.status_code, await _document(response))
            async for text in response.aiter_text():
                for item in items_of(parser.feed(text)):
                    yield item
                if parser.comment:  # the distributor's own notice, for instance of its Redis
                    yield Notice(f"the distributor has nothing to give yet: {parser.comment}")
                    parser.comment = ""


async def _document(answer: httpx.Response) -> Mapping[str, Any]:
    """The problem document of an answer; empty where it has none."""
    body = b""
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > MAX_REFUSAL:
            return {}
    try:
        document = msgspec.json.decode(body)
    except NOT_DECODED:
        return {}
    return document if isinstance(document, dict) and "detail" in document else {}


def _parameters(start: Start) -> dict[str, str]:
    given: Mapping[str, Any] = {
        "delivery": "broadcast",
        "on_lag": start.on_lag,
        "since": start.since,
        "tail": start.tail,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def query_of(chosen: Filter) -> dict[str, str]:
    return {"q": chosen.query} if chosen.query else {}


def _trouble(error: Exception) -> str:
    """One sentence for the subscriber, the same each time."""
    if isinstance(error, Refused):
        if error.status in (401, 403):
            return f"the distributor refuses this page's token ({error.status}): READ_TOKENS"
        if error.status == MISDIRECTED:
            return f"the distributor answers {error.status}: {MISDIRECTED_REMEDY}"
        if error.status < 400:
            return "what answers there is no distributor"
        return f"the distributor answers {error.status}"
    if isinstance(error, httpx.HTTPError):
        return f"{UNREACHABLE}: {shown(error)}"
    return f"the distributor is not understood: {shown(error)}"
