"""Subscriptions with shared delivery: a subscriber takes its share of a consumer group."""

import asyncio
import time
from collections.abc import Sequence
from typing import Self

from logpipe.fanout.live import Writer
from logpipe.filters import EVERYTHING, Filter
from logpipe.groups import Groups, TooManyGroupsError
from logpipe.groups.group import Group, Share
from logpipe.groups.member import Member
from logpipe.ids import StreamId
from logpipe.messages import Bye, Item, Start


class SharedSubscription:
    """One subscriber of a group, which is made where `start` says unless it exists.

    `chosen` is the group's filter, as `Groups.admit` returns it. With a `member` the subscriber
    acknowledges for itself. Raises `TooManyGroupsError` when this process may read no further
    group.
    """

    confirms = True
    filter = EVERYTHING
    """The group has filtered already."""

    def __init__(
        self,
        groups: Groups,
        name: str,
        start: Start,
        chosen: Filter | None,
        member: Member | None = None,
    ) -> None:
        groups.refuse_more_than_allowed(name, "")
        self.share = Share(member, None if chosen is None else chosen.query)
        self._chosen = chosen
        self._groups = groups
        self.client = ""
        self.connected_ms = time.time_ns() // 1_000_000
        self.cursor: StreamId | None = None
        """The last entry that it was given."""
        self.name = name
        self._start = start
        self._group: Group | None = None
        self._refusal = ""
        self._greeted = False
        self._ended = False

    def __enter__(self) -> Self:
        try:
            self._group = self._groups.join(
                self.name, self._start, self.share, self._chosen, self.client
            )
        except TooManyGroupsError as error:
            self._refusal = str(error)
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
            return self._end(self._refusal)
        if not self._greeted:
            self._greeted = True
            return [await self._group.hello(self.share)]
        due = time.monotonic() + self._groups.heartbeat_s
        while not self.share.given:
            if not await self._is_given(self._group, due):
                return self._end(self.share.farewell) if self._over else []
            await self._group.assign(self.share)
        if self.share.entries:
            self.cursor = self.share.entries[-1].id
        return self.share.items()

    async def _is_given(self, group: Group, due: float) -> bool:
        """Waits for work; False when there is none until `due`, or the subscription is over."""
        self.share.asking = True
        try:
            group.want_work()
            while not self.share.given and not self._over:
                # Work may come in the moment in which the time is up.
                if not await self._wait_until(due) and not self.share.given:
                    break
        finally:
            self.share.asking = False
        return self.share.given

    @property
    def _over(self) -> bool:
        if self._groups.closing:
            self.share.farewell = "the server is stopping"
        return bool(self.share.farewell)

    @property
    def chosen(self) -> Filter:
        """The filter of its group, as far as that is known."""
        found = self._group.filter if self._group is not None else self._chosen
        return EVERYTHING if found is None else found

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
        """Acknowledges what was written, unless the subscriber does."""
        given, self.share.entries = self.share.entries, []
        told, self.share.losses = self.share.losses, []
        if self.share.member is not None:
            given = []
        if given or told:
            assert self._group is not None
            await self._group.acknowledge(given, told)
