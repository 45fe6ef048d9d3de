"""The scripts of consumer groups: what has to be one step on the server."""

from typing import Any, Literal, NamedTuple

from logpipe.continuity import Bounds, Cursor, Gap
from logpipe.ids import StreamId, from_wire
from logpipe.stream.entries import RawEntry
from logpipe.stream.group_records import CURRENT, NOW
from logpipe.stream.scripts import LESS, Script

_FIELD = """
local function field(list, name)
  for i = 1, #list, 2 do if list[i] == name then return list[i + 1] end end
  return false
end
"""

# A loss that is found is recorded beside the stream until it was sent to a subscriber: the field
# names it, the value is the unix time in ms at which a process was last given it to send. A Redis
# without memory takes no record; it still hands out what it has.
_RECORD = (
    NOW
    + """
local function record(key, name)
  redis.pcall('HSET', key, name, string.format('%.0f', now_ms()))
  redis.pcall('EXPIRE', key, 604800)
end
"""
)

# KEYS: the stream, the group's losses, its record, the groups that logpipe made, those that have
# ended. ARGV: group, where it begins ($ or an id), whether all that the stream ever had is the
# group's, whether the group may end, whether a group that is there already goes back to where it
# was to begin. The group gets the number of entries before it, so that those
# that are trimmed before it has read them can be counted. One that has ended goes on where it was;
# in a stream that was flushed since then, with its first entry.
CREATE = Script.of(
    _FIELD
    + LESS
    + _RECORD
    + """
local command = {'XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM'}
local read, lost = false, false
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
local kept = redis.call('HGET', KEYS[5], ARGV[1])
if kept then
  local after, known = string.match(kept, '^(%S+) (%S+)')
  if not info.err and not less(field(info, 'last-generated-id'), after) then
    command[5], read = after, tonumber(known) or false
  else
    command[5] = '0-0'
    local first = not info.err and field(info, 'first-entry')
    if first then lost = after .. ' ' .. first[1] .. ' unknown reset' end
  end
elseif info.err then read = 0
else
  local added, first = field(info, 'entries-added'), field(info, 'first-entry')
  if not added then read = false
  elseif ARGV[3] == '1' then read = 0
  elseif ARGV[2] == '$' then read = added
  elseif field(info, 'max-deleted-entry-id') ~= '0-0' then read = false
  elseif not first or less(ARGV[2], first[1]) then read = added - field(info, 'length')
  else read = false end
end
if read then command[7], command[8] = 'ENTRIESREAD', read end
local made = redis.pcall(unpack(command))
if made.err and not string.find(made.err, '^BUSYGROUP') then return made end
if not made.err then
  if lost then record(KEYS[2], lost) end
  if ARGV[4] == '1' then redis.pcall('ZADD', KEYS[4], now_ms(), ARGV[1]) end
  redis.call('HDEL', KEYS[5], ARGV[1])
end
if made.err and ARGV[5] == '1' then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local there = field(group, 'name') == ARGV[1]
    if there and less(ARGV[2], field(group, 'last-delivered-id')) then
      redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[2])
    end
  end
end
if ARGV[4] == '0' then redis.call('ZREM', KEYS[4], ARGV[1]) end
redis.call('PERSIST', KEYS[3])
return not made.err and lost and {lost} or {}
"""
)

