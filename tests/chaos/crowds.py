"""Readers that misbehave or come all at once."""

import asyncio
import contextlib
import ipaddress
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import httpx

from tests.chaos.judge import Offence
from tests.chaos.limits import root_missing
from tests.chaos.oracle import Subscriber
from tests.chaos.stage import Stage
from tests.helpers import wait_until
from tests.soak.readers import Plan

STORM = 500
STALLED = 20
STALL_S = 4.0
GONE = 3
"""Readers whose host goes away."""
GONE_S = 12.0
ARRIVE_S = 10.0


def namespaces_missing() -> str:
    """Why the network cannot be divided; empty where it can."""
    if root_missing() or not (shutil.which("ip") and shutil.which("curl")):
        return root_missing() or "there is no `ip` or no `curl`"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return "this root may not divide the network" if made.returncode else ""


@contextlib.asynccontextmanager
async def crowd(stage: Stage, plan: Plan, count: int) -> AsyncIterator[list[Subscriber]]:
    """So many more subscribers."""
    readers = [Subscriber(stage.distributor.url, stage.chance, plan) for _ in range(count)]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    try:
        await wait_until(lambda: all(reader.history.begin for reader in readers), "all are there")
        yield readers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def storm(stage: Stage, _: int) -> None:
    """The distributor is killed under 500 readers, who all come back at once."""
    async with crowd(stage, Plan({}, bool, leaves=False), STORM) as readers:
        await stage.distributor.restart()
        began = asyncio.get_running_loop().time()
        fresh = await stage.oracle.fresh(ARRIVE_S)
        await _arrived(stage, readers)
        seconds = asyncio.get_running_loop().time() - began
        stage.notes.append(
            f"{STORM} readers back after {seconds:.1f} s, the first {fresh or 0:.1f}"
        )


async def stalled(stage: Stage, _: int) -> None:
    """Readers that take nothing for seconds, and then all that they missed."""
    plan = Plan({"since": "earliest"}, bool, stalls_s=STALL_S, leaves=False)
    async with crowd(stage, plan, STALLED) as readers:
        await asyncio.sleep(STALL_S + 2)
        await _arrived(stage, readers)


async def _arrived(stage: Stage, readers: list[Subscriber]) -> None:
    """Everyone gets all that is acknowledged by now from where it began, each once."""
    acked = dict(stage.oracle.acked)

    def all_there() -> bool:
        return all(_owed(reader, acked) <= reader.numbers for reader in readers)

    try:
        await wait_until(all_there, f"{len(readers)} readers have everything", ARRIVE_S)
    except AssertionError as error:
        stage.found.append(Offence("lost", str(error)))
    if doubled := sum(len(reader.seen) != len(reader.numbers) for reader in readers):
        stage.found.append(Offence("doubled", f"{doubled} readers had an event twice"))


def _owed(reader: Subscriber, acked: dict[int, tuple[int, int]]) -> set[int]:
    begin = reader.history.begin[0]
    return {number for number, id_ in acked.items() if id_ > begin}


async def half_open(stage: Stage, _: int) -> None:
    """Readers whose host is gone without a word are cut off, while everyone else reads on."""
    port = stage.distributor.url.rpartition(":")[2]
    with other_host() as host, contextlib.ExitStack() as stack:
        for _ in range(GONE):
            stack.enter_context(host.reading(f"http://{host.near}:{port}/subscribe"))
        await wait_until(lambda: _subscribers(stage, GONE + 1), "they read")
        host.vanish()
        await _cut_off(stage)


async def _cut_off(stage: Stage) -> None:
    began = asyncio.get_running_loop().time()
    try:
        await wait_until(lambda: _subscribers(stage, 1), "they are cut off", GONE_S)
    except AssertionError as error:
        stage.found.append(Offence("other", str(error)))
    else:
        seconds = asyncio.get_running_loop().time() - began
        stage.notes.append(f"cut off after {seconds:.1f} s")


async def _subscribers(stage: Stage, count: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{stage.distributor.url}/subscribers")
    return len(answer.json()["subscribers"]) == count


class OtherHost(NamedTuple):
    """A network namespace by a cable of its own; the addresses are those of the cable's ends."""

    name: str
    near: str
    far: str

    @contextlib.contextmanager
    def reading(self, url: str) -> Iterator[None]:
        """Somebody there reads it, until the end of the block."""
        command = ["ip", "netns", "exec", self.name, "curl", "-sN", url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.kill()

    def vanish(self) -> None:
        """The cable is cut: no more word from there."""
        _ip("-n", self.name, "link", "set", "eth0", "down")


@contextlib.contextmanager
def other_host() -> Iterator[OtherHost]:
    """Another host. Each has a net of four addresses: trials that run at once would share one, and
    what is sent to the second would go by the first one's cable."""
    net = 4 * secrets.randbelow(1 << 14)
    base = ipaddress.IPv4Address("10.231.0.0") + net
    host = OtherHost(f"lp{net:04x}", str(base + 1), str(base + 2))
    cable = f"{host.name}h"
    _ip("netns", "add", host.name)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        _ip("addr", "add", f"{host.near}/30", "dev", cable)
        _ip("link", "set", cable, "up")
        _ip("-n", host.name, "addr", "add", f"{host.far}/30", "dev", "eth0")
        _ip("-n", host.name, "link", "set", "eth0", "up")
        yield host
    finally:
        _ip("link", "del", cable)
        _ip("netns", "del", host.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
