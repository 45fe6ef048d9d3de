"""How the primary is found: by Sentinels, or by the nodes of a Cluster.

Not by redis-py's clients for them. Its Sentinel learns of the new primary only when all replicas
have been reconfigured, and its pool does not wait for a free connection. Its RedisCluster runs each
command of a transaction in a thread with an event loop of its own, and repeats what was sent.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from logpipe.redis_address import Node, RedisAddress
from logpipe.stream.pool import Pool
from logpipe.stream.primary import Found, Primary, Reach

log = logging.getLogger("logpipe.redis")

SILENT_S = 3.0
"""After that many seconds without an answer a Sentinel is warned of: no restart takes longer."""
ASK_TIMEOUT_S = 0.3
"""For one Sentinel or node to say where the primary is."""
COMPARE_S = 0.3
"""How long a primary that was replaced may take to follow its successor, so that a failover that
has lost nothing sends no gap."""
COMPARE_PAUSE_S = 0.02
GRACE_S = 0.5
"""For a node of a Cluster to finish, or to refuse, what it was asked before the slot left it."""


def primary_of(address: RedisAddress, key: str) -> Primary | None:
    """The primary of an address that names more than one server; None of any other."""
    compare = partial(_compare, address)
    if address.sentinels:
        sentinels = _Sentinels(address)  # no grace: else it acknowledges what is lost
        return Primary(
            sentinels.ask, sentinels.aclose, grace_s=0, compare=compare, reach=sentinels.reach
        )
    if address.cluster:
        slots = _Slots(address, key_slot(key.encode()))
        return Primary(slots.ask, slots.aclose, grace_s=GRACE_S, compare=compare)
    return None


async def _compare(address: RedisAddress, old: Node, new: Node) -> str:
    """The replication ids that `old` had as a primary and that `new` has, with a space between, if
    `new` has all that `old` had; else empty.

    The old one, where it lives, becomes a replica of the new one. It goes on from where it was only
    if it had nothing else; then it has kept the replication id of its time as a primary beside the
    new one's. After a copy of everything it has not.
    """
    access = address.tls, address.username, address.password
    nodes = [_connected(node, *access) for node in (old, new)]
    try:
        deadline = time.monotonic() + COMPARE_S
        while time.monotonic() < deadline:
            earlier, later = [await _replication(node) for node in nodes]
            before = later["master_replid2"]
            if earlier["role"] == "slave" and earlier["master_replid"] == later["master_replid"]:
                kept = earlier["master_replid2"] == before and before.strip("0")
                return f"{before} {later['master_replid']}" if kept else ""
            if earlier["role"] == "master" and earlier["master_replid"] != before:
                return ""  # the later one was no replica of it: a slot has moved
            await asyncio.sleep(COMPARE_PAUSE_S)
    except (RedisError, OSError, KeyError):
        return ""  # it is dead, or may not be asked
    finally:
        for node in nodes:
            await node.aclose()
    return ""


async def _replication(node: Pool) -> dict[str, str]:
    (info,) = await node.call("INFO", "replication")
    return dict(line.split(":", 1) for line in info.decode().split("\r\n") if ":" in line)


class _Sentinels:
    """Asks all Sentinels at once: one that is cut off has old news, one that is dead has none."""

    def __init__(self, address: RedisAddress) -> None:
        access = address.tls, address.sentinel_username, address.sentinel_password
        self._name = address.service
        self._sentinels = {node: _connected(node, *access) for node in address.sentinels}
        self._silent: dict[Node, float] = {}
        """Since when each one has not answered."""
        self._warned: set[Node] = set()

    def reach(self) -> Reach:
        """How many there are, and how many have answered the last question."""
        return Reach(len(self._sentinels), len(self._sentinels) - len(self._silent))

    async def ask(self) -> Found:
        """The newest word; while any Sentinel is at a failover of it, no other node is known yet.
        Raises `RedisError` or OSError when no Sentinel has one."""
        asked = map(self._ask, self._sentinels.values())
        answers = await asyncio.gather(*asked, return_exceptions=True)
        self._note_silence(dict(zip(self._sentinels, answers, strict=True)))
        words = [each for each in answers if not isinstance(each, BaseException)]
        if not words:
            raise next(each for each in answers if isinstance(each, BaseException))
        (ahead, _), node, _ = max(words)
        return Found(node, failing_over=not ahead and any(begun for _, _, begun in words))

    def _note_silence(self, answers: Mapping[Node, object]) -> None:
        """Warns of each that has not answered for `SILENT_S`, once, and says when it does again."""
        now = time.monotonic()
        failed = {n: each for n, each in answers.items() if isinstance(each, BaseException)}
        self._silent = {node: self._silent.get(node, now) for node in failed}
        for node in self._warned - failed.keys():
            log.info("the Sentinel %s answers again", node)
        self._warned &= failed.keys()
        for node, since in self._silent.items():
            if now - since >= SILENT_S and node not in self._warned:
                self._warned.add(node)
                log.warning(
                    "the Sentinel %s does not say where the primary is (%s); %d of %d do, and"
                    " without any a failover is not noticed",
                    node,
                    str(failed[node]) or "no answer",
                    self.reach().reachable,
                    len(self._sentinels),
                )

    async def _ask(self, sentinel: Pool) -> tuple[tuple[bool, int], Node, bool]:
        """How new its word is, the word, and whether it is at a failover.

        The leader of a failover names the new primary by its address alone as long as it has the
        other replicas reconfigured, and is the only one to know.
        """
        (flat,) = await sentinel.call("SENTINEL", "MASTER", self._name)
        (where,) = await sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        state = dict(zip(flat[::2], flat[1::2], strict=True))
        ahead = where != [state[b"ip"], state[b"port"]]
        begun = b"failover_in_progress" in state[b"flags"].split(b",")
        return (ahead, int(state[b"config-epoch"])), Node(where[0].decode(), int(where[1])), begun

    async def aclose(self) -> None:
        """Closes the connections."""
        for sentinel in self._sentinels.values():
            await sentinel.aclose()


class _Slots:
    """Asks the nodes of a Cluster, one after the other, who owns a slot."""

    def __init__(self, address: RedisAddress, slot: int) -> None:
        self._access = address.tls, address.username, address.password
        self._named = address.cluster
        self._slot = slot
        self._nodes = {node: _connected(node, *self._access) for node in address.cluster}

    async def ask(self) -> Found:
        """The owner, by the first node that says. Raises `RedisConnectionError` when none does."""
        nodes = list(self._nodes)
        random.shuffle(nodes)
        why: Exception | None = None
        for node in nodes:
            try:
                if owner := await self._ask(node):
                    return Found(owner)
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
        for pool in self._nodes.values():
            await pool.aclose()


def _node(told: Any, by: Node) -> Node:
    """A node as CLUSTER SLOTS has it; one that does not know its own host leaves it out."""
    return Node(told[0].decode() if told[0] else by.host, int(told[1]))


def _connected(node: Node, tls: bool, username: str | None, password: str | None) -> Pool:
    address = RedisAddress(
        host=node.host, port=node.port, tls=tls, username=username, password=password
    )
    return Pool(address, ASK_TIMEOUT_S, ASK_TIMEOUT_S)