# KEYS: the stream, the group's losses, the last entries before failovers, the group's record. ARGV:
# group, consumer, count, whether a failover may cost what was acknowledged, after how many bytes
# reading ends, how many entries are read at a time, the generation of the group's filter (0 is
# returned where it is another). New entries, and what the bounds and the group were just before.
# Redis' own count of what a group has read forgets what was trimmed unread, and a promoted replica
# of Redis 7.0 does not have it: it is put right, the latter once the group has read everything.
READ = Script.of(
    _FIELD
    + LESS
    + _RECORD
    + CURRENT
    + """
local before = false
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, group in ipairs(groups) do
  if field(group, 'name') == ARGV[1] then before = group end
end
if before and not is_current(KEYS[4], ARGV[7]) then return 0 end
local entries, size, left = {}, 0, tonumber(ARGV[3])
while left > 0 and size < tonumber(ARGV[5]) do
  local count = math.min(left, tonumber(ARGV[6]))
  local answer = redis.pcall(
    'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', count, 'STREAMS', KEYS[1], '>')
  if answer and answer.err then return answer end
  local some = answer and answer[1][2] or {}
  for _, entry in ipairs(some) do
    entries[#entries + 1] = entry
    for _, text in ipairs(entry[2]) do size = size + #text end
  end
  left = #some == count and left - count or 0
end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local first, added = field(info, 'first-entry'), field(info, 'entries-added')
local length, deleted = field(info, 'length'), field(info, 'max-deleted-entry-id')
local last, read = field(before, 'last-delivered-id'), field(before, 'entries-read')
local missed = {}
if #entries > 0 and first and less(last, first[1]) and (not added or added > length) then
  local known = added and deleted == '0-0'
  local count = known and read and added - length - read
  if not count or count > 0 then
    missed[1] = last .. ' ' .. first[1] .. ' ' .. (count or 'unknown')
  end
  if known then
    redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], entries[#entries][1],
      'ENTRIESREAD', added - length + #entries)
  end
end
local newest = field(info, 'last-generated-id')
local reached = #entries > 0 and entries[#entries][1] or last
if added and reached == newest and (read or -1) + #entries ~= added then
  redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], reached, 'ENTRIESREAD', added)
  read = added - #entries
end
if #entries > 0 and ARGV[4] == '1' then
  local noted = ''
  for _, each in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
    local parted, at = string.match(each, '%S+'), 1
    while at <= #entries and not less(parted, entries[at][1]) do at = at + 1 end
    if parted ~= noted and not less(parted, last) and at <= #entries then
      missed[#missed + 1] = parted .. ' ' .. entries[at][1] .. ' unknown reset'
      noted = parted
    end
  end
end
for _, loss in ipairs(missed) do record(KEYS[2], loss) end
return {entries, last, read, first and first[1], newest, added, length, deleted, missed}
"""
)

# ARGV: group, consumer, since when the entries count as idle (unix ms; empty: now), ids.
# Plain XCLAIM takes trimmed entries off the pending list without a word; these stay, for the claim
# that names and counts them. What a member that acknowledges for itself holds is left alone: it was
# moved there just now.
OWN = Script.of("""
local kept = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}
for i = 4, #ARGV do
  local id = ARGV[i]
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
  local held = pending and #pending[2] == 23 and string.find(pending[2], '^member%-%x+$')
  if not held and #redis.call('XRANGE', KEYS[1], id, id) > 0 then kept[#kept + 1] = id end
end
if #kept == 5 then return 0 end
if ARGV[3] ~= '' then
  kept[#kept + 1] = 'TIME'
  kept[#kept + 1] = ARGV[3]
end
kept[#kept + 1] = 'JUSTID'
return #redis.call(unpack(kept))
""")

# KEYS: the stream, the group's losses, its record. ARGV: group, consumer, milliseconds, where to
# look from, count, the generation of the group's filter (0 is returned where it is another). What
# has been pending for so long; of what was trimmed the ids alone, recorded. And the recorded losses
# that a process was given so long ago that it must have died before it sent them.
CLAIM = Script.of(
    _RECORD
    + CURRENT
    + """
if not is_current(KEYS[3], ARGV[6]) then return 0 end
local late, now = {}, now_ms()
local known = redis.call('HGETALL', KEYS[2])
for i = 1, #known, 2 do
  if now - tonumber(known[i + 1]) >= tonumber(ARGV[3]) then
    record(KEYS[2], known[i])
    late[#late + 1] = known[i]
  end
end
local claimed = redis.pcall(
  'XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
if claimed.err then return claimed end
local trimmed = claimed[3] or {}
for _, id in ipairs(trimmed) do record(KEYS[2], id) end
return {claimed[1], claimed[2], trimmed, late}
"""
)

