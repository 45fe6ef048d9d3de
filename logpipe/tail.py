"""The live stream in a terminal: a subscription in, lines and words out.

Nothing here prints: `write` takes the output, `tell` a line for people beside it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import httpx
import msgspec

from logpipe.client.connection import MISDIRECTED, MISDIRECTED_REMEDY, http_client
from logpipe.client.distributor import UNREACHABLE, Refused, RemoteDistributor
from logpipe.continuity import Gap
from logpipe.event import Entry
from logpipe.handler.retry import Backoff
from logpipe.ids import StreamId
from logpipe.messages import Batch, Hello, Item, Notice, Progress, Start, Subscription, named
from logpipe.terminal import (
    Printer,
    caret_lines,
    counted,
    local_time_of,
    printable,
    printable_json,
    seconds,
)

DEFAULT_TAIL = 10
"""Events that come before the live ones where nothing else is asked for."""

REMEDY = ". `logpipe serve` starts a service here, --url names another"
"""For who was never connected."""


class Wanted(msgspec.Struct, frozen=True):
    """What is asked of which distributor; filter and time are judged there."""

    url: str
    tokens: Sequence[str] = ()
    query: str = ""
    since: str = ""
    tail: int | None = None
    heartbeat_s: float = 15.0
    group: str = ""
    ack: bool = False
    """Whether each event of the group is acknowledged once it was written."""

    @property
    def start(self) -> Start:
        """The last few events first, unless a time says where to begin, or a group does."""
        if self.group:
            return Start()
        if self.tail is None:
            return Start() if self.since else Start(tail=DEFAULT_TAIL)
        return Start(tail=self.tail) if self.tail or self.since else Start()

    @property
    def parameters(self) -> dict[str, str]:
        """The query of `/subscribe` besides the start."""
        given = {"q": self.query, "since": self.since, "group": self.group}
        given["delivery"] = "shared" if self.group else ""
        given["ack"] = "client" if self.ack else ""
        return {name: value for name, value in given.items() if value}


class Totals:
    def __init__(self) -> None:
        self.events = 0
        self.gaps = 0
        self.missing = 0
        self.exact = True
        self.reconnects = 0

    def add_gap(self, gap: Gap) -> None:
        self.gaps += 1
        self.missing += gap.count or 0
        self.exact &= gap.count is not None

    def __str__(self) -> str:
        gaps = counted(self.gaps, "gap")
        if self.missing:
            least = "" if self.exact else "at least "
            gaps += f" ({least}{counted(self.missing, 'event')} missing)"
        elif not self.exact:
            gaps += " (an unknown number of events missing)"
        return f"{counted(self.events, 'event')}, {gaps}, {counted(self.reconnects, 'reconnect')}"


class Format(Protocol):
    def entries(self, entries: Sequence[Entry]) -> bytes: ...
    def gap(self, gap: Gap) -> bytes: ...


class Pretty:
    """Lines for people; `columns` is the terminal's width now, or None where there is none."""

    def __init__(
        self, printer: Printer, columns: Callable[[], int | None], encoding: str = "utf-8"
    ) -> None:
        self._printer = printer
        self._columns = columns
        self._encoding = encoding

    def entries(self, entries: Sequence[Entry]) -> bytes:
        return self._encode(self._printer.entries(entries, self._columns()))

    def gap(self, gap: Gap) -> bytes:
        return self._encode(self._printer.gap(gap, self._columns()))

    def _encode(self, lines: str) -> bytes:
        return lines.encode(self._encoding, "backslashreplace")


class JsonLines:
    """The NDJSON of `/subscribe`: each event as the distributor sent it, or on a `terminal` the
    same value without a character that the terminal would obey."""

    def __init__(self, *, terminal: bool = False) -> None:
        self._terminal = terminal

    def entries(self, entries: Sequence[Entry]) -> bytes:
        return b"".join([self._line(entry.json) for entry in entries])

    def gap(self, gap: Gap) -> bytes:
        """An object with `event`, which no event of the stream has."""
        name, cursor, data = named(gap)
        return self._line(msgspec.json.encode({"event": name, "id": str(cursor), **data}))

    def _line(self, value: bytes) -> bytes:
        return (printable_json(value.decode()).encode() if self._terminal else value) + b"\n"


Acknowledge = Callable[[str, Sequence[StreamId]], Awaitable[None]]
"""Given the member that holds entries and their ids, after they were written."""


