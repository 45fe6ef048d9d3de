"""Versions of Redis and Valkey below which holes are known that a client, or a file, can use."""

from collections.abc import Mapping
from typing import Any

FLOORS: Mapping[str, Mapping[tuple[int, int], int]] = {
    "Redis": {(6, 2): 23, (7, 2): 15, (7, 4): 10, (8, 0): 6, (8, 2): 8, (8, 4): 5, (8, 6): 5,
              (8, 8): 1},
    "Valkey": {(7, 2): 13, (8, 0): 9, (9, 0): 5, (9, 1): 1},
}  # fmt: skip
"""By release line, its first version with the fixes of the vendors' security releases of May to
July 2026 (of Redis 8.0, February). A line that is not here is not judged: Debian, for one, mends
its 7.0 without another version."""


def hole_in(info: Mapping[str, Any]) -> str | None:
    """A sentence where the server that INFO describes is below its line's floor."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get(f"{name.lower()}_version", ""))
    major, minor, patch = (*version.split("."), "", "", "")[:3]
    if not (major.isdecimal() and minor.isdecimal() and patch.isdecimal()):
        return None
    floor = FLOORS[name].get((int(major), int(minor)))
    if floor is None or int(patch) >= floor:
        return None
    return (
        f"{name} {version} has known security holes, which {major}.{minor}.{floor} has not:"
        " renew it, unless who packages it has closed them there"
    )
