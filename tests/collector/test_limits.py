"""What a collector takes at each limit, and one beyond it: on /ingest and over the receivers."""

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from logpipe.collector.inflight import COMING_PART, READ_AT_ONCE, Held, Inflight
from logpipe.collector.receivers.packing import MORE_KEYS
from logpipe.event import MAX_DEPTH
from logpipe.limits import BURST_S
from logpipe.problems import Problem
from tests.collector.receivers.samples import SAMPLES, TOKEN, Sample, collecting, counted, stored
from tests.helpers import retry_after, wait_until
from tests.raw import Answer, Connection, can_measure_memory, connected, peak_memory, request
from tests.servers import Service, Valkey, serving, spawned
from tests.test_limits import limited

KIB = 1024
MIB = 1024 * KIB
ONE = {"source": "a", "message": "m"}

every = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


# -- one event -----------------------------------------------------------------------------------


def keyed(keys: int) -> dict[str, Any]:
    """An event with so many keys of metadata, of which all but one are nested."""
    return {**ONE, "metadata": {"in": {f"k{n}": [{}] for n in range(keys - 1)}}}


def nested(levels: int) -> dict[str, Any]:
    """An event whose metadata has so many levels of arrays."""
    inner: Any = []
    for _ in range(levels - 1):
        inner = [inner]
    return {**ONE, "metadata": {"x": inner}}


async def test_keys_of_metadata_are_counted_on_all_levels_and_one_too_many_is_named(
    valkey: Valkey,
) -> None:
    async with collecting(valkey, max_metadata_keys=20) as service:
        assert (await service.post(keyed(20))).status_code == 202
        answer = await service.post(keyed(21))
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        told = "metadata: has over 20 keys (MAX_METADATA_KEYS)"
        assert error == {"index": 0, "field": "metadata", "error": told}
        mixed = await service.post([ONE, keyed(21), keyed(20)])
        assert mixed.status_code == 202
        assert [each["index"] for each in mixed.json()["errors"]] == [1]
        assert len(stored(valkey)) == 3
        assert await limited(service, "metadata_keys") == 2


async def test_metadata_that_is_too_deep_is_named_by_its_event_and_field(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        assert (await service.post(nested(MAX_DEPTH))).status_code == 202
        answer = await service.post([ONE, nested(MAX_DEPTH + 1)])
        (error,) = answer.json()["errors"]
        told = f"metadata: is nested over {MAX_DEPTH} levels"
        assert error == {"index": 1, "field": "metadata", "error": told}
        assert await limited(service, "metadata_depth") == 1


async def test_an_event_that_is_too_large_is_counted_once_alone_and_in_a_batch(
    valkey: Valkey,
) -> None:
    async with collecting(valkey, max_message_bytes=200) as service:
        large = {**ONE, "message": "x" * 200}
        assert (await service.post(large)).status_code == 413
        assert (await service.post([large, ONE])).status_code == 202
        assert await limited(service, "event") == 2


@pytest.mark.parametrize(("keys", "cut"), [(20, False), (21, True), (2_000, True)])
async def test_what_another_shipper_sends_with_too_many_keys_is_made_to_fit(
    valkey: Valkey, keys: int, cut: bool
) -> None:
    fields = {f"k{n}": n for n in range(keys)}
    async with collecting(valkey, max_metadata_keys=20) as service:
        body = json.dumps({"message": "m", "source": "a", **fields})
        answer = await service.http.post("/ingest/json", content=body)
        assert answer.status_code == 202, answer.text
        (event,) = stored(valkey)
        metadata = event["metadata"]
        assert (MORE_KEYS in metadata) is cut
        assert len(metadata) == 20
        rest = json.loads(metadata.pop(MORE_KEYS, "{}"))
        assert {**metadata, **rest} == fields


async def test_nested_values_of_another_shipper_become_text_before_keys_are_moved(
    valkey: Valkey,
) -> None:
    many = {f"k{n}": n for n in range(50)}
    async with collecting(valkey, max_metadata_keys=20) as service:
        body = json.dumps({"message": "m", "source": "a", "many": many, "one": 1})
        assert (await service.http.post("/ingest/json", content=body)).status_code == 202
        (event,) = stored(valkey)
        assert json.loads(event["metadata"]["many"]) == many
        assert event["metadata"]["one"] == 1
        assert (await service.post(event)).status_code == 202  # such an event is one


# -- one request ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize("last", [b'{"source":"a","message":"m"}', b"{}", b"0"])
async def test_a_batch_may_have_so_many_events_those_that_are_none_included(
    valkey: Valkey, content_type: str, last: bytes
) -> None:
    one = json.dumps(ONE).encode()

    def body(count: int) -> bytes:
        events = [one] * (count - 1) + [last]
        return b"\n".join(events) if "ndjson" in content_type else b"[%b]" % b",".join(events)

    async with collecting(valkey, max_batch_events=10) as service:
        assert (await service.post(body(10), Content_Type=content_type)).status_code == 202
        answer = await service.post(body(11), Content_Type=content_type)
        assert answer.status_code == 413
        told = "Event 10 is one too many: a request may have 10 events (MAX_BATCH_EVENTS)."
        assert answer.json()["detail"] == f"{told} Send smaller batches."
        assert len(stored(valkey)) == (10 if b"source" in last else 9)
        assert await limited(service, "batch") == 1


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"0," * 100 + b"0]",
        b"[" + b"{} , " * 100 + b"{}]",
        b"[" + b'":{",' * 100 + b"[]]",
        b"{}" * 101,
        b"0\n" * 101,
    ],
)
async def test_elements_that_are_no_events_are_counted_before_there_is_memory_for_them(
    valkey: Valkey, body: bytes
) -> None:
    async with collecting(valkey, max_batch_events=100) as service:
        assert (await service.post(body)).status_code == 413
    async with collecting(valkey, max_batch_events=101) as service:
        assert (await service.post(body)).status_code in (400, 422)


