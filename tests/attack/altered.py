"""logpipe without one of its bounds, which ALTERED names: what an attack on it must notice."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from logpipe.cli import main

NO_BOUND = 10**12
LONG_S = 60.0


@contextlib.asynccontextmanager
async def _unattended(receive: Any) -> AsyncIterator[None]:
    """Nobody notices that a client has left."""
    yield


def _pipeline() -> None:
    """All that a connection has received is parsed at once, however many requests it holds."""
    from logpipe.serving import admission, protocol

    protocol.MAX_OPEN = protocol.MAX_QUEUED_BYTES = protocol.SLICE_BYTES = NO_BOUND
    protocol.HEAD_END = b"\0"
    admission.STEPS_AT_ONCE = NO_BOUND
    admission.TURN_S = LONG_S


def _idle() -> None:
    """No idle connection is closed to make room for another."""
    from logpipe.serving import admission

    admission.CROWDED_PERCENT = 1_000


def _scans() -> None:
    """Searches of the history have as many seats as they want, read all in one step, do not pause,
    and go on when their clients have left."""
    from logpipe import answers
    from logpipe.fanout import history

    init = history.ScanSeats.__init__

    def without_bounds(self: history.ScanSeats, *_: Any, **given: Any) -> None:
        init(self, **{**given, "seats": 1_000, "queue": NO_BOUND})

    history.ScanSeats.__init__ = without_bounds  # type: ignore[method-assign]
    history.PAGE_S = LONG_S
    answers.attended = _unattended
    _long_steps()


def _look_backs() -> None:
    """A search of `tail` looks at everything in one step, without a pause."""
    from logpipe.fanout import history, look_back

    init = history.Scan.__init__

    def without_steps(self: history.Scan, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        self._most = self._fits = NO_BOUND

    history.Scan.__init__ = without_steps  # type: ignore[method-assign]
    look_back.MAX_ENTRIES = look_back.MAX_READ_BYTES = NO_BOUND
    look_back.MAX_S = LONG_S
    _long_steps()


def _long_steps() -> None:
    """A step of a search reads a whole page, and looks at it without a pause."""
    from logpipe import turns
    from logpipe.fanout import history

    turns.TURN_S = history.STEP_S = LONG_S
    history.FIRST_COUNT = history.MAX_STEP_COUNT = history.PAGE_SCAN
    history.STEP_BYTES = history.RUN_BYTES = NO_BOUND


def _filter_cost() -> None:
    """A filter may take as long as it likes for an event."""
    from logpipe.filters import predicate

    predicate.MAX_STEPS = NO_BOUND


def _filter_memory() -> None:
    """Compiled filters are kept, whoever used them, and as large as they like."""
    from logpipe.filters import compiled, reading

    compiled.memory_of = lambda query, node: 0
    reading.REGEX_MEMORY = 1 << 20


def _frames() -> None:
    """A body may have any number of frames, and is unpacked without a pause."""
    from logpipe.collector import body

    body.MAX_FRAMES = NO_BOUND
    body.FIRST_STEP_S = body.STEP_S = LONG_S


def _accepting() -> None:
    """One connection is accepted in each iteration of the event loop, and threads do not pause."""
    from logpipe import listening, turns

    listening.ACCEPTED_AT_ONCE = 1
    turns._ThreadTurn.is_over = lambda self: False  # type: ignore[method-assign]


def _handshakes() -> None:
    """asyncio makes the handshakes, of all clients in one iteration of the event loop."""
    from logpipe.serving.server import Server

    Server._begin_with_handshakes = lambda *_: None  # type: ignore[method-assign]


def _heads() -> None:
    """The head of a request is kept as long as its connection or stream, and not counted."""
    from logpipe.serving import admission
    from logpipe.wire import Wire

    Wire.shed = Wire.no_longer_count  # type: ignore[method-assign]
    admission.MAX_HEADS_BYTES = NO_BOUND


def _answers() -> None:
    """Whole pages are written at once, however little their clients take."""
    from logpipe import answers
    from logpipe.fanout import history

    init = answers.Answers.__init__

    def without_bounds(self: answers.Answers, *given: Any, **_: Any) -> None:
        init(self, *given, most=NO_BOUND)

    answers.Answers.__init__ = without_bounds  # type: ignore[method-assign]
    answers.SMALL_BYTES = history.STEP_BYTES = NO_BOUND


def _half_syslog() -> None:
    """Messages of syslog may take as long as they like, and leave no room for others."""
    from logpipe.collector.receivers import syslog_tcp

    defaults = syslog_tcp.SyslogListener.__init__.__defaults__
    assert defaults == (syslog_tcp.LIMITS,)
    endless = syslog_tcp.LIMITS._replace(message_s=LONG_S)
    syslog_tcp.SyslogListener.__init__.__defaults__ = (endless,)
    syslog_tcp.CROWDED = 10


ALTERATIONS: dict[str, Callable[[], None]] = {
    "pipeline": _pipeline,
    "idle-connections": _idle,
    "scans": _scans,
    "look-backs": _look_backs,
    "filter-cost": _filter_cost,
    "filter-memory": _filter_memory,
    "frames": _frames,
    "accepting": _accepting,
    "handshakes": _handshakes,
    "heads": _heads,
    "answers": _answers,
    "half-syslog": _half_syslog,
}

if __name__ == "__main__":
    ALTERATIONS[os.environ["ALTERED"]]()
    main()
