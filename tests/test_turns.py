import asyncio
import itertools
from collections.abc import Iterator

import pytest

from logpipe.turns import TURN_S, Turns


def on_a_clock(seconds_per_look: float) -> Turns:
    """Turns by a clock that goes on so much whenever it is looked at."""
    looks = itertools.count()
    return Turns(clock=lambda: next(looks) * seconds_per_look)


def work(done: list[str], name: str, parts: int) -> Iterator[None]:
    for _ in range(parts):
        done.append(name)
        yield


async def test_work_that_takes_no_time_is_done_without_a_pause() -> None:
    turns, done = on_a_clock(0), list[str]()
    other = asyncio.create_task(asyncio.sleep(0))
    await turns.run(work(done, "a", 1000))
    assert len(done) == 1000
    assert not other.done()
    await other


async def test_long_work_leaves_the_loop_to_others_after_each_turn() -> None:
    turns, done = on_a_clock(TURN_S / 4), list[str]()
    passed: list[int] = []

    async def others() -> None:
        while True:
            passed.append(len(done))
            await asyncio.sleep(0)

    going = asyncio.create_task(others())
    await turns.run(work(done, "a", 100))
    going.cancel()
    assert len(done) == 100
    assert max(later - before for before, later in itertools.pairwise(passed)) <= 5


async def test_works_of_several_tasks_take_turns() -> None:
    turns, done = on_a_clock(2 * TURN_S), list[str]()
    await asyncio.gather(turns.run(work(done, "a", 5)), turns.run(work(done, "b", 3)))
    assert "".join(done) == "abababaa"


async def test_short_works_of_many_tasks_are_added_up() -> None:
    turns, done = on_a_clock(TURN_S / 10), list[str]()
    rounds = 0

    async def others() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    going = asyncio.create_task(others())
    await asyncio.gather(*(turns.run(work(done, "a", 1)) for _ in range(1000)))
    going.cancel()
    assert len(done) == 1000
    assert rounds > 100


async def test_work_that_fails_is_added_up_as_well() -> None:
    turns = on_a_clock(TURN_S / 3)
    rounds = 0

    async def others() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    def failing() -> Iterator[None]:
        yield from ()
        raise RuntimeError("on purpose")

    async def run() -> None:
        with pytest.raises(RuntimeError, match="on purpose"):
            await turns.run(failing())

    going = asyncio.create_task(others())
    for _ in range(300):  # none of them waits for another
        await run()
    going.cancel()
    assert rounds > 50


async def test_between_turns_the_loop_goes_round_as_often_as_asked() -> None:
    looks = itertools.count()
    turns, done = Turns(lambda: next(looks) * 2 * TURN_S, pause=3), list[str]()
    passed: list[int] = []

    async def others() -> None:
        while True:
            passed.append(len(done))
            await asyncio.sleep(0)

    going = asyncio.create_task(others())
    await turns.run(work(done, "a", 10))
    going.cancel()
    assert all(passed.count(number) >= 3 for number in range(1, 10))


async def test_work_that_is_cancelled_or_fails_leaves_its_turn() -> None:
    turns, done = on_a_clock(2 * TURN_S), list[str]()

    def failing() -> Iterator[None]:
        yield
        raise RuntimeError("on purpose")

    endless = asyncio.create_task(turns.run(itertools.repeat(None)))
    with pytest.raises(RuntimeError, match="on purpose"):
        await turns.run(failing())
    endless.cancel()
    await asyncio.wait({endless})
    assert endless.cancelled()
    await asyncio.wait_for(turns.run(work(done, "a", 3)), 5)
    assert len(done) == 3
