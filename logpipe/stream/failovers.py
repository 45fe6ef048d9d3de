"""Where a failover may have cost entries, so that those who read past it are told.

A replica that takes over lacks what its primary had not sent it yet, acknowledged or not; nothing
in the stream shows it. So whoever first connects to the new primary, before anything is appended
there, records the last entry that it has: what was lost came right behind it.
"""

from collections.abc import Sequence
from typing import Any

from logpipe.continuity import Gap
from logpipe.ids import StreamId, from_wire
from logpipe.stream.scripts import Script, companion_key

KEPT = 100
"""Failovers that are remembered."""

# KEYS: the stream, the last primary, the last entries before failovers. ARGV: how many are kept,
# whether to fail where it cannot be noted. Whether that is done, and what is known.
# A promoted replica knows by which name it followed its primary; a primary that was only restarted,
# or to which a Cluster has moved the slot, knows no such name. Nothing is noted where the user may
# not, or not ask INFO. A primary that takes nothing as long as it has too few replicas is asked
# again, before anything is appended.
NOTE = Script.of("""
local done = 1
local info = redis.pcall('INFO', 'replication')
if type(info) == 'string' then
  local id = string.match(info, 'master_replid:(%x+)')
  local before = string.match(info, 'master_replid2:(%x+)')
  local known = redis.call('GET', KEYS[2])
  if id and id ~= known and string.find(info, 'role:master') then
    local noted = redis.pcall('SET', KEYS[2], id)
    local stream = redis.pcall('XINFO', 'STREAM', KEYS[1])
    if noted.err then
      local denied = string.find(noted.err, 'NOPERM') or string.find(noted.err, 'ACL failure')
      if not denied and ARGV[2] == '1' then return noted end
      if not denied then done = 0 end
    elseif not stream.err and known == before then
      for i = 1, #stream, 2 do
        if stream[i] == 'last-generated-id' then redis.call('RPUSH', KEYS[3], stream[i + 1]) end
      end
      redis.call('LTRIM', KEYS[3], -ARGV[1], -1)
    end
  end
end
return {done, redis.call('LRANGE', KEYS[3], 0, -1)}
""")


def note_keys(stream: str) -> list[str]:
    """The KEYS of `NOTE`."""
    return [stream, companion_key(stream, "primary", ""), failovers_key(stream)]


def failovers_key(stream: str) -> str:
    """Where the last entries before failovers are kept."""
    return companion_key(stream, "failovers", "")


def note_command(stream: str) -> tuple[Any, ...]:
    """`NOTE` as a command, for a connection that is about to append."""
    return ("EVAL", NOTE.text, 3, *note_keys(stream), KEPT, 1)


class Failovers:
    """The last entries before the failovers that are known, in order."""

    def __init__(self, told: Sequence[bytes] = ()) -> None:
        self._ends = [from_wire(each) for each in told]

    @property
    def newest(self) -> StreamId | None:
        """The last of them."""
        return self._ends[-1] if self._ends else None

    def end_before(self, id_: StreamId) -> StreamId | None:
        """Where the stream that held an entry which is gone parted from the one of now."""
        return next((end for end in reversed(self._ends) if end < id_), None)

    def end_between(self, after: StreamId, until: StreamId) -> StreamId | None:
        """The first end that is passed on the way from one entry to another."""
        return next((end for end in self._ends if after <= end < until), None)


def gap_before(first: StreamId, after: StreamId) -> Gap:
    """What a failover may have cost one who has had all up to `after`, and goes on with `first`."""
    return Gap("reset", after, first, None, first.before())
