import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logpipe.collector.receivers.datadog import parse
from logpipe.event import Event
from tests.collector.receivers.parsing import JSON, event, events, items
from tests.collector.receivers.samples import TOKEN, collecting, outcomes, stored, texts
from tests.servers import Valkey


def one(entry: Any) -> Any:
    return event(parse, json.dumps(entry).encode(), headers=JSON)


def test_everything_that_an_entry_says_is_kept() -> None:
    found = one(
        {
            "message": "m", "status": "warning", "timestamp": 1_710_000_000_123, "hostname": "h",
            "service": "s", "ddsource": "python", "ddtags": "env:prod,version:1.2,team:a,team:b,x",
            "dd.trace_id": "7",
        }
    )  # fmt: skip
    assert (found.source, found.level, found.message) == ("s", "WARN", "m")
    assert found.ts_unix_ms == 1_710_000_000_123
    assert found.metadata == {
        "severity_text": "warning", "service": "s", "host.name": "h",
        "datadog.log.source": "python", "deployment.environment.name": "prod",
        "service.version": "1.2", "team": ["a", "b"], "x": True, "dd.trace_id": "7",
    }  # fmt: skip


def test_a_message_that_is_an_object_is_taken_apart() -> None:
    found = one(
        {"message": {"message": "m", "level": "error", "k": 1, "status": 5}, "status": "info"}
    )
    assert (found.message, found.level) == ("m", "INFO")
    assert found.metadata == {"level": "error", "k": 1, "message.status": 5}


@pytest.mark.parametrize(
    ("entry", "source"),
    [({"service": "s", "ddsource": "d"}, "s"), ({"ddsource": "d"}, "d"), ({}, "datadog"),
     ({"service": 7, "ddsource": "d"}, "d"), ({"ddtags": 7}, "datadog")],
)  # fmt: skip
def test_a_source_is_the_service_or_what_datadog_calls_so(
    entry: dict[str, Any], source: str
) -> None:
    assert one({"message": "m", **entry}).source == source


def test_one_entry_many_and_texts_are_taken() -> None:
    assert [e.message for e in events(parse, b'{"message":1}', headers=JSON)] == ["1"]
    found = events(parse, b'[{"message":"a"},{},"b",{"message":null}]', headers=JSON)
    assert [each.message for each in found] == ["a", "b", '{"message":null}']


@pytest.mark.parametrize("body", [b"{", b"nonsense", b'["a', b"[" * 10_000])
async def test_what_is_no_json_is_a_400(valkey: Valkey, body: bytes) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post("/api/v2/logs", content=body, headers=JSON)
        assert (answer.status_code, bool(answer.json()["errors"])) == (400, True)
        assert stored(valkey) == []


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.integers(0, 999), st.sampled_from([b"{broken}", b'{"a":', b"x}"]))))
def test_all_good_entries_of_a_mixture_are_stored_in_order(parts: list[int | bytes]) -> None:
    body = b"\n".join(p if isinstance(p, bytes) else b'{"message":%d}' % p for p in parts)
    found = items(parse, body, headers=JSON)
    good = [each.message for each in found if isinstance(each, Event)]
    assert good == [str(part) for part in parts if isinstance(part, int)]
    assert (len(found) == len(good)) is (len(good) == len(parts))


async def test_good_entries_are_stored_and_rejected_ones_counted(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"message":"a"}\n{"message":"bro\n{"message":"b"}\n'
    async with collecting(valkey) as service:
        for path, status, protocol in (
            ("/api/v2/logs", 202, "datadog"), ("/v1/input", 200, "datadog-v1"),
        ):  # fmt: skip
            answer = await service.http.post(path, content=body, headers=JSON)
            assert (answer.status_code, answer.content) == (status, b"{}")
            assert await outcomes(service, protocol) == {"accepted": 2, "rejected": 1}
            assert f"{protocol}: events rejected: 1; the first: " in caplog.text
        assert texts(valkey) == ("a", "b") * 2


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"[{}]"])
async def test_nothing_keeps_the_connection_alive(valkey: Valkey, body: bytes) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post("/api/v2/logs", content=body)
        assert (answer.status_code, answer.content) == (202, b"{}")
        assert stored(valkey) == []


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/v2/logs", {}, 401),
        ("/api/v2/logs", {"DD-API-KEY": "wrong"}, 403),
        ("/api/v2/logs", {"DD-API-KEY": TOKEN}, 202),
        (f"/api/v2/logs?dd-api-key={TOKEN}", {}, 202),
        (f"/v1/input?api_key={TOKEN}", {}, 200),
        (f"/v1/input/{TOKEN}", {}, 200),
        ("/v1/input/wrong", {}, 403),
    ],
)
async def test_a_key_comes_in_a_header_a_parameter_or_version_1s_path(
    valkey: Valkey, path: str, headers: dict[str, str], status: int
) -> None:
    async with collecting(valkey, ingest_tokens=TOKEN) as service:
        answer = await service.http.post(path, content=b'{"message":"m"}', headers=headers)
        assert answer.status_code == status
        if status in (401, 403):
            assert answer.json()["errors"]
        else:
            assert texts(valkey) == ("m",)


async def test_a_key_can_be_asked_about(valkey: Valkey) -> None:
    async with collecting(valkey, ingest_tokens=TOKEN) as service:
        for key, status in ((TOKEN, 200), ("wrong", 403)):
            answer = await service.http.get("/api/v1/validate", headers={"DD-API-KEY": key})
            assert answer.status_code == status
        assert answer.json()["errors"]