@every
async def test_the_body_of_every_protocol_is_bounded_and_counted(
    valkey: Valkey, sample: Sample
) -> None:
    size = len(sample.body)
    async with collecting(valkey, max_body_bytes=max(64, size)) as service:
        assert (await sample.sent(service)).status_code == sample.status
        # Space is nothing to JSON and lines; others are damaged, and too large before that.
        large = sample._replace(body=sample.body + b" " * (max(64, size) + 1 - size))
        assert (await large.sent(service)).status_code in (400, 413)
        assert await limited(service, "body") == 1


async def test_decompressed_bytes_are_what_counts(valkey: Valkey) -> None:
    one = json.dumps(ONE).encode()
    async with collecting(valkey, max_body_bytes=10_000) as service:
        for size, status in ((10_000, 202), (10_001, 413)):
            body = gzip.compress(one + b" " * (size - len(one)))
            assert (await service.post(body, Content_Encoding="gzip")).status_code == status
        assert await limited(service, "body") == 1


# -- what is under way ---------------------------------------------------------------------------


def test_bodies_that_come_may_fill_their_part_and_whole_requests_the_rest() -> None:
    inflight = Inflight(100)
    with Held(inflight) as one, Held(inflight) as two:
        one.add(40)
        two.add(35)
        with pytest.raises(Problem) as caught:
            two.add(1)
        assert (caught.value.status, caught.value.hits) == (503, {"inflight": 1})
        assert caught.value.headers == {"Retry-After": "1"}
        assert inflight.bytes == 100 * COMING_PART
        inflight.require(25)
        with pytest.raises(Problem):
            inflight.require(26)
    assert inflight.bytes == 0


def test_one_that_is_alone_is_taken_whatever_its_size() -> None:
    inflight = Inflight(100)
    inflight.require(10_000)
    with Held(inflight) as one, Held(inflight) as two:
        for _ in range(10):
            one.add(100)
        with pytest.raises(Problem):
            two.require(1)


@contextlib.asynccontextmanager
async def uploading(
    service: Service, length: int, data: bytes, head: str = ""
) -> AsyncIterator[Any]:
    """A request of which so much has come and the rest is still to come."""
    inflight = service_inflight(service)
    before = inflight.bytes
    lines = [line for line in (f"Content-Length: {length}", head) if line]
    async with connected(service.url) as connection:
        start = "\r\n".join(["POST /ingest HTTP/1.1", "Host: localhost", *lines, "", ""])
        await connection.send(start.encode() + data)
        await wait_until(lambda: inflight.bytes >= before + len(data), "it is counted")
        yield connection


def service_inflight(service: Service) -> Inflight:
    assert service.process.inflight is not None
    return service.process.inflight


