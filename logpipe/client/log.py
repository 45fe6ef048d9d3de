"""A distributor's log over HTTP, for the page of a process without one."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import accumulate

import httpx
import msgspec

from logpipe.client.connection import away, bearer, refusal, stranger
from logpipe.client.distributor import RemoteDistributor
from logpipe.client.items import entry_of
from logpipe.event import NOT_DECODED, Entry
from logpipe.fanout.history import PAGE_BYTES, STEP_BYTES, STEP_GROWTH, Budget
from logpipe.filters import Filter
from logpipe.handler.retry import retry_after_s
from logpipe.ids import StreamId, parse_id
from logpipe.messages import Start, Subscription
from logpipe.problems import Problem
from logpipe.settings import without_credentials

FIRST_COUNT = 100
"""Events that are asked for first, when their size is not known: the rows of a page."""
MAX_COUNT = 5_000
"""Events that are asked for at once; the most that `/events` takes as `limit`."""
PATIENCE_S = 30.0
"""For how long a step of a search that has begun is repeated while the distributor answers 503."""
RETRY_S = 1.0
"""Between two attempts where the distributor names no time."""
MIN_RETRY_S = 0.1
"""Between two attempts at the least."""


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    next: str | None
    searched_to: str | None = None
    """Older distributors do not send it."""


class _Id(msgspec.Struct):
    id: str


_page = msgspec.json.Decoder(_Page)
_id = msgspec.json.Decoder(_Id)


class RemoteLog:
    """The log at a distributor's base URL: the twin of `ui.log.LocalLog`."""

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        distributor: RemoteDistributor,
        tokens: Sequence[str] = (),
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.name = f"distributor {without_credentials(url.rstrip('/'))}"
        self._url = f"{url.rstrip('/')}/events"
        self._tokens = tokens
        self._http = http
        self._distributor = distributor
        self._patience_s = patience_s

    @property
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def tail(self, start: Start, chosen: Filter) -> Subscription:  # noqa: ARG002
        """A subscription without a filter: who reads it counts what a filter rejects."""
        return self._distributor(start, {})

    def history(
        self,
        chosen: Filter,
        low: StreamId,
        high: StreamId,
        *,
        newest_first: bool,
        budget: Budget | None = None,
    ) -> "RemoteScan":
        query = {"q": chosen.query, "order": "desc" if newest_first else "asc"}
        return RemoteScan(self._ask, query, low, high, budget or Budget(), self._patience_s)

    async def _ask(self, query: Mapping[str, str]) -> httpx.Response:
        """The answer with a page of `/events`. Raises a `Problem`."""
        try:
            answer = await self._http.get(self._url, params=query, headers=bearer(self._tokens))
        except httpx.HTTPError as error:
            raise away("distributor", error) from None
        if answer.status_code != 200:
            raise refusal("distributor", "READ_TOKENS", answer)
        return answer


class RemoteScan:
    """A search of a distributor's history between two ids (inclusive); a step is a page of
    `/events` of about `history.STEP_BYTES`."""

    def __init__(
        self,
        ask: Callable[[Mapping[str, str]], Awaitable[httpx.Response]],
        query: Mapping[str, str],
        low: StreamId,
        high: StreamId,
        budget: Budget,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.next: StreamId | None = (
            (high if query["order"] == "desc" else low) if low <= high else None
        )
        """The id at which it goes on; None when it has reached its end."""
        self.searched_to: StreamId | None = None
        """The last entry that was looked at, or found, as far as the distributor says."""
        self._ask = ask
        self._query = {**query, "from": str(low), "to": str(high)}
        self._budget = budget
        self._patience_s = patience_s
        self._fits = FIRST_COUNT

    @property
    def over(self) -> bool:
        """Whether it has reached its end or spent its budget; the time counts from a request that
        is answered to its answer."""
        return self.next is None or self._budget.spent

    async def step(self, limit: int, size: int = PAGE_BYTES) -> list[Entry]:
        """Up to `limit` further matching entries, of `size` bytes and of `history.STEP_BYTES` or
        little more; what an answer has beyond them is asked for again.

        Once the search has begun, a step that is answered 503 is repeated. Raises a `Problem`: the
        distributor's own, a 502 or a 503.
        """
        count = min(limit, self._fits, MAX_COUNT)
        query = {**self._query, "limit": str(count), "cursor": str(self.next)}
        answer = await self._answer(query)
        try:
            found = _page.decode(answer.content)
            entries = [entry_of(_id.decode(raw).id, bytes(raw)) for raw in found.events]
            self.next = parse_id(found.next) if found.next else None
            if found.searched_to:
                self.searched_to = parse_id(found.searched_to)
            elif entries:
                self.searched_to = entries[-1].id
        except (*NOT_DECODED, ValueError):
            raise stranger("distributor", 200) from None
        if entries:
            average = max(1, len(answer.content) // len(entries))
            self._fits = max(1, min(STEP_GROWTH * count, STEP_BYTES // average))
        else:
            self._fits = STEP_GROWTH * count
        return self._cut(entries, min(size, STEP_BYTES))

    async def _answer(self, query: Mapping[str, str]) -> httpx.Response:
        deadline = time.monotonic() + self._patience_s
        while True:
            began = time.monotonic()
            try:
                answer = await self._ask(query)
            except Problem as problem:
                asked = retry_after_s(problem.headers.get("retry-after"), time.time())
                pause_s = RETRY_S if asked is None else max(MIN_RETRY_S, asked)
                late = time.monotonic() + pause_s > deadline
                if problem.status != 503 or self.searched_to is None or late:
                    raise
            else:
                self._budget.seconds -= time.monotonic() - began
                return answer
            await asyncio.sleep(pause_s)

    def _cut(self, entries: list[Entry], size: int) -> list[Entry]:
        """The entries up to a size; the search goes on behind them."""
        sizes = [0, *accumulate(len(entry.json) for entry in entries)]
        end = bisect_left(sizes, size)
        if 0 < end < len(entries):
            self.searched_to = entries[end - 1].id
            self.next = entries[end].id
        return entries[:end]
