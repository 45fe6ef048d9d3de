"""`/openapi.json`: it says what the code does, no more and no less."""

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route

from logpipe import subapp
from logpipe.app import ROLES
from logpipe.collector.receivers.table import PROTOCOLS
from logpipe.filters import PARAMETERS
from logpipe.openapi import document
from logpipe.operations import SPOKEN, guarded, operations
from logpipe.parameters import EVENTS, SUBSCRIBE
from logpipe.settings import Role, Settings, load
from tests.servers import Valkey, free_port, serving

NOWHERE = f"http://127.0.0.1:{free_port()}"


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
async def test_every_route_of_the_roles_is_documented_and_none_is_invented(
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
    told = {
        (method, operation.path)
        for operation in operations(load(given, {}))
        for method in operation.methods
    }
    assert told == there
    paths = answer.json()["paths"]
    assert sum(map(len, paths.values())) == len(there)


def test_it_is_openapi_3_1() -> None:
    for given in ({}, {"read_tokens": "t", "role": "distributor"}, {"role": "ui"}):
        made = documented(**given)
        OpenAPIV31SpecValidator(made).validate()
        assert made["openapi"].startswith("3.1")


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
        "/metrics", "/subscribers", "/status", "/ui/status",
    ]  # fmt: skip
    assert "security" not in open_["paths"]["/events"]["get"]
    assert closed["paths"]["/events"]["get"]["security"] == [{"bearer": []}]
    assert "security" not in closed["paths"]["/livez"]["get"]


def test_every_protocol_and_every_filter_is_documented() -> None:
    assert list(SPOKEN) == list(PROTOCOLS)
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
