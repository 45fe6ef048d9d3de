"""Idempotency keys as senders see them: whose they are, what another body means, their bound."""

import asyncio
import base64
import gzip
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from logpipe.collector.appender import NO_ROOM_S, Appender
from logpipe.collector.inflight import Inflight
from logpipe.collector.ingest import MAX_REPORTED, scope_of
from logpipe.metrics import Metrics
from logpipe.problems import Problem
from logpipe.stream import Append, KeyLimits
from logpipe.stream.once import VALUE_BYTES
from logpipe.stream.scripts import companion_key
from tests.collector.receivers.samples import (
    SAMPLES,
    TOKEN,
    Sample,
    basic,
    collecting,
    counted,
    otlp_export,
    stored,
    texts,
)
from tests.collector.receivers.test_syslog_tcp import listener_of, sent
from tests.helpers import retry_after, wait_until
from tests.servers import Service, Valkey
from tests.streams import address_of, events, once, stream_at
from tests.test_limits import limited

ONE = {"source": "a", "message": "one"}
TWO = {"source": "a", "message": "two"}
BAD = {"source": "a"}
NDJSON = "application/x-ndjson"


def lines(*each: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in each)


def bulk(verb: str, id_: str, document: Any) -> list[Any]:
    return [{verb: {"_index": "i", "_id": id_}}, document]


