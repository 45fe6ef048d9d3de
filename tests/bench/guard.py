"""Notices within a minute when logpipe has become slower.

Absolute figures differ between machines, so each is divided by a ceiling that is measured right
before or after it: bare answers of uvicorn, or redis-benchmark. A rate per second also falls when
logpipe waits; a rate per CPU second of the server hardly depends on what else the machine does.
"""

import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from logpipe.bench.measures import Ingest, fan_out, ingest
from tests.bench import peers, servers
from tests.bench.servers import Measured

RECORDED = Path(__file__).with_name("recorded.json")
FALL = 0.25
"""A ratio that is lower than the recorded one by more than this part has fallen."""
ROUNDS = 12
FAN_OUTS = 6
SECONDS = 0.5
FAN_OUT_S = 1.2
WARM_UP_S = 0.1

T = TypeVar("T")
U = TypeVar("U")


async def run(*, record: bool, say: Callable[[str], None]) -> int:
    """Measures the ratios; 1 where the median of one has fallen. In doubt it measures as many pairs
    again, and the median of all of them decides."""
    found: dict[str, list[float]] = {}
    await _measure(found, say)
    if record:
        medians = {name: round(statistics.median(each), 3) for name, each in found.items()}
        RECORDED.write_text(json.dumps(medians, indent=2) + "\n")
        return 0
    recorded: dict[str, float] = json.loads(RECORDED.read_text())
    if fallen(recorded, found):
        await _measure(found, say)
    lost = fallen(recorded, found)
    for name, ratio in recorded.items():
        verdict = "FALLEN" if name in lost else "held"
        print(f"{name}: {statistics.median(found[name]):.3g}, recorded {ratio:.3g}: {verdict}")
    return 1 if lost else 0


def fallen(recorded: dict[str, float], found: dict[str, list[float]]) -> list[str]:
    """The ratios whose median is too far below what is recorded."""
    return [
        name
        for name, ratio in recorded.items()
        if statistics.median(found[name]) < ratio * (1 - FALL)
    ]


async def _measure(found: dict[str, list[float]], say: Callable[[str], None]) -> None:
    """Adds the ratios of a run of pairs."""
    with servers.a_valkey() as valkey, peers.bare() as peer:
        ceiling = partial(
            peers.redis_benchmark,
            valkey,
            clients=50,
            pipeline=128,
            requests=200_000,
            payload=200,
        )
        bare = servers.of(peer)
        for start, rounds, measure in (
            (servers.logpipe_collector, ROUNDS, partial(_ingest, bare, ceiling)),
            (servers.logpipe, FAN_OUTS, partial(_fan_out, bare)),
        ):
            async with start(valkey) as logpipe:
                for number in range(rounds):
                    # In turn the ceiling is first or last, so that a drift cancels out.
                    for name, ratio in (await measure(logpipe, first=number % 2 == 0)).items():
                        found.setdefault(name, []).append(ratio)
                        say(f"round {number + 1}: {name}: {ratio:.3g}")


async def _ingest(
    bare: Measured, ceiling: Callable[[], float], logpipe: Measured, *, first: bool
) -> dict[str, float]:
    answers, single = await _pair(
        lambda: _taken(bare, per_request=1), lambda: _taken(logpipe, per_request=1), first=first
    )
    most, batch = await _pair(
        lambda: asyncio.to_thread(ceiling),
        lambda: _taken(logpipe, per_request=1000),
        first=first,
    )
    return {
        "single posts / bare answers": single.events_per_s / answers.events_per_s,
        "events of batches / redis-benchmark": batch.events_per_s / most,
        "single posts a CPU second / bare answers a CPU second": (
            _per_cpu_s(single) / _per_cpu_s(answers)
        ),
        "events of batches a CPU second / bare answers a CPU second": (
            _per_cpu_s(batch) / _per_cpu_s(answers)
        ),
    }


async def _fan_out(bare: Measured, logpipe: Measured, *, first: bool) -> dict[str, float]:
    answers, fan = await _pair(
        lambda: _taken(bare, per_request=1),
        lambda: fan_out(
            logpipe.target,
            readers=1000,
            rate=2000.0,
            size=200,
            seconds=FAN_OUT_S,
            meter=logpipe.at_givers,
        ),
        first=first,
    )
    assert not (fan.missing or fan.doubled or fan.broken or fan.refused), fan
    assert fan.used.cores
    delivered = fan.delivered_per_s / fan.used.cores
    return {
        "events delivered a CPU second / bare answers a CPU second": delivered
        / _per_cpu_s(answers),
    }


async def _pair(
    one: Callable[[], Awaitable[T]], other: Callable[[], Awaitable[U]], *, first: bool
) -> tuple[T, U]:
    """Both results, one measured right after the other; `one` first, if `first`."""
    if first:
        return await one(), await other()
    result = await other()
    return await one(), result


def _per_cpu_s(taken: Ingest) -> float:
    assert taken.used.cores
    return taken.events_per_s / taken.used.cores


async def _taken(server: Measured, *, per_request: int) -> Ingest:
    wrap = server.target.single if per_request == 1 else server.target.batch
    assert wrap is not None
    return await ingest(
        server.target,
        wrap,
        connections=64 if per_request == 1 else 8,
        per_request=per_request,
        size=200,
        seconds=SECONDS,
        warm_up_s=WARM_UP_S,
        meter=server.at_takers,
    )
