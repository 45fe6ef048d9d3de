"""Random schedules of real asynchronous code, drawn by hypothesis, and the machine that runs them.

Each run draws new schedules; pytest prints their seed. `LAW_SEED=7 SCHEDULES=150` draws those of an
earlier run again. What the servers do meanwhile, and how fast, is not drawn.
"""

import asyncio
import contextlib
import functools
import json
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Generic, TypeVar

import redis
from hypothesis import HealthCheck, Phase, seed, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, run_state_machine_as_test

from logpipe.ids import parse_id
from logpipe.redis_address import RedisAddress
from logpipe.stream import Stream
from tests.model import LawBrokenError, Log, Written
from tests.servers import Valkey
from tests.streams import NAME, address_of

# The processes of pytest-xdist inherit the seed.
SEED = int(os.environ.setdefault("LAW_SEED", str(secrets.randbelow(2**32))))
SCHEDULES = int(os.environ.get("SCHEDULES", "20"))
"""Of each law, in one run."""
TIMEOUT_S = 60 + 10 * SCHEDULES
"""Of a law: some times what it takes while other tests run beside it."""
CONTROL_SCHEDULES, CONTROL_SEED = 60, 5
"""Within which a control has to notice a fault. They are the same in each run: a control proves
that schedules notice the fault, and the first of these do, so that it takes seconds."""

SOURCES = st.lists(st.sampled_from("ab"), min_size=1, max_size=40)
WHICH = st.integers(0, 11)
WHERE = st.integers(0, 1)
KEEP = st.integers(0, 30)


class FoundError(BaseException):
    """Carries what a schedule has found. Hypothesis does not catch it, and so does not
    run the schedule again, which may end in another way."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def step(mark: Callable[..., Any], **drawn: Any) -> Callable[[Callable[..., None]], Any]:
    """`mark` of hypothesis.stateful; the schedule notes the step, and reports what it raises."""

    def decorated(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def run(self: "Schedule[Any, Any]", **values: Any) -> None:
            given = ", ".join(f"{name}={value!r}" for name, value in values.items())
            self.steps.append(f"{function.__name__}({given})")
            with self.finding():
                function(self, **values)

        return mark(**drawn)(run)

    return decorated


initialize = functools.partial(step, stateful.initialize)
rule = functools.partial(step, stateful.rule)


class Replica:
    """A process of logpipe over a stream of its own, which can die without a farewell."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    async def start(self) -> None:
        """Starts its tasks."""

    async def stop(self) -> None:
        """Ends its tasks, which give nothing back."""
        raise NotImplementedError


AReplica = TypeVar("AReplica", bound=Replica)


class Subscriber(Generic[AReplica]):
    """One subscriber's connections, one after the other; it reads on while `flowing` is set."""

    def __init__(self) -> None:
        self.replica: AReplica | None = None
        """The one that it is connected to."""
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._task: asyncio.Task[None] | None = None

    def connect(self, replica: AReplica) -> None:
        """Opens a connection."""
        self.replica = replica
        self._task = asyncio.create_task(self.read(replica))

    async def read(self, replica: AReplica) -> None:
        """Reads until the connection ends."""
        raise NotImplementedError

    async def disconnect(self) -> None:
        """Goes away, wherever the subscription is just then; raises what was found wrong."""
        if self._task is None:
            return
        task, self._task, self.replica = self._task, None, None
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()

    def check_alive(self) -> None:
        """Raises what was found wrong."""
        if self._task is not None and self._task.done():
            self._task.result()


ASubscriber = TypeVar("ASubscriber", bound=Subscriber[Any])
Result = TypeVar("Result")


