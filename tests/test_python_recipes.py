"""Each recipe of docs/python.md, run as it stands against a real collector."""

import asyncio
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Valkey, serving

DOCUMENT = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8080"

RECIPES = {
    title: "\n\n".join(re.findall(r"(?:^(?: {4}.*)?\n)+", body, re.MULTILINE))
    for title, body in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", DOCUMENT, re.MULTILINE)
    if "\n    " in body
}

AFTERWARDS = {
    "uvicorn": """
        import logging, uvicorn
        uvicorn.Config(None, log_config=LOGGING_CONFIG)
        logging.getLogger("uvicorn.error").info("Started")
        logging.getLogger("uvicorn.access").info(
            '%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/", "1.1", 200
        )
    """,
    "structlog": """
        try:
            1 / 0
        except ZeroDivisionError:
            structlog.get_logger("shop").exception("no total")
    """,
    "loguru": """
        try:
            1 / 0
        except ZeroDivisionError:
            logger.exception("no total")
    """,
}
"""What a program would do then."""


async def events(title: str, valkey: Valkey) -> list[dict[str, Any]]:
    """What is in the stream after the recipe was run."""
    async with serving(redis_addr=valkey.url) as service:
        recipe = textwrap.dedent(RECIPES[title])
        assert URL in recipe
        code = recipe.replace(URL, service.url) + textwrap.dedent(AFTERWARDS.get(title, ""))
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer = await service.http.get("/events", params={"order": "asc"})
        found: list[dict[str, Any]] = answer.json()["events"]
        return found


def seen(event: dict[str, Any]) -> tuple[str, str, str]:
    return event["source"], event["level"], event["message"]


def test_every_recipe_is_known_here() -> None:
    assert set(RECIPES) == {"One line", "dictConfig", "uvicorn", "structlog", "loguru"}


async def test_one_line(valkey: Valkey) -> None:
    (event,) = await events("One line", valkey)
    assert seen(event) == ("shop.cart", "WARN", "basket is full")
    assert event["metadata"]["user"] == "ada"
    assert event["metadata"]["items"] == 99


async def test_dictconfig(valkey: Valkey) -> None:
    (event,) = await events("dictConfig", valkey)
    assert seen(event) == ("shop", "WARN", "basket is full")
    assert event["metadata"]["otel.scope.name"] == "shop.cart"


async def test_uvicorn(valkey: Valkey) -> None:
    started, request = await events("uvicorn", valkey)
    assert seen(started) == ("shop", "INFO", "Started")
    assert seen(request) == ("shop", "INFO", '127.0.0.1:1 - "GET / HTTP/1.1" 200')
    assert request["metadata"]["otel.scope.name"] == "uvicorn.access"


async def test_structlog(valkey: Valkey) -> None:
    placed, failed = await events("structlog", valkey)
    assert seen(placed) == ("shop", "INFO", "order placed")
    assert placed["metadata"]["order"] == 7
    assert placed["metadata"]["total"] == 12.5
    assert placed["metadata"]["code.file.path"] == "<string>"
    assert seen(failed) == ("shop", "ERROR", "no total")
    assert failed["metadata"]["exception.type"] == "ZeroDivisionError"


async def test_loguru(valkey: Valkey) -> None:
    placed, failed = await events("loguru", valkey)
    assert seen(placed) == ("__main__", "SUCCESS", "order placed")
    assert placed["metadata"]["extra"] == {"order": 7}
    assert seen(failed) == ("__main__", "ERROR", "no total")
    assert failed["metadata"]["exception.type"] == "ZeroDivisionError"
    assert failed["metadata"]["exception.stacktrace"].endswith(
        "ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize("argument", ["capacity", "interval", "flush_timeout"])
def test_the_defaults_of_the_page_are_those_of_the_handler(argument: str) -> None:
    from inspect import signature

    from logpipe.handler import LogpipeHandler

    default = signature(LogpipeHandler).parameters[argument].default
    assert f"{default:,}".removesuffix(".0") in re.findall(
        rf"`{argument}`\s\(([\d.,]*\d)", DOCUMENT
    )
