import json
from typing import Any

import httpx
import pytest

from logpipe.collector.receivers.elasticsearch import actions_of, parse
from logpipe.problems import Problem
from tests.collector.receivers.parsing import event, items
from tests.collector.receivers.samples import TOKEN, basic, collecting, texts
from tests.helpers import wait_until
from tests.servers import Service, Valkey

BULK = "/elasticsearch/_bulk"
NDJSON = {"Content-Type": "application/x-ndjson"}


def bulk(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def post(service: Service, *lines: Any, path: str = BULK) -> httpx.Response:
    return await service.http.post(path, content=bulk(*lines), headers=NDJSON)


async def ready(service: Service) -> None:
    async def is_ready() -> bool:
        return (await service.http.get("/healthz")).status_code == 200

    await wait_until(is_ready, "Redis serves")


def one(document: dict[str, Any], action: dict[str, Any] | None = None) -> Any:
    return event(parse, bulk(action or {"create": {"_index": "i"}}, document))


def test_a_document_of_the_common_schema_is_an_event() -> None:
    found = one(
        {
            "@timestamp": "2024-03-09T16:00:00.123Z",
            "message": "m",
            "log": {"level": "error", "offset": 7},
            "service": {"name": "s"},
            "host": {"name": "h"},
            "trace": {"id": "t"},
        },
        {"index": {"_index": "logs-x", "_id": "7"}},
    )
    assert (found.source, found.level, found.message) == ("s", "ERROR", "m")
    assert found.ts_unix_ms == 1_710_000_000_123
    assert found.metadata == {
        "log": {"offset": 7}, "service": {"name": "s"}, "host": {"name": "h"},
        "trace": {"id": "t"}, "elasticsearch.index": "logs-x", "elasticsearch.id": "7",
    }  # fmt: skip


def test_dotted_names_are_the_same_names() -> None:
    found = one({"message": "m", "log.level": "warn", "service.name": "s", "host.name": "h"})
    assert (found.source, found.level) == ("s", "WARN")


def test_a_document_that_names_no_source_has_its_index() -> None:
    assert one({"message": "m"}).source == "i"


def test_the_index_comes_from_the_action_or_the_path_or_is_logs() -> None:
    (a, b) = actions_of(bulk({"index": {"_index": "a"}}, {}, {"index": {}}, {}), "p")
    assert (a.target, b.target) == ("a", "p")
    (c,) = actions_of(bulk({"index": None}, {}), "")
    assert c.target == "logs"


NO_ACTIONS = (
    b"nonsense", b"[]", b"{}", b'{"upsert":{}}', b'{"attempts":0,"index":{}}', b'{"index":"x"}',
    b'{"index":[]}', b"\xff", b"7",
)  # fmt: skip


@pytest.mark.parametrize("body", [b"", b"\n\n", *(line + b"\n{}\n" for line in NO_ACTIONS)])
def test_a_body_without_an_action_is_a_400(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        items(parse, body)
    assert caught.value.status == 400


def test_the_first_key_of_a_line_is_its_action() -> None:
    """As winston-elasticsearch writes it."""
    assert one({"message": "m"}, {"index": {"_index": "a", "pipeline": None}, "attempts": 0})
    (action,) = actions_of(bulk({"create": {"_id": "7"}, "index": {"_id": "8"}}, {}), "p")
    assert (action.verb, action.id) == ("create", "7")


def told(body: bytes) -> list[str]:
    """The messages of the events of a body, and what is wrong with the rest of it."""
    return [
        each.detail if isinstance(each, Problem) else each.message for each in items(parse, body)
    ]


@pytest.mark.parametrize("line", NO_ACTIONS)
def test_a_line_that_is_no_action_costs_its_document(line: bytes) -> None:
    good = bulk({"index": {}}, {"message": "one"}), bulk({"index": {}}, {"message": "two"})
    one, problem, two = told(good[0] + b"\n" + line + b'\n{"message":"lost"}\n' + good[1])
    assert (one, two) == ("one", "two")
    assert problem.startswith("Line 4 is not an action")


@pytest.mark.parametrize("line", NO_ACTIONS)
def test_reading_continues_at_the_next_action(line: bytes) -> None:
    good = bulk({"delete": {}}, {"index": {}}, {"message": "one"})
    problem, _, one = told(line + b"\n" + good)
    assert one == "one"
    assert problem.startswith("Line 1 is not an action")
    assert told(good + line)[1:] == ["one", problem.replace("Line 1", "Line 4")]


def test_a_document_that_is_no_json_costs_itself() -> None:
    broken = b'{"create":{}}\n{"message":\n'
    problem, one = told(broken + bulk({"create": {}}, {"message": "one"}))
    assert (problem[:24], one) == ("The JSON cannot be read:", "one")


async def test_each_action_has_its_answer_in_order_and_by_its_own_verb(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await post(
            service,
            {"index": {"_index": "i", "_id": "1"}}, {"message": "one"},
            {"create": {"_index": "i"}}, {"message": "two"},
        )  # fmt: skip
        assert answer.status_code == 200
        assert answer.headers["x-elastic-product"] == "Elasticsearch"
        assert answer.content.startswith(b'{"took":1,"errors":false,"items":[{"index":{"_index":')
        first, second = answer.json()["items"]
        assert (first["index"]["_id"], first["index"]["status"]) == ("1", 201)
        assert second["create"]["status"] == 201
        assert second["create"]["_id"]
        assert texts(valkey) == ("one", "two")


async def test_a_mixed_batch_says_of_each_what_became_of_it(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        answer = await post(
            service,
            {"index": {}}, {"message": "one"},
            {"delete": {"_id": "1"}},
            {"update": {"_id": "1"}}, {"doc": {}},
            {"create": {}}, {"message": "two"},
            {"create": {}},
        )  # fmt: skip
        assert answer.status_code == 200
        assert b'"errors":true' in answer.content
        told = [
            (verb, item["status"]) for each in answer.json()["items"] for verb, item in each.items()
        ]
        assert told == [
            ("index", 201), ("delete", 400), ("update", 400), ("create", 201), ("create", 400),
        ]  # fmt: skip
        assert all("reason" in item["error"] for each in answer.json()["items"]
                   for item in each.values() if item["status"] == 400)  # fmt: skip
        assert texts(valkey) == ("one", "two")


async def test_a_batch_that_comes_again_adds_no_document_that_has_an_id(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        lines = [
            part
            for number in range(50)
            for part in ({"index": {"_index": "i", "_id": str(number)}}, {"message": str(number)})
        ]
        first = await post(service, *lines)
        again = await post(service, *lines)
        assert first.json() == again.json()
        assert again.json()["errors"] is False
        assert texts(valkey) == tuple(str(number) for number in range(50))
        # An id belongs to its index, and what follows the known ones is new.
        await post(service, *lines, {"index": {"_index": "i", "_id": "50"}}, {"message": "50"})
        await post(service, {"create": {"_index": "j", "_id": "50"}}, {"message": "other"})
        assert texts(valkey)[50:] == ("50", "other")


async def test_empty_ids_are_none(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for number in range(2):
            answer = await post(service, {"create": {"_id": ""}}, {"message": str(number)})
            assert answer.json()["errors"] is False
        assert texts(valkey) == ("0", "1")


async def test_a_requests_key_is_never_a_documents(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        one = bulk({"index": {"_index": "k", "_id": "0"}}, {"message": "one"})
        both = bulk(
            {"index": {}}, {"message": "two"}, {"index": {"_id": "x"}}, {"message": "three"}
        )
        for body in (one, both):
            await service.http.post(BULK, content=body, headers={"Idempotency-Key": "k"})
        assert texts(valkey) == ("one", "two", "three")


async def test_documents_with_and_without_an_id_keep_their_order(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        lines: list[Any] = []
        for number in range(40):
            lines += [
                {"index": {"_id": f"{number}"} if number % 3 else {}},
                {"message": f"{number}"},
            ]
        for _ in range(2):
            answer = await service.http.post(
                BULK, content=bulk(*lines), headers={**NDJSON, "Idempotency-Key": "k"}
            )
            assert answer.json()["errors"] is False
        assert texts(valkey) == tuple(str(number) for number in range(40))


@pytest.mark.parametrize(
    "path", ["/elasticsearch/_bulk", "/elasticsearch/idx/_bulk", "/elasticsearch/idx/_doc/_bulk"]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_every_form_of_the_request_is_taken(valkey: Valkey, path: str, method: str) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.request(
            method,
            f"{path}?filter_path=errors,items.*.status&pipeline=x&refresh=false&timeout=1m",
            content=bulk({"index": {}}, {"message": "one"}),
            headers={"Content-Type": "application/vnd.elasticsearch+x-ndjson; compatible-with=8"},
        )
        assert answer.status_code == 200
        assert texts(valkey) == ("one",)


PROBES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "", {"tagline": "You Know, for Search"}),
    ("GET", "/", {"cluster_name": "logpipe"}),
    ("HEAD", "/", None),
    ("HEAD", "", None),
    ("GET", "/_license?human=false", {}),
    ("GET", "/_xpack", {}),
    ("GET", "/_cluster/health", {"status": "green"}),
    ("GET", "/_nodes/http", {"nodes": {}}),
    ("GET", "/_ilm/policy/x", {}),
    ("PUT", "/_ilm/policy/x", {"acknowledged": True}),
    ("HEAD", "/_index_template/x", None),
    ("GET", "/_index_template/x", {}),
    ("PUT", "/_index_template/x", {"acknowledged": True}),
    ("HEAD", "/_template/x", None),
    ("PUT", "/_template/x", {"acknowledged": True}),
    ("PUT", "/_component_template/x", {"acknowledged": True}),
    ("GET", "/_ingest/pipeline/x", {}),
    ("PUT", "/_ingest/pipeline/x", {"acknowledged": True}),
    ("GET", "/_data_stream/x", {}),
    ("PUT", "/_data_stream/x", {"acknowledged": True}),
    ("GET", "/_logstash", {}),
    ("HEAD", "/idx", None),
    ("PUT", "/idx", {"acknowledged": True}),
    ("HEAD", "/_alias/x", None),
]


@pytest.mark.parametrize(("method", "path", "holds"), PROBES)
async def test_what_clients_ask_first_is_answered(
    valkey: Valkey, method: str, path: str, holds: dict[str, Any] | None
) -> None:
    async with collecting(valkey) as service:
        await ready(service)
        content = b'{"settings":{}}' if method == "PUT" else None
        answer = await service.http.request(method, f"/elasticsearch{path}", content=content)
        assert answer.status_code == 200
        assert answer.headers["x-elastic-product"] == "Elasticsearch"
        if holds is None:
            assert answer.content == b""
        else:
            assert {name: answer.json()[name] for name in holds} == holds
        # The connection goes on.
        assert (await service.http.get("/elasticsearch")).json()["version"]["number"] == "8.9.0"


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/i/_doc/1"), ("POST", "/i/_doc"), ("POST", "/_search"), ("DELETE", "/i"),
     ("PUT", "/i/_create/1")],
)  # fmt: skip
async def test_nothing_that_could_be_a_document_is_taken_without_being_stored(
    valkey: Valkey, method: str, path: str
) -> None:
    async with collecting(valkey) as service:
        answer = await service.http.request(method, f"/elasticsearch{path}", content=b"{}")
        assert answer.status_code == 404
        assert answer.json()["status"] == 404


async def test_who_has_no_token_is_told_in_elasticsearchs_words(valkey: Valkey) -> None:
    async with collecting(valkey, ingest_tokens=TOKEN) as service:
        for path in ("/elasticsearch/", "/elasticsearch/_license"):
            answer = await service.http.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "security_exception"
            known = await service.http.get(path, headers=basic("elastic", TOKEN))
            assert known.status_code == 200
