"""Gathers facts about a deployment: what it answers, and what comes out of its stream."""

import asyncio
import gzip
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from logpipe import sse
from logpipe.client.connection import CONNECT_TIMEOUT_S, shown, trusted
from logpipe.doctor.senders import PROBES, SENDERS, Probe, Sender, bearer
from logpipe.ids import parse_id
from logpipe.samples import Sample, read_sample

ANSWER_S = 5.0
"""A request that is not answered in this time is not answered."""
HELLO_S = 3.0
"""A stream says hello at once; a proxy that buffers keeps it for minutes."""
ARRIVAL_S = 5.0
"""What was taken in comes out of the stream in milliseconds; after this time it is missing."""
METRICS_S = 3.0
"""A distributor knows its Redis after its first look, a second after its start."""
POLL_S = 0.2
MAX_PAGES = 20
"""Pages of the history among which the events that were sent are looked for."""
WRONG_TOKEN = "logpipe-doctor-knows-no-such-token"  # noqa: S105 - it is meant to be refused
KEPT = "logpipe_redis_append_only"


class Target(NamedTuple):
    """Where collector and distributor are, as base URLs, and a token for each; "" for none."""

    collector: str
    distributor: str
    ingest_token: str = ""
    read_token: str = ""
    admin_token: str = ""


class Answer(NamedTuple):
    """A status, 0 for none; the body, or why there is none."""

    status: int
    text: str = ""

    def __str__(self) -> str:
        return self.text or "no answer" if not self.status else f"status {self.status}"


NOT_ASKED = Answer(0)


class Sent(NamedTuple):
    """An event's answer, and own clock (ms) before it was sent and once it was answered."""

    answer: Answer
    from_ms: float
    to_ms: float


@dataclass
class Facts:
    """All that is known; what was not looked at is empty."""

    target: Target
    marker: str = field(default_factory=lambda: secrets.token_hex(8))
    alive: dict[str, Answer] = field(default_factory=dict)
    health: dict[str, dict[str, Any]] = field(default_factory=dict)
    ways: dict[tuple[str, str], Answer] = field(default_factory=dict)
    """To (send, read) with a token (own, none, wrong)."""
    probes: dict[Probe, Answer] = field(default_factory=dict)
    stream: Answer = NOT_ASKED
    hello_s: float | None = None
    sent: dict[str, Sent] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    """By protocol, the ms of the stored event's id; what came out of the stream."""
    stored: frozenset[str] = frozenset()
    """Protocols whose event the history has."""
    metrics: Sample | None = None


async def examine(target: Target) -> Facts:
    """Looks at everything; only at who is there where that is nobody. Raises nothing of HTTP's."""
    facts = Facts(target)
    timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_TIMEOUT_S)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        trust_env=False, timeout=timeout, limits=limits, verify=trusted()
    ) as http:
        look = _Look(facts, http)
        await look.presence()
        if all(answer.status for answer in facts.alive.values()):
            await asyncio.gather(look.tokens(), look.probes())
            await look.round_trip()
            await look.history()
            await look.measures()
    return facts


