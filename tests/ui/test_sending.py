"""The form that sends test events."""

import asyncio
import contextlib
import json
import re
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.problems import Problem
from logpipe.ui.sending import MAX_FIELDS, errors_by_field, events_of
from tests.helpers import retry_after, wait_until
from tests.hostile import HOSTILE
from tests.servers import Valkey, free_port, serving
from tests.ui.pieces import COMPOSITIONS, FORM, page_at, stored, streaming

# -- from the form to events ------------------------------------------------------------------


def sent(*pairs: tuple[str, str]) -> Any:
    return msgspec.json.decode(events_of([*FORM.items(), *pairs]))


def metadata_of(*rows: tuple[str, str]) -> Any:
    pairs = [pair for key, value in rows for pair in (("key", key), ("value", value))]
    return sent(*pairs).get("metadata")


def test_one_event_is_what_the_fields_say() -> None:
    assert sent() == FORM
    assert sent(("count", "")) == sent(("count", "1")) == FORM
    assert sent(("other", "x")) == FORM


@pytest.mark.parametrize("count", [10, 100])
def test_more_events_are_numbered(count: int) -> None:
    events = sent(("count", str(count)))
    assert len(events) == count
    assert events[0] == {**FORM, "message": f"hello (1 of {count})"}
    assert events[-1] == {**FORM, "message": f"hello ({count} of {count})"}


@pytest.mark.parametrize("count", ["0", "2", "-1", "1000", "x", "1.0", "\u0661", " 1"])
def test_any_other_count_is_refused(count: str) -> None:
    with pytest.raises(Problem) as refused:
        sent(("count", count))
    assert refused.value.status == 422


def test_without_a_message_no_number_stands_in_for_it() -> None:
    assert msgspec.json.decode(events_of([("source", "s"), ("count", "100")])) == [{"source": "s"}]


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("200", 200),
        ("1e3", 1000.0),
        ("true", True),
        ("null", None),
        ('{"a": [1]}', {"a": [1]}),
        ('"200"', "200"),
        ("us-east-1", "us-east-1"),
        ("", ""),
        (" a ", " a "),
        ("{", "{"),
        ("NaN", "NaN"),
        ("01", "01"),
        (str(10**30), 10**30),
        ("9" * 5000, "9" * 5000),
        ('"\\ud800"', '"\\ud800"'),
        ("é\r\nü", "é\r\nü"),
    ],
)
def test_a_value_is_json_where_it_is_json_and_else_a_text(typed: str, value: Any) -> None:
    assert metadata_of(("k", typed)) == {"k": value}


def test_rows_of_metadata_without_key_and_value_are_left_out() -> None:
    assert metadata_of(("", ""), (" a ", "1"), ("", ""), ("b", "")) == {"a": 1, "b": ""}
    assert metadata_of(("", "")) is None
    assert sent(("key", "a")) == FORM  # cut off: its value is not there


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("", "1")], "A value needs a key."),
        ([("a", "1"), ("a", "2")], "The key a is there twice."),
    ],
)
def test_a_key_that_is_missing_or_there_twice_is_told(
    rows: list[tuple[str, str]], said: str
) -> None:
    with pytest.raises(Problem) as refused:
        metadata_of(*rows)
    assert errors_by_field(refused.value) == {"metadata": said}


def test_no_depth_of_a_value_is_a_fault() -> None:
    for depth in (1, 100, 500, *range(700, 1010), 5_000):
        with contextlib.suppress(Problem):
            metadata_of(("k", "[" * depth + "]" * depth))


def test_a_value_that_could_be_read_but_not_written_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_deep(_: object) -> bytes:
        raise RecursionError

    monkeypatch.setattr("logpipe.ui.sending.msgspec.json.encode", too_deep)
    with pytest.raises(Problem) as refused:
        events_of([*FORM.items()])
    assert "metadata" in errors_by_field(refused.value)


@given(st.lists(st.tuples(st.sampled_from(["source", "message", "key", "value"]), st.text())))
def test_any_form_makes_json_or_is_refused_with_a_word(pairs: list[tuple[str, str]]) -> None:
    encodable = [(name, text) for name, text in pairs if text.isprintable()]
    try:
        msgspec.json.decode(events_of(encodable))
    except Problem as problem:
        told = problem
    else:
        return
    assert errors_by_field(told)


def test_errors_that_are_about_no_field_of_the_form_have_no_field() -> None:
    errors = [{"index": 0, "error": "a"}, {"index": 0, "field": "ts_unix_ms", "error": "b"}]
    assert errors_by_field(Problem(422, "no", errors=errors)) == {}
    assert errors_by_field(Problem(503, "away")) == {}
    named = Problem(422, "no", errors=[{"field": "source", "error": "source: is required"}])
    assert errors_by_field(named) == {"source": "is required"}


# -- over HTTP --------------------------------------------------------------------------------


@pytest.mark.parametrize("composition", COMPOSITIONS)
async def test_the_form_stores_an_event_and_answers_its_id(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, _):
        answer = await page.http.post("/ui/send", data=FORM)
        assert answer.status_code == 200
        ((id_, fields),) = stored(valkey)
        assert f'stored as <a href="/?at={id_}">{id_}</a>' in answer.text
        assert fields.pop("ts_unix_ms") > 0
        assert fields == {**FORM, "metadata": {}}


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("count", [10, 100])
async def test_many_events_are_stored_at_once_and_the_answer_says_from_where_to_where(
    valkey: Valkey, composition: str, count: int
) -> None:
    async with page_at(composition, valkey) as (page, _):
        rows = [("key", "n"), ("value", "1"), ("key", "t"), ("value", "x")]
        body = urlencode([*FORM.items(), ("count", str(count)), *rows])
        media_type = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        answer = await page.http.post("/ui/send", content=body, headers=media_type)
        assert answer.status_code == 200
        found = stored(valkey)
        assert len(found) == count
        assert found[-1][1]["message"] == f"hello ({count} of {count})"
        assert found[-1][1]["metadata"] == {"n": 1, "t": "x"}
        assert f"{count} stored, from " in answer.text
        assert f'href="/?at={found[0][0]}"' in answer.text
        assert f'href="/?at={found[-1][0]}"' in answer.text


