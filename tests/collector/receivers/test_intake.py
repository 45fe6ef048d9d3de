"""What holds for every protocol."""

import gzip
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from logpipe.collector.receivers.intake import Receiver
from tests.collector.receivers.samples import (
    SAMPLES,
    TOKEN,
    Sample,
    collecting,
    snappy,
    stored,
    texts,
)
from tests.servers import Valkey, serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

every = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
each_text = pytest.mark.parametrize(
    "sample",
    [sample for sample in SAMPLES.values() if sample.plain],
    ids=[name for name, sample in SAMPLES.items() if sample.plain],
)


def with_body(sample: Sample, body: bytes) -> Sample:
    return sample._replace(body=body)


@every
async def test_what_comes_is_in_the_stream_before_the_protocols_own_success_is_answered(
    valkey: Valkey, sample: Sample
) -> None:
    async with collecting(valkey) as service:
        answer = await sample.sent(service)
        assert answer.status_code == sample.status, answer.text
        assert texts(valkey) == sample.texts


@every
async def test_all_of_it_is_also_under_one_prefix(valkey: Valkey, sample: Sample) -> None:
    async with collecting(valkey) as service:
        answer = await sample._replace(path=f"/insert{sample.path}").sent(service)
        assert answer.status_code == sample.status
        assert texts(valkey) == sample.texts


@every
async def test_a_request_that_comes_again_with_its_key_adds_nothing(
    valkey: Valkey, sample: Sample
) -> None:
    async with collecting(valkey) as service:
        first = await sample.sent(service, idempotency_key="k")
        again = await sample.sent(service, idempotency_key="k")
        assert first.status_code == again.status_code == sample.status
        assert texts(valkey) == sample.texts
        await sample.sent(service, idempotency_key="another")
        assert texts(valkey) == sample.texts * 2


async def test_keys_of_two_protocols_do_not_meet(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for name in ("json", "splunk", "gelf", "syslog"):
            await SAMPLES[name].sent(service, idempotency_key="k")
        await service.post({"source": "a", "message": "native"}, idempotency_key="k")
        assert texts(valkey) == ("one", "two") * 4 + ("native",)


@pytest.mark.parametrize(("length", "taken"), [(0, False), (1, True), (256, True), (257, False)])
async def test_a_key_has_1_to_256_characters(valkey: Valkey, length: int, taken: bool) -> None:
    async with collecting(valkey) as service:
        answer = await SAMPLES["json"].sent(service, idempotency_key="k" * length)
        assert answer.status_code == (202 if taken else 400)


@every
async def test_only_who_has_a_token_may_send(valkey: Valkey, sample: Sample) -> None:
    async with collecting(valkey, ingest_tokens=f"other,{TOKEN}") as service:
        without = await sample.sent(service)
        assert without.status_code == 401
        assert "www-authenticate" in without.headers
        wrong = await sample.sent(service, authorization="Bearer x")
        assert wrong.status_code == 403
        assert texts(valkey) == ()
        allowed = sample._replace(headers={**sample.headers, **sample.token})
        assert (await allowed.sent(service)).status_code == sample.status
        bearer = sample._replace(headers={**sample.headers, "Authorization": f"Bearer {TOKEN}"})
        assert (await bearer.sent(service)).status_code == sample.status
        assert texts(valkey) == sample.texts * 2


@pytest.mark.parametrize(
    "authorization",
    ["Basic", "Basic !!!", "Basic Og==", "ApiKey", "Bearer", "Digest x", "x", ""],
)
async def test_an_authorization_without_a_token_is_none(valkey: Valkey, authorization: str) -> None:
    async with collecting(valkey, ingest_tokens=TOKEN) as service:
        answer = await SAMPLES["loki json"].sent(service, authorization=authorization)
        assert answer.status_code == 401


@every
async def test_while_redis_is_away_the_answer_is_503_and_when_to_try_again(sample: Sample) -> None:
    async with serving(redis_addr="unix:///nowhere/v.sock", role="collector") as service:
        answer = await sample.sent(service)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "snappy": snappy,
}


@pytest.mark.parametrize("coding", PACKINGS)
@each_text
async def test_a_packed_body_is_unpacked(valkey: Valkey, sample: Sample, coding: str) -> None:
    async with collecting(valkey) as service:
        packed = with_body(sample, PACKINGS[coding](sample.body))
        answer = await packed.sent(service, content_encoding=coding)
        assert answer.status_code == sample.status, answer.text
        assert texts(valkey) == sample.texts


@pytest.mark.parametrize("coding", PACKINGS)
@each_text
async def test_a_body_is_too_large_by_what_it_unpacks_to(
    valkey: Valkey, sample: Sample, coding: str
) -> None:
    limit = len(sample.body)
    refused = 400 if sample.protocol == "loki" else 413
    async with collecting(valkey, max_body_bytes=max(limit, 64)) as service:
        for body, status in (
            (sample.body, sample.status),
            (sample.body + b"\n" * (max(limit, 64) - limit + 1), refused),
            (sample.body + b"\n" * 1_000_000, refused),
        ):
            packed = with_body(sample, PACKINGS[coding](body))
            answer = await packed.sent(service, content_encoding=coding)
            assert answer.status_code == status, answer.text
            assert (await with_body(sample, body).sent(service)).status_code == status


@every
async def test_a_coding_that_nobody_knows_is_refused_in_the_protocols_own_words(
    valkey: Valkey, sample: Sample
) -> None:
    async with collecting(valkey) as service:
        answer = await sample.sent(service, content_encoding="rot13")
        assert answer.status_code == (400 if sample.protocol == "loki" else 415)
        assert "rot13" in answer.text
        assert texts(valkey) == ()