async def posted(service: Service, *parts: Any, **headers: str) -> list[tuple[int, Any]]:
    """The status of each item of a bulk request, and the type of its error."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await service.http.post(
        "/elasticsearch/_bulk", content=lines(*parts), headers={"Content-Type": NDJSON, **names}
    )
    assert answer.status_code == 200, answer.text
    found = [item for each in answer.json()["items"] for item in each.values()]
    assert answer.json()["errors"] is any("error" in item for item in found)
    return [(item["status"], item.get("error", {}).get("type")) for item in found]


# -- another body ----------------------------------------------------------------------------------


async def test_a_key_with_another_body_is_refused_and_says_so(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        await service.post(ONE, idempotency_key="k")
        for body in (TWO, [ONE], [ONE, TWO]):
            answer = await service.post(body, idempotency_key="k")
            assert answer.status_code == 422
            assert answer.headers["content-type"] == "application/problem+json"
            assert "Idempotency-Key" in answer.json()["detail"]
            assert "another body" in answer.json()["detail"]
        assert texts(valkey) == ("one",)
        assert (await service.post(ONE, idempotency_key="k")).status_code == 202


async def test_a_body_is_the_same_however_it_is_packed(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        body = json.dumps(ONE).encode()
        first = await service.post(body, idempotency_key="k")
        packed = {"Content_Encoding": "gzip", "Idempotency_Key": "k"}
        for level in (1, 9):
            again = await service.post(gzip.compress(body, level), **packed)
            assert again.json() == first.json()
        other = gzip.compress(json.dumps(TWO).encode())
        assert (await service.post(other, **packed)).status_code == 422
        assert texts(valkey) == ("one",)


OTHERS: dict[str, bytes] = {
    "otlp protobuf": otlp_export("other").SerializeToString(),
    "loki json": b'{"streams":[{"stream":{},"values":[["1","other"]]}]}',
    "elasticsearch": b'{"create":{}}\n{"message":"other"}\n',
    "splunk": b'{"event":"other"}',
    "gelf": b'{"short_message":"other"}',
    "firehose": json.dumps({"records": [{"data": base64.b64encode(b"x").decode()}]}).encode(),
    "datadog": b'[{"message":"other"}]',
    "datadog v1": b'[{"message":"other"}]',
    "json": b'[{"msg":"other"}]',
    "ndjson": b'{"msg":"other"}\n',
    "splunk raw": b"other\n",
    "syslog": b"other\n",
}
FORMS: dict[str, str] = {
    "elasticsearch": "illegal_argument_exception",
    "splunk": '"code":6',
    "splunk-raw": '"code":6',
    "datadog": '"errors":[',
    "datadog-v1": '"errors":[',
    "firehose": '"errorMessage":',
}


@pytest.mark.parametrize("name", OTHERS)
async def test_each_protocol_refuses_another_body_in_its_form(valkey: Valkey, name: str) -> None:
    sample = SAMPLES[name]
    async with collecting(valkey) as service:
        await sample.sent(service, idempotency_key="k")
        answer = await sample._replace(body=OTHERS[name]).sent(service, idempotency_key="k")
        assert answer.status_code == (400 if sample.protocol == "loki" else 422)
        assert "came with another body" in answer.text
        assert FORMS.get(sample.protocol, "") in answer.text
        assert texts(valkey) == sample.texts


def firehose(data: bytes, timestamp: int) -> bytes:
    record = {"data": base64.b64encode(data).decode()}
    return json.dumps({"requestId": "r", "timestamp": timestamp, "records": [record]}).encode()


FRAMES: dict[str, tuple[Sample, bytes, bytes, bytes]] = {
    "logplex": (
        SAMPLES["logplex"]._replace(headers={"Logplex-Frame-Id": "f"}),
        counted(b"<14>1 - h a p - one\n"),
        counted(b"<14>1 - h a p - one\n"),
        counted(b"<14>1 - h a p - two\n"),
    ),
    "firehose": (
        SAMPLES["firehose"]._replace(headers={"X-Amz-Firehose-Request-Id": "r"}),
        firehose(b"one", 1),
        firehose(b"one", 2),
        firehose(b"two", 3),
    ),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_an_id_of_the_protocol_with_another_body_is_stored(valkey: Valkey, name: str) -> None:
    sample, first, again, other = FRAMES[name]
    async with collecting(valkey) as service:
        for body in (first, again, other, again, other):
            answer = await sample._replace(body=body).sent(service)
            assert answer.status_code == sample.status
        assert texts(valkey) == ("one", "two")


# -- whose a key is --------------------------------------------------------------------------------


async def test_keys_of_two_tokens_do_not_meet(valkey: Valkey) -> None:
    async with collecting(valkey, ingest_tokens="red,blue") as service:
        ids = []
        for token in ("red", "blue", "red", "blue"):
            answer = await service.post(ONE, authorization=f"Bearer {token}", idempotency_key="k")
            ids.append(answer.json()["id"])
        assert ids[:2] == ids[2:]
        assert texts(valkey) == ("one", "one")
        one = await service.post(TWO, authorization="Bearer red", idempotency_key="l")
        other = await service.post(ONE, authorization="Bearer blue", idempotency_key="l")
        assert (one.status_code, other.status_code) == (202, 202)


async def test_ids_of_documents_of_two_tokens_do_not_meet(valkey: Valkey) -> None:
    async with collecting(valkey, ingest_tokens=f"{TOKEN},other") as service:
        for token in (TOKEN, "other"):
            headers = basic("elastic", token)
            for status in (201, 409):
                document = bulk("create", "1", {"message": token})
                (item,) = await posted(service, *document, **headers)
                assert item[0] == status
        assert texts(valkey) == (TOKEN, "other")


async def test_a_request_without_tokens_in_force_has_none(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        await service.post(ONE, authorization="Bearer red", idempotency_key="k")
        await service.post(ONE, idempotency_key="k")
        assert texts(valkey) == ("one",)


async def test_a_token_is_not_readable_in_redis(valkey: Valkey) -> None:
    async with collecting(valkey, ingest_tokens=TOKEN) as service:
        headers = {"authorization": f"Bearer {TOKEN}", "idempotency_key": "k"}
        await service.post(ONE, **headers)
        keys: Any = valkey.client.keys("*")
        assert companion_key("logs", "once", scope_of("ingest", TOKEN) + "k").encode() in keys
        for key in keys:
            assert TOKEN.encode() not in key + (valkey.client.dump(key) or b"")


# -- the answer to a repetition --------------------------------------------------------------------


async def test_a_receipt_is_small_however_much_was_rejected(valkey: Valkey) -> None:
    body = lines(ONE, *[BAD] * 1000)
    headers = {"Content_Type": NDJSON, "Content_Encoding": "gzip", "Idempotency_Key": "k"}
    async with collecting(valkey) as service:
        first = (await service.post(gzip.compress(body), **headers)).json()
        (key,) = valkey.client.keys("*once:????????????????????????????????????????*")
        assert valkey.client.strlen(key) <= VALUE_BYTES
        again = await service.post(gzip.compress(body), **headers)
        assert again.status_code == 202
        cut = again.json()
        assert (len(first["errors"]), "errors_omitted" in first) == (MAX_REPORTED, False)
        assert 5 < len(cut["errors"]) < 30
        assert cut["errors"] == first["errors"][: len(cut["errors"])]
        assert cut.pop("errors_omitted") == 1000 - len(cut.pop("errors"))
        assert cut == {name: first[name] for name in first if name != "errors"}
        assert texts(valkey) == ("one",)


async def test_errors_that_are_not_listed_are_counted(valkey: Valkey) -> None:
    native = [ONE, *[BAD] * (MAX_REPORTED + 1)]
    large = [{"msg": "one", "source": "a"}, *[{"source": "b" * 200}] * (MAX_REPORTED + 1)]
    async with collecting(valkey, max_message_bytes=150) as service:
        for path, body in (("/ingest", native), ("/ingest/json", large)):
            answered = (await service.http.post(path, json=body)).json()
            assert (answered["accepted"], answered["rejected"]) == (1, MAX_REPORTED + 1)
            assert (len(answered["errors"]), answered["errors_omitted"]) == (MAX_REPORTED, 1)


async def test_few_errors_come_again_as_they_were(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for _ in range(2):
            answer = await service.post([ONE, *[BAD] * 5], idempotency_key="k")
            assert [error["index"] for error in answer.json()["errors"]] == [1, 2, 3, 4, 5]
            assert "errors_omitted" not in answer.json()


# -- documents with an id --------------------------------------------------------------------------


async def test_a_document_to_create_conflicts_with_a_known_one(valkey: Valkey) -> None:
    conflict = (409, "version_conflict_engine_exception")
    async with collecting(valkey) as service:
        one, two = bulk("create", "1", {"message": "one"}), bulk("create", "1", {"message": "two"})
        new = bulk("create", "2", {"message": "new"})
        assert await posted(service, *one) == [(201, None)]
        assert await posted(service, *one, *two, *new) == [conflict, conflict, (201, None)]
        assert await posted(service, *bulk("index", "3", {"message": "three"})) == [(201, None)]
        assert await posted(service, *bulk("create", "3", {"message": "3"})) == [conflict]
        assert texts(valkey) == ("one", "new", "three")


async def test_a_document_to_index_is_stored_once_by_its_content(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        batch = [
            *bulk("index", "1", {"message": "one"}),
            *bulk("index", "1", {"message": "two"}),
            *bulk("index", "1", {"message": "one"}),
        ]
        for _ in range(2):
            assert await posted(service, *batch) == [(201, None)] * 3
        assert texts(valkey) == ("one", "two")


async def test_another_batch_under_a_key_stores_no_document(valkey: Valkey) -> None:
    """Of those without an id, which the key is for, also where others have one."""
    async with collecting(valkey) as service:
        free = [{"index": {}}, {"message": "one"}]
        own = bulk("index", "1", {"message": "own"})
        for _ in range(2):
            answered = await posted(service, *free, *own, Idempotency_Key="k")
            assert answered == [(201, None), (201, None)]
        other = [{"index": {}}, {"message": "two"}]
        answered = await posted(service, *other, *own, Idempotency_Key="k")
        assert answered == [(422, "illegal_argument_exception"), (201, None)]
        assert texts(valkey) == ("one", "own")


# -- no room ---------------------------------------------------------------------------------------


@asynccontextmanager
async def full(server: Valkey, **given: object) -> AsyncIterator[Service]:
    """A collector whose keys fill the twentieth of its Redis' memory that they may have."""
    server.client.config_set("maxmemory", 16 * 1024 * 1024)
    bound = KeyLimits().bound(16 * 1024 * 1024)
    async with stream_at(address_of(server), keys=KeyLimits(bytes=bound)) as stream:
        for at in range(0, bound // 250, 500):
            keys = [once(f"{number}") for number in range(at, at + 500)]
            await stream.append([Append([], key) for key in keys])
    async with collecting(server, **given) as service:
        while (await service.http.get("/healthz")).status_code != 200:
            await asyncio.sleep(0.01)
        yield service


async def refused(service: Service) -> httpx.Response:
    answer = await service.post(ONE, idempotency_key="new")
    assert answer.status_code == 503, answer.text
    return answer


async def test_without_room_a_keyed_request_is_put_off(
    own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with full(own_valkey) as service:
            for number in range(3):
                answer = await refused(service)
                assert await limited(service, "keys") == number + 1
            assert answer.headers["retry-after"] in retry_after(NO_ROOM_S)
            assert answer.headers["content-type"] == "application/problem+json"
            assert "no room" in answer.json()["detail"]
            assert (await service.post(ONE)).status_code == 202
            assert (await service.http.get("/healthz")).json()["redis"] == "ok"
            assert texts(own_valkey) == ("one",)
    answered = [each for each in caplog.messages if "idempotency keys" in each]
    assert len(answered) == 1


async def test_without_room_other_shippers_are_put_off_too(own_valkey: Valkey) -> None:
    async with full(own_valkey) as service:
        for sample in SAMPLES.values():
            answer = await sample.sent(service, idempotency_key="new")
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert (await sample.sent(service)).status_code == sample.status


async def test_without_room_documents_with_an_id_are_put_off(own_valkey: Valkey) -> None:
    async with full(own_valkey) as service:
        content = lines(*bulk("create", "1", {"message": "one"}))
        answer = await service.http.post("/elasticsearch/_bulk", content=content)
        assert answer.status_code == 503
        assert await limited(service, "keys") == 1
        assert await posted(service, {"index": {}}, {"message": "free"}) == [(201, None)]
        assert texts(own_valkey) == ("free",)


async def test_without_room_no_document_is_stored_at_each_retry(own_valkey: Valkey) -> None:
    """Of a request with an id, those without one."""
    async with full(own_valkey) as service:
        before = own_valkey.client.xlen("logs")
        body = lines({"index": {}}, {"message": "free"}, *bulk("index", "new", {"message": "own"}))
        for _ in range(3):
            answer = await service.http.post(
                "/elasticsearch/_bulk", content=body, headers={"Content-Type": NDJSON}
            )
            assert answer.status_code == 503
        assert own_valkey.client.xlen("logs") == before


async def test_without_room_a_connection_of_syslog_goes_on(own_valkey: Valkey) -> None:
    async with full(own_valkey, syslog_tcp=0) as service:
        await sent(listener_of(service).port, b"one\ntwo\n")
        await wait_until(lambda: len(texts(own_valkey)) == 2, "both are stored")
        assert await limited(service, "keys") >= 1


async def test_a_declined_request_is_told_to_its_sender_alone(valkey: Valkey) -> None:
    metrics = Metrics()
    async with stream_at(address_of(valkey), keys=KeyLimits(bytes=0)) as stream:
        appender = Appender(stream, metrics, Inflight(10**9))
        with pytest.raises(Problem, match="no room"):
            await appender.append(Append(events(3), once("k")))
        assert not (await appender.append(Append(events(2)))).repeated
        assert appender.inflight.bytes == 0
        assert metrics.events_accepted._value.get() == 2
    assert len(stored(valkey)) == 2
