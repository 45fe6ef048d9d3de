"""What has left the stream leaves the disk, too: the engine's append-only file is rewritten.

The engine itself rewrites it only when it has doubled and has 64 MiB: on a quiet machine never. So
the engine is asked for it here. It has to be one that rewrites the file as commands (`Engine`): in
a snapshot of its memory, an entry that was trimmed stays in its node, marked as deleted, until the
whole node is trimmed.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from logpipe.engine.folder import ask
from logpipe.problems import Unavailable

log = logging.getLogger("logpipe.engine")

REWRITE_EVERY_S = 3600.0
"""The least time between two rewritings. So text that has left the stream stays on the disk for an
hour at the most, and for the time of one rewriting (docs/promises.md). To rewrite a gibibyte takes
seconds of a processor, which is a thousandth of the hour."""
LOOK_S = 10.0
"""Between two looks at whether a rewriting is due, or one is done."""
PATIENCE_S = 300.0
"""A rewriting that is not done after this long has failed, or takes long: it is asked for again,
which the engine refuses while one is under way. After each failure that follows, the time is twice
as long, up to `MAX_PATIENCE_S`: a rewriting that fails may fill the disk before it does."""
MAX_PATIENCE_S = 3600.0

REWRITE = b"BGREWRITEAOF"
SNAPSHOT = ".rdb"
"""How the name of a base file ends that is a snapshot, of an engine without TRIM_MAXAGE."""
_BASE = re.compile(r"^file (\S+) seq (\d+) type b$", re.MULTILINE)


class Rewriting:
    """Has the append-only file of the engine in a folder rewritten after entries have left the
    stream, as `left` counts them. Of those before the first rewriting here, which may have left
    while another process ran, it is taken for granted. `before` is called at each look, because the
    engine may rewrite the file by itself at any time; both may raise `Unavailable`. `no_room` says
    why the disk has no room for a rewriting; empty where it has.
    """

    def __init__(
        self,
        folder: Path,
        socket: Path,
        left: Callable[[], Awaitable[int]],
        before: Callable[[], Awaitable[object]],
        no_room: Callable[[], str],
        *,
        max_age_ms: int,
        every_s: float = REWRITE_EVERY_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder.expanduser().absolute()
        self._socket = socket
        self._left = left
        self._before = before
        self._no_room = no_room
        self._max_age_s = max_age_ms / 1000
        self._every_s = every_s
        self._now = now
        self._rewritten: int | None = None
        """How many entries had left the stream when the engine was last asked."""
        self._asked: tuple[int, float] | None = None
        """The number of the base file when the engine was last asked, and when that was; None when
        no rewriting is under way."""
        self._failures = 0
        """Rewritings that have failed since one was done."""
        self._put_off = False
        """Whether the last look found no room for a rewriting that was due."""

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)  # first: what is too old at the start is trimmed by then
            await self.look()

    async def look(self) -> None:
        """Asks for a rewriting where one is due, and takes note of one that is done."""
        self._remove_torn()
        with contextlib.suppress(Unavailable):  # until the next look
            await self._before()
            await self._look()

    async def _look(self) -> None:
        number, written_at = self._base()
        if self._asked is not None:
            asked_number, asked_at = self._asked
            if number == asked_number:
                if self._now() - asked_at < min(PATIENCE_S * 2**self._failures, MAX_PATIENCE_S):
                    return
                log.warning("the append-only file is not rewritten yet: the engine is asked again")
                self._rewritten = None
                self._failures += 1
            else:
                self._failures = 0
            self._asked = None
        # A time in the future is that of a clock that was set back.
        if not 0 <= self._now() - written_at < self._every_s:
            await self._ask(number)

    async def _ask(self, number: int) -> None:
        """Asks the engine, where entries have left the stream since it was asked last."""
        left = await self._left()  # now: what leaves from here on may be in the new file
        if left == self._rewritten:
            return
        if self._lacks_room():
            return
        if (await ask(self._socket, REWRITE)).startswith(b"+"):
            self._asked = (number, self._now())
            self._rewritten = left

    def _lacks_room(self) -> bool:
        why = self._no_room()
        if why and not self._put_off:
            log.warning("%s; text that has left the stream stays on the disk until then", why)
        self._put_off = bool(why)
        return self._put_off

    def _base(self) -> tuple[int, float]:
        """The number of the base file that is in use and when it was written; the time is 0 where
        it is a snapshot, and both are where there is none."""
        folder = self._folder / "appendonlydir"
        try:
            manifest = (folder / "appendonly.aof.manifest").read_text(encoding="utf-8")
            found = _BASE.search(manifest)
            if found is None:
                return 0, 0.0
            written_at = (folder / found[1]).stat().st_mtime
            return int(found[2]), 0.0 if found[1].endswith(SNAPSHOT) else written_at
        except OSError:  # the engine is just replacing them
            return 0, self._now()

    def _remove_torn(self) -> None:
        """Removes the copy of a torn file once all in it is too old to be kept."""
        path = self._folder / "torn.aof"
        try:
            if self._now() - path.stat().st_mtime > self._max_age_s:
                path.unlink()
                log.info("%s is removed: all events in it are older than TRIM_MAXAGE", path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s is to be removed and cannot be: %s", path, error.strerror)
