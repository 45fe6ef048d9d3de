"""A subscription to all partitions of a log.

It is one on each partition's hub, told under positions: where in each partition the reader is.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Self

from logpipe import __version__
from logpipe.continuity import Cursor, Gap
from logpipe.fanout.history import before, before_last
from logpipe.fanout.joint import JointHub, PartHub
from logpipe.fanout.live import Writer
from logpipe.fanout.steps import Stepwise, abandon
from logpipe.fanout.subscription import HubSubscription
from logpipe.fanout.window import BATCH_BYTES
from logpipe.filters import Filter
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Bye, Hello, Item, Notice, Start
from logpipe.positions import EventId, Position, event_id


class _Part(HubSubscription):
    """A subscription's way through one partition."""

    def __init__(
        self, hub: PartHub, partition: int, start: Start, chosen: Filter, begin: "_Begin"
    ) -> None:
        super().__init__(hub, start, chosen)
        self._partition = partition
        self._begin_of_all = begin

    def __enter__(self) -> Self:
        self._hub.subscribers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._hub.subscribers.discard(self)

    @property
    def live(self) -> bool:
        """Whether it has had all of the window, so that only news make it go on."""
        return self.number == self._hub.window.next_number

    def at_once(self) -> Sequence[Item]:
        """What the window has for it."""
        if self.number is None or self.number < self._hub.window.first_number:
            return []
        return self._from_window(self.number)

    @contextmanager
    def counted_live(self) -> Iterator[None]:
        """While it waits among the live readers."""
        self._hub.live.count += 1
        try:
            yield
        finally:
            self._hub.live.count -= 1

    def lag(self) -> int | None:
        """As `behind`, by what is known of its partition."""
        return self.behind(self._hub.known_bounds)

    async def _before_last(self, wanted: int) -> Cursor:
        last = await self._begin_of_all.before_last(wanted)
        since = last.after().least_in(self._partition) if isinstance(last, EventId) else START
        cursor, _ = await before(self._hub.stream, since)
        return cursor


class _Begin:
    """Where the last N matching events of all partitions begin: found once for all of them."""

    def __init__(self, hub: JointHub, chosen: Filter) -> None:
        self._hub = hub
        self._filter = chosen
        self._finding = asyncio.Lock()
        self._found: StreamId | None = None

    async def before_last(self, wanted: int) -> StreamId:
        """The id of the event before them."""
        async with self._finding:
            if self._found is None:
                stream, count = self._hub.stream, self._hub.batch_count
                self._found = (await before_last(stream, self._filter, wanted, count)).id
            return self._found


