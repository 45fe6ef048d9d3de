"""`/openapi.json`: it says what the code does, no more and no less."""

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route

from logpipe import subapp
from logpipe.app import ROLES
from logpipe.collector.receivers.table import ALIAS
from logpipe.filters import PARAMETERS
from logpipe.openapi import document
from logpipe.parameters import EVENTS, SUBSCRIBE
from logpipe.probes import guarded, operations
from logpipe.settings import Role, Settings, load
from tests.servers import Valkey, free_port, serving

NOWHERE = f"http://127.0.0.1:{free_port()}"

PAGE = {
    "/", "/login", "/static/{path:path}", "/status", "/ui/details", "/ui/download", "/ui/filter",
    "/ui/logout", "/ui/rows", "/ui/send", "/ui/status", "/ui/stream", "/ui/volume",
}  # fmt: skip
OTHER_PROTOCOLS = {
    "/api/prom/push", "/api/v1/validate", "/api/v2/logs", "/elasticsearch",
    "/elasticsearch/_bulk", "/elasticsearch/{index}/_bulk", "/elasticsearch/{index}/{type}/_bulk",
    "/elasticsearch/{rest:path}", "/firehose", "/gelf", "/logplex", "/loki/api/v1/push", "/ready",
    "/services/collector", "/services/collector/event", "/services/collector/event/1.0",
    "/services/collector/health", "/services/collector/health/1.0", "/services/collector/raw",
    "/services/collector/raw/1.0", "/syslog", "/v1/input", "/v1/input/{token}", "/v1/logs",
}  # fmt: skip
NOT_DESCRIBED = {
    "collector": OTHER_PROTOCOLS | {ALIAS + path for path in (*OTHER_PROTOCOLS, "/ingest/json")},
    "distributor": set[str](),
    "ui": PAGE,
}
"""By role, the routes that the document leaves out."""


def documented(**given: object) -> dict[str, Any]:
    """The document of a process with these settings."""
    settings = load(given, {})
    return document(operations(settings), "1", guarded(settings))


def _of(route: BaseRoute) -> Iterator[tuple[str, str]]:
    """Method and path of a route; a HEAD comes with each GET."""
    if isinstance(route, Mount):
        yield "GET", f"{route.path}/{{path:path}}"
    else:
        assert isinstance(route, Route)
        yield from ((method, route.path) for method in (route.methods or set()) - {"HEAD"})


@pytest.mark.parametrize("roles", [*((role,) for role in ROLES), tuple(ROLES)], ids="+".join)
async def test_the_document_has_the_api_of_the_roles(
    valkey: Valkey, roles: tuple[Role, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    routed: list[BaseRoute] = []

    class Recording(Starlette):
        def __init__(self, routes: list[BaseRoute], **given: Any) -> None:
            routed.extend(routes)
            super().__init__(routes=routes, **given)

    monkeypatch.setattr(subapp, "Starlette", Recording)
    given = {"role": ",".join(roles), "collector_url": NOWHERE, "distributor_url": NOWHERE}
    if roles != ("ui",):
        given["redis_addr"] = valkey.url
    async with serving(**given) as service:
        answer = await service.http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    there = {each for route in routed for each in _of(route)}
    described = {
        (method, operation.path)
        for operation in operations(load(given, {}))
        for method in operation.methods
    }
    left_out = set[str]().union(*(NOT_DESCRIBED[role] for role in roles))
    assert {path for _, path in there - described} == left_out
    assert described == {each for each in there if each[1] not in left_out}
    assert described == {
        (method.upper(), path)
        for path, methods in answer.json()["paths"].items()
        for method in methods
    }


def test_it_is_openapi_3_1() -> None:
    for given in ({}, {"read_tokens": "t", "role": "distributor"}, {"role": "ui"}):
        made = documented(**given)
        OpenAPIV31SpecValidator(made).validate()
        assert made["openapi"].startswith("3.1")
        assert "docs/shippers/README.md" in made["info"]["description"]


def test_bounds_and_choices_are_those_of_the_settings() -> None:
    made = documented(max_batch_events=7, delivery="shared", consumer_group="g")
    body = made["paths"]["/ingest"]["post"]["requestBody"]["content"]["application/json"]
    assert {"$ref": "#/components/schemas/Event"} in body["schema"]["anyOf"]
    assert [each["maxItems"] for each in body["schema"]["anyOf"] if "maxItems" in each] == [7]
    parameters = {
        each["name"]: each["schema"] for each in made["paths"]["/subscribe"]["get"]["parameters"]
    }
    assert parameters["delivery"]["default"] == "shared"
    assert parameters["group"]["default"] == "g"
    assert "7 events (MAX_BATCH_EVENTS)" in str(
        made["paths"]["/ingest"]["post"]["responses"]["413"]
    )


def test_tokens_are_asked_for_where_they_are_set() -> None:
    open_, closed = documented(), documented(read_tokens="t")
    operated = documented(admin_tokens="t")["paths"]
    assert [path for path in operated if "security" in operated[path].get("get", {})] == [
        "/metrics", "/subscribers",
    ]  # fmt: skip
    assert "security" not in open_["paths"]["/events"]["get"]
    assert closed["paths"]["/events"]["get"]["security"] == [{"bearer": []}]
    assert "security" not in closed["paths"]["/livez"]["get"]


def test_every_filter_is_documented() -> None:
    for path in ("/subscribe", "/events"):
        (operation,) = (each for each in operations(Settings()) if each.path == path)
        assert {*PARAMETERS} <= {each.name for each in operation.parameters}


def test_the_parameters_described_are_those_that_are_read() -> None:
    described = {
        operation.path: {each.name for each in operation.parameters if each.place == "query"}
        for operation in operations(load({"role": "distributor"}, {}))
    }
    assert described["/events"] == {*EVENTS}
    assert described["/subscribe"] == {*SUBSCRIBE}
