"""Looking back: the last matching entries, with which a subscription with `tail` begins."""

import asyncio
from collections.abc import Sequence

from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry, weight_of
from logpipe.fanout.history import Budget, Scan
from logpipe.fanout.hub import Hub
from logpipe.fanout.window import BATCH_BYTES
from logpipe.filters import Filter
from logpipe.ids import START, StreamId
from logpipe.messages import Batch, Item, Progress

MAX_ENTRIES = 1_000_000
"""Entries that one search looks at: twenty times a page of the history, because a subscription has
no second page."""
MAX_READ_BYTES = 512 * 1024 * 1024
"""Bytes that one search looks at."""
MAX_S = 2.0
"""Seconds that one search spends on looking at entries, pauses not counted: about 500,000 common
events on one core."""

KEPT_BYTES = 16 * 1024 * 1024
"""What all searches of a process keep until their end, by `event.weight_of`; a search keeps
`BATCH_BYTES`. One that finds more keeps none: its subscription reads the events again from where
the search ended. So does one that comes past the place of a failover: read again, it has a gap
there."""


class LookBack:
    """The search for the last `wanted` matching entries up to `end`, newest first.

    It runs in a task of its own, so that its subscription can go on with heartbeats meanwhile.
    """

    def __init__(
        self, hub: Hub, chosen: Filter, wanted: int, since: Cursor | None, end: Cursor
    ) -> None:
        self._hub = hub
        self._chosen = chosen
        self._wanted = wanted
        self._since = since
        self._end = end
        self._found: list[Entry] | None = []
        """What was found, the newest first; None where it is too much to keep."""
        self._kept_bytes = 0
        self._task: asyncio.Task[Sequence[Item]] | None = None
        self.begin = end
        """The cursor after which the subscription begins, when the search is over."""
        self.cursor = end
        """The cursor at which the subscription reads on, when the search is over."""

    async def items(self, timeout_s: float, gap: Gap | None) -> Sequence[Item] | None:
        """What the subscription begins with, never nothing; None where that takes longer.

        `gap` is what is missing where the subscription begins at `since`. Raises `Unavailable`;
        the next call then begins anew. A closing hub ends the search without items.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._search(gap), name="look-back")
            self._hub.searches.add(self._task)
            self._task.add_done_callback(self._hub.searches.discard)
        await asyncio.wait({self._task}, timeout=timeout_s)
        if not self._task.done():
            return None
        task, self._task = self._task, None
        return () if task.cancelled() else task.result()

    def cancel(self) -> None:
        """Ends the search within its step."""
        # The exception of a cancelled task refers to its frames, and so to this.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            task.add_done_callback(_forget)

    async def _search(self, gap: Gap | None) -> Sequence[Item]:
        self._found = []
        low = self._since.id.after() if self._since is not None else START
        budget = Budget(MAX_ENTRIES, MAX_READ_BYTES, MAX_S)
        hub = self._hub
        scan = hub.scan(self._chosen, low, self._end.id, newest_first=True, budget=budget)
        missing = self._wanted
        try:
            while missing > 0 and not scan.over:
                async with hub.looking_back:
                    found = await scan.step(missing, BATCH_BYTES)
                missing -= len(found)
                self._keep(found)
        except asyncio.CancelledError as error:
            # The task keeps it, and frames that it refers to refer to the task.
            error.__traceback__ = error.__context__ = None
            raise
        finally:
            self._let_go()
        self.begin = self._begin_of(scan)
        if self._found and await hub.stream.lost_between(self.begin.id, self._end.id):
            self._found = None
        if missing > 0 and scan.next is not None:
            hub.metrics.count_limited({"look_back": 1})
            return self._first_items(None, self.begin.id)
        return self._first_items(gap if missing > 0 else None, None)

    def _keep(self, found: list[Entry]) -> None:
        if self._found is None:
            return
        self._found += found
        weight = weight_of(found)
        size = sum(len(entry.json) for entry in self._found)
        if size > BATCH_BYTES or self._hub.kept_bytes + weight > KEPT_BYTES:
            self._found = None
            self._let_go()
            return
        self._kept_bytes += weight
        self._hub.kept_bytes += weight

    def _let_go(self) -> None:
        self._hub.kept_bytes -= self._kept_bytes
        self._kept_bytes = 0

    def _begin_of(self, scan: Scan) -> Cursor:
        if scan.next is not None:
            return Cursor(scan.next) if scan.searched_to is not None else self._end
        if self._since is not None:
            return self._since
        return Cursor(scan.searched_to.before()) if scan.searched_to is not None else self._end

    def _first_items(self, gap: Gap | None, looked_back_to: StreamId | None) -> Sequence[Item]:
        """A gap or the id where the subscription begins, then what was found. The id is left out
        where an entry follows, because the entry has one."""
        kept = self._found is not None and self.begin.id <= self._end.id
        self.cursor = self._end if kept else self.begin
        found = list(reversed(self._found or ()))
        items: list[Item] = []
        if gap is not None:
            items.append(gap)
        elif looked_back_to is not None or not found:
            begin = self.begin if found else self.cursor
            items.append(Progress(begin.id, looked_back_to))
        if found or (gap is not None and kept):
            items.append(Batch(self.begin, self._end, found))
        return items


def _forget(task: "asyncio.Task[Sequence[Item]]") -> None:
    """Retrieves the exception of a cancelled task, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
