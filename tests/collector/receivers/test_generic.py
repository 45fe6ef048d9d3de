import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.collector.receivers.generic import MAX_LOOKED_AT, MAX_NAMES, parse
from logpipe.event import Event
from logpipe.problems import Problem
from tests.collector.receivers.parsing import JSON, event, events, items
from tests.collector.receivers.samples import collecting, stored, texts
from tests.servers import Valkey


def made(fields: dict[str, Any], **query: str) -> dict[str, Any]:
    found = event(parse, json.dumps(fields).encode(), headers=JSON, query=query)
    return {
        "source": found.source, "level": found.level, "message": found.message,
        "ts": found.ts_unix_ms, "metadata": found.metadata,
    }  # fmt: skip


PLAIN: dict[str, Any] = {
    "source": "json",
    "level": "INFO",
    "message": "m",
    "ts": None,
    "metadata": {},
}


@pytest.mark.parametrize(
    "name",
    [
        "message", "msg", "log", "_msg", "line", "event", "body", "short_message", "text",
        "MESSAGE",
    ],
)  # fmt: skip
def test_a_message_goes_by_many_names(name: str) -> None:
    assert made({name: "m"}) == PLAIN


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({"level": "warning"}, "WARN"),
        ({"severity": "ERROR"}, "ERROR"),
        ({"lvl": 50}, "ERROR"),
        ({"level": 3}, "ERROR"),
        ({"log": {"level": "debug"}}, "DEBUG"),
        ({"log.level": "debug"}, "DEBUG"),
        ({"levelname": "CRITICAL"}, "FATAL"),
        ({"level": {"x": 1}}, "INFO"),
    ],
)
def test_a_level_goes_by_many_names(fields: dict[str, Any], level: str) -> None:
    assert made({"message": "m", **fields})["level"] == level


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"source": "s"}, "s"),
        ({"service": "s"}, "s"),
        ({"service": {"name": "s"}}, "s"),
        ({"service.name": "s"}, "s"),
        ({"kubernetes": {"container_name": "s"}}, "s"),
        ({"host": "s"}, "s"),
        ({"host": {"name": "s"}}, "s"),
        ({"logger": "s", "host": "h"}, "s"),
        ({"source": "", "app": "s"}, "s"),
        ({"source": 7}, "json"),
    ],
)
def test_a_source_goes_by_many_names_and_stays_in_the_metadata_by_all_but_its_own(
    fields: dict[str, Any], source: str
) -> None:
    found = made({"message": "m", **fields})
    assert found["source"] == source
    kept = {name: value for name, value in fields.items() if (name, value) != ("source", "s")}
    assert found["metadata"] == kept


@pytest.mark.parametrize(
    "name", ["ts_unix_ms", "@timestamp", "timestamp", "time", "ts", "date", "_time", "datetime"]
)
def test_a_time_goes_by_many_names(name: str) -> None:
    assert made({"message": "m", name: 1_710_000_000.5}) == {**PLAIN, "ts": 1_710_000_000_500}


def test_a_time_that_is_none_stays_where_it_is() -> None:
    found = made({"message": "m", "time": "soon", "ts": 1})
    assert (found["ts"], found["metadata"]) == (1000, {"time": "soon"})


def test_everything_else_is_metadata() -> None:
    fields = {"message": "m", "a": 1, "b": {"c": [1, None, 1.5]}, "metadata": {"a": 2, "d": True}}
    assert made(fields)["metadata"] == {"a": 2, "_a": 1, "d": True, "b": {"c": [1, None, 1.5]}}


def test_an_object_without_a_text_is_shown_whole() -> None:
    found = made({"cpu": 1.5, "date": 1})
    assert json.loads(found["message"]) == {"cpu": 1.5}
    assert (found["ts"], found["metadata"]) == (1000, {"cpu": 1.5})


@pytest.mark.parametrize("value", ["text", 1, None, True, 1.5])
def test_a_value_that_is_no_object_is_a_message(value: object) -> None:
    (found,) = events(parse, json.dumps([value]).encode(), headers=JSON)
    assert found.message == (value if isinstance(value, str) else json.dumps(value))


