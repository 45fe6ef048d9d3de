"""Bulk requests while Redis is unavailable: each sender has the answer that it repeats."""

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from logpipe.collector.receivers.elasticsearch import parse
from logpipe.collector.receivers.intake import HELD_S
from logpipe.collector.receivers.protocol import Request
from logpipe.problems import Problem, Unavailable
from logpipe.stream import Appended
from tests.collector.receivers.samples import TOKEN, collecting, stored
from tests.collector.receivers.test_elasticsearch import BULK, bulk, ready
from tests.collector.test_limits import uploading
from tests.helpers import fair_time, wait_until
from tests.raw import Answer, connected
from tests.servers import Service, Valkey, serving
from tests.test_limits import limited
from tests.test_subscribers import sample

CAPTURES = Path(__file__).parents[2] / "senders/captures"
JAVASCRIPT = "es=8.19.2,js=20.20.2,t=8.11.0,hc=20.20.2,h=bp"
PYTHON = "es=9.5.1,py=3.11.7,t=9.4.2,ur=2.8.0,h=bp"
TWO = bulk({"index": {"_id": "1"}}, {"message": "one"}, {"create": {}}, {"message": "two"})
AWAY = Unavailable("away", "no confirmation in time")
FAILED = {"protocol": "elasticsearch", "outcome": "failed"}
STORED = Appended("1-0", "1-0", receipt=b"", repeated=False)


async def post(service: Service, body: bytes, meta: str = "", **headers: str) -> httpx.Response:
    given = {"Content-Type": "application/x-ndjson", "X-Elastic-Client-Meta": meta, **headers}
    return await service.http.post(BULK, content=body, headers=given)


def away() -> Any:
    return serving(redis_addr="unix:///nowhere/v.sock", role="collector")


def statuses(body: bytes) -> list[int]:
    return [item["status"] for each in json.loads(body)["items"] for item in each.values()]


async def test_who_is_not_known_has_the_status_503() -> None:
    """As have official clients without their helper, and helpers that repeat nothing."""
    metas = "", "nonsense", "h=bp", "es=8,go=1,h=bp", JAVASCRIPT.removesuffix(",h=bp"), "js=1,h=s"
    async with away() as service:
        for answer in await asyncio.gather(*(post(service, TWO, meta) for meta in metas)):
            assert answer.status_code == answer.json()["status"] == 503
            assert answer.headers["retry-after"]


async def test_pythons_helper_has_the_status_429() -> None:
    async with away() as service:
        answer = await post(service, TWO, PYTHON)
        assert answer.status_code == answer.json()["status"] == 429
        assert answer.json()["error"]["type"] == "es_rejected_execution_exception"
        assert answer.headers["retry-after"]


async def test_javascripts_helper_has_the_status_429_of_each_item() -> None:
    body = TWO + b'{"create":{}}\nbroken\n{"delete":{}}\n'
    async with away() as service:
        answer = await post(service, body, JAVASCRIPT)
        assert answer.status_code == 200
        assert b'"errors":true' in answer.content
        assert statuses(answer.content) == [429, 429, 400, 400]
        first = answer.json()["items"][0]["index"]
        assert first["error"]["type"] == "es_rejected_execution_exception"
        assert first["_id"] == "1"


async def test_a_full_redis_is_as_one_that_is_away(own_valkey: Valkey) -> None:
    async with collecting(own_valkey) as service:
        await ready(service)
        own_valkey.client.config_set("maxmemory", "1")
        whole, items = await asyncio.gather(*(post(service, TWO, m) for m in ("", JAVASCRIPT)))
        assert (whole.status_code, statuses(items.content)) == (503, [429, 429])
        own_valkey.client.config_set("maxmemory", "0")
        assert not stored(own_valkey)


async def test_more_than_wait_together_are_not_all_tried() -> None:
    async with away() as service:
        lines = [part for n in range(2_500) for part in ({"index": {"_id": str(n)}}, {})]
        assert (await post(service, bulk(*lines))).status_code == 503


def answered(meta: str, *outcomes: Appended | Problem) -> Any:
    """The answer to a request of two documents of which this has become."""
    batch = parse(Request({"x-elastic-client-meta": meta}, body=TWO))
    assert len(list(batch.items)) == 2
    return batch.answer(outcomes)


def test_a_request_stored_in_part_is_repeated_by_all() -> None:
    """Some versions of Fluent Bit take an answer for success where one of its items is."""
    assert statuses(answered(JAVASCRIPT, STORED, AWAY).body) == [201, 429]
    for meta, status in (PYTHON, 429), ("", 503):
        with pytest.raises(Problem) as caught:
            answered(meta, STORED, AWAY)
        assert caught.value.status == status
        assert caught.value.headers["Retry-After"]


