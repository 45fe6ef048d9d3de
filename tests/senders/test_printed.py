"""What `logpipe snippets` prints loses nothing: run as it is, through the faults of a collector."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.helpers import wait_until
from tests.senders.printed import PROGRAMS, TOKEN, Write, missing
from tests.servers import UNMEASURED, Process, Valkey, free_port, spawned

EVENTS = 1000
REDIS_AWAY_S = 4.0

KEYED = {"python", "node"}
"""They repeat a batch with its `Idempotency-Key`, which stores it once."""

SOURCES = {
    "python": "app",
    "node": "app",
    "rsyslog": "shop",
    "syslog-ng": "shop",
    "filebeat": "app",
    "docker": "shop_web_1",
}

SENT = (1767225600123, "web-1.example")
"""The time and the host of the lines that are sent to log daemons."""

NAMED = re.compile(r"([\w-]+) event (\d+)")


@pytest.mark.senders
@pytest.mark.timeout(300)
async def test_each_printed_configuration_loses_nothing(own_valkey: Valkey, tmp_path: Path) -> None:
    lacking = missing()
    there = [name for name in PROGRAMS if name not in lacking]
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def collector() -> contextlib.AbstractAsyncContextManager[Process]:
        return spawned(
            tmp_path,
            ROLE="collector,distributor",
            REDIS_ADDR=own_valkey.url,
            PORT=str(port),
            INGEST_TOKENS=TOKEN,
            **UNMEASURED,
        )

    async with contextlib.AsyncExitStack() as stack:
        writes = {}
        for name in there:
            folder = tmp_path / name
            folder.mkdir()
            writes[name] = await stack.enter_async_context(PROGRAMS[name](folder, url))
        await course(stack, collector, own_valkey, writes)
        found = await history(url)
    for name in there:
        counted = Counter(int(each[2]) for each, _ in found if each[1] == name)
        assert sorted(set(range(EVENTS)) - counted.keys()) == [], name
        assert name not in KEYED or max(counted.values()) == 1, name
        _, event = next(each for each in found if each[0][1] == name)
        assert (event["source"], event["level"]) == (SOURCES[name], "INFO")
        if name in ("rsyslog", "syslog-ng"):
            assert (event["ts_unix_ms"], event["metadata"]["host.name"]) == SENT
    if lacking:
        pytest.skip(", ".join(lacking.values()))


async def course(
    stack: contextlib.AsyncExitStack,
    collector: Callable[[], contextlib.AbstractAsyncContextManager[Process]],
    valkey: Valkey,
    writes: dict[str, Write],
) -> None:
    """A thousand events of each program: the collector is not there when it starts, is killed and
    started again on the way, and then Redis is away. Returns when all are stored, or in time."""
    targets = writes.values()
    await written(targets, range(100), 1)
    first = await stack.enter_async_context(collector())
    await each_has(valkey, writes, 1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(written(targets, range(100, 400), 1.5))
        await asyncio.sleep(0.7)
        first.popen.kill()
        await first.exit_status()
    await written(targets, range(400, 500), 1)
    second = await stack.enter_async_context(collector())
    await second.ready(60)
    await written(targets, range(500, 600), 0.5)
    await each_has(valkey, writes, 401)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(written(targets, range(600, 900), 1 + REDIS_AWAY_S))
        await asyncio.sleep(0.5)
        valkey.kill()
        await wait_until(lambda: refuses(second.url), "it answers 503")
        await asyncio.sleep(REDIS_AWAY_S)
        valkey.start()
    await written(targets, range(900, EVENTS), 0.5)
    with contextlib.suppress(AssertionError):
        await each_has(valkey, writes, EVENTS)


async def written(writes: Iterable[Write], numbers: range, seconds: float) -> None:
    """Has the programs log these numbers within that time."""
    for number in numbers:
        for write in writes:
            write(number)
        await asyncio.sleep(seconds / len(numbers))


async def each_has(valkey: Valkey, names: Iterable[str], count: int) -> None:
    """Waits until that many events of each program are stored."""
    seen: dict[str, set[str]] = {name: set() for name in names}
    after = b"-"

    def enough() -> bool:
        nonlocal after
        rows: Any = valkey.client.xrange("logs", after)
        for row_id, row in rows:
            if found := NAMED.search(msgspec.json.decode(row[b"event"])["message"]):
                seen[found[1]].add(found[2])
            after = b"(" + row_id
        return all(len(numbers) >= count for numbers in seen.values())

    await wait_until(enough, f"{count} of each are stored", 60)


async def refuses(url: str) -> bool:
    """Whether the collector says that Redis is away."""
    async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
        event = {"source": "test", "message": "is Redis away?"}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return (await http.post("/ingest", json=event, headers=headers)).status_code == 503


async def history(url: str) -> list[tuple[re.Match[str], dict[str, Any]]]:
    """Each event that a program has logged, and its name and number."""
    found = []
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
        page: dict[str, Any] = {"next": ""}
        while page["next"] is not None:
            query = {"limit": "5000", **({"cursor": page["next"]} if page["next"] else {})}
            page = (await http.get("/events", params=query)).json()
            found += [(NAMED.search(event["message"]), event) for event in page["events"]]
    return [(match, event) for match, event in found if match]
