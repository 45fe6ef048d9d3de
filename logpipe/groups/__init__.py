"""Shared delivery: the subscribers of a consumer group split its events, each at least once."""

import asyncio
import contextlib
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Self

from logpipe.background import Background
from logpipe.groups.consumer import Consumer
from logpipe.groups.group import Group, Share, Terms
from logpipe.messages import Start, Subscription
from logpipe.metrics import Metrics
from logpipe.stream import Stream

MAX_GROUPS = 64
"""Consumer groups that one process reads at a time; a client may name any, Redis keeps them all."""

READS = 4
"""Reads of entries that are under way at the same time, of all groups of a process."""

LAST_READ_S = 2.0
"""How long the end of the process waits for a read under way."""

LAST_RELEASE_S = 0.5
"""How long it waits to give back what no subscriber took, and its name."""


class TooManyGroupsError(Exception):
    """This process already reads MAX_GROUPS groups."""


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
    ) -> None:
        self.metrics = metrics
        self.heartbeat_s = heartbeat_s
        self.closing = False
        self.subscribers: set[Subscription] = set()
        self.consumer = Consumer(stream, consumer)
        self._stream = stream
        reads = asyncio.Semaphore(READS)
        self._terms = Terms(self.consumer, pending_idle_ms, batch_count, reads)
        self._groups: dict[str, Group] = {}
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

    def refuse_more_than_allowed(self, group: str) -> None:
        """Raises `TooManyGroupsError` for a group that this process would have to read as well."""
        if group not in self._groups and len(self._groups) >= MAX_GROUPS:
            raise TooManyGroupsError(f"{MAX_GROUPS} groups are read here already")

    def join(self, name: str, start: Start, share: Share) -> Group:
        """Takes a subscriber into its group, which begins where `start` says unless it exists.

        The group is read here from its first subscriber on, not before: a request that is never
        answered by a stream (HEAD, or a client that has left) would keep its group for ever.
        Raises `TooManyGroupsError`.
        """
        self.refuse_more_than_allowed(name)
        group = self._groups.get(name)
        if group is None:
            metrics = self.metrics.group(name)
            group = self._groups[name] = Group(name, self._stream, self._terms, metrics, start)
            group.closing = self.closing
        group.members.add(share)
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
            if not group.members:
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
