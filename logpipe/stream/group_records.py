"""What is kept beside a stream about its consumer groups: filter, members, and groups that ended.

Keys, each beside the stream and in its slot:

- a hash for each group: its `filter`, how often that was changed (`generation`), and a field `@P`
  for each process P that has members of it, with the unix time in ms until which this holds;
- a sorted set of the groups that logpipe made, by the unix time in ms of their last member;
- a hash of the groups that have ended: where a member that returns goes on, and with which filter.
"""

from typing import Any, NamedTuple

from logpipe.ids import START, StreamId, from_wire
from logpipe.stream.connections import Connections
from logpipe.stream.scripts import Script, companion_key, companions

NO_GENERATION = "0"
"""The generation of a filter that was never set."""

MAX_ENDED = 10_000
"""Groups that have ended whose last id is kept: about 2 MB. Beyond it the ones that ended first are
forgotten."""

UNUSED_MS = 86_400_000
"""How long the record is kept of a group that was asked for and never made."""

NOW = """
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# Fails where the filter of a group is no longer the one by which the caller judges its entries.
CURRENT = """
local function is_current(record, generation)
  return (redis.call('HGET', record, 'generation') or '0') == generation
end
"""
FILTER_CHANGED = "FILTERCHANGED"
"""How the error of a script begins that has found another filter."""

# KEYS: the group's record, the groups that logpipe made, those that have ended. ARGV: group,
# process, how long it counts as a holder of members (ms), take, set or replace, filter. `set` sets
# the filter of a group without members. A Redis without memory stores nothing; it still answers.
ENTER = Script.of(
    NOW
    + """
local now, mode, wanted = now_ms(), ARGV[4], ARGV[5]
local chosen, generation, members = false, '0', 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == 'filter' then chosen = value
  elseif name == 'generation' then generation = value
  elseif tonumber(value) > now then members = members + 1
  else redis.pcall('HDEL', KEYS[1], name) end
end
local before = chosen
if not chosen then
  local kept = redis.call('HGET', KEYS[3], ARGV[1])
  chosen = kept and string.match(kept, '^%S+ %S+ %S+ (.*)$') or ''
end
if mode == 'set' and members > 0 and wanted ~= chosen then return {0, chosen, generation} end
if mode ~= 'take' then chosen = wanted end
if chosen ~= (before or '') then
  redis.pcall('HSET', KEYS[1], 'filter', chosen)
  local counted = redis.pcall('HINCRBY', KEYS[1], 'generation', 1)
  if type(counted) == 'number' then generation = string.format('%.0f', counted) end
end
redis.pcall('HSET', KEYS[1], '@' .. ARGV[2], string.format('%.0f', now + ARGV[3]))
if #fields == 0 then redis.pcall('PEXPIRE', KEYS[1], 86400000) end
redis.pcall('ZADD', KEYS[2], 'XX', now, ARGV[1])
return {1, chosen, generation}
"""
)

# KEYS: the group's record, the groups that logpipe made. ARGV: group, process. The process has no
# members of the group any more.
EXIT = Script.of(
    NOW
    + """
redis.call('HDEL', KEYS[1], '@' .. ARGV[2])
redis.pcall('ZADD', KEYS[2], 'XX', now_ms(), ARGV[1])
return 1
"""
)

# KEYS: the groups that logpipe made. ARGV: milliseconds, how many groups there may be. The groups
# whose last member left so long ago; where there are too many, also those that had none longest.
DUE = Script.of(
    NOW
    + """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms() - ARGV[1])
local over = redis.call('ZCARD', KEYS[1]) - ARGV[2]
if over > #due then due = redis.call('ZRANGE', KEYS[1], 0, over - 1) end
return due
"""
)

# KEYS: the stream, the group's record, the groups that logpipe made, those that have ended. ARGV:
# group, the id after which a member that returns goes on, the number of entries up to there or `-`,
# how many ended groups are kept. 1 unless the group has members.
END = Script.of(
    NOW
    + """
local now, chosen = now_ms(), ''
local fields = redis.call('HGETALL', KEYS[2])
for i = 1, #fields, 2 do
  if fields[i] == 'filter' then chosen = fields[i + 1]
  elseif fields[i] ~= 'generation' and tonumber(fields[i + 1]) > now then return 0 end
