"""A distributor's log over HTTP, for the page of a process without one."""

from collections.abc import Sequence

import httpx
import msgspec

from logpipe.client.connection import away, bearer, refusal, stranger
from logpipe.client.distributor import RemoteDistributor
from logpipe.event import NOT_DECODED, Entry, StoredEvent
from logpipe.fanout.history import HistoryPage
from logpipe.filters import Filter
from logpipe.ids import StreamId, parse_id
from logpipe.messages import Start, Subscription
from logpipe.settings import without_credentials


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    next: str | None


class _Id(msgspec.Struct):
    id: str


_page = msgspec.json.Decoder(_Page)
_id = msgspec.json.Decoder(_Id)
_event = msgspec.json.Decoder(StoredEvent)


class RemoteLog:
    """The log at a distributor's base URL: the twin of `ui.log.LocalLog`."""

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        distributor: RemoteDistributor,
        tokens: Sequence[str] = (),
    ) -> None:
        self.name = f"distributor {without_credentials(url.rstrip('/'))}"
        self._url = f"{url.rstrip('/')}/events"
        self._tokens = tokens
        self._http = http
        self._distributor = distributor

    def tail(self, start: Start, chosen: Filter) -> Subscription:  # noqa: ARG002
        """A subscription without a filter: who reads it counts what a filter rejects."""
        return self._distributor(start, {})

    async def page(
        self, chosen: Filter, low: StreamId, high: StreamId, limit: int, *, newest_first: bool
    ) -> HistoryPage:
        """A page of `/events`. Raises a `Problem`: the distributor's own, a 502 or a 503."""
        query = {
            "q": chosen.query,
            "from": str(low),
            "to": str(high),
            "limit": str(limit),
            "order": "desc" if newest_first else "asc",
        }
        try:
            answer = await self._http.get(self._url, params=query, headers=bearer(self._tokens))
        except httpx.HTTPError as error:
            raise away("distributor", error) from None
        if answer.status_code != 200:
            raise refusal("distributor", "READ_TOKENS", answer)
        try:
            found = _page.decode(answer.content)
            entries = [_entry(bytes(raw)) for raw in found.events]
            return HistoryPage(entries, parse_id(found.next) if found.next else None)
        except (*NOT_DECODED, ValueError):
            raise stranger("distributor", 200) from None


def _entry(raw: bytes) -> Entry:
    return Entry(parse_id(_id.decode(raw).id), raw, _event.decode(raw))
