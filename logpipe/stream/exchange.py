"""Commands on a connection of redis-py's, past what its client does with each argument."""

from typing import Any

import hiredis
import redis.asyncio as aioredis
from redis.exceptions import ResponseError


async def exchange(client: aioredis.Redis, *commands: tuple[Any, ...]) -> list[Any]:
    """Sends the commands at once; their answers as hiredis reads them, errors among them.

    Raises what redis-py raises for a connection that fails or is too slow.
    """
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
