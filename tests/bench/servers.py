"""The servers of a comparison as targets: logpipe, and what it is compared with."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from logpipe.bench.deployment import logpipe_at
from logpipe.bench.measures import Target, Usage
from logpipe.bench.reading import Crowd, Reader
from logpipe.bench.sending import Address, Connection
from tests.bench.machine import usage
from tests.bench.peers import Peer
from tests.servers import Process, Valkey, spawned


class Measured(NamedTuple):
    """A target, and the processes that serve it: those that take events in, and those that give
    them out."""

    target: Target
    takers: tuple[int, ...]
    givers: tuple[int, ...]
    ingests: bool = True
    """Whether what it takes in is measured."""

    async def at_takers(self) -> Usage:
        """What the processes that take events in have used."""
        return usage(self.takers)

    async def at_givers(self) -> Usage:
        """What the processes that give events out have used."""
        return usage(self.givers)


class _Unanswered(Connection):
    """A publisher of a broker that speaks first and does not answer a request: it counts as
    acknowledged once it is written."""

    greeting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self.greeting)

    def send(self, request: bytes) -> None:
        self.transport.write(request)
        asyncio.get_running_loop().call_soon(
            lambda: self.sender.answered(self, 202, b"", kept=True)
        )

    def data_received(self, data: bytes) -> None:
        pass


class _Raw(Reader):
    """A reader of such a broker, which asks each client for a sign of life in turn.

    The messages of a run have one size; all readers are given the same groups of them, so that
    these are searched for marks once.
    """

    GROUP = 10

    def __init__(self, crowd: Crowd, *, timed: bool = False) -> None:
        super().__init__(crowd, timed=timed)
        self._rest = b""
        self._messages = 0

    def feed(self, data: memoryview) -> None:
        self.begun = True
        rest = self._rest + bytes(data).replace(b"PING\r\n", b"")
        at = max(0, rest.find(b"MSG "))
        size = rest.find(b'"}\r\n', at) + 4 - at
        while size > 3 and len(rest) - at >= size:
            count = min(self.GROUP - self._messages % self.GROUP, (len(rest) - at) // size)
            self.take(rest[at : at + count * size])
            self._messages += count
            at += count * size
        self._rest = rest[at:]


def of(peer: Peer) -> Measured:
    """A peer, as it is measured."""

    def single(events: Sequence[bytes]) -> bytes:
        return b"".join(map(peer.single, events))

    address = Address("127.0.0.1", peer.port)
    target = Target(
        peer.name,
        address,
        address if peer.subscribe is not None else None,
        single,
        peer.batch,
        peer.greeting + (peer.subscribe or b""),
    )
    if not peer.answers:
        sends = type("_Greeting", (_Unanswered,), {"greeting": peer.greeting})
        target = target._replace(sends=sends, reads=_Raw)
    return Measured(target, peer.pids, peer.pids, ingests=peer.answers)


@contextlib.asynccontextmanager
async def logpipe(valkey: Valkey, workers: int = 1) -> AsyncIterator[Measured]:
    """A collector and a distributor, each a process of its own or several."""
    common = {"REDIS_ADDR": valkey.url, "WORKERS": str(workers)}
    async with _role("collector", common) as collector, _role("distributor", common) as distributor:
        yield Measured(
            logpipe_at(collector.url, distributor.url),
            serving(collector, workers),
            serving(distributor, workers),
            ingests=False,
        )


@contextlib.asynccontextmanager
async def logpipe_collector(valkey: Valkey, workers: int = 1) -> AsyncIterator[Measured]:
    """A collector alone, as peers are measured, which hold nothing for readers that are not
    there."""
    common = {"REDIS_ADDR": valkey.url, "WORKERS": str(workers)}
    async with _role("collector", common) as collector:
        target = logpipe_at(collector.url, collector.url)._replace(distributor=None)
        pids = serving(collector, workers)
        yield Measured(target, pids, pids)


@contextlib.asynccontextmanager
async def _role(role: str, environ: Mapping[str, str]) -> AsyncIterator[Process]:
    with tempfile.TemporaryDirectory(prefix="logpipe-bench-") as folder:
        async with spawned(Path(folder), ROLE=role, **environ) as process:
            await process.ready()
            yield process


@contextlib.asynccontextmanager
async def logpipe_in_one() -> AsyncIterator[Measured]:
    """All roles in one process, with the embedded engine, which answers once it is on disk."""
    with tempfile.TemporaryDirectory(prefix="logpipe-bench-") as name:
        folder = Path(name)
        async with spawned(folder, DATA_DIR=str(folder / "data")) as process:
            await process.ready()
            target = logpipe_at(process.url, process.url)
            pid = process.popen.pid
            yield Measured(target._replace(name="logpipe, all in one"), (pid,), (pid,))
            process.popen.terminate()
            await process.exit_status()


def serving(process: Process, workers: int) -> tuple[int, ...]:
    """The pids that serve: the process itself, or its workers."""
    return children(process.popen.pid) if workers > 1 else (process.popen.pid,)


def children(pid: int) -> tuple[int, ...]:
    """The pids of a process's children."""
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


Opened = Callable[[], contextlib.AbstractAsyncContextManager[Measured]]


@contextlib.asynccontextmanager
async def opened(context: contextlib.AbstractContextManager[Peer]) -> AsyncIterator[Measured]:
    """A peer that runs."""
    with context as peer:
        yield of(peer)


@contextlib.contextmanager
def a_valkey() -> Iterator[Valkey]:
    """The same Redis for all: without persistence, as the ceilings of the comparison have it."""
    with Valkey.started() as valkey:
        yield valkey
