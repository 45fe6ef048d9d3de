"""The oracle: issues events, records every 202 as an obligation, and subscribes.

It runs in the process of the suite, over HTTP alone, and no fault is ever done to it.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections import Counter
from typing import Any

import httpx

from tests.chaos.judge import Seen
from tests.soak.judge import Id, parse_id
from tests.soak.readers import Plan, Reader, Told

LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
SENDERS = 3
AGAIN_S = 0.03
"""Before a request is repeated."""
ANSWER_S = 3.0
"""A request without an answer for so long is repeated; logpipe promises one within two."""
GIVE_UP_S = 10.0
"""What is not acknowledged so long after the end of the load is no obligation."""
EARLIEST = Plan({"since": "earliest"}, bool, leaves=False)


def event(number: int) -> dict[str, Any]:
    """The event of a number: all of it follows from that."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return {
        "source": f"s{number % 7}",
        "level": LEVELS[number % len(LEVELS)],
        "message": f"event {number} {digest * (number % 5)} \u00e4\u2028\U0001f600",
        "ts_unix_ms": 1_700_000_000_000 + number,
        "metadata": {"n": number, "digest": digest[:16], "deep": [{"x": number / 8}, None]},
    }


def seen(told: dict[str, Any]) -> Seen:
    """An event as it came back."""
    id_ = parse_id(told.pop("id"))
    number = told.get("metadata", {}).get("n", -1)
    return Seen(id_, number, told == event(number))


class Subscriber(Reader):
    """Reads from the beginning on, and resumes by Last-Event-ID for ever."""

    def __init__(self, url: str, chance: random.Random, plan: Plan = EARLIEST) -> None:
        super().__init__("subscriber", plan, [url], chance)
        self.seen: list[Seen] = []
        self.numbers: set[int] = set()

    def take(self, frame: bytes) -> None:
        """One SSE event."""
        lines = [line.partition(": ") for line in frame.decode().split("\n") if line[:1] != ":"]
        fields = {name: value for name, _, value in lines}
        if "data" not in fields:
            return
        told, name = json.loads(fields["data"]), fields.get("event", "")
        if name:
            names = ("reason", "after", "before", "count")
            given = {key: told[key] for key in names if key in told}
            self.note(name, fields.get("id", ""), Told(**given))
        else:
            self.cursor = told["id"]
            self.seen.append(seen(told))
            self.numbers.add(self.seen[-1].number)


class Oracle:
    """The load and what became of it."""

    def __init__(self, url: str, subscriber: Subscriber, chance: random.Random, rate: int) -> None:
        self.issued = 0
        self.freshest = -1
        """The number of the last event that was asked for as a fresh one."""
        self.acked: dict[int, Id] = {}
        self.answers: Counter[str] = Counter()
        self.outage_s = 0.0
        """The longest time without an acknowledgement."""
        self.subscriber = subscriber
        self._url = f"{url}/ingest"
        self._chance = chance
        self._run = f"{chance.random()}"
        self._pause_s = SENDERS * 10.5 / rate
        self._stopping = False
        self._acked_at = 0.0
        self._http = httpx.AsyncClient(trust_env=False, timeout=ANSWER_S)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to send and to read."""
        self._tasks = [asyncio.create_task(self._send_all()) for _ in range(SENDERS)]
        self._tasks.append(asyncio.create_task(self.subscriber.run()))

    async def stop_sending(self) -> None:
        """Returns when nothing is under way any more."""
        self._stopping = True
        _, late = await asyncio.wait(self._tasks[:SENDERS], timeout=GIVE_UP_S)
        for task in late:
            task.cancel()

    async def aclose(self) -> None:
        """Ends it all; raises what the oracle itself has stumbled over."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()
        for problem in ended:
            if isinstance(problem, Exception):
                raise problem

    async def fresh(self, limit_s: float) -> float | None:
        """How long an event that is issued now takes to the subscriber; None: longer than that."""
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                numbers = self.issue(1)
                self.freshest = numbers.start
                await self._insist(numbers, answer_s=0.5)
                while numbers.start not in self.subscriber.numbers:
                    await asyncio.sleep(0.005)
                return time.monotonic() - began
        return None

    def issue(self, count: int) -> range:
        """The numbers of so many new events."""
        self.issued += count
        return range(self.issued - count, self.issued)

    async def _send_all(self) -> None:
        while not self._stopping:
            began = time.monotonic()
            await self._insist(self.issue(self._chance.randint(1, 20)))
            spent = time.monotonic() - began
            await asyncio.sleep(max(0.001, self._chance.uniform(0, 2) * self._pause_s - spent))

    async def _insist(self, numbers: range, answer_s: float = ANSWER_S) -> None:
        """Sends a batch, always with the same key, until it is acknowledged."""
        events = [event(number) for number in numbers]
        body = json.dumps(events if len(events) > 1 else events[0]).encode()
        headers = {"Idempotency-Key": f"{self._run}-{numbers.start}"}
        while not await self._acknowledged(numbers, body, headers, answer_s):
            await asyncio.sleep(AGAIN_S)

    async def _acknowledged(
        self, numbers: range, body: bytes, headers: dict[str, str], answer_s: float
    ) -> bool:
        try:
            post = self._http.post(self._url, content=body, headers=headers, timeout=answer_s)
            answer = await post
        except httpx.HTTPError:
            self.answers["none"] += 1
            return False
        self.answers[str(answer.status_code)] += 1
        if answer.status_code == 202:
            told = answer.json()
            self.oblige(numbers, parse_id(told.get("first_id") or told["id"]))
        return answer.status_code == 202

    def oblige(self, numbers: range, first: Id) -> None:
        """These are acknowledged; their ids follow each other, because one step appended them."""
        for number in numbers:
            self.acked[number] = (first[0], first[1] + number - numbers.start)
        now = time.monotonic()
        self.outage_s = max(self.outage_s, now - (self._acked_at or now))
        self._acked_at = now
