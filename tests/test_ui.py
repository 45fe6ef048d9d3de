"""The page over HTTP: rows, framing, form, filters, headers, origins, tokens."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe import sse
from logpipe.continuity import Gap
from logpipe.event import Entry, read_entry
from logpipe.ids import StreamId
from logpipe.messages import Bye, Hello, Notice, Progress
from logpipe.ui.rows import ROWS, gap_row, row, shown
from logpipe.ui.security import require_same_origin
from logpipe.ui.session import COOKIE, proof
from tests.helpers import wait_until
from tests.hostile import HOSTILE
from tests.servers import Reader, Service, Valkey, free_port, serving

ID = StreamId(1710000000000, 3)
FORM = {"source": "form", "level": "WARN", "message": "hello"}


# -- rows -------------------------------------------------------------------------------------


class Seen(HTMLParser):
    """What a parser of HTML sees in a fragment: elements, and the text of each class."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.original = ""
        """The text with the visible escapes turned back."""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input"):  # those that have no end
            self._open.append(dict(attrs).get("class") or tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in self._open:
            self.texts[name] = self.texts.get(name, "") + data
        escaped = self._open[-1:] == ["hidden"]
        self.original += chr(int(f"0x{data[2:]}", 0)) if escaped else data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        assert decl == "doctype html"

    handle_pi = unknown_decl = handle_comment


def entry(id_: StreamId = ID, **event: Any) -> Entry:
    found = read_entry(id_, json.dumps({"source": "s", "message": "m", **event}).encode())
    assert found is not None
    return found


def test_a_row_shows_time_level_source_message_and_metadata() -> None:
    seen = Seen(
        row(
            entry(
                source="api",
                level="WARN",
                message="slow",
                ts_unix_ms=1710000000123,
                metadata={"region": "us-east-1", "n": 5, "deep": {"a": [1, None]}},
            )
        )
    )
    assert seen.elements[0] == ("div", {"class": "row warn"})
    assert seen.texts["when"] == "2024-03-09 16:00:00.123Z"
    assert seen.texts["level"] == "WARN"
    assert seen.texts["source"] == "api"
    assert seen.texts["meta"] == 'region=us-east-1 n=5 deep={"a":[1,null]}'
    assert seen.texts["message"].startswith("slow ")
    assert seen.elements[1][1]["href"] == "/?since=1710000000000-3"


def test_a_level_of_ones_own_is_shown_and_names_no_class() -> None:
    seen = Seen(row(entry(level='X" ONLOAD="')))
    assert seen.elements[0] == ("div", {"class": "row other"})
    assert seen.texts["level"] == 'X" ONLOAD="'


@pytest.mark.parametrize(
    ("event", "time"),
    [
        ({}, "2024-03-09 16:00:00.000Z"),
        ({"ts_unix_ms": 0}, "1970-01-01 00:00:00.000Z"),
        ({"ts_unix_ms": -1}, "1969-12-31 23:59:59.999Z"),
        ({"ts_unix_ms": 253402300799999}, "9999-12-31 23:59:59.999Z"),
        ({"ts_unix_ms": 10**18}, " 1000000000000000.000Z"),
        ({"ts_unix_ms": -(10**18)}, " -1000000000000000.000Z"),
    ],
)
def test_any_time_that_another_writer_stored_is_shown(event: dict[str, Any], time: str) -> None:
    assert Seen(row(entry(**event))).texts["when"] == time


def test_any_metadata_that_another_writer_stored_is_shown() -> None:
    large = {"n": 10**30, "f": 1.5, "t": True, "<b>": "<i>"}
    assert Seen(row(entry(metadata=large))).texts["meta"] == f"n={10**30} f=1.5 t=true <b>=<i>"


def test_metadata_that_could_just_be_read_is_shown_or_left_out_where_the_stack_is_deeper() -> None:
    raw = b'{"metadata":{"deep":%b1%b}}' % (b"[" * 900, b"]" * 900)
    found = read_entry(ID, raw)
    assert found is not None

    def row_from_below(levels: int) -> str:
        return row_from_below(levels - 1) if levels else row(found)

    text = Seen(row_from_below(250)).texts["meta"]
    assert text in ("deep=…", f"deep={'[' * 900}1{']' * 900}")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_every_field(text: str) -> None:
    seen = Seen(row(entry(source=text, level=text, message=text, metadata={text: text, "n": 1})))
    assert [tag for tag, _ in seen.elements if tag != "span"] == ["div", "a", "b"]
    for tag, attributes in seen.elements:
        allowed = {"a": {"class", "href", "title"}}.get(tag, {"class"})
        assert set(attributes) <= allowed
    assert "<script>" not in row(entry(message=text))
    assert not re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", str(seen.texts)
    )


