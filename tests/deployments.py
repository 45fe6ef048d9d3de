"""Deployments of several servers for tests: a primary with replicas and Sentinels, and a Cluster.

All of them are the test's Valkey binary, on free ports of 127.0.0.1, killed at the end.
"""

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from redis.crc import key_slot
from redis.exceptions import RedisError

from tests.servers import Valkey, free_port

MASTER = "logs-master"

REDIS = "/usr/bin/redis-server"


class Redis(Valkey):
    """Debian's Redis 7.0."""

    binary = REDIS


class Node(Valkey):
    """A Valkey that also listens on a port."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        listening = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "")
        super().__init__(folder, *listening, *options)

    @property
    def place(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def follow(self, primary: "Node") -> None:
        """Replicates another one; returns once it has all."""
        self.ask("REPLICAOF", "127.0.0.1", primary.port)
        eventually(lambda: self.has_all_of(primary), "the replica has all")

    def has_all_of(self, primary: "Node") -> bool:
        mine, its = (node.client.info("replication") for node in (self, primary))
        return bool(
            mine["master_link_status"] == "up"
            and mine["master_replid"] == its["master_replid"]
            and mine["slave_repl_offset"] == its["master_repl_offset"]
        )

    def ask(self, *command: Any) -> Any:
        """The answer to a command."""
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    @property
    def role(self) -> str:
        """`master` or `slave`."""
        return str(self.ask("ROLE")[0].decode())


class RedisNode(Node, Redis):
    """A Redis 7.0 that also listens on a port."""


class Deployment:
    """Several servers in a folder of their own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="logpipe-test-"))
        self.nodes: list[Node] = []

    def node(self, *options: str, kind: type[Node] = Node) -> Node:
        """Starts one more server."""
        folder = self.folder / str(len(self.nodes))
        folder.mkdir()
        node = kind(folder, *options)
        self.nodes.append(node)
        node.start()
        return node

    @classmethod
    @contextlib.contextmanager
    def started(cls, **options: int) -> Iterator[Self]:
        """A running one, gone at the end."""
        deployment = cls()
        try:
            deployment.start(**options)
            yield deployment
        finally:
            deployment.close()

    def start(self, **options: int) -> None:
        """Starts the servers; returns when they know each other."""

    def close(self) -> None:
        """Kills them all."""
        for node in self.nodes:
            node.client.close()
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def eventually(predicate: Callable[[], Any], description: str, timeout: float = 15.0) -> Any:
    """What the predicate says once it is true; servers that do not answer are waited for."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(RedisError):
            if found := predicate():
                return found
        assert time.monotonic() < deadline, f"not within {timeout} s: {description}"
        time.sleep(0.02)


class Replicated(Deployment):
    """A primary, replicas, and three Sentinels that watch them."""

    elsewhere: tuple[str, ...] = ()
    """Options of the replicas and Sentinels."""

    def entrance(self, node: Node) -> int:
        """The port by which others come to a server."""
        return node.port

    def start(  # type: ignore[override]
        self, *, replicas: int = 1, sentinels: int = 3, down_after_ms: int = 1000, heir: int = 0
    ) -> None:
        """As `Deployment.start`. `heir`: the only replica of `data` that Sentinels may promote; to
        them it must not be cut off for more than 10 times `down_after_ms`. 0: they promote the most
        advanced replica."""
        primary = self.node("--appendonly", "no", "--repl-diskless-sync-delay", "0")
        self._primary_port = self.entrance(primary)
        to_primary = ("--replicaof", f"127.0.0.1 {self._primary_port}", *self.elsewhere)
        quickly = ("--repl-diskless-sync-delay", "0")
        self.data = [primary]
        for number in range(1, replicas + 1):
            priority = ("--replica-priority", "0") if heir not in {0, number} else ()
            self.data.append(self.node(*to_primary, *quickly, *priority))
        eventually(
            lambda: (
                primary.client.info("replication")["connected_slaves"] == replicas
                and all(node.client.info()["master_link_status"] == "up" for node in self.data[1:])
            ),
            "the replicas are there",
        )
        self.sentinels = [self._sentinel(down_after_ms) for _ in range(sentinels)]
        eventually(self._watched, "the Sentinels know of each other and of the replicas")

    def _sentinel(self, down_after_ms: int) -> Node:
        folder = self.folder / f"sentinel-{len(self.nodes)}"
        folder.mkdir()
        config = folder / "sentinel.conf"
        config.write_text(
            f"sentinel monitor {MASTER} 127.0.0.1 {self._primary_port} 2\n"
            "sentinel announce-ip 127.0.0.1\n"
            f"sentinel down-after-milliseconds {MASTER} {down_after_ms}\n"
            f"sentinel failover-timeout {MASTER} 5000\n"
        )
        sentinel = Node(folder, *self.elsewhere)
        sentinel.arguments = (str(config), "--sentinel")
        self.nodes.append(sentinel)
        sentinel.start()
        return sentinel

    def _watched(self) -> bool:
        states = [node.ask("SENTINEL MASTER", MASTER) for node in self.sentinels]
        return all(
            state["num-other-sentinels"] == len(self.sentinels) - 1
            and state["num-slaves"] == len(self.data) - 1
            for state in states
        )

    @property
    def url(self) -> str:
        """What REDIS_ADDR is for it."""
        return f"redis+sentinel://{','.join(s.place for s in self.sentinels)}/{MASTER}/0"

    @property
    def promoted(self) -> Node | None:
        """The replica that has become the primary."""
        return next((node for node in self.data[1:] if node.role == "master"), None)

    @property
    def primary(self) -> Node | None:
        """The server that all Sentinels take for the primary."""
        told = {int(s.ask("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)[1]) for s in self.sentinels}
        return next((node for node in self.data if {node.port} == told), None)


def cut_off(primary: Node, replica: Node) -> None:
    """The replica gets nothing more."""
    primary.ask("ACL", "SETUSER", "default", "-psync", "-sync")
    replica.ask("CLIENT", "KILL", "TYPE", "master")
    eventually(
        lambda: replica.client.info("replication")["master_link_status"] == "down", "it is cut off"
    )


class Endpoint:
    """A server on a free port of 127.0.0.1, in a thread of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        starting = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = self._loop.run_until_complete(starting)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Ends it and all that comes by it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Gate(Endpoint):
    """A port that leads to another; while it is shut, it is silent to who comes from an address."""

    def __init__(self, to: int, shut_to: str) -> None:
        self.shut = False
        self._to = to
        self._shut_to = shut_to
        super().__init__()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        concerned = writer.get_extra_info("peername")[0] == self._shut_to
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        ways = ((reader, up_writer), (up_reader, writer))
        tasks = [asyncio.create_task(self._pass(*way, concerned)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            writer.transport.abort()
            up_writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, concerned: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                while self.shut and concerned:
                    await asyncio.sleep(0.02)
                writer.write(data)
                await writer.drain()


HERE, THERE = "127.0.0.1", "127.0.0.2"


class Divided(Replicated):
    """One in which the way between logpipe with the primary and all other servers can be shut."""

    elsewhere = ("--bind-source-addr", THERE)

    def start(self, **options: int) -> None:
        """As `Deployment.start`."""
        self._gates: list[Gate] = []
        super().start(**options)
        self._to_sentinels = [self._gate(node, HERE) for node in self.sentinels]

    def _gate(self, node: Node, shut_to: str) -> Gate:
        gate = Gate(node.port, shut_to)
        self._gates.append(gate)
        return gate

    def entrance(self, node: Node) -> int:
        """A gate to the primary that can be shut to the servers elsewhere, and not to logpipe."""
        return self._gate(node, THERE).port

    @property
    def url_elsewhere(self) -> str:
        """What REDIS_ADDR is on the other side."""
        return super().url

    @property
    def url(self) -> str:
        """What REDIS_ADDR is on the side of the primary."""
        places = ",".join(f"{HERE}:{gate.port}" for gate in self._to_sentinels)
        return f"redis+sentinel://{places}/{MASTER}/0"

    @contextlib.contextmanager
    def apart(self) -> Iterator[Gate]:
        """For so long nothing passes; gives the gate to the primary, which may open before."""
        for gate in self._gates:
            gate.shut = True
        yield self._gates[0]
        for gate in self._gates:
            gate.shut = False

    def close(self) -> None:
        """As `Deployment.close`."""
        super().close()
        for gate in self._gates:
            gate.close()


SLOTS = 16384


class Cluster(Deployment):
    """Three primaries that share the slots, and a replica of the one that owns the stream's."""

    slot = key_slot(b"logs")

    def start(self, *, node_timeout_ms: int = 1000) -> None:  # type: ignore[override]
        """As `Deployment.start`."""
        self._options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)),
            *("--repl-diskless-sync-delay", "0"),
        )
        self._buses: dict[int, int] = {}
        self.primaries = [self._member() for _ in range(3)]
        step = -(-SLOTS // 3)
        for number, node in enumerate(self.primaries):
            end = min((number + 1) * step, SLOTS) - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * step, end)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        self.owner = self.primaries[self.slot // step]
        self.replica = self._member()
        first = self.nodes[0]
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", first.port, self._buses[first.port])
        eventually(lambda: all(map(self._knows_all, self.nodes)), "the nodes know each other")
        self.replica.ask("CLUSTER", "REPLICATE", id_of(self.owner))
        eventually(lambda: all(map(self._knows_replica, self.nodes)), "they know the replica")
        eventually(
            lambda: self.replica.client.info("replication")["master_link_status"] == "up",
            "the replica has caught up",
        )

    def _member(self) -> Node:
        bus = free_port()
        node = self.node(*self._options, "--cluster-port", str(bus))
        self._buses[node.port] = bus
        return node

    def _knows_all(self, node: Node) -> bool:
        info = node.ask("CLUSTER", "INFO")
        known = b"cluster_known_nodes:%d\r" % len(self.nodes)
        return b"cluster_state:ok\r" in info and known in info

    def _knows_replica(self, node: Node) -> bool:
        return bool(node.ask("CLUSTER", "REPLICAS", id_of(self.owner)))

    @property
    def url(self) -> str:
        """What REDIS_ADDR is for it: two of its nodes know the others."""
        return f"redis+cluster://{','.join(node.place for node in self.primaries[1:])}"

    def owner_by(self, node: Node) -> Node:
        """Who owns the stream's slot, as a node has it."""
        for first, last, (_, port, *_), *_ in node.ask("CLUSTER", "SLOTS"):
            if first <= self.slot <= last:
                return next(each for each in self.nodes if each.port == port)
        raise AssertionError("nobody owns the slot")


def id_of(node: Node) -> str:
    """A node's name in its Cluster."""
    return str(node.ask("CLUSTER", "MYID").decode())
