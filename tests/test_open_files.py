"""The limit of open files: subscribers fit into it with room left for the rest."""

import contextlib
import json
import logging
import os
import re
import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest

from logpipe.serving.open_files import RESERVED, fitting, room_for, warn_of_few
from tests.helpers import wait_until
from tests.servers import Valkey, free_port, spawned, subscribed


@pytest.mark.parametrize(
    ("files", "room"),
    [
        (12_000, (10_000, 11_000)),
        (11_999, (9_999, 10_999)),
        (4_000, (2_000, 3_000)),
        (1_024, (512, 768)),
        (256, (128, 192)),
    ],
)
def test_some_files_are_kept_for_senders_and_some_for_what_is_no_connection(
    files: int, room: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert fitting(10_000, files) == room
    warn_of_few(10_000, fitting(10_000, files))
    told = [line for line in caplog.messages if f"room for {room[0]} subscribers" in line]
    assert len(told) == (room[0] < 10_000)


def limited_to(soft: int, hard: int, script: str) -> str:
    """What a Python of its own prints under a limit of open files."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n{script}"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    return ran.stdout.strip()


SERVE = """
import sys
from logpipe.cli import main
sys.argv = ["logpipe", "serve"]
main()
"""

SCRIPT = """
from logpipe.serving.open_files import room_for
print(*room_for(1_000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_a_process_raises_its_own_limit_as_far_as_it_takes() -> None:
    assert limited_to(100, 4_000, SCRIPT) == "1000 2250 3000"


def test_a_process_raises_its_own_limit_as_far_as_it_may() -> None:
    assert limited_to(100, 400, SCRIPT) == "200 300 400"


def test_a_limit_that_is_high_enough_stays() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert room_for(10).subscribers == 10
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] == resource.RLIM_INFINITY,
    reason="here no process has too few",
)
async def test_a_process_with_few_files_says_so_and_takes_fewer_subscribers(
    valkey: Valkey, tmp_path: Path
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    async with spawned(
        tmp_path,
        REDIS_ADDR=valkey.url,
        ROLE="all",
        MAX_SUBSCRIBERS=str(hard),
        LOG_FORMAT="json",
    ) as process:
        await process.ready()
        lines = [json.loads(line)["message"] for line in process.log.read_text().splitlines()]
        (told,) = (line for line in lines if "ulimit -n" in line)
        room = re.findall(r"room for (\d+) subscribers", told)
        async with httpx.AsyncClient(trust_env=False) as http:
            status = (await http.get(f"{process.url}/status")).text
        assert room
        assert int(room[0]) == hard - min(RESERVED, hard // 2)
        assert "MAX_SUBSCRIBERS" in status


async def test_a_flood_of_connections_ends_no_stream_and_does_not_keep_the_process_busy(
    valkey: Valkey, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "log"
    given = {"PORT": str(port), "ROLE": "all", "REDIS_ADDR": valkey.url}
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n{SERVE}"
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **given}, stdout=out, stderr=out
        )
    try:
        await wait_until(lambda: accepts(port), "it listens", 20)
        async with subscribed(url) as reader, httpx.AsyncClient(trust_env=False) as http:
            await reader.named("hello")
            # Each on a connection of its own: one that is kept may be among those that are closed.
            event = {"source": "a", "message": "m"}
            closing = {"Connection": "close"}
            post = partial(http.post, f"{url}/ingest", json=event, headers=closing)
            assert (await post()).status_code == 202
            with contextlib.ExitStack() as stack:
                flood = [
                    stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    for _ in range(250)
                ]
                await wait_until(lambda: sum(map(is_closed, flood)) >= 90, "some are closed")
                # They are accepted in order; one that comes in the same turn may be refused.
                await wait_until(lambda: accepts(port), "all are accepted")
                assert (await post()).status_code == 202
                assert len(await reader.until(2)) == 2
            await wait_until(lambda: accepts(port), "it accepts again")
            text = (await http.get(f"{url}/metrics")).text
        counted = r'^logpipe_limited_total{limit="idle_connections"} [1-9]'
        assert re.search(counted, text, re.MULTILINE)
        assert log.read_text().count("\n") < 20
    finally:
        process.kill()
        process.wait(10)


def accepts(port: int) -> bool:
    """Whether a connection is answered."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=2) as connection,
    ):
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection.recv(1) != b""
    return False


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end has closed it."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