class JointSubscription(Stepwise):
    """One subscriber's way through the log; a `Start` for each partition.

    As long as a partition has never been reached it waits for it, because without it there is no
    position; once begun, it gets what the others have.
    """

    confirms = False

    def __init__(self, hub: JointHub, starts: Sequence[Start], chosen: Filter) -> None:
        super().__init__(hub)
        self.filter = chosen
        self.client = ""
        self.connected_ms = time.time_ns() // 1_000_000
        begin = _Begin(hub, chosen)
        self._hub = hub
        self._parts = [
            _Part(each, number, start, chosen, begin)
            for number, (each, start) in enumerate(zip(hub.hubs, starts, strict=True))
        ]
        self._ids: list[StreamId] = []
        """How far it was told of each partition, once it has begun."""
        self._hellos: dict[int, list[Item]] = {}
        self._tasks: dict[int, asyncio.Task[Sequence[Item] | None]] = {}
        self._said: set[str] = set()
        self._turn = 0

    def __enter__(self) -> Self:
        for part in self._parts:
            part.__enter__()
        self._hub.subscribers.add(self)
        self._hub.metrics.subscribers.labels("broadcast").inc()
        return self

    def __exit__(self, *error: object) -> None:
        for task in self._tasks.values():
            abandon(task)
        for part in self._parts:
            part.__exit__(*error)
        self._hub.subscribers.discard(self)
        self._hub.metrics.subscribers.labels("broadcast").dec()

    @property
    def position(self) -> Position | None:
        """How far it was told of each partition; None before it has begun."""
        return Position.of(self._ids) if self._ids else None

    def behind(self) -> int | None:
        """How many entries are newer than its position; None where that is not known."""
        lags = [part.lag() for part in self._parts]
        known = [lag for lag in lags if lag is not None]
        return sum(known) if len(known) == len(lags) else None

    async def sent(self) -> None:
        """Nothing: a broadcast is not acknowledged."""

    async def follow(self, writer: Writer) -> None:
        """Never: each reader merges the partitions for itself."""

    async def _step(self) -> Sequence[Item]:
        return self._advance() if self._ids else self._begin()

    async def _wait(self, change: asyncio.Event) -> None:
        """Until the hub has changed, or a partition that is read from its stream has something."""
        if not self._tasks:
            await self._wait_live(change)
            return
        changing = asyncio.create_task(change.wait())
        try:
            waiting = {changing, *self._tasks.values()}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changing.cancel()

    async def _wait_live(self, change: asyncio.Event) -> None:
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.counted_live())
            await change.wait()

    def _given(self, number: int) -> Sequence[Item]:
        """What a partition has by now. One that is not live goes on in a task of its own, so that
        it holds up no other one."""
        part = self._parts[number]
        task = self._tasks.get(number)
        if task is not None:
            if not task.done():
                return []
            del self._tasks[number]
            if items := task.result():
                return items
        items = part.at_once()
        if not items and not part.live:
            self._tasks[number] = asyncio.create_task(part.next())
        return items

    def _begin(self) -> Sequence[Item]:
        """The hello, and what comes with it, once all partitions have said theirs."""
        notices: list[Item] = []
        for number in range(len(self._parts)):
            if number in self._hellos:
                continue
            items = self._given(number)
            if items and isinstance(items[0], Hello):
                self._hellos[number] = [*items]
            else:
                notices += [item for item in items if self._is_news(item)]
        if len(self._hellos) < len(self._parts):
            return notices
        return [*notices, *self._greeting()]

    def _is_news(self, item: Item) -> bool:
        if not isinstance(item, Notice) or item.reason in self._said:
            return False
        self._said.add(item.reason)
        return True

    def _greeting(self) -> Iterator[Item]:
        given = [self._hellos[number] for number in range(len(self._parts))]
        hellos = [item for items in given for item in items if isinstance(item, Hello)]
        self._ids = [hello.id for hello in hellos]
        firsts = [event_id(h.first, number) for number, h in enumerate(hellos) if h.first]
        lasts = [event_id(h.last, number) for number, h in enumerate(hellos) if h.last]
        first, last = min(firsts, default=None), max(lasts, default=None)
        yield Hello(Position.of(self._ids), first, last, "broadcast", __version__)
        for number, items in enumerate(given):
            yield from self._tell(number, items[1:])
        self._hellos.clear()

    def _advance(self) -> Sequence[Item]:
        """What the partitions have, in turn, up to the size of one write."""
        items: list[Item] = []
        size = 0
        for _ in self._parts:
            number = self._turn
            self._turn = (self._turn + 1) % len(self._parts)
            for item in self._tell(number, self._given(number)):
                items.append(item)
                size += item.size if isinstance(item, Batch) else 0
            if size >= BATCH_BYTES:
                break
        return items

    def _tell(self, number: int, items: Sequence[Item]) -> Iterator[Item]:
        """Items of a partition as those of the whole log."""
        for item in items:
            match item:
                case Batch():
                    told = self._hub.told(item, number, self._ids)
                    self._ids[number] = item.end.id
                    yield told
                case Gap():
                    yield self._tell_gap(number, item)
                case Bye():
                    pass  # the hub says it for all
                case _ if self._is_news(item):
                    yield item

    def _tell_gap(self, number: int, gap: Gap) -> Gap:
        self._ids[number] = gap.resume
        text = ".".join(map(str, self._ids))
        return Gap(
            gap.reason,
            event_id(gap.after, number),
            event_id(gap.before, number),
            gap.count,
            Position.after_entry(gap.resume, number, text),
        )
