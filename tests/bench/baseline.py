"""The baseline: the same design as one would write it in an afternoon, and no more than that.

FastAPI and pydantic, one XADD an event, a queue of text a subscriber. What is no part of the
design's first sketch is missing on purpose: no catch-up, no gap told, no limits, no filters.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import click
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from redis.asyncio import Redis

STREAM = "bench:baseline"
MAXLEN = 50_000
QUEUE_LEN = 10_000
"""Events that wait for one subscriber; what comes when its queue is full, it never gets."""


class Event(BaseModel):
    """One log event, with logpipe's fields."""

    source: str
    message: str
    level: str = "INFO"
    ts_unix_ms: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class Subscribers:
    """The subscribers' queues, and the task that fills them."""

    def __init__(self, redis: Redis) -> None:
        self.queues: set[asyncio.Queue[str]] = set()
        self._redis = redis

    async def fill(self, last: str) -> None:
        """Reads the stream after the id `last`, for ever."""
        while True:
            # Less than the client's own timeout for an answer, which would end this task.
            found: Any = await self._redis.xread({STREAM: last}, count=1000, block=1000)
            for _, entries in found:
                last = entries[-1][0]
                for id_, fields in entries:
                    # Framed once for all: the least that a good baseline would do.
                    self._put(f"id: {id_}\ndata: {fields['event']}\n\n")

    def _put(self, text: str) -> None:
        for queue in self.queues:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(text)


async def texts(queue: asyncio.Queue[str], queues: set[asyncio.Queue[str]]) -> AsyncIterator[str]:
    """What comes into a queue, which is taken from `queues` when the subscriber is gone."""
    try:
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


def application(redis: Redis) -> FastAPI:
    """The baseline, which closes `redis` at its end."""
    subscribers = Subscribers(redis)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        newest: Any = await redis.xrevrange(STREAM, count=1)
        task = asyncio.create_task(subscribers.fill(newest[0][0] if newest else "0-0"))
        yield
        task.cancel()
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/ingest", status_code=202)
    async def ingest(body: Event | list[Event]) -> dict[str, str]:
        events = body if isinstance(body, list) else [body]
        async with redis.pipeline(transaction=False) as pipeline:
            for event in events:
                command = ("XADD", STREAM, "MAXLEN", "~", MAXLEN, "*")
                pipeline.execute_command(*command, "event", event.model_dump_json())
            ids: list[str] = await pipeline.execute()
        return {"id": ids[-1]}

    @app.get("/subscribe")
    async def subscribe() -> StreamingResponse:
        queue: asyncio.Queue[str] = asyncio.Queue(QUEUE_LEN)
        # Before the answer, not in the generator: what is posted after the headers must arrive.
        subscribers.queues.add(queue)
        return StreamingResponse(texts(queue, subscribers.queues), media_type="text/event-stream")

    return app


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--redis", "path", required=True, help="The path of its unix socket.")
def main(port: int, path: str) -> None:
    """Serves on 127.0.0.1, in one process."""
    # A connection a request in flight; from the hundredth on, the default refuses.
    redis = Redis(unix_socket_path=path, protocol=2, max_connections=10_000, decode_responses=True)
    uvicorn.run(
        application(redis),
        port=port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
