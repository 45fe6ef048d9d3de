"""The handler's queue: its bounds, what a batch is, and what is told of losses."""

import signal
import threading
import time

import pytest

from logpipe.handler.outbox import (
    BATCH_BYTES,
    BATCH_EVENTS,
    MAX_REASONS,
    OTHER_REASONS,
    QUEUE_FULL,
    Batch,
    Outbox,
)
from tests.helpers import wait_until


def outbox(capacity: int = 10, interval: float = 0.01) -> Outbox:
    return Outbox(capacity, interval)


def taken(box: Outbox) -> Batch:
    batch = box.take()
    assert batch is not None
    return batch


def test_it_holds_its_capacity_and_drops_the_one_after() -> None:
    box = outbox(3)
    for event in (b"1", b"2", b"3"):
        assert not box.full
        box.put(event)
    assert box.full
    assert box.dropped == 0
    box.put(b"4")
    assert box.dropped == 1
    assert box.held == 3
    assert taken(box).events == [b"1", b"2", b"3"]


def test_what_is_being_sent_takes_room_until_it_is_settled() -> None:
    box = outbox(2)
    box.put(b"1")
    box.put(b"2")
    batch = taken(box)
    box.put(b"3")
    assert box.dropped == 1
    box.settle(batch.events)
    assert box.held == 0
    box.put(b"4")
    box.put(b"5")
    assert box.dropped == 1


def test_it_holds_so_many_bytes_and_not_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logpipe.handler.outbox.MAX_HELD_BYTES", 100)
    box = outbox(1_000)
    box.put(b"x" * 60)
    box.put(b"x" * 41)
    assert box.dropped == 1
    box.put(b"x" * 40)
    assert box.dropped == 1
    assert box.full
    box.settle(taken(box).events)
    assert not box.full


