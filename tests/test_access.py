"""Request ids and the access log, as a client and the reader of the log meet them."""

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from logpipe import request_ids
from logpipe.access import MAX_PATH_SHOWN, Access, shown
from logpipe.collector.receivers.table import PROTOCOLS
from logpipe.groups.consumer import Consumer
from logpipe.groups.group import Group
from logpipe.logs import JsonFormatter, TextFormatter
from logpipe.stream import Stream
from tests.helpers import wait_until
from tests.raw import connected, request
from tests.servers import Valkey, serving, subscribed

EVENT = {"source": "a", "message": "b"}
MADE = r"[0-9a-f]{16}"
UNSAFE = r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
"""What ends a line, or what a terminal obeys."""


@pytest.mark.parametrize("given", ["a", "A-z_0.9", "7f" * 32, "-"])
def test_a_sane_id_is_taken_over(given: str) -> None:
    assert request_ids.chosen(given) == given


@pytest.mark.parametrize(
    "given",
    ["", "x" * 65, "a b", "a\n", "a\r\nSet-Cookie: x", "é", "\u0661", "\x1b[31m", '"', "<b>"],
)
def test_an_id_that_is_not_sane_is_replaced(given: str) -> None:
    made = request_ids.chosen(given)
    assert re.fullmatch(MADE, made)
    assert request_ids.chosen(given) != made


def test_outside_of_a_request_there_is_no_id() -> None:
    assert request_ids.current() == ""


