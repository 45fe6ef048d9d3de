import re
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.routing import Route

from logpipe.collector.receivers.intake import Process
from logpipe.collector.receivers.table import PROTOCOLS, SEGMENTS, routes
from logpipe.settings import Settings
from tests.collector.receivers.samples import SAMPLES, collecting
from tests.raw import connected
from tests.servers import Valkey

PAGES = Path(__file__).parents[3] / "docs" / "shippers"


def test_the_first_segments_are_those_of_the_routes() -> None:
    nothing = cast("Any", None)
    made = routes(Process(Settings(), nothing, nothing, nothing))
    paths = [route.path for route in made if isinstance(route, Route)]
    assert {path.split("/")[1] for path in paths} == {"ingest", *SEGMENTS}


def test_every_protocol_has_a_sample_here_and_a_page_that_names_its_path() -> None:
    assert {sample.protocol for sample in SAMPLES.values()} == set(PROTOCOLS)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
    for protocol in PROTOCOLS.values():
        assert protocol.paths[0].partition("/_bulk")[0].removesuffix("/raw") in text


@pytest.mark.parametrize("page", [PAGES / "README.md", PAGES.parents[1] / "README.md"])
def test_the_pages_that_are_named_are_there(page: Path) -> None:
    links = re.findall(r"\]\(((?:docs/)?[\w/]+\.md)\)", page.read_text(encoding="utf-8"))
    assert links
    assert all((page.parent / link).is_file() for link in links)


async def test_a_sender_that_goes_away_in_the_middle_leaves_nothing(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(valkey) as service:
        for sample in SAMPLES.values():
            head = f"POST {sample.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
            async with connected(service.url) as connection:
                await connection.send(head.encode() + b'{"message":"half"')
        assert (await service.http.get("/livez")).status_code == 200
        assert valkey.client.xlen("logs") == 0
    assert "Traceback" not in caplog.text


async def test_a_refusal_before_the_body_was_read_reaches_the_sender(valkey: Valkey) -> None:
    async with collecting(valkey, ingest_tokens="t") as service:
        for sample in SAMPLES.values():
            head = (
                f"POST {sample.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
            )
            async with connected(service.url) as connection:
                await connection.send(head.encode() + b"x" * 1000)
                answer = await connection.answer()
                assert answer.status == 401
                assert answer.headers["connection"] == "close"
