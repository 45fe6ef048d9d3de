"""Shared delivery: the subscribers of a consumer group split its events, each at least once."""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Self

from logpipe.background import Background
from logpipe.filters import Filter, parse_filter
from logpipe.groups.consumer import Consumer
from logpipe.groups.group import PRESENCE_S, Group, Share, Terms
from logpipe.groups.member import Members
from logpipe.ids import StreamId
from logpipe.limits import client_of
from logpipe.messages import Start, Subscription
from logpipe.metrics import Metrics
from logpipe.problems import Unavailable
from logpipe.stream import NoGroupError, Stream
from logpipe.turns import Run, Turns

log = logging.getLogger("logpipe.groups")

MAX_GROUPS = 64
"""Consumer groups that one process reads at a time, besides CONSUMER_GROUP: a client may name any.
"""

MAX_GROUPS_PER_CLIENT = MAX_GROUPS // 2
"""Of these, those that were first asked for by one client."""

MAX_RECORDED = 500
"""Groups made by logpipe that Redis keeps, all of which each read has to walk through; beyond it
those that had no member for longest end early."""

MAX_NEW_GROUPS = 200
NEW_GROUP_S = 15.0
"""Groups that one client may make at once, and in how many seconds one more: who makes many would
end those of others early."""

MAX_FOUNDERS = 10_000
"""Clients whose new groups are counted; those that made one longest ago are forgotten."""

EXPIRY_S = 60.0
"""The longest time in seconds between two looks for groups that are to end."""

READS = 4
"""Reads of entries that are under way at the same time, of all groups of a process."""

LAST_READ_S = 2.0
"""How long the end of the process waits for a read under way."""

LAST_RELEASE_S = 0.5
"""How long it waits to give back what no subscriber took, and its name."""


class TooManyGroupsError(Exception):
    """This process already reads as many groups as it may."""


