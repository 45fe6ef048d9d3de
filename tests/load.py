"""Events sent under faults, and what a subscriber makes of them."""

import contextlib
from collections.abc import AsyncIterator

from tests.helpers import fair_time, wait_until
from tests.promise import untold
from tests.servers import Service, serving
from tests.test_redis_faults import BOTH, Delivered, Load, following, ready


class Watched(Load):
    """A load that knows the longest time without an acknowledgement."""

    outage = 0.0

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._last = fair_time()

    async def send_one(self) -> None:
        before = len(self.acknowledged)
        await super().send_one()
        if len(self.acknowledged) > before:
            now = fair_time()
            self.outage, self._last = max(self.outage, now - self._last), now


async def settled(load: Load, delivered: Delivered) -> None:
    """Everything acknowledged has arrived or is told as missing, in order and once."""
    await wait_until(
        lambda: delivered.ids and delivered.ids[-1] >= max(load.acknowledged), "the newest came"
    )
    missing = sorted(untold(load.acknowledged, delivered.ids, delivered.gaps))
    assert missing == [], f"{missing} of {len(load.acknowledged)}, gaps {delivered.gaps}"
    received = {id_: load.acknowledged[id_] for id_ in delivered.ids if id_ in load.acknowledged}
    delivered.check(received)


@contextlib.asynccontextmanager
async def loaded(url: str, **more: object) -> AsyncIterator[tuple[Service, Watched, Delivered]]:
    """logpipe at this Redis, under load, with a subscriber that has been told all at the end."""
    async with (
        serving(redis_addr=url, role=BOTH, **more) as service,
        following(service) as delivered,
    ):
        await ready(service)
        load = Watched(service)
        async with load.running():
            await load.more(100)
            yield service, load, delivered
        await settled(load, delivered)
