import asyncio
import gzip
import json
import logging
import signal
import sys
import zlib
from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from logpipe.collector.ingest import scope_of
from logpipe.stream.scripts import companion_key
from tests.helpers import fair_time, unmeasured, wait_until
from tests.raw import can_measure_memory, connected, peak_memory, request
from tests.servers import Service, Valkey, serving, spawned
from tests.turns import Turns

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EVENT = {"source": "a", "message": "b"}
RAW = b'{"source":"a","message":"b"}'
LINES = b'{"source":"a","message":"1"}\n{"source":"a","message":"2"}\n'
MIB = 1024 * 1024
PROBLEM = "application/problem+json"


def collecting(valkey: Valkey, **given: object) -> AbstractAsyncContextManager[Service]:
    """A collector over this Valkey."""
    return serving(redis_addr=valkey.url, role="collector", **given)


needs_proc = pytest.mark.skipif(not can_measure_memory, reason="memory is measured by /proc")


def stored(valkey: Valkey) -> dict[str, Any]:
    """The events in the stream, by id."""
    found: Any = valkey.client.xrange("logs")
    return {id_.decode(): json.loads(fields[b"event"]) for id_, fields in found}


def texts(valkey: Valkey) -> list[str]:
    return [event["message"] for event in stored(valkey).values()]


