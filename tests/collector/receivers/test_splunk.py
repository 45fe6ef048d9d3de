import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logpipe.collector.receivers.splunk import parse, parse_raw
from logpipe.event import Event
from tests.collector.receivers.parsing import event, events, items
from tests.collector.receivers.samples import TOKEN, basic, collecting, outcomes, stored, texts
from tests.helpers import wait_until
from tests.servers import Valkey, serving

BASE = "/services/collector"


def one(envelope: dict[str, Any]) -> Any:
    return event(parse, json.dumps(envelope).encode())


def test_dockers_event_is_read_as_docker_means_it() -> None:
    found = one(
        {
            "host": "docker-1", "time": "1710000000.123456",
            "event": {"line": "m", "tag": "web/1", "source": "stderr", "attrs": {"k": "v"}},
        }
    )  # fmt: skip
    assert (found.source, found.message, found.level) == ("web/1", "m", "INFO")
    assert found.ts_unix_ms == 1_710_000_000_123
    assert found.metadata == {
        "host.name": "docker-1", "log.iostream": "stderr", "tag": "web/1", "attrs": {"k": "v"},
    }  # fmt: skip


def test_everything_that_an_envelope_says_is_kept() -> None:
    found = one(
        {
            "time": 1_710_000_000.123, "host": "h", "source": "/var/log/x", "sourcetype": "st",
            "index": "main", "event": "m", "other": [1],
            "fields": {"severity": "warn", "service.name": "svc", "pod": "p", "k": ["a"]},
        }
    )  # fmt: skip
    assert (found.source, found.level, found.ts_unix_ms) == ("svc", "WARN", 1_710_000_000_123)
    assert found.metadata == {
        "host.name": "h", "com.splunk.source": "/var/log/x", "com.splunk.sourcetype": "st",
        "com.splunk.index": "main", "service.name": "svc", "k8s.pod.name": "p", "k": ["a"],
        "other": [1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("envelope", "source"),
    [
        ({"source": "a", "sourcetype": "b", "host": "c"}, "a"),
        ({"sourcetype": "b", "host": "c"}, "b"),
        ({"host": "c"}, "c"),
        ({}, "splunk"),
        ({"host": 7}, "7"),
        ({"source": None}, "splunk"),
        ({"fields": "x"}, "splunk"),
    ],
)
def test_a_source_is_the_most_telling_of_what_there_is(
    envelope: dict[str, Any], source: str
) -> None:
    assert one({"event": "m", **envelope}).source == source


def test_an_event_of_any_kind_is_a_message() -> None:
    found = events(parse, b'{"event":1}{"event":[1,"a"]}{"event":false}{"event":{"a":1}}')
    assert [each.message for each in found] == ["1", '[1,"a"]', "false", '{"a":1}']
    inner = one({"event": {"message": "m", "level": "error", "time": 5, "k": 1}})
    assert (inner.message, inner.level, inner.ts_unix_ms) == ("m", "ERROR", 5000)
    assert inner.metadata == {"k": 1}


def test_what_one_envelope_says_of_its_origin_holds_for_those_after_it() -> None:
    body = (
        b'{"event":"1","host":"h","source":"s"} {"event":"2"}\n'
        b'{"event":"3","host":"i"}{"event":"4"}'
    )
    found = [(each.source, each.metadata["host.name"]) for each in events(parse, body)]
    assert found == [("s", "h"), ("s", "h"), ("s", "i"), ("s", "i")]


def test_raw_lines_are_events_of_which_parameters_tell_the_origin() -> None:
    one, two = events(parse_raw, b"one\r\n\ncaf\xe9", query={"host": "h", "sourcetype": "st"})
    assert (one.message, two.message) == ("one", "caf\ufffd")
    assert (one.source, one.metadata["host.name"]) == ("st", "h")


@pytest.mark.parametrize(
    ("body", "code", "number"),
    [
        (b"", 5, None),
        (b" \n", 5, None),
        (b"nonsense", 6, 0),
        (b'{"event":', 6, 0),
        (b"[7]", 6, 0),
        (b'{"x":1}{"event":""}', 12, 0),
        (b'{"event":null}', 12, 0),
        (b'{"event":""}', 13, 0),
        (b"[" * 100_000, 6, 0),
    ],
    ids=range(9),
)
async def test_what_is_wrong_has_splunks_number_and_that_of_the_event(
    valkey: Valkey, body: bytes, code: int, number: int | None
) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post(BASE, content=body)
        assert answer.status_code == 400
        told = answer.json()
        assert told["code"] == code
        assert told["text"]
        assert told.get("invalid-event-number") == number
        assert stored(valkey) == []


@pytest.mark.parametrize(
    "path", ["", "/event", "/event/1.0", "/raw", "/raw/1.0", "/raw?channel=0000-0000"]
)
async def test_every_path_answers_success(valkey: Valkey, path: str) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post(BASE + path, content=b'{"event":"m"}')
        assert answer.status_code == 200
        assert answer.content == b'{"text":"Success","code":0}'
        assert texts(valkey) == ('{"event":"m"}' if "raw" in path else "m",)


@pytest.mark.parametrize(
    ("headers", "query", "status", "code"),
    [
        ({}, "", 401, 2),
        ({"Authorization": "Splunk"}, "", 401, 2),
        ({"Authorization": "Splunk wrong"}, "", 403, 4),
        ({}, "?token=wrong", 403, 4),
        ({"Authorization": f"Splunk {TOKEN}"}, "", 200, 0),
        (basic("any", TOKEN), "", 200, 0),
        ({}, f"?token={TOKEN}", 200, 0),
    ],
)
async def test_a_token_comes_in_one_of_three_ways(
    valkey: Valkey, headers: dict[str, str], query: str, status: int, code: int
) -> None:
    async with collecting(valkey, ingest_tokens=TOKEN) as service:
        answer = await service.http.post(f"{BASE}{query}", content=b'{"event":1}', headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_docker_asks_by_options_and_without_a_token(valkey: Valkey) -> None:
    async with collecting(valkey, ingest_tokens=TOKEN) as service:
        for path in ("", "/event", "/event/1.0"):
            assert (await service.http.options(BASE + path)).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/health/1.0"])
async def test_health_says_without_a_token_whether_events_are_taken(
    valkey: Valkey, path: str
) -> None:
    async with collecting(valkey, ingest_tokens=TOKEN) as service:

        async def healthy() -> bool:
            answer = await service.http.get(BASE + path)
            return answer.status_code == 200 and answer.json()["code"] == 17

        await wait_until(healthy, "it is healthy")
    async with serving(redis_addr="unix:///nowhere/v.sock", role="collector") as service:
        answer = await service.http.get(BASE + path)
        assert (answer.status_code, answer.json()["code"]) == (503, 18)


async def test_redis_away_is_server_busy() -> None:
    async with serving(redis_addr="unix:///nowhere/v.sock", role="collector") as service:
        answer = await service.http.post(BASE, content=b'{"event":1}')
        assert (answer.status_code, answer.json()["code"]) == (503, 9)


BAD = (b'{"x":1}', b'{"event":null}', b'{"event":""}', b"7", b'"text"', b"{broken}")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.integers(0, 999), st.sampled_from(BAD))))
def test_all_good_events_of_a_mixture_are_stored_in_order(parts: list[int | bytes]) -> None:
    """By lines, where the end of a malformed one is known."""
    body = b"\n".join(p if isinstance(p, bytes) else b'{"event":"%d"}' % p for p in parts)
    found = items(parse, body)
    good = [each.message for each in found if isinstance(each, Event)]
    assert good == [str(part) for part in parts if isinstance(part, int)]
    assert len(found) == len(parts)


def test_a_rejected_envelope_passes_on_its_origin() -> None:
    _, found = items(parse, b'{"event":"","host":"h"}{"event":"a"}')
    assert isinstance(found, Event)
    assert found.metadata == {"host.name": "h"}


async def test_good_events_are_stored_and_rejected_ones_counted(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"event":"a"}{"event":""}\n{broken}\n{"event":"b"}{"time":1}'
    async with collecting(valkey) as service:
        answer = await service.http.post(BASE, content=body)
        assert (answer.status_code, answer.content) == (200, b'{"text":"Success","code":0}')
        assert texts(valkey) == ("a", "b")
        assert await outcomes(service, "splunk") == {"accepted": 2, "rejected": 3}
    told = [each for each in caplog.messages if "rejected" in each]
    assert told == ["splunk: events rejected: 3; the first: Event field cannot be blank"]