def test_a_batch_has_a_number_of_events_and_bytes_at_most() -> None:
    box = outbox(3 * BATCH_EVENTS)
    for _ in range(BATCH_EVENTS + 1):
        box.put(b"x")
    assert len(taken(box).events) == BATCH_EVENTS
    assert len(taken(box).events) == 1
    half = b"x" * (BATCH_BYTES // 2)
    for event in (half, half, b"x", b"y" * BATCH_BYTES, b"z" * (BATCH_BYTES + 1)):
        box.put(event)
    assert taken(box).events == [half, half]
    assert taken(box).events == [b"x"]
    assert taken(box).events == [b"y" * BATCH_BYTES]
    assert taken(box).events == [b"z" * (BATCH_BYTES + 1)]


def test_what_tells_losses_counts_as_events_of_a_batch() -> None:
    box = outbox(2 * BATCH_EVENTS)
    for reason in ("one", "two"):
        box.drop(reason)
    for _ in range(BATCH_EVENTS):
        box.put(b"x")
    batch = taken(box)
    assert len(batch.events) + len(batch.losses) == BATCH_EVENTS
    assert len(batch.losses) == 2
    assert len(taken(box).events) == 2


def test_each_batch_has_a_key_of_its_own() -> None:
    box = outbox()
    keys = set()
    for _ in range(3):
        box.put(b"x")
        keys.add(taken(box).key)
    assert len(keys) == 3


async def test_a_full_or_flushed_batch_is_not_held_back() -> None:
    box = outbox(10 * BATCH_EVENTS, interval=3_600)
    found: list[Batch | None] = []
    thread = threading.Thread(target=lambda: found.extend(box.take() for _ in range(3)))
    thread.start()
    for _ in range(BATCH_EVENTS):
        box.put(b"x")
    await wait_until(lambda: len(found) == 1, "a full batch")
    box.settle([b"x"] * BATCH_EVENTS)
    box.put(b"large" * BATCH_BYTES)
    await wait_until(lambda: len(found) == 2, "a batch of many bytes")
    box.settle([b"large" * BATCH_BYTES])
    box.put(b"urgent")
    assert not box.wait(0)
    await wait_until(lambda: len(found) == 3, "what is waited for")
    thread.join()


def test_the_end_comes_after_everything_was_taken() -> None:
    box = outbox(interval=3_600)
    box.put(b"last")
    box.close()
    box.put(b"too late")
    assert taken(box).events == [b"last"]
    assert box.take() is None
    assert box.dropped == 1


def test_losses_are_told_with_the_next_events_by_reason() -> None:
    box = outbox(1)
    box.put(b"1")
    before = time.time_ns() // 1_000_000
    for _ in range(12):
        box.put(b"x")
    box.drop("refused", 2)
    batch = taken(box)
    assert [(loss.reason, loss.events) for loss in batch.losses] == [
        (QUEUE_FULL, 12),
        ("refused", 2),
    ]
    assert before <= batch.losses[0].since_ms <= time.time_ns() // 1_000_000
    box.settle(batch.events)
    box.put(b"2")
    assert taken(box).losses == []


def test_losses_that_could_not_be_told_are_added_to_later_ones() -> None:
    box = outbox(1)
    box.put(b"1")
    box.put(b"x")
    batch = taken(box)
    box.put(b"x")
    box.untold(batch.losses)
    box.settle(batch.events)
    box.put(b"2")
    (loss,) = taken(box).losses
    assert (loss.reason, loss.events) == (QUEUE_FULL, 2)
    assert loss.since_ms == batch.losses[0].since_ms
    assert box.dropped == 2


def test_reasons_are_bounded_and_every_loss_is_counted() -> None:
    box = outbox()
    for number in range(100):
        box.put(b"e")
        batch = taken(box)
        box.untold(batch.losses)  # refused, with the losses that it told
        box.drop(f"refused by the collector (400 case {number})")
        box.settle(batch.events)
    box.put(b"e")
    losses = taken(box).losses
    assert sum(loss.events for loss in losses) == 100
    assert len(losses) == MAX_REASONS
    assert losses[-1].reason == OTHER_REASONS


def test_losses_go_alone_only_while_batches_are_stored() -> None:
    box = outbox()
    box.drop("x")
    box.flowing = True
    batch = taken(box)
    assert batch.events == []
    assert [loss.events for loss in batch.losses] == [1]
    box.untold(batch.losses)
    box.flowing = False
    box.close()
    assert box.take() is None


async def test_waiting_ends_when_what_was_held_is_settled() -> None:
    box = outbox()
    assert box.wait(0)
    box.put(b"1")
    outcome: list[bool] = []
    thread = threading.Thread(target=lambda: outcome.append(box.wait(time.monotonic() + 10)))
    thread.start()
    await wait_until(lambda: box._waiting, "somebody waits")
    box.put(b"later")
    box.settle([b"1"])
    thread.join(10)
    assert outcome == [True]


def test_a_pause_ends_for_who_waits_and_for_the_end() -> None:
    box = outbox()
    assert not box.pause(0.001, hurry=True)
    box._waiting = 1
    assert box.pause(60, hurry=True)
    assert not box.pause(0.001, hurry=False)
    box.abandon()
    assert box.pause(60, hurry=False)


def test_what_is_given_up_is_counted_once() -> None:
    box = outbox()
    box.put(b"1")
    batch = taken(box)
    box.put(b"2")
    assert box.abandon() == 2
    assert box.dropped == 2
    box.settle(batch.events)
    assert box.held == 0
    assert box.abandon() == 0
    assert box.take() is None


def test_a_signal_handler_may_log_during_a_put() -> None:
    box = outbox()
    previous = signal.signal(signal.SIGUSR1, lambda *_: box.put(b"from the handler"))
    try:
        with box._changed:
            signal.raise_signal(signal.SIGUSR1)
        assert box.held == 1
    finally:
        signal.signal(signal.SIGUSR1, previous)
