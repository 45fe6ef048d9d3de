"""Readers that hop between replicas, with their own few lines of HTTP and SSE."""

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec

from tests.soak.judge import Gap, History, Id, parse_id

SILENCE_S = 5.0
"""A connection without even a heartbeat for so long is dead."""


class Metadata(msgspec.Struct):
    """What the writer put into an event."""

    n: int


class Told(msgspec.Struct):
    """Any message: an event, or a named one."""

    id: str = ""
    metadata: Metadata | None = None
    event: str = ""
    reason: str = ""
    after: str = ""
    before: str = ""
    count: int | None = None


_told = msgspec.json.Decoder(Told)


class Plan(NamedTuple):
    """How a reader behaves: its query, which numbers that takes, and its habits, in seconds."""

    query: dict[str, str]
    wants: Callable[[int], bool]
    ndjson: bool = False
    stays_s: float = 5.0
    """How long it stays connected, on average."""
    stalls_s: float = 0.0
    """How long it reads nothing, once a connection."""
    leaves: bool = True
    """Whether it ever leaves by itself. What was written to a worker that leaves has been
    acknowledged: only the server's death is to be made up for."""


class Reader:
    """One reader over all its connections, until it has come to an id."""

    def __init__(self, name: str, plan: Plan, urls: list[str], chance: random.Random) -> None:
        self.history = History(name, plan.wants, [], [], [])
        self.cursor = ""
        self.connections = 0
        self.plan = plan
        self._urls = urls
        self._chance = chance

    @property
    def at(self) -> Id:
        """How far it has come."""
        return parse_id(self.cursor) if self.cursor else (0, 0)

    async def run(self) -> None:
        """Reads for ever."""
        while True:
            stays_s = self._chance.expovariate(1 / self.plan.stays_s) + 0.2
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(stays_s if self.plan.leaves else None):
                    await self._connection(self._chance.choice(self._urls))
            await asyncio.sleep(self._chance.uniform(0, 0.2))

    async def _connection(self, url: str) -> None:
        stall_at = self._chance.uniform(0, 2) if self.plan.stalls_s else float("inf")
        began = asyncio.get_running_loop().time()
        async with connected(url, self.plan, self.cursor) as reader:
            self.connections += 1
            rest = b""
            while True:
                if asyncio.get_running_loop().time() - began > stall_at:
                    stall_at = float("inf")
                    await asyncio.sleep(self.plan.stalls_s)
                # Not `wait_for`: that of Python 3.11 may swallow a cancellation.
                async with asyncio.timeout(SILENCE_S):
                    size = int(await reader.readuntil(b"\r\n"), 16)
                    rest += (await reader.readexactly(size + 2))[:-2]
                if not size:
                    return
                end = b"\n" if self.plan.ndjson else b"\n\n"
                *whole, rest = rest.split(end)
                for each in whole:
                    self.take(each)

    def take(self, frame: bytes) -> None:
        """One SSE event or NDJSON line."""
        name, id_, data = "", "", frame
        if not self.plan.ndjson:
            fields = dict(
                line.decode().partition(": ")[::2]
                for line in frame.split(b"\n")
                if not line.startswith(b":")
            )
            if "data" not in fields:
                return
            name, id_, data = fields.get("event", ""), fields.get("id", ""), fields["data"].encode()
        told = _told.decode(data)
        self.note(name or told.event, id_ or told.id, told)

    def note(self, name: str, id_: str, told: Told) -> None:
        """Takes note of an event or a named message."""
        if told.metadata is not None:
            self.history.received.append((parse_id(told.id), told.metadata.n))
        elif name == "hello" and id_ and not self.history.begin:
            self.history.begin.append(parse_id(id_))
        elif name == "gap":
            ends = parse_id(told.after), parse_id(told.before)
            self.history.gaps.append(Gap(told.reason, *ends, told.count))
        if (id_ and name != "hello") or not self.cursor:
            self.cursor = id_ or self.cursor


class Worker(Reader):
    """A subscriber of a consumer group, which has no cursor of its own."""

    def __init__(self, name: str, plan: Plan, urls: list[str], chance: random.Random) -> None:
        super().__init__(name, plan, urls, chance)
        self.received: Counter[int] = Counter()

    def note(self, name: str, id_: str, told: Told) -> None:
        """Takes note; the position is the group's."""
        super().note(name, id_, told)
        if told.metadata is not None:
            self.received[told.metadata.n] += 1
        self.cursor = ""


@contextlib.asynccontextmanager
async def connected(url: str, plan: Plan, cursor: str) -> AsyncIterator[asyncio.StreamReader]:
    """A subscription's body, still in chunks. Raises OSError for any answer but 200."""
    host, _, port = url.removeprefix("http://").partition(":")
    plain = socket.socket()
    plain.setblocking(False)
    if plan.stalls_s:  # it is to be felt by the server, not swallowed by the kernel
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    try:
        await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
    except BaseException:
        plain.close()
        raise
    reader, writer = await asyncio.open_connection(sock=plain, limit=2**20)
    try:
        accept = "application/x-ndjson" if plan.ndjson else "text/event-stream"
        head = [f"GET /subscribe?{urlencode(plan.query)} HTTP/1.1", f"Host: {host}"]
        head += [f"Accept: {accept}"] + ([f"Last-Event-ID: {cursor}"] if cursor else [])
        writer.write("\r\n".join([*head, "", ""]).encode())
        status = await reader.readline()
        while (await reader.readline()).strip():
            pass
        if b" 200 " not in status:
            raise OSError(status.decode())
        yield reader
    finally:
        writer.transport.abort()
