"""The append: one script call for the events of many requests."""

from collections.abc import Sequence
from typing import NamedTuple

from logpipe.stream.scripts import Script, companion_key

ONCE_TTL_S = 600
"""How long an idempotency key is kept."""

# KEYS: the stream, then one key for each request that has an idempotency key.
# ARGV: maxlen, seconds that a key is kept, number of requests, then for each request whether it
# has a key, its receipt, its number of events, and the events.
# Trimming by the last of each thousand saves the server a tenth; `~` trims whole nodes, and at
# most 10,000 entries a call, so that a long batch needs more than one.
APPEND = Script.of("""
local at, key, answers = 4, 1, {}
for request = 1, tonumber(ARGV[3]) do
  local keyed, receipt, count = ARGV[at] == '1', ARGV[at + 1], tonumber(ARGV[at + 2])
  at = at + 3
  local known = false
  if keyed then
    key = key + 1
    known = redis.call('GET', KEYS[key])
  end
  if known then
    answers[request] = {1, known}
  else
    local first, last
    for i = 1, count do
      if i == count or i % 1000 == 0 then
        last = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'event', ARGV[at + i - 1])
      else
        last = redis.call('XADD', KEYS[1], '*', 'event', ARGV[at + i - 1])
      end
      first = first or last
    end
    local answer = (first or '0-0') .. ' ' .. (last or '0-0') .. ' ' .. receipt
    if keyed then redis.call('SET', KEYS[key], answer, 'EX', ARGV[2]) end
    answers[request] = {0, answer}
  end
  at = at + count
end
return answers
""")


class Append(NamedTuple):
    """The events of one request, to be appended in order, all or none.

    `receipt` is kept with the idempotency key and given back when the request comes again.
    """

    events: Sequence[bytes]
    once: str | None = None
    receipt: bytes = b""


class Appended(NamedTuple):
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
