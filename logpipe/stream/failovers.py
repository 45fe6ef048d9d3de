"""Where the stream has lost its newest entries, so that readers get a gap there.

A replica that takes over lacks what its primary had not sent it yet, and a Redis that comes back
may lack the last second of its append-only file; acknowledged or not, nothing in the stream shows
it. So every connection that is about to append, and every process before it reads on, compares what
it knows of the stream with what Redis has, and records the last entry before a loss.
"""

import re
from typing import Any, Literal

from redis.exceptions import NoPermissionError, ResponseError

from logpipe.continuity import Gap
from logpipe.ids import END, START, StreamId, from_wire
from logpipe.stream.scripts import LESS, Script, companion_key

Topology = Literal["one", "sentinel", "cluster"]

KEPT = 100
"""Ends that are remembered."""

# KEYS: the stream, the replication id of the last primary, the recorded ends in order. ARGV: how
# many ends are kept, whether to fail where one cannot be recorded, the witness (the newest entry
# that the process has seen or had confirmed), the replication ids of two primaries of which the
# second is known to have all that the first had, what the address names (`Topology`), and the ends
# that the process knew then.
# Returned: whether that is done, the replication id, and the ends. An end is recorded as the id of
# the entry and the time, in microseconds by the clock of Redis, at which the loss of what followed
# was noticed: a server that is restored twice to the same state ends twice at the same entry.
#
# Another replication id is that of a restarted or of another primary. A promoted replica also has
# the id of the primary that it followed. Where that is the last primary's, entries may be lost;
# with Sentinels also where it is one that no process has met, while in a Cluster the slot may have
# moved. One server has that id after a restart, too, which lost nothing if its file is whole.
#
# Whatever the ids are: a witness that the stream does not have is lost, unless an end that the
# process did not know yet explains it. Where entries followed before that was noticed, the end is
# taken to be what precedes the witness.
#
# A server that is restored to the same state again has lost the record of that end as well: an end
# that the process knew is recorded again where the stream ends there.
#
# Nothing is recorded where the user may not, or may not ask INFO. A primary that takes nothing as
# long as it has too few replicas is asked again, before anything is appended.
NOTE = Script.of(
    LESS
    + """
local kept, fail, witness, spared, topology = unpack(ARGV, 1, 5)
local info = redis.pcall('INFO', 'replication')
local ends = redis.call('LRANGE', KEYS[3], 0, -1)
local id = type(info) == 'string' and string.match(info, 'master_replid:(%x+)')
if not id or not string.find(info, 'role:master') then return {1, id or '', ends} end
local before = string.match(info, 'master_replid2:(%x+)')
local known = redis.call('GET', KEYS[2])
local stream, state = redis.pcall('XINFO', 'STREAM', KEYS[1]), {}
if not stream.err then for i = 1, #stream, 2 do state[stream[i]] = stream[i + 1] end end
local first = state['first-entry'] and state['first-entry'][1]
local last = state['last-generated-id']

local function entry_before_lost_witness()
  if not last or witness == '0-0' then return false end
  local was_known = {}
  for at = 6, #ARGV do was_known[ARGV[at]] = true end
  for _, each in ipairs(ends) do
    if not was_known[each] and less(each, witness) then return false end
  end
  if less(last, witness) then return last end
  local deleted = state['max-deleted-entry-id'] or '0-0'
  if not first or not less(first, witness) or not less(deleted, witness) then return false end
  local rows = redis.pcall('XREVRANGE', KEYS[1], witness, '-', 'COUNT', 1)
  return rows[1] and rows[1][1] ~= witness and rows[1][1]
end

local function known_end_without_record()
  for _, each in ipairs(ends) do
    if string.match(each, '%S+') == last then return false end
  end
  for at = 6, #ARGV do
    if string.match(ARGV[at], '%S+') == last then return last end
  end
  return false
end

local parted = false
if topology ~= 'one' and known and id ~= known and known .. ' ' .. id ~= spared then
  local unmet = topology == 'sentinel' and string.find(before, '[^0]')
  parted = (known == before or unmet) and last
end
parted = parted or entry_before_lost_witness() or known_end_without_record()
if id == known and not parted then return {1, id, ends} end
local time = parted and redis.pcall('TIME') or {}
local noted = time.err and time or redis.pcall('SET', KEYS[2], id)
if noted.err then
  local denied = string.find(noted.err, 'NOPERM') or string.find(noted.err, 'ACL failure')
    or string.find(noted.err, "can't run this command")
  if not denied and fail == '1' then return noted end
  return {denied and 1 or 0, id, ends}
end
if parted then
  local at = #ends
  while at > 0 and less(parted, ends[at]) do at = at - 1 end
  table.insert(ends, at + 1, parted .. ' ' .. time[1] .. string.format('%06d', time[2]))
  local from, to = 0, at - 1
  if at == 0 then from, to = 1, 0 end
  redis.call('LTRIM', KEYS[3], from, to)
  redis.call('RPUSH', KEYS[3], unpack(ends, at + 1))
  redis.call('LTRIM', KEYS[3], -kept, -1)
end
return {1, id, ends}
"""
)


