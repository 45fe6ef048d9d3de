"""The process that plays an attack.

It reads one line of JSON (`Wanted`), and prints a line (`Tally`) every half second and at the end.
"""

import asyncio
import contextlib
import itertools
import sys

import msgspec

from tests.attack.attacks import ATTACKS, Attack, Turn
from tests.attack.client import Target

EXPECTED = (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError)
"""What happens to a client whose server defends itself."""


class Wanted(msgspec.Struct):
    """What to play, where, and for how long."""

    name: str
    port: int
    syslog_port: int
    seconds: float


async def play(attack: Attack, target: Target, seconds: float) -> None:
    """Returns after so many seconds, when all connections are closed."""
    numbers = itertools.count()

    async def client(number: int) -> None:
        # Not all in the same moment: that is no client's power, once they are many.
        await asyncio.sleep(number % 50 / 100)
        while True:
            try:
                await attack.play(Turn(target, number, next(numbers)))
            except EXPECTED as error:
                target.tally.failures[type(error).__name__] += 1
                await asyncio.sleep(0.02)
            await asyncio.sleep(attack.pause_s)

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client(number)) for number in range(attack.clients)]
        await asyncio.sleep(seconds)
        for each in clients:
            each.cancel()


async def _report(target: Target) -> None:
    while True:
        _print(target)
        await asyncio.sleep(0.5)


def _print(target: Target) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(target.tally) + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> None:
    wanted = msgspec.json.decode(sys.stdin.readline(), type=Wanted)
    target = Target(wanted.port, wanted.syslog_port)
    reporting = asyncio.create_task(_report(target))
    await play(ATTACKS[wanted.name], target, wanted.seconds)
    reporting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reporting
    _print(target)


if __name__ == "__main__":
    asyncio.run(_main())
