"""A client of redis-py whose connections and commands follow the primary."""

from typing import Any, cast

import redis.asyncio as aioredis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.exceptions import AskError, TryAgainError

from logpipe.redis_address import Node
from logpipe.stream.primary import Primary


class FollowingConnection(Connection):
    """Connects to the primary of the moment, and again when that is another node."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self.node: Node | None = None
        self._primary = primary

    async def connect(self) -> None:
        """Connects unless it is connected."""
        node = await self._primary.where()
        if self.is_connected:
            if node == self.node:
                return
            await self.disconnect(nowait=True)
        self.node = node
        self.host, self.port = node
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except Exception as error:
            self._primary.learn(node, error)
            raise
        self._primary.connected(self)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """An answer; the primary learns of one that raises."""
        try:
            return await super().read_response(*args, **options)
        except Exception as error:
            self._primary.learn(self.node, error)
            raise

    def cut_off(self) -> None:
        """Ends it, and with an error what waits for its answer."""
        if self._writer is not None:
            self._writer.transport.abort()


class FollowingTLSConnection(FollowingConnection, SSLConnection):
    """The same over TLS; each node has to prove that it is the host it is known by."""


class _AskingConnection(Connection):
    """For one command or transaction: it has said ASKING."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        await self.send_command("ASKING")
        await self.read_response()


class _AskingTLSConnection(_AskingConnection, SSLConnection):
    pass


class FollowingClient(aioredis.Redis):
    """Commands that a Cluster refuses, because the slot is elsewhere, go where it is."""

    primary: Primary

    @classmethod
    def of(cls, primary: Primary, pool: ConnectionPool) -> "FollowingClient":
        """A client that closes its pool."""
        client = cast(FollowingClient, cls.from_pool(pool))
        client.primary = primary
        return client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's."""
        execute: Any = super().execute_command

        async def send(asked: Node | None) -> Any:
            if asked is None:
                return await execute(*args, **options)
            async with self.asking(asked) as client:
                return await client.execute_command(*args, **options)  # type: ignore[no-untyped-call]

        return await self.primary.followed(send)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """As redis-py's. Without a transaction, its first command alone may have a key."""
        return _FollowingPipeline(self, transaction, shard_hint)

    def asking(self, node: Node) -> aioredis.Redis:
        """A client, for one command or transaction, of a node that imports the slot."""
        options = dict(self.connection_pool.connection_kwargs)
        del options["primary"]
        options.pop("redis_connect_func", None)  # the next command after ASKING is the one that is
        options |= node._asdict()
        tls = issubclass(self.connection_pool.connection_class, SSLConnection)
        kind = _AskingTLSConnection if tls else _AskingConnection
        return aioredis.Redis.from_pool(ConnectionPool(connection_class=kind, **options))


class _FollowingPipeline(Pipeline):
    def __init__(self, client: FollowingClient, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, execute = list(self.command_stack), super().execute

        async def send(asked: Node | None) -> list[Any]:
            if asked is None:
                self.command_stack = list(commands)
                answers = await execute(raise_on_error)
            else:
                async with (
                    self._client.asking(asked) as client,
                    client.pipeline(self.is_transaction) as pipe,
                ):
                    pipe.command_stack = list(commands)
                    answers = await pipe.execute(raise_on_error)
            for answer in answers:
                if isinstance(answer, (AskError, TryAgainError)):
                    raise answer
            return answers

        return await self._client.primary.followed(send)
