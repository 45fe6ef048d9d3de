"""Readers of the real hub and the real stream code against the model, on any schedule.

Hypothesis draws the schedule: what is appended, trimmed and flushed, who connects where, stalls,
drops and resumes, which replica of logpipe dies. What happens to Redis is for subclasses.
"""

import asyncio
import contextlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from logpipe.continuity import Cursor, Gap
from logpipe.fanout.hub import Hub
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Hello, Item, Notice, Progress, Start
from logpipe.problems import Unavailable
from logpipe.redis_address import RedisAddress
from logpipe.stream import Page, Stream, connections
from tests.helpers import wait_until
from tests.model import Reader
from tests.schedules import Schedule
from tests.streams import NAME, running


def taking(source: str | None) -> Filter:
    """The filter of a source; of none, everything."""
    return EVERYTHING if source is None else Filter(f"source:{source}")


class FlakyStream(Stream):
    """A stream whose reads fail now and then while `trouble` is above zero."""

    def knows_the_past_of(self, replication_id: bytes) -> bool:
        """Whether it has compared what it knows with a Redis of this replication id."""
        met = self._failovers._replication_id == replication_id
        return met and self._noted == self._generation

    trouble = 0.0
    chance = random.Random(0)

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


class Replica:
    """A distributor's hub over a stream of its own, which can die without a farewell."""

    def __init__(
        self, address: RedisAddress, window: int, batch: int, chance: random.Random
    ) -> None:
        self.stream = FlakyStream(address, NAME, maxlen=10**6, block_ms=30)
        self.stream.chance = chance
        self._options = {"queue_len": window, "batch_count": batch, "heartbeat_s": 0.05}
        self._stack = contextlib.AsyncExitStack()
        self.hub: Hub

    async def start(self) -> None:
        self._stack.push_async_callback(self.stream.aclose)
        self.hub = await self._stack.enter_async_context(running(self.stream, **self._options))

    async def die(self) -> None:
        await self._stack.aclose()


