"""ACK_REPLICAS: what is acknowledged is on so many replicas."""

import signal
from collections.abc import Iterator

import pytest

from logpipe.stream.replicas import Replicas
from tests.deployments import Replicated
from tests.helpers import fair_time, wait_until
from tests.servers import Service, serving
from tests.test_redis_faults import ANSWERED_S, EVENT, health, ready, said, taken, unavailable


@pytest.fixture
def pair() -> Iterator[Replicated]:
    """A primary and a replica, without Sentinels."""
    with Replicated.started(sentinels=0) as deployment:
        yield deployment


async def refused(service: Service, key: str | None = None) -> str:
    """The detail of the 503, in time."""
    started = fair_time()
    answer = await service.post(EVENT, **({"Idempotency_Key": key} if key else {}))
    assert fair_time() - started < ANSWERED_S
    assert (answer.status_code, answer.json()["redis"]) == (503, "replicas")
    assert int(answer.headers["retry-after"]) >= 1
    return str(answer.json()["detail"])


async def test_an_append_that_its_replica_has_not_confirmed_is_not_acknowledged(
    pair: Replicated,
) -> None:
    """Nor is its repetition, until the replica has it; then it is there once."""
    primary, replica = pair.data
    async with serving(redis_addr=primary.url, role="collector", ack_replicas=1) as service:
        await ready(service)
        before = primary.client.xlen("logs")
        replica.signal(signal.SIGSTOP)
        try:
            assert "0 of 1 replicas (ACK_REPLICAS) have confirmed in time" in await refused(service)
            assert "have confirmed in time" in await refused(service, "k")
            assert primary.client.xlen("logs") == before + 2  # may be lost, so not acknowledged
            primary.ask("CLIENT", "KILL", "TYPE", "normal")  # a new connection has written nothing
            assert "Idempotency-Key" in await refused(service, "k")
            assert primary.client.xlen("logs") == before + 2
            ttl = [
                primary.client.ttl(key) for key in primary.client.scan_iter("{logs}:once:*[0-9a-f]")
            ]
            assert len(ttl) == 1
            assert 580 <= int(ttl[0]) <= 600
        finally:
            replica.signal(signal.SIGCONT)

        async def acknowledged() -> bool:
            return (await service.post(EVENT, Idempotency_Key="k")).status_code == 202

        await wait_until(acknowledged, "the repetition is acknowledged")
        assert replica.client.xlen("logs") == primary.client.xlen("logs") == before + 2


async def test_without_replicas_nothing_is_taken_and_that_is_said(pair: Replicated) -> None:
    """And once they are back, it is."""
    primary, replica = pair.data
    async with (
        serving(redis_addr=primary.url, role="collector", ack_replicas=1) as collector,
        serving(redis_addr=primary.url, role="distributor", ack_replicas=1) as distributor,
    ):
        await ready(collector)
        replica.kill()
        await wait_until(said(collector, "replicas"), "it is noticed")
        before = primary.client.xlen("logs")
        started = fair_time()
        await unavailable(collector, "replicas")
        assert fair_time() - started < 0.5
        assert primary.client.xlen("logs") == before
        assert (await health(collector))["code"] == 503
        await wait_until(said(distributor, "replicas"), "the distributor knows it as well")
        assert (await health(distributor))["code"] == 200
        replica.start()
        await wait_until(taken(collector), "it takes events again")


async def test_control_without_ack_replicas_what_no_replica_has_is_acknowledged(
    pair: Replicated,
) -> None:
    primary, replica = pair.data
    async with serving(redis_addr=primary.url, role="collector") as service:
        await ready(service)
        replica.signal(signal.SIGSTOP)
        try:
            assert (await service.post(EVENT)).status_code == 202
        finally:
            replica.signal(signal.SIGCONT)


def test_a_replica_that_is_silent_or_still_loading_is_not_counted_on() -> None:
    states = [("online", 1), ("online", 4), ("wait_bgsave", 0)]
    info = {f"slave{i}": {"state": state, "lag": lag} for i, (state, lag) in enumerate(states)}
    info["connected_slaves"] = 3  # type: ignore[assignment]
    assert Replicas(1).missing(info) is None
    assert Replicas(2).missing(info) == "1 of 2 replicas (ACK_REPLICAS) are in sync"
    assert Replicas(1).missing({}) == "0 of 1 replicas (ACK_REPLICAS) are in sync"
