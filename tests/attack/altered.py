"""logpipe without one of its bounds, which ALTERED names: what an attack on it must notice."""

import os
from collections.abc import Callable
from typing import Any

from logpipe import filters
from logpipe.cli import main
from logpipe.fanout import history
from logpipe.filters import predicate, reading
from logpipe.serving import connections, protocol

NO_BOUND = 10**12


def _pipeline() -> None:
    """All that a connection has received is parsed at once, however many requests it holds."""
    protocol.MAX_OPEN = protocol.MAX_QUEUED_BYTES = NO_BOUND
    protocol.BoundedProtocol._is_one_step = lambda self, data: True  # type: ignore[method-assign]


def _idle() -> None:
    """No idle connection is closed to make room for another."""
    connections.CROWDED_PERCENT = 1_000


def _scans() -> None:
    """Searches of the history have as many seats as they want, and do not pause within a step."""
    init = history.ScanSeats.__init__

    def without_bounds(self: history.ScanSeats, *_: Any, **given: Any) -> None:
        init(self, **{**given, "seats": 1_000, "queue": NO_BOUND})

    history.ScanSeats.__init__ = without_bounds  # type: ignore[method-assign]
    history.TURN_S = 60.0


def _filter_cost() -> None:
    """A filter may take as long as it likes for an event."""
    predicate.MAX_STEPS = NO_BOUND


def _filter_memory() -> None:
    """Compiled filters are kept, whoever used them, and as large as they like."""
    filters._PREDICATES._max_bytes = filters._PREDICATES._idle_bytes = NO_BOUND
    reading.REGEX_MEMORY = 1 << 20


ALTERATIONS: dict[str, Callable[[], None]] = {
    "pipeline": _pipeline,
    "idle-connections": _idle,
    "scans": _scans,
    "filter-cost": _filter_cost,
    "filter-memory": _filter_memory,
}

if __name__ == "__main__":
    ALTERATIONS[os.environ["ALTERED"]]()
    main()
