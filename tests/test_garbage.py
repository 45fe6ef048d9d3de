"""What failed requests and closed connections leave behind does not stay."""

import asyncio
import gc
import platform
import ssl
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import trustme
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from logpipe.serving import garbage
from logpipe.serving.protocol import BoundedProtocol, Flow
from logpipe.wire import Wire
from tests.helpers import wait_until
from tests.raw import Connection, request
from tests.servers import Valkey, serving


class Loop:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


async def test_what_refers_to_itself_is_gone_within_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though hardly anything is allocated, so that no threshold is ever met."""
    monkeypatch.setattr(garbage, "LOOK_S", 0.05)
    thresholds = gc.get_threshold()
    gc.disable()
    try:
        left = weakref.ref(Loop())
        assert left() is not None
        task = asyncio.create_task(garbage.look_now_and_then())
        await wait_until(lambda: left() is None, "it is gone")
        task.cancel()
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ingest", b'{"source":"a","message":"b"}'),
        ("/ingest/json", b'{"source":"a","message":"b"}'),
        ("/elasticsearch/_bulk", b'{"index":{}}\n{"message":"b"}\n'),
    ],
)
async def test_a_request_that_fails_leaves_no_cycle_behind(
    own_valkey: Valkey, path: str, body: bytes
) -> None:
    """It would keep its events until the collector looks at everything."""
    async with serving(redis_addr=own_valkey.url, role="collector") as service:
        assert (await service.http.post(path, content=body)).is_success
        own_valkey.kill()
        await service.http.post(path, content=body)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(5):  # other connections meet the loss, too, each at a time of its own
                gc.garbage.clear()
                assert (await service.http.post(path, content=body)).status_code == 503
                gc.collect()
                left = [found for found in gc.garbage if isinstance(found, Exception)]
                if not left:
                    break
            assert not left
        finally:
            gc.set_debug(0)
            gc.garbage.clear()


EVENT = b'{"source":"a","message":"b"}'
STREAM = request(start="GET /subscribe HTTP/1.1")
NOTHING = request(start="GET /nothing HTTP/1.1")
CONNECTIONS = {
    "an event": (request(EVENT), 1),
    "half an event": (request(EVENT)[:-3], 0),
    "a page": (request(start="GET /openapi.json HTTP/1.1"), 1),
    "another protocol": (request(EVENT, "Connection: Upgrade", "Upgrade: h2c"), 1),
    "no request": (NOTHING + b"\xff\r\n\r\n", 2),
    "no host": (NOTHING + b"GET / HTTP/1.1\r\n\r\n", 2),
    "many requests": (request(EVENT) * 40 + NOTHING * 40, 80),
    "many requests, none waited for": (request(start="GET /openapi.json HTTP/1.1") * 80, 0),
    "a stream": (STREAM, 0),
    "a stream and many requests": (STREAM + NOTHING * 80, 0),
}
"""What connections send, and how many answers they wait for before they are reset."""


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("name", CONNECTIONS)
async def test_a_closed_connection_is_not_left_to_the_collector(
    valkey: Valkey, certificate: Path, name: str, encrypted: bool
) -> None:
    """A client could else fill the memory in the minute between two looks at everything."""
    data, answers = CONNECTIONS[name]
    given = {"ssl_certfile": str(certificate), "ssl_keyfile": str(certificate)} if encrypted else {}
    trusting = ssl.create_default_context(cafile=str(certificate)) if encrypted else None
    async with serving(redis_addr=valkey.url, **given) as service:
        port = int(service.url.rpartition(":")[2])
        state = service.server.server_state

        async def connect() -> None:
            reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
            connection = Connection(reader, writer)
            writer.write(data)
            for _ in range(answers):
                await connection.answer()
            await wait_until(lambda: all(each.cycle for each in state.connections), "it has begun")  # type: ignore[union-attr]
            writer.transport.abort()
            await wait_until(lambda: not (state.tasks or state.connections), "it has gone")
            await asyncio.sleep(0)  # what ended it still has references here and there

        await connect()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                await connect()
            gc.collect()
            kinds = (BoundedProtocol, RequestResponseCycle, Wire, Flow)
            assert not [found for found in gc.garbage if isinstance(found, kinds)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost, with its authority, in one file."""
    path = tmp_path_factory.mktemp("tls") / "pem"
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    parts = (issued.private_key_pem, *issued.cert_chain_pems, authority.cert_pem)
    path.write_bytes(b"".join(part.bytes() for part in parts))
    return path


HELD = """
import resource, sys
from logpipe.serving import garbage
if sys.argv[1] == "returned":
    garbage.return_large_blocks()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before = resident()
freed = bytearray(30 << 20)
del freed
blocks = [bytearray(2 << 20) for _ in range(50)]
behind = bytearray(100_000)
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize(("how", "least", "most"), [("returned", 0, 20), ("kept", 80, 200)])
def test_large_freed_blocks_go_back_to_the_system(how: str, least: int, most: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", HELD, how], capture_output=True, text=True, check=True, timeout=60
    )
    assert least <= int(run.stdout) / 1e6 <= most
