"""A subscriber that acknowledges for itself (`ack=client`), and the entries that it holds."""

import math
import re
import secrets
import time
from collections.abc import Callable, Iterable

from logpipe.ids import StreamId

DEFAULT_IN_FLIGHT = 1_000
MAX_IN_FLIGHT = 10_000
"""Entries that one member may hold: 1.7 MB of ids."""

MIN_ACK_WAIT_MS = 100
MAX_ACK_WAIT_MS = 86_400_000

HEAD_START_S = 1.5
"""For how long other members come first, on all replicas, once a member has let an entry's time
pass: a round of claiming (`group.KEEPER_S`), and a half."""

MAX_HELD = 100_000
"""Entries that the members of a process hold together, 17 MB of ids. Beyond it each of them may
hold an even part of this number, at least one."""

_ID = re.compile(r"member-[0-9a-f]{16}")


def is_member_id(text: str) -> bool:
    """Whether a text can be the id of a member."""
    return _ID.fullmatch(text) is not None


class Member:
    """The entries that a subscriber was given and has not acknowledged, and when each one's time is
    over. In Redis they are pending for a consumer with the member's id."""

    def __init__(
        self,
        ack_wait_s: float,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = f"member-{secrets.token_hex(8)}"
        self.ack_wait_s = ack_wait_s
        self.max_in_flight = max_in_flight
        self.held: dict[StreamId, float] = {}
        """Until when each entry is this member's, by `now`; in the order in which they end."""
        self.kept_at = now()
        """When Redis was last asked to keep the entries for this member."""
        self.all: Members | None = None
        """The members of its process, once it is among them."""
        self._now = now
        self._late_until = 0.0

    @property
    def room(self) -> int:
        """How many entries more it may hold."""
        most = self.max_in_flight
        if self.all is not None and self.all.held >= self.all.most:
            most = min(most, max(1, self.all.most // len(self.all)))
        return max(0, most - len(self.held))

    @property
    def held_s(self) -> float:
        """For how many seconds it holds the entry that it has held longest; 0 where it holds none.
        An entry that is given to it again begins anew."""
        first = next(iter(self.held.values()), None)
        return 0.0 if first is None else self._now() - (first - self.ack_wait_s)

    @property
    def late(self) -> bool:
        """Whether others come first, because it has let an entry's time pass."""
        return self._now() < self._late_until

    def hold(self, ids: Iterable[StreamId]) -> None:
        """Begins the time of entries that it is given."""
        until = self._now() + self.ack_wait_s
        before = len(self.held)
        self.held.update(dict.fromkeys(ids, until))
        self._count(len(self.held) - before)

    def let_go(self, ids: Iterable[StreamId]) -> None:
        """Ends the holding of entries."""
        before = len(self.held)
        for id_ in ids:
            self.held.pop(id_, None)
        self._count(len(self.held) - before)

    def _count(self, more: int) -> None:
        if self.all is not None:
            self.all.held += more

    @property
    def next_end_s(self) -> float:
        """Seconds until the time of an entry is over; infinite where it holds none."""
        first = next(iter(self.held.values()), math.inf)
        return first - self._now()

    def overdue(self) -> list[StreamId]:
        """The entries whose time is over; from then on it is `late` for a while."""
        now = self._now()
        found: list[StreamId] = []
        for id_, until in self.held.items():
            if until > now:
                break
            found.append(id_)
        if found:
            self._late_until = now + HEAD_START_S
        return found


class Members:
    """The members of a process, of all groups, and how many entries they hold together."""

    def __init__(self, most: int = MAX_HELD) -> None:
        self.most = most
        self.held = 0
        self._by_id: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, member: Member) -> None:
        """Counts a member."""
        member.all = self
        self._by_id[member.id] = member

    def remove(self, member: Member) -> None:
        """Counts a member, and what it holds, no more."""
        del self._by_id[member.id]
        self.held -= len(member.held)
        member.all = None

    def get(self, id_: str) -> Member | None:
        """The member with an id, if it is one of this process."""
        return self._by_id.get(id_)
