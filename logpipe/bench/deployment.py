"""A running deployment: what its stream holds, what it uses, and the measurements made on it."""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Literal, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec

from logpipe.bench.events import Wrap
from logpipe.bench.measures import (
    WARM_UP_S,
    FanOut,
    Ingest,
    Measure,
    Target,
    Tick,
    Usage,
    fan_out,
    ingest,
)
from logpipe.bench.sending import Address
from logpipe.client.connection import bearer, shown
from logpipe.settings import Settings

Name = Literal["single", "batch", "fan-out", "latency"]
T = TypeVar("T")
NAMES: tuple[Name, ...] = ("single", "batch", "fan-out", "latency")

NO_TOKENS = Settings()

MAX_SHOWN = 200
"""Bytes of an answer that an error repeats."""

_CPU = re.compile(r"^logpipe_process_cpu_seconds_total (\S+)$", re.MULTILINE)
_RSS = re.compile(r"^logpipe_process_resident_memory_bytes (\S+)$", re.MULTILINE)


class UnfitError(Exception):
    """The deployment cannot be measured; says why."""


class Plan(msgspec.Struct, frozen=True):
    """What to measure, and how much of it."""

    names: tuple[Name, ...] = NAMES
    seconds: float = 5.0
    connections: int = 64
    batch: int = 1000
    rate: float = 1000.0
    readers: int = 1000
    size: int = 200
    ingest_rate: float | None = None
    """Events per second of single and batch; None for full rate."""
    warm_up_s: float = WARM_UP_S
    latency_readers: int = 100
    latency_rates: tuple[float, ...] = (10.0, 1000.0)


def address_of(url: str) -> Address:
    """Where a URL leads. Raises ValueError."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL like http://127.0.0.1:8080")
    return Address(parts.hostname, parts.port or (443 if tls else 80), tls)


def logpipe_at(ingest_url: str, url: str, settings: Settings = NO_TOKENS) -> Target:
    """The logpipe whose collector and distributor are at these URLs. Raises ValueError."""

    def posts(content_type: str, separator: bytes) -> Wrap:
        head = _head("POST", ingest_url, "/ingest", settings.ingest_tokens)
        head += b"Content-Type: %b\r\n" % content_type.encode()

        def wrap(events: Sequence[bytes]) -> bytes:
            body = separator.join(events)
            return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)

        return wrap

    return Target(
        "logpipe",
        address_of(ingest_url),
        address_of(url),
        posts("application/json", b""),
        posts("application/x-ndjson", b"\n"),
        get(url, "/subscribe", settings.read_tokens),
    )


def get(url: str, path: str, tokens: Sequence[str] = ()) -> bytes:
    """A GET request."""
    return _head("GET", url, path, tokens) + b"\r\n"


def _head(method: str, url: str, path: str, tokens: Sequence[str]) -> bytes:
    parts = urlsplit(url)
    headers = {"Host": parts.netloc.rpartition("@")[2], **bearer(tokens)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1\r\n{lines}".encode()


class Deployment:
    """The collector and the distributor at two URLs, with the tokens of some settings."""

    def __init__(
        self, http: httpx.AsyncClient, ingest_url: str, url: str, settings: Settings = NO_TOKENS
    ) -> None:
        """Raises ValueError."""
        self.target = logpipe_at(ingest_url, url, settings)
        self._http, self._settings = http, settings
        self._ingest_url, self._url = ingest_url.rstrip("/"), url.rstrip("/")

    async def holds_events_of_others(self) -> bool:
        """Whether the stream holds events that a benchmark would push out. Raises `UnfitError`."""
        query = {"limit": "1", "q": "-source:bench"}
        while True:
            page = await self._page(query)
            if page.events or page.next is None:
                return bool(page.events)
            query["cursor"] = page.next

    async def measure(
        self, plan: Plan, progress: Callable[[str, float], None]
    ) -> AsyncIterator[Measure]:
        """One measurement after the other; `progress` is called with its name and the part of it
        that is done.

        Raises `UnfitError` where the deployment cannot be reached, or has not stored what it has
        acknowledged.
        """
        for name in plan.names:
            tick = partial(progress, name)
            try:
                if name in ("single", "batch"):
                    yield await self._ingest(plan, tick, single=name == "single")
                elif name == "fan-out":
                    yield await self._fan_out(plan, plan.readers, plan.rate, tick)
                else:
                    for rate in plan.latency_rates:
                        yield await self._fan_out(plan, plan.latency_readers, rate, tick)
            except OSError as error:
                raise UnfitError(f"the connection fails: {shown(error)}") from None

    async def usage(self, url: str) -> Usage | None:
        """What the process at a URL has used, from its /metrics; None where they do not say."""
        try:
            text = (await self._get(f"{url}/metrics", self._settings.admin_tokens)).text
        except UnfitError:
            return None
        cpu, rss = _CPU.search(text), _RSS.search(text)
        return Usage(float(cpu[1]), int(float(rss[1]))) if cpu and rss else None

    async def _ingest(self, plan: Plan, tick: Tick, *, single: bool) -> Ingest:
        wrap = self.target.single if single else self.target.batch
        assert wrap is not None
        taken = await ingest(
            self.target,
            wrap,
            connections=plan.connections if single else max(1, plan.connections // 8),
            per_request=1 if single else plan.batch,
            size=plan.size,
            seconds=plan.seconds,
            rate=plan.ingest_rate,
            meter=lambda: self.usage(self._ingest_url),
            tick=tick,
            warm_up_s=plan.warm_up_s,
        )
        if taken.last:
            answer = _decode(taken.last.encode(), _Acknowledged)
            last = answer.id or answer.last_id
            # It was the last to be sent, so it cannot have been trimmed.
            if not (await self._page({"from": last, "to": last})).events:
                raise UnfitError(
                    f"the event {last} was acknowledged and is not at the distributor: do both use"
                    " the same Redis and STREAM_NAME?"
                )
        return taken

    async def _fan_out(self, plan: Plan, readers: int, rate: float, tick: Tick) -> FanOut:
        return await fan_out(
            self.target,
            readers=readers,
            rate=rate,
            size=plan.size,
            seconds=plan.seconds,
            # With many readers the throughput counts, with few the latency.
            batch=readers > plan.latency_readers,
            meter=lambda: self.usage(self._url),
            tick=tick,
        )

    async def _page(self, query: dict[str, str]) -> "_Page":
        url = f"{self._url}/events?{urlencode(query)}"
        answer = await self._get(url, self._settings.read_tokens)
        return _decode(answer.content, _Page)

    async def _get(self, url: str, tokens: Sequence[str]) -> httpx.Response:
        try:
            answer = await self._http.get(url, headers=bearer(tokens))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnfitError(f"{url} does not answer: {shown(error)}") from None
        if answer.status_code != 200:
            text = answer.content[:MAX_SHOWN].decode("utf-8", "replace")
            raise UnfitError(f"GET {url} is answered {answer.status_code}: {text}")
        return answer


class _Acknowledged(msgspec.Struct):
    """The answer for one event, or for a batch."""

    id: str = ""
    last_id: str = ""

    def __post_init__(self) -> None:
        if not self.id and not self.last_id:
            raise ValueError("no event was taken")


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    next: str | None


def _decode(answer: bytes, of: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=of)
    except msgspec.DecodeError as error:
        text = answer[:MAX_SHOWN].decode("utf-8", "replace")
        raise UnfitError(f"this is no answer of logpipe: {text} ({error})") from None
