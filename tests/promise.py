"""What subscribers are promised, judged from outside: by what was acknowledged and what came."""

from collections.abc import Mapping
from typing import Any

from logpipe.ids import from_wire


def position(id_: str) -> tuple[int, int]:
    """An id as Redis orders them."""
    return from_wire(id_.encode())


def untold(acknowledged: Mapping[str, str], ids: list[str], gaps: list[dict[str, Any]]) -> set[str]:
    """The acknowledged ids that a subscriber neither received nor was told to be missing."""
    spans = [(position(gap["after"]), position(gap["before"])) for gap in gaps]
    return {
        id_
        for id_ in acknowledged.keys() - set(ids)
        if not any(after < position(id_) < before for after, before in spans)
    }
