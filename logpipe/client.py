"""The other roles over HTTP: what a page uses whose process runs neither of them.

`RemoteDistributor` and `RemoteCollector` are the twins of a subscription to the hub and of
`collector.submit`, and keep the same promises: a lost connection is resumed after the last id.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

import httpx
import msgspec

from logpipe import sse
from logpipe.continuity import Cursor, Gap
from logpipe.event import NOT_DECODED, Entry, StoredEvent
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import StreamId, parse_id
from logpipe.messages import Batch, Hello, Item, Notice, Progress, Start
from logpipe.problems import Problem
from logpipe.settings import Settings

CONNECT_TIMEOUT_S = 3.0
SILENCE_S = 60.0
"""A stream without even a heartbeat for so long is dead; HEARTBEAT_S is 15 by default."""

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 3.0
"""The pause between two attempts doubles from the first to the last, with jitter."""

QUEUE_LEN = 64
"""Items read ahead for one page; then the distributor is read no further."""

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
        self._headers = _bearer(settings.ingest_tokens)
        self._http = http

    async def __call__(self, event: bytes) -> str:
        """The id of the stored event. Raises a `Problem`: the collector's own, or a 503."""
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": str(uuid.uuid4()),
            **self._headers,
        }
        try:
            answer = await self._http.post(self._url, content=event, headers=headers)
            document = answer.json()
            if answer.status_code == 202:
                return str(document["id"])
            detail, members = str(document.get("detail")), {"errors": document.get("errors", [])}
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise Problem(503, f"The collector cannot be reached: {_shown(error)}") from None
        raise Problem(answer.status_code, detail, **members)


class RemoteDistributor:
    """Subscribes at DISTRIBUTOR_URL."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient) -> None:
        self.url = f"{settings.distributor_url.rstrip('/')}/subscribe"
        self.headers = {"Accept": sse.MEDIA_TYPE, **_bearer(settings.read_tokens)}
        self.heartbeat_s = settings.heartbeat_s
        self.http = http

    def __call__(self, start: Start, chosen: Filter) -> "RemoteSubscription":
        """A subscription; enter it to connect."""
        return RemoteSubscription(self, start, chosen)


class RemoteSubscription:
    """One subscription over as many connections as it takes."""

    filter = EVERYTHING
    """The distributor has filtered already."""

    def __init__(self, distributor: RemoteDistributor, start: Start, chosen: Filter) -> None:
        self._distributor = distributor
        self._parameters = _parameters(start, chosen)
        self._last_id = str(start.resume) if start.resume is not None else ""
        self._queue: asyncio.Queue[Item] = asyncio.Queue(QUEUE_LEN)
        self._task: asyncio.Task[None] | None = None
        self._greeted = False
        self._noticed = False
        self._retry_s = FIRST_RETRY_S

    def __enter__(self) -> Self:
        self._task = asyncio.create_task(self._follow())
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()

    async def next(self) -> Sequence[Item] | None:
        """The next items: none when a heartbeat is due."""
        try:
            async with asyncio.timeout(self._distributor.heartbeat_s):
                items = [await self._queue.get()]
        except TimeoutError:
            return []
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        return items

    async def sent(self) -> None:
        """Nothing: a broadcast is not acknowledged."""

    async def _follow(self) -> None:
        """Reads for ever; the one loop that reconnects."""
        while True:
            trouble = "the distributor has ended the stream"
            try:
                async for item in self._items():
                    await self._queue.put(item)
            except (httpx.HTTPError, *NOT_DECODED, ValueError) as error:
                trouble = f"the distributor cannot be reached: {_shown(error)}"
            if not self._noticed:
                self._noticed = True
                await self._queue.put(Notice(trouble))
            await asyncio.sleep(self._retry_s * random.uniform(0.7, 1.3))  # noqa: S311
            self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)

    async def _items(self) -> AsyncIterator[Item]:
        """What one connection gives. Raises httpx.HTTPError when it fails."""
        headers = dict(self._distributor.headers)
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        stream = self._distributor.http.stream(
            "GET",
            self._distributor.url,
            params=self._parameters,
            headers=headers,
            timeout=httpx.Timeout(CONNECT_TIMEOUT_S, read=SILENCE_S),
        )
        async with stream as response:
            response.raise_for_status()
            parser = sse.Parser()
            async for text in response.aiter_text():
                for item in self._take(list(parser.feed(text))):
                    yield item
                self._noticed, self._retry_s = False, FIRST_RETRY_S

    def _take(self, told: Sequence[sse.ServerSentEvent]) -> list[Item]:
        """Items of events as they came; runs of plain ones become one batch."""
        items: list[Item] = []
        run: list[Entry] = []
        for each in told:
            if each.event == "message":
                data = each.data.encode()
                run.append(Entry(parse_id(each.id), data, _event.decode(data)))
            else:
                items += _batch(run)
                run = []
                items += self._named(each)
            self._last_id = each.id or self._last_id
        return items + _batch(run)

    def _named(self, told: sse.ServerSentEvent) -> list[Item]:
        data = msgspec.json.decode(told.data)
        match told.event:
            case "gap":
                ends = parse_id(data["after"]), parse_id(data["before"])
                return [Gap(data["reason"], *ends, data["count"], parse_id(told.id))]
            case "progress":
                return [Progress(parse_id(told.id))]
            case "hello" if not self._greeted:
                self._greeted = True
                first, last = _id(data.get("first_id")), _id(data.get("last_id"))
                return [Hello(parse_id(told.id), first, last, "broadcast", data["version"])]
        return []


def _batch(run: list[Entry]) -> list[Batch]:
    if not run:
        return []
    return [Batch(Cursor(run[0].id.before()), Cursor(run[-1].id), run)]


def _parameters(start: Start, chosen: Filter) -> dict[str, str]:
    """The query of `/subscribe` for a start and a filter."""
    given: Mapping[str, Any] = {
        "delivery": "broadcast",
        "on_lag": start.on_lag,
        "since": start.since,
        "tail": start.tail,
        "level": chosen.level,
        "source": chosen.source,
        "text": chosen.text,
    }
    return {name: str(value) for name, value in given.items() if value not in (None, "")}


def _bearer(tokens: Sequence[str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}


def _id(text: str | None) -> StreamId | None:
    return parse_id(text) if text else None


def _shown(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answers {error.response.status_code}"
    return str(error) or type(error).__name__
