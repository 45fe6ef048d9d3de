"""What readers that catch up cost the live ones."""

import contextlib
import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator

from logpipe.bench.deployment import get
from logpipe.bench.measures import FanOut, fan_out
from logpipe.bench.sending import Address
from tests.bench import servers
from tests.bench.servers import Measured
from tests.servers import Valkey
from tests.streams import NAME

READERS = 100
RATE = 1000.0
BEHIND = 8
KEPT = 50_000
PAGE_BYTES = 8 << 20
"""After so many bytes a reader begins again."""


async def run(seconds: float, say: Callable[[str], None]) -> None:
    """Live readers alone, then beside some that read the whole stream again and again."""
    with servers.a_valkey() as valkey:
        async with servers.logpipe(valkey) as logpipe:
            _fill(valkey)
            for name, count in (("alone", 0), (f"beside {BEHIND} that catch up", BEHIND)):
                found = await _measure(logpipe, seconds, count)
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


async def _measure(logpipe: Measured, seconds: float, count: int) -> FanOut:
    assert logpipe.target.distributor is not None
    with _behind(logpipe.target.distributor, count):
        return await fan_out(
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
    request = get(f"http://{address.host}:{address.port}", "/subscribe?since=earliest")
    while True:
        received = 0
        with socket.create_connection((address.host, address.port)) as sock:
            sock.sendall(request)
            while received < PAGE_BYTES and (data := sock.recv(1 << 18)):
                received += len(data)
