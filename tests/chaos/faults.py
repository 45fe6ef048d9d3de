"""What is done to processes: kill -9, SIGTERM, SIGSTOP. A fault returns when it has ended."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

from tests.chaos.judge import Offence
from tests.chaos.processes import Logpipe
from tests.chaos.stage import Stage

Fault = Callable[[Stage, int], Awaitable[None]]
"""Takes the stage and how many times it is to be done, where that is asked for."""
FROZEN_S = 3.0
MOMENT_S = 0.15
"""At most so long a killed process's successor serves before it is killed as well."""


def killed(role: str) -> Fault:
    """kill -9 and a new start, again and again, at random moments of the load."""

    async def fault(stage: Stage, cycles: int) -> None:
        victim = stage.children[role]
        for _ in range(cycles):
            await asyncio.sleep(stage.chance.uniform(0, MOMENT_S))
            await victim.restart()

    return fault


async def engine_killed(stage: Stage, cycles: int) -> None:
    """The same for the embedded engine, which its logpipe starts again."""
    for _ in range(cycles):
        await asyncio.sleep(stage.chance.uniform(0, MOMENT_S))
        await stage.collector.kill_engine()


async def redis_killed(stage: Stage, cycles: int) -> None:
    """The same for a Redis of its own."""
    for _ in range(cycles):
        await asyncio.sleep(stage.chance.uniform(0, MOMENT_S))
        await asyncio.to_thread(stage.valkey.kill)
        await asyncio.to_thread(stage.valkey.start)


def terminated(role: str) -> Fault:
    """SIGTERM under load: exit 0 within five seconds; then a new start."""

    async def fault(stage: Stage, cycles: int) -> None:
        victim = stage.children[role]
        for _ in range(cycles):
            began = asyncio.get_running_loop().time()
            status = await victim.terminate()
            seconds = asyncio.get_running_loop().time() - began
            if status or seconds > 5:
                stage.found.append(Offence("other", f"exit {status} after {seconds:.1f} s"))
            await victim.start()
            await victim.ready()

    return fault


def frozen(role: str) -> Fault:
    """SIGSTOP, and SIGCONT a few seconds later."""

    async def fault(stage: Stage, _: int) -> None:
        await _freeze(stage.children[role])

    return fault


async def _freeze(victim: Logpipe) -> None:
    victim.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(FROZEN_S)
    finally:
        victim.send(signal.SIGCONT)


async def redis_frozen(stage: Stage, _: int) -> None:
    """The same for Redis."""
    stage.valkey.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(FROZEN_S)
    finally:
        stage.valkey.signal(signal.SIGCONT)


async def engine_frozen(stage: Stage, _: int) -> None:
    """The same for the embedded engine."""
    engine = stage.collector.engine()
    signal_to(engine, signal.SIGSTOP)
    try:
        await asyncio.sleep(FROZEN_S)
    finally:
        signal_to(engine, signal.SIGCONT)


def signal_to(pid: int, number: int) -> None:
    """To a process that was looked for: pid 0 would be this whole group."""
    assert pid > 0, "there is no such process"
    os.kill(pid, number)
