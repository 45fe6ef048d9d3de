"""How the primary is found: by Sentinels, or by the nodes of a Cluster.

Not by redis-py's clients for them. Its Sentinel learns of the new primary only when all replicas
have been reconfigured, and its pool does not wait for a free connection. Its RedisCluster runs each
command of a transaction in a thread with an event loop of its own, and repeats what was sent.
"""

import asyncio
import random
from typing import Any

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from logpipe.redis_address import Node, RedisAddress
from logpipe.stream.direct import Direct
from logpipe.stream.primary import Primary

ASK_TIMEOUT_S = 0.3
"""For one Sentinel or node to say where the primary is."""
GRACE_S = 0.5
"""For a node of a Cluster to finish, or to refuse, what it was asked before the slot left it."""


def primary_of(address: RedisAddress, key: str) -> Primary | None:
    """The primary of an address that names more than one server; None of any other."""
    if address.sentinels:
        sentinels = _Sentinels(address)
        return Primary(
            sentinels.ask, sentinels.aclose, grace_s=0
        )  # else it acknowledges what is lost
    if address.cluster:
        slots = _Slots(address, key_slot(key.encode()))
        return Primary(slots.ask, slots.aclose, grace_s=GRACE_S)
    return None


class _Sentinels:
    """Asks all Sentinels at once: one that is cut off has old news, one that is dead has none."""

    def __init__(self, address: RedisAddress) -> None:
        access = address.tls, address.sentinel_username, address.sentinel_password
        self._name = address.service
        self._sentinels = [_connected(node, *access) for node in address.sentinels]

    async def ask(self) -> Node:
        """The newest word. Raises `RedisError` or OSError when no Sentinel has one."""
        told = await asyncio.gather(*map(self._ask, self._sentinels), return_exceptions=True)
        words = [each for each in told if not isinstance(each, BaseException)]
        if not words:
            raise next(each for each in told if isinstance(each, BaseException))
        return max(words)[1]

    async def _ask(self, sentinel: Direct) -> tuple[tuple[bool, int], Node]:
        """How new its word is, and the word.

        The leader of a failover names the new primary by its address alone as long as it has the
        other replicas reconfigured, and is the only one to know.
        """
        (flat,) = await sentinel.call("SENTINEL", "MASTER", self._name)
        (where,) = await sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        state = dict(zip(flat[::2], flat[1::2], strict=True))
        ahead = where != [state[b"ip"], state[b"port"]]
        return (ahead, int(state[b"config-epoch"])), Node(where[0].decode(), int(where[1]))

    async def aclose(self) -> None:
        """Closes the connections."""
        for sentinel in self._sentinels:
            await sentinel.aclose()


class _Slots:
    """Asks the nodes of a Cluster, one after the other, who owns a slot."""

    def __init__(self, address: RedisAddress, slot: int) -> None:
        self._access = address.tls, address.username, address.password
        self._named = address.cluster
        self._slot = slot
        self._nodes = {node: _connected(node, *self._access) for node in address.cluster}

    async def ask(self) -> Node:
        """The owner, by the first node that says. Raises `RedisConnectionError` when none does."""
        nodes = list(self._nodes)
        random.shuffle(nodes)
        why: Exception | None = None
        for node in nodes:
            try:
                if owner := await self._ask(node):
                    return owner
            except (RedisError, OSError) as error:
                why = error
        raise RedisConnectionError("no node knows who owns the stream's slot") from why

    async def _ask(self, node: Node) -> Node | None:
        (ranges,) = await self._nodes[node].call("CLUSTER", "SLOTS")
        owner = next((row[2] for row in ranges if row[0] <= self._slot <= row[1]), None)
        if owner is None:
            return None  # what it says of the other nodes is not to be relied on, either
        await self._keep({_node(each, node) for row in ranges for each in row[2:]})
        return _node(owner, node)

    async def _keep(self, told: set[Node]) -> None:
        """Knows the nodes of the address and those that the Cluster has now."""
        wanted = {*self._named, *told}
        for node in wanted - self._nodes.keys():
            self._nodes[node] = _connected(node, *self._access)
        for node in self._nodes.keys() - wanted:
            await self._nodes.pop(node).aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        for direct in self._nodes.values():
            await direct.aclose()


def _node(told: Any, by: Node) -> Node:
    """A node as CLUSTER SLOTS has it; one that does not know its own host leaves it out."""
    return Node(told[0].decode() if told[0] else by.host, int(told[1]))


def _connected(node: Node, tls: bool, username: str | None, password: str | None) -> Direct:
    address = RedisAddress(
        host=node.host, port=node.port, tls=tls, username=username, password=password
    )
    return Direct(address, ASK_TIMEOUT_S, ASK_TIMEOUT_S)
