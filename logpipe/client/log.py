"""A distributor's log over HTTP, for the page of a process without one."""

from collections.abc import Sequence

import httpx
import msgspec

from logpipe.client.connection import bearer, shown
from logpipe.client.distributor import RemoteDistributor
from logpipe.event import NOT_DECODED, Entry, StoredEvent
from logpipe.filters import Filter
from logpipe.history import HistoryPage
from logpipe.ids import StreamId, parse_id
from logpipe.messages import Start, Subscription
from logpipe.problems import Problem


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
        self.name = f"distributor {url.rstrip('/')}"
        self._url = f"{url.rstrip('/')}/events"
        self._headers = bearer(tokens)
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
            answer = await self._http.get(self._url, params=query, headers=self._headers)
        except httpx.HTTPError as error:
            detail = f"The distributor cannot be reached: {shown(error)}"
            raise Problem(503, detail, headers={"Retry-After": "1"}) from None
        if answer.status_code != 200:
            raise _refusal(answer)
        try:
            found = _page.decode(answer.content)
            entries = [_entry(bytes(raw)) for raw in found.events]
            return HistoryPage(entries, parse_id(found.next) if found.next else None)
        except (*NOT_DECODED, ValueError):
            raise Problem(502, "What answers as the distributor is none (200).") from None


def _entry(raw: bytes) -> Entry:
    return Entry(parse_id(_id.decode(raw).id), raw, _event.decode(raw))


def _refusal(answer: httpx.Response) -> Problem:
    status = answer.status_code
    if status in (401, 403):
        # Not passed on: it is about this process's token, not about the user's.
        return Problem(502, f"The distributor refuses this page's token ({status}): READ_TOKENS.")
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return Problem(502, f"What answers as the distributor is none ({status}).")
    passed_on = {k: v for k, v in answer.headers.items() if k == "retry-after"}
    return Problem(status if status >= 400 else 502, detail, headers=passed_on)
