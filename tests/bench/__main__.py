"""`make bench`: logpipe, its ceilings and its peers on this machine, in one run.

python -m tests.bench                 the comparison, a table of medians
python -m tests.bench --growth DIR    how cost grows, as a picture in DIR, and what catch-up costs
python -m tests.bench --guard         a minute or two: fails where a ratio has fallen by a quarter
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from pathlib import Path

from logpipe.bench.measures import Measure, fan_out, ingest
from logpipe.bench.report import lines
from logpipe.cli.common import loop_factory
from tests.bench import catchup, growth, guard, peers, servers
from tests.bench.machine import allow_many_files, description
from tests.bench.servers import Measured, Opened
from tests.bench.table import HEAD, markdown, rows
from tests.servers import Valkey

CEILING_REQUESTS = 500_000


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def measures(server: Measured, seconds: float) -> AsyncIterator[Measure]:
    """All that a server can do of what is compared."""
    target = server.target
    if server.ingests and target.single is not None:
        yield await ingest(
            target, target.single, connections=64, per_request=1, size=200, seconds=seconds,
            meter=server.at_takers,
        )  # fmt: skip
    if server.ingests and target.batch is not None:
        yield await ingest(
            target, target.batch, connections=8, per_request=1000, size=200, seconds=seconds,
            meter=server.at_takers,
        )  # fmt: skip
    if target.distributor is None:
        return
    for readers, rate in ((1000, 1000.0), (100, 1000.0), (100, 10.0)):
        yield await fan_out(
            target, readers=readers, rate=rate, size=200, seconds=seconds, batch=readers > 100,
            meter=server.at_givers,
        )  # fmt: skip


def contestants(valkey: Valkey) -> list[tuple[str, Opened]]:
    """Every server that can be started here."""
    found: list[tuple[str, Opened]] = [
        ("bare uvicorn", lambda: servers.opened(peers.bare())),
        ("FastAPI, as one would begin", lambda: servers.opened(peers.baseline(valkey))),
    ]
    for name, there, start in (
        ("nchan", peers.have_nchan, peers.nchan),
        ("nats-server", peers.have_nats, peers.nats),
    ):
        if there():
            found.append((name, partial(_opened, start)))
        else:
            say(f"NOT MEASURED: {name} is not installed")
    for name, workers in (("logpipe", 1), ("logpipe, 2 workers", 2)):
        found.append((name, partial(servers.logpipe_collector, valkey, workers)))
        found.append((name, partial(servers.logpipe, valkey, workers)))
    return [*found, ("logpipe, all in one", servers.logpipe_in_one)]


def _opened(
    start: Callable[[], AbstractContextManager[peers.Peer]],
) -> AbstractAsyncContextManager[Measured]:
    return servers.opened(start())


async def compare(seconds: float, repeats: int, only: list[str]) -> None:
    """The comparison, a few rounds of it: so a moment in which the machine is slow hits all."""
    found: list[Measure] = []
    ceilings: dict[str, list[float]] = {}
    with servers.a_valkey() as valkey:
        starts = [
            (name, start)
            for name, start in contestants(valkey)
            if not only or any(word in name for word in only)
        ]
        for repeat in range(repeats):
            for name, rate in _ceilings(valkey):
                ceilings.setdefault(name, []).append(rate)
                say(f"round {repeat + 1}: {name}: {rate:,.0f}/s")
            for name, start in starts:
                valkey.reset()
                async with start() as server:
                    named = server._replace(target=server.target._replace(name=name))
                    found += await _all(named, seconds, repeat)
    print(f"{description()}; {repeats} rounds of {seconds:g} s, medians\n")
    for name, rates in ceilings.items():
        print(f"{name}: {statistics.median(rates):,.0f}/s")
    print()
    print(markdown(HEAD, list(rows(found))))


async def _all(server: Measured, seconds: float, repeat: int) -> list[Measure]:
    found = []
    async for measure in measures(server, seconds):
        found.append(measure)
        for line in lines(measure):
            say(f"round {repeat + 1}: {server.target.name}: {line}")
    return found


def _ceilings(valkey: Valkey) -> Iterator[tuple[str, float]]:
    if not peers.have_redis_benchmark():
        say("NOT MEASURED: redis-benchmark is not installed")
        return
    for clients, pipeline in ((64, 1), (1, 128), (50, 128)):
        rate = peers.redis_benchmark(
            valkey,
            clients=clients,
            pipeline=pipeline,
            requests=CEILING_REQUESTS if pipeline > 1 else CEILING_REQUESTS // 5,
            payload=200,
        )
        yield f"redis-benchmark XADD, {clients} connections, pipeline {pipeline}", rate


def main() -> int:
    """Exit 1 where the guard finds a loss."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the comparison")
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of servers")
    parser.add_argument("--growth", type=Path, help="draws how cost grows, into this folder")
    parser.add_argument("--guard", action="store_true", help="compares with what was recorded")
    parser.add_argument("--record", action="store_true", help="records what the guard compares")
    asked = parser.parse_args()
    allow_many_files()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        if asked.guard or asked.record:
            return runner.run(guard.run(record=asked.record, say=say))
        if asked.growth:
            runner.run(growth.run(asked.growth, asked.seconds, say))
            runner.run(catchup.run(asked.seconds, say))
        else:
            runner.run(compare(asked.seconds, asked.repeats, asked.only))
    return 0


if __name__ == "__main__":
    sys.exit(main())
