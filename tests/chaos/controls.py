"""What must be noticed: promises broken on purpose. Each is run as a trial that has to fail."""

import asyncio
import json
import signal

from tests.chaos.oracle import event
from tests.chaos.stage import Stage


async def acknowledged_too_early(stage: Stage, _: int) -> None:
    """With `early`: what Redis has not confirmed dies with the collector."""
    stage.valkey.signal(signal.SIGSTOP)
    await asyncio.sleep(0.5)
    await stage.collector.kill()
    stage.valkey.signal(signal.SIGCONT)
    await stage.collector.start()
    await stage.collector.ready()


async def nothing_on_disk(stage: Stage, _: int) -> None:
    """With a Redis that keeps nothing: its end takes along what was acknowledged."""
    await asyncio.to_thread(stage.valkey.kill)
    await asyncio.to_thread(stage.valkey.start)


async def removed(stage: Stage, _: int) -> None:
    """Somebody removes an entry that the distributor has not read yet."""
    await stage.distributor.kill()
    already = set(stage.oracle.acked)
    while not (new := stage.oracle.acked.keys() - already):
        await asyncio.sleep(0.01)
    ms, seq = stage.oracle.acked[min(new)]
    stage.ask("XDEL", "logs", f"{ms}-{seq}")
    await stage.distributor.start()
    await stage.distributor.ready()


async def tampered(stage: Stage, _: int) -> None:
    """Somebody writes an event under a number that was issued, with another message."""
    changed = {**event(1), "message": "another"}
    stage.ask("XADD", "logs", "*", "event", json.dumps(changed))


async def never_continued(stage: Stage, _: int) -> None:
    """A fault that does not end."""
    stage.collector.send(signal.SIGSTOP)


async def page_gone(stage: Stage, _: int) -> None:
    """A ui that is killed and not started again."""
    await stage.children["ui"].kill()


async def position_forgotten(stage: Stage, _: int) -> None:
    """A subscriber that comes back without its position."""
    for _ in range(3):
        stage.subscriber.cursor = ""
        await stage.distributor.kill()
        stage.subscriber.cursor = ""
        await stage.distributor.start()
        await stage.distributor.ready()
        await stage.flows(20)


async def nothing(stage: Stage, _: int) -> None:
    """No fault at all: what is broken breaks by itself."""
    await stage.flows(200)
