"""The promise as a law: the real hub and the real stream code against the model, on any schedule.

Beside what `Tail` draws, Redis dies and comes back: as it was, empty, or without its end.
"""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis.stateful import precondition

from logpipe.fanout.subscription import HubSubscription
from logpipe.messages import Item, Progress
from tests.helpers import wait_until
from tests.model import LOST
from tests.schedules import KEEP, TIMEOUT_S, AnySchedule, breaks, over, rule, run
from tests.servers import Valkey
from tests.tail import Tail

pytestmark = pytest.mark.timeout(TIMEOUT_S)


class TailOfOne(Tail):
    """Readers of one Redis, which may die."""

    async def reset(self) -> None:
        await super().reset()
        self._forget_saved()

    @rule(keep=KEEP)
    def trim(self, keep: int) -> None:
        super().trim(keep=keep)
        self._forget_saved()

    @rule()
    def flush(self) -> None:
        super().flush()
        self._forget_saved()

    @rule()
    def kill_redis(self) -> None:
        self.valkey.kill()
        self.do(asyncio.sleep(0.01))
        self.valkey.start()

    @rule()
    def redis_comes_back_empty(self) -> None:
        self.valkey.kill()
        shutil.rmtree(self.valkey.kept)
        self.do(asyncio.sleep(0.01))
        self.valkey.start()
        self._flushed()

    @rule()
    def save_redis(self) -> None:
        """What it has now is what it comes back with when it loses its end."""
        self._forget_saved()
        shutil.copytree(self.valkey.kept, self.saved)
        self.saved_count = len(self.log.all)

    @precondition(lambda self: self.saved.exists())
    @rule()
    def redis_loses_its_end(self) -> None:
        """As where the last second of its append-only file was not on the disk yet. What a process
        has not seen, it learns from the others to be lost, and may then send it again."""
        self.do(wait_until(self._seen, "all processes have seen all"))
        self.valkey.lose_what_followed(self.saved)
        self.log.lose(self.saved_count)
        if not self.log.kept:
            self._flushed()
        self.do(self.met())

    def _seen(self) -> bool:
        return all(r.hub.window.end.id >= self.log.last_kept for r in self.replicas)

    def _flushed(self) -> None:
        self.log.flush()
        self._forget_saved()

    def _forget_saved(self) -> None:
        shutil.rmtree(self.saved, ignore_errors=True)

    @property
    def saved(self) -> Path:
        return self.valkey.folder / "saved"


@pytest.fixture(autouse=True)
def without_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="logpipe")


@pytest.fixture
def tail(own_valkey: Valkey) -> AnySchedule:
    """The machine over a Valkey that may die."""
    return over(own_valkey, TailOfOne)


def test_ids_received_and_gaps_add_up_to_all_ids(tail: AnySchedule) -> None:
    run(tail)


# The controls: without them, schedules that never fail would prove nothing.


def test_a_catch_up_that_skips_breaks_the_law(
    tail: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def skip(self: HubSubscription) -> Sequence[Item]:
        window = self._hub.window
        self.cursor, self.number, self._era = window.end, window.next_number, self._hub.era
        return [Progress(self.cursor.id)]

    monkeypatch.setattr(HubSubscription, "_catch_up", skip)
    assert breaks(tail, LOST)


def test_gaps_that_are_not_reported_break_the_law(
    tail: AnySchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.stream.stream.gap_after", lambda *_: None)
    assert breaks(tail, LOST)
