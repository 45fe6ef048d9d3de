"""What the scripts have in common: how they are called, and the keys beside the stream's."""

import hashlib
from typing import Any, NamedTuple

import redis.asyncio as aioredis
from redis.exceptions import NoScriptError, ResponseError

from logpipe.stream.pool import Pool

# Numbers of a script have 53 bits, halves of ids 64: they are compared as texts.
LESS = """
local function less(a, b)
  local am, as = string.match(a, '(%d+)-(%d+)')
  local bm, bs = string.match(b, '(%d+)-(%d+)')
  if am ~= bm then return #am < #bm or (#am == #bm and am < bm) end
  return #as < #bs or (#as == #bs and as < bs)
end
"""


class Script(NamedTuple):
    """A script and the hash by which Redis knows it once it has run."""

    text: str
    sha: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """The script of a text."""
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    async def run(self, client: aioredis.Redis, keys: list[str], *arguments: Any) -> Any:
        """Its answer; a Redis that has forgotten the script is told it again."""
        try:
            return await client.evalsha(self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await client.eval(self.text, len(keys), *keys, *arguments)

    async def run_in_pool(self, pool: Pool, keys: list[str], *arguments: Any) -> Any:
        """As `run`."""
        try:
            return (await pool.call("EVALSHA", self.sha, len(keys), *keys, *arguments))[0]
        except ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return (await pool.call("EVAL", self.text, len(keys), *keys, *arguments))[0]

    async def run_in_pool_and(
        self, then: bytes, pool: Pool, keys: list[str], *arguments: Any
    ) -> tuple[Any, Any]:
        """As `run`, and the answer to a packed command that goes with it: to wait after a script
        that turned out to be forgotten would be in vain, so its text goes along."""
        first, second = await pool.call(
            "EVAL", self.text, len(keys), *keys, *arguments, then=[then]
        )
        return first, second


def companion_key(stream: str, kind: str, text: str) -> str:
    """A key that belongs to a stream.

    The text is hashed, so that no client's words become part of a key's name; with the stream's
    hash tag, so that a Cluster keeps both in one slot.
    """
    return f"{companions(stream, kind)}:{hashlib.sha256(text.encode()).hexdigest()}"


def companions(stream: str, kind: str) -> str:
    """What the names of all keys of a kind begin with, before a colon."""
    tagged = "{" in stream and "}" in stream.partition("{")[2]
    prefix = stream if tagged else f"{{{stream}}}"
    return f"{prefix}:{kind}"
