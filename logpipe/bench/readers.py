"""The reading side of a benchmark: a crowd of subscribers in a process of its own.

Subscribers of one stream are sent the same bytes. So each process keeps one reference of what was
read, which it looks through once; a subscriber costs a comparison with it, and is looked through
by itself only from where it differs. That keeps up with a gigabyte a second.
"""

import bisect
import contextlib
import multiprocessing
import selectors
import socket
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple

import msgspec

from logpipe.bench.events import Mark, Marks
from logpipe.bench.wire import Address, Body, BrokenError, connect

RECEIVE_BYTES = 1 << 20
SETTLE_S = 10.0
"""What the last events may take to arrive after the last one was sent."""
TIMED = 20
"""Subscribers of a process whose every event is timed; the others are counted."""
CONNECTING_AT_ONCE = 200


class Crowd(msgspec.Struct, frozen=True):
    """So many subscribers, what each sends to become one, and the events that they look for."""

    address: Address
    request: bytes
    run: str
    count: int
    per_request: int = 1
    http: bool = True


class Read(msgspec.Struct):
    """What a crowd has read."""

    subscribers: int = 0
    connected: int = 0
    connect_s: float = 0.0
    delivered: int = 0
    """Events, over all subscribers."""
    missing: int = 0
    doubled: int = 0
    disordered: int = 0
    received_bytes: int = 0
    latency_ms: list[float] = []
    """From when an event was due until a subscriber had it, for the subscribers that are timed."""
    cpu_s: float = 0.0
    broken: list[str] = []