class Schedule(RuleBasedStateMachine, Generic[AReplica, ASubscriber]):
    """Two replicas of logpipe over one Valkey, and subscribers that come, stall and go.

    The rules run in an event loop of the schedule's own. Subclasses say what replicas and
    subscribers are, begin, and add what is theirs.
    """

    valkey: Valkey

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.replicas: list[AReplica] = []
        self.subscribers: list[ASubscriber] = []
        self.steps: list[str] = []
        self._failed = False
        self._loop = asyncio.Runner()

    @contextlib.contextmanager
    def finding(self) -> Iterator[None]:
        """Raises `FoundError` for an error within; the law is not checked after that."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 it is raised again by `run`
            self._failed = True
            error.add_note("\n".join(["The steps:", *self.steps]))
            raise FoundError(error) from None

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a part of a step in the loop."""
        return self._loop.run(work)

    @property
    def client(self) -> redis.Redis:
        """A client of the Redis that has the stream."""
        return self.valkey.client

    @property
    def address(self) -> RedisAddress:
        """Where the replicas find Redis."""
        return address_of(self.valkey)

    async def reset(self) -> None:
        """Empties Redis for a new schedule."""
        self.valkey.reset()

    def new_replica(self, where: int) -> AReplica:
        """A replica for one of the two places, which is to be started."""
        raise NotImplementedError

    async def start_replicas(self) -> None:
        """Starts both."""
        for where in range(2):
            self.replicas.append(self.new_replica(where))
            await self.replicas[where].start()

    # -- the stream ---------------------------------------------------------------------------

    async def add(self, written: Sequence[str]) -> None:
        """Appends events of these sources, and records them in the log."""
        with self.client.pipeline(transaction=True) as pipe:
            for source in written:
                pipe.xadd(NAME, {"event": event_of(source)})
            ids = [parse_id(id_.decode()) for id_ in pipe.execute()]
        self.log.append([Written(id_, s) for id_, s in zip(ids, written, strict=True)])

    @rule(written=SOURCES)
    def append(self, written: list[str]) -> None:
        self.do(self.add(written))

    @rule(written=SOURCES, seconds=st.sampled_from([0.004, 0.03]))
    def append_and_pause(self, written: list[str], seconds: float) -> None:
        self.do(self.add(written))
        self.do(asyncio.sleep(seconds))

    @rule(keep=KEEP)
    def trim(self, keep: int) -> None:
        self.client.xtrim(NAME, maxlen=keep, approximate=False)
        self.log.trim(keep)

    @rule()
    def flush(self) -> None:
        self.client.flushall()
        self.log.flush()
        time.sleep(0.002)  # so that no id is given again

    # -- subscribers --------------------------------------------------------------------------

    async def connect_to(self, subscriber: ASubscriber, where: int) -> None:
        """Connects a subscriber, which leaves where it was."""
        if subscriber not in self.subscribers:
            self.subscribers.append(subscriber)
        await self.leave(subscriber)
        subscriber.connect(self.replicas[where])

    async def leave(self, subscriber: ASubscriber) -> None:
        """Ends a subscriber's connection."""
        await subscriber.disconnect()

    def one(self, which: int) -> ASubscriber:
        """One of the subscribers."""
        return self.subscribers[which % len(self.subscribers)]

    @precondition(lambda self: self.subscribers)
    @rule(which=WHICH, where=WHERE)
    def reconnect(self, which: int, where: int) -> None:
        self.do(self.connect_to(self.one(which), where))

    @precondition(lambda self: self.subscribers)
    @rule(which=WHICH)
    def drop(self, which: int) -> None:
        self.do(self.leave(self.one(which)))

    @precondition(lambda self: self.subscribers)
    @rule(which=WHICH)
    def stall_or_go_on(self, which: int) -> None:
        flowing = self.one(which).flowing
        (flowing.clear if flowing.is_set() else flowing.set)()

    @rule()
    def all_go_on(self) -> None:
        for subscriber in self.subscribers:
            subscriber.flowing.set()

    @rule(turns=st.sampled_from([1, 5, 30]))
    def pause(self, turns: int) -> None:
        async def some_turns() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.do(some_turns())

    # -- faults -------------------------------------------------------------------------------

    @rule(where=WHERE)
    def kill_a_replica(self, where: int) -> None:
        self.do(self.restart(where))

    async def restart(self, where: int) -> None:
        """A replica dies; another one starts in its place."""
        await self._kill(self.replicas[where])
        self.replicas[where] = self.new_replica(where)
        await self.replicas[where].start()

    async def _kill(self, dead: AReplica) -> None:
        await dead.stop()
        for subscriber in self.subscribers:
            if subscriber.replica is dead:
                await subscriber.disconnect()
        await dead.stream.aclose()

    @rule()
    def cut_connections(self) -> None:
        self.client.client_kill_filter(_type="normal", skipme=True)

    # -- the law ------------------------------------------------------------------------------

    async def heal_and_check(self) -> None:
        """Ends all faults, waits until all is quiet, and raises what breaks the law."""
        raise NotImplementedError

    async def end(self) -> None:
        """Ends everything; what a subscriber has found wrong was raised by a step or the check."""
        for subscriber in self.subscribers:
            with contextlib.suppress(AssertionError):
                await subscriber.disconnect()
        for replica in self.replicas:
            await self._kill(replica)

    def teardown(self) -> None:
        """Checks the law, and ends the schedule."""
        try:
            if self.log.begun and not self._failed:
                with self.finding():
                    self.do(self.heal_and_check())
        finally:
            self._loop.run(self.end())
            self._loop.close()


AnySchedule = type[Schedule[Any, Any]]


def event_of(source: str) -> bytes:
    """An event."""
    return json.dumps({"source": source, "message": ""}).encode()


def over(valkey: Valkey, machine: AnySchedule) -> AnySchedule:
    """The machine over this Valkey."""
    return type(f"{machine.__name__}Here", (machine,), {"valkey": valkey})


def run(machine: AnySchedule, count: int = SCHEDULES, number: int = SEED) -> None:
    """Runs schedules; raises what the first that fails has found, and how to repeat it."""
    profile = settings(
        max_examples=count,
        stateful_step_count=60,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(number)(machine), settings=profile)
    except FoundError as found:
        again = f"The schedules of this run again: LAW_SEED={number} SCHEDULES={count}"
        found.error.add_note(again)
        raise found.error from None


def breaks(machine: AnySchedule, *kinds: str) -> bool:
    """Whether the first schedule that fails breaks the law in one of these ways; raises what else
    it has found."""
    try:
        run(machine, CONTROL_SCHEDULES, CONTROL_SEED)
    except LawBrokenError as error:
        if not str(error).startswith(kinds):
            raise
        return True
    return False