# KEYS: the stream, the group's losses. ARGV: group, ids that are pending and trimmed. They are
# recorded, and no longer pending.
LOSE = Script.of(
    _RECORD
    + """
for i = 2, #ARGV do
  record(KEYS[2], ARGV[i])
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
end
return 1
"""
)

# KEYS: the stream, the group's losses. ARGV: group, from which consumer, to which, since when the
# entries count as idle (unix ms; empty: now), ids. Those that are pending for the one become the
# other's; those of them that were trimmed are recorded as lost, and no longer pending. Both lists.
MOVE = Script.of(
    _RECORD
    + """
local command = {'XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0}
for i = 5, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) > 0 then
    command[#command + 1] = id
  end
end
local last = #command
if last == 5 then return {{}, {}} end
if ARGV[4] ~= '' then
  command[last + 1] = 'TIME'
  command[last + 2] = ARGV[4]
end
command[#command + 1] = 'JUSTID'
local moved = redis.call(unpack(command))
local trimmed, at = {}, 1
for i = 6, last do
  if moved[at] == command[i] then at = at + 1
  else
    trimmed[#trimmed + 1] = command[i]
    record(KEYS[2], command[i])
  end
end
return {moved, trimmed}
"""
)

# KEYS: the stream. ARGV: group, consumer, ids. Acknowledges those that are pending for it; these.
ACKNOWLEDGE = Script.of("""
local done = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) > 0 then
    redis.call('XACK', KEYS[1], ARGV[1], id)
    done[#done + 1] = id
  end
end
return done
""")

# ARGV: group, own consumer, whether to remove it, milliseconds. Removes consumers that have nothing
# pending, which alone would lose it: those idle for so long, or this one that leaves.
SWEEP = Script.of(
    _FIELD
    + """
local removed = 0
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return 0 end
for _, consumer in ipairs(consumers) do
  local name = field(consumer, 'name')
  local gone = ARGV[3] == '1' and name == ARGV[2]
  local idle = ARGV[3] == '0' and name ~= ARGV[2]
    and field(consumer, 'idle') >= tonumber(ARGV[4])
  if (gone or idle) and field(consumer, 'pending') == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
    removed = removed + 1
  end
end
return removed
"""
)

# KEYS: a name's key. ARGV: who wants it, milliseconds. 1 when it is theirs for so long.
HOLD = Script.of("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")

LET_GO = Script.of("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
""")


class GroupRead(NamedTuple):
    """An answer of `READ`: raw entries, the records of what the group missed, up to where it has
    read, and how many entries it has not read yet."""

    entries: list[RawEntry]
    missed: list[str]
    end: StreamId
    lag: int | None


def group_read(answer: Any) -> GroupRead:
    """What the script's answer says."""
    entries, last, read, first, newest, added, length, deleted, missed = answer
    group = Cursor(from_wire(last), read)
    bounds = Bounds(
        first=from_wire(first) if first else None,
        last=from_wire(newest),
        added=added,
        length=length,
        deleted=from_wire(deleted or b"0-0"),
    )
    end = from_wire(entries[-1][0]) if entries else group.id
    lag = _lag(group, bounds, len(entries))
    return GroupRead(entries, [record.decode() for record in missed], end, lag)


def gap_of(record: str) -> Gap:
    """The gap that a recorded loss stands for: an id, or two with a count between them, and of a
    failover the word `reset`."""
    if " " not in record:
        id_ = from_wire(record.encode())
        return Gap("trimmed", id_.before(), id_.after(), 1, id_)
    after, before, count, *failover = record.split()
    first = from_wire(before.encode())
    known = None if count == "unknown" else int(count)
    reason: Literal["reset", "trimmed"] = "reset" if failover else "trimmed"
    return Gap(reason, from_wire(after.encode()), first, known, first.before())


def _lag(group: Cursor, bounds: Bounds, given: int) -> int | None:
    if bounds.first is None or group.id < bounds.first:
        return bounds.length - given
    if group.position is None or bounds.added is None:
        return None
    return bounds.added - group.position - given
