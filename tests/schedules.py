"""Random schedules of real asynchronous code, drawn by hypothesis.

`SCHEDULES=1000` runs so many random ones; without it a few that are the same each time.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.model import Log
from tests.servers import Valkey

SCHEDULES = int(os.environ.get("SCHEDULES", "0"))
TIMEOUT_S = 0 if SCHEDULES else 180
"""As pytest-timeout takes it: none for who asks for many."""

PROFILE = settings(
    max_examples=SCHEDULES or 40,
    stateful_step_count=60,
    derandomize=not SCHEDULES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
FIRST_FAILURE = settings(PROFILE, phases=[Phase.generate], report_multiple_bugs=False)
"""Without looking for a smaller one, where each that fails takes seconds."""

Result = TypeVar("Result")


class Schedule(RuleBasedStateMachine):
    """A machine whose rules run in an event loop of its own, over one Valkey."""

    valkey: Valkey

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self._loop = asyncio.Runner()
        self._sound = True

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a step; after one that failed there is nothing to check any more."""
        self._sound = False
        result = self._loop.run(work)
        self._sound = True
        return result

    async def heal_and_check(self) -> None:
        """Ends all faults, waits until all is quiet, and checks the law."""
        raise NotImplementedError

    async def end(self) -> None:
        """Lets go of everything."""
        raise NotImplementedError

    def teardown(self) -> None:
        """The end of a schedule."""
        try:
            if self._sound and self.log.begun:
                self._loop.run(self.heal_and_check())
        finally:
            self._loop.run(self.end())
            self._loop.close()


def over(valkey: Valkey, machine: type[Schedule]) -> type[Schedule]:
    """The machine over this Valkey."""
    return type(f"{machine.__name__}Here", (machine,), {"valkey": valkey})


def run(machine: type[Schedule], profile: settings = PROFILE) -> None:
    """Runs schedules; raises what the first has found, and how to repeat it."""
    run_state_machine_as_test(machine, settings=profile)


def fails(machine: type[Schedule], profile: settings = FIRST_FAILURE) -> bool:
    """Whether some schedule breaks the law."""
    try:
        run(machine, profile)
    except (AssertionError, Flaky):
        return True
    return False
