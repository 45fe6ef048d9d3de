"""A minute that notices when logpipe has become slower.

Absolute figures wander with the machine, so each is held against a ceiling of the same run: a bare
answer of uvicorn for single posts, redis-benchmark for batches, and for the fan-out, what a bare
answer costs.
"""

import asyncio
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from logpipe.bench.measures import Ingest, fan_out, ingest
from tests.bench import peers, servers
from tests.bench.servers import Measured

RECORDED = Path(__file__).with_name("recorded.json")
FALL = 0.25
"""A ratio that is lower by more than this part is a loss."""
ROUNDS = 5
SECONDS = 1.2


async def run(*, record: bool, say: Callable[[str], None]) -> int:
    """Measures the ratios; 1 where one of them has fallen."""
    now = await ratios(say)
    if record:
        RECORDED.write_text(json.dumps(now, indent=2) + "\n")
        return 0
    before: dict[str, float] = json.loads(RECORDED.read_text())
    fallen = [name for name, ratio in before.items() if now[name] < ratio * (1 - FALL)]
    for name, ratio in before.items():
        verdict = "FALLEN" if name in fallen else "held"
        print(f"{name}: {now[name]:.2f}, recorded {ratio:.2f}: {verdict}")
    return 1 if fallen else 0


async def ratios(say: Callable[[str], None]) -> dict[str, float]:
    """The medians of a few rounds, each of which measures ceiling and logpipe in turn."""
    found: dict[str, list[float]] = {}
    with servers.a_valkey() as valkey, peers.bare() as bare:
        ceiling = partial(
            peers.redis_benchmark,
            valkey,
            clients=50,
            pipeline=128,
            requests=500_000,
            payload=200,
        )
        for start, measure in (
            (servers.logpipe_collector, partial(_ingest, servers.of(bare), ceiling)),
            (servers.logpipe, partial(_fan_out, servers.of(bare))),
        ):
            async with start(valkey) as logpipe:
                for number in range(ROUNDS):
                    for name, ratio in (await measure(logpipe)).items():
                        found.setdefault(name, []).append(ratio)
                        say(f"round {number + 1}: {name}: {ratio:.2f}")
    return {name: statistics.median(each) for name, each in found.items()}


async def _ingest(
    bare: Measured, ceiling: Callable[[], float], logpipe: Measured
) -> dict[str, float]:
    answers, single = await _single(bare), await _single(logpipe)
    assert logpipe.target.batch is not None
    most = await asyncio.to_thread(ceiling)
    batch = await ingest(
        logpipe.target,
        logpipe.target.batch,
        connections=8,
        per_request=1000,
        size=200,
        seconds=SECONDS,
    )
    return {
        "single posts / bare answers": single.events_per_s / answers.events_per_s,
        "events of batches / redis-benchmark": batch.events_per_s / most,
    }


async def _fan_out(bare: Measured, logpipe: Measured) -> dict[str, float]:
    answers = await _single(bare)
    fan = await fan_out(
        logpipe.target,
        readers=1000,
        rate=2000.0,
        size=200,
        seconds=SECONDS,
        meter=logpipe.at_givers,
    )
    assert not (fan.missing or fan.doubled or fan.broken or fan.refused), fan
    assert answers.used.cores and fan.used.cores
    return {
        "events delivered a CPU second / bare answers a CPU second": (
            fan.delivered_per_s / fan.used.cores / (answers.events_per_s / answers.used.cores)
        ),
    }


async def _single(server: Measured) -> Ingest:
    assert server.target.single is not None
    return await ingest(
        server.target,
        server.target.single,
        connections=64,
        per_request=1,
        size=200,
        seconds=SECONDS,
        meter=server.at_takers,
    )
