"""The append: one script call for the events of many requests."""

from collections.abc import Sequence

import msgspec

from logpipe.stream.scripts import Script, companion_key

ONCE_TTL_S = 600
"""How long an idempotency key is kept."""

# KEYS: the stream, then one key for each request that has an idempotency key.
# ARGV: maxlen, seconds that a key is kept, number of requests, then for each request whether it
# has a key, its receipt, its number of events, and the events.
# Locals for what the loop uses save a tenth of the server's time, and so does trimming once a call;
# `~` trims whole nodes, and at most 10,000 entries at a time, so that a long call needs more.
APPEND = Script.of("""
local call, stream, argv, maxlen = redis.call, KEYS[1], ARGV, ARGV[1]
local at, key, added, answers = 4, 1, 0, {}
for request = 1, tonumber(argv[3]) do
  local keyed, receipt, count = argv[at] == '1', argv[at + 1], tonumber(argv[at + 2])
  at = at + 3
  local known = false
  if keyed then
    key = key + 1
    known = call('GET', KEYS[key])
  end
  if known then
    answers[request] = {1, known}
  else
    local first, last
    for i = at, at + count - 1 do
      last = call('XADD', stream, '*', 'event', argv[i])
      first = first or last
      added = added + 1
      if added % 5000 == 0 then call('XTRIM', stream, 'MAXLEN', '~', maxlen) end
    end
    local answer = (first or '0-0') .. ' ' .. (last or '0-0') .. ' ' .. receipt
    if keyed then call('SET', KEYS[key], answer, 'EX', argv[2]) end
    answers[request] = {0, answer}
  end
  at = at + count
end
if added > 0 then call('XTRIM', stream, 'MAXLEN', '~', maxlen) end
return answers
""")


class Append(msgspec.Struct, frozen=True, gc=False):
    """The events of one request, to be appended in order, all or none.

    `receipt` is kept with the idempotency key and given back when the request comes again.
    """

    events: Sequence[bytes]
    once: str | None = None
    receipt: bytes = b""


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The outcome of an `Append`; `repeated` when the key was known and nothing was added."""

    first: str
    last: str
    receipt: bytes
    repeated: bool


def arguments(
    stream: str, maxlen: int, requests: Sequence[Append]
) -> tuple[list[str], list[bytes | str | int]]:
    """The script's KEYS and ARGV."""
    keys: list[str] = [stream]
    rest: list[bytes | str | int] = [maxlen, ONCE_TTL_S, len(requests)]
    for request in requests:
        if request.once is not None:
            keys.append(companion_key(stream, "once", request.once))
        rest += (int(request.once is not None), request.receipt, len(request.events))
        rest += request.events
    return keys, rest


def outcome(answer: tuple[int, bytes]) -> Appended:
    """One request's outcome, as the script answers it."""
    repeated, text = answer
    first, last, receipt = text.split(b" ", 2)
    return Appended(first.decode(), last.decode(), receipt, bool(repeated))
