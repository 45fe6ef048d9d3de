"""What failed requests and closed connections leave behind does not stay."""

import asyncio
import gc
import weakref

import pytest

from logpipe import garbage
from tests.helpers import wait_until


class Loop:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


async def test_what_refers_to_itself_is_gone_within_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though hardly anything is allocated, so that no threshold is ever met."""
    monkeypatch.setattr(garbage, "LOOK_S", 0.05)
    thresholds = gc.get_threshold()
    gc.disable()
    try:
        left = weakref.ref(Loop())
        assert left() is not None
        task = asyncio.create_task(garbage.look_now_and_then())
        await wait_until(lambda: left() is None, "it is gone")
        task.cancel()
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
