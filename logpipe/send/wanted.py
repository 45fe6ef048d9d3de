"""What a send was asked for."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from logpipe.send.shape import Kind


class BadUseError(Exception):
    """What was asked for cannot be; the words name the remedy."""


class Wanted(msgspec.Struct, frozen=True):
    """What is to be sent where; no files: standard input."""

    url: str
    token: str = ""
    files: Sequence[str] = ()
    source: str = ""
    level: str = "INFO"
    kind: Kind = "auto"
    detect_level: bool = False
    follow: bool = False
    from_end: bool = False
    resume: Path | None = None
    spool: Path | None = None
    spool_bytes: int = 1 << 30
    patience_s: float = 60.0
