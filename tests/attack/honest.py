"""The honest clients of an attacked server, in a process of their own.

A sender of numbered events, single ones and batches; a reader that resumes; one that resumes from
long ago; and whoever asks for `/livez` and `/healthz`. The process reads one line of JSON
(`Wanted`), prints a line now and then (`Progress`), ends when its input ends, and prints what was
seen (`Witnessed`).
"""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from logpipe import sse
from tests.attack.judge import Accepted, Gap, Sample, Witnessed
from tests.helpers import processor_wait_s
from tests.raw import Answer, Connection, request
from tests.soak.judge import parse_id

SOURCE = "honest"
PRIORITY = -15
"""What the process asks for, so that what it measures is not its own wait for a processor."""
LIVEZ_EVERY_S = 0.04
POST_EVERY_S = 0.025
HEALTH_EVERY_S = 0.5
RESUME_EVERY_S = 0.5
SYSLOG_EVERY_S = 0.25
STAYS_S = 3.0
"""How long the reader stays connected before it resumes."""
BATCH = 50
"""Events of a batch; every 20th request is one, and every 10th comes over a new connection."""
PATIENCE_S = 20.0
"""After so long a client gives up."""
AT_THE_END_S = 20.0
"""How long the reader has to come to the last event."""


class Wanted(msgspec.Struct):
    """Whom to ask."""

    port: int
    witness: int
    pids: list[int]
    """Of the server, its Redis and the witness."""
    resume_from: str = ""
    syslog_port: int = 0
    authority: str = ""
    """The file of the certificate's authority, where the server speaks TLS."""


class Progress(msgspec.Struct, tag=True):
    """What was seen until now."""

    livez_s: float
    post_s: float
    received: int


def waits_of(pid: int) -> Mapping[str, float]:
    """How long each thread of a process has waited for a processor, its main thread first."""
    others = (path.name for path in Path(f"/proc/{pid}/task").glob("*") if path.name != str(pid))
    return {thread: processor_wait_s(thread) for thread in (str(pid), *others)}


def machine_part_s(
    before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]
) -> float:
    """For how long some processes waited between two calls of `waits_of` for each of them: the
    main thread, and the one that waited longest of the others, which may have held Python's lock.
    """
    total = 0.0
    for old, new in zip(before, after, strict=True):
        main, *others = (waited - old.get(thread, 0.0) for thread, waited in new.items())
        total += main + max(others, default=0.0)
    return total