def test_the_names_may_be_chosen_by_the_request() -> None:
    fields = {"a": {"b": "m"}, "who": "s", "how": "error", "when": 1, "message": "other"}
    chosen = {
        "message_field": "x,a.b", "source_field": "who", "level_field": "how", "time_field": "when",
    }  # fmt: skip
    expected = {
        "source": "s", "level": "ERROR", "message": "m", "ts": 1000,
        "metadata": {"who": "s", "message": "other"},
    }  # fmt: skip
    assert made(fields, **chosen) == expected
    headers = {f"x-logpipe-{k.replace('_', '-')}": v for k, v in chosen.items()}
    found = event(parse, json.dumps(fields).encode(), headers=JSON | headers)
    assert (found.source, found.message, found.ts_unix_ms) == ("s", "m", 1000)


def test_a_request_chooses_a_bounded_number_of_names() -> None:
    names = ",".join(f"a{number}" for number in range(MAX_NAMES))
    assert (
        event(parse, b'{"a19": "x"}', headers=JSON, query={"message_field": names}).message == "x"
    )
    with pytest.raises(Problem, match=r"^message_field: may have 20 names") as caught:
        items(parse, b"{}", headers=JSON, query={"message_field": f"{names},b"})
    assert caught.value.status == 400


def test_source_and_level_may_be_given_by_the_request() -> None:
    found = made({"message": "m", "source": "s", "level": "info"}, source="tag", level="error")
    assert (found["source"], found["level"]) == ("tag", "ERROR")
    assert found["metadata"] == {"level": "info"}
    utf8 = "täg".encode().decode("latin-1")  # as servers decode headers
    assert event(parse, b"line", headers={"x-logpipe-source": utf8}).source == "täg"


def test_a_path_of_a_thousand_dots_is_no_reason_to_fail() -> None:
    assert made({"message": "m"}, source_field="a." * 5000)["source"] == "json"


TWO = b'{"msg":"one"}\n{"msg":"two"}'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'[{"msg":"one"},{"msg":"two"}]', "application/json"),
        (TWO, "application/json"),
        (TWO.replace(b"\n", b""), "application/json; charset=utf-8"),
        (TWO, "application/x-ndjson"),
        (TWO.replace(b"\n", b"\r\n\n") + b"\n", "application/jsonl"),
        (TWO, "application/stream+json"),
        (b'[{"msg":"one"},{"msg":"two"}]\n', "application/x-ndjson"),
        (b"one\ntwo", "text/plain"),
        (b"one\r\n\r\ntwo\r\n", "text/plain; charset=utf-8"),
        (TWO, ""),
        (TWO, "application/x-www-form-urlencoded"),
        (b"one\ntwo\n", "application/octet-stream"),
        (b' ["one", "two"]', ""),
    ],
)
def test_many_forms_are_taken(body: bytes, content_type: str) -> None:
    found = events(parse, body, headers={"content-type": content_type})
    assert [each.message for each in found] == ["one", "two"]


def test_a_line_of_text_is_a_message_whatever_it_looks_like() -> None:
    found = events(parse, b'{"msg":"one"}\n caf\xe9', headers={"content-type": "text/plain"})
    assert [each.message for each in found] == ['{"msg":"one"}', " caf\ufffd"]


def test_a_bad_line_keeps_no_good_one_out() -> None:
    body = b'{"msg":"one"}\n{"msg":\n\n{"msg":"two"}\n'
    found = items(parse, body, headers={"content-type": "application/x-ndjson"})
    assert [isinstance(each, Problem) for each in found] == [False, True, False]


