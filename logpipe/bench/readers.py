"""The reading side of a benchmark: crowds of subscribers, in processes of their own."""

import bisect
import contextlib
import multiprocessing
import selectors
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from logpipe.bench.events import Marks
from logpipe.bench.http import Address, BrokenError, connect
from logpipe.bench.reference import Reference, Subscriber

RECEIVE_BYTES = 1 << 20
KEPT_BYTES = 16 << 20
"""Of a reference, before the part is let go that all have had."""
SETTLE_S = 10.0
"""What the last events may take to arrive after the last one was sent."""
ENDING_S = 1.0
"""What a process may take to end by itself, before it is killed."""
TIMED = 20
"""Subscribers of a process whose every event is timed; the others are counted."""
CONNECTING_AT_ONCE = 200
QUIET_S = 0.2
"""Without a byte to any subscriber, all greetings have come."""


class Crowd(msgspec.Struct, frozen=True):
    """So many subscribers, what they send, in turn, to become one, and the events of which run
    they look for.

    Those that send the same are sent the same: each request has a reference of its own.
    """

    address: Address
    requests: tuple[bytes, ...]
    run: str
    count: int
    per_request: int = 1
    http: bool = True


class Read(msgspec.Struct):
    """What a crowd has read."""

    connected: int = 0
    connect_s: float = 0.0
    delivered: int = 0
    """Events, over all subscribers."""
    missing: int = 0
    doubled: int = 0
    received_bytes: int = 0
    latency_ms: list[float] = []
    """From when an event was due until a subscriber had it, for the subscribers that are timed."""
    cpu_s: float = 0.0
    broken: list[str] = []


