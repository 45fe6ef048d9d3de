"""What failed requests and closed connections leave behind does not stay."""

import asyncio
import gc
import platform
import ssl
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from logpipe.fanout.look_back import LookBack
from logpipe.fanout.streaming import StreamResponse
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


@pytest.fixture
def no_automatic_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_automatic_collection")
async def test_what_refers_to_itself_is_freed_by_the_next_look() -> None:
    loop = Loop()
    left = weakref.ref(loop)
    with garbage.settled():
        del loop
        task = asyncio.create_task(garbage.look_now_and_then(0.05, 0.05, sys.maxsize))
        await wait_until(lambda: left() is None, "it is gone")
        task.cancel()


@pytest.mark.usefixtures("no_automatic_collection")
async def test_new_objects_that_refer_to_themselves_do_not_wait_for_a_look() -> None:
    with garbage.settled():
        left = weakref.ref(Loop())
        task = asyncio.create_task(garbage.look_now_and_then(3600, 0.01))
        await wait_until(lambda: left() is None, "it is gone")
        task.cancel()


@pytest.mark.usefixtures("no_automatic_collection")
async def test_what_was_frozen_before_it_was_left_is_freed_as_well() -> None:
    loop = Loop()
    left = weakref.ref(loop)
    with garbage.settled():
        del loop
        gc.collect(0)
        assert left() is not None
        garbage.look(sys.maxsize)
        assert left() is None


@pytest.mark.usefixtures("no_automatic_collection")
async def test_there_is_no_look_where_there_is_too_much() -> None:
    """It would hold up everything for a second."""
    loop = Loop()
    left = weakref.ref(loop)
    with garbage.settled():
        del loop
        garbage.look(sys.getallocatedblocks() // 2)
        assert left() is not None


async def test_a_collection_freezes_what_survives_it() -> None:
    """So that the next one does not look at it again."""
    with garbage.settled():
        kept = [Loop() for _ in range(1000)]
        assert any(each is kept for each in gc.get_objects())
        gc.collect(0)
        assert not any(each is kept for each in gc.get_objects())


async def test_a_process_that_serves_no_longer_collects_as_before() -> None:
    before = gc.get_threshold(), list(gc.callbacks)
    with garbage.settled():
        assert gc.get_threshold() != before[0]
    assert (gc.get_threshold(), list(gc.callbacks)) == before
    assert gc.get_freeze_count() == 0


FREED = """
from logpipe.fanout.look_back import LookBack
from logpipe.fanout.streaming import StreamResponse
from logpipe.serving import garbage
from tests.soak.measures import resident_bytes
import os
with garbage.settled():
    largest = bytes(16 * 2**20)
    del largest
    before = resident_bytes(os.getpid())
    answers = [bytes([1]) * 2**20 for _ in range(60)]
    held = resident_bytes(os.getpid()) - before
    last = [bytes(2_000 + number) for number in range(100)]
    del answers
    print(held, resident_bytes(os.getpid()) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator")
async def test_memory_of_large_answers_goes_back_to_the_kernel() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FREED, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    held, left = map(int, out.split())
    assert held > 50 * 2**20
    assert left < 5 * 2**20


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
    "a search": (request(start="GET /events?q=/rare/ HTTP/1.1"), 0),
    "a stream that looks back": (request(start="GET /subscribe?tail=9&q=/rare/ HTTP/1.1"), 0),
}
"""What connections send, and how many answers they wait for before they are reset."""


def fill(valkey: Valkey) -> None:
    """Makes the stream so long that a search is under way when its client leaves."""
    with valkey.client.pipeline(transaction=False) as pipe:
        for _ in range(20_000):
            pipe.xadd("logs", {"event": EVENT})
        pipe.execute()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("name", CONNECTIONS)
async def test_a_closed_connection_is_not_left_to_the_collector(
    valkey: Valkey, certificate: Path, name: str, encrypted: bool
) -> None:
    """A client could else fill the memory in the minute between two looks at everything."""
    data, answers = CONNECTIONS[name]
    if "rare" in str(data):
        fill(valkey)
    given = {"ssl_certfile": str(certificate), "ssl_keyfile": str(certificate)} if encrypted else {}
    trusting = ssl.create_default_context(cafile=str(certificate)) if encrypted else None
    async with serving(redis_addr=valkey.url, **given) as service:
        port = int(service.url.rpartition(":")[2])
        state = service.server.server_state

        def has_begun() -> bool:
            return all(getattr(each, "cycle", None) for each in state.connections)

        async def connect() -> None:
            reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
            connection = Connection(reader, writer)
            writer.write(data)
            for _ in range(answers):
                await connection.answer()
            await wait_until(has_begun, "it has begun")
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
            kinds = (BoundedProtocol, RequestResponseCycle, Wire, Flow, StreamResponse, LookBack)
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
