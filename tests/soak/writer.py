"""Who sends numbered events, each batch again with its key until it is acknowledged."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import httpx

from tests.soak.judge import Id, parse_id

Make = Callable[[int], dict[str, Any]]
"""An event of a number."""


class Acknowledged(Protocol):
    """Who takes note of what was acknowledged, in the order of the numbers."""

    @property
    def count(self) -> int:
        """How many events that are: the next number."""

    def acknowledged(self, first: Id, last: Id, count: int) -> None:
        """A batch has these ids."""


class Writer:
    """Sends batches of up to `batch` events, no faster than `rate` events a second."""

    def __init__(
        self, url: str, ledger: Acknowledged, event: Make, rate: int, batch: int = 100
    ) -> None:
        self._url = f"{url}/ingest"
        self._ledger = ledger
        self._event = event
        self._rate = rate
        self._batch = batch
        self.stopping = False
        self.repeated = 0

    async def run(self) -> None:
        """Sends until it is told to stop."""
        began, before = time.monotonic(), 0
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            while not self.stopping:
                due = int((time.monotonic() - began) * self._rate)
                count = min(due - before, self._batch)
                if count < self._batch / 10:
                    await asyncio.sleep(0.005)
                    continue
                before = due if due - before > self._rate else before + count
                await self.send(http, count)

    async def send(self, http: httpx.AsyncClient, count: int) -> None:
        """One batch."""
        first = self._ledger.count
        body = [self._event(number) for number in range(first, first + count)]
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await http.post(self._url, json=body, headers=headers)
                if answer.status_code == 202:
                    told = answer.json()
                    ends = parse_id(told["first_id"]), parse_id(told["last_id"])
                    self._ledger.acknowledged(*ends, count)
                    return
            self.repeated += 1
            await asyncio.sleep(0.02)
