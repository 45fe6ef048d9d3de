"""Readers of the real hub and the real stream code against the model, on any schedule.

Readers connect anywhere in the log, alone or several at nearly the same place, and change their
filters; reads of the stream fail. What happens to Redis is for subclasses.
"""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from logpipe.continuity import Cursor, Gap
from logpipe.fanout.hub import Hub
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Hello, Item, Notice, Progress, Start
from logpipe.problems import Unavailable
from logpipe.stream import Page, Stream
from tests.helpers import wait_until
from tests.model import Reader
from tests.schedules import WHERE, WHICH, Replica, Schedule, Subscriber, initialize, rule
from tests.streams import NAME, OFTEN, running


class FlakyStream(Stream):
    """A stream whose reads fail now and then while `trouble` is above zero."""

    trouble = 0.0
    chance = random.Random(0)

    def knows_the_past_of(self, replication_id: bytes) -> bool:
        """Whether it has compared what it knows with a Redis of this replication id."""
        met = self._failovers._replication_id == replication_id
        return met and self._noted == self._generation

    async def read(
        self,
        after: Cursor,
        count: int,
        witness: StreamId = START,
        *,
        failover_era: int | None = None,
    ) -> Page:
        if self.chance.random() < self.trouble:
            raise Unavailable("away", "a fault on purpose")
        page = await super().read(after, count, witness, failover_era=failover_era)
        if self.chance.random() < self.trouble:
            raise Unavailable("away", "a fault on purpose, with the answer lost")
        return page


class Distributor(Replica):
    """A distributor's hub."""

    stream: FlakyStream
    hub: Hub

    def __init__(self, stream: FlakyStream, window: int, batch: int) -> None:
        super().__init__(stream)
        self._options = {"queue_len": window, "batch_count": batch, "heartbeat_s": 0.05}
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        self.hub = await self._stack.enter_async_context(running(self.stream, **self._options))

    async def stop(self) -> None:
        await self._stack.aclose()


class Client(Subscriber[Distributor]):
    """A reader's connections; after what it receives, it stalls by a chance of `stalls`."""

    def __init__(self, tail: "Tail", reader: Reader, start: Start, stalls: float) -> None:
        super().__init__()
        self.reader = reader
        self.stalls = stalls
        self._tail = tail
        self._start = start

    async def read(self, replica: Distributor) -> None:
        """Reads; again, where there was an id, right after that."""
        start, reader, chance = self._start, self.reader, self._tail.chance
        if reader.resume is not None:
            start = Start(resume=reader.resume, on_lag=start.on_lag)
        reader.reconnect()
        with HubSubscription(replica.hub, start, taking(reader.source)) as subscription:
            while (items := await subscription.next()) is not None:
                await self._tail.recorded.wait()
                for item in items:
                    self._note(item, subscription.filter)
                if items and chance.random() < self.stalls:
                    self.flowing.clear()
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                await self.flowing.wait()

    def _note(self, item: Item, chosen: Filter) -> None:
        match item:
            case Hello(id=begin):
                self.reader.take_hello(begin)
            case Gap():
                self.reader.begin_at(item.after)
                self.reader.take_gap(item)
            case Progress(id=id_):
                self.reader.begin_at(id_)
                self.reader.progress(id_)
            case Batch():
                self.reader.begin_at(item.start.id)
                for entry in item.matching(chosen):
                    self.reader.take_entry(entry.id)
                self.reader.passed = max(self.reader.passed, item.end.id)
                if self._tail.chance.random() < 0.3:
                    self.reader.progress(item.end.id)
            case Notice():
                pass
            case _:
                raise AssertionError(f"no item that is expected: {item}")


def taking(source: str | None) -> Filter:
    """The filter of a source; of none, everything."""
    return EVERYTHING if source is None else Filter(f"source:{source}")


FILTERS = st.sampled_from([None, "a", "nobody"])
STALLS = st.sampled_from([0.0, 0.0, 0.3])


