"""How subscriptions go on: step by step, with heartbeats between, until a `Bye`."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from logpipe.messages import Item, goodbye


class Followed(Protocol):
    """The hub that is read from, as far as its end and its changes go."""

    heartbeat_s: float
    closing: bool

    @property
    def change(self) -> asyncio.Event: ...


class Stepwise(ABC):
    """A broadcast subscription that makes a step whenever its hub has changed."""

    def __init__(self, hub: Followed) -> None:
        self._followed = hub
        self._ended = False

    async def next(self) -> Sequence[Item] | None:
        """The next items: none when a heartbeat is due, None when the subscription is over."""
        due = time.monotonic() + self._followed.heartbeat_s
        while not self._ended:
            change = self._followed.change
            if self._followed.closing:
                self._ended = True
                return [goodbye("the server is stopping")]
            items = await self._step()
            if items or time.monotonic() >= due:
                return items
            await self._wait(change)
        return None

    @abstractmethod
    async def _step(self) -> Sequence[Item]:
        """What there is now; nothing where that is nothing."""

    @abstractmethod
    async def _wait(self, change: asyncio.Event) -> None:
        """Until there may be more: at the latest when the hub has changed since before the step."""


def abandon(task: "asyncio.Task[Sequence[Item] | None]") -> None:
    """Ends a `next` under way that nobody waits for any more, and what becomes of it."""
    task.cancel()
    task.add_done_callback(_forget)


def _forget(task: "asyncio.Task[Sequence[Item] | None]") -> None:
    if not task.cancelled():
        task.exception()  # asked for, so that asyncio does not log it
