import asyncio
import logging

import pytest

from logpipe.background import Background
from tests.helpers import wait_until


async def for_ever() -> None:
    await asyncio.Event().wait()


async def failing() -> None:
    raise RuntimeError("boom")


async def returning() -> None:
    return


async def test_tasks_end_with_the_context_and_that_is_no_failure() -> None:
    ended = []

    async def watched() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0)  # an end that takes a while is waited for
            ended.append(True)

    async with Background() as background:
        background.start("one", watched())
        background.start("two", watched())
        await asyncio.sleep(0)
    assert ended == [True, True]
    assert background.failure is None


async def test_without_tasks_there_is_nothing_to_end() -> None:
    async with Background() as background:
        pass
    assert background.failure is None


@pytest.mark.parametrize("death", [failing, returning])
async def test_a_task_that_dies_is_named_logged_once_and_reported(
    death: object, caplog: pytest.LogCaptureFixture
) -> None:
    reported = []
    async with Background() as background:
        background.on_failure = lambda: reported.append(background.failure)
        background.start("bystander", for_ever())
        background.start("feed", death())  # type: ignore[operator]
        await wait_until(lambda: reported, "the death is reported")
    assert reported == ["the task feed has died"]
    assert background.failure == "the task feed has died"
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert "feed" in record.getMessage()
    assert ("boom" in caplog.text) is (death is failing)


async def test_a_watched_task_may_end_but_not_by_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The tasks of a consumer group end when its last subscriber leaves."""
    background = Background()
    good = asyncio.create_task(returning())
    background.watch(good)
    await good
    ended = asyncio.create_task(for_ever())
    background.watch(ended)
    ended.cancel()
    await asyncio.wait((ended,))
    assert background.failure is None

    other = Background()
    bad = asyncio.create_task(failing(), name="group")
    other.watch(bad)
    await asyncio.wait((bad,))
    await wait_until(lambda: other.failure, "the death is known")
    assert other.failure == "the task group has died"
    assert "boom" in caplog.text
