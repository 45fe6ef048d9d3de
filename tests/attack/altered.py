"""logpipe without one of its bounds, which ALTERED names: what an attack on it must notice."""

import os
from collections.abc import Callable

from logpipe.cli import main
from logpipe.fanout import history
from logpipe.filters import predicate


def _scans() -> None:
    """Searches of the history have as many seats as they want, and do not pause within a step."""
    history.ScanSeats.__init__.__defaults__ = (1_000, 1_000_000)  # type: ignore[misc]
    history.TURN_S = 60.0


def _filter_cost() -> None:
    """A filter may take as long as it likes for an event."""
    predicate.MAX_STEPS = 10**9


ALTERATIONS: dict[str, Callable[[], None]] = {
    "scans": _scans,
    "filter-cost": _filter_cost,
}

if __name__ == "__main__":
    ALTERATIONS[os.environ["ALTERED"]]()
    main()