class _Reference:
    """What every subscriber is sent, as the first to receive it has seen it."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self.data = bytearray()
        self.base = 0  # the offset of its first byte, as what all have had is let go
        self.ends: list[int] = []
        self.marks: list[Mark] = []
        self._searched = 0

    @property
    def end(self) -> int:
        return self.base + len(self.data)

    def extend(self, more: memoryview) -> None:
        self.data += more
        for end, mark in self._marks.find(self.data, self._searched - self.base):
            self.ends.append(self.base + end)
            self.marks.append(mark)
            self._searched = self.base + end
        self._searched = max(self._searched, self.end - Marks.LENGTH)

    def let_go(self, offset: int) -> None:
        """Forgets what lies before an offset, once it is worth it."""
        keep = min(offset, self._searched) - self.base
        if keep > 16 * RECEIVE_BYTES:
            del self.data[:keep]
            self.base += keep


class _Subscriber:
    def __init__(self, sock: socket.socket, crowd: Crowd, marks: Marks, *, timed: bool) -> None:
        self.sock = sock
        self.body = Body(http=crowd.http)
        self.offset = 0
        self.timed: list[tuple[int, int]] | None = [] if timed else None
        self._marks = marks
        self._own = bytearray()
        self._differs = False
        self.own: list[tuple[int, Mark]] = []

    def take(self, piece: memoryview, reference: _Reference, now_us: int) -> None:
        """Bytes of the body, in their order."""
        if self._differs:
            self._look_through(piece, now_us)
            return
        at = self.offset - reference.base
        known = min(len(piece), len(reference.data) - at)
        if known > 0 and not reference.data.startswith(piece[:known], at):
            self._leave(piece, reference, now_us)
            return
        if known < len(piece):
            reference.extend(piece[known:])
        self.offset += len(piece)
        if self.timed is not None:
            self.timed.append((now_us, self.offset))

    def _leave(self, piece: memoryview, reference: _Reference, now_us: int) -> None:
        """From here on it is not sent what the others are."""
        self._differs = True
        at = self.offset - reference.base
        self._own += reference.data[max(0, at - Marks.LENGTH) : at]
        self._look_through(piece, now_us, known=bool(self._own))

    def _look_through(self, piece: memoryview, now_us: int, *, known: bool = False) -> None:
        if known:  # marks that were complete before were seen in the reference
            before = self._marks.find(self._own)
            if before:
                del self._own[: before[-1][0]]
        self._own += piece
        found = self._marks.find(self._own)
        self.own += [(now_us, mark) for _, mark in found]
        del self._own[: found[-1][0] if found else max(0, len(self._own) - Marks.LENGTH)]


class _Process:
    """The crowd, in its process."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._marks = Marks(crowd.run, crowd.per_request)
        self._selector = selectors.DefaultSelector()
        self._subscribers: list[_Subscriber] = []
        self._reference = _Reference(self._marks)
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._read = Read(subscribers=crowd.count, latency_ms=[], broken=[])
        self._armed = False

    def connect(self) -> None:
        """Connects all, and waits until each has had the head of its answer."""
        started = time.monotonic()
        for number in range(self._crowd.count):
            try:
                sock = connect(self._crowd.address)
                sock.sendall(self._crowd.request)
            except OSError as error:
                self._read.broken.append(str(error))
                continue
            sock.setblocking(False)
            one = _Subscriber(sock, self._crowd, self._marks, timed=number < TIMED)
            self._subscribers.append(one)
            self._selector.register(sock, selectors.EVENT_READ, one)
            if number % CONNECTING_AT_ONCE == 0:
                self.turn(0)
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and not all(o.body.begun for o in self._subscribers):
            self.turn(0.05)
        self._read.connected = sum(one.body.begun for one in self._subscribers)
        self._read.connect_s = time.monotonic() - started

    def arm(self) -> None:
        """From now on what comes counts; before, each was greeted in its own way."""
        self.turn(0)
        self._armed = True
        self._cpu = time.process_time()

    def turn(self, timeout: float) -> None:
        """Reads from all that have something."""
        for key, _ in self._selector.select(timeout):
            one: _Subscriber = key.data
            try:
                with contextlib.suppress(BlockingIOError):
                    size = one.sock.recv_into(self._buffer)
                    if size == 0:
                        raise BrokenError("closed by the server")
                    now_us = time.time_ns() // 1000
                    pieces = one.body.feed(self._buffer[:size])
                    if self._armed:
                        self._read.received_bytes += size
                        for piece in pieces:
                            one.take(piece, self._reference, now_us)
            except (OSError, BrokenError) as error:
                self._read.broken.append(str(error))
                self._selector.unregister(one.sock)
        if self._armed:
            self._reference.let_go(min((o.offset for o in self._subscribers), default=0))

    def finish(self, expected: set[int]) -> Read:
        """Waits for what is still to come, and counts."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and not self._complete(expected):
            self.turn(0.05)
        read = self._read
        read.cpu_s = time.process_time() - self._cpu
        for one in self._subscribers:
            self._judge(one, expected)
        return read

    def _complete(self, expected: set[int]) -> bool:
        reference = self._reference
        if not reference.marks and expected:
            return False
        return all(
            one.offset == reference.end or len(self._numbers(one)) >= len(expected)
            for one in self._subscribers
        ) and len(reference.marks) >= len(expected)

    def _numbers(self, one: _Subscriber) -> list[int]:
        shared = bisect.bisect_right(self._reference.ends, one.offset)
        return [mark.number for mark in self._reference.marks[:shared]] + [
            mark.number for _, mark in one.own
        ]

    def _judge(self, one: _Subscriber, expected: set[int]) -> None:
        numbers = self._numbers(one)
        distinct = set(numbers)
        read = self._read
        read.delivered += len(numbers)
        read.missing += len(expected - distinct)
        read.doubled += len(numbers) - len(distinct)
        read.disordered += sum(a > b for a, b in zip(numbers, numbers[1:], strict=False))
        if one.timed is None:
            return
        first = 0
        ends, marks = self._reference.ends, self._reference.marks
        for now_us, offset in one.timed:
            last = bisect.bisect_right(ends, offset, first)
            read.latency_ms += [(now_us - mark.due_us) / 1000 for mark in marks[first:last]]
            first = last
        read.latency_ms += [(now_us - mark.due_us) / 1000 for now_us, mark in one.own]


Command = tuple[Literal["arm"]] | tuple[Literal["finish"], list[int]]


def _main(pipe: Connection, crowd: Crowd) -> None:
    """The process: connects, says so, and reads until it is told to finish."""
    process = _Process(crowd)
    process.connect()
    pipe.send(msgspec.json.encode(process._read))  # noqa: SLF001
    while True:
        while not pipe.poll():
            process.turn(0.01)
        command: Command = pipe.recv()
        if command[0] == "arm":
            process.arm()
            pipe.send(b"")
        else:
            pipe.send(msgspec.json.encode(process.finish(set(command[1]))))
            return


class Spawned(NamedTuple):
    """Processes of readers that are connected."""

    pipes: list[Connection]
    connected: int
    connect_s: float

    def arm(self) -> None:
        """From now on what comes counts."""
        for pipe in self.pipes:
            pipe.send(("arm",))
        for pipe in self.pipes:
            pipe.recv()

    def finish(self, numbers: Iterable[int]) -> Read:
        """Ends them; what they have read, all together, of the events of these numbers."""
        expected = list(numbers)
        for pipe in self.pipes:
            pipe.send(("finish", expected))
        total = Read(latency_ms=[], broken=[])
        for pipe in self.pipes:
            read = msgspec.json.decode(pipe.recv(), type=Read)
            for name in ("subscribers", "connected", "delivered", "missing", "doubled",
                         "disordered", "received_bytes", "cpu_s", "latency_ms", "broken"):  # fmt: skip
                setattr(total, name, getattr(total, name) + getattr(read, name))
            total.connect_s = max(total.connect_s, read.connect_s)
        return total


@contextlib.contextmanager
def spawned(crowd: Crowd, processes: int):  # type: ignore[no-untyped-def]
    """A crowd, split over so many processes, all connected."""
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
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
        first = [msgspec.json.decode(pipe.recv(), type=Read) for pipe in pipes]
        yield Spawned(pipes, sum(r.connected for r in first), max(r.connect_s for r in first))
    finally:
        for child in children:
            child.kill()
            child.join()