async def test_without_a_level_the_default_is_taken_and_line_ends_are_those_typed(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        form = {"source": "a", "level": "", "message": "one\r\ntwo"}
        assert (await service.http.post("/ui/send", data=form)).status_code == 200
        ((_, event),) = stored(valkey)
        assert (event["level"], event["message"]) == ("INFO", "one\ntwo")


async def test_hostile_text_through_the_form_is_stored_and_shown_as_it_is(valkey: Valkey) -> None:
    typed = [text.replace("\r\n", "\n") for text in HOSTILE]
    sgr = re.compile(r"\x1b\[[0-9;]*m")
    async with serving(redis_addr=valkey.url) as service:
        for text in HOSTILE:
            form = {"source": text[:256], "level": "INFO", "message": text}
            assert (await service.http.post("/ui/send", data=form)).status_code == 200
        assert [event["message"] for _, event in stored(valkey)] == typed
        async with streaming(service) as bundles:
            await bundles.read(len(HOSTILE))
            assert bundles.messages == [sgr.sub("", text) for text in typed]


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"source": "", "message": "m"}, "source"),
        ({"source": "x" * 257, "message": "m"}, "source"),
        ({"source": "s", "message": "m", "level": "x" * 33}, "level"),
        ({"source": "s"}, "message"),
        ({"source": "s", "count": "10"}, "message"),
        ({"message": "<b>m</b>"}, "source"),
        ({"source": "", "message": "m", "count": "10"}, "source"),
        ({**FORM, "key": "", "value": "<b>"}, "metadata"),
        ({**FORM, "key": ["<b>", "<b>"], "value": ["1", "2"]}, "metadata"),
    ],
)
async def test_what_is_wrong_is_told_next_to_its_field(
    valkey: Valkey, composition: str, form: dict[str, Any], field: str
) -> None:
    async with page_at(composition, valkey) as (page, _):
        answer = await page.http.post("/ui/send", data=form)
        assert answer.status_code == 422
        told = dict(re.findall(r'id="error-(\w+)" hx-swap-oob="true">([^<]*)<', answer.text))
        assert told.pop(field)
        assert set(told.values()) == {""}
        assert "<b>" not in answer.text
        assert stored(valkey) == []


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"source=a&message=b", "text/plain", 415),
        (b"source=a&message=b", "", 415),
        (b"--x--", "multipart/form-data; boundary=x", 415),
        (b"source=%ff&message=b", "application/x-www-form-urlencoded", 400),
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"&".join([b"a=b"] * (MAX_FIELDS + 1)), "application/x-www-form-urlencoded", 400),
        (b"message=" + b"x" * 2000, "application/x-www-form-urlencoded", 413),
        (b"message=" + b"x" * 200_000, "application/x-www-form-urlencoded", 413),
        (b"count=3&message=x", "application/x-www-form-urlencoded", 422),
    ],
)
async def test_what_is_no_form_of_the_page_is_refused_in_its_own_words(
    valkey: Valkey, body: bytes, media_type: str, status: int
) -> None:
    async with serving(redis_addr=valkey.url, max_message_bytes=500) as service:
        answer = await service.http.post(
            "/ui/send", content=body.replace(b"message=", b"source=a&message="),
            headers={"Content-Type": media_type},
        )  # fmt: skip
        assert answer.status_code == status
        assert '<p class="error">' in answer.text
        assert stored(valkey) == []


async def test_a_form_that_is_cut_off_leaves_nothing_behind(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        port = int(service.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /ui/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\nsource=a&message=b"
        )
        await writer.drain()
        await wait_until(lambda: service.server.server_state.tasks, "the request has begun")
        writer.close()
        await writer.wait_closed()
        await wait_until(lambda: not service.server.server_state.tasks, "the request has ended")
        assert stored(valkey) == []
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("composition", COMPOSITIONS)
async def test_redis_away_is_told_below_the_form(own_valkey: Valkey, composition: str) -> None:
    async with page_at(composition, own_valkey) as (page, _):
        own_valkey.kill()
        answer = await page.http.post("/ui/send", data=FORM)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] in retry_after(1)
        assert '<p class="error">Redis:' in answer.text


async def test_a_ui_alone_tells_that_the_collector_is_away() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    async with serving(role="ui", distributor_url=away, collector_url=away) as page:
        answer = await page.http.post("/ui/send", data=FORM)
        assert answer.status_code == 503
        assert "The collector cannot be reached" in answer.text


async def test_the_largest_event_of_the_form_is_one_that_the_collector_takes(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url, max_message_bytes=2_000) as service:
        overhead = len(json.dumps({**FORM, "message": "", "metadata": {}}, separators=(",", ":")))
        statuses = set()
        for size in (1_000, 2_000 - overhead - 40, 2_000, 3_000):
            form = {**FORM, "message": "é" * (size // 2)}
            statuses.add((await service.http.post("/ui/send", data=form)).status_code)
        assert statuses == {200, 413}
