"""How many files the process may have open: each connection is one."""

import contextlib
import logging
import sys
from typing import NamedTuple

log = logging.getLogger("logpipe")

KEPT = 1_000
"""For what is no connection to the port: listening sockets, Redis, other roles, syslog. At most a
quarter of all. Without one left, a connection could not even be accepted to be closed."""

RESERVED = 2_000
"""Those, and as many connections of senders that no reader can take; half of all at the most."""


class Room(NamedTuple):
    """How many subscribers, and connections in all, there are files for."""

    subscribers: int
    connections: int


def room_for(subscribers: int) -> Room:
    """The room for so many subscribers and for senders.

    Raises the process's own limit as far as that takes and the system allows.
    """
    if sys.platform == "win32":
        return Room(subscribers, sys.maxsize)
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = subscribers + RESERVED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # less than the system says, as on macOS
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        Room(subscribers, sys.maxsize)
        if soft == resource.RLIM_INFINITY
        else fitting(subscribers, soft)
    )


def fitting(subscribers: int, files: int) -> Room:
    """The room that so many files make."""
    return Room(min(subscribers, files - min(RESERVED, files // 2)), files - min(KEPT, files // 4))


def warn_of_few(subscribers: int, room: Room) -> None:
    """Says so where not all of the subscribers have room."""
    if room.subscribers < subscribers:
        log.warning(
            "too few files may be open (ulimit -n): there is room for %d subscribers, not for"
            " MAX_SUBSCRIBERS=%d",
            room.subscribers,
            subscribers,
        )