async def test_what_has_no_room_is_refused_by_its_length_alone_and_small_ones_go_on(
    valkey: Valkey,
) -> None:
    async with (
        collecting(valkey, max_inflight_bytes=MIB) as service,
        uploading(service, MIB, b" " * (700 * KIB)) as slow,
    ):
        async with connected(service.url) as late:
            await late.send(
                request(b"", f"Content-Length: {100 * KIB}").replace(b"Content-Length: 0\r\n", b"")
            )
            answer = await late.answer()
        assert answer.status == 503
        assert answer.headers["retry-after"] in retry_after(1)
        for _ in range(10):
            assert (await service.post(ONE)).status_code == 202
        await slow.send(b" " * (MIB - 700 * KIB - 40) + json.dumps(ONE).encode().ljust(40))
        assert (await slow.answer()).status == 202
        await wait_until(lambda: not service_inflight(service).bytes, "nothing is left")
        assert await limited(service, "inflight") == 1


@every
async def test_a_receiver_without_room_says_so_in_its_own_words(
    valkey: Valkey, sample: Sample
) -> None:
    async with (
        collecting(valkey, max_inflight_bytes=64 * KIB) as service,
        uploading(service, MIB, b" " * (128 * KIB)),
    ):
        answer = await sample.sent(service)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] in retry_after(1)


async def test_a_body_that_unpacks_to_more_than_there_is_room_for_is_refused_on_the_way(
    valkey: Valkey,
) -> None:
    bomb = gzip.compress(b" " * (8 * MIB))
    async with (
        collecting(valkey, max_inflight_bytes=MIB) as service,
        uploading(service, MIB, b" " * (64 * KIB)),
    ):
        assert (await service.post(bomb, Content_Encoding="gzip")).status_code == 503
    async with collecting(valkey, max_inflight_bytes=MIB) as service:
        assert (await service.post(bomb, Content_Encoding="gzip")).status_code == 400


async def test_an_upload_that_is_given_up_leaves_nothing_behind(valkey: Valkey) -> None:
    async with collecting(valkey, max_inflight_bytes=MIB) as service:
        for _ in range(3):
            async with uploading(service, MIB, b" " * (200 * KIB)):
                pass
            await wait_until(lambda: not service_inflight(service).bytes, "nothing is left")


async def test_large_bodies_are_read_a_few_at_a_time_and_all_of_them_are_taken(
    valkey: Valkey,
) -> None:
    body = b"\n".join([json.dumps({**ONE, "message": "x" * 1000}).encode()] * 2_000)
    async with collecting(valkey) as service:
        answers = await asyncio.gather(*(service.post(body) for _ in range(3 * READ_AT_ONCE)))
        assert [answer.status_code for answer in answers] == [202] * len(answers)
        assert service_inflight(service).bytes == 0


