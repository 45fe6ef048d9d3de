"""The log that the page shows: that of this process, or of a distributor elsewhere."""

from typing import Protocol

from logpipe.fanout.history import Budget, History
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

    @property
    def now_ms(self) -> int:
        """The time from which ages count back, in unix milliseconds."""

    def tail(self, start: Start, chosen: Filter) -> Subscription:
        """A subscription to the live stream; its batches may hold what the filter rejects."""

    def history(
        self,
        chosen: Filter,
        low: StreamId,
        high: StreamId,
        *,
        newest_first: bool,
        budget: Budget | None = None,
    ) -> History:
        """A search between two ids (inclusive), within the budget of a page where none is given.

        Raises a 503 `Problem` while too many searches wait.
        """


class LocalLog:
    """The log of the hub of this process."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.name = name
        self._hub = hub

    @property
    def now_ms(self) -> int:
        """The time of Redis."""
        return self._hub.stream.now_ms

    def tail(self, start: Start, chosen: Filter) -> Subscription:
        """A subscription of the hub."""
        return HubSubscription(self._hub, start, chosen)

    def history(
        self,
        chosen: Filter,
        low: StreamId,
        high: StreamId,
        *,
        newest_first: bool,
        budget: Budget | None = None,
    ) -> History:
        """A scan of the stream."""
        self._hub.scan_seats.require()
        return self._hub.scan(chosen, low, high, newest_first=newest_first, budget=budget)
