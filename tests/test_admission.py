"""Which connections are admitted, which are closed for others, and who has a turn."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial

from logpipe.limits import client_of
from logpipe.serving.admission import STEPS_AT_ONCE, BoundedState, Handshakes, Turns


class Fake:
    """A connection, as the choice of those to close sees it."""

    def __init__(self, address: str, *, unused: bool = True, begun: int = 0) -> None:
        self.address = client_of(address)
        self.unused = unused
        self.begun = begun
        self.closed = False

    def close_for_room(self) -> None:
        self.closed = True


async def test_other_callbacks_run_between_the_steps_of_many_connections() -> None:
    turns, steps, most = Turns(), 0, 0

    def step() -> None:
        nonlocal steps
        steps += 1

    for _ in range(10 * STEPS_AT_ONCE):
        turns.add(step, "a")
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
        turns.add(step, "a")
    for expected in (1, 2, 3):
        await asyncio.sleep(0)
        assert steps == expected
    assert STEPS_AT_ONCE > 1


async def test_connections_have_steps_in_turn() -> None:
    turns, made = Turns(), list[str]()

    def step(name: str) -> None:
        made.append(name)
        if len(made) < 12:
            turns.add(lambda: step(name), "a")

    for name in "abc":
        turns.add(lambda name=name: step(name), "a")  # type: ignore[misc]
    async with asyncio.timeout(10):
        while len(made) < 12:
            await asyncio.sleep(0)
    assert "".join(made[:12]) == "abcabcabcabc"


async def test_each_client_in_turn_has_a_step_however_many_it_adds() -> None:
    turns, made = Turns(), list[str]()
    for name in ("a1", "a2", "a3", "a4", "b1", "c1", "c2"):
        turns.add(partial(made.append, name), client=name[0])
    async with asyncio.timeout(10):
        while len(made) < 7:
            await asyncio.sleep(0)
    assert made == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


async def test_an_urgent_step_is_made_before_the_others_of_its_client() -> None:
    turns, made = Turns(), list[str]()
    for name in ("a1", "a2", "b1", "b2"):
        turns.add(partial(made.append, name), client=name[0])
    for name in ("a3", "a4"):
        turns.add(partial(made.append, name), client="a", urgent=True)
    async with asyncio.timeout(10):
        while len(made) < 6:
            await asyncio.sleep(0)
    assert made == ["a3", "b1", "a4", "b2", "a1", "a2"]


async def test_a_step_that_fails_does_not_stop_those_behind_it() -> None:
    turns, made = Turns(), list[str]()
    failures = list[dict[str, object]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fail() -> None:
        raise ValueError

    turns.add(fail, "a")
    turns.add(lambda: made.append("second"), "a")
    async with asyncio.timeout(10):
        while not made:
            await asyncio.sleep(0)
    assert len(failures) == 1


def state_of(*connections: Fake, most: int) -> tuple[BoundedState, Counter[str]]:
    """Connections that joined in this order, and what is counted."""
    limited: Counter[str] = Counter()
    state = BoundedState(limited.update, most)
    for connection in connections:
        peer = state.join(connection.address)
        state.connections.add(connection)  # type: ignore[arg-type]
        if connection.unused:
            peer.unused[connection] = None
    return state, limited


def closed(connections: Iterable[Fake]) -> list[int]:
    """Which of them are closed."""
    return [index for index, connection in enumerate(connections) if connection.closed]


def test_the_address_with_the_most_idle_connections_loses_its_oldest() -> None:
    few = [Fake("192.0.2.2") for _ in range(20)]
    busy = [Fake("192.0.2.3", unused=False) for _ in range(31)]
    many = [Fake("192.0.2.1") for _ in range(30)]
    state, limited = state_of(*few, *busy, *many, most=100)
    assert state.has_room()
    assert (closed(few), closed(busy), closed(many)) == ([], [], [0, 1, 2])
    assert limited == {"idle_connections": 3}


def test_where_one_address_has_too_few_the_next_one_loses_some() -> None:
    connections = [Fake(f"192.0.2.{number // 2}") for number in range(90)]
    state, limited = state_of(*connections, most=100)
    assert state.has_room()
    assert len(closed(connections)) == limited["idle_connections"] == 12


def test_nothing_is_closed_while_there_is_room() -> None:
    connections = [Fake("192.0.2.1") for _ in range(80)]
    state, limited = state_of(*connections, most=100)
    assert state.has_room()
    assert closed(connections) == []
    assert not limited


def test_a_connection_with_part_of_a_head_goes_after_idle_ones() -> None:
    """Neither is a request under way, so that heads without an end take no room from others."""
    connections = [Fake("192.0.2.1", begun=int(number < 80)) for number in range(81)]
    state, _ = state_of(*connections, most=100)
    assert state.has_room()
    assert closed(connections) == [0, 1, 80]


def test_connections_with_a_request_under_way_are_never_closed() -> None:
    connections = [Fake("192.0.2.1", unused=False) for _ in range(101)]
    state, limited = state_of(*connections, most=100)
    assert not state.has_room()
    assert closed(connections) == []
    assert not limited


def test_connections_of_one_ipv6_network_are_of_one_client() -> None:
    own = [Fake(f"2001:db8:1:1::{number:x}") for number in range(40)]
    others = [Fake(f"2001:db8:1:{number:x}::1") for number in range(2, 43)]
    state, _ = state_of(*others, *own, most=100)
    assert state.has_room()
    assert (closed(own), closed(others)) == ([0, 1, 2], [])


def test_clients_that_have_left_are_forgotten() -> None:
    connections = [Fake(f"192.0.2.{number}") for number in range(9)]
    state, _ = state_of(*connections, most=100)
    for connection in connections:
        state.leave(connection, connection.address)
    assert state.join("192.0.2.1").connections == 1


def test_connections_that_are_not_closed_yet_count() -> None:
    connections = [Fake("192.0.2.1") for _ in range(101)]
    state, _ = state_of(*connections, most=100)
    assert not state.has_room()
    for index in closed(connections):
        state.connections.discard(connections[index])
        state.leave(connections[index], connections[index].address)
    assert state.has_room()


def test_the_client_with_the_most_handshakes_loses_its_oldest() -> None:
    limited: Counter[str] = Counter()
    handshakes = Handshakes(limited.update, most=5)
    few = [Fake("192.0.2.1") for _ in range(2)]
    many = [Fake("192.0.2.2") for _ in range(8)]
    for connection in [few[0], *many, few[1]]:
        handshakes.begin(connection, connection.address)
    assert closed(few) == []
    assert closed(many) == [0, 1, 2, 3, 4]
    assert limited == {"handshakes": 5}


def test_a_handshake_that_has_ended_leaves_room() -> None:
    handshakes = Handshakes(lambda _: None, most=2)
    every = [Fake("192.0.2.1") for _ in range(6)]
    for connection in every:
        handshakes.begin(connection, connection.address)
        handshakes.end(connection, connection.address)
        handshakes.end(connection, connection.address)
    assert closed(every) == []