async def test_an_answer_carries_the_id_that_was_given_or_made(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for path in ("/events", "/livez", "/", "/nowhere", "/static/none"):
            answer = await service.http.get(path, headers={"X-Request-ID": "mine-1"})
            assert answer.headers.get_list("x-request-id") == ["mine-1"], path
            made = (await service.http.get(path)).headers["x-request-id"]
            assert re.fullmatch(MADE, made)
        async with service.http.stream("GET", "/subscribe") as stream:
            assert re.fullmatch(MADE, stream.headers["x-request-id"])


async def test_a_problem_names_the_request_in_head_and_document(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="collector,distributor") as service:
        sent = {"X-Request-ID": "shipper.7"}
        for answer in (
            await service.post(b"{", **sent),
            await service.http.get("/events?limit=x", headers=sent),
            await service.http.get("/nowhere", headers=sent),
            await service.http.delete("/ingest", headers=sent),
        ):
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers.get_list("x-request-id") == ["shipper.7"]
            assert answer.json()["request_id"] == "shipper.7"
        refused = await service.post(b"{", **{"X-Request-ID": "not sane"})
        assert refused.json()["request_id"] == refused.headers["x-request-id"] != "not sane"


@pytest.mark.parametrize(
    ("role", "path", "status"), [("all", "/ingest?token=x", 400), ("distributor", "/ingest", 404)]
)
async def test_an_event_that_meets_no_collector_is_refused_in_full(
    valkey: Valkey, role: str, path: str, status: int
) -> None:
    async with serving(redis_addr=valkey.url, role=role) as service:
        answer = await service.http.post(path, content=b"{}")
        assert answer.status_code == status
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_an_event_that_is_taken_in_costs_no_id(valkey: Valkey) -> None:
    """The hot path: the answer is that of the wire, as short as it was."""
    async with serving(redis_addr=valkey.url, role="collector") as service:
        answer = await service.post(EVENT, **{"X-Request-ID": "a"})
        assert answer.status_code == 202
        assert "x-request-id" not in answer.headers


async def test_two_requests_on_one_connection_have_an_id_each(valkey: Valkey) -> None:
    """One that waits in the pipeline is begun by the end of the one before it."""
    async with (
        serving(redis_addr=valkey.url, role="collector") as service,
        connected(service.url) as client,
    ):
        await client.send(request(b"{") + request(b"{"))
        first, second = await client.answer(), await client.answer()
        ids = {json.loads(each.body)["request_id"] for each in (first, second)}
        assert ids == {each.headers["x-request-id"] for each in (first, second)}
        assert len(ids) == 2


async def test_a_page_asks_other_roles_under_the_id_that_it_was_asked_under(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.DEBUG, "logpipe.access")
    async with (
        serving(redis_addr=valkey.url, role="distributor") as distributor,
        serving(role="ui", distributor_url=distributor.url) as ui,
    ):
        await ui.http.get("/ui/rows", headers={"X-Request-ID": "page-3"})
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    of_page = {
        line["message"].split(" in ")[0]
        for line in lines
        if line["metadata"].get("request_id") == "page-3"
    }
    assert of_page == {"GET /events 200", "GET /ui/rows 200"}


# -- what is logged ------------------------------------------------------------------------------


async def test_each_request_is_a_line_at_level_debug_without_its_query(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "logpipe.access")
    async with serving(redis_addr=valkey.url, role="collector,distributor") as service:
        await service.post(EVENT, **{"X-Request-ID": "in"})
        await service.http.get(
            "/events?token=s3cr3t&limit=x", headers={"authorization": "Bearer t0"}
        )
        async with subscribed(service.url, tail=1) as reader:
            await reader.until(1)
        await wait_until(lambda: "/subscribe" in caplog.text, "the stream's end is logged")
    told = [re.sub(r"\d+\.\d", "N", record.getMessage()) for record in caplog.records]
    for line in ("POST /ingest 202", "GET /events 400", "GET /subscribe 200"):
        assert f"{line} in N ms" in told
    assert "s3cr3t" not in caplog.text
    assert "t0" not in caplog.text


async def test_at_level_debug_a_taken_event_is_answered_with_the_id_as_all_others(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "logpipe.access")
    async with serving(redis_addr=valkey.url, role="collector") as service:
        answer = await service.post(EVENT, **{"X-Request-ID": "in"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (202, "in")


def test_a_token_in_a_path_is_not_logged() -> None:
    """Every path that may hold one is known to the log."""
    paths = {path for protocol in PROTOCOLS.values() for path in protocol.paths if "{" in path}
    holding = [path.replace("{token}", "s3cr3t") for path in paths if "{token}" in path]
    assert holding
    for path in holding:
        for asked in (path, f"/insert{path}", f"{path}/more", f"{path}\nmore/s3cr3t"):
            assert "s3cr3t" not in shown(asked)
            assert shown(asked).endswith("/(hidden)")
    assert shown("/v1/logs") == "/v1/logs"


async def test_at_level_info_requests_are_not_logged(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "logpipe")
    async with serving(redis_addr=valkey.url, role="collector") as service:
        await service.post(EVENT)
        await service.http.get("/livez")
    assert "logpipe.access" not in {record.name for record in caplog.records}


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter(colour=False)])
async def test_a_hostile_path_or_header_forges_no_record(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, formatter: logging.Formatter
) -> None:
    caplog.handler.setFormatter(formatter)
    caplog.set_level(logging.DEBUG, "logpipe.access")
    paths = ["/%0d%0a12:00:00%20ERROR%20forged", "/%1b%5b31m%1b%5d0;x%07", "/%e2%80%ae%e2%81%a6"]
    paths += ["/%c2%9b31m", "/%ff%fe", "/" + "%00" * 5000, "/%e2%80%a8x", "/%F0%9F%92%A9"]
    async with serving(redis_addr=valkey.url, role="collector") as service:
        for path in paths:
            async with connected(service.url) as client:
                start = f"GET {path} HTTP/1.1\r\nX-Request-ID: [31m\u0085"
                await client.send(request(start=start))
                await client.answer()
    lines = caplog.text.splitlines()
    assert len(lines) == len(paths)
    assert max(map(len, lines)) < MAX_PATH_SHOWN * 6 + 200
    assert not re.search(UNSAFE, caplog.text)


# -- faults --------------------------------------------------------------------------------------


async def ask(
    answers: Any, method: str = "GET", path: str = "/"
) -> tuple[list[Message], Exception | None]:
    """What is sent for one request to an app within `Access`, and what it raises."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answers(send)

    headers = [(b"x-request-id", b"r-1")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}

    async def serve() -> None:
        await Access(app)(scope, receive, send)

    try:
        await asyncio.create_task(serve())  # as a server does: the context is its own
    except RuntimeError as error:
        return sent, error
    return sent, None


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/ingest"), ("POST", "/ingest/json"), ("POST", "/login")],
)
async def test_a_fault_is_answered_with_the_id_and_nothing_of_its_cause(
    method: str, path: str
) -> None:
    async def fail(_: Send) -> None:
        raise RuntimeError("secret")

    (start, body), error = await ask(fail, method, path)
    assert isinstance(error, RuntimeError)  # for the server's log
    assert start["status"] == 500
    assert (b"x-request-id", b"r-1") in start["headers"]
    document = json.loads(body["body"])
    assert document["request_id"] == "r-1"
    assert "secret" not in str(document)


async def test_a_fault_in_the_middle_of_an_answer_gets_no_second_one() -> None:
    async def fail(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    (start,), error = await ask(fail)
    assert start["status"] == 200
    assert isinstance(error, RuntimeError)


async def test_the_traceback_of_a_fault_is_logged_under_the_id(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("logpipe.collector.app.take_in", fail)
    monkeypatch.setattr("logpipe.distributor.app.span", fail)
    caplog.handler.setFormatter(JsonFormatter())
    async with serving(redis_addr=valkey.url, role="collector,distributor") as service:
        answers = [await service.post(EVENT), await service.http.get("/events")]
    for answer in answers:
        assert answer.status_code == 500
        id_ = answer.json()["request_id"]
        (line,) = [each for each in caplog.text.splitlines() if id_ in each]
        assert "boom" in json.loads(line)["metadata"]["exception"]


async def test_what_runs_for_many_requests_is_logged_under_none(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks of a group outlive the request that began them, and an append is of many."""
    seen: dict[str, str] = {}

    def noting(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        async def note(*args: Any) -> Any:
            seen[name] = request_ids.current()
            return await original(*args)

        monkeypatch.setattr(owner, name, note)

    noting(Consumer, "keep_holding")
    noting(Group, "run")
    noting(Stream, "append")
    async with (
        serving(redis_addr=valkey.url, role="collector,distributor") as service,
        subscribed(service.url, delivery="shared") as reader,
    ):
        await reader.named("hello")
        await service.post(EVENT)
        await reader.until(1)
    assert seen == {"keep_holding": "", "run": "", "append": ""}