class Client:
    """A reader's connections."""

    def __init__(
        self, reader: Reader, start: Start, chance: random.Random, recorded: asyncio.Event
    ) -> None:
        self.reader = reader
        self.replica: Replica | None = None
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._start = start
        self._chance = chance
        self._recorded = recorded
        self._task: asyncio.Task[None] | None = None

    def connect(self, replica: Replica) -> None:
        """Connects; again, if it had an id, right after that."""
        start, reader = self._start, self.reader
        if reader.resume is not None:
            start = Start(resume=reader.resume, on_lag=start.on_lag)
        reader.reconnect()
        self.replica = replica
        subscription = HubSubscription(replica.hub, start, taking(reader.source))
        self._task = asyncio.create_task(self._live(subscription))

    async def disconnect(self) -> None:
        """Goes away, wherever the subscription is just then."""
        if self._task is None:
            return
        task, self._task, self.replica = self._task, None, None
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()

    def check_alive(self) -> None:
        """Raises what the reader has found wrong."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def _live(self, subscription: HubSubscription) -> None:
        with subscription:
            while (items := await subscription.next()) is not None:
                await self._recorded.wait()
                for item in items:
                    self._note(item, subscription.filter)
                for _ in range(self._chance.randrange(4)):
                    await asyncio.sleep(0)
                await self.flowing.wait()

    def _note(self, item: Item, chosen: Filter) -> None:
        match item:
            case Hello(id=begin):
                self.reader.told_hello(begin)
            case Gap():
                self.reader.told_begin(item.after)
                self.reader.told_gap(item)
            case Progress(id=id_):
                self.reader.told_begin(id_)
                self.reader.progress(id_)
            case Batch():
                self.reader.told_begin(item.start.id)
                for entry in item.matching(chosen):
                    self.reader.told_entry(entry.id)
                self.reader.passed = max(self.reader.passed, item.end.id)
                if self._chance.random() < 0.3:
                    self.reader.progress(item.end.id)
            case Notice():
                pass
            case _:
                raise AssertionError(f"nobody expected {item}")


sources = st.sampled_from([None, "a", "nobody"])


class Tail(Schedule):
    """Two replicas, and readers that hop between them."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Client] = []
        self.replicas: list[Replica] = []
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
        self.do(self._start_replicas())
        self.log.begun = True

    @property
    def address(self) -> RedisAddress:
        """Where the replicas find Redis."""
        raise NotImplementedError

    async def reset(self) -> None:
        """Empties Redis for a new schedule."""
        raise NotImplementedError

    async def _start_replicas(self) -> None:
        for _ in range(2):
            self.replicas.append(await self._a_replica())
        await wait_until(lambda: all(r.hub.attached for r in self.replicas), "attached")

    async def _a_replica(self) -> Replica:
        replica = Replica(self.address, *self.options, self.chance)
        await replica.start()
        return replica

    # -- the stream ---------------------------------------------------------------------------

    async def add(self, written: Sequence[str]) -> None:
        """Appends events of these sources, and records them in the log."""
        raise NotImplementedError

    @rule(written=st.lists(st.sampled_from("ab"), min_size=1, max_size=40))
    def append(self, written: list[str]) -> None:
        self.do(self.add(written))

    @rule(written=st.lists(st.sampled_from("ab"), min_size=1, max_size=40))
    def append_and_pause(self, written: list[str]) -> None:
        self.do(self.add(written))
        self.do(asyncio.sleep(0.004))

    # -- readers ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.clients) < 10)
    @rule(data=st.data(), source=sources, skip=st.booleans(), where=st.integers(0, 1))
    def connect(self, data: st.DataObject, source: str | None, skip: bool, where: int) -> None:
        known = st.sampled_from(self.log.all).map(lambda written: written.id)
        fields = data.draw(
            st.one_of(
                st.just({}),
                st.just({"since": START}),
                st.fixed_dictionaries({"tail": st.integers(0, 20)}),
                st.fixed_dictionaries({"since": known}),
                st.fixed_dictionaries({"resume": known}),
            )
        )
        start = Start(**fields, on_lag="skip" if skip else "catchup")
        reader = Reader(self.log, source)
        reader.resume = start.resume
        client = Client(reader, start, self.chance, self.recorded)
        self.clients.append(client)
        self.do(self._connect(client, where))

    async def _connect(self, client: Client, where: int) -> None:
        await client.disconnect()
        client.connect(self.replicas[where])

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), where=st.integers(0, 1))
    def resume(self, data: st.DataObject, where: int) -> None:
        self.do(self._connect(data.draw(st.sampled_from(self.clients)), where))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.do(data.draw(st.sampled_from(self.clients)).disconnect())

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), source=sources, where=st.integers(0, 1))
    def change_filter(self, data: st.DataObject, source: str | None, where: int) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.do(client.disconnect())
        client.reader.change_filter(source)
        self.do(self._connect(client, where))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def stall_or_go_on(self, data: st.DataObject) -> None:
        flowing = data.draw(st.sampled_from(self.clients)).flowing
        (flowing.clear if flowing.is_set() else flowing.set)()

    @rule(turns=st.sampled_from([1, 5, 30]))
    def pause(self, turns: int) -> None:
        async def some_turns() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.do(some_turns())

    # -- faults -------------------------------------------------------------------------------

    @rule(where=st.integers(0, 1))
    def kill_a_replica(self, where: int) -> None:
        self.do(self._restart(where))

    async def _restart(self, where: int) -> None:
        dead = self.replicas[where]
        for client in self.clients:
            if client.replica is dead:
                await client.disconnect()
        await dead.die()
        self.replicas[where] = await self._a_replica()

    @rule()
    def cut_connections(self) -> None:
        self.valkey.client.client_kill_filter(_type="normal", skipme=True)

    @rule(where=st.integers(0, 1), trouble=st.sampled_from([0.0, 0.3]))
    def trouble(self, where: int, trouble: float) -> None:
        self.replicas[where].stream.trouble = trouble

    # -- the law ------------------------------------------------------------------------------

    async def heal_and_check(self) -> None:
        for replica in self.replicas:
            replica.stream.trouble = 0.0
        for client in self.clients:
            client.flowing.set()
            if client.replica is None:
                client.connect(self.replicas[0])
        await wait_until(lambda: all(c.reader.begin for c in self._alive()), "all have begun", 10)
        await self.add(["a", "b"])
        last = self.log.last
        await wait_until(
            lambda: all(c.reader.passed >= last for c in self._alive()), "all are at the end", 10
        )
        for client in self.clients:
            await client.disconnect()
            client.reader.check()

    def _alive(self) -> list[Client]:
        for client in self.clients:
            client.check_alive()
        return self.clients

    async def end(self) -> None:
        for client in self.clients:
            with contextlib.suppress(AssertionError):
                await client.disconnect()
        for replica in self.replicas:
            await replica.die()


def hurry(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Has nothing wait for an outage longer than it must, nor log it."""
    caplog.set_level("CRITICAL", logger="logpipe")
    monkeypatch.setattr(connections, "MONITOR_S", 0.02)
    monkeypatch.setattr(connections, "TROUBLED_S", 0.01)