class Clients:
    """All of them, and what they have seen."""

    def __init__(self, wanted: Wanted) -> None:
        self.seen = Witnessed()
        self.stopping = False
        self._wanted = wanted
        authority = wanted.authority
        self._tls = ssl.create_default_context(cafile=authority) if authority else None
        self._number = 0
        self._sent_at: dict[int, float] = {}
        self._kept: Connection | None = None
        self._cursor = ""

    async def run(self) -> None:
        """Until `stopping`, and then until the reader has everything or is out of patience."""
        reading = asyncio.create_task(self._read())
        probes: list[tuple[float, list[Sample], Callable[[], Awaitable[str]]]] = [
            (LIVEZ_EVERY_S, self.seen.livez, self._livez),
            (HEALTH_EVERY_S, self.seen.health, self._healthz),
            (POST_EVERY_S, self.seen.posts, self._post),
        ]
        if self._wanted.resume_from:
            probes.append((RESUME_EVERY_S, self.seen.resumes, self._resume))
        if self._wanted.syslog_port:
            probes.append((SYSLOG_EVERY_S, self.seen.syslog, self._syslog))
        while not self._cursor:  # what is sent before would rightly not be read
            await asyncio.sleep(0.01)
        async with asyncio.TaskGroup() as group:
            for every_s, samples, ask in probes:
                group.create_task(self._repeated(every_s, samples, ask))
        until = time.monotonic() + AT_THE_END_S
        while self._is_behind() and time.monotonic() < until:
            await asyncio.sleep(0.02)
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.result()

    def _is_behind(self) -> bool:
        accepted = self.seen.accepted
        return bool(accepted) and parse_id(self._cursor) < accepted[-1].last

    async def _repeated(
        self, every_s: float, samples: list[Sample], ask: Callable[[], Awaitable[str]]
    ) -> None:
        while not self.stopping:
            began = time.monotonic()
            samples.append(await self._sampled(ask, witnessed=ask == self._livez))
            await asyncio.sleep(max(0.0, began + every_s - time.monotonic()))

    async def _sampled(self, ask: Callable[[], Awaitable[str]], *, witnessed: bool) -> Sample:
        witness = asyncio.create_task(self._witness()) if witnessed else None
        waited, began = self._waits(), time.monotonic()
        error = ""
        try:
            # Who is out of patience has a latency, too: the machine may have taken most of it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    error = await ask()
        except (OSError, asyncio.IncompleteReadError, ValueError) as problem:
            error = repr(problem)
        took_s = time.monotonic() - began
        machine_s = machine_part_s(waited, self._waits())
        if witness is not None:
            machine_s += await witness
        return Sample(began, took_s, machine_s, error)

    def _waits(self) -> list[Mapping[str, float]]:
        """Of the server, its Redis and this process, as `waits_of` has them."""
        server, redis, _ = self._wanted.pids
        return [waits_of(server), waits_of(redis), waits_of(os.getpid())]

    async def _witness(self) -> float:
        """How late the witness answers, beyond its own wait for a processor."""
        pid = self._wanted.pids[2]
        waited, began = processor_wait_s(pid) + processor_wait_s("self"), time.monotonic()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._wanted.witness)
            try:
                connection = Connection(reader, writer)
                await connection.send(request(start="GET / HTTP/1.1"))
                await connection.answer()
            finally:
                writer.transport.abort()
        took_s = time.monotonic() - began
        return max(0.0, took_s - (processor_wait_s(pid) + processor_wait_s("self") - waited))

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        connection = await self._connect()
        try:
            yield connection
        finally:
            connection.writer.transport.abort()

    async def _connect(self) -> Connection:
        """A new connection to the server."""
        name = "localhost" if self._tls is not None else None
        return Connection(
            *await asyncio.open_connection(
                "127.0.0.1", self._wanted.port, ssl=self._tls, server_hostname=name
            )
        )

    async def _get(self, path: str) -> str:
        async with self._connected() as connection:
            await connection.send(request(b"", "Connection: close", start=f"GET {path} HTTP/1.1"))
            answer = await connection.answer(2 * PATIENCE_S)
        return "" if answer.status == 200 else f"{answer.status} {answer.body[:200]!r}"

    async def _livez(self) -> str:
        return await self._get("/livez")

    async def _healthz(self) -> str:
        return await self._get("/healthz")

    async def _post(self) -> str:
        """The next event or batch."""
        turn = len(self.seen.posts)
        count = BATCH if turn % 20 == 19 else 1
        numbers = (self._number, self._number + count)
        self._number += count
        events = [
            {"source": SOURCE, "message": f"event {number}", "metadata": {"n": number}}
            for number in range(*numbers)
        ]
        body = json.dumps(events if count > 1 else events[0]).encode()
        # The events of a batch with a key have ids that follow each other.
        key = [f"Idempotency-Key: {os.getpid()}-{turn}"] if count > 1 else []
        asked = request(body, "Content-Type: application/json", *key)
        now = time.monotonic()
        self._sent_at.update((number, now) for number in range(*numbers))
        if turn % 10 == 5:
            async with self._connected() as connection:
                await connection.send(asked)
                answer = await connection.answer(2 * PATIENCE_S)
        else:
            answer = await self._over_kept(asked)
        if answer.status != 202:
            return f"{answer.status} {answer.body[:200]!r}"
        told = json.loads(answer.body)
        first, last = (told["id"],) * 2 if count == 1 else (told["first_id"], told["last_id"])
        self.seen.accepted.append(Accepted(numbers, parse_id(first), parse_id(last)))
        return ""

    async def _over_kept(self, asked: bytes) -> Answer:
        """The answer over the connection that is kept open, or over a new one where the server
        has closed that: what any client does."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            try:
                await kept.send(asked)
                answer = await kept.answer(2 * PATIENCE_S)
            except (OSError, asyncio.IncompleteReadError):
                kept.writer.transport.abort()
            except BaseException:
                kept.writer.transport.abort()
                raise
            else:
                self._kept = kept
                return answer
        made = await self._connect()
        try:
            await made.send(asked)
            answer = await made.answer(2 * PATIENCE_S)
        except BaseException:
            made.writer.transport.abort()
            raise
        self._kept = made
        return answer

    async def _syslog(self) -> str:
        """A message over a new connection; read at once where the server has closed it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._wanted.syslog_port)
        try:
            writer.write(b"<14>1 2026-01-01T00:00:00Z host honest-syslog - - - hello\n")
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.read(1)
                    return "the connection was closed"
        finally:
            writer.close()
        return ""

    async def _resume(self) -> str:
        """A reader from long ago, until its first event; in turn with one that looks back for
        something rare, until its `hello`."""
        query, last_id, wanted = "", self._wanted.resume_from, "message"
        if len(self.seen.resumes) % 2:
            query, last_id, wanted = "tail=10&q=/honestly-rare/", "", "hello"
        async with self._subscribed(query, last_id) as events:
            async for event in events:
                if event.event == wanted:
                    return ""
                if event.event == "bye":
                    return f"bye: {event.data}"
        return "the stream ended"

    async def _read(self) -> None:
        """The reader of all events of the honest sender."""
        while True:
            with contextlib.suppress(
                OSError, asyncio.IncompleteReadError, TimeoutError, ValueError
            ):
                async with asyncio.timeout(STAYS_S if not self.stopping else None):
                    async with self._subscribed(f"q=source:{SOURCE}", self._cursor) as events:
                        async for event in events:
                            self._take(event)
            await asyncio.sleep(0.05)

    def _take(self, event: sse.ServerSentEvent) -> None:
        if event.event == "message":
            number = json.loads(event.data)["metadata"]["n"]
            self.seen.received.append(number)
            began = self._sent_at.pop(number, None)
            if began is not None:
                self.seen.deliveries.append(Sample(began, time.monotonic() - began))
        elif event.event == "gap":
            told = json.loads(event.data)
            self.seen.gaps.append(Gap(parse_id(told["after"]), parse_id(told["before"])))
        if event.id and (event.event != "hello" or not self._cursor):
            self._cursor = event.id

    @contextlib.asynccontextmanager
    async def _subscribed(
        self, query: str, last_id: str
    ) -> AsyncIterator[AsyncIterator[sse.ServerSentEvent]]:
        lines = [f"Last-Event-ID: {last_id}"] if last_id else []
        async with self._connected() as connection:
            start = f"GET /subscribe?{query} HTTP/1.1"
            await connection.send(request(b"", *lines, start=start))
            head = await connection.reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise ValueError(head.split(b"\r\n")[0].decode())
            yield _events(connection)


async def _events(connection: Connection) -> AsyncIterator[sse.ServerSentEvent]:
    parser = sse.Parser()
    async for chunk in connection.chunks():
        for event in parser.feed(chunk.decode()):
            yield event


def _worst(samples: list[Sample]) -> float:
    return max((sample.fair_s for sample in samples), default=0.0)


def _print(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> None:
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    wanted = msgspec.json.decode(sys.stdin.readline(), type=Wanted)
    clients = Clients(wanted)
    running = asyncio.create_task(clients.run())
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    while not running.done():
        await asyncio.wait([running, ending] if not ending.done() else [running], timeout=0.5)
        clients.stopping = ending.done()
        seen = clients.seen
        _print(Progress(_worst(seen.livez), _worst(seen.posts), len(seen.received)))
    running.result()
    _print(clients.seen)


if __name__ == "__main__":
    socket.setdefaulttimeout(PATIENCE_S)
    asyncio.run(_main())