@each_text
@pytest.mark.parametrize("coding", PACKINGS)
async def test_a_damaged_packing_is_a_400(valkey: Valkey, sample: Sample, coding: str) -> None:
    async with collecting(valkey) as service:
        packed = with_body(sample, PACKINGS[coding](sample.body)[:-3])
        assert (await packed.sent(service, content_encoding=coding)).status_code == 400
        assert texts(valkey) == ()


async def test_an_event_of_the_largest_size_is_whole_and_a_larger_one_is_cut_and_says_so(
    valkey: Valkey,
) -> None:
    async with collecting(valkey, max_message_bytes=1000) as service:
        shell = len(b'{"source":"json","message":"","level":"INFO","ts_unix_ms":1,"metadata":{}}')
        for size in (1000, 1001, 5000):
            text = "é" + "x" * (size - shell - 2)
            await service.http.post("/ingest/json", json={"msg": text, "ts_unix_ms": 0.001})
        whole, cut, far = stored(valkey)
        assert whole["metadata"] == {}
        assert len(whole["message"].encode()) == 1000 - shell
        assert cut["metadata"] == {"log.truncated_from_bytes": 1001}
        assert far["metadata"] == {"log.truncated_from_bytes": 5000}
        entries: Any = valkey.client.xrange("logs")
        found = [len(entry[b"event"]) for _, entry in entries]
        assert found == [1000, 1000, 1000]


async def test_an_event_whose_metadata_alone_is_too_large_goes_without_it_and_says_so(
    valkey: Valkey,
) -> None:
    async with collecting(valkey, max_message_bytes=1000) as service:
        answer = await service.http.post("/ingest/json", json={"msg": "kept", "a": "x" * 2000})
        assert answer.status_code == 202
        (event,) = stored(valkey)
        assert event["message"] == "kept"
        assert list(event["metadata"]) == ["log.truncated_from_bytes"]


async def test_what_has_no_room_at_all_is_refused_and_counted(valkey: Valkey) -> None:
    async with collecting(valkey, max_message_bytes=64) as service:
        answer = await service.http.post("/ingest/json", json={"msg": "x"})
        assert answer.status_code == 413
        metrics = (await service.http.get("/metrics")).text
        name = 'logpipe_receiver_events_total{outcome="rejected",protocol="json"} 1.0'
        assert name in metrics


@pytest.mark.parametrize("sample", [SAMPLES["json"], SAMPLES["gelf"]], ids=["json", "gelf"])
async def test_a_source_level_or_depth_beyond_the_schema_is_made_to_fit(
    valkey: Valkey, sample: Sample
) -> None:
    deep = b'{"a":' * 600 + b"1" + b"}" * 600
    body = b'{"short_message":"m","host":"%b","level":"%b","_deep":%b,"_k":"v"}' % (
        b"s" * 300, b"l" * 40, deep,
    )  # fmt: skip
    async with collecting(valkey) as service:
        answer = await with_body(sample, body).sent(service)
        assert answer.status_code == 202, answer.text
        (event,) = stored(valkey)
        assert event["source"] == "s" * 256
        assert event["level"] == "L" * 32
        metadata = event["metadata"]
        assert metadata["log.source"] == "s" * 300
        assert metadata["severity_text"] == "l" * 40
        assert metadata.get("deep", metadata.get("_deep")).startswith('{"a":{"a":')


async def test_requests_and_events_are_counted_by_protocol(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for sample in SAMPLES.values():
            await sample.sent(service)
        await SAMPLES["gelf"].sent(service, idempotency_key="k")
        await SAMPLES["gelf"].sent(service, idempotency_key="k")
        metrics = (await service.http.get("/metrics")).text
        for sample in SAMPLES.values():
            labels = f'protocol="{sample.protocol}",status="{sample.status}"'
            assert f"logpipe_receiver_requests_total{{{labels}}}" in metrics
        events = 'logpipe_receiver_events_total{outcome="%s",protocol="gelf"} %s'
        assert events % ("accepted", "4.0") in metrics
        assert events % ("repeated", "2.0") in metrics


async def test_a_fault_is_counted_as_at_the_native_way(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(Receiver, "_take", fail)
    async with collecting(valkey) as service:
        answer = await SAMPLES["gelf"].sent(service)
        assert (answer.status_code, "odd" in answer.text) == (500, False)
        metrics = (await service.http.get("/metrics")).text
    assert 'logpipe_receiver_requests_total{protocol="gelf",status="500"} 1.0' in metrics


@every
async def test_pages_of_other_origins_may_send_as_to_the_native_way(
    valkey: Valkey, sample: Sample
) -> None:
    async with collecting(valkey, cors_allow_origins="https://a.example") as service:
        for origin, allowed in (("https://a.example", True), ("https://evil.example", False)):
            answer = await service.http.options(
                sample.path,
                headers={"Origin": origin, "Access-Control-Request-Method": "POST"},
            )
            assert ("access-control-allow-origin" in answer.headers) is allowed


async def test_a_body_larger_than_is_read_at_once_keeps_its_order(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        body = b"".join(b'{"event":"%d"}' % number for number in range(12_345))
        sample = with_body(SAMPLES["splunk"], body)
        assert (await sample.sent(service)).status_code == 200
        assert texts(valkey) == tuple(str(number) for number in range(12_345))


@pytest.mark.parametrize("query", ["", "?" + "&".join(["a=1"] * 200), "?%ff=%ff&&=&x"])
async def test_a_strange_query_is_no_reason_to_fail(valkey: Valkey, query: str) -> None:
    async with collecting(valkey) as service:
        sample = SAMPLES["splunk"]
        assert (await sample._replace(path=sample.path + query).sent(service)).status_code == 200
