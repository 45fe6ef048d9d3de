"""The limit of open files: subscribers fit into it with room left for the rest."""

import json
import logging
import re
import resource
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from logpipe.open_files import RESERVED, fitting, room_for
from tests.servers import Valkey, spawned


@pytest.mark.parametrize(
    ("files", "room"),
    [(11_000, 10_000), (10_999, 9_999), (4_000, 3_000), (1_024, 768), (256, 192)],
)
def test_some_files_are_kept_for_what_is_no_subscriber(
    files: int, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert fitting(10_000, files) == room
    told = caplog.messages
    if room == 10_000:
        assert not told
    else:
        (line,) = told
        assert f"{files} files may be open" in line
        assert f"room for {room} subscribers" in line


def limited_to(soft: int, hard: int, script: str) -> str:
    """What a Python of its own prints under a limit of open files."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n{script}"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    return ran.stdout.strip()


SCRIPT = """
from logpipe.open_files import room_for
print(room_for(1_000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_a_process_raises_its_own_limit_as_far_as_it_takes() -> None:
    assert limited_to(100, 4_000, SCRIPT) == f"1000 {1_000 + RESERVED}"


def test_a_process_raises_its_own_limit_as_far_as_it_may() -> None:
    assert limited_to(100, 400, SCRIPT) == "300 400"


def test_a_limit_that_is_high_enough_stays() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert room_for(10) == 10
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
        assert int(room[0]) == hard - min(RESERVED, hard // 4)
        assert "MAX_SUBSCRIBERS" in status