@given(st.text())
def test_any_text_is_shown_whole_and_can_be_told_from_its_escapes(text: str) -> None:
    assert Seen(shown(text)).original == text.replace("\r\n", "\n")


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_rows_come_through_the_framing_as_one_message(texts: list[str]) -> None:
    entries = [entry(StreamId(5, n), message=text) for n, text in enumerate(texts)]
    wire = ROWS.entries(entries).decode()
    (message,) = sse.Parser().feed(wire)
    assert message.data == "".join(row(each) for each in entries)
    assert message.event == "message"
    assert message.id == f"5-{len(texts) - 1}"


@pytest.mark.parametrize(
    ("count", "reason", "said"),
    [
        (1, "trimmed", "1 event is missing"),
        (12345, "slow", "12,345 events are missing"),
        (None, "reset", "An unknown number of events are missing"),
    ],
)
def test_a_gap_is_a_row_that_says_what_is_missing(
    count: int | None, reason: Any, said: str
) -> None:
    gap = Gap(reason, StreamId(1, 2), StreamId(3, 4), count, StreamId(3, 3))
    text = Seen(gap_row(gap)).texts["gap"]
    assert said in text
    assert "1-2" in text
    assert "3-4" in text
    (message,) = sse.Parser().feed(ROWS.message(gap).decode())
    assert message == sse.ServerSentEvent(gap_row(gap), "message", "3-3")


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (StreamId(7, 1), "after 7-1 and before 9-0"),
        (StreamId(7, 0).before(), "from 7-0 on and before 9-0"),
        (StreamId(0, 0), "missing before 9-0"),
    ],
)
def test_a_gap_names_ids_that_people_can_read(after: StreamId, said: str) -> None:
    gap = Gap("trimmed", after, StreamId(9, 0), None, StreamId(9, 0).before())
    assert said in Seen(gap_row(gap)).texts["gap"]


def test_the_other_messages_are_named_events_and_move_the_cursor() -> None:
    def told(message: Any) -> sse.ServerSentEvent:
        (found,) = sse.Parser().feed(ROWS.message(message).decode())
        return found

    hello = told(Hello(StreamId(1, 2), None, StreamId(3, 4), "broadcast", "1.2.3"))
    assert (hello.event, hello.id) == ("hello", "1-2")
    assert json.loads(hello.data)["version"] == "1.2.3"
    assert told(Progress(StreamId(5, 6)))[1:] == ("progress", "5-6")
    assert told(Notice("away\n\nid: 1-1"))[1:] == ("notice", "")
    assert told(Bye("ends", 700))[1:] == ("bye", "")
    assert ROWS.message(Bye("ends", 700)).startswith(b"retry: 700\n")
    assert next(iter(sse.Parser().feed(ROWS.heartbeat.decode()))).event == "heartbeat"


# -- the page ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def streaming(
    service: Service, path: str = "/ui/stream?tail=100", **headers: str
) -> AsyncIterator[Reader]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with service.http.stream("GET", path, headers=names, timeout=30) as response:
        assert response.status_code == 200
        yield Reader(response)


async def greeted(reader: Reader) -> None:
    """Reads up to the hello; before it may come that Redis was not reached yet."""
    while (event := await reader.next()).event != "hello":
        assert event.event == "notice"


