import asyncio
import itertools
import threading
from collections.abc import Iterator

import pytest

from logpipe.turns import TURN_S, Turns, in_thread, pause


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


# -- work in a thread ------------------------------------------------------------------------------


async def test_work_in_a_thread_waits_for_the_loop_after_each_turn() -> None:
    looks, iterations, seen = itertools.count(), 0, list[int]()

    def work() -> str:
        for _ in range(50):
            seen.append(iterations)
            pause()
        return "done"

    async def others() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    going = asyncio.create_task(others())
    assert await in_thread(work, clock=lambda: next(looks) * 2 * TURN_S) == "done"
    going.cancel()
    # The thread may go on before the rest of the iteration in which it is woken.
    assert all(later > before for before, later in zip(seen, seen[2:], strict=False))


async def test_short_work_in_a_thread_has_no_pause() -> None:
    began = threading.Event()

    def work() -> None:
        began.set()
        for _ in range(1000):
            pause()

    working = asyncio.ensure_future(in_thread(work, clock=lambda: 0.0))
    await asyncio.sleep(0)  # it starts the thread, which could only be waited for by the loop
    assert began.wait(10)
    await asyncio.wait_for(working, 10)


async def test_what_a_thread_raises_is_raised() -> None:
    def work() -> None:
        pause()
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await in_thread(work)


async def test_a_thread_goes_on_when_the_loop_does_not() -> None:
    looks, ended = itertools.count(), threading.Event()

    def work() -> None:
        pause()
        ended.set()

    working = asyncio.ensure_future(
        in_thread(work, clock=lambda: next(looks) * 2 * TURN_S, patience=0.01)
    )
    await asyncio.sleep(0)
    assert ended.wait(10)
    await asyncio.wait_for(working, 10)


def test_elsewhere_a_pause_does_nothing() -> None:
    pause()
