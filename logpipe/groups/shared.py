"""Subscriptions with shared delivery: a subscriber takes its share of a consumer group."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Self

from logpipe.fanout.live import Writer
from logpipe.filters import Filter
from logpipe.groups import MAX_GROUPS, Groups, TooManyGroupsError
from logpipe.groups.group import Group, Share
from logpipe.ids import StreamId
from logpipe.messages import Bye, Item, Start


class SharedSubscription:
    """One subscriber of a group, which is made where `start` says unless it exists.

    Raises `TooManyGroupsError` when this process may read no further group.
    """

    confirms = True

    def __init__(self, groups: Groups, name: str, start: Start, chosen: Filter) -> None:
        groups.refuse_more_than_allowed(name)
        self.filter = chosen
        self.share = Share()
        self._groups = groups
        self.client = ""
        self.connected_ms = time.time_ns() // 1_000_000
        self.cursor: StreamId | None = None
        """The last entry that it was given."""
        self.name = name
        self._start = start
        self._group: Group | None = None
        self._greeted = False
        self._ended = False

    def __enter__(self) -> Self:
        with contextlib.suppress(TooManyGroupsError):
            self._group = self._groups.join(self.name, self._start, self.share)
        self._groups.subscribers.add(self)
        self._groups.metrics.subscribers.labels("shared").inc()
        return self

    def __exit__(self, *_: object) -> None:
        self.share.asking = False
        if self._group is not None:
            self._group.leave(self.share)
        self._groups.subscribers.discard(self)
        self._groups.metrics.subscribers.labels("shared").dec()

    async def next(self) -> Sequence[Item] | None:
        """The next items: none when a heartbeat is due, None when the subscription is over."""
        if self._ended:
            return None
        if self._group is None:
            return self._end(f"{MAX_GROUPS} groups are read here already")
        if not self._greeted:
            self._greeted = True
            return [await self._group.hello()]
        due = time.monotonic() + self._groups.heartbeat_s
        self.share.asking = True
        try:
            self._group.want_work()
            while not self.share.items:
                if self._groups.closing:
                    return self._end("the server is stopping")
                # Work may come in the moment in which the time is up.
                if not await self._wait_until(due) and not self.share.items:
                    return []
        finally:
            self.share.asking = False
        items, self.share.items = self.share.items, []
        if self.share.entries:
            self.cursor = self.share.entries[-1].id
        return items

    @property
    def lag(self) -> int | None:
        """How many entries its group has not read yet, where that is known."""
        return self._group.lag if self._group else None

    def _end(self, reason: str) -> Sequence[Item]:
        self._ended = True
        return [Bye(reason)]

    async def _wait_until(self, due: float) -> bool:
        self.share.woken.clear()
        try:
            async with asyncio.timeout(due - time.monotonic()):
                await self.share.woken.wait()
        except TimeoutError:
            return False
        return True

    async def follow(self, writer: Writer) -> None:
        """Never: what is read has to be acknowledged."""

    async def sent(self) -> None:
        """Acknowledges what was written."""
        # A connection that ended in this very moment has taken nothing: the response's task is
        # cancelled here then, and what it was given goes to another subscriber.
        await asyncio.sleep(0)
        given, self.share.entries = self.share.entries, []
        told, self.share.losses = self.share.losses, []
        if given or told:
            assert self._group is not None
            await self._group.acknowledge(given, told)
