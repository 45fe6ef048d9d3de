"""logpipe with one thing altered, which ALTERED names: what a trial must notice, or a limit made
short enough to be waited for."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

import msgspec

from logpipe import listening
from logpipe.cli import main
from logpipe.collector.appender import Appender
from logpipe.stream import Append, Appended, Declined, Stream

DEAD_READER_MS = 3_000


def _early() -> None:
    """The collector acknowledges before Redis has confirmed."""
    confirmed = Appender.append
    under_way = set()

    async def append(self: Appender, request: Append) -> Appended:
        task = asyncio.create_task(confirmed(self, request))
        under_way.add(task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([task], timeout=0.02)
        if task.done():
            return task.result()
        made_up = [f"1-{number}" for number in range(len(request.events))]
        return Appended(made_up[0], made_up[-1], request.receipt, False)

    Appender.append = append  # type: ignore[method-assign]


def _keyless() -> None:
    """The collector forgets the keys."""
    whole = Stream.append

    async def append(self: Stream, requests: Sequence[Append]) -> Sequence[Appended | Declined]:
        return await whole(self, [msgspec.structs.replace(each, once=None) for each in requests])

    Stream.append = append  # type: ignore[method-assign,assignment]


def _catch_up() -> None:
    """Who is behind jumps to the newest, without a word."""
    import tests.soak.broken  # noqa: F401


def _noisy() -> None:
    """Every append leaves a traceback in the log."""
    quiet = Appender.append

    async def append(self: Appender, request: Append) -> Appended:
        logging.getLogger("logpipe").error("something is wrong", exc_info=ValueError())
        return await quiet(self, request)

    Appender.append = append  # type: ignore[method-assign]


def _impatient() -> None:
    """A reader whose host is gone is cut off after three seconds, not sixty."""
    listening.DEAD_READER_MS = DEAD_READER_MS
    listening.PROBE_S = 1  # three of them fit in


ALTERATIONS: dict[str, Callable[[], None]] = {
    "early": _early,
    "keyless": _keyless,
    "catch-up": _catch_up,
    "noisy": _noisy,
    "impatient": _impatient,
}

if __name__ == "__main__":
    ALTERATIONS[os.environ["ALTERED"]]()
    main()
