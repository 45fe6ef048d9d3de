"""The promise as a law: the real hub and the real stream code against the model, on any schedule.

Beside what `Tail` draws, Redis dies and comes back: as it was, empty, or without its end.
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from logpipe.fanout.subscription import HubSubscription
from logpipe.ids import parse_id
from logpipe.messages import Item
from logpipe.redis_address import RedisAddress
from tests.helpers import wait_until
from tests.model import Written
from tests.schedules import TIMEOUT_S, Schedule, fails, over, run
from tests.servers import Valkey
from tests.streams import NAME, address_of
from tests.tail import Tail, hurry


class TailOfOne(Tail):
    """Readers of one Redis, which may die."""

    @property
    def address(self) -> RedisAddress:
        """That of the Redis."""
        return address_of(self.valkey)

    async def reset(self) -> None:
        """As `Tail.reset`."""
        self.valkey.reset()
        self._forget_saved()

    async def add(self, written: Sequence[str]) -> None:
        """As `Tail.add`."""
        with self.valkey.client.pipeline(transaction=True) as pipe:
            for source in written:
                pipe.xadd(NAME, {"event": b'{"source":"%b","message":""}' % source.encode()})
            ids = pipe.execute()
        self.log.append(
            [Written(parse_id(i.decode()), s) for i, s in zip(ids, written, strict=True)]
        )

    @rule(keep=st.integers(0, 30))
    def trim(self, keep: int) -> None:
        self.valkey.client.xtrim(NAME, maxlen=keep, approximate=False)
        self.log.trim(keep)
        self._forget_saved()

    @rule()
    def flush(self) -> None:
        self.valkey.client.flushall()
        self._flushed()
        time.sleep(0.002)

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
        self.do(wait_until(self._noted, "a process that has seen more has noticed"))

    def _seen(self) -> bool:
        return all(r.hub.window.end.id >= self.log.last_kept for r in self.replicas)

    def _noted(self) -> bool:
        id_ = self.valkey.client.info("replication")["master_replid"].encode()
        return all(replica.stream.knows_the_past_of(id_) for replica in self.replicas)

    def _flushed(self) -> None:
        self.log.flush()
        self._forget_saved()

    def _forget_saved(self) -> None:
        shutil.rmtree(self.saved, ignore_errors=True)

    @property
    def saved(self) -> Path:
        return self.valkey.folder / "saved"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing here waits for an outage longer than it must."""
    hurry(monkeypatch, caplog)


@pytest.fixture
def tail(own_valkey: Valkey) -> type[Schedule]:
    """The machine over a Valkey that may die."""
    return over(own_valkey, TailOfOne)


@pytest.mark.timeout(TIMEOUT_S)
def test_ids_received_and_gaps_told_add_up_to_all_ids_on_any_schedule(
    tail: type[Schedule],
) -> None:
    run(tail)


def test_a_catch_up_that_skips_is_noticed(
    tail: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without it, schedules that never fail would prove nothing."""

    async def skip(self: HubSubscription) -> Sequence[Item]:
        window = self._hub.window
        self.cursor, self.number, self._era = window.end, window.next_number, self._hub.era
        return []

    monkeypatch.setattr(HubSubscription, "_catch_up", skip)
    assert fails(tail)


def test_gaps_that_are_not_told_are_noticed(
    tail: type[Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.stream.stream.gap_after", lambda *_: None)
    assert fails(tail)
