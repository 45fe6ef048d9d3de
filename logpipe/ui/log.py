"""The log that the page shows: that of this process, or of a distributor elsewhere."""

from typing import Protocol

from logpipe.fanout.history import HistoryPage, page_of
from logpipe.fanout.hub import Hub
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import Filter
from logpipe.ids import StreamId
from logpipe.messages import Start, Subscription


class Log(Protocol):
    """What the page reads from. Its twin over HTTP is `client.log.RemoteLog`."""

    @property
    def name(self) -> str:
        """What people see that they are connected to."""

    def tail(self, start: Start, chosen: Filter) -> Subscription:
        """A subscription to the live stream; its batches may hold what the filter rejects."""

    async def page(
        self, chosen: Filter, low: StreamId, high: StreamId, limit: int, *, newest_first: bool
    ) -> HistoryPage:
        """Up to `limit` matching events between two ids (inclusive). Raises a `Problem`."""


class LocalLog:
    """The log of the hub of this process."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.name = name
        self._hub = hub

    def tail(self, start: Start, chosen: Filter) -> Subscription:
        """A subscription of the hub."""
        return HubSubscription(self._hub, start, chosen)

    async def page(
        self, chosen: Filter, low: StreamId, high: StreamId, limit: int, *, newest_first: bool
    ) -> HistoryPage:
        """A page of the history of the stream."""
        self._hub.scan_seats.require()
        return await page_of(self._hub.scan(chosen, low, high, newest_first=newest_first), limit)
