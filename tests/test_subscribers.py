"""What an operator sees: who reads, and the metrics of the reading."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from logpipe.background import Background
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import EVERYTHING
from logpipe.groups import Groups
from logpipe.groups.shared import SharedSubscription
from logpipe.messages import Start
from logpipe.subscribers import subscribers
from tests.helpers import wait_until
from tests.servers import Service, Valkey, serving, subscribed
from tests.streams import add, address_of, running, stream_at

EVENT = {"source": "api", "message": "m", "level": "INFO"}


async def listed(service: Service, **headers: str) -> list[dict[str, Any]]:
    answer = await service.http.get("/subscribers", headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["subscribers"]
    return found


async def sample(service: Service, name: str, **labels: str) -> float:
    """One sample of /metrics."""
    text = (await service.http.get("/metrics")).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    values = [s.value for s in samples if s.name == name and s.labels == labels]
    assert len(values) == 1, f"{name} {labels} in {text}"
    return float(values[0])


async def test_subscribers_are_listed_with_what_they_read_and_how_far(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url) as service,
        subscribed(service.url, q="level:warning") as picky,
        subscribed(service.url, delivery="shared", group="workers") as worker,
    ):
        await picky.named("hello")
        await worker.named("hello")
        await service.post({**EVENT, "level": "warn"})
        [event] = await picky.until(1)
        await worker.until(1)

        async def caught_up() -> bool:
            return all(one["cursor"] == event["id"] for one in await listed(service))

        await wait_until(caught_up, "both are at the end")
        one, other = await listed(service)
        connected = datetime.fromisoformat(one.pop("connected_at"))
        assert timedelta(0) <= datetime.now(UTC) - connected < timedelta(minutes=1)
        assert one == {
            "client": "127.0.0.1",
            "delivery": "broadcast",
            "group": None,
            "filter": "level:WARN",
            "reads": 'events where level is "WARN"',
            "cursor": event["id"],
            "lag": 0,
            "lag_s": 0,
        }
        assert (other["delivery"], other["group"], other["lag"]) == ("shared", "workers", 0)
        assert (other["filter"], other["reads"]) == ("", "every event")
    async with serving(redis_addr=valkey.url) as service:
        assert await listed(service) == []


async def test_a_slow_subscriber_is_seen_by_its_lag(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, max_message_bytes=200_000) as service,
        subscribed(service.url) as slow,
    ):
        await slow.named("hello")
        for _ in range(10):
            await service.post([{**EVENT, "message": "x" * 150_000}] * 50)

        async def behind() -> bool:
            [one] = await listed(service)
            return bool(one["lag"] and one["lag"] > 10 and one["lag_s"] > 0)

        await wait_until(behind, "its lag is shown")


async def test_how_late_one_is_that_had_nothing_yet_is_not_known(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedSubscription, "lag", 7)
    async with stream_at(address_of(valkey)) as stream, running(stream) as hub:
        await add(stream)
        groups = Groups(
            stream, hub.metrics, Background(),
            consumer="one", pending_idle_ms=1000, batch_count=10, heartbeat_s=15.0,
        )  # fmt: skip
        hub.subscribers.add(HubSubscription(hub, Start(), EVERYTHING))
        groups.subscribers.add(SharedSubscription(groups, "workers", Start(), EVERYTHING))
        waiting, worker = await subscribers(hub, groups)
    assert (waiting.cursor, waiting.lag, waiting.lag_s) == (None, None, None)
    assert (worker.cursor, worker.lag, worker.lag_s) == (None, 7, None)


async def test_the_list_needs_a_read_token_where_there_are_any(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="i") as service:
        assert (await service.http.get("/subscribers")).status_code == 401
        refused = await service.http.get("/subscribers", headers={"Authorization": "Bearer i"})
        assert refused.status_code == 403
        assert await listed(service, Authorization="Bearer r") == []


async def test_a_collector_has_no_list(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="collector") as service:
        assert (await service.http.get("/subscribers")).status_code == 404


async def test_reading_is_measured(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, subscribed(service.url) as reader:
        await reader.named("hello")
        await service.post([EVENT] * 7)
        await reader.until(7)

        async def delivered() -> bool:
            return await sample(service, "logpipe_delivered_events_total") == 7

        await wait_until(delivered, "they are counted")
        assert await sample(service, "logpipe_delivered_bytes_total") > 7 * 50
        assert await sample(service, "logpipe_subscribers", delivery="broadcast") == 1
        assert await sample(service, "logpipe_window_reads_total") >= 1
        assert await sample(service, "logpipe_append_seconds_count") == 1
        assert await sample(service, "logpipe_feed_lag_events") == 0
        assert await sample(service, "logpipe_feed_lag_seconds") == 0
    async with (
        serving(redis_addr=valkey.url) as service,
        subscribed(service.url, since="earliest") as reader,
    ):
        await reader.until(7)
        assert await sample(service, "logpipe_catchup_reads_total") >= 1


async def test_gaps_are_counted_by_reason_with_what_they_told(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await service.post([EVENT] * 9)
    valkey.client.xtrim("logs", maxlen=2, approximate=False)
    async with serving(redis_addr=valkey.url) as service:
        async with subscribed(service.url, {"Last-Event-ID": "0-0"}) as reader:
            assert (await reader.named("gap"))["count"] == 7
        assert await sample(service, "logpipe_gaps_total", reason="trimmed") == 1
        assert await sample(service, "logpipe_gap_events_total", reason="trimmed") == 7


async def test_a_group_is_measured_while_it_is_read(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, pending_idle_ms=300) as service:
        valkey.client.xgroup_create("logs", "workers", "0", mkstream=True)
        await service.post([EVENT] * 5)
        valkey.client.xreadgroup("workers", "dead", {"logs": ">"}, 3)
        async with subscribed(service.url, delivery="shared", group="workers") as worker:
            await worker.until(5)

            async def settled() -> bool:
                claimed = await sample(service, "logpipe_group_claimed_total", group="workers")
                text = (await service.http.get("/metrics")).text
                return claimed == 3 and 'logpipe_group_pending{group="workers"} 0' in text

            await wait_until(settled, "claimed, acknowledged, and seen")
            assert await sample(service, "logpipe_group_lag_events", group="workers") == 0
            assert await sample(service, "logpipe_group_lost_total", group="workers") == 0

        async def forgotten() -> bool:
            return "logpipe_group_pending{" not in (await service.http.get("/metrics")).text

        await wait_until(forgotten, "nobody reads it here")
