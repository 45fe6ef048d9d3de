"""One trial of a scenario: set up, fault, judgement."""

import asyncio
import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.chaos.judge import Evidence, Offence, of_record, offences
from tests.chaos.scenarios import Scenario
from tests.chaos.stage import Stage, staged

A_CYCLE_S = 8.0
"""At most: a killed process's successor is ready long before."""
REST_S = 120.0


class Result(NamedTuple):
    """What came of a trial, or of several of one scenario together."""

    cycles: int
    acked: int
    delivered: int
    gaps: int
    outage_s: float
    fresh_s: float
    seconds: float
    found: list[Offence]
    notes: list[str]
    log: str = ""


async def tried(scenario: Scenario, cycles: int, seed: int) -> Result:
    """All of it, on as many lanes as the scenario has."""
    lanes = min(scenario.lanes, cycles) or 1
    shares = [cycles // lanes + (lane < cycles % lanes) for lane in range(lanes)]
    trials = [_trial(scenario, share, seed + lane) for lane, share in enumerate(shares)]
    return _together(await asyncio.gather(*trials))


async def _trial(scenario: Scenario, cycles: int, seed: int) -> Result:
    began = time.monotonic()
    async with staged(scenario.setup, seed) as stage:
        broken, evidence = "", None
        try:
            async with asyncio.timeout(REST_S + cycles * A_CYCLE_S):
                await stage.start()
                await scenario.fault(stage, cycles)
                evidence = await stage.settle(scenario.terms)
        except (AssertionError, TimeoutError, OSError) as error:
            broken = f"{type(error).__name__}: {error}"[:300]
        found = [*_found(scenario, stage, evidence, broken)]
        return _result(stage, cycles, evidence, found, time.monotonic() - began)


def _found(
    scenario: Scenario, stage: Stage, evidence: Evidence | None, broken: str
) -> Iterator[Offence]:
    if broken:
        yield Offence("other", broken)
    if evidence:
        yield from offences(evidence, scenario.terms)
    yield from stage.found
    for record in stage.records():
        yield from of_record(record)


def _result(
    stage: Stage, cycles: int, evidence: Evidence | None, found: list[Offence], seconds: float
) -> Result:
    oracle, reader = stage.oracle, stage.subscriber
    fresh_s = evidence.fresh_s if evidence and evidence.fresh_s is not None else float("nan")
    log = "".join(record.log[-1500:] for record in stage.records()) if found else ""
    counts = len(oracle.acked), len(reader.numbers), len(reader.history.gaps)
    return Result(cycles, *counts, oracle.outage_s, fresh_s, seconds, found, stage.notes, log)


def _together(results: list[Result]) -> Result:
    return Result(
        sum(each.cycles for each in results),
        sum(each.acked for each in results),
        sum(each.delivered for each in results),
        sum(each.gaps for each in results),
        max(each.outage_s for each in results),
        max(each.fresh_s for each in results),
        max(each.seconds for each in results),
        [offence for each in results for offence in each.found],
        [note for each in results for note in each.notes],
        "".join(each.log for each in results),
    )
