"""How many files the process may have open: each connection is one."""

import contextlib
import logging
import sys

log = logging.getLogger("logpipe")

RESERVED = 1_000
"""Kept for what does not read the stream: senders, Redis, pages; at most a quarter of all."""


def room_for(subscribers: int) -> int:
    """How many of so many subscribers there is room for, so that senders always find some.

    Raises the process's own limit as far as that takes and the system allows.
    """
    if sys.platform == "win32":
        return subscribers
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = subscribers + RESERVED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # less than the system says, as on macOS
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return subscribers if soft == resource.RLIM_INFINITY else fitting(subscribers, soft)


def fitting(subscribers: int, files: int) -> int:
    """How many of the subscribers so many open files leave room for; says so where not all."""
    room = min(subscribers, files - min(RESERVED, files // 4))
    if room < subscribers:
        log.warning(
            "%d files may be open (ulimit -n): room for %d subscribers, not for MAX_SUBSCRIBERS=%d",
            files,
            room,
            subscribers,
        )
    return room
