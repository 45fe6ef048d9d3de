"""logpipe without one of its bounds, which ALTERED names: what an attack on it must notice."""

import os
from collections.abc import Callable

from logpipe.cli import main
from logpipe.fanout import history


def _scans() -> None:
    """Any number of scans at a time, in steps without a pause."""
    history.SCAN_SEATS = 1_000
    history.SCAN_QUEUE = 1_000_000
    history.TURN_S = 60.0


ALTERATIONS: dict[str, Callable[[], None]] = {
    "scans": _scans,
}

if __name__ == "__main__":
    ALTERATIONS[os.environ["ALTERED"]]()
    main()
