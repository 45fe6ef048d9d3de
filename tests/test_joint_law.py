"""The promise over partitions as a law: one log on three keys, two replicas, on any schedule.

What a reader is told of each partition is judged by the model of one stream; that a position names
all of them, and that only the partition of an item moves in it, is judged here.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from logpipe.continuity import Gap
from logpipe.fanout import hub as hub_module
from logpipe.fanout import subscription as subscription_module
from logpipe.fanout.joint import JointHub
from logpipe.fanout.joint_subscription import JointSubscription
from logpipe.ids import START, StreamId, parse_id
from logpipe.messages import Batch, Hello, Item, Notice
from logpipe.metrics import Metrics
from logpipe.parameters import chosen_starts
from logpipe.positions import EventId, parse_position
from logpipe.stream import Partitions, connections, partition_key
from tests.helpers import wait_until
from tests.model import Log, Reader, Written
from tests.schedules import PROFILE, SCHEDULES, TIMEOUT_S, Schedule, fails, over, run
from tests.servers import Valkey
from tests.streams import NAME, address_of
from tests.test_law import FlakyStream, taking

COUNT = 3
FEWER = settings(PROFILE, max_examples=SCHEDULES or 10)
"""Each of the three streams has its own law already (`test_law.py`)."""
KEYS = [partition_key(NAME, number, COUNT) for number in range(COUNT)]


class Replica:
    """A distributor's joint hub over streams of its own, which can die without a farewell."""

    def __init__(self, valkey: Valkey, window: int, batch: int, chance: random.Random) -> None:
        self.streams = [
            FlakyStream(address_of(valkey), key, maxlen=10**6, block_ms=30) for key in KEYS
        ]
        for stream in self.streams:
            stream.chance = chance
        self._partitions = Partitions(self.streams)
        self.hub = JointHub(
            self._partitions, Metrics(), queue_len=window, batch_count=batch, heartbeat_s=0.05
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        running = (self.hub.run(), self.hub.beat(), self._partitions.monitor())
        self._tasks = [asyncio.create_task(each) for each in running]

    async def die(self) -> None:
        for task in self._tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._partitions.aclose()


class Client:
    """A reader's connections: a model of what it may be told of each partition."""

    def __init__(
        self, readers: list[Reader], query: dict[str, str], at: str, chance: random.Random
    ) -> None:
        self.readers = readers
        self.replica: Replica | None = None
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.resume = at
        """The position that it would send as Last-Event-ID."""
        self._at: list[StreamId] = []
        """How far this connection was told of each partition."""
        self._query = query
        self._chance = chance
        self._task: asyncio.Task[None] | None = None

    def connect(self, replica: Replica) -> None:
        """Connects; again, if it had a position, right after that."""
        starts = chosen_starts(self._query, self.resume, COUNT)
        for reader in self.readers:
            reader.reconnect()
        self.replica, self._at = replica, []
        subscription = JointSubscription(replica.hub, starts, taking(self.readers[0].source))
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

    async def _live(self, subscription: JointSubscription) -> None:
        with subscription:
            while (items := await subscription.next()) is not None:
                for item in items:
                    self._note(item, subscription)
                for _ in range(self._chance.randrange(4)):
                    await asyncio.sleep(0)
                await self.flowing.wait()

    def _note(self, item: Item, subscription: JointSubscription) -> None:
        match item:
            case Hello(id=begin):
                self._at = parse_position(str(begin), COUNT)
                for reader, id_ in zip(self.readers, self._at, strict=True):
                    reader.told_hello(id_)
                self._progress(str(begin))
            case Gap(reason, EventId() as after, before, count, resume):
                gap = Gap(reason, bare(after), bare(before), count, bare(resume))
                self.readers[after.partition].told_gap(gap)
                self._moved(resume)
            case Batch():
                for entry in item.matching(subscription.filter):
                    assert isinstance(entry.id, EventId)
                    assert entry.json.startswith(
                        b'{"id":"%d-%d-%d"' % (*bare(entry.id), entry.id.partition)
                    )
                    self.readers[entry.id.partition].told_entry(bare(entry.id))
                    self._moved(entry.id)
                end = item.end.id
                assert isinstance(end, EventId)
                reader = self.readers[end.partition]
                reader.passed = max(reader.passed, bare(end))
                self._at[end.partition] = bare(end)
                if self._chance.random() < 0.3:
                    self._moved(end)
            case Notice():
                pass
            case _:
                raise AssertionError(f"nobody expected {item}")

    def _moved(self, id_: StreamId) -> None:
        """A position moves in its own partition alone, to its own id."""
        assert isinstance(id_, EventId)
        self._at[id_.partition] = bare(id_)
        assert parse_position(str(id_), COUNT) == self._at
        self._progress(str(id_))

    def _progress(self, position: str) -> None:
        self.resume = position
        for reader, id_ in zip(self.readers, parse_position(position, COUNT), strict=True):
            reader.progress(id_)


def bare(id_: StreamId) -> StreamId:
    """The id within its partition."""
    return StreamId(id_.ms, id_.seq)


numbers = st.integers(0, COUNT - 1)
written_sources = st.lists(st.sampled_from("ab"), min_size=1, max_size=40)


class Spread(Schedule):
    """Two replicas over three partitions, and readers that hop between them."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = [Log() for _ in KEYS]
        self.clients: list[Client] = []
        self.replicas: list[Replica] = []

    @initialize(
        window=st.sampled_from([15, 30, 60]),
        batch=st.sampled_from([3, 10, 50]),
        seed=st.integers(0, 2**16),
        counts=st.lists(st.integers(0, 30), min_size=COUNT, max_size=COUNT),
    )
    def begin(self, window: int, batch: int, seed: int, counts: list[int]) -> None:
        self.chance = random.Random(seed)
        self.options = window, batch
        self.valkey.reset()
        for number, count in enumerate(counts):
            self._append(number, ["a"] * count)
        self.do(self._start_replicas())
        self.log.begun = True

    async def _start_replicas(self) -> None:
        for _ in range(2):
            self.replicas.append(await self._a_replica())
        await wait_until(
            lambda: all(hub.attached for r in self.replicas for hub in r.hub.hubs), "attached"
        )

    async def _a_replica(self) -> Replica:
        replica = Replica(self.valkey, *self.options, self.chance)
        await replica.start()
        return replica

    # -- the streams --------------------------------------------------------------------------

    def _append(self, number: int, written: Sequence[str]) -> None:
        if not written:
            return
        with self.valkey.client.pipeline(transaction=True) as pipe:
            for source in written:
                pipe.xadd(KEYS[number], {"event": b'{"source":"%b"}' % source.encode()})
            ids = pipe.execute()
        self.logs[number].append(
            [Written(parse_id(i.decode()), s) for i, s in zip(ids, written, strict=True)]
        )

    @rule(number=numbers, written=written_sources)
    def append(self, number: int, written: list[str]) -> None:
        self._append(number, written)

    @rule(number=numbers, written=written_sources)
    def append_and_pause(self, number: int, written: list[str]) -> None:
        self._append(number, written)
        self.do(asyncio.sleep(0.004))

    @rule(number=numbers, keep=st.integers(0, 30))
    def trim(self, number: int, keep: int) -> None:
        self.valkey.client.xtrim(KEYS[number], maxlen=keep, approximate=False)
        self.logs[number].trim(keep)

    @rule()
    def flush(self) -> None:
        if all(self._is_known(number) for number in range(COUNT)):
            self.valkey.client.flushall()
            for log in self.logs:
                log.flush()
            time.sleep(0.002)

    @rule(number=numbers)
    def lose_a_partition(self, number: int) -> None:
        if self._is_known(number):
            self.valkey.client.delete(KEYS[number])
            self.logs[number].flush()
            time.sleep(0.002)

    def _is_known(self, number: int) -> bool:
        """Whether the feeds know that this stream had an entry; soon they do.

        What comes to an empty stream and goes with it before anyone has seen it leaves no trace,
        over partitions as over one.
        """
        log = self.logs[number]
        feeds = [replica.hub.hubs[number] for replica in self.replicas]

        def known() -> bool:
            ends = [feed.window.end.id for feed in feeds]
            return len(log.all) == log.flushed_at or all(end != START for end in ends)

        async def soon() -> bool:
            with contextlib.suppress(AssertionError):
                await wait_until(known, "it was seen", 0.2)
            return known()

        return self.do(soon())

    # -- readers ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.clients) < 8)
    @rule(
        data=st.data(),
        source=st.sampled_from([None, "a", "nobody"]),
        skip=st.booleans(),
        where=st.integers(0, 1),
    )
    def connect(self, data: st.DataObject, source: str | None, skip: bool, where: int) -> None:
        query, at = data.draw(
            st.one_of(
                st.just(({}, "")),
                st.just(({"since": "earliest"}, "")),
                st.integers(0, 20).map(lambda count: ({"tail": str(count)}, "")),
                st.just(({}, self._some_position())),
                st.just(({"since": self._some_id()}, "")),
            )
        )
        query["on_lag"] = "skip" if skip else "catchup"
        readers = [Reader(log, source) for log in self.logs]
        if at:
            for reader, id_ in zip(readers, parse_position(at, COUNT), strict=True):
                reader.resume = id_
        client = Client(readers, query, at, self.chance)
        self.clients.append(client)
        self.do(self._connect(client, where))

    def _some_position(self) -> str:
        known = [self.chance.choice(log.all).id if log.all else log.last for log in self.logs]
        return ".".join(map(str, known))

    def _some_id(self) -> str:
        number = self.chance.randrange(COUNT)
        log = self.logs[number]
        id_ = self.chance.choice(log.all).id if log.all else log.last
        return f"{id_}-{number}"

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

    @rule(where=st.integers(0, 1), number=numbers, trouble=st.sampled_from([0.0, 0.3]))
    def trouble(self, where: int, number: int, trouble: float) -> None:
        self.replicas[where].streams[number].trouble = trouble

    # -- the law ------------------------------------------------------------------------------

    async def heal_and_check(self) -> None:
        for stream in (stream for replica in self.replicas for stream in replica.streams):
            stream.trouble = 0.0
        for client in self.clients:
            client.flowing.set()
            if client.replica is None:
                client.connect(self.replicas[0])
        await wait_until(
            lambda: all(r.begin is not None for c in self._alive() for r in c.readers),
            "all have begun",
            20,
        )
        for number in range(COUNT):
            self._append(number, ["a", "b"])
        await wait_until(
            lambda: all(r.passed >= r.log.last for c in self._alive() for r in c.readers),
            "all are at the end",
            20,
        )
        for client in self.clients:
            await client.disconnect()
            for reader in client.readers:
                reader.check()

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


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing here waits for an outage longer than it must."""
    caplog.set_level("CRITICAL", logger="logpipe")
    monkeypatch.setattr(connections, "MONITOR_S", 0.02)
    monkeypatch.setattr(connections, "TROUBLED_S", 0.01)
    monkeypatch.setattr(hub_module, "OUTAGE_PAUSE_S", 0.003)
    monkeypatch.setattr(hub_module, "RECOVERY_S", 0.02)
    monkeypatch.setattr(subscription_module, "RETRY_S", 0.02)


@pytest.fixture
def spread(valkey: Valkey) -> type[Schedule]:
    return over(valkey, Spread)


@pytest.mark.timeout(TIMEOUT_S)
def test_over_partitions_ids_received_and_gaps_told_add_up_on_any_schedule(
    spread: type[Schedule],
) -> None:
    run(spread, FEWER)


def test_a_position_that_forgets_a_partition_is_noticed(
    spread: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what one partition was read up to is told too late."""
    told = JointHub.told

    def stale(self: JointHub, batch: Batch, number: int, ids: Sequence[StreamId]) -> Batch:
        return told(self, batch, number, [*ids[:-1], StreamId(0, 0)] if number == 0 else ids)

    monkeypatch.setattr(JointHub, "told", stale)
    assert fails(spread)


def test_gaps_of_a_partition_that_are_not_told_are_noticed(
    spread: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.stream.stream.gap_after", lambda *_: None)
    assert fails(spread)
