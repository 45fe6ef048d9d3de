"""All that a filter takes, as a file."""

import asyncio
import csv
import gc
import io
import json
import os
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.event import Entry, read_entry
from logpipe.fanout.history import Scan
from logpipe.problems import Unavailable
from logpipe.ui import download
from logpipe.ui.download import _csv
from tests.helpers import wait_until
from tests.hostile import HOSTILE
from tests.raw import can_measure_memory, connected, peak_memory
from tests.servers import Valkey, serving
from tests.ui.pieces import COMPOSITIONS, ID, entry, numbered, page_at, stored

PAGES = pytest.mark.parametrize("composition", COMPOSITIONS)
MESSAGE = 4


async def csv_of(*entries: Entry) -> list[list[str]]:
    async def pages() -> AsyncGenerator[list[Entry], None]:
        yield list(entries)

    text = b"".join([part async for part in _csv(pages())]).decode()
    return list(csv.reader(io.StringIO(text, newline="")))


@PAGES
async def test_ndjson_has_what_the_stream_holds_the_oldest_first(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 30))
        answer = await page.http.get("/ui/download")
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["content-disposition"] == 'attachment; filename="logpipe.ndjson"'
        assert answer.headers["cache-control"] == "no-store"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [(line.pop("id"), line) for line in lines] == stored(valkey)


@PAGES
async def test_a_download_has_what_the_filter_takes_within_its_span(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 100))
        ids = [id_ for id_, _ in stored(valkey)]
        query = {"q": "*1", "since": ids[5], "to": ids[31], "format": "csv", "cols": "n"}
        answer = await page.http.get("/ui/download", params=query)
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        rows = list(csv.reader(io.StringIO(answer.text, newline="")))
        assert rows[0] == ["id", "ts_unix_ms", "level", "source", "message", "metadata"]
        wanted = [str(n) for n in range(5, 32) if "1" in str(n)]
        assert [row[MESSAGE] for row in rows[1:]] == wanted


@PAGES
async def test_without_a_match_a_file_is_empty(valkey: Valkey, composition: str) -> None:
    async with page_at(composition, valkey) as (page, _):
        assert (await page.http.get("/ui/download")).content == b""
        table = await page.http.get("/ui/download?format=csv")
        assert table.text == "id,ts_unix_ms,level,source,message,metadata\r\n"


@PAGES
async def test_a_download_of_many_pages_has_each_event_once(
    valkey: Valkey, composition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "AT_ONCE", 70)
    monkeypatch.setattr("logpipe.fanout.history.PAGE_SCAN", 90)
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 1_000))
        for text in ("", "3"):
            answer = await page.http.get("/ui/download", params={"text": text})
            found = [json.loads(line)["message"] for line in answer.text.splitlines()]
            assert found == [str(n) for n in range(1_000) if text in str(n)]


async def test_head_of_a_download_reads_no_more_than_its_first_page(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await service.post(numbered(0, 10))
        answer = await service.http.head("/ui/download?format=csv")
        assert answer.status_code == 200
        assert "logpipe.csv" in answer.headers["content-disposition"]


# -- CSV --------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
async def test_any_text_is_one_cell_that_is_no_formula(text: str) -> None:
    _, row = await csv_of(entry(message=text, source=text, level=text, metadata={"k": text}))
    assert len(row) == 6
    for cell in row[2:5]:
        assert cell in (text, f"'{text}")
    assert json.loads(row[5]) == {"k": text}


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff20"])
async def test_what_a_spreadsheet_would_run_is_quoted(first: str) -> None:
    text = f"{first}cmd|' /C calc'!A0"
    _, row = await csv_of(entry(message=text, source=text, level=text))
    assert row[2:5] == [f"'{text}"] * 3


async def test_hostile_texts_stay_in_their_cells() -> None:
    rows = await csv_of(*[entry(message=text) for text in HOSTILE])
    assert len(rows) == 1 + len(HOSTILE)
    assert {len(row) for row in rows} == {6}


async def test_without_a_time_of_its_own_an_event_has_that_of_its_id() -> None:
    _, one, other = await csv_of(entry(), entry(ts_unix_ms=7))
    assert (one[1], other[1], one[5]) == (str(ID.ms), "7", "")


async def test_what_another_writer_stored_is_no_fault() -> None:
    deep = read_entry(ID, b'{"metadata":{"deep":%b1%b}}' % (b"[" * 900, b"]" * 900))
    assert deep is not None
    assert len(await csv_of(deep, entry(metadata={"n": 10**30}))) == 3


# -- large ones -------------------------------------------------------------------------------


@pytest.mark.skipif(not can_measure_memory, reason="needs Linux")
@PAGES
async def test_a_download_that_nobody_takes_holds_little_and_leaves_nothing(
    valkey: Valkey, composition: str
) -> None:
    event = msgspec.json.encode({"source": "a", "message": "x" * 50_000})
    with valkey.client.pipeline(transaction=False) as pipe:
        for _ in range(2_000):
            pipe.xadd("logs", {"event": event})
        pipe.execute()
    async with page_at(composition, valkey) as (page, _):
        before = peak_memory(os.getpid(), reset=True)
        async with connected(page.url) as connection:
            await connection.send(b"GET /ui/download HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await connection.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await wait_until(lambda: _is_still(page.server), "the download waits")
            assert peak_memory(os.getpid()) - before < 80_000_000
        await wait_until(lambda: not page.server.server_state.tasks, "the download has ended")
        gc.collect()


LARGE = [{"source": "a", "message": f"{n} {'x' * 1_000}"} for n in range(300)]
"""Events that are more than one step of a scan, and whose first steps begin a streamed answer."""


def _is_still(server: Any) -> bool:
    """Whether what is to be sent waits for its reader."""
    flows = [connection.flow for connection in server.server_state.connections]
    return any(flow.write_paused for flow in flows if flow is not None)


@PAGES
async def test_a_download_that_redis_cuts_short_is_cut_off_and_not_taken_for_whole(
    valkey: Valkey, composition: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with page_at(composition, valkey) as (page, others):
        await others.post(LARGE)
        _fail_after(monkeypatch, 2)
        async with connected(page.url) as connection:
            await connection.send(b"GET /ui/download HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await connection.reader.readuntil(b"\r\n\r\n")
            with pytest.raises(asyncio.IncompleteReadError):
                async for _ in connection.chunks():
                    pass
    assert "an answer is cut off: Redis: gone" in caplog.text
    assert "Traceback" not in caplog.text


@PAGES
async def test_a_cut_download_without_chunks_ends_with_a_reset(
    valkey: Valkey, composition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To HTTP/1.0 an orderly end of the connection would be the end of the file."""
    async with page_at(composition, valkey) as (page, others):
        await others.post(LARGE)
        _fail_after(monkeypatch, 2)
        async with connected(page.url) as connection:
            await connection.send(b"GET /ui/download HTTP/1.0\r\nHost: localhost\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                await connection.reader.read(-1)


def _fail_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Lets so many steps of the history be made."""
    left = steps
    step = Scan.step

    async def failing(scan: Scan, *args: Any) -> list[Entry]:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("away", "gone")
        return await step(scan, *args)

    monkeypatch.setattr(Scan, "step", failing)
