"""A logger of a test's own, whose only handler sends to logpipe."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from logpipe.handler import LogpipeHandler


def logger_of(*handlers: logging.Handler, name: str = "app") -> logging.Logger:
    """A logger at level 1 that no other test sees."""
    logger = logging.Logger(name, 1)  # noqa: LOG001 - known to nobody else
    for handler in handlers:
        logger.addHandler(handler)
    return logger


@contextlib.asynccontextmanager
async def handling(url: str, **given: Any) -> AsyncIterator[tuple[logging.Logger, LogpipeHandler]]:
    """A logger named `app` at level 1, and its handler, which is closed at the end."""
    handler = LogpipeHandler(url, **{"interval": 0.01, "flush_timeout": 10.0, **given})
    try:
        yield logger_of(handler), handler
    finally:
        await flushed(handler.close)


async def flushed(wait: Any) -> Any:
    """What waits for the collector, while this event loop may be the collector."""
    return await asyncio.to_thread(wait)