end
local kept = ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. string.format('%.0f', now) .. ' ' .. chosen
local stored = redis.pcall('HSET', KEYS[4], ARGV[1], kept)
if type(stored) == 'table' and stored.err then return stored end
redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('HLEN', KEYS[4]) > tonumber(ARGV[4]) then
  local oldest, name = false, false
  local ended = redis.call('HGETALL', KEYS[4])
  for i = 1, #ended, 2 do
    local at = tonumber(string.match(ended[i + 1], '^%S+ %S+ (%S+)'))
    if not oldest or at < oldest then oldest, name = at, ended[i] end
  end
  redis.call('HDEL', KEYS[4], name)
end
return 1
"""
)


class Entered(NamedTuple):
    """An answer of `GroupRecords.enter`: whether the process now counts as a holder of members, and
    the group's filter, which may differ from the one that was given."""

    admitted: bool
    filter: str
    generation: str


class GroupRecords:
    """The verbs of these records. They raise `Unavailable`."""

    def __init__(self, redis: Connections, stream: str) -> None:
        self._redis = redis
        self._stream = stream

    def key(self, group: str) -> str:
        """The key of a group's record."""
        return companion_key(self._stream, "group", group)

    @property
    def made(self) -> str:
        """The key of the groups that logpipe made."""
        return companions(self._stream, "groups")

    @property
    def ended(self) -> str:
        """The key of the groups that have ended."""
        return companions(self._stream, "ended")

    async def enter(
        self, group: str, process: str, lease_ms: int, chosen: str | None, *, replace: bool = False
    ) -> Entered:
        """Notes that a process has members of a group, for `lease_ms`, and agrees on the filter.

        A filter is set where the group has no members, or with `replace`; a member without one
        (None) takes the group's. A process whose filter differs from the group's is not admitted.
        """
        mode = "replace" if replace else "take" if chosen is None else "set"
        async with self._redis.translated():
            admitted, found, generation = await ENTER.run(
                self._redis.writing,
                [self.key(group), self.made, self.ended],
                *(group, process, lease_ms, mode, chosen or ""),
            )
        return Entered(bool(admitted), found.decode(), generation.decode())

    async def exit(self, group: str, process: str) -> None:
        """Notes that a process has no members of a group any more."""
        async with self._redis.translated():
            await EXIT.run(self._redis.writing, [self.key(group), self.made], group, process)

    async def due(self, expiry_ms: int, most: int) -> list[str]:
        """The groups made by logpipe that are to end: those without a member for so long, and of
        more than `most` those that had none longest."""
        async with self._redis.translated():
            names = await DUE.run(self._redis.writing, [self.made], expiry_ms, most)
        return [name.decode() for name in names]

    async def end(self, group: str) -> bool:
        """Ends a group unless it has members; whether it has ended.

        Where it was is kept: the id before its oldest pending entry, or the last one that it had
        read.
        """
        async with self._redis.translated():
            pending = await self._redis.writing.xpending(self._stream, group)
            groups = await self._redis.writing.xinfo_groups(self._stream)
            found = next((one for one in groups if one["name"] == group.encode()), None)
            after, read = START, "-"
            if pending["pending"]:
                after = from_wire(pending["min"]).before()
            elif found is not None:
                after = from_wire(found["last-delivered-id"])
                read = _count(found.get("entries-read"))
            ended = await END.run(
                self._redis.writing,
                [self._stream, self.key(group), self.made, self.ended],
                *(group, str(after), read, MAX_ENDED),
            )
        return bool(ended)

    async def forget(self, group: str) -> None:
        """Takes a group that is gone off those that logpipe made."""
        async with self._redis.translated():
            await self._redis.writing.zrem(self.made, group)

    async def after(self, group: str) -> StreamId | None:
        """After which id a group goes on that has ended; None where that is not kept."""
        async with self._redis.translated():
            kept: Any = await self._redis.writing.hget(self.ended, group)
        return from_wire(kept.split()[0]) if kept else None


def _count(read: int | None) -> str:
    return "-" if read is None else str(read)