class _Look:
    def __init__(self, facts: Facts, http: httpx.AsyncClient) -> None:
        self._facts = facts
        self._target = facts.target
        self._http = http
        self._began = 0.0  # asking for the stream, monotonic

    async def _ask(self, method: str, url: str, **given: Any) -> Answer:
        """The answer, whatever it is."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._http.request(method, url, **given)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return Answer(0, shown(error))
        return Answer(answer.status_code, answer.text)

    async def presence(self) -> None:
        """Who is there, and how they are."""
        for url in dict.fromkeys((self._target.collector, self._target.distributor)):
            self._facts.alive[url] = await self._ask("GET", f"{url}/livez")
            health = await self._ask("GET", f"{url}/healthz")
            self._facts.health[url] = _object(health.text)

    async def tokens(self) -> None:
        """What is answered to own token, none, a wrong one. An empty batch stores nothing."""
        ways = {
            "send": ("POST", f"{self._target.collector}/ingest/json", self._target.ingest_token),
            "read": ("GET", f"{self._target.distributor}/events?limit=1", self._target.read_token),
        }
        for way, (method, url, token) in ways.items():
            for name, shown_token in (("own", token), ("none", ""), ("wrong", WRONG_TOKEN)):
                headers = bearer(shown_token) if shown_token else {}
                content = {"content": b"[]"} if method == "POST" else {}
                answer = await self._ask(method, url, headers=headers, **content)
                self._facts.ways[way, name] = answer

    async def probes(self) -> None:
        """All probes."""
        for probe in PROBES:
            show = SENDERS[probe.protocol].shown
            token = self._target.ingest_token if probe.method != "OPTIONS" else ""
            url = self._target.collector + probe.path
            self._facts.probes[probe] = await self._ask(
                probe.method, url, headers=show(token) if token else {}
            )

    async def round_trip(self) -> None:
        """Sends an event by each protocol and waits for them in the stream."""
        async with self._subscribed() as events:
            waiting = anext(events, None) if events else None
            hello = waiting and await self._hello(waiting)
            sending = asyncio.create_task(self._send())
            try:
                if events and hello:
                    with suppress(TimeoutError, httpx.HTTPError):
                        async with asyncio.timeout(ARRIVAL_S):
                            await self._collect(events, sending)
            finally:
                await sending

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[AsyncIterator[sse.ServerSentEvent] | None]:
        """The stream's events; None where there is no stream."""
        request = self._http.build_request(
            "GET",
            f"{self._target.distributor}/subscribe",
            params={"text": self._facts.marker},
            headers=bearer(self._target.read_token) if self._target.read_token else {},
        )
        self._began = time.monotonic()
        try:
            async with asyncio.timeout(HELLO_S):
                response = await self._http.send(request, stream=True)
        except (httpx.HTTPError, TimeoutError) as error:
            self._facts.stream = Answer(0, shown(error))
            yield None
            return
        self._facts.stream = Answer(response.status_code, response.headers.get("content-type", ""))
        try:
            yield _events(response) if response.status_code == 200 else None
        finally:
            await response.aclose()

    async def _hello(self, waiting: Any) -> bool:
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(HELLO_S):
                if await waiting:
                    self._facts.hello_s = time.monotonic() - self._began
        return self._facts.hello_s is not None

    async def _send(self) -> None:
        sent = await asyncio.gather(*(self._sent(name, SENDERS[name]) for name in SENDERS))
        self._facts.sent.update(zip((*SENDERS, "gzip"), (*sent, await self._gzip()), strict=True))

    async def _gzip(self) -> Sent:
        return await self._sent("gzip", SENDERS["json"], packed=True)

    async def _sent(self, name: str, sender: Sender, *, packed: bool = False) -> Sent:
        token = self._target.ingest_token
        headers = {"Content-Type": sender.content_type} if sender.content_type else {}
        headers |= sender.shown(token) if token else {}
        headers |= {"Content-Encoding": "gzip"} if packed else {}
        body = sender.body(f"{self._facts.marker} {name}")
        content = gzip.compress(body) if packed else body
        began = time.time() * 1000
        answer = await self._ask(
            "POST", self._target.collector + sender.path, headers=headers, content=content
        )
        return Sent(answer, began, time.time() * 1000)

    async def _collect(
        self, events: AsyncIterator[sse.ServerSentEvent], sending: "asyncio.Task[None]"
    ) -> None:
        """Returns when all that was taken has come."""
        await asyncio.shield(sending)
        missing = {name for name, sent in self._facts.sent.items() if _taken(name, sent.answer)}
        while missing:
            event = await anext(events, None)
            if event is None:
                return
            if event.event != "message":
                continue
            told = _object(event.data)
            with suppress(ValueError):  # what another program streams has no id of a stream
                ms = parse_id(str(told.get("id"))).ms
                name = self._name_in(told)
                self._facts.arrived[name] = ms
                missing.discard(name)

    def _name_in(self, event: Mapping[str, Any]) -> str:
        return str(event.get("message", "")).rpartition(f"{self._facts.marker} ")[2].strip()

    async def history(self) -> None:
        """What is stored, where the stream itself has not told it."""
        if self._facts.sent.keys() <= self._facts.arrived.keys():
            return
        token = self._target.read_token
        query = {"text": self._facts.marker}
        stored: set[str] = set()
        for _ in range(MAX_PAGES):
            page = await self._ask(
                "GET",
                f"{self._target.distributor}/events",
                params=query,
                headers=bearer(token) if token else {},
            )
            answer = _object(page.text)
            stored.update(map(self._name_in, answer.get("events", [])))
            if not answer.get("next") or self._facts.sent.keys() <= stored:
                break
            query["cursor"] = str(answer["next"])
        self._facts.stored = frozenset(stored)

    async def measures(self) -> None:
        """The distributor's metrics, once they speak of Redis; where there is none, as they are."""
        streams = self._facts.stream.status == 200
        url, token = f"{self._target.distributor}/metrics", self._target.admin_token
        headers = bearer(token) if token else {}
        with suppress(TimeoutError):
            async with asyncio.timeout(METRICS_S):
                while True:
                    answer = await self._ask("GET", url, headers=headers)
                    with suppress(ValueError):
                        self._facts.metrics = read_sample(answer.text, time.monotonic())
                    sample = self._facts.metrics
                    if not streams or not sample or KEPT not in sample.series:
                        return
                    if sample.value(KEPT) is not None:
                        return
                    await asyncio.sleep(POLL_S)


def _taken(name: str, answer: Answer) -> bool:
    return answer.status == SENDERS["json" if name == "gzip" else name].status


async def _events(response: httpx.Response) -> AsyncIterator[sse.ServerSentEvent]:
    parser = sse.Parser()
    async for text in response.aiter_text():
        for event in parser.feed(text):
            yield event


def _object(text: str) -> dict[str, Any]:
    """A JSON object; empty where it is none."""
    with suppress(ValueError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}
