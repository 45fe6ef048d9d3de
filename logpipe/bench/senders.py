"""The sending side of a benchmark: at full rate, or at a pace that does not wait for the server."""

import contextlib
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from logpipe.bench.events import Template
from logpipe.bench.http import Address, Answer, Answers, BrokenError, connect
from logpipe.event import NOT_DECODED

ANSWER_S = 10.0
"""What the last answers may take after the last request."""

TOO_LARGE = 413

RECEIVE_BYTES = 1 << 16
SELECTABLE = 512
"""Connections that select() can surely wait for: it takes no descriptor beyond 1023."""


class Sent(msgspec.Struct):
    """What became of the requests of a run; those without an answer were neither."""

    seconds: float = 0.0
    requests: int = 0
    events: int = 0
    """Events that the server has acknowledged."""
    numbers: list[int] = []
    """The requests that it has acknowledged, by number."""
    refused: dict[str, int] = {}
    """Requests that it has not taken, by status or reason."""
    answer_ms: list[float] = []
    """From the time a request was due to its answer."""
    last: bytes = b""
    """The last acknowledgement's body."""
    max_events: int = 0
    """The largest batch that the server accepts, where it has refused one as too large and said
    so."""

    @property
    def events_per_s(self) -> float:
        """Acknowledged events a second."""
        return self.events / self.seconds if self.seconds else 0.0


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answers = Answers()
        self.number = 0
        self.due_ns = 0


class Sender:
    """Connections of which each has one request under way; `answers` is false where the server
    says nothing to a request, as brokers with a protocol of their own do."""

    def __init__(
        self,
        address: Address,
        template: Template,
        connections: int,
        *,
        first: int = 0,
        answers: bool = True,
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self._template = template
        self._next = first
        self._first = first
        self._answers = answers
        self._refused: Counter[str] = Counter()
        self._sent = Sent(numbers=[], answer_ms=[])
        # Not epoll: its time limits are whole milliseconds, and a pace is finer than that.
        few = connections <= SELECTABLE
        self._selector = selector or (
            selectors.SelectSelector() if few else selectors.DefaultSelector()
        )
        self._idle: deque[_Connection] = deque()
        self._busy = 0
        try:
            for _ in range(connections):
                connection = _Connection(connect(address))
                self._idle.append(connection)
                self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connections."""
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()

    def at_full_rate(self, seconds: float, tick: Callable[[int], None] = lambda _: None) -> Sent:
        """Each connection sends its next request as soon as the last one is answered.

        `tick` is called about ten times a second and at the end, with the number of events so far.
        """
        started = time.monotonic_ns()
        end = started + int(seconds * 1e9)
        told = started
        while (now := time.monotonic_ns()) < end and (self._idle or self._busy):
            for _ in range(len(self._idle)):
                self._begin(now)
            # Who is not answered is idle again at once.
            self._take(0.0 if self._idle else 0.1)
            if now - told > 100_000_000:
                told = now
                tick(self._sent.events)
        tick(self._sent.events)
        return self._finish(started)

    def at_pace(
        self, rate: float, seconds: float, tick: Callable[[int], None] = lambda _: None
    ) -> Sent:
        """`rate` requests a second, each due at its time whether those before are answered or not.

        One that finds no idle connection waits, and its wait counts.
        """
        started = time.monotonic_ns()
        count = round(rate * seconds)
        told = started
        for due_ns in (started + int(i * 1e9 / rate) for i in range(count)):
            while (now := time.monotonic_ns()) < due_ns or not self._idle:
                self._take(max(0.0, (due_ns - now) / 1e9) if self._idle else 0.1)
                if not self._idle and not self._busy:
                    return self._finish(started)
            self._begin(due_ns)
            if now - told > 100_000_000:
                told = now
                tick(self._sent.events)
        tick(self._sent.events)
        return self._finish(started, count / rate if count else 0.0)

    def _begin(self, due_ns: int) -> None:
        connection = self._idle.popleft()
        connection.number = self._next
        connection.due_ns = due_ns
        self._next += 1
        late_us = (time.monotonic_ns() - due_ns) // 1000
        request = self._template.request(connection.number, time.time_ns() // 1000 - late_us)
        try:
            connection.sock.sendall(request)
        except OSError as error:
            self._drop(connection, str(error))
            return
        if self._answers:
            self._busy += 1
        else:
            self._acknowledge(connection)

    def _take(self, timeout: float) -> None:
        """Takes the answers that have come, or waits for the first."""
        for key, _ in self._selector.select(timeout):
            connection: _Connection = key.data
            try:
                answer = self._receive(connection)
            except (OSError, BrokenError) as error:
                if connection in self._idle:
                    self._idle.remove(connection)
                else:
                    self._busy -= 1
                self._drop(connection, str(error))
                continue
            if answer is None:
                continue
            self._busy -= 1
            if answer.status < 300:
                self._sent.last = answer.body
                self._acknowledge(connection)
            else:
                self._refuse(answer)
                self._idle.append(connection)

    def _refuse(self, answer: Answer) -> None:
        """Counts a refusal by its status, and by what a collector says of too large a batch."""
        problem = _Problem()
        if answer.status == TOO_LARGE:
            with contextlib.suppress(*NOT_DECODED):
                problem = msgspec.json.decode(answer.body, type=_Problem)
        self._sent.max_events = problem.max_events or self._sent.max_events
        self._refused[f"{answer.status} {problem.detail}".strip()] += 1

    def _receive(self, connection: _Connection) -> Answer | None:
        data = connection.sock.recv(RECEIVE_BYTES)
        if not data:
            raise BrokenError("closed")
        return connection.answers.feed(data) if self._answers else None

    def _acknowledge(self, connection: _Connection) -> None:
        self._sent.answer_ms.append((time.monotonic_ns() - connection.due_ns) / 1e6)
        self._sent.numbers.append(connection.number)
        self._sent.events += self._template.per_request
        self._idle.append(connection)

    def _drop(self, connection: _Connection, reason: str) -> None:
        self._refused[reason] += 1
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection.sock)
        connection.sock.close()

    def _finish(self, started_ns: int, least_s: float = 0.0) -> Sent:
        """Waits for the answers under way; they count, and so does their time.

        A pace takes as long as it was to: its last request stands for the time after it, too.
        """
        deadline = time.monotonic() + ANSWER_S
        while self._busy and time.monotonic() < deadline:
            self._take(0.1)
        self._sent.seconds = max(least_s, (time.monotonic_ns() - started_ns) / 1e9)
        self._sent.requests = self._next - self._first
        if self._busy:
            self._refused[f"no answer within {ANSWER_S:.0f} s"] += self._busy
        self._sent.refused = dict(self._refused)
        return self._sent


class _Problem(msgspec.Struct):
    detail: str = ""
    max_events: int = 0


class Recipe(NamedTuple):
    """How a server is sent to: where, as what, and whether it answers."""

    address: Address
    template: Template
    answers: bool = True


@contextlib.contextmanager
def sender(recipe: Recipe, connections: int, first: int = 0) -> Iterator[Sender]:
    """A sender whose connections are closed at the end."""
    made = Sender(recipe.address, recipe.template, connections, first=first, answers=recipe.answers)
    try:
        yield made
    finally:
        made.close()
