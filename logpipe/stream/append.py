"""The append: one step on the server for the events of many requests.

Requests with an idempotency key need a script, which looks at the key and appends in one step.
Without one, a transaction of plain commands costs the server a fifth less an event, because none
of them goes through Lua.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from logpipe.stream.scripts import Script, companion_key

ONCE_TTL_S = 600
"""How long an idempotency key is kept."""

TRIM_EVERY = 5_000
"""Trimming takes whole nodes, and at most 10,000 entries at a time: a long append needs more."""

# KEYS: the stream, then one key for each request that has an idempotency key.
# ARGV: maxlen, seconds that a key is kept, number of requests, then for each request whether it
# has a key (2: and replicas must have it), its receipt, its number of events, and the events.
# WAIT waits for what its connection has written: so a known key is written once more.
# Locals for what the loop uses save a tenth of the server's time, and so does trimming once a call,
# or every `TRIM_EVERY` events.
APPEND = Script.of("""
local call, stream, argv, maxlen = redis.call, KEYS[1], ARGV, ARGV[1]
local at, key, added, answers = 4, 1, 0, {}
for request = 1, tonumber(argv[3]) do
  local keyed, receipt, count = argv[at] ~= '0', argv[at + 1], tonumber(argv[at + 2])
  local waits = argv[at] == '2'
  at = at + 3
  local known = false
  if keyed then
    key = key + 1
    known = call('GET', KEYS[key])
  end
  if known then
    if waits then call('SET', KEYS[key], known, 'KEEPTTL') end
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
    stream: str, maxlen: int, requests: Sequence[Append], *, waits: bool = False
) -> tuple[list[str], list[bytes | str | int]]:
    """The script's KEYS and ARGV; `waits`: for replicas, by a WAIT after it."""
    keyed = 2 if waits else 1
    keys: list[str] = [stream]
    rest: list[bytes | str | int] = [maxlen, ONCE_TTL_S, len(requests)]
    for request in requests:
        if request.once is not None:
            keys.append(companion_key(stream, "once", request.once))
        rest += (0 if request.once is None else keyed, request.receipt, len(request.events))
        rest += request.events
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


def outcome(answer: tuple[int, bytes]) -> Appended:
    """One request's outcome, as the script answers it."""
    repeated, text = answer
    first, last, receipt = text.split(b" ", 2)
    return Appended(first.decode(), last.decode(), receipt, bool(repeated))
