"""Streams for tests of what stands on them: a client, events, and what other programs do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from logpipe.fanout.hub import Hub
from logpipe.ids import END, StreamId
from logpipe.metrics import Metrics
from logpipe.redis_address import RedisAddress
from logpipe.stream import Append, Appended, Once, Rule, Stream, digest_of
from logpipe.stream.monitor import Intervals
from tests.helpers import QUICK
from tests.servers import Valkey

NAME = "logs"
MAXLEN = 1000


def event(number: int = 0) -> bytes:
    return b'{"source":"api","message":"number %d"}' % number


OFTEN = Intervals(healthy_s=0.02, troubled_s=0.01, refused_s=0.05)


def events(count: int) -> list[bytes]:
    return [event(number) for number in range(count)]


def address_of(server: Valkey, **more: Any) -> RedisAddress:
    return RedisAddress(socket=str(server.socket), **more)


@asynccontextmanager
async def stream_at(address: RedisAddress, **more: Any) -> AsyncIterator[Stream]:
    given = {"maxlen": MAXLEN, "block_ms": 200, "intervals": OFTEN, **more}
    stream = Stream(address, NAME, **given)
    try:
        yield stream
    finally:
        await stream.aclose()


@asynccontextmanager
async def running(stream: Stream, **more: Any) -> AsyncIterator[Hub]:
    """A hub whose feed runs, and its stream's monitor."""
    given = {"queue_len": 10_000, "batch_count": 500, "heartbeat_s": 15.0, "pauses": QUICK, **more}
    hub = Hub(stream, Metrics(), **given)
    tasks = [asyncio.create_task(each) for each in (hub.run(), hub.beat(), stream.monitor())]
    try:
        yield hub
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def appended(stream: Stream, *requests: Append) -> list[Appended]:
    """The outcomes of requests of which none is declined."""
    outcomes = await stream.append(requests)
    done = [each for each in outcomes if isinstance(each, Appended)]
    assert len(done) == len(requests), outcomes
    return done


def once(key: str, body: bytes = b"body", rule: Rule = Rule.REJECT) -> Once:
    """What makes a request with this body known under a key."""
    return Once(key, digest_of(body), rule)


def plain(stream: Stream) -> Any:
    """A client beside the stream's verbs, for what other programs do."""
    return stream._redis.writing


async def add(stream: Stream, count: int = 1) -> list[StreamId]:
    """Appends so many events in one request; returns all their ids."""
    before = (await stream.bounds()).last
    await stream.append([Append(events(count))])
    rows = await stream.range(before.after(), END, count)
    return [id_ for id_, _ in rows]
