import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from logpipe.collector.receivers.gelf import parse
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON, event, items
from tests.collector.receivers.samples import collecting, stored, texts
from tests.servers import Valkey


def one(message: dict[str, Any]) -> Any:
    return event(parse, json.dumps(message).encode(), headers=JSON)


def test_everything_that_a_message_says_is_kept() -> None:
    found = one(
        {
            "version": "1.1", "host": "h", "short_message": "m", "full_message": "m\n  trace",
            "timestamp": 1_710_000_000.123, "level": 3, "facility": "f", "line": 7, "file": "x.py",
            "_container_name": "web", "_container_id": "c1", "_number": 1.5, "_host.name": "other",
        }
    )  # fmt: skip
    assert (found.source, found.level, found.message) == ("web", "ERROR", "m")
    assert found.ts_unix_ms == 1_710_000_000_123
    assert found.metadata == {
        "host.name": "h", "_host.name": "other", "log.record.original": "m\n  trace",
        "syslog.severity.code": 3, "gelf.facility": "f", "code.line.number": 7,
        "code.file.path": "x.py", "container.name": "web", "container.id": "c1", "number": 1.5,
    }  # fmt: skip


def test_without_a_service_the_host_is_the_source() -> None:
    assert one({"host": "h", "short_message": "m"}).source == "h"
    assert one({"short_message": "m"}).source == "gelf"
    assert one({"host": 7, "short_message": "m"}).source == "gelf"


@pytest.mark.parametrize(
    ("level", "name"),
    [(0, "FATAL"), (1, "FATAL"), (4, "WARN"), (5, "INFO"), (7, "DEBUG"), (None, "INFO"),
     ("error", "ERROR"), ({}, "INFO")],
)  # fmt: skip
def test_a_level_is_syslogs(level: Any, name: str) -> None:
    assert one({"short_message": "m", "level": level}).level == name


def test_a_short_message_of_another_kind_is_taken_as_its_json() -> None:
    assert one({"short_message": {"a": 1}}).message == '{"a":1}'
    assert one({"message": "m"}).message == "m"
    assert one({"short_message": ""}).message == ""


def test_one_a_line_is_taken_and_a_bad_one_keeps_no_good_one_out() -> None:
    found = items(parse, b'{"short_message":"a"}\n{"host":"h"}\n7\n{"short_message":"b"}')
    assert [isinstance(each, Problem) for each in found] == [False, True, True, False]


def test_a_malformed_line_costs_itself() -> None:
    body = b'{"short_message":"a"}\n{"short_message":"b}\npanic\n{"short_message":"c"}'
    found = items(parse, body)
    assert [isinstance(each, Problem) for each in found] == [False, True, True, False]


async def test_what_is_rejected_beside_stored_messages_is_counted(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        body = b'{"short_message":"a"}\n{"short_message":"b}\n{"host":"h"}\n{"message":"c"}'
        answer = await service.http.post("/gelf", content=body)
        assert (answer.status_code, answer.content) == (202, b"")
        assert texts(valkey) == ("a", "c")
        exposed = (await service.http.get("/metrics")).text
        counts = 'logpipe_receiver_events_total{outcome="%s",protocol="gelf"} 2.0'
        assert counts % "rejected" in exposed
        assert counts % "accepted" in exposed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"short_message":"a}\npanic\n',
        b'[{"short_message":"a"}]',
        b'{"host":"h"}',
        b"7",
        b"\xff",
    ],
)
async def test_what_is_no_message_is_a_400(valkey: Valkey, body: bytes) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post("/gelf", content=body)
        assert answer.status_code == 400
        assert stored(valkey) == []


@pytest.mark.parametrize("coding", ["", "gzip,deflate"])
@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress, bytes])
async def test_a_message_tells_by_its_first_bytes_how_it_is_packed(
    valkey: Valkey, pack: Callable[[bytes], bytes], coding: str
) -> None:
    """pygelf names two codings and uses one."""
    async with collecting(valkey, max_body_bytes=1000) as service:
        headers = {"Content-Encoding": coding} if coding else {}
        for text, status in (("m", 202), ("x" * 1000, 413)):
            body = pack(json.dumps({"short_message": text}).encode())
            answer = await service.http.post("/gelf", content=body, headers=headers)
            assert answer.status_code == status
        damaged = pack(b'{"short_message":"m"}')[:-1]
        assert (await service.http.post("/gelf", content=damaged)).status_code == 400
        assert texts(valkey) == ("m",)


async def test_success_is_202_without_a_body_and_options_are_answered(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post("/gelf", json={"short_message": "m"})
        assert (answer.status_code, answer.content) == (202, b"")
        assert (await service.http.options("/gelf")).status_code == 204
        assert texts(valkey) == ("m",)