def the_problem(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document = answer.json()
    assert document["status"] == status
    return document


async def metric(service: Service, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = (await service.http.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


# -- what is taken -----------------------------------------------------------------------------


async def test_one_event_is_answered_with_the_id_under_which_it_is_in_redis(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for number in range(20):
            answer = await service.post({**EVENT, "message": str(number), "ts_unix_ms": number})
            assert answer.status_code == 202
            id_ = answer.json()["id"]
            assert answer.json() == {"id": id_}
            assert stored(valkey)[id_] == {
                "source": "a",
                "message": str(number),
                "level": "INFO",
                "ts_unix_ms": number,
                "metadata": {},
            }


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[%b]" % LINES.strip().replace(b"\n", b","), "application/json"),
        (LINES, "application/json"),
        (LINES.replace(b"\n", b""), "application/json; charset=utf-8"),
        (LINES, "application/x-ndjson"),
        (LINES.replace(b"\n", b"\r\n\r\n"), "application/x-ndjson"),
        (LINES, "application/octet-stream"),
        (LINES, "text/plain"),
        (LINES, "application/x-www-form-urlencoded"),
        (LINES, None),
    ],
    ids=[
        "array", "lines", "concatenated", "ndjson", "ndjson with blank lines", "octets", "plain",
        "curl", "untyped",
    ],
)  # fmt: skip
async def test_a_batch_is_stored_in_its_order(
    valkey: Valkey, body: bytes, content_type: str | None
) -> None:
    async with collecting(valkey) as service:
        headers = {"Content-Type": content_type} if content_type else {}
        answer = await service.http.post("/ingest", content=body, headers=headers)
        assert answer.status_code == 202
        first, last = stored(valkey)
        assert answer.json() == {
            "accepted": 2,
            "rejected": 0,
            "first_id": first,
            "last_id": last,
            "errors": [],
        }
        assert texts(valkey) == ["1", "2"]


async def test_a_batch_of_one_line_is_answered_as_a_batch(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await service.post(RAW, content_type="application/x-ndjson")
        assert answer.json()["accepted"] == 1
        assert answer.json()["first_id"] == answer.json()["last_id"] == next(iter(stored(valkey)))


async def test_a_large_batch_keeps_its_order_and_its_ids_rise(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        body = b"".join(b'{"source":"a","message":"%d"}\n' % number for number in range(12_345))
        answer = await service.post(body, content_type="application/x-ndjson")
        assert answer.json()["accepted"] == 12_345
        assert texts(valkey) == [str(number) for number in range(12_345)]
        ids = list(stored(valkey))
        assert [ids[0], ids[-1]] == [answer.json()["first_id"], answer.json()["last_id"]]


async def test_the_valid_events_of_a_batch_are_taken_and_the_others_are_named(
    valkey: Valkey,
) -> None:
    async with collecting(valkey) as service:
        answer = await service.post([EVENT, {"source": "x"}, EVENT, {**EVENT, "level": 3}, 7])
        assert answer.status_code == 202
        told = answer.json()
        assert (told["accepted"], told["rejected"]) == (2, 3)
        assert [(e["index"], e.get("field")) for e in told["errors"]] == [
            (1, "message"),
            (3, "level"),
            (4, None),
        ]
        assert len(stored(valkey)) == 2
        assert await metric(service, 'logpipe_ingest_events_total{outcome="accepted"}') == 2
        assert await metric(service, 'logpipe_ingest_events_total{outcome="rejected"}') == 3


async def test_control_characters_and_line_separators_come_through_as_they_were(
    valkey: Valkey,
) -> None:
    text = "".join(map(chr, range(0x20))) + "\x7f\x85\u2028\u2029\u202e\U0001f600 é\r\nid: 9\n\n"
    async with collecting(valkey) as service:
        assert (await service.post({**EVENT, "message": text})).status_code == 202
        assert texts(valkey) == [text]


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate", "raw deflate", "zstd", "identity"])
async def test_a_packed_body_is_unpacked(valkey: Valkey, name: str) -> None:
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = {
        "gzip": gzip.compress(LINES[:29]) + gzip.compress(LINES[29:]),
        "x-gzip": gzip.compress(LINES),
        "deflate": zlib.compress(LINES),
        "raw deflate": raw.compress(LINES) + raw.flush(),
        "zstd": zstd.compress(LINES[:29]) + zstd.compress(LINES[29:]),
        "identity": LINES,
    }[name]
    async with collecting(valkey) as service:
        answer = await service.post(packed, content_encoding=name.rsplit(maxsplit=1)[-1])
        assert answer.status_code == 202, answer.text
        assert texts(valkey) == ["1", "2"]


async def test_many_single_posts_share_appends_and_each_gets_an_id_of_its_own(
    valkey: Valkey,
) -> None:
    async with collecting(valkey) as service:
        # The appends that are under way when the others come make these share the next one.
        answers = await asyncio.gather(
            *(service.post({**EVENT, "message": str(number)}) for number in range(200))
        )
        ids = [answer.json()["id"] for answer in answers]
        found = stored(valkey)
        assert len(set(ids)) == 200
        assert [found[id_]["message"] for id_ in ids] == [str(number) for number in range(200)]
        assert await metric(service, "logpipe_append_events_sum") == 200
        assert await metric(service, "logpipe_append_events_count") < 150


# -- what is refused ---------------------------------------------------------------------------


REFUSED: tuple[tuple[bytes, dict[str, str], int], ...] = (
    (b"", {}, 400),
    (b"  \n", {}, 400),
    (b"[]", {}, 400),
    (b"hello", {}, 400),
    (b"source=a&message=b", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
    (RAW[:-1], {}, 400),
    (RAW[:-1], {"Content-Type": "application/x-ndjson"}, 400),
    (b"\xef\xbb\xbf" + RAW, {}, 400),
    (RAW.replace(b"b", b"\xff"), {}, 400),
    (RAW.decode().encode("utf-16"), {"Content-Type": "application/json; charset=utf-16"}, 400),
    (b'{"source":"a","message":"b","metadata":{"x":NaN}}', {}, 400),
    (b'{"source":"a"}', {}, 422),
    (b'[{"source":"a"},{"message":"b"}]', {}, 422),
    (b'{"source":"","message":"b"}', {}, 422),
    (b'{"source":"a","message":"b","ts_unix_ms":-1}', {}, 422),
    (b'{"source":"a","message":"b","ts_unix_ms":1e400}', {}, 422),
    (b'{"source":"a","message":"b","metadata":[]}', {}, 422),
    (b"7", {}, 422),
    (RAW, {"Content-Type": "image/png"}, 415),
    (RAW, {"Content-Type": "multipart/form-data; boundary=x"}, 415),
    (RAW, {"Content-Type": "application/xml"}, 415),
    (RAW, {"Content-Encoding": "br"}, 415),
    (RAW, {"Content-Encoding": "gzip, gzip"}, 415),
    (RAW, {"Content-Encoding": "gzip"}, 400),
    (RAW, {"Content-Encoding": "zstd"}, 400),
    (gzip.compress(RAW)[:-3], {"Content-Encoding": "gzip"}, 400),
    (gzip.compress(RAW)[:8], {"Content-Encoding": "gzip"}, 400),
    (zlib.compress(RAW)[:-3], {"Content-Encoding": "deflate"}, 400),
    (zstd.compress(RAW)[:-3], {"Content-Encoding": "zstd"}, 400),
    (b"", {"Content-Encoding": "gzip"}, 400),
    (RAW, {"Idempotency-Key": ""}, 400),
    (RAW, {"Idempotency-Key": "k" * 257}, 400),
)


async def test_a_refusal_is_a_problem_document_and_stores_nothing(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for body, headers, status in REFUSED:
            answer = await service.http.post("/ingest", content=body, headers=headers)
            assert the_problem(answer, status)["detail"], (body, headers)
        assert stored(valkey) == {}
        for status, count in Counter(status for _, _, status in REFUSED).items():
            name = f'logpipe_ingest_requests_total{{status="{status}"}}'
            assert await metric(service, name) == count


async def test_a_refusal_names_the_place_and_the_field(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        problem = the_problem(await service.post({"source": "a", "message": 1}), 422)
        assert problem["errors"][0]["index"] == 0
        assert problem["errors"][0]["field"] == "message"
        problem = the_problem(await service.post([{**EVENT, "mesage": "x"}, {"message": "x"}]), 422)
        assert [(error["index"], error["field"]) for error in problem["errors"]] == [
            (0, "mesage"),
            (1, "source"),
        ]


async def test_an_event_may_have_exactly_the_largest_size(valkey: Valkey) -> None:
    async with collecting(valkey, max_message_bytes=1000) as service:

        def sized(size: int) -> bytes:
            frame = b'{"source":"a","message":"%b","level":"INFO","ts_unix_ms":1,"metadata":{}}'
            return frame % (b"x" * (size - len(frame) + 2))

        assert (await service.post(sized(1000))).status_code == 202
        the_problem(await service.post(sized(1001)), 413)
        the_problem(await service.post(sized(1001), content_type="application/x-ndjson"), 413)
        answer = await service.post(b"[%b,%b,%b]" % (sized(1000), sized(1001), sized(999)))
        assert answer.status_code == 202
        assert (answer.json()["accepted"], answer.json()["rejected"]) == (2, 1)
        assert answer.json()["errors"][0]["index"] == 1
        assert "MAX_MESSAGE_BYTES" in answer.json()["errors"][0]["error"]
        assert len(stored(valkey)) == 3


async def test_a_chunked_body_that_comes_at_once_is_measured_too(valkey: Valkey) -> None:
    head = request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    body = b'{"source":"a","message":"%b"}' % (b"x" * 200)
    async with (
        serving(redis_addr=valkey.url, role="collector", max_body_bytes=100) as service,
        connected(service.url) as connection,
    ):
        await connection.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert (await connection.answer()).status == 413


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_a_body_may_have_exactly_the_largest_size(valkey: Valkey, chunked: bool) -> None:
    async with collecting(valkey, max_body_bytes=200_000) as service:

        async def post(body: bytes, **headers: str) -> httpx.Response:
            async def pieces() -> Any:
                for at in range(0, len(body), 10_000):
                    yield body[at : at + 10_000]

            content = pieces() if chunked else body
            return await service.http.post("/ingest", content=content, headers=headers)

        exact = RAW + b" " * (200_000 - len(RAW))
        assert (await post(exact)).status_code == 202
        the_problem(await post(exact + b" "), 413)
        packed = {"Content-Encoding": "gzip"}
        assert (await post(gzip.compress(exact), **packed)).status_code == 202
        the_problem(await post(gzip.compress(exact + b" "), **packed), 413)
        assert len(stored(valkey)) == 2


async def test_another_method_is_refused_with_the_one_that_is_allowed(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
            answer = await service.http.request(method, "/ingest")
            assert answer.status_code == 405
            assert answer.headers["allow"] == "POST"
            assert answer.headers["content-type"] == PROBLEM


async def test_another_path_is_not_found(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for path in ("/ingest/", "/ingest/x", "/ingestion", "/x", "/", "//ingest", "/%2e%2e/x"):
            the_problem(await service.http.post(path, content=RAW), 404)


HOSTILE = (
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"source":"a","message":"b","metadata":{"x":' + b"[" * 5000 + b"]" * 5000 + b"}}",
    b"1" * 5000,
    b'{"source":"a","message":"b","ts_unix_ms":' + b"9" * 5000 + b"}",
    b'{"source":"a","message":"b","metadata":{"x":' + b"9" * 5000 + b"}}",
    b'{"source":"a","message":"b","metadata":{"x":1e999999}}',
    b'{"source":"\\ud800","message":"b"}',
    b'{"source":"a","message":"\\udfff\\ud800"}',
    b'{"source":"a","message":"\x00"}',
    b'{"source":"a","message":"b","source":"c"}',
    b'{"\xff":1}',
    b'{"source":"a","message":"b","\xff":1}',
    b'{"source":"a","message":"b","metadata":{"\xc0\x80":1}}',
    b"\x00" * 1000,
    b"\xff\xfe\x00\x00",
    b"null",
    b"true",
    b'"text"',
    b"{}" * 20_000,
    b"[{}]" * 1000,
    b"\n" * 10_000 + b"}",
    b'{"source":"a","message":"b"},',
    b'{"source":"a","message":"b"}]',
    b'{"source":"a","message":"\x1b[2J","level":"' + "\u202e".encode() * 30 + b'"}',
    b'{"source":"a","message":"b","level":"' + "ﬀ".encode() * 32 + b'"}',
    b'{"source":"*1\\r\\n$8\\r\\nFLUSHALL\\r\\n","message":"b"}',
)


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson", "text/plain"])
async def test_hostile_json_is_never_a_fault_of_the_server(
    valkey: Valkey, content_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(valkey) as service:
        outcomes: Counter[int] = Counter()
        for body in HOSTILE:
            answer = await service.post(body, content_type=content_type)
            outcomes[answer.status_code] += 1
            assert answer.status_code in (202, 400, 413, 422), body[:80]
            json.loads(answer.content)
        assert outcomes[202] and outcomes[400]
        assert (await service.post(EVENT)).status_code == 202
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


# -- how much it takes of memory ---------------------------------------------------------------


@needs_proc
async def test_a_bomb_is_refused_without_taking_memory(valkey: Valkey, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    assert len(bomb) < 66_000
    limit = str(2 * MIB)
    async with (
        spawned(tmp_path, REDIS_ADDR=valkey.url, ROLE="collector", MAX_BODY_BYTES=limit) as process,
        httpx.AsyncClient(base_url=process.url, trust_env=False) as http,
    ):
        await process.ready()
        packed = {"Content-Encoding": "gzip"}
        the_problem(await http.post("/ingest", content=bomb, headers=packed), 413)
        before = peak_memory(process.popen.pid, reset=True)
        for _ in range(5):
            the_problem(await http.post("/ingest", content=bomb, headers=packed), 413)
        assert peak_memory(process.popen.pid) - before < 4 * MIB


@needs_proc
async def test_a_body_that_is_too_large_is_refused_while_it_comes_and_the_client_hears_of_it(
    valkey: Valkey, tmp_path: Path
) -> None:
    size = 100 * MIB
    limit = str(MIB)
    announced = request(b"").replace(b"Length: 0", b"Length: %d" % size)
    chunked = request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    async with spawned(
        tmp_path, REDIS_ADDR=valkey.url, ROLE="collector", MAX_BODY_BYTES=limit
    ) as process:
        await process.ready()
        async with connected(process.url) as connection:
            await connection.send(request(RAW))
            assert (await connection.answer()).status == 202
        before = peak_memory(process.popen.pid, reset=True)
        for head, piece in (
            (announced, bytes(MIB)),
            (chunked, b"100000\r\n" + bytes(MIB) + b"\r\n"),
        ):
            async with connected(process.url) as connection:
                await connection.send(head + piece + piece)
                # The answer is there although the body is not at its end.
                answer = await connection.answer()
                assert answer.status == 413
                assert answer.headers["connection"] == "close"
                for _ in range(98):  # a client that writes it all first must not be reset
                    await connection.send(piece)
                await connection.send(b"" if head is announced else b"0\r\n\r\n")
                assert await connection.rest() == b""
        assert peak_memory(process.popen.pid) - before < 4 * MIB


# -- what the wire does ------------------------------------------------------------------------


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(valkey: Valkey) -> None:
    async with collecting(valkey) as service, connected(service.url) as connection:
        whole = request(RAW, "Expect: 100-continue")
        await connection.send(whole[: -len(RAW)])
        assert (await connection.answer()).status == 100
        await connection.send(RAW)
        assert (await connection.answer()).status == 202


async def test_a_client_that_asks_before_it_sends_is_refused_without_sending(
    valkey: Valkey,
) -> None:
    expecting = "Expect: 100-continue"
    async with collecting(valkey, ingest_tokens="secret", max_body_bytes=1000) as service:
        for head, status in (
            (request(bytes(900), expecting), 401),
            (request(bytes(1001), expecting, "Authorization: Bearer secret"), 413),
        ):
            async with connected(service.url) as connection:
                await connection.send(head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
                assert (await connection.answer()).status == status


async def test_a_refused_event_leaves_the_connection_open_for_the_next_request(
    valkey: Valkey,
) -> None:
    async with collecting(valkey) as service, connected(service.url) as connection:
        await connection.send(request(b"{}") + request(RAW) + request(b"{") + request(RAW))
        statuses = [(await connection.answer()).status for _ in range(4)]
        assert statuses == [422, 202, 400, 202]
        assert len(stored(valkey)) == 2


async def test_what_follows_a_body_that_was_not_read_is_not_taken_for_a_request(
    valkey: Valkey,
) -> None:
    async with (
        collecting(valkey, ingest_tokens="secret") as service,
        connected(service.url) as connection,
    ):
        hidden = request(RAW, "Authorization: Bearer secret")
        await connection.send(request(hidden) + hidden)
        answer = await connection.answer()
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
        assert await connection.rest() == b""
        assert stored(valkey) == {}


async def test_http_1_0_is_answered_and_closed(valkey: Valkey) -> None:
    async with collecting(valkey) as service, connected(service.url) as connection:
        await connection.send(request(RAW, start="POST /ingest HTTP/1.0"))
        assert (await connection.answer()).status == 202
        assert await connection.rest() == b""


CHUNKED = "Transfer-Encoding: chunked"


MALFORMED = (
    request(RAW, CHUNKED),
    request(RAW, "Content-Length: 5"),
    request(RAW).replace(b"Length: 28", b"Length: +28"),
    request(RAW).replace(b"Length: 28", b"Length: \xb2"),
    request(RAW).replace(b"Length: 28", b"Length: -1"),
    request(RAW).replace(b"Length: 28", b"Length: 99999999999999999999999"),
    request(b"", CHUNKED).replace(b"Content-Length: 0\r\n", b"") + b"zz\r\n\r\n",
    request(b"", CHUNKED).replace(b"Content-Length: 0\r\n", b"") + b"-5\r\nabcde\r\n",
    request(RAW, "Transfer-Encoding: gzip, chunked"),
    request(RAW, " folded: yes"),
    request(RAW, "na me: x"),
    request(RAW, start="POST /ingest HTTP/9.9"),
    request(RAW, start="OPTIONS * HTTP/1.1"),
    request(RAW, start="CONNECT other:80 HTTP/1.1"),
    request(RAW, start="GET http:// HTTP/1.1"),
    request(RAW, start="POST /\xff HTTP/1.1"),
    request(RAW, start="POST /%ff%00 HTTP/1.1"),
    request(RAW, start="BREW /ingest HTTP/1.1"),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    b"\r\n\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


async def test_a_malformed_request_is_refused_and_never_answered_twice(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(valkey) as service:
        for data in MALFORMED:
            async with connected(service.url) as connection:
                await connection.send(data)
                connection.writer.write_eof()
                got = await connection.rest()
            assert got.count(b"HTTP/1.1 ") <= 1, data
            assert not got or got.split()[1] in (b"400", b"404", b"405"), (data, got)
        assert stored(valkey) == {}
        assert (await service.post(EVENT)).status_code == 202
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_no_trace(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(valkey, ingest_tokens="secret") as service:
        token = "Authorization: Bearer secret"
        heads = (request(RAW, token), request(RAW), request(RAW, token, "Content-Encoding: gzip"))
        for head in heads:
            for size in (10, len(head) - len(RAW), len(head) - 20, len(head) - 1):
                async with connected(service.url) as connection:
                    await connection.send(head[:size])
        await wait_until(lambda: not service.server.server_state.tasks, "no request is left")
        await wait_until(lambda: not service.server.server_state.connections, "all are closed")
        assert stored(valkey) == {}
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


# -- retries -----------------------------------------------------------------------------------


async def test_a_repeated_request_is_stored_once_and_answered_as_the_first_time(
    valkey: Valkey,
) -> None:
    async with collecting(valkey) as service:
        batch = [EVENT, {"source": "x"}, EVENT]
        for body, key in ((EVENT, "one"), (batch, "many"), ([EVENT], "array of one")):
            first = await service.post(body, idempotency_key=key)
            await service.post({**EVENT, "message": "between"})
            for _ in range(3):
                again = await service.post(body, idempotency_key=key)
                assert again.status_code == first.status_code == 202
                assert again.json() == first.json()
        assert len([text for text in texts(valkey) if text == "b"]) == 4
        assert await metric(service, 'logpipe_ingest_events_total{outcome="repeated"}') == 12


async def test_repeats_that_come_at_the_same_time_are_stored_once(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answers = await asyncio.gather(
            *(service.post(EVENT, idempotency_key="same") for _ in range(30))
        )
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len(stored(valkey)) == 1


async def test_a_refused_request_does_not_use_up_its_key(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        assert (await service.post({}, idempotency_key="k")).status_code == 422
        assert (await service.post(EVENT, idempotency_key="k")).status_code == 202


async def test_a_key_is_forgotten_after_ten_minutes(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        await service.post(EVENT, idempotency_key="k")
        remaining: Any = valkey.client.ttl(
            companion_key("logs", "once", scope_of("ingest", None) + "k")
        )
        assert 590 <= remaining <= 600


# -- who may send ------------------------------------------------------------------------------


async def test_without_a_token_nobody_sends_and_a_wrong_one_is_forbidden(valkey: Valkey) -> None:
    async with collecting(valkey, ingest_tokens="one,two") as service:
        for header in ({}, {"authorization": "Digest one"}, {"authorization": "Bearer"}):
            answer = await service.post(EVENT, **header)
            the_problem(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for wrong in ("three", "on", "one,two", "ONE"):
            the_problem(await service.post(EVENT, authorization=f"Bearer {wrong}"), 403)
        for right in ("Bearer one", "bearer two", "Bearer  two"):
            assert (await service.post(EVENT, authorization=right)).status_code == 202
        assert len(stored(valkey)) == 3


async def test_tokens_may_come_from_a_file_one_a_line(valkey: Valkey, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first\nsecond\n")
    async with (
        spawned(
            tmp_path, REDIS_ADDR=valkey.url, ROLE="collector", INGEST_TOKENS_FILE=str(tokens)
        ) as process,
        httpx.AsyncClient(base_url=process.url, trust_env=False) as http,
    ):
        await process.ready()
        for token, status in (("first", 202), ("second", 202), ("third", 403)):
            bearer = {"Authorization": f"Bearer {token}"}
            answer = await http.post("/ingest", content=RAW, headers=bearer)
            assert answer.status_code == status
        assert "second" not in process.log.read_text()


async def test_a_browser_of_an_allowed_origin_may_send(valkey: Valkey) -> None:
    async with collecting(valkey, cors_allow_origins="https://good.example") as service:
        preflight = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, idempotency-key, authorization",
        }
        good = await service.http.options(
            "/ingest", headers={"Origin": "https://good.example", **preflight}
        )
        assert good.status_code == 200
        assert good.headers["access-control-allow-origin"] == "https://good.example"
        bad = await service.http.options(
            "/ingest", headers={"Origin": "https://bad.example", **preflight}
        )
        assert "access-control-allow-origin" not in bad.headers
        answer = await service.post({}, origin="https://good.example")
        assert answer.status_code == 422
        assert answer.headers["access-control-allow-origin"] == "https://good.example"
        assert "access-control-allow-credentials" not in answer.headers


# -- when Redis is not there -------------------------------------------------------------------


async def test_without_redis_the_client_is_asked_to_come_back(tmp_path: Path) -> None:
    async with serving(redis_addr=f"unix://{tmp_path}/none", role="collector") as service:
        started = fair_time()
        answer = await service.post(EVENT)
        assert fair_time() - started < 2
        assert the_problem(answer, 503)["redis"] == "away"
        assert int(answer.headers["retry-after"]) >= 1
        the_problem(await service.post({}), 422)  # what is wrong with the event comes first


async def test_a_hung_redis_is_answered_within_two_seconds_also_behind_a_queue(
    own_valkey: Valkey,
) -> None:
    async with collecting(own_valkey) as service:
        assert (await service.post(EVENT)).status_code == 202

        async def timed() -> float:
            started = fair_time()
            the_problem(await service.post(EVENT), 503)
            return fair_time() - started

        own_valkey.signal(signal.SIGSTOP)
        try:
            tasks = []
            for _ in range(30):
                tasks.append(asyncio.create_task(timed()))
                await asyncio.sleep(0.08)
            times = await asyncio.gather(*tasks)
        finally:
            own_valkey.signal(signal.SIGCONT)
        assert max(times) < 2.1

        async def taken() -> bool:
            return (await service.post(EVENT)).status_code == 202

        await wait_until(taken, "events are taken again")


@pytest.mark.parametrize("path", ["/ingest", "/ingest/json"])
async def test_a_damaged_body_that_came_whole_costs_no_connection(
    valkey: Valkey, path: str
) -> None:
    async with serving(redis_addr=valkey.url, role="collector") as service:
        answer = await service.http.post(path, content=b"x", headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 400
        assert "connection" not in answer.headers


async def test_a_parameter_of_ingest_is_rejected_by_its_name(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post("/ingest?source=x", content=RAW)
        problem = the_problem(answer, 400)
        assert problem["parameter"] == "source"
        assert "/ingest/json has source" in problem["detail"]
        foreign = {"Origin": service.url}  # answered past the fast path
        answer = await service.http.post("/ingest?levl=x", content=RAW, headers=foreign)
        assert the_problem(answer, 400)["nearest"] == "level"
        assert (await service.http.post("/ingest?_=17", content=RAW)).status_code == 202
        assert texts(valkey) == ["b"]


async def test_receivers_ignore_parameters_that_they_do_not_know(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post("/ingest/json?pipeline=x", content=RAW)
        assert answer.status_code == 202


@pytest.mark.parametrize(
    ("path", "kind", "line"),
    [
        ("/ingest", "application/x-ndjson", b"{\n"),
        ("/ingest", "application/json", b"{\n"),
        ("/ingest/json", "text/plain", b"a\n"),
        ("/syslog", "text/plain", b"a\n"),
    ],
)
async def test_a_small_body_of_very_many_events_holds_up_nothing(
    valkey: Valkey, path: str, kind: str, line: bytes
) -> None:
    async with collecting(valkey) as service:
        turns = Turns()
        turning = asyncio.create_task(turns.run())
        body = line * (60_000 // len(line))
        with unmeasured():
            answer = await service.http.post(path, content=body, headers={"Content-Type": kind})
        turning.cancel()
        assert answer.status_code < 500
        assert turns.longest_s < 0.05
