"""How late the event loop is."""

import asyncio
import time
from contextlib import suppress

from logpipe.loop_lag import measure_lag
from logpipe.metrics import Metrics
from tests.helpers import wait_until
from tests.servers import Valkey, serving

NAME = "logpipe_event_loop_lag_seconds"


async def test_what_holds_the_loop_up_is_seen() -> None:
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    task = asyncio.create_task(measure_lag(metrics))
    await wait_until(lambda: value(f"{NAME}_count"), "it measures")
    before = value(f"{NAME}_bucket", {"le": "0.25"}) or 0
    count = value(f"{NAME}_count") or 0
    time.sleep(0.5)  # longer than a look may be away by more than a bucket
    await wait_until(lambda: (value(f"{NAME}_count") or 0) > count, "it measures again")
    late = (value(f"{NAME}_count") or 0) - (value(f"{NAME}_bucket", {"le": "0.25"}) or 0)
    assert late >= 1
    assert (value(f"{NAME}_bucket", {"le": "0.25"}) or 0) >= before
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_every_process_measures_it(valkey: Valkey) -> None:
    """A page that needs no Redis as well."""
    for given in ({"role": "ui"}, {"role": "collector", "redis_addr": valkey.url}):
        async with serving(**given) as service:

            async def measured() -> bool:
                return f"{NAME}_count 0.0" not in (await service.http.get("/metrics")).text

            await wait_until(measured, "it measures")
            assert service.process.background.failure is None
