"""What the distributor reads from: one stream, or the partitions of a log."""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

from logpipe.continuity import Cursor
from logpipe.fanout.history import HistoryPage, history
from logpipe.fanout.hub import Hub
from logpipe.fanout.joint import JointHub
from logpipe.fanout.joint_subscription import JointSubscription
from logpipe.fanout.streaming import POSITION_NDJSON, POSITION_SSE, encoder_for
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import Filter
from logpipe.groups import Groups
from logpipe.groups.joint import JointGroups, JointShared
from logpipe.groups.shared import SharedSubscription
from logpipe.ids import StreamId, parse_id
from logpipe.messages import Encoder, Start, Subscription
from logpipe.parameters import chosen_start, chosen_starts, span, spread_span
from logpipe.positions import parse_event_id
from logpipe.problems import Unavailable, bad_parameter
from logpipe.subscribers import Subscriber, subscribers

FUTURE_MS = 60_000
"""How far ahead a client's clock may be before its `since` is refused."""


class Source(ABC):
    """What the endpoints read from: one stream, or the partitions of a log."""

    def __init__(self, hub: Hub | JointHub, groups: Groups | JointGroups) -> None:
        self.metrics = hub.metrics
        self._hub = hub
        self._groups = groups

    @abstractmethod
    def encoder_for(self, accept: str) -> Encoder:
        """The format that an Accept header asks for."""

    @abstractmethod
    async def subscription(
        self,
        query: Mapping[str, str],
        last_event_id: str | None,
        chosen: Filter,
        group: str | None,
    ) -> Subscription:
        """A subscription from where the request says; shared, where there is a group. Raises a
        400 `Problem`, and `TooManyGroupsError`."""

    async def subscribers(self) -> list[Subscriber]:
        """Who reads from this process."""
        return await subscribers(self._hub, self._groups)

    def span(self, query: Mapping[str, str], *, newest_first: bool) -> tuple[StreamId, StreamId]:
        """The first and the last id of a page of the history. Raises a 400 `Problem`."""
        low, high = self._whole_span(query)
        if cursor := query.get("cursor"):
            try:
                at = self._id(cursor)
            except ValueError as error:
                raise bad_parameter("cursor", str(error)) from None
            low, high = (low, min(high, at)) if newest_first else (max(low, at), high)
        return low, high

    @abstractmethod
    def _whole_span(self, query: Mapping[str, str]) -> tuple[StreamId, StreamId]:
        """That of all pages together. Raises a 400 `Problem`."""

    @abstractmethod
    def _id(self, text: str) -> StreamId:
        """The id of an event. Raises ValueError."""

    async def history(
        self, chosen: Filter, low: StreamId, high: StreamId, limit: int, *, newest_first: bool
    ) -> HistoryPage:
        """A page of the history."""
        stream, count = self._hub.stream, self._hub.batch_count
        return await history(stream, chosen, low, high, limit, count, newest_first=newest_first)


class StreamSource(Source):
    """One stream: the hub and the consumer groups of this process."""

    _hub: Hub
    _groups: Groups

    def __init__(self, hub: Hub, groups: Groups) -> None:
        super().__init__(hub, groups)

    def encoder_for(self, accept: str) -> Encoder:
        """As `Source`."""
        return encoder_for(accept)

    async def subscription(
        self,
        query: Mapping[str, str],
        last_event_id: str | None,
        chosen: Filter,
        group: str | None,
    ) -> Subscription:
        """As `Source`."""
        start = chosen_start(query, last_event_id)
        if not last_event_id:
            await require_known(self._hub, start)
        if group is not None:
            return SharedSubscription(self._groups, group, start, chosen)
        return HubSubscription(self._hub, start, chosen)

    def _whole_span(self, query: Mapping[str, str]) -> tuple[StreamId, StreamId]:
        return span(query)

    def _id(self, text: str) -> StreamId:
        return parse_id(text)


class JointSource(Source):
    """The partitions of a log: their hubs and consumer groups in this process."""

    _hub: JointHub
    _groups: JointGroups

    def __init__(self, hub: JointHub, groups: JointGroups) -> None:
        super().__init__(hub, groups)

    def encoder_for(self, accept: str) -> Encoder:
        """As `Source`."""
        return encoder_for(accept, POSITION_SSE, POSITION_NDJSON)

    async def subscription(
        self,
        query: Mapping[str, str],
        last_event_id: str | None,
        chosen: Filter,
        group: str | None,
    ) -> Subscription:
        """As `Source`."""
        hubs = self._hub.hubs
        starts = chosen_starts(query, last_event_id, len(hubs))
        if not last_event_id:
            known = (require_known(hub, start) for hub, start in zip(hubs, starts, strict=True))
            await asyncio.gather(*known)
        if group is not None:
            return JointShared(self._groups, group, starts, chosen)
        return JointSubscription(self._hub, starts, chosen)

    def _whole_span(self, query: Mapping[str, str]) -> tuple[StreamId, StreamId]:
        return spread_span(query, len(self._hub.hubs))

    def _id(self, text: str) -> StreamId:
        return parse_event_id(text, len(self._hub.hubs))


async def require_known(hub: Hub, start: Start) -> None:
    """Raises a 400 `Problem` for a parameter that names what this stream never had.

    A header is never refused, because that would end an EventSource for good: a `gap` tells.
    """
    with contextlib.suppress(Unavailable):
        if start.since and start.since.ms > time.time_ns() // 1_000_000 + FUTURE_MS:
            last = (await hub.bounds()).last
            if start.since > last:
                raise bad_parameter("since", "lies in the future")
        if start.resume:
            page = await hub.stream.read(Cursor(start.resume), 1)
            last = (await hub.bounds()).last
            if start.resume > last or (page.gap and page.gap.reason == "reset"):
                raise bad_parameter(
                    "last_event_id",
                    f"this stream, whose last id is {last}, has never had it: it lies in the"
                    " future, or is from before a flush; start anew with since=earliest",
                )
