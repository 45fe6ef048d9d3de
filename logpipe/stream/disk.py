"""The disk that Redis writes to, where it is known: whether it has room for more events.

An append-only file grows with every command, also with those that trim, and is rewritten as a whole
from time to time; a Redis that finds the disk full ends. So appends are refused before that.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

MIB = 1 << 20

RESERVE_BYTES = 256 * MIB
"""Free bytes below which nothing is appended; of a Redis with little memory, twice that memory.
Enough for what is appended between two looks, and for minutes of trimming and acknowledging."""

AGAIN = 1.1
"""Factor on the bytes that have to be free, from which events are appended again."""

COMMAND_BYTES = 80
"""What a rewrite as commands takes for an entry beside its event (measured: 67, with a stream name
of four characters)."""

WORTH_BYTES = 16 * MIB
"""Bytes that a rewrite of the append-only file has to give back at the least, about."""


class Use(NamedTuple):
    """What Redis says of its memory and its append-only file; NaN where it does not say."""

    used: float = math.nan
    """Bytes of memory that it uses, which is more than a rewritten file has that is a snapshot."""
    limit: float = math.nan
    """Bytes of memory that it may use."""
    rewriting: bool = False
    """Whether it rewrites the file, and takes the room for it, now."""
    appended: float = math.nan
    """Bytes that were appended to the file since it was rewritten."""
    entries: int = 0
    """Of the stream, where the file is rewritten as commands; else 0."""

    @property
    def rewritten(self) -> float:
        """About the most bytes that a rewritten file has."""
        return self.used + COMMAND_BYTES * self.entries


class Room(NamedTuple):
    """What a look at the disk has found: why nothing may be appended, empty where it may; and
    whether rewriting the append-only file would give room back."""

    trouble: str = ""
    rewrite: bool = False


class Disk:
    """The disk of a folder; `free` returns its free bytes, `measured` is called with them and with
    how many have to be free. With `as_commands` Redis rewrites its append-only file as commands,
    which take more room than a snapshot."""

    def __init__(
        self,
        free: Callable[[], int],
        measured: Callable[[int, int], None] = lambda *_: None,
        *,
        as_commands: bool = False,
    ) -> None:
        self.as_commands = as_commands
        self._free = free
        self._measured = measured
        self._low = False

    def look(self, use: Use) -> Room:
        """Whether there is room now. Raises OSError where the folder cannot be asked for."""
        free, needed = self._free(), needed_bytes(use)
        self._measured(free, needed)
        again = int(needed * AGAIN)
        self._low = free < (again if self._low else needed)
        if not self._low:
            return Room()
        worth = not use.rewriting and use.appended >= WORTH_BYTES
        return Room(
            f"the disk of DATA_DIR has {free / MIB:,.0f} MiB free, and {again / MIB:,.0f} MiB are"
            " needed before events are accepted again: delete or move other files",
            rewrite=worth and use.rewritten < free,
        )


def needed_bytes(use: Use) -> int:
    """Bytes that have to be free: the reserve, and what a rewrite of the append-only file may take,
    unless it has begun."""
    reserve = min(RESERVE_BYTES, 2 * use.limit) if use.limit > 0 else RESERVE_BYTES
    rewrite = 0.0 if use.rewriting or math.isnan(use.used) else use.rewritten
    return int(reserve + rewrite)


def use_of(info: Mapping[str, Any]) -> Use:
    """The use in an answer to INFO."""
    current = info.get("aof_current_size", math.nan)
    return Use(
        info.get("used_memory", math.nan),
        info.get("maxmemory", math.nan),
        bool(info.get("aof_rewrite_in_progress") or info.get("aof_rewrite_scheduled")),
        current - info.get("aof_base_size", math.nan),
    )


def free_bytes(folder: Path) -> Callable[[], int]:
    """What returns the bytes of a folder's disk that this user may still write."""
    return lambda: shutil.disk_usage(folder).free