async def upload(connection: Connection, pieces: int) -> "asyncio.Task[Answer]":
    """Sends as many pieces of a body that has no end, fewer where an answer comes before; the
    answer, which may still be to come."""
    await connection.send(
        b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    piece = b"%x\r\n%b\r\n" % (256 * KIB, b" " * (256 * KIB))
    answer = asyncio.create_task(connection.answer(timeout=50))
    for _ in range(pieces):
        with contextlib.suppress(ConnectionError):
            await connection.send(piece)
        await asyncio.wait({answer}, timeout=0.01)
        if answer.done():
            break
    return answer


@pytest.mark.skipif(not can_measure_memory, reason="needs Linux")
async def test_many_slow_large_uploads_take_no_more_memory_than_they_may(
    valkey: Valkey, tmp_path: Path
) -> None:
    given = {"ROLE": "collector", "REDIS_ADDR": valkey.url}
    given |= {"MAX_INFLIGHT_BYTES": str(32 * MIB), "MAX_BODY_BYTES": str(8 * MIB)}
    async with spawned(tmp_path, **given) as process, contextlib.AsyncExitStack() as stack:
        await process.ready()
        before = peak_memory(process.popen.pid, reset=True)
        connections = [await stack.enter_async_context(connected(process.url)) for _ in range(40)]
        # 240 MiB in all, each of them 6 MiB.
        answers = await asyncio.gather(*(upload(each, 24) for each in connections))
        # What was sent may still be in the kernel's buffers: refusals come as it is read.
        most = 24 // 6
        await wait_until(
            lambda: sum(not answer.done() for answer in answers) <= most,
            "all uploads without room are refused",
            timeout=40,
        )
        grown = peak_memory(process.popen.pid) - before
        refused = [answer.result() for answer in answers if answer.done()]
        assert {answer.status for answer in refused} == {503}
        assert {answer.headers["retry-after"] for answer in refused} <= retry_after(1)
        assert grown < 3 * 32 * MIB
        assert "Traceback" not in process.log.read_text()
        for answer in answers:
            answer.cancel()
        await asyncio.wait(answers)


# -- the rate ------------------------------------------------------------------------------------


async def test_events_count_and_not_requests_and_one_too_many_is_asked_to_wait(
    valkey: Valkey,
) -> None:
    burst = int(20 * BURST_S)
    async with collecting(valkey, rate_per_token=20) as service:
        assert (await service.post([ONE] * (burst - 1))).status_code == 202
        assert (await service.post(ONE)).status_code == 202
        answer = await service.post([ONE] * 200)
        while answer.status_code == 202:  # some time has passed: now it is well over its rate
            answer = await service.post([ONE] * 200)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "RATE_PER_TOKEN" in answer.json()["detail"]
        assert await limited(service, "rate") == 1


@every
async def test_too_large_a_batch_is_413_and_names_the_largest(
    valkey: Valkey, sample: Sample
) -> None:
    """In the words of each protocol; Loki's senders know no 413."""
    async with collecting(valkey, max_batch_events=1, rate_per_token=1) as service:
        answer = await sample.sent(service)
        assert answer.status_code == (400 if sample.protocol == "loki" else 413)
        assert b"a request may have 1 events (MAX_BATCH_EVENTS)" in answer.content
        assert not valkey.client.exists("logs")


async def test_more_than_a_rate_ever_lets_pass_is_413(
    valkey: Valkey,
) -> None:
    async with collecting(valkey, rate_per_token=10) as service:
        answer = await service.post([ONE] * 1_001)
        assert answer.status_code == 413
        assert answer.json()["limit"] == 1_000
        assert "1000 events (5 seconds of RATE_PER_TOKEN)" in answer.json()["detail"]
        assert (await service.post([ONE] * 1_000)).status_code == 202
        assert (await service.post(ONE)).status_code == 429


async def test_one_request_leaves_three_quarters_of_the_stream(valkey: Valkey) -> None:
    async with collecting(valkey, trim_maxlen=2_000) as service:
        for _ in range(4):
            assert (await service.post([ONE] * 500)).status_code == 202
        first = valkey.client.xinfo_stream("logs")["first-entry"][0]
        answer = await service.post([ONE] * 501)
        assert answer.status_code == 413
        assert answer.json()["limit"] == 500
        assert "500 events (a quarter of TRIM_MAXLEN)" in answer.json()["detail"]
        assert valkey.client.xinfo_stream("logs")["first-entry"][0] == first
        assert await limited(service, "batch") == 1


async def test_one_request_has_a_quarter_of_the_stream_s_bytes(
    valkey: Valkey,
) -> None:
    large = {**ONE, "message": "x" * 60_000}
    async with collecting(valkey, trim_maxbytes="400kb") as service:
        answer = await service.post([large] * 2)
        assert answer.status_code == 413
        assert answer.json()["limit"] == 100 * KIB
        assert "(a quarter of TRIM_MAXBYTES)" in answer.json()["detail"]
        assert (await service.post([{**ONE, "message": "x" * 50_000}] * 2)).status_code == 202
        # Also where each event has a key of its own.
        lines = [[{"create": {"_id": str(n)}}, large] for n in range(2)]
        bulk = "".join(f"{json.dumps(line)}\n" for pair in lines for line in pair)
        answer = await service.http.post(
            "/elasticsearch/_bulk", content=bulk, headers={"Content-Type": "application/x-ndjson"}
        )
        assert answer.status_code == 413, answer.text
    async with collecting(valkey, trim_maxbytes="1kb") as service:
        assert (await service.post(large)).status_code == 202


async def test_requests_that_have_begun_are_charged_before_they_end(valkey: Valkey) -> None:
    async with (
        collecting(valkey, rate_per_token=1) as service,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(5):
            await stack.enter_async_context(uploading(service, 2 * KIB, b" " * KIB))
        assert (await service.post(ONE)).status_code == 429


async def test_events_that_are_rejected_are_charged(valkey: Valkey) -> None:
    async with collecting(valkey, rate_per_token=1) as service:
        assert (await service.post([{"source": "a"}] * 200)).status_code == 422
        answer = await service.post(ONE)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 150


async def test_a_sender_over_its_rate_is_refused_before_its_body_is_read(valkey: Valkey) -> None:
    async with collecting(valkey, rate_per_token=1) as service:
        assert (await service.post([ONE] * 1000)).status_code == 202
        async with connected(service.url) as connection:
            head = request(b"", "Content-Length: 1000000")
            await connection.send(head.replace(b"Content-Length: 0\r\n", b""))
            assert (await connection.answer()).status == 429


async def test_each_token_has_its_own_rate_however_it_is_spelt(valkey: Valkey) -> None:
    async with collecting(valkey, rate_per_token=1, ingest_tokens="one,two") as service:
        first = await service.post([ONE] * 1000, Authorization="Bearer one")
        assert first.status_code == 202
        for spelt in ("Bearer one", "bearer one", "BEARER  one"):
            answer = await service.post(ONE, Authorization=spelt)
            assert answer.status_code == 429, spelt
        assert (await service.post(ONE, Authorization="Bearer two")).status_code == 202
        answer = await service.post(ONE, Authorization="Bearer three")
        assert answer.status_code == 403


@every
async def test_a_token_has_one_rate_over_all_protocols(valkey: Valkey, sample: Sample) -> None:
    given = {"rate_per_token": 1, "ingest_tokens": f"{TOKEN},other"}
    async with collecting(valkey, **given) as service:
        assert (await sample.sent(service, **sample.token)).status_code == sample.status
        spent = await service.post([ONE] * 1000, Authorization=f"Bearer {TOKEN}")
        assert spent.status_code == 202
        answer = await sample.sent(service, **sample.token)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 900
        assert (await service.post(ONE, Authorization="Bearer other")).status_code == 202


@every
async def test_what_a_receiver_takes_is_counted_too(valkey: Valkey, sample: Sample) -> None:
    async with collecting(valkey, rate_per_token=1) as service:
        for _ in range(20):  # two events each, of five that may come at once
            answer = await sample.sent(service)
            if answer.status_code == 429:
                return
            assert answer.status_code == sample.status
    pytest.fail("it is never refused")


async def test_the_form_of_the_page_is_one_sender(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, rate_per_token=1) as service:
        form = {"source": "a", "message": "m", "count": "100"}
        first = await service.http.post("/ui/send", data=form)
        assert first.status_code == 200, first.text
        assert (await service.http.post("/ui/send", data=form)).status_code == 429
        assert (await service.post(ONE)).status_code == 202


async def test_syslog_over_tcp_waits_with_its_sender(valkey: Valkey) -> None:
    async with collecting(valkey, rate_per_token=600, syslog_tcp=0) as service:
        assert service.process.syslog is not None
        _, writer = await asyncio.open_connection("127.0.0.1", service.process.syslog.port)
        try:
            writer.write(counted(*[b"<14>1 - h a - - - m"] * 4_100))
            await wait_until(lambda: limited_rate(service), "it has to wait")
            assert valkey.client.xlen("logs") < 4_100
            await wait_until(lambda: valkey.client.xlen("logs") == 4_100, "all of it is there")
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def limited_rate(service: Service) -> bool:
    return await limited(service, "rate") > 0


async def test_a_process_ends_though_a_sender_of_syslog_has_to_wait(valkey: Valkey) -> None:
    async with collecting(valkey, rate_per_token=1, syslog_tcp=0) as service:
        syslog = service.process.syslog
        assert syslog is not None
        with socket.create_connection(("127.0.0.1", syslog.port)) as sender:
            sender.sendall(b"<14>m\n" * 20)
            await wait_until(lambda: valkey.client.xlen("logs") == 20, "the first are taken")
            sender.sendall(b"<14>m\n" * 20)
            await wait_until(lambda: limited_rate(service), "it has to wait")
            syslog.stop()
            await wait_until(lambda: not syslog._open, "it has ended")


async def test_without_a_rate_nothing_is_counted(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for _ in range(3):
            assert (await service.post([ONE] * 10_000)).status_code == 202
        assert await limited(service, "rate") == 0
