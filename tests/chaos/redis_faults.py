"""What is done to Redis and to the way there."""

import asyncio
import json
import time

from tests.chaos.oracle import event
from tests.chaos.stage import DURABLE, Stage
from tests.helpers import wait_until

LASTS_S = 1.5
"""How long a state of Redis lasts."""
USER = "ship"
PASSWORD = "s3cr/#t"
"""As an operator may have chosen it; in a URL it is percent-encoded."""
IN_URL = f"{USER}:s3cr%2F%23t"
LOADING_KEYS = 20_000
SLOW_TO_LOAD = (*DURABLE, "--loading-process-events-interval-bytes", "1024")
"""It answers while it loads."""


async def comes_late(stage: Stage, _: int) -> None:
    """Redis is not there when logpipe starts."""
    await asyncio.sleep(LASTS_S)
    await asyncio.to_thread(stage.valkey.start)


async def restarted(stage: Stage, cycles: int) -> None:
    """Ended by SIGTERM and started again, a moment later."""
    for _ in range(cycles):
        await asyncio.to_thread(stage.valkey.stop)
        await asyncio.sleep(stage.chance.uniform(0, 0.5))
        await asyncio.to_thread(stage.valkey.start)
        await stage.flows(20)


async def flushed(stage: Stage, cycles: int) -> None:
    """FLUSHALL while events flow."""
    for _ in range(cycles):
        stage.ask("FLUSHALL")
        await stage.flows(20)


async def loading(stage: Stage, _: int) -> None:
    """Restarted with data that takes seconds to load."""
    client = stage.valkey.client
    with client.pipeline(transaction=False) as pipe:
        for number in range(LOADING_KEYS):
            pipe.set(f"key {number}", "x")
        pipe.execute()
    stage.ask("CONFIG", "SET", "key-load-delay", "100")
    await asyncio.to_thread(stage.valkey.kill)
    await asyncio.to_thread(stage.valkey.start)


async def full(stage: Stage, _: int) -> None:
    """maxmemory is reached: OOM for every append."""
    stage.ask("CONFIG", "SET", "maxmemory", "500000")
    await asyncio.sleep(LASTS_S)
    stage.ask("CONFIG", "SET", "maxmemory", "0")


async def read_only(stage: Stage, _: int) -> None:
    """Demoted to a replica, and promoted again."""
    stage.ask("REPLICAOF", "127.0.0.1", "1")
    await asyncio.sleep(LASTS_S)
    stage.ask("REPLICAOF", "NO", "ONE")


async def wrong_type(stage: Stage, _: int) -> None:
    """Somebody writes a string where the stream was."""
    with stage.valkey.client.pipeline(transaction=True) as pipe:
        pipe.rename("logs", "aside")
        pipe.set("logs", "precious")
        pipe.execute()
    await asyncio.sleep(LASTS_S)
    if stage.valkey.client.get("logs") != b"precious":
        raise AssertionError("the key of another type was changed")
    stage.valkey.client.rename("aside", "logs")


async def wrong_password(stage: Stage, _: int) -> None:
    """logpipe starts with a password that Redis does not know, until it does."""
    stage.ask("ACL", "SETUSER", USER, "on", ">another", "~*", "&*", "+@all")
    await asyncio.sleep(LASTS_S)
    stage.ask("ACL", "SETUSER", USER, f">{PASSWORD}")
    _check_secrecy(stage)


async def rights_lost(stage: Stage, _: int) -> None:
    """A user that loses its rights while it works, and gets them back."""
    stage.ask("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all")
    await stage.flows(60)
    stage.ask("ACL", "SETUSER", USER, "-@all")
    await asyncio.sleep(LASTS_S)
    stage.ask("ACL", "SETUSER", USER, "+@all")
    _check_secrecy(stage)


def _check_secrecy(stage: Stage) -> None:
    logs = "".join(record.log for record in stage.records())
    assert "s3cr" not in logs, "a password in the log"


async def no_connection_left(stage: Stage, _: int) -> None:
    """maxclients is reached, and what was open is closed."""
    stage.ask("CONFIG", "SET", "maxclients", "1")
    stage.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await asyncio.sleep(LASTS_S)
    stage.ask("CONFIG", "SET", "maxclients", "1000")


async def idle_closed(stage: Stage, _: int) -> None:
    """Redis closes all connections, again and again."""
    for _ in range(20):
        stage.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await stage.flows(5)


async def replies_lost(stage: Stage, _: int) -> None:
    """Redis has done an append, and nobody hears of it: thirty times."""
    assert stage.proxy
    stage.proxy.mode = "lose"
    wanted = stage.proxy.lost + 30
    await wait_until(lambda: stage.proxy and stage.proxy.lost >= wanted, "replies are lost", 30)
    stage.proxy.mode = "pass"


async def cut(stage: Stage, _: int) -> None:
    """All connections to Redis are cut in the middle of whatever goes on, forty times."""
    assert stage.proxy
    for _ in range(40):
        stage.proxy.cut()
        await asyncio.sleep(stage.chance.uniform(0, 0.1))


async def delayed(stage: Stage, _: int) -> None:
    """Each answer of Redis takes 300 ms longer."""
    assert stage.proxy
    stage.proxy.delay_s = 0.3
    await stage.flows(200)
    stage.proxy.delay_s = 0.0


async def black_hole(stage: Stage, _: int) -> None:
    """Connections to Redis stand, and nothing passes."""
    assert stage.proxy
    stage.proxy.mode = "silent"
    await asyncio.sleep(3)
    stage.proxy.mode = "pass"


async def clock_ahead(stage: Stage, _: int) -> None:
    """The clock of Redis was an hour ahead: what follows continues after the ids of then."""
    numbers = stage.oracle.issue(1)
    ahead = int(time.time() * 1000) + 3_600_000
    stage.ask("XADD", "logs", f"{ahead}-0", "event", json.dumps(event(numbers.start)))
    stage.oracle.oblige(numbers, (ahead, 0))
