"""Another user of the machine and the embedded engine, tried by being another user."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from logpipe.engine import Engine

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")

NOBODY = 65534

# It drops its rights when it has all that it imports: where Python is, others may not look.
TRY = """
import json, os, socket, sys
user, path = int(sys.argv[1]), sys.argv[2]
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
def tried(use):
    try:
        use()
        return "allowed"
    except OSError as error:
        return error.__class__.__name__
folder = os.path.dirname(path)
print(json.dumps({
    "folder": tried(lambda: os.stat(folder)),
    "socket": tried(lambda: socket.socket(socket.AF_UNIX).connect(path)),
    "log": tried(lambda: open(os.path.join(folder, "engine.log"))),
    "lock": tried(lambda: open(os.path.join(folder, "engine.lock"))),
    "data": tried(lambda: os.listdir(os.path.join(folder, "appendonlydir"))),
    "write": tried(lambda: open(os.path.join(folder, "x"), "w")),
}))
"""


def tried_as(user: int, socket: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(user), str(socket)],
        env={"PATH": os.defpath},
        capture_output=True,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """In a folder that everybody knows and may enter: the worst that a user may choose."""
    place = Path(tempfile.mkdtemp(prefix="logpipe-test-"))
    place.chmod(0o755)
    folder = place / "data"
    folder.mkdir(mode=0o755)
    started = Engine(folder)
    try:
        await started.start()
        yield started
    finally:
        await started.stop()
        shutil.rmtree(place)


async def test_another_user_can_neither_connect_nor_read_nor_write(engine: Engine) -> None:
    found = tried_as(NOBODY, engine.socket)
    assert found.pop("folder") == "allowed"  # so it is not the folder that keeps others out
    assert set(found.values()) == {"PermissionError"}
    assert set(tried_as(0, engine.socket).values()) == {"allowed"}


async def test_a_folder_that_logpipe_makes_cannot_even_be_entered(engine: Engine) -> None:
    own = Engine(engine.socket.parent / "own")
    await own.start()
    try:
        found = tried_as(NOBODY, own.socket)
        assert found.pop("folder") == "allowed"  # that it is there may be seen
        assert set(found.values()) == {"PermissionError"}
        assert own.socket.parent.stat().st_mode & 0o777 == 0o700
    finally:
        await own.stop()


async def test_it_listens_on_no_port(engine: Engine) -> None:
    with redis.Redis(unix_socket_path=str(engine.socket)) as client:
        assert [int(port) for port in client.config_get("port").values()] == [0]
