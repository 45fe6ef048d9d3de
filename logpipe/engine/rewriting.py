"""What has left the stream leaves the disk, too: the engine's append-only file is rewritten.

The engine itself rewrites it only when it has doubled and has 64 MiB: on a quiet machine never. And
what it writes then is a snapshot of its memory, where an entry that was trimmed stays in its node,
marked as deleted, until the whole node is trimmed. So the engine is asked here to rewrite the file,
as commands, which it makes of the entries that are left.
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
which the engine refuses while one is under way."""

AS_COMMANDS = b"CONFIG SET aof-use-rdb-preamble no"
REWRITE = b"BGREWRITEAOF"
_BASE = re.compile(r"^file (\S+) seq (\d+) type b$", re.MULTILINE)


class Rewriting:
    """Has the append-only file of the engine in a folder rewritten after entries have left the
    stream, as `left` counts them. Of those before the first rewriting here, which may have left
    while another process ran, it is taken for granted. `before` is called before the engine is
    asked; both may raise `Unavailable`.
    """

    def __init__(
        self,
        folder: Path,
        socket: Path,
        left: Callable[[], Awaitable[int]],
        before: Callable[[], Awaitable[object]],
        *,
        max_age_ms: int,
        every_s: float = REWRITE_EVERY_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder.expanduser().absolute()
        self._socket = socket
        self._left = left
        self._before = before
        self._max_age_s = max_age_ms / 1000
        self._every_s = every_s
        self._now = now
        self._rewritten: int | None = None
        """How many entries had left the stream when the engine was last asked."""
        self._asked: tuple[int, float] | None = None
        """The number of the base file when the engine was last asked, and when that was; None when
        no rewriting is under way."""

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(LOOK_S)  # first: what is too old at the start is trimmed by then
            await self.look()

    async def look(self) -> None:
        """Asks for a rewriting where one is due, and takes note of one that is done."""
        self._remove_torn()
        number, written_at = self._base()
        if self._asked is not None:
            asked_number, asked_at = self._asked
            if number == asked_number:
                if self._now() - asked_at < PATIENCE_S:
                    return
                log.warning("the append-only file is not rewritten yet: the engine is asked again")
                self._rewritten = None
            self._asked = None
        # A time in the future is that of a clock that was set back.
        if not 0 <= self._now() - written_at < self._every_s:
            with contextlib.suppress(Unavailable):  # until the next look
                await self._ask(number)

    async def _ask(self, number: int) -> None:
        """Asks the engine, where entries have left the stream since it was asked last."""
        if await self._left() == self._rewritten:
            return
        await self._before()
        left = await self._left()  # now: what leaves from here on may be in the new file
        if await self._accepts(AS_COMMANDS) and await self._accepts(REWRITE):
            self._asked = (number, self._now())
            self._rewritten = left

    async def _accepts(self, command: bytes) -> bool:
        return (await ask(self._socket, command)).startswith(b"+")

    def _base(self) -> tuple[int, float]:
        """The number of the base file that is in use and when it was written; zeros where there is
        none."""
        folder = self._folder / "appendonlydir"
        try:
            manifest = (folder / "appendonly.aof.manifest").read_text(encoding="utf-8")
            found = _BASE.search(manifest)
            if found is None:
                return 0, 0.0
            return int(found[2]), (folder / found[1]).stat().st_mtime
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