@pytest.mark.parametrize("meta", ["", PYTHON, JAVASCRIPT])
def test_what_is_wrong_with_an_item_is_never_repeated(meta: str) -> None:
    assert statuses(answered(meta, Problem(413, "too large"), STORED).body) == [413, 201]
    assert statuses(answered(meta, *[Problem(400, "bad")] * 2).body) == [400, 400]


RECORDED = {
    "bunyan-elasticsearch-bulk": 503,
    "fluent-bit-es-generate_id": 503,
    "pino-elasticsearch": 200,
    "winston-elasticsearch": 503,
}
"""By the name of the recording, the status while Redis is away."""


async def replayed(service: Service, name: str) -> Answer:
    """The answer to a recorded request, sent byte for byte."""
    capture = json.loads((CAPTURES / f"{name}.json").read_text())
    head = [capture["request_line"], *(f"{k}: {v}" for k, v in capture["headers"].items())]
    async with connected(service.url) as connection:
        body = base64.b64decode(capture["body_base64"])
        await connection.send("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        return await connection.answer()


async def test_recorded_requests_are_stored_when_they_are_repeated(own_valkey: Valkey) -> None:
    async with serving(redis_addr=own_valkey.url, role="collector", ingest_tokens=TOKEN) as service:
        own_valkey.kill()
        for name, answer in zip(
            RECORDED, await asyncio.gather(*(replayed(service, each) for each in RECORDED)),
            strict=True,
        ):  # fmt: skip
            assert answer.status == RECORDED[name], name
            if answer.status == 200:
                assert b'"errors":true' in answer.body
                assert statuses(answer.body) == [429, 429]
            else:
                assert answer.headers["retry-after"]
        own_valkey.start()
        await ready(service)
        assert not stored(own_valkey)
        for name in RECORDED:
            answer = await replayed(service, name)
            assert (answer.status, statuses(answer.body)) == (200, [201, 201]), name
            assert b'"errors":false,"items":[' in answer.body
        assert len(stored(own_valkey)) == 2 * len(RECORDED)


async def test_a_refusal_waits_for_redis_within_its_time(own_valkey: Valkey) -> None:
    async with collecting(own_valkey) as service:
        await ready(service)
        own_valkey.kill()
        began, fair = time.monotonic(), fair_time()
        assert (await post(service, TWO)).status_code == 503
        assert time.monotonic() - began > HELD_S - 0.1
        assert fair_time() - fair < 2 + 1
        refused = asyncio.create_task(post(service, TWO))

        async def is_refused() -> bool:
            return await sample(service, "logpipe_receiver_events_total", **FAILED) == 4

        await wait_until(is_refused, "Redis has not taken the second one")
        assert not refused.done()
        own_valkey.start()
        await ready(service)
        assert (await asyncio.wait_for(refused, 0.5)).status_code == 503
        assert (await post(service, TWO)).status_code == 200


async def test_what_has_no_room_is_counted_once_a_request(valkey: Valkey) -> None:
    """Small documents grow by their index: they find no room beside a body that is coming."""
    many = bulk(*[{"index": {}}, {}] * 4_000)
    async with (
        collecting(valkey, max_inflight_bytes=1 << 20) as service,
        uploading(service, 700_001, b" " * 700_000),
    ):
        answer = await post(service, many, JAVASCRIPT)
        assert set(statuses(answer.content)) == {429}
        assert await limited(service, "inflight") == 1
        assert await sample(service, "logpipe_receiver_events_total", **FAILED) == 4_000
        assert (await post(service, many)).status_code == 503
        assert await limited(service, "inflight") == 2


async def test_a_document_that_is_too_large_is_counted_once(valkey: Valkey) -> None:
    async with collecting(valkey, max_message_bytes=200) as service:
        answer = await post(service, bulk({"index": {"_index": "i" * 300}}, {"message": "m"}))
        assert statuses(answer.content) == [413]
        assert await limited(service, "event") == 1


async def test_the_clusters_health_is_that_of_redis(own_valkey: Valkey) -> None:
    """winston-elasticsearch asks for it after each failure; where it is good, it sends at once."""
    async with collecting(own_valkey) as service:
        await ready(service)
        assert (await service.http.get("/elasticsearch/_cluster/health")).status_code == 200
        own_valkey.kill()
        assert (await post(service, TWO)).status_code == 503
        answer = await service.http.get("/elasticsearch/_cluster/health?wait_for_status=yellow")
        assert answer.status_code == answer.json()["status"] == 503
        assert answer.headers["retry-after"]
        assert (await service.http.get("/elasticsearch/")).status_code == 200
