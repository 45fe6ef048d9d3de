"""What the scripts have in common: how they are called, and the keys beside the stream's."""

import hashlib
from typing import Any, NamedTuple

import hiredis
import redis.asyncio as aioredis
from redis.exceptions import NoScriptError, ResponseError


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

    async def run_packed(self, client: aioredis.Redis, keys: list[str], *arguments: Any) -> Any:
        """As `run`, for many arguments: hiredis packs them three times as fast as redis-py."""
        try:
            return await _send(client, "EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await _send(client, "EVAL", self.text, len(keys), *keys, *arguments)


async def _send(client: aioredis.Redis, *command: Any) -> Any:
    """One command on a connection of the client's; its answer."""
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    answered = False
    try:
        await connection.send_packed_command([hiredis.pack_command(command)], check_health=False)
        try:
            answer = await connection.read_response()
        except ResponseError:
            answered = True
            raise
        answered = True
    finally:
        if not answered:  # the answer may still come, and must not be taken for the next one's
            await connection.disconnect(nowait=True)
        await pool.release(connection)
    return answer


def companion_key(stream: str, kind: str, text: str) -> str:
    """A key that belongs to a stream.

    The text is hashed, so that no client's words become part of a key's name; with the stream's
    hash tag, so that a Cluster keeps both in one slot.
    """
    tagged = "{" in stream and "}" in stream.partition("{")[2]
    prefix = stream if tagged else f"{{{stream}}}"
    return f"{prefix}:{kind}:{hashlib.sha256(text.encode()).hexdigest()}"
