"""Commands on a connection of redis-py's, past what its client does with each argument."""

from collections.abc import Sequence
from typing import Any

import hiredis
import redis.asyncio as aioredis
from redis.exceptions import AskError, ResponseError, TryAgainError

from logpipe.redis_address import Node
from logpipe.stream.following import FollowingClient


async def exchange(client: aioredis.Redis, *commands: tuple[Any, ...]) -> list[Any]:
    """Sends the commands at once; their answers as hiredis reads them, errors among them.

    Raises what redis-py raises for a connection that fails or is too slow.
    """
    if not isinstance(client, FollowingClient):
        return await _exchange(client, commands)

    async def send(asked: Node | None) -> list[Any]:
        if asked is not None:
            answers = await _ask(client.asking(asked), commands)
        else:
            answers = await _exchange(client, commands)
        for answer in answers:
            if isinstance(answer, (AskError, TryAgainError)):
                raise answer
        return answers

    return await client.primary.followed(send)


async def _ask(client: aioredis.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """At a node that has to be told before each command that it is asked on purpose."""
    asking: list[tuple[Any, ...]] = [("ASKING",)] * len(commands)
    pairs = zip(asking, commands, strict=True)
    async with client:
        return (await _exchange(client, [each for pair in pairs for each in pair]))[1::2]


async def _exchange(client: aioredis.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    answers: list[Any] = []
    try:
        packed = [hiredis.pack_command(command) for command in commands]
        await connection.send_packed_command(packed, check_health=False)
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except ResponseError as error:
                answers.append(error)
    finally:
        # What is still to come must not be taken for the answers to the next commands.
        if len(answers) < len(commands):
            await connection.disconnect(nowait=True)
        await pool.release(connection)
    return answers