def failovers_key(stream: str) -> str:
    """Where the ends are recorded."""
    return companion_key(stream, "failovers", "")


class Failovers:
    """The ends that this process knows, in order; and its witness, by which it finds others."""

    def __init__(self, stream: str, topology: Topology) -> None:
        self.keys = [stream, companion_key(stream, "primary", ""), failovers_key(stream)]
        """The KEYS of `NOTE`."""
        self.generation = 0
        """Grows when a connection meets another replication id than the one before, and when
        another process has changed the ends."""
        self.spared = ""
        """As `Primary.spared`."""
        self.topology = topology
        self._recorded: tuple[bytes, ...] = ()
        self._ends: list[StreamId] = []
        self._replication_id = b""
        self._asked = False
        self._witness = START
        self._lows: list[StreamId] = []
        """Up to where the stream of each era is that of the next one."""

    @property
    def command(self) -> tuple[Any, ...]:
        """`NOTE` for a connection that is about to append."""
        return ("EVAL", NOTE.text, len(self.keys), *self.keys, *self.arguments(fail=True))

    def arguments(self, *, fail: bool) -> tuple[Any, ...]:
        """The ARGV of `NOTE`. `fail`: it fails where an end cannot be recorded yet."""
        known = (KEPT, int(fail), str(self._witness), self.spared, self.topology)
        return (*known, *self._recorded)

    def noted(self, answer: Any) -> bool:
        """Takes what `NOTE` returned; whether nothing is left to be recorded. Raises an error of
        Redis, except that of a user who may not use the keys, where only one server is named."""
        if isinstance(answer, ResponseError):
            if self.topology == "one" and _is_denied(answer):
                return True
            raise answer
        done, replication_id, raw = answer
        self.met(replication_id)
        recorded = tuple(raw)
        if self._asked and recorded != self._recorded:
            # One that is missing parts nothing: after a flush readers may have gone on before.
            new = [_id(each) for each in recorded if each not in self._recorded]
            self._lows.append(min(new, default=END))
            self._witness = min([self._witness, *new])
        self._asked = True  # nothing was read before the first answer
        self._recorded = recorded
        self._ends = [_id(each) for each in recorded]
        return bool(done)

    @property
    def era(self) -> int:
        """Grows with every change of the ends."""
        return len(self._lows)

    def parted_since(self, era: int) -> StreamId | None:
        """Up to where the stream is still the one of an era; None where it is so to its end."""
        low = min(self._lows[era:], default=END)
        return None if low == END else low

    def met(self, replication_id: bytes) -> None:
        """Takes the replication id that a connection was greeted with."""
        if replication_id and replication_id != self._replication_id:
            self._replication_id = replication_id
            self.generation += 1

    def heard(self, recorded: list[bytes]) -> None:
        """Takes the ends as Redis has them now: those that others have recorded are to be noted."""
        if self._asked and tuple(recorded) != self._recorded:
            self.generation += 1

    def saw(self, id_: StreamId, era: int) -> None:
        """Takes an entry that the stream had when the ends of an era were known."""
        if era == self.era:
            self._witness = max(self._witness, id_)

    def ends_before(self, id_: StreamId) -> list[StreamId]:
        """Where a stream that held an entry which is gone may have parted from the one of now."""
        return [end for end in dict.fromkeys(self._ends) if end < id_]

    def end_between(self, after: StreamId, until: StreamId) -> StreamId | None:
        """The first end that is passed on the way from one entry to another."""
        return next((end for end in self._ends if after <= end < until), None)


def _is_denied(error: ResponseError) -> bool:
    """Whether the user may not use a key or a command of `NOTE`."""
    # Of a script, and of a command within it: of Valkey, and of Redis 7.0.
    words = ("NOPERM", "ACL failure", "can't run this command")
    return isinstance(error, NoPermissionError) or any(word in str(error) for word in words)


def _id(recorded: bytes) -> StreamId:
    """The id of the entry of a recorded end."""
    return from_wire(recorded.partition(b" ")[0])


def replication_id(info: bytes) -> bytes:
    """The replication id in the answer to INFO; empty where it is missing."""
    found = re.search(rb"^master_replid:(\w+)", info, re.MULTILINE)
    return found[1] if found else b""


def gap_before(first: StreamId, after: StreamId) -> Gap:
    """What a failover may have cost one who has had all up to `after`, and goes on with `first`."""
    return Gap("reset", after, first, None, first.before())
