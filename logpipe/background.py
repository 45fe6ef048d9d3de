"""The tasks that run as long as the process: one that ends is a fault of the whole."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Self

log = logging.getLogger("logpipe")


class Background:
    """Tasks that end with this context. `failure` says what died, `on_failure` is called then."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.draining = False
        """Whether the process still serves and ends soon."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, endless: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine that never returns by itself."""
        task = asyncio.create_task(endless, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def watch(self, task: asyncio.Task[None]) -> None:
        """Takes note of a task that may end by itself, though not by an error."""
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fail(task)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._fail(task)

    def _fail(self, task: asyncio.Task[None]) -> None:
        self.failure = f"the task {task.get_name()} has died"
        log.critical("%s; the process ends", self.failure, exc_info=task.exception())
        self.on_failure()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