class _Process:
    """The crowd, in its process."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._marks = Marks(crowd.run, crowd.per_request)
        self._selector = selectors.DefaultSelector()
        self._subscribers: list[Subscriber] = []
        self._references = [Reference(self._marks) for _ in crowd.requests]
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._read = Read(latency_ms=[], broken=[])
        self._armed = False
        self._cpu_s = 0.0

    def connect(self) -> Read:
        """Connects all, and waits until each has had the head of its answer."""
        started = time.monotonic()
        for number in range(self._crowd.count):
            try:
                sock = connect(self._crowd.address)
                sock.sendall(self._crowd.requests[number % len(self._crowd.requests)])
            except OSError as error:
                self._read.broken.append(str(error))
                continue
            sock.setblocking(False)
            reference = self._references[number % len(self._references)]
            one = Subscriber(
                sock, reference, self._marks, http=self._crowd.http, timed=number < TIMED
            )
            self._subscribers.append(one)
            self._selector.register(sock, selectors.EVENT_READ, one)
            if number % CONNECTING_AT_ONCE == 0:
                self.turn(0)
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and not all(o.body.begun for o in self._open()):
            self.turn(0.05)
        self._read.connected = sum(one.body.begun for one in self._subscribers)
        self._read.connect_s = time.monotonic() - started
        return Read(connected=self._read.connected, connect_s=self._read.connect_s)

    def arm(self) -> None:
        """From now on what comes counts; before, each was greeted in its own way.

        A deployment that others use as well is never quiet: what is theirs is told apart later.
        """
        deadline = time.monotonic() + SETTLE_S
        while self.turn(QUIET_S) and time.monotonic() < deadline:
            continue
        self._armed = True
        self._cpu_s = time.process_time()

    def turn(self, timeout: float) -> bool:
        """Reads from all that have something; whether any had."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            one: Subscriber = key.data
            try:
                self._receive(one)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except (OSError, BrokenError) as error:
                self._read.broken.append(str(error))
                self._selector.unregister(one.sock)
        if self._armed:
            self._let_go()
        return bool(ready)

    def _let_go(self) -> None:
        """What all have had is no longer needed; who differs needs none of it."""
        for reference in self._references:
            if len(reference.data) > KEPT_BYTES:
                followers = (o for o in self._open() if o.reference is reference)
                reference.let_go(min((o.needs for o in followers), default=reference.end))

    def _receive(self, one: Subscriber) -> None:
        size = one.sock.recv_into(self._buffer)
        if size == 0:
            raise BrokenError("closed by the server")
        now_us = time.time_ns() // 1000
        pieces = one.body.feed(self._buffer[:size])
        if self._armed:
            self._read.received_bytes += size
            for piece in pieces:
                one.take(piece, now_us)

    def finish(self, expected: set[int]) -> Read:
        """Waits for what is still to come, and counts."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and not self._complete(expected):
            self.turn(0.05)
        read = self._read
        read.cpu_s = time.process_time() - self._cpu_s
        for one in self._subscribers:
            self._judge(one, expected)
        return read

    def _complete(self, expected: set[int]) -> bool:
        """Whether each has as many as are expected; most have all of their reference."""
        enough = {id(each): len(each.marks) >= len(expected) for each in self._references}
        return all(
            enough[id(one.reference)]
            if not one.differs and one.offset == one.reference.end
            else len(self._numbers(one)) >= len(expected)
            for one in self._open()
        )

    def _open(self) -> list[Subscriber]:
        """Those that are still connected: nothing more comes to the others."""
        return [key.data for key in self._selector.get_map().values()]

    def _numbers(self, one: Subscriber) -> list[int]:
        shared = bisect.bisect_right(one.reference.ends, one.offset)
        return [
            mark.number for mark in (*one.reference.marks[:shared], *(mark for _, mark in one.own))
        ]

    def _judge(self, one: Subscriber, expected: set[int]) -> None:
        numbers = self._numbers(one)
        distinct = set(numbers)
        read = self._read
        read.delivered += len(numbers)
        read.missing += len(expected - distinct)
        read.doubled += len(numbers) - len(distinct)
        if one.timed is None:
            return
        first = 0
        ends, marks = one.reference.ends, one.reference.marks
        for now_us, offset in one.timed:
            last = bisect.bisect_right(ends, offset, first)
            read.latency_ms += [(now_us - mark.due_us) / 1000 for mark in marks[first:last]]
            first = last
        read.latency_ms += [(now_us - mark.due_us) / 1000 for now_us, mark in one.own]


def _main(pipe: "Connection[Any, Any]", crowd: Crowd) -> None:
    """The process: connects, says so, and reads until it is told which events it should have.

    A ^C reaches it, too; whoever has started it speaks of that, and ends it.
    """
    with contextlib.suppress(KeyboardInterrupt):
        _serve(pipe, crowd)


def _serve(pipe: "Connection[Any, Any]", crowd: Crowd) -> None:
    process = _Process(crowd)
    pipe.send(process.connect())
    while True:
        while not pipe.poll():
            process.turn(0.01)
        expected: set[int] | None = pipe.recv()
        if expected is None:
            process.arm()
            pipe.send(None)
        else:
            pipe.send(process.finish(expected))
            return


class Crowds:
    """Processes of subscribers, all connected."""

    def __init__(self, pipes: "list[Connection[Any, Any]]") -> None:
        self._pipes = pipes
        self.connected = _total([_heard(pipe) for pipe in pipes])

    def arm(self) -> None:
        """From now on what comes counts."""
        self._ask(None)

    def finish(self, numbers: Iterable[int]) -> Read:
        """Ends them; what they have read, all together, of the events of these numbers."""
        return _total(self._ask(set(numbers)))

    def _ask(self, what: set[int] | None) -> list[Any]:
        with contextlib.suppress(BrokenPipeError):  # what cannot be told will not answer, either
            for pipe in self._pipes:
                pipe.send(what)
        return [_heard(pipe) for pipe in self._pipes]


def _heard(pipe: "Connection[Any, Any]") -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise OSError("a process of readers has died") from None


def _total(reads: Sequence[Read]) -> Read:
    """As if it were one crowd; they connected at the same time."""
    total = Read(latency_ms=[], broken=[])
    for read in reads:
        for field in msgspec.structs.fields(Read):
            before, more = getattr(total, field.name), getattr(read, field.name)
            together = max(before, more) if field.name == "connect_s" else before + more
            setattr(total, field.name, together)
    return total


@contextlib.contextmanager
def reading(crowd: Crowd, processes: int) -> Iterator[Crowds]:
    """A crowd, split over so many processes; they end with this context."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection[Any, Any]] = []
    children = []
    try:
        for number in range(processes):
            count = crowd.count // processes + (number < crowd.count % processes)
            ours, theirs = context.Pipe()
            some = msgspec.structs.replace(crowd, count=count)
            child = context.Process(target=_main, args=(theirs, some), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        yield Crowds(pipes)
        for child in children:  # it ends by itself when it has said what it has read
            child.join(ENDING_S)
    finally:
        for child in children:
            child.kill()
            child.join()
