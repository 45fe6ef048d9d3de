"""What failed requests and closed connections leave behind does not stay."""

import asyncio
import gc
import weakref

import pytest

from logpipe.serving import garbage
from tests.helpers import wait_until
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
