"""What an operator sees: who reads, and the metrics of the reading."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
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
from tests.deployments import REDIS, Deployment, RedisNode
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
    value = await known(service, name, **labels)
    assert value is not None, f"{name} {labels}"
    return value


async def known(service: Service, name: str, **labels: str) -> float | None:
    """One sample of /metrics, None while there is none: groups have theirs once they were read."""
    text = (await service.http.get("/metrics")).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    values = [s.value for s in samples if s.name == name and s.labels == labels]
    return float(values[0]) if values else None


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
            "in_flight": None,
            "in_flight_s": None,
        }
        assert (other["delivery"], other["group"], other["lag"]) == ("shared", "workers", 0)
        assert (other["filter"], other["reads"]) == ("", "every event")
    async with serving(redis_addr=valkey.url) as service:
        assert await listed(service) == []


async def test_what_a_member_holds_is_seen_and_for_how_long(valkey: Valkey) -> None:
    query: dict[str, object] = {"delivery": "shared", "group": "g", "ack": "client"}
    async with (
        serving(redis_addr=valkey.url) as service,
        subscribed(service.url, None, max_in_flight=3, **query) as reader,
    ):
        member = (await reader.named("hello"))["member"]
        await service.post([EVENT] * 5)
        events = await reader.until(3)

        async def held_for(seconds: float) -> bool:
            [one] = await listed(service)
            return bool(one["in_flight"] == 3 and one["in_flight_s"] > seconds)

        await wait_until(lambda: held_for(0.1), "it holds three")

        async def measured() -> bool:
            count = await known(service, "logpipe_group_in_flight", group="g")
            seconds = await known(service, "logpipe_group_in_flight_seconds", group="g")
            return count == 3 and seconds is not None and seconds > 0.1

        await wait_until(measured, "the metrics say so")

        async def rest_is_behind() -> bool:
            lag = await known(service, "logpipe_group_lag_events", group="g")
            return lag == 2 and [one["lag"] for one in await listed(service)] == [2]

        await wait_until(rest_is_behind, "what it has no room for is its lag")
        [before] = await listed(service)
        ids = "\n".join(event["id"] for event in events)
        await service.http.post("/ack", params={"group": "g", "member": member}, content=ids)
        await reader.until(2)
        [after] = await listed(service)
        assert after["in_flight"] == 2
        assert after["in_flight_s"] < before["in_flight_s"]


@pytest.mark.skipif(not Path(REDIS).exists(), reason="NOT TESTED: no redis-server is installed")
async def test_a_group_that_has_all_has_no_lag_after_a_failover() -> None:
    """A replica of Redis 7.0 does not know how many entries a group has read."""
    with Deployment.started() as deployment:
        quickly = ("--appendonly", "no", "--repl-diskless-sync-delay", "0")
        old, new = (deployment.node(*quickly, kind=RedisNode) for _ in range(2))
        new.follow(old)
        async with (
            serving(redis_addr=old.url) as service,
            subscribed(service.url, delivery="shared", group="g") as worker,
        ):
            await worker.named("hello")
            await service.post([EVENT] * 30)
            await worker.until(30)
            await wait_until(lambda: new.has_all_of(old), "all is replicated")
        new.ask("REPLICAOF", "NO", "ONE")
        assert new.client.xinfo_groups("logs")[0]["entries-read"] != 30
        async with (
            serving(redis_addr=new.url) as service,
            subscribed(service.url, delivery="shared", group="g") as worker,
        ):
            await worker.named("hello")

            async def without_lag() -> bool:
                lag = await known(service, "logpipe_group_lag_events", group="g")
                return lag == 0 and [one["lag"] for one in await listed(service)] == [0]

            await wait_until(without_lag, "the lag is 0")
            assert new.client.xinfo_groups("logs")[0]["entries-read"] == 30
            await service.post([EVENT] * 3)
            await worker.until(3)
            await wait_until(without_lag, "the lag is 0 again")
        assert new.client.xinfo_groups("logs")[0]["entries-read"] == 33


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