async def rows_of(reader: Reader, count: int) -> list[str]:
    """The messages of the next rows."""
    found: list[str] = []
    while len(found) < count:
        event = await reader.next()
        if event.event == "message":
            found += re.findall(r'class="message">(.*?)</span></div>', event.data, re.DOTALL)
    return found


async def test_the_page_has_the_form_the_stream_and_the_buttons(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        html = answer.text
        for name in ("source", "level", "message"):
            assert re.search(rf'<(input|select|textarea)[^>]* name="{name}"', html)
        for button in ("Send", "Connect", "Disconnect", "Filter"):
            assert re.search(rf"<button[^>]*>{button}</button>", html)
        assert 'hx-sse:connect="/ui/stream?tail=100"' in html
        assert 'action="/ui/logout"' not in html
        assert "://" not in html.replace("http://127.0.0.1", "")


async def test_all_that_the_page_loads_is_its_own_and_kept_for_good(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        html = (await service.http.get("/")).text
        urls = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', html))
        assert len(urls) == 5
        for url in urls:
            answer = await service.http.get(url)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            other = await service.http.get(url.partition("?")[0] + "?v=old")
            assert other.headers["cache-control"] == "no-cache"
            again = await service.http.get(url, headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/ui"])
async def test_nothing_else_is_served(valkey: Valkey, path: str) -> None:
    async with serving(redis_addr=valkey.url) as service:
        assert (await service.http.get(path)).status_code in (404, 405)


async def test_the_stream_gives_the_last_events_then_the_live_ones(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await service.post([{"source": "a", "message": str(n)} for n in range(150)])
        async with streaming(service) as reader:
            await greeted(reader)
            assert await rows_of(reader, 100) == [str(n) for n in range(50, 150)]
            await service.post({"source": "a", "message": "live"})
            assert await rows_of(reader, 1) == ["live"]
            assert reader.response.headers["content-type"].startswith("text/event-stream")


async def test_the_stream_resumes_after_the_last_id_whatever_the_url_says(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        first = (await service.post({"source": "a", "message": "one"})).json()["id"]
        await service.post([{"source": "a", "message": m} for m in ("two", "three")])
        async with streaming(service, Last_Event_ID=first) as reader:
            assert await rows_of(reader, 2) == ["two", "three"]
        async with streaming(service, f"/ui/stream?tail=9&last_event_id={first}") as reader:
            assert await rows_of(reader, 2) == ["two", "three"]


async def test_the_filters_of_the_url_come_back_in_the_inputs_and_reach_the_stream(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        html = (await service.http.get("/?level=%3E%3DWARN&source=api*&text=a%26b&since=1h")).text
        assert '<option value="&gt;=WARN" selected>' in html
        assert 'name="source" value="api*"' in html
        assert 'value="a&amp;b"' in html
        assert '<option value="1h" selected>' in html
        (url,) = re.findall(r'hx-sse:connect="([^"]+)"', html)
        wanted = "/ui/stream?level=%3E%3DWARN&source=api%2A&text=a%26b&since=1h&tail=2000"
        assert url.replace("&amp;", "&") == wanted
        await service.post(
            [
                {"source": "api-1", "level": level, "message": message}
                for level in ("INFO", "ERROR")
                for message in ("a&b", "c")
            ]
        )
        async with streaming(service, wanted) as reader:
            assert await rows_of(reader, 1) == ["a&amp;b"]
        odd = (await service.http.get("/?level=AUDIT,ERROR&since=1710000000000-0")).text
        assert '<option value="AUDIT,ERROR" selected>' in odd
        assert '<option value="1710000000000-0" selected>' in odd


async def test_hostile_text_in_the_url_stays_text(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for text in HOSTILE:
            query = {"level": text, "source": text, "text": text, "since": "1-1", "<b>": text}
            seen = Seen((await service.http.get("/", params=query)).text)
            plain = {"level": "x", "source": "x", "text": "x", "since": "1-1"}
            expected = Seen((await service.http.get("/", params=plain)).text)
            assert [tag for tag, _ in seen.elements] == [tag for tag, _ in expected.elements]
            for (_, found), (_, wanted) in zip(seen.elements, expected.elements, strict=True):
                assert found.keys() == wanted.keys()
            shown_again = [
                found.get("value") for _, found in seen.elements if found.get("name") == "source"
            ]
            assert shown_again[-1] == text.strip()


async def test_a_bad_filter_is_told_on_the_page_and_nothing_is_connected(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for query in ("level=%3E%3Dbananas", "since=yesterday", "tail=many", "q=level:%20x"):
            answer = await service.http.get(f"/?{query}")
            assert answer.status_code == 400
            assert 'role="alert"' in answer.text
            assert "hx-sse:connect" not in answer.text
            assert (await service.http.get(f"/ui/stream?{query}")).status_code == 400


async def test_a_gap_reaches_the_page_as_a_row(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.post([{"source": "a", "message": str(n)} for n in range(20)])
        first = answer.json()["first_id"]
    valkey.client.xtrim("logs", maxlen=5, approximate=False)
    async with (
        serving(redis_addr=valkey.url) as service,
        streaming(service, Last_Event_ID=first) as reader,
    ):
        await greeted(reader)
        gap = await reader.next()
        assert 'class="gap"' in gap.data
        assert first in gap.data
        assert gap.id
        assert await rows_of(reader, 5) == [str(n) for n in range(15, 20)]


async def test_a_server_that_stops_says_bye_and_when_to_come_back(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, streaming(service) as reader:
        await greeted(reader)
        service.server.stop()
        assert (await reader.next()).event == "bye"
        assert reader.parser.retry_ms


async def test_a_ui_alone_says_bye_too_and_stops_at_once(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url) as others,
        serving(role="ui", distributor_url=others.url, collector_url=others.url) as page,
        streaming(page) as reader,
    ):
        await greeted(reader)
        began = asyncio.get_running_loop().time()
        page.server.stop()
        assert (await reader.next()).event == "bye"
        assert asyncio.get_running_loop().time() - began < 1


async def test_an_idle_stream_beats_and_a_filtered_one_moves_on(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.streaming.PROGRESS_S", 0.05)
    async with (
        serving(redis_addr=valkey.url, heartbeat_s=0.1) as service,
        streaming(service, "/ui/stream?text=never") as reader,
    ):
        await greeted(reader)
        assert (await reader.next()).event == "heartbeat"
        stored = (await service.post({"source": "a", "message": "b"})).json()["id"]
        while (event := await reader.next()).event != "progress":
            assert event.event == "heartbeat"
        assert event.id == stored


async def test_redis_away_at_first_is_told_and_then_it_goes_on(own_valkey: Valkey) -> None:
    own_valkey.kill()
    async with serving(redis_addr=own_valkey.url) as service, streaming(service) as reader:
        notice = await reader.next()
        assert notice.event == "notice"
        assert "Redis" in json.loads(notice.data)["reason"] or "reached" in notice.data
        own_valkey.start()
        while (event := await reader.next()).event != "hello":
            assert event.event in ("heartbeat", "notice")


# -- the form ---------------------------------------------------------------------------------


async def test_the_form_stores_an_event_and_answers_its_id(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.post("/ui/send", data=FORM)
        assert answer.status_code == 200
        ((id_, fields),) = stored(valkey)
        assert f'stored as <a href="/?since={id_}">{id_}</a>' in answer.text
        assert fields.pop("ts_unix_ms") > 0
        assert fields == {**FORM, "metadata": {}}


def stored(valkey: Valkey) -> list[tuple[str, dict[str, Any]]]:
    rows: Any = valkey.client.xrange("logs")
    return [(id_.decode(), msgspec.json.decode(fields[b"event"])) for id_, fields in rows]


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
    async with serving(redis_addr=valkey.url) as service:
        for text in HOSTILE:
            form = {"source": text[:256], "level": "INFO", "message": text}
            assert (await service.http.post("/ui/send", data=form)).status_code == 200
        assert [event["message"] for _, event in stored(valkey)] == typed
        async with streaming(service) as reader:
            messages = await rows_of(reader, len(HOSTILE))
            assert [Seen(message).original for message in messages] == typed


@pytest.mark.parametrize(
    ("form", "status", "field"),
    [
        ({"source": "", "message": "m"}, 422, "source"),
        ({"source": "x" * 257, "message": "m"}, 422, "source"),
        ({"source": "s", "message": "m", "level": "x" * 33}, 422, "level"),
        ({"source": "s"}, 422, "message"),
        ({"message": "<b>m</b>"}, 422, "source"),
    ],
)
async def test_what_is_wrong_is_told_next_to_its_field(
    valkey: Valkey, form: dict[str, str], status: int, field: str
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.post("/ui/send", data=form)
        assert answer.status_code == status
        told = dict(re.findall(r'id="error-(\w+)" hx-swap-oob="true">([^<]*)<', answer.text))
        assert told.pop(field)
        assert set(told.values()) == {""}
        assert stored(valkey) == []


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"source=a&message=b", "text/plain", 415),
        (b"--x--", "multipart/form-data; boundary=x", 415),
        (b"source=%ff&message=b", "application/x-www-form-urlencoded", 400),
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"&".join([b"a=b"] * 100), "application/x-www-form-urlencoded", 400),
        (b"message=" + b"x" * 2000, "application/x-www-form-urlencoded", 413),
        (b"message=" + b"x" * 200_000, "application/x-www-form-urlencoded", 413),
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
            b"POST /ui/send HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\nsource=a&message=b"
        )
        await writer.drain()
        await wait_until(lambda: service.server.server_state.tasks, "the request has begun")
        writer.close()
        await writer.wait_closed()
        await wait_until(lambda: not service.server.server_state.tasks, "the request has ended")
        assert stored(valkey) == []
    assert "Exception" not in caplog.text


async def test_redis_away_is_told_below_the_form(own_valkey: Valkey) -> None:
    async with serving(redis_addr=own_valkey.url) as service:
        own_valkey.kill()
        answer = await service.http.post("/ui/send", data=FORM)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert '<p class="error">Redis:' in answer.text


async def test_a_ui_alone_sends_and_shows_over_http(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as others,
        serving(
            role="ui",
            distributor_url=others.url,
            collector_url=others.url,
            read_tokens="r",
            ingest_tokens="w",
        ) as page,
    ):
        page.http.headers["Authorization"] = "Bearer r"
        async with streaming(page) as reader:
            await greeted(reader)
            answer = await page.http.post(
                "/ui/send", data=FORM, headers={"Authorization": "Bearer w"}
            )
            assert "stored as" in answer.text
            assert await rows_of(reader, 1) == ["hello"]
        bad = await page.http.post(
            "/ui/send", data={"message": "m"}, headers={"Authorization": "Bearer w"}
        )
        assert bad.status_code == 422
        assert "error-source" in bad.text


async def test_a_ui_alone_tells_that_the_others_are_away() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    async with serving(role="ui", distributor_url=away, collector_url=away) as page:
        assert (await page.http.post("/ui/send", data=FORM)).status_code == 503
        async with streaming(page) as reader:
            notice = await reader.next()
            assert notice.event == "notice"
            assert "the distributor cannot be reached" in notice.data


# -- headers and origins ----------------------------------------------------------------------


async def test_every_answer_has_the_security_headers(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        sign_in = {"Authorization": "Bearer r"}
        answers = [
            await service.http.get("/"),
            await service.http.get("/", headers=sign_in),
            await service.http.get("/?since=x", headers=sign_in),
            await service.http.get("/login"),
            await service.http.post("/login", data={"token": "x"}),
            await service.http.post("/ui/send", data=FORM),
            await service.http.get("/ui/send"),
            await service.http.get("/ui/stream"),
            await service.http.get("/ui/nothing"),
            await service.http.get("/static/page.css"),
            await service.http.get("/static/none"),
            await service.http.head("/ui/stream", headers=sign_in),
        ]
        statuses = [answer.status_code for answer in answers]
        assert statuses == [303, 200, 400, 200, 403, 200, 405, 401, 404, 200, 404, 200]
        for answer in answers:
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "unsafe" not in policy
            for part in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
                assert part in policy
            assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
            assert answer.headers["referrer-policy"] == "no-referrer"


async def test_a_fault_of_the_page_has_them_too_and_tells_nothing(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.ui.app._stream_url", lambda _: 1 / 0)
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.get("/")
        assert answer.status_code == 500
        assert "content-security-policy" in answer.headers
        assert "ZeroDivision" not in answer.text


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://{host}"}, True),
        ({"Origin": "HTTP://{host}"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://{host}.evil.example"}, False),
        ({"Origin": "http://evil.example/{host}"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://[::1"}, False),
    ],
)
@pytest.mark.parametrize("path", ["/ui/send", "/login", "/ui/logout"])
async def test_a_post_from_another_origin_is_refused(
    valkey: Valkey, headers: dict[str, str], allowed: bool, path: str
) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        host = service.url.removeprefix("http://")
        given = {name: value.replace("{host}", host) for name, value in headers.items()}
        form = {**FORM, "token": "r"}
        answer = await service.http.post(path, data=form, headers=given)
        assert (answer.status_code < 400) is allowed
        if not allowed:
            assert answer.status_code == 403
            assert stored(valkey) == []
            assert "set-cookie" not in answer.headers


def test_hosts_are_compared_in_any_case() -> None:
    from starlette.datastructures import Headers

    require_same_origin(Headers({"host": "LOGS.example", "origin": "http://logs.EXAMPLE"}))


# -- tokens -----------------------------------------------------------------------------------


async def signed_in(service: Service, *tokens: str) -> httpx.Response:
    for token in tokens:
        answer = await service.http.post("/login", data={"token": token})
        assert answer.headers["set-cookie"]
    return answer


async def test_without_tokens_all_is_open_and_there_is_nothing_to_sign_in_for(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.get("/login")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


async def test_with_tokens_the_page_is_no_way_around_them(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        page = await service.http.get("/?level=ERROR")
        assert (page.status_code, page.headers["location"]) == (303, "/login?level=ERROR")
        stream = await service.http.get("/ui/stream")
        assert stream.status_code == 401
        assert stream.headers["www-authenticate"].startswith("Bearer")
        sent = await service.http.post("/ui/send", data=FORM)
        assert sent.status_code == 401
        assert "/login" in sent.text
        assert (await service.http.get("/?token=r")).status_code == 303
        assert (await service.http.get("/ui/stream?token=r")).status_code == 401
        wrong = {"Authorization": "Bearer x"}
        assert (await service.http.get("/ui/stream", headers=wrong)).status_code == 403
        assert (await service.http.post("/ui/send", data=FORM, headers=wrong)).status_code == 403
        assert stored(valkey) == []


@pytest.mark.parametrize(
    ("settings", "tokens", "reads", "sends"),
    [
        ({"read_tokens": "r"}, [], False, True),
        ({"read_tokens": "r"}, ["r"], True, True),
        ({"ingest_tokens": "w"}, [], True, False),
        ({"ingest_tokens": "w"}, ["w"], True, True),
        ({"read_tokens": "r", "ingest_tokens": "w"}, [], False, False),
        ({"read_tokens": "r", "ingest_tokens": "w"}, ["r"], True, False),
        ({"read_tokens": "r", "ingest_tokens": "w"}, ["w"], False, True),
        ({"read_tokens": "r", "ingest_tokens": "w"}, ["w", "r"], True, True),
        ({"read_tokens": "a,both", "ingest_tokens": "b,both"}, ["both"], True, True),
        ({"read_tokens": "a,both", "ingest_tokens": "b,both"}, ["a", "b"], True, True),
        ({"read_tokens": "schlüssel"}, ["schlüssel"], True, True),
    ],
)
async def test_who_may_read_and_who_may_send(
    valkey: Valkey, settings: dict[str, str], tokens: list[str], reads: bool, sends: bool
) -> None:
    async with serving(redis_addr=valkey.url, **settings) as service:
        if tokens:
            await signed_in(service, *tokens)
        page = await service.http.get("/")
        assert (page.status_code == 200) is reads
        assert (await service.http.head("/ui/stream")).is_success is reads
        assert (await service.http.post("/ui/send", data=FORM)).is_success is sends
        if reads:
            assert ('id="send"' in page.text) is sends
            assert 'action="/ui/logout"' in page.text


async def test_the_cookie_is_strict_and_holds_no_token(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="secret-token") as service:
        answer = await service.http.post("/login?level=ERROR", data={"token": " secret-token "})
        assert (answer.status_code, answer.headers["location"]) == (303, "/?level=ERROR")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert "path=/" in cookie.lower()
        assert "secret-token" not in cookie
        assert proof("secret-token") in cookie
        assert proof("secret-token") != proof("secret-tokem")


async def test_a_token_taken_off_the_list_ends_its_cookie(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="new") as service:
        service.http.cookies.set(COOKIE, proof("old"))
        assert (await service.http.get("/")).status_code == 303
        assert (await service.http.get("/ui/stream")).status_code == 403


@pytest.mark.parametrize("cookie", ["", ".", "....", "x" * 4000, "new", "r.r.r.r.r"])
async def test_a_made_up_cookie_opens_nothing(valkey: Valkey, cookie: str) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        answer = await service.http.get("/", headers={"Cookie": f"{COOKIE}={cookie}"})
        assert answer.status_code == 303


async def test_a_proof_is_no_token(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        bearer = {"Authorization": f"Bearer {proof('r')}"}
        assert (await service.http.get("/ui/stream", headers=bearer)).status_code == 403
        assert (await service.http.post("/login", data={"token": proof("r")})).status_code == 403


@pytest.mark.parametrize("token", ["", "wrong-token", "<script>alert(1)</script>", "r,w", "\x00"])
async def test_an_unknown_token_is_told_and_not_repeated(valkey: Valkey, token: str) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        answer = await service.http.post("/login", data={"token": token})
        assert answer.status_code == 403
        assert "not known here" in answer.text
        assert "set-cookie" not in answer.headers
        assert not token or token not in answer.text


async def test_a_token_that_may_only_send_is_kept_and_another_is_asked_for(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        answer = await service.http.post("/login", data={"token": "w"})
        assert answer.status_code == 403
        assert "To read needs another" in answer.text
        await signed_in(service, "r")
        assert 'id="send"' in (await service.http.get("/")).text


async def test_signing_out_forgets_the_tokens(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        await signed_in(service, "r")
        assert (await service.http.get("/")).status_code == 200
        assert (await service.http.post("/ui/logout")).status_code == 303
        assert (await service.http.get("/")).status_code == 303


async def test_the_cookie_stays_small_however_often_one_signs_in(valkey: Valkey) -> None:
    tokens = [f"t{n}" for n in range(10)]
    async with serving(redis_addr=valkey.url, read_tokens=",".join(tokens)) as service:
        await signed_in(service, *tokens, *tokens)
        assert len(service.http.cookies[COOKIE]) < 300
        assert (await service.http.get("/")).status_code == 200


async def test_a_page_that_is_closed_leaves_no_subscriber(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for _ in range(5):
            async with streaming(service) as reader:
                await reader.next()

        async def alone() -> bool:
            metrics = (await service.http.get("/metrics")).text
            return 'logpipe_subscribers{delivery="broadcast"} 0.0' in metrics

        await wait_until(alone, "no subscriber is left")
