"""How many replicas must have an append before it is acknowledged."""

from collections.abc import Mapping
from typing import Any

import hiredis

from logpipe.problems import Unavailable

WAIT_MS = 1_000
"""How long an append waits for replicas: well within a write's time limit."""
MAX_LAG_S = 3
"""A replica that has said nothing for longer is not counted on; they do once a second."""


class Replicas:
    """ACK_REPLICAS; `packed` is the command that waits for them, right after the append."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        command: tuple[Any, ...] = ("WAIT", wanted, WAIT_MS)
        self.packed = hiredis.pack_command(command)

    def check(self, answer: Any) -> None:
        """Raises `Unavailable` when too few have it, and the error of Redis."""
        if isinstance(answer, Exception):
            raise answer
        if answer < self.wanted:
            raise Unavailable(
                "replicas",
                f"{answer} of {self.wanted} replicas (ACK_REPLICAS) have confirmed in time. What"
                " was sent is stored and may yet be lost: send it again, with the Idempotency-Key"
                " that it had, lest it is there twice",
            )

    def missing(self, info: Mapping[str, Any]) -> str | None:
        """What INFO says of replicas that are not there, so that no append could reach them."""
        there = in_sync(info)
        if there >= self.wanted:
            return None
        return f"{there} of {self.wanted} replicas (ACK_REPLICAS) are in sync"


def in_sync(info: Mapping[str, Any]) -> int:
    """How many replicas have all that the primary has, or are a moment behind, as INFO says. One
    that is still given a copy of everything is none of them; one that has just connected is counted
    by INFO, and not listed."""
    names = (f"slave{number}" for number in range(info.get("connected_slaves", 0)))
    listed = [info[name] for name in names if name in info]
    return sum(each["state"] == "online" and each["lag"] <= MAX_LAG_S for each in listed)