class Founders:
    """The clients that have asked for groups that were not there: `MAX_NEW_GROUPS` each, and one
    more each `NEW_GROUP_S`."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._full_at: OrderedDict[str, float] = OrderedDict()
        """When a client may make all of its groups again."""

    def require(self, client: str) -> None:
        """Counts a new group of a client. Raises `TooManyGroupsError`."""
        now = self._now()
        full_at = max(self._full_at.get(client, 0.0), now) + NEW_GROUP_S
        if full_at - now > MAX_NEW_GROUPS * NEW_GROUP_S:
            raise TooManyGroupsError("this address has asked for many groups that are new")
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > MAX_FOUNDERS:
            self._full_at.popitem(last=False)


class OtherFilterError(Exception):
    """The group has members and another filter, whose text is `query`."""

    def __init__(self, query: str) -> None:
        super().__init__(f"the group's filter is {query!r}")
        self.query = query


class Groups:
    """The groups that have subscribers in this process."""

    def __init__(
        self,
        stream: Stream,
        metrics: Metrics,
        background: Background,
        *,
        consumer: str,
        pending_idle_ms: int,
        batch_count: int,
        heartbeat_s: float,
        lasting: str = "",
        run: Run | None = None,
    ) -> None:
        """`lasting` is the group that never ends, CONSUMER_GROUP; `run` runs the filtering."""
        self.metrics = metrics
        self.heartbeat_s = heartbeat_s
        self.closing = False
        self.subscribers: set[Subscription] = set()
        self.consumer = Consumer(stream, consumer)
        self._stream = stream
        reads = asyncio.Semaphore(READS)
        self._terms = Terms(
            self.consumer,
            pending_idle_ms,
            batch_count,
            reads,
            run or Turns().run,
            Members(),
            lasting,
        )
        self._groups: dict[str, Group] = {}
        self._founders = Founders()
        self._made = asyncio.Event()
        """Set when a group is read here that was not before, and may be a new one."""
        self._running: set[str] = set()
        self._background = background
        self._tasks: set[asyncio.Task[None]] = set()
        self._holding: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # The reads end by themselves within BLOCK_MS: one that is cancelled may have been given
        # entries that nobody would get before PENDING_IDLE_MS.
        self.close()
        if self._tasks:
            late = (await asyncio.wait(self._tasks, timeout=LAST_READ_S))[1]
            await _ended(late)  # they let go of their connections before the stream closes these
        if self._holding is not None:
            await _ended({self._holding})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_RELEASE_S):
                for group in self._groups.values():
                    await group.release_at_end()
                await self.consumer.let_go()

    def refuse_more_than_allowed(self, group: str, client: str) -> None:
        """Raises `TooManyGroupsError` for a group that this process would have to read as well."""
        if group in self._groups or group == self._terms.lasting:
            return
        others = [each for name, each in self._groups.items() if name != self._terms.lasting]
        if len(others) >= MAX_GROUPS:
            raise TooManyGroupsError(f"{MAX_GROUPS} groups are read here already")
        if client and sum(each.founder == client for each in others) >= MAX_GROUPS_PER_CLIENT:
            raise TooManyGroupsError(
                f"{MAX_GROUPS_PER_CLIENT} groups of this address are read here already"
            )

    async def admit(
        self, name: str, chosen: Filter | None, *, replace: bool = False, client: str = ""
    ) -> Filter | None:
        """The filter of a group for a subscriber that sends `chosen`, None for no filter.

        The first member of a group without members sets its filter, and `replace` sets it for all.
        None is returned where the subscriber sends none and Redis cannot be asked. Raises
        `OtherFilterError`; FilterError for a filter that this version does not understand;
        `TooManyGroupsError` for a group that would be new, or read here as well.
        """
        self.refuse_more_than_allowed(name, client)
        chosen = chosen.ordered() if chosen is not None else None
        query = chosen.query if chosen is not None else "" if replace else None
        try:
            entered = await self._stream.groups.records.enter(
                name, self.consumer.holder, round(PRESENCE_S * 1000), query, replace=replace
            )
        except Unavailable:
            return chosen
        if not entered.admitted:
            raise OtherFilterError(entered.filter)
        if not entered.made and name != self._terms.lasting and name not in self._groups:
            self._founders.require(client)
        return parse_filter({"q": entered.filter})

    async def acknowledge(self, group: str, member: str, ids: Sequence[StreamId]) -> int:
        """Acknowledges entries that a member holds, wherever it is connected; how many it did hold.

        Raises `Unavailable`.
        """
        here, read_here = self._terms.members.get(member), self._groups.get(group)
        try:
            done = await self._stream.groups.acknowledge_of(group, member, ids)
        except NoGroupError:
            if read_here is not None:
                read_here.is_gone()
            return 0
        if here is not None and read_here is not None:
            here.let_go(done)
            read_here.want_work()
        return len(done)

    async def end_unused(self, expiry_ms: int) -> None:
        """Ends the groups that have had no member for long, from now on."""
        while True:
            self._made.clear()
            with contextlib.suppress(Unavailable):
                await self.end_due(expiry_ms)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(EXPIRY_S, expiry_ms / 10_000)):
                    await self._made.wait()
                    await asyncio.sleep(1)  # many may be made within a second

    async def end_due(self, expiry_ms: int, most: int = MAX_RECORDED) -> None:
        """Ends the groups that are due now. Raises `Unavailable`."""
        records = self._stream.groups.records
        for name in await records.due(expiry_ms, most):
            if name == self._terms.lasting:
                continue
            try:
                if await records.end(name):
                    log.info("the consumer group %r has ended: it had no member for long", name)
            except NoGroupError:
                await records.forget(name)

    def join(
        self,
        name: str,
        start: Start,
        share: Share,
        chosen: Filter | None = None,
        client: str = "",
    ) -> Group:
        """Takes a subscriber into its group, which begins where `start` says unless it exists, and
        whose filter is `chosen`, None where that is not known.

        The group is read here from its first subscriber on, not before: a request that is never
        answered by a stream (HEAD, or a client that has left) would keep its group for ever.
        Raises `TooManyGroupsError`.
        """
        client = client_of(client)
        self.refuse_more_than_allowed(name, client)
        group = self._groups.get(name)
        if group is None:
            metrics = self.metrics.group(name)
            group = Group(name, self._stream, self._terms, metrics, start, chosen)
            group.founder, group.closing = client, self.closing
            self._groups[name] = group
            self._made.set()
        group.join(share)
        if name not in self._running and not self.closing:
            self._running.add(name)
            self._spawn(self._run(group))
        if self._holding is None and not self.closing:
            holding = self.consumer.keep_holding()
            self._holding = asyncio.create_task(holding, context=Context())
            self._background.watch(self._holding)
        return group

    async def _run(self, group: Group) -> None:
        try:
            while group.wanted:  # again for one who joined while it ended
                await group.run()
        finally:
            self._running.discard(group.name)
            if not group.shares:
                self._groups.pop(group.name, None)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs a group's task, which outlives the request that began it; one that fails ends the
        process."""
        task = asyncio.create_task(coroutine, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._background.watch(task)

    def close(self) -> None:
        """Ends all subscriptions with a `Bye`."""
        self.closing = True
        for group in self._groups.values():
            group.closing = True
            group.wake_all()


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    """Cancels tasks, and waits for their ends."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