UNTYPED = ["", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"]


@pytest.mark.parametrize(
    "lines",
    [
        [b"[2024-05-02 10:00:00] ERROR boom", b"[2024-05-02 10:00:01] INFO {ok}"],
        [b"[error] 12#12: x"],
        [b"[1] one", b"[2] two"],
        [b"{worker-1} started", b"", b'  {"a":1} is what came'],
        [b"{ level: 'debug' }"],
        [b'{"message":"cut in the mid'],
        [b'{"message":"a","x":NaN}'],
        [b"[" * 2_000 + b" caf\xe9"],
    ],
)
def test_text_that_begins_with_a_bracket_is_lines(lines: list[bytes]) -> None:
    for content_type in UNTYPED:
        for end in (b"\n", b"\r\n"):
            found = events(parse, end.join(lines), headers={"content-type": content_type})
            assert [each.message for each in found] == [
                line.decode(errors="replace") for line in lines if line
            ]
            assert {each.source for each in found} == {"json"}


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
def test_text_that_is_said_to_be_json_is_no_text(content_type: str) -> None:
    body = b"[2024-05-02 10:00:00] ERROR boom\n[error] 12#12: x"
    found = items(parse, body, headers={"content-type": content_type})
    assert [type(each) for each in found] == [Problem, Problem]


@pytest.mark.parametrize("content_type", UNTYPED[:3])
def test_lines_of_text_among_json_are_refused(content_type: str) -> None:
    body = b'[error] x\n{"msg":"one"}\n[error] y\n{"msg":"two"}'
    found = items(parse, b"{\n" + body, headers={"content-type": content_type})
    assert [each.message for each in found if not isinstance(each, Problem)] == ["one", "two"]
    assert len(found) == 5


def test_an_object_is_looked_for_in_a_bounded_part_of_a_text() -> None:
    lines = [b"[error] x"] * (MAX_LOOKED_AT + 1)
    early = items(parse, b"\n".join([*lines[2:], TWO]))
    assert [type(each) for each in early[-3:]] == [Problem, Event, Event]
    late = events(parse, b"\n".join([*lines, TWO]))
    assert [each.message for each in late[-2:]] == TWO.decode().splitlines()


def test_a_byte_order_mark_is_skipped() -> None:
    mark = b"\xef\xbb\xbf"
    for body in (TWO, b"[" + TWO.replace(b"\n", b",") + b"]"):
        for content_type in ("", "application/json"):
            found = events(parse, mark + body, headers={"content-type": content_type})
            assert [each.message for each in found] == ["one", "two"]
    for content_type in ("", "text/plain"):
        found = events(parse, mark + b"one\ntwo", headers={"content-type": content_type})
        assert [each.message for each in found] == ["one", "two"]
    found = events(parse, mark + TWO, headers={"content-type": "application/x-ndjson"})
    assert [each.message for each in found] == ["one", "two"]
    (_, bad) = items(parse, mark + b'{"a":1}{"b":', headers=JSON)
    assert isinstance(bad, Problem)
    assert bad.members == {"unread_from_byte": 10}


@given(st.lists(st.text(), min_size=1), st.integers(0, 3), st.sampled_from(["", *JSON.values()]))
def test_malformed_lines_cost_themselves(texts: list[str], place: int, content_type: str) -> None:
    lines = [json.dumps({"msg": text}).encode() for text in texts]
    for bad in (b'{"msg":"broken}', b"panic: boom", b"[error] x", b'{"msg":"a"} x'):
        lines.insert(place + 1, bad)  # not the first: it would say that the body is text
    found = items(parse, b"\n".join(lines), headers={"content-type": content_type})
    assert len(found) == len(lines)
    assert sum(isinstance(each, Problem) for each in found) == 4
    good = [
        each.metadata["msg"] if text == "" else each.message
        for text, each in zip(
            texts, (each for each in found if isinstance(each, Event)), strict=True
        )
    ]
    assert good == texts


async def test_the_answer_counts_and_names_what_was_refused(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post(
            "/ingest/json",
            content=b'{"msg":"one"}\n{"msg":\n{"msg":"two"}',
            headers={"Content-Type": "application/x-ndjson"},
        )
        assert answer.status_code == 202
        told = answer.json()
        assert (told["accepted"], told["rejected"]) == (2, 1)
        assert [each["index"] for each in told["errors"]] == [1]
        found: Any = valkey.client.xrange("logs")
        ids = [id_.decode() for id_, _ in found]
        assert [told["first_id"], told["last_id"]] == ids
        assert texts(valkey) == ("one", "two")


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\n\n", "text/plain", 400),
        (b"nonsense", "application/json", 400),
        (b"x", "image/png", 415),
        (b"x", "multipart/form-data", 415),
    ],
)
async def test_what_holds_no_event_is_refused(
    valkey: Valkey, body: bytes, content_type: str, status: int
) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.post(
            "/ingest/json", content=body, headers={"Content-Type": content_type}
        )
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert stored(valkey) == []


async def test_it_may_be_put_and_asked_whether_it_is_there(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        assert (await service.http.head("/ingest/json")).status_code == 200
        assert (await service.http.get("/ingest/json")).status_code == 200
        assert (await service.http.put("/ingest/json", json={"msg": "one"})).status_code == 202
        assert (await service.http.delete("/ingest/json")).status_code == 405
        assert texts(valkey) == ("one",)
