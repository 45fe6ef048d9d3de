"""What is kept beside a stream about its consumer groups: filter, members, and groups that ended.

Keys, each beside the stream and in its slot:

- a hash for each group: its `filter`, how often that was changed (`generation`), and a field `@P`
  for each process P that has members of it, with the unix time in ms until which this holds;
- a sorted set of the groups that logpipe made, by the unix time in ms of their last member;
- a hash of the groups that have ended: where a member that returns goes on, and with which filter.
"""

from typing import NamedTuple

from logpipe.stream.connections import Connections
from logpipe.stream.scripts import Script, companion_key, companions

NO_GENERATION = "0"
"""The generation of a filter that was never set."""

MAX_ENDED = 1_000
"""Groups that have ended whose last id and filter are kept: 200 KB, and 4 MB with the longest
filters. Beyond it the one that ended first is forgotten."""

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

# KEYS: the group's record, the groups that logpipe made, those that have ended, the stream. ARGV:
# group, process, how long it counts as a holder of members (ms), take, set or replace, filter.
# `set` sets the filter of a group without members. A Redis without memory stores nothing; it still
# answers. The record of a group that was never made is kept as long as a process may be about to
# make it.
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
if mode == 'set' and members > 0 and wanted ~= chosen then return {0, chosen, generation, 1} end
local target = mode == 'take' and chosen or wanted
if target ~= (before or '') then
  local stored = redis.pcall('HSET', KEYS[1], 'filter', target)
  if type(stored) ~= 'number' then
    if target ~= chosen then return {0, chosen, generation, 1} end
  else
    generation = string.format('%.0f', redis.call('HINCRBY', KEYS[1], 'generation', 1))
  end
end
local made = #fields > 0 and redis.call('PTTL', KEYS[1]) == -1
local groups = made and {} or redis.pcall('XINFO', 'GROUPS', KEYS[4])
for _, group in ipairs(groups.err and {} or groups) do
  for i = 1, #group, 2 do
    if group[i] == 'name' and group[i + 1] == ARGV[1] then made = true end
  end
end
redis.pcall('HSET', KEYS[1], '@' .. ARGV[2], string.format('%.0f', now + ARGV[3]))
if not made then redis.pcall('PEXPIRE', KEYS[1], 2 * ARGV[3]) end
redis.pcall('ZADD', KEYS[2], 'XX', now, ARGV[1])
return {1, target, generation, made and 1 or 0}
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
# group, how many ended groups are kept. Ends a group unless it has members, and keeps where it was:
# the id before its oldest pending entry, or the last one that it had read, and how many entries it
# had read up to there, or `-`. 1 where it has ended.
END = Script.of(
    NOW
    + """
local function before(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  if seq ~= '0' then
    return ms .. '-' .. (#seq < 16 and string.format('%.0f', seq - 1) or '0')
  end
  return #ms < 16 and string.format('%.0f-18446744073709551615', math.max(ms - 1, 0)) or '0-0'
end
local now, chosen = now_ms(), ''
local fields = redis.call('HGETALL', KEYS[2])
for i = 1, #fields, 2 do
  if fields[i] == 'filter' then chosen = fields[i + 1]
  elseif fields[i] ~= 'generation' and tonumber(fields[i + 1]) > now then return 0 end
end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1])
if pending.err then return pending end
local after, read = '0-0', '-'
if pending[1] > 0 then after = before(pending[2])
else
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local about = {}
    for i = 1, #group, 2 do about[group[i]] = group[i + 1] end
    if about['name'] == ARGV[1] then
      after = about['last-delivered-id']
      read = about['entries-read'] and string.format('%.0f', about['entries-read']) or '-'
    end
  end
end
local kept = after .. ' ' .. read .. ' ' .. string.format('%.0f', now) .. ' ' .. chosen
local stored = redis.pcall('HSET', KEYS[4], ARGV[1], kept)
if type(stored) == 'table' and stored.err then return stored end
redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('HLEN', KEYS[4]) > tonumber(ARGV[2]) then
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
    made: bool
    """Whether the group was made before, as far as its record says."""


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
            admitted, found, generation, made = await ENTER.run(
                self._redis.writing,
                [self.key(group), self.made, self.ended, self._stream],
                *(group, process, lease_ms, mode, chosen or ""),
            )
        return Entered(bool(admitted), found.decode(), generation.decode(), bool(made))

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

    async def end(self, group: str, most: int = MAX_ENDED) -> bool:
        """Ends a group unless it has members; whether it has ended.

        Where it was is kept, of `most` groups that have ended: the id before its oldest pending
        entry, or the last one that it had read.
        """
        async with self._redis.translated():
            ended = await END.run(
                self._redis.writing,
                [self._stream, self.key(group), self.made, self.ended],
                *(group, most),
            )
        return bool(ended)

    async def forget(self, group: str) -> None:
        """Takes a group that is gone off those that logpipe made."""
        async with self._redis.translated():
            await self._redis.writing.zrem(self.made, group)
