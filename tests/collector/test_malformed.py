"""One malformed line of a thousand, by every path that takes lines of JSON."""

from typing import Any

import pytest

from logpipe.collector.receivers import datadog, gelf, splunk
from tests.collector.receivers.samples import collecting, texts
from tests.servers import Valkey

GOOD = [b'{"source":"nd","message":"line %d"}' % number for number in range(1_000)]
BAD = [b'{"source":"nd","message":"broken}', b"plain panic: boom", b'{"source":"nd","mess']
TYPES = ["", "application/x-www-form-urlencoded", "application/json", "text/plain",
         "application/x-ndjson"]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        *[("/ingest", each) for each in TYPES],
        *[("/ingest/json", each) for each in TYPES if each != "text/plain"],
        *[(gelf.PATHS[0], each) for each in TYPES],
    ],
)
async def test_a_malformed_line_costs_itself(valkey: Valkey, path: str, content_type: str) -> None:
    lines = [GOOD[0], BAD[0], *GOOD[2:500], *BAD[1:], *GOOD[502:]]
    expected = tuple(f"line {number}" for number in range(1_000) if number not in (1, 500, 501))
    async with collecting(valkey) as service:
        answer = await service.http.post(
            path, content=b"\n".join(lines), headers={"Content-Type": content_type}
        )
        assert answer.status_code == 202
        assert texts(valkey) == expected
        if path != gelf.PATHS[0]:
            answered = answer.json()
            assert (answered["accepted"], answered["rejected"]) == (997, 3)
            assert [each["index"] for each in answered["errors"]] == [1, 500, 501]
            assert not any("unread_from_byte" in each for each in answered["errors"])


@pytest.mark.parametrize(("path", "status"), [(splunk.BASE, 200), (datadog.PATHS[0], 202)])
@pytest.mark.parametrize("between", [b"\n", b""])
async def test_a_malformed_envelope_costs_itself(
    valkey: Valkey, path: str, status: int, between: bytes
) -> None:
    name = b'"event"' if path == splunk.BASE else b'"message"'
    bad = BAD[0] if between else b'{"broken"}'
    lines = [GOOD[0], bad, GOOD[2], GOOD[3]]
    body = between.join(line.replace(b'"message"', name) for line in lines)
    async with collecting(valkey) as service:
        answer = await service.http.post(path, content=body)
        assert answer.status_code == status
        assert texts(valkey) == ("line 0", "line 2", "line 3")


@pytest.mark.parametrize("path", ["/ingest", "/ingest/json"])
@pytest.mark.parametrize("opening", [b"", b"["])
async def test_the_answer_names_the_first_unread_byte(
    valkey: Valkey, path: str, opening: bytes
) -> None:
    comma = b"," if opening else b""
    body = opening + comma.join([GOOD[0], BAD[2] + b"}", GOOD[2]])
    async with collecting(valkey) as service:
        answer = await service.http.post(path, content=body)
        assert answer.status_code == 202
        assert texts(valkey) == ("line 0",)
        answered: Any = answer.json()
        assert (answered["accepted"], answered["rejected"]) == (1, 1)
        (error,) = answered["errors"]
        start = len(opening) + len(GOOD[0]) + len(comma)
        assert (error["index"], error["unread_from_byte"]) == (1, start)
        assert f"not read from byte {start} on" in error["error"]


@pytest.mark.parametrize("opening", [b"", b"["])
async def test_text_that_is_not_utf8_costs_its_event_at_ingest_alone(
    valkey: Valkey, opening: bytes
) -> None:
    latin = b'{"source":"nd","message":"Gr\xfc\xdfe"}'
    body = (b",\n" if opening else b"\n").join([GOOD[0], latin, GOOD[2]])
    body = opening + body + (b"]" if opening else b"")
    async with collecting(valkey) as service:
        answer = await service.http.post("/ingest", content=body)
        assert answer.json()["errors"] == [{"index": 1, "error": "JSON is not UTF-8"}]
        assert texts(valkey) == ("line 0", "line 2")
        answer = await service.http.post("/ingest/json", content=body)
        assert (answer.json()["accepted"], answer.json()["rejected"]) == (3, 0)
        assert texts(valkey)[2:] == ("line 0", "Gr\ufffd\ufffde", "line 2")
        alone = await service.http.post("/ingest", content=latin)
        assert (alone.status_code, alone.json()["detail"]) == (400, "Event 0: JSON is not UTF-8.")


async def test_text_that_begins_with_a_bracket_is_stored_as_lines(valkey: Valkey) -> None:
    body = b"[2024-05-02 10:00:00] ERROR boom\n[2024-05-02 10:00:01] INFO ok\n"
    async with collecting(valkey) as service:
        answer = await service.http.post("/ingest/json?source=app", content=body)
        assert (answer.status_code, answer.json()["accepted"]) == (202, 2)
        assert texts(valkey) == tuple(body.decode().splitlines())
        for path, headers in (("/ingest", {}), ("/ingest/json", {"Content-Type": "text/json"})):
            answer = await service.http.post(path, content=body, headers=headers)
            assert answer.status_code == 400
        assert len(texts(valkey)) == 2
