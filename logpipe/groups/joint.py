"""Shared delivery of a log with partitions: a consumer group is one on each of its streams."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

from logpipe import __version__
from logpipe.continuity import Gap
from logpipe.fanout.live import Writer
from logpipe.fanout.steps import abandon
from logpipe.filters import Filter
from logpipe.groups import Groups
from logpipe.groups.shared import SharedSubscription
from logpipe.ids import StreamId
from logpipe.messages import Batch, Bye, Hello, Item, Start, Subscription, goodbye
from logpipe.metrics import Metrics
from logpipe.positions import event_id
from logpipe.stream.partitions import named


class JointGroups:
    """The groups of each partition that have subscribers in this process, and these."""

    def __init__(self, parts: Sequence[Groups], metrics: Metrics, heartbeat_s: float) -> None:
        self.parts = parts
        self.metrics = metrics
        self.heartbeat_s = heartbeat_s
        self.closing = asyncio.Event()
        self.subscribers: set[Subscription] = set()

    def close(self) -> None:
        """Ends all subscriptions with a `Bye`."""
        self.closing.set()
        for part in self.parts:
            part.close()


class _Share(SharedSubscription):
    """A subscriber's share of one partition; the whole one is counted elsewhere."""

    def __enter__(self) -> Self:
        self._join()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def ask(self, asking: bool) -> None:
        """Whether it takes work meanwhile; of a share whose `next` is under way."""
        self.share.asking = asking
        if asking and self._group is not None:
            self._group.want_work()


class JointShared:
    """One subscriber of a group: a share of each partition, given as they come.

    Raises `TooManyGroupsError` as `SharedSubscription` does.
    """

    confirms = True

    def __init__(
        self, groups: JointGroups, name: str, starts: Sequence[Start], chosen: Filter
    ) -> None:
        self.filter = chosen
        self.client = ""
        self.connected_ms = time.time_ns() // 1_000_000
        self.cursor: StreamId | None = None
        """The last entry that it was given."""
        self.name = name
        self._groups = groups
        self._shares = [
            _Share(part, name, start, chosen)
            for part, start in zip(groups.parts, starts, strict=True)
        ]
        self._tasks: dict[int, asyncio.Task[Sequence[Item] | None]] = {}
        self._given: list[int] = []
        """Partitions whose items are being written."""
        self._hellos: dict[int, Hello] = {}
        self._ended = False

    def __enter__(self) -> Self:
        for share in self._shares:
            share.__enter__()
        self._groups.subscribers.add(self)
        self._groups.metrics.subscribers.labels("shared").inc()
        return self

    def __exit__(self, *error: object) -> None:
        for task in self._tasks.values():
            abandon(task)
        for share in self._shares:
            share.__exit__(*error)
        self._groups.subscribers.discard(self)
        self._groups.metrics.subscribers.labels("shared").dec()

    @property
    def lag(self) -> int | None:
        """How many entries its group has not read yet, where that is known of each partition."""
        lags = [share.lag for share in self._shares]
        known = [lag for lag in lags if lag is not None]
        return sum(known) if len(known) == len(lags) else None

    async def next(self) -> Sequence[Item] | None:
        """The next items: none when a heartbeat is due, None when the subscription is over."""
        due = time.monotonic() + self._groups.heartbeat_s
        self._ask(True)
        while not self._ended:
            if items := self._collect():
                # While these are written, what the other partitions have is for other subscribers.
                self._ask(False)
                return items
            if self._groups.closing.is_set():
                self._ended = True
                return [goodbye("the server is stopping")]
            if time.monotonic() >= due:
                return []
            await self._wait(due - time.monotonic())
        return None

    def _ask(self, asking: bool) -> None:
        for number, task in self._tasks.items():
            if number in self._hellos and not task.done():
                self._shares[number].ask(asking)

    async def _wait(self, patience: float) -> None:
        closing = asyncio.create_task(self._groups.closing.wait())
        try:
            waiting: set[asyncio.Task[Any]] = {closing, *self._tasks.values()}
            await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()

    def _collect(self) -> Sequence[Item]:
        """What the partitions have given by now. Those that have are asked again once that is
        written: who writes would keep from others what it is given meanwhile."""
        items: list[Item] = []
        for number in [number for number, task in self._tasks.items() if task.done()]:
            told = list(self._told(number, self._tasks.pop(number).result() or []))
            if any(isinstance(item, Batch | Gap) for item in told):
                self._given.append(number)
            items += told
        if not items:
            for number, share in enumerate(self._shares):
                if number not in self._tasks:
                    self._tasks[number] = asyncio.create_task(share.next())
        return items

    def _told(self, number: int, items: Sequence[Item]) -> Iterator[Item]:
        """Items of a partition as those of the whole log; one hello for all."""
        for item in items:
            match item:
                case Batch():
                    entries = [named(entry, number) for entry in item.entries]
                    self.cursor = entries[-1].id
                    yield Batch.of(entries)
                case Gap():
                    yield Gap(
                        item.reason,
                        event_id(item.after, number),
                        event_id(item.before, number),
                        item.count,
                        event_id(item.resume, number),
                    )
                case Hello():
                    self._hellos[number] = item
                    if len(self._hellos) == len(self._shares):
                        yield self._hello()
                case Bye(reason) if not self._ended and not self._groups.closing.is_set():
                    self._ended = True
                    yield goodbye(reason)

    def _hello(self) -> Hello:
        hellos = self._hellos.items()
        firsts = [event_id(hello.first, number) for number, hello in hellos if hello.first]
        lasts = [event_id(hello.last, number) for number, hello in hellos if hello.last]
        newest = max(event_id(hello.id, number) for number, hello in hellos)
        return Hello(
            newest,
            min(firsts, default=None),
            max(lasts, default=None),
            "shared",
            __version__,
        )

    async def follow(self, writer: Writer) -> None:
        """Never: what is read has to be acknowledged."""

    async def sent(self) -> None:
        """Acknowledges what was written."""
        given, self._given = self._given, []
        for number in given:
            await self._shares[number].sent()