class Tail(Schedule[Distributor, Client]):
    """Two distributors, and readers that hop between them."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = asyncio.Event()
        """Set while the log has all that was appended; until then readers judge nothing."""
        self.recorded.set()

    @initialize(
        window=st.sampled_from([5, 10, 20]),
        batch=st.sampled_from([3, 10, 50]),
        seed=st.integers(0, 2**16),
        count=st.integers(1, 30),
    )
    def begin(self, window: int, batch: int, seed: int, count: int) -> None:
        self.chance = random.Random(seed)
        self.options = window, batch
        self.do(self.reset())
        self.do(self.add(["a"] * count))
        self.do(self.start_replicas())
        self.do(wait_until(lambda: all(r.hub.attached for r in self.replicas), "attached"))
        self.log.begun = True

    def new_replica(self, where: int) -> Distributor:
        stream = FlakyStream(self.address, NAME, maxlen=10**6, block_ms=30, intervals=OFTEN)
        stream.chance = self.chance
        return Distributor(stream, *self.options)

    async def add(self, written: Sequence[str]) -> None:
        await super().add(written)
        await self.noticed()

    async def noticed(self) -> None:
        """A distributor that began with no stream has seen something of the one that there is now:
        before that, it cannot know that entries were lost with all of a stream."""
        hubs = [replica.hub for replica in self.replicas]
        await wait_until(lambda: all(hub.window.end.id > START for hub in hubs), "it is noticed")

    async def met(self) -> None:
        """Both distributors have compared what they have seen with the Redis of now."""

        def compared() -> bool:
            id_ = self.client.info("replication")["master_replid"].encode()
            return all(replica.stream.knows_the_past_of(id_) for replica in self.replicas)

        await wait_until(compared, "the Redis of now was met")

    # -- readers ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.subscribers) < 10)
    @rule(
        begins=st.sampled_from(["now", "first", "tail", "since", "resume"]),
        back=st.integers(0, 60),
        source=FILTERS,
        skip=st.booleans(),
        where=WHERE,
        stalls=STALLS,
    )
    def connect(
        self, begins: str, back: int, source: str | None, skip: bool, where: int, stalls: float
    ) -> None:
        where_to_begin: dict[str, dict[str, Any]] = {
            "now": {},
            "first": {"since": START},
            "tail": {"tail": back % 21},
            "since": {"since": self._id(back)},
            "resume": {"resume": self._id(back)},
        }
        start = Start(**where_to_begin[begins], on_lag="skip" if skip else "catchup")
        self.do(self._connect(start, source, where, stalls))

    @precondition(lambda self: len(self.subscribers) < 9)
    @rule(
        back=st.integers(10, 60),
        near=st.lists(st.integers(0, 3), min_size=2, max_size=4),
        source=FILTERS,
        where=WHERE,
        stalls=STALLS,
    )
    def come_back_together(
        self, back: int, near: list[int], source: str | None, where: int, stalls: float
    ) -> None:
        """At nearly the same place behind the window, as after a restart of a distributor."""
        for more in near:
            self.do(self._connect(Start(resume=self._id(back + more)), source, where, stalls))

    def _id(self, back: int) -> StreamId:
        """The id that so many entries followed, over all that were ever appended."""
        return self.log.all[max(0, len(self.log.all) - 1 - back)].id

    async def _connect(self, start: Start, source: str | None, where: int, stalls: float) -> None:
        reader = Reader(self.log, source)
        reader.resume = start.resume
        await self.connect_to(Client(self, reader, start, stalls), where)

    @precondition(lambda self: self.subscribers)
    @rule(which=WHICH, source=FILTERS, where=WHERE)
    def change_filter(self, which: int, source: str | None, where: int) -> None:
        client = self.one(which)
        self.do(client.disconnect())
        client.reader.change_filter(source)
        self.do(self.connect_to(client, where))

    @rule(where=WHERE, trouble=st.sampled_from([0.0, 0.3]))
    def trouble(self, where: int, trouble: float) -> None:
        """Reads of a distributor fail now and then, or no longer."""
        self.replicas[where].stream.trouble = trouble

    # -- the law ------------------------------------------------------------------------------

    async def heal_and_check(self) -> None:
        for replica in self.replicas:
            replica.stream.trouble = 0.0
        for client in self.subscribers:
            client.stalls = 0.0
            client.flowing.set()
            if client.replica is None:
                client.connect(self.replicas[0])
        await wait_until(lambda: all(c.reader.begin for c in self._alive()), "all have begun")
        await self.add(["a", "b"])
        last = self.log.last
        await wait_until(
            lambda: all(c.reader.passed >= last for c in self._alive()), "all are at the end"
        )
        for client in self.subscribers:
            await client.disconnect()
            client.reader.check()

    def _alive(self) -> list[Client]:
        for client in self.subscribers:
            client.check_alive()
        return self.subscribers
