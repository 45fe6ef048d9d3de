"""Turns at the event loop, and which connections are closed when there is little room."""

import asyncio
import time

from logpipe.serving.connections import STEPS_AT_ONCE, Turns, to_close


class Fake:
    """A connection, as the choice of those to close sees it."""

    def __init__(self, peer: str, since: float, *, unused: bool = True, begun: bool = False):
        self.peer = peer
        self.unused = unused
        self.idle_since = (begun, since)

    def close_for_room(self) -> None:
        """Is not called here."""


async def test_other_callbacks_run_between_the_steps_of_many_connections() -> None:
    turns, steps, most = Turns(), 0, 0

    def step() -> None:
        nonlocal steps
        steps += 1

    for _ in range(10 * STEPS_AT_ONCE):
        turns.add(step)
    async with asyncio.timeout(10):
        while steps < 10 * STEPS_AT_ONCE:
            before = steps
            await asyncio.sleep(0)
            most = max(most, steps - before)
    assert most <= STEPS_AT_ONCE


async def test_a_slow_step_is_the_only_one_of_its_turn() -> None:
    turns, steps = Turns(), 0

    def step() -> None:
        nonlocal steps
        steps += 1
        time.sleep(0.01)

    for _ in range(3):
        turns.add(step)
    for expected in (1, 2, 3):
        await asyncio.sleep(0)
        assert steps == expected


async def test_connections_have_steps_in_turn() -> None:
    turns, made = Turns(), list[str]()

    def step(name: str) -> None:
        made.append(name)
        if len(made) < 12:
            turns.add(lambda: step(name))

    for name in "abc":
        turns.add(lambda name=name: step(name))  # type: ignore[misc]
    async with asyncio.timeout(10):
        while len(made) < 12:
            await asyncio.sleep(0)
    assert "".join(made[:12]) == "abcabcabcabc"


async def test_a_step_that_fails_does_not_stop_those_behind_it() -> None:
    turns, made = Turns(), list[str]()
    failures = list[dict[str, object]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fail() -> None:
        raise ValueError

    turns.add(fail)
    turns.add(lambda: made.append("second"))
    async with asyncio.timeout(10):
        while not made:
            await asyncio.sleep(0)
    assert len(failures) == 1


def test_the_address_with_the_most_idle_connections_loses_its_oldest() -> None:
    many = [Fake("192.0.2.1", since) for since in (5, 3, 9, 1)]
    few = [Fake("192.0.2.2", since) for since in (0, 2)]
    busy = [Fake("192.0.2.3", 0, unused=False) for _ in range(9)]
    chosen = to_close([*few, *many, *busy], 2)
    assert [(each.peer, each.idle_since[1]) for each in chosen] == [
        ("192.0.2.1", 1),
        ("192.0.2.1", 3),
    ]


def test_where_one_address_is_not_enough_the_next_one_loses_some() -> None:
    many = [Fake("192.0.2.1", since) for since in (5, 3)]
    few = [Fake("192.0.2.2", 0)]
    assert len(to_close([*few, *many], 3)) == 3
    assert len(to_close([*few, *many], 9)) == 3


def test_a_connection_with_part_of_a_head_goes_after_idle_ones() -> None:
    """Neither is a request under way, so that heads without an end take no room from others."""
    connections = [Fake("192.0.2.1", 1, begun=True), Fake("192.0.2.1", 9)]
    (first, second) = to_close(connections, 2)
    assert (first.idle_since, second.idle_since) == ((False, 9), (True, 1))


def test_connections_with_a_request_under_way_are_never_chosen() -> None:
    assert to_close([Fake("192.0.2.1", 0, unused=False)], 5) == []
