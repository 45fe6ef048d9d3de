"""The append: one step on the server for the events of many requests.

Requests with an idempotency key need a script, which looks at the key and appends in one step.
Without one, a transaction of plain commands costs the server a fifth less an event, because none
of them goes through Lua; but its answers are two for each event, so batches go by the script.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from logpipe.stream.once import KEY_OVERHEAD_BYTES, MAX_BODIES, Once
from logpipe.stream.scripts import Script, companion_key, companions

TRIM_EVERY = 5_000
"""Trimming takes whole nodes, and at most 10,000 entries at a time: a long append needs more."""

MAX_TRANSACTION_EVENTS = 10_000
"""Events of a transaction; more go by the script, also without keys. The answers to a transaction
of 199,000 events are 9 MB, which held the event loop for 38 ms; with the script it was 6 ms, and
the append took a fifth less time (measured)."""

# KEYS: the stream, what its idempotency keys take, then one key for each request that has one.
# ARGV: maxlen, whether replicas must have it, number of requests; of idempotency keys: how long
# they are kept, the bytes that all of them may take, those that one takes besides name and value,
# the bodies that one remembers; then for each request its rule ('' without a key), the digest of
# its body, its receipt, its number of events, and the events.
#
# The value of a key: the number of digests, the digests, the tenth of a lifetime in which it was
# written, the first and the last id, the receipt. What keys take is counted by these tenths: the
# keys of one have expired eleven tenths later, and then no longer count. So the sum may be too high
# by what one tenth wrote, and is never too low.
#
# WAIT waits for what its connection has written: so a known key is written once more.
# Locals for what the loop uses save a tenth of the server's time, and so does trimming once a call,
# or every `TRIM_EVERY` events.
APPEND = Script.of("""
local call, stream, argv, maxlen = redis.call, KEYS[1], ARGV, ARGV[1]
local waits, ttl, most = argv[2] == '1', argv[4], tonumber(argv[5])
local overhead, bodies = tonumber(argv[6]), tonumber(argv[7])
local clock = call('TIME')
local tenth = math.floor((clock[1] * 1000 + clock[2] / 1000) / (ttl / 10))
local taken, counted, written = 0, {}, 0
for at, bytes in string.gmatch(call('GET', KEYS[2]) or '', '(%d+) (%d+)') do
  if tonumber(at) + 11 > tenth then
    taken = taken + bytes
    if tonumber(at) == tenth then
      written = tonumber(bytes)
    else
      counted[#counted + 1] = at .. ' ' .. bytes
    end
  end
end
local before = written

local function holds(known, digest)
  for at = 2, known:byte(1) * #digest, #digest do
    if known:sub(at, at + #digest - 1) == digest then return true end
  end
  return false
end

local at, key, added, answers = 8, 2, 0, {}
for request = 1, tonumber(argv[3]) do
  local rule, digest, receipt, count = argv[at], argv[at + 1], argv[at + 2], tonumber(argv[at + 3])
  at = at + 4
  local known, seen, room = false, false, true
  local digests, number = digest, 1
  if rule ~= '' then
    key = key + 1
    known = call('GET', KEYS[key])
    seen = known and (rule == 'ignore' or holds(known, digest))
    if known then
      number = math.min(known:byte(1) + 1, bodies)
      digests = digest .. known:sub(2, 1 + (number - 1) * #digest)
    end
    room = taken + #KEYS[key] + #digests + #receipt + overhead + 128 <= most
  end
  if seen then
    if waits then call('SET', KEYS[key], known, 'KEEPTTL') end
    answers[request] = {'repeated', known:sub(2 + known:byte(1) * #digest)}
  elseif known and rule == 'reject' then
    answers[request] = {'other body', ''}
  elseif not room then
    answers[request] = {'no room', ''}
  else
    local first, last
    for i = at, at + count - 1 do
      last = call('XADD', stream, '*', 'event', argv[i])
      first = first or last
      added = added + 1
      if added % 5000 == 0 then call('XTRIM', stream, 'MAXLEN', '~', maxlen) end
    end
    local answer = string.format('%.0f', tenth) .. ' ' .. (first or '0-0') .. ' ' .. (last or '0-0')
      .. ' ' .. receipt
    if rule ~= '' then
      local value = string.char(number) .. digests .. answer
      call('SET', KEYS[key], value, 'PX', ttl)
      local bytes = #KEYS[key] + #value + overhead
      if known and tonumber(known:match('^%d+', 2 + known:byte(1) * #digest)) == tenth then
        bytes = #value - #known
      end
      taken, written = taken + bytes, written + bytes
    end
    answers[request] = {'added', answer}
  end
  at = at + count
end
if written ~= before then
  counted[#counted + 1] = string.format('%.0f %.0f', tenth, written)
  call('SET', KEYS[2], table.concat(counted, ' '), 'PX', string.format('%.0f', ttl * 1.2))
end
if added > 0 then call('XTRIM', stream, 'MAXLEN', '~', maxlen) end
return answers
""")


class Append(msgspec.Struct, frozen=True, gc=False):
    """The events of one request, to be appended in order, all or none.

    `receipt`, of `RECEIPT_BYTES` at most, is kept with the idempotency key and given back when the
    request comes again.
    """

    events: Sequence[bytes]
    once: Once | None = None
    receipt: bytes = b""


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The outcome of an `Append`; `repeated` when the key was known and nothing was added."""

    first: str
    last: str
    receipt: bytes
    repeated: bool


class Declined(StrEnum):
    """Why nothing of an `Append` was added, although Redis serves; the values are the script's."""

    OTHER_BODY = "other body"
    """Its key is known with another body."""
    NO_ROOM = "no room"
    """Its key has no room beside the others, of which none is forgotten early."""


def arguments(
    stream: str,
    maxlen: int,
    requests: Sequence[Append],
    ttl_ms: int,
    most_bytes: int,
    *,
    waits: bool = False,
) -> tuple[list[str], list[bytes | str | int]]:
    """The script's KEYS and ARGV; `waits`: for replicas, by a WAIT after it."""
    keys: list[str] = [stream, f"{companions(stream, 'once')}:bytes"]
    rest: list[bytes | str | int] = [maxlen, int(waits), len(requests), ttl_ms, most_bytes]
    rest += (KEY_OVERHEAD_BYTES, MAX_BODIES)
    for request in requests:
        rule, digest = "", b""
        if request.once is not None:
            keys.append(companion_key(stream, "once", request.once.key))
            rule, digest = request.once.rule, request.once.digest
        rest += (rule, digest, request.receipt, len(request.events), *request.events)
    return keys, rest


class Transaction:
    """The commands that append the events of requests without keys: MULTI, XADDs, EXEC."""

    def __init__(self, stream: str, maxlen: int) -> None:
        key = stream.encode()
        name = b"$%d\r\n%b\r\n" % (len(key), key)
        self._add = b"\r\n*5\r\n$4\r\nXADD\r\n%b$1\r\n*\r\n$5\r\nevent\r\n$" % name
        limit = b"%d" % maxlen
        self._trim = b"\r\n*5\r\n$5\r\nXTRIM\r\n%b$6\r\nMAXLEN\r\n$1\r\n~\r\n$%d\r\n%b" % (
            name,
            len(limit),
            limit,
        )

    def packed(self, events: Sequence[bytes]) -> tuple[bytes, int]:
        """The commands on the wire, and how many they are.

        Each part but the first begins with the end of the one before: so an event takes two
        parts, and those before events of one length are the same.
        """
        heads: dict[int, bytes] = {}
        parts = [b"*1\r\n$5\r\nMULTI"]
        for at in range(0, len(events), TRIM_EVERY):
            for event in events[at : at + TRIM_EVERY]:
                length = len(event)
                head = heads.get(length)
                if head is None:
                    head = heads[length] = self._add + b"%d\r\n" % length
                parts += (head, event)
            parts.append(self._trim)
        parts.append(b"\r\n*1\r\n$4\r\nEXEC\r\n")
        return b"".join(parts), len(events) + -(-len(events) // TRIM_EVERY) + 2


def ids_of(answers: Sequence[Any]) -> list[bytes]:
    """The ids that a transaction has given. Raises the error of Redis for one that failed."""
    given = answers[-1]
    if isinstance(given, Exception):  # what was refused says why; EXEC says only that it was
        raise next(each for each in answers if isinstance(each, Exception))
    for answer in given:
        if isinstance(answer, Exception):
            raise answer
    return [answer for answer in given if isinstance(answer, bytes)]


def outcomes(requests: Sequence[Append], ids: Sequence[bytes]) -> Iterator[Appended]:
    """Each request's outcome, of the ids of all their events."""
    at = 0
    for request in requests:
        end = at + len(request.events)
        some = ids[at:end] or [b"0-0"]
        yield Appended(some[0].decode(), some[-1].decode(), request.receipt, False)
        at = end


def outcome(answer: tuple[bytes, bytes]) -> Appended | Declined:
    """One request's outcome, as the script answers it."""
    word, text = answer
    if word not in (b"added", b"repeated"):
        return Declined(word.decode())
    _, first, last, receipt = text.split(b" ", 3)
    return Appended(first.decode(), last.decode(), receipt, word == b"repeated")
