"""What readers that catch up cost the live ones."""

import asyncio
import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterator

from logpipe.bench.http import Address, Body, BrokenError, connect
from logpipe.bench.measures import FanOut, fan_out
from logpipe.bench.target import get
from tests.bench import servers
from tests.bench.servers import Measured
from tests.servers import Valkey
from tests.streams import NAME

READERS = 100
RATE = 1000.0
BEHIND = 8
KEPT = 50_000
PAGE_BYTES = 8 << 20
"""A reader that has had so much begins again."""


async def run(seconds: float, say: Callable[[str], None]) -> None:
    """Live readers alone, then beside some that read the whole stream again and again."""
    with servers.a_valkey() as valkey:
        async with servers.logpipe(valkey) as logpipe:
            _fill(valkey)
            for name, count in (("alone", 0), (f"beside {BEHIND} that catch up", BEHIND)):
                found = await asyncio.to_thread(_measure, logpipe, seconds, count)
                latency = found.latency_ms
                say(
                    f"{READERS} live readers x {RATE:,.0f}/s, {name}:"
                    f" p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms,"
                    f" {found.used.cores or 0:.2f} cores, missing {found.missing}"
                )


def _fill(valkey: Valkey) -> None:
    event = b'{"source":"old","message":"%b"}' % (b"x" * 150)
    with valkey.client.pipeline(transaction=False) as pipe:
        for _ in range(KEPT):
            pipe.xadd(NAME, {"event": event})
        pipe.execute()


def _measure(logpipe: Measured, seconds: float, count: int) -> FanOut:
    assert logpipe.target.distributor is not None
    with _behind(logpipe.target.distributor, count):
        return fan_out(
            logpipe.target,
            readers=READERS,
            rate=RATE,
            size=200,
            seconds=seconds,
            batch=False,
            meter=logpipe.at_givers,
        )


@contextlib.contextmanager
def _behind(address: Address, count: int) -> Iterator[None]:
    """So many readers that begin with the oldest entry, again and again, in a process of their
    own."""
    process = multiprocessing.get_context("spawn").Process(
        target=_read_all, args=(address, count), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _read_all(address: Address, count: int) -> None:
    threads = [threading.Thread(target=_read_again, args=(address,)) for _ in range(count)]
    for thread in threads:
        thread.start()


def _read_again(address: Address) -> None:
    request = get(address, "/subscribe?since=earliest")
    while True:
        had = 0
        with contextlib.closing(connect(address)) as sock, contextlib.suppress(BrokenError):
            body = Body()
            sock.sendall(request)
            while had < PAGE_BYTES:
                had += sum(map(len, body.feed(memoryview(sock.recv(1 << 18)))))