class Tail:
    """Shows what a subscription gives until it ends, and counts it."""

    def __init__(
        self,
        url: str,
        shown: Format,
        write: Callable[[bytes], None],
        tell: Callable[[str], None],
        totals: Totals,
        acknowledge: Acknowledge | None = None,
    ) -> None:
        self._acknowledge = acknowledge
        self._member = ""
        self._url = url
        self._format = shown
        self._write = write
        self._tell = tell
        self._totals = totals
        self._greeted = False
        self._trouble_since: float | None = None

    async def run(self, subscription: Subscription) -> None:
        """Writes all items that are there at once. Raises `Refused`, and what `write` raises."""
        while (items := await subscription.next()) is not None:
            output, written = b"", []
            for item in items:
                output += self._take(item)
                if isinstance(item, Batch):  # of the member that the last hello has named
                    written.append((self._member, [entry.id for entry in item.entries]))
            if output:
                self._write(output)
            if self._acknowledge is not None:
                for member, ids in written:
                    await self._acknowledge(member, ids)

    def _take(self, item: Item) -> bytes:
        if isinstance(item, Notice):
            self._on_trouble(item.reason)
            return b""
        self._on_word(again=self._greeted)
        match item:
            case Batch(entries=entries):
                self._totals.events += len(entries)
                return self._format.entries(entries)
            case Gap():
                self._totals.add_gap(item)
                return self._format.gap(item)
            case Hello(member=member):
                self._member = member or ""
                self._totals.reconnects += self._greeted
                self._greeted = True
            case Progress(looked_back_to=upto) if upto is not None:
                when = " ".join(local_time_of(upto.ms))
                self._tell(f"looked back as far as {when}; older matches are not shown")
        return b""

    def _on_trouble(self, reason: str) -> None:
        """Says why, once: what follows until it is back is part of the same trouble."""
        if self._trouble_since is None:
            self._trouble_since = time.monotonic()
            helps = not self._greeted and reason.startswith(UNREACHABLE)
            remedy = REMEDY if helps else ""
            self._tell(f"{self._url}: {printable(reason)}; trying again{remedy}")

    def _on_word(self, *, again: bool) -> None:
        if self._trouble_since is not None:
            passed = seconds(time.monotonic() - self._trouble_since)
            self._tell(f"{self._url}: connected{' again' if again else ''} after {passed}")
            self._trouble_since = None


async def follow(
    wanted: Wanted,
    shown: Format,
    write: Callable[[bytes], None],
    tell: Callable[[str], None],
    totals: Totals,
) -> None:
    """Shows the live stream until it is cancelled. Raises `Refused`, and what `write` raises."""
    async with http_client() as http:
        distributor = RemoteDistributor(
            wanted.url, http, tokens=wanted.tokens, heartbeat_s=wanted.heartbeat_s
        )
        acknowledge = Acknowledging(distributor, wanted, tell) if wanted.ack else None
        with distributor(wanted.start, wanted.parameters, insist=False) as subscription:
            await Tail(wanted.url, shown, write, tell, totals, acknowledge).run(subscription)


ACK_ATTEMPTS = 3
"""Requests by which an acknowledgement is tried; after that the events come again."""


class Acknowledging:
    """The acknowledgements of a tail with `--ack`."""

    def __init__(
        self,
        distributor: RemoteDistributor,
        wanted: Wanted,
        tell: Callable[[str], None],
        backoff: Backoff | None = None,
    ) -> None:
        self._distributor = distributor
        self._wanted = wanted
        self._tell = tell
        self._backoff = backoff or Backoff()

    async def __call__(self, member: str, ids: Sequence[StreamId]) -> None:
        """Acknowledges entries, and says so where that has come too late or has failed."""
        for attempt in range(1, ACK_ATTEMPTS + 1):
            try:
                late = await self._distributor.acknowledge(self._wanted.group, member, ids)
            except (httpx.HTTPError, Refused) as error:
                if attempt < ACK_ATTEMPTS:
                    await asyncio.sleep(self._backoff.pause_s())
                    continue
                events, what = counted(len(ids), "event"), printable(str(error))
                self._tell(f"{events} could not be acknowledged and will come again: {what}")
            else:
                self._backoff.reset()
                if late:
                    events = counted(late, "event")
                    self._tell(f"{events} acknowledged too late: given to another member as well")
            return


def refusal(refused: Refused, wanted: Wanted) -> tuple[int, list[str]]:
    """The exit status that a refusal deserves, and the lines that tell it."""
    detail = printable(str(refused.document.get("detail", "")))
    match refused.status:
        case 400 if detail:
            return 2, [detail, *_place(refused.document, wanted.query)]
        case 401:
            return 1, [f"{wanted.url} asks for a token: give one with --token or READ_TOKENS"]
        case 403:
            word = "does not allow this token" if wanted.tokens else f"answers 403: {detail}"
            return 1, [f"{wanted.url} {word}: give another with --token or READ_TOKENS"]
        case 409 if detail:
            return 1, [detail]
        case status if status == MISDIRECTED:
            return 1, [f"{wanted.url} answers {status}: {MISDIRECTED_REMEDY}"]
        case status:
            told = f"answers {status}" if status != 200 else "is no distributor"
            words = f"{wanted.url} {told}{f': {detail}' if detail else ''}"
            return 1, [words, "--url names a service that runs the distributor"]


def _place(document: Mapping[str, object], query: str) -> list[str]:
    """The query with a caret beneath the place that is wrong, and the hint, where they are told."""
    lines = []
    position, hint = document.get("position"), document.get("hint")
    if isinstance(position, int) and 0 <= position <= len(query):
        lines += [f"  {line}" for line in caret_lines(query, position)]
    if isinstance(hint, str) and hint:
        lines.append(f"hint: {printable(hint)}")
    return lines
