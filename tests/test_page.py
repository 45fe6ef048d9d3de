"""The page in a real browser."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Request,
    Route,
    async_playwright,
)

from tests.helpers import wait_until
from tests.hostile import HOSTILE
from tests.servers import Process, Service, Valkey, free_port, serving, spawned

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A name that is not this machine's own: browsers trust plain HTTP less there.
    "--host-resolver-rules=MAP logs.test 127.0.0.1",
)
SCREENSHOTS = Path(__file__).parent / "screenshots"

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # one loop, so that one browser serves all tests
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"NOT TESTED IN A BROWSER: no {CHROMIUM}"),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=list(ARGUMENTS)
        )
        yield browser
        await browser.close()


class Window:
    """One page in a browser: what it shows, and what went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", self._on_dialog)

    async def _on_dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        await dialog.dismiss()

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    async def messages(self) -> list[str]:
        """The messages of the rows, oldest first."""
        found: list[str] = await self.page.eval_on_selector_all(
            "#rows .message", "all => all.map(each => each.textContent)"
        )
        return found

    async def state(self, wanted: str) -> None:
        """Waits for a state of the connection."""
        await self.page.wait_for_selector(f'#live[data-state="{wanted}"]', timeout=20_000)

    async def shows(self, messages: list[str], timeout: float = 20) -> None:
        """Waits until the rows are these and no others."""
        with contextlib.suppress(AssertionError):
            await wait_until(lambda: self._are(messages), "the rows", timeout)
        assert await self.messages() == messages

    async def _are(self, messages: list[str]) -> bool:
        return await self.messages() == messages


@contextlib.asynccontextmanager
async def window(
    browser: Browser, url: str, *, prepare: Callable[[Page], Any] | None = None, **options: Any
) -> AsyncIterator[Window]:
    context: BrowserContext = await browser.new_context(**options)
    page = await context.new_page()
    opened = Window(page)
    if prepare is not None:
        await prepare(page)
    await page.goto(url)
    try:
        yield opened
    finally:
        await context.close()


async def send(service: Service, first: int, last: int, **event: Any) -> list[str]:
    """Sends numbered events; returns their messages."""
    texts = [str(number) for number in range(first, last)]
    events = [{"source": "t", "message": text, **event} for text in texts]
    assert (await service.post(events)).status_code == 202
    return texts


async def subscribers(service: Service) -> int:
    metrics = (await service.http.get("/metrics")).text
    (line,) = [each for each in metrics.splitlines() if "logpipe_subscribers{" in each
               and "broadcast" in each]  # fmt: skip
    return int(float(line.rpartition(" ")[2]))


class Cable:
    """A TCP proxy to a server, whose open connections can be made to carry nothing more."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._frozen = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def freeze(self) -> None:
        """Nothing more goes through what is open; new connections work."""
        self._frozen.set()
        self._frozen = asyncio.Event()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        frozen = asyncio.create_task(self._frozen.wait())
        pumps = {
            asyncio.create_task(_pump(reader, far_writer)),
            asyncio.create_task(_pump(far_reader, writer)),
        }
        try:
            await asyncio.wait({frozen, *pumps}, return_when=asyncio.FIRST_COMPLETED)
            if frozen.done():
                for pump in pumps:
                    pump.cancel()
                await asyncio.Event().wait()
        finally:
            for task in (frozen, *pumps):
                task.cancel()
            for each in (writer, far_writer):
                each.close()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._carry(reader, writer)))

    async def __aenter__(self) -> "Cable":
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


# -- the form and the rows --------------------------------------------------------------------


async def test_what_the_form_sends_shows_as_a_row(valkey: Valkey, browser: Browser) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service.url) as shown:
        await shown.state("connected")
        await shown["[name=source] >> nth=0"].fill("kitchen")
        await shown["#send [name=level]"].select_option("ERROR")
        await shown["[name=message]"].fill("the <b>milk</b> boils\nover")
        await shown["text=Send >> nth=-1"].click()
        await shown.shows(["the <b>milk</b> boils\nover"])
        await shown["#answer .stored"].wait_for()
        assert (await shown["#answer"].inner_text()).startswith("stored as 1")
        assert await shown["#rows .source"].inner_text() == "kitchen"
        assert await shown["#rows .row.error .level"].inner_text() == "ERROR"
        assert await shown["#version"].inner_text()
        assert shown.errors == []


async def test_an_empty_source_is_stopped_by_the_browser_and_a_long_level_told_by_the_server(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service.url) as shown:
        await shown.state("connected")
        await shown["#send-source"].fill("")
        await shown["#send button"].click()
        assert not await shown["#send-source"].evaluate("input => input.validity.valid")
        await shown["#send-source"].evaluate("input => input.removeAttribute('required')")
        await shown["#send button"].click()
        await wait_until(lambda: shown["#error-source"].inner_text(), "the error by its field")
        await shown["#send-source"].fill("a")
        await shown["#send button"].click()
        await shown["#answer .stored"].wait_for()
        assert await shown["#error-source"].inner_text() == ""


async def test_a_server_that_is_gone_is_told_below_the_form(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service.url) as shown:
        await shown.state("connected")
        await shown.page.route("**/ui/send", lambda route: route.abort())
        await shown["#send button"].click()
        await shown["#answer >> text=cannot be reached"].wait_for()


async def test_hostile_text_shows_as_text_and_does_nothing(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await service.post(
            [
                {
                    "source": text[:256],
                    "level": text[:32],
                    "message": text,
                    "metadata": {text: text},
                }
                for text in HOSTILE
            ]
        )
        async with window(browser, service.url) as shown:
            title = await shown.page.title()
            await wait_until(
                lambda: _count(shown, "#rows > .row", len(HOSTILE)), "a row for each text"
            )
            elements: list[str] = await shown["#rows"].evaluate(
                "rows => [...new Set([...rows.querySelectorAll('*')].flatMap(e => "
                "[e.tagName, ...e.getAttributeNames().map(n => '@' + n)]))].sort()"
            )
            assert elements == ["@class", "@href", "@title", "A", "B", "DIV", "SPAN"]
            await service.post({"source": "t", "message": "live too: <img src=x onerror=alert(1)>"})
            await wait_until(lambda: _count(shown, "#rows > .row", len(HOSTILE) + 1), "one more")
            assert await shown.page.title() == title
            assert shown.dialogs == []
            assert all(url.startswith(service.url) for url in shown.requests)
            assert shown.errors == []
            texts = await shown.messages()
            plain = [text for text in HOSTILE if text.isprintable()]
            assert all(any(each.startswith(text) for each in texts) for text in plain)


async def _count(shown: Window, selector: str, wanted: int) -> bool:
    return await shown[selector].count() == wanted


async def test_the_oldest_rows_leave_the_page_and_it_stays_at_the_newest(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service.url) as shown:
        await shown.state("connected")
        texts = [text for n in range(5) for text in await send(service, 500 * n, 500 * n + 500)]
        await shown.shows(texts[-2000:])
        assert await _below(shown) < 2
        await shown["#rows"].evaluate("rows => rows.scrollTop = 100")
        await shown["#newest"].wait_for()
        more = await send(service, 2500, 2550)
        await shown.shows((texts + more)[-2000:])
        assert await _below(shown) > 1000
        await shown["#newest"].click()
        assert await _below(shown) < 2
        assert await shown["#newest"].is_hidden()
        await send(service, 2550, 2560)
        await wait_until(lambda: _ends_with(shown, "2559"), "the newest")
        assert await _below(shown) < 2


async def _below(shown: Window) -> float:
    found: float = await shown["#rows"].evaluate(
        "rows => rows.scrollHeight - rows.scrollTop - rows.clientHeight"
    )
    return found


async def _ends_with(shown: Window, text: str) -> bool:
    return (await shown.messages())[-1] == text


async def test_filters_live_in_the_url(valkey: Valkey, browser: Browser) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await send(service, 0, 5)
        await send(service, 5, 10, level="ERROR", source="api-1")
        async with window(browser, service.url) as shown:
            await shown.shows([str(n) for n in range(10)])
            await shown[".filters [name=level]"].select_option("ERROR")
            await shown[".filters [name=source]"].fill("api*")
            await shown["button >> text=Filter"].click()
            await shown.shows([str(n) for n in range(5, 10)])
            assert "level=ERROR&source=api*" in shown.page.url.replace("%2A", "*")
            await send(service, 10, 12)
            await send(service, 12, 14, level="ERROR", source="api-2")
            await shown.shows(["5", "6", "7", "8", "9", "12", "13"])
            await shown.page.reload()
            await shown.shows(["5", "6", "7", "8", "9", "12", "13"])
            await shown.page.go_back()
            await wait_until(lambda: _count(shown, "#rows > .row", 14), "all rows again")
            assert await shown[".filters [name=source]"].input_value() == ""
            assert shown.errors == []


async def test_a_rows_time_leads_to_the_page_from_there_on(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        texts = await send(service, 0, 30)
        async with window(browser, service.url) as shown:
            await shown.shows(texts)
            await shown["#rows .when >> nth=20"].click()
            await shown.shows(texts[20:])


# -- the connection ---------------------------------------------------------------------------


async def test_what_is_sent_while_disconnected_comes_once_on_connect(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service.url) as shown:
        await shown.state("connected")
        assert await shown["#connect"].is_hidden()
        texts = await send(service, 0, 3)
        await shown.shows(texts)
        for round_ in range(1, 4):
            await shown["text=Disconnect"].click()
            await shown.state("disconnected")
            assert await shown["#disconnect"].is_hidden()
            await wait_until(lambda: _alone(service), "the stream has ended")
            texts += await send(service, 10 * round_, 10 * round_ + 5)
            assert await shown.messages() == texts[:-5]
            await shown["#connect"].click()
            await shown.state("connected")
            await shown.shows(texts)
        assert await subscribers(service) == 1
        assert shown.errors == []


async def _alone(service: Service) -> bool:
    return await subscribers(service) == 0


async def test_connect_before_the_first_row_goes_on_from_the_first_connection(
    valkey: Valkey, browser: Browser
) -> None:
    async with (
        serving(redis_addr=valkey.url) as service,
        window(browser, f"{service.url}/?tail=0") as shown,
    ):
        await shown.state("connected")
        await shown["#disconnect"].click()
        texts = await send(service, 0, 200)
        await shown["#connect"].click()
        await shown.shows(texts)


async def test_impatient_clicks_leave_one_stream(valkey: Valkey, browser: Browser) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service.url) as shown:
        await shown.state("connected")
        await shown.page.evaluate(
            "() => { for (let n = 0; n < 20; n++) {"
            " document.getElementById('disconnect').click();"
            " document.getElementById('connect').click(); } }"
        )
        await shown.state("connected")
        texts = await send(service, 0, 50)
        await shown.shows(texts)

        async def one() -> bool:
            return await subscribers(service) == 1

        await wait_until(one, "one stream is left")
        await shown["#disconnect"].click()
        await wait_until(lambda: _alone(service), "none is left")


def _numbers(process: Process, first: int, count: int) -> Any:
    import httpx

    async def go() -> list[str]:
        texts = []
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            for number in range(first, first + count):
                event = {"source": "t", "message": str(number)}
                assert (await http.post("/ingest", json=event)).status_code == 202
                texts.append(str(number))
        return texts

    return go()


@pytest.mark.parametrize("signal", ["kill", "terminate"])
async def test_a_distributor_that_is_restarted_under_events_costs_no_row(
    own_valkey: Valkey, browser: Browser, tmp_path: Path, signal: str
) -> None:
    port = str(free_port())
    role = {"ROLE": "distributor", "REDIS_ADDR": own_valkey.url, "PORT": port}
    async with (
        serving(role="collector", redis_addr=own_valkey.url) as collector,
        serving(
            role="ui", distributor_url=f"http://127.0.0.1:{port}", collector_url=collector.url
        ) as page,
        window(browser, f"{page.url}/?since=earliest") as shown,
    ):
        await shown.state("waiting")
        texts: list[str] = []
        sending = asyncio.create_task(_keep_sending(collector, texts))
        for _ in range(3):
            before = len(texts)
            async with spawned(tmp_path, **role) as process:
                await process.ready()
                await shown.state("connected")
                await wait_until(lambda: len(texts) > before + 50, "events while it serves")  # noqa: B023
                getattr(process.popen, signal)()
                await process.exit_status()
                await shown.state("waiting")
        async with spawned(tmp_path, **role) as process:
            await shown.state("connected")
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            await shown.shows(stored(own_valkey))
        assert len(texts) > 150
        assert shown.errors == []


async def _keep_sending(service: Service, texts: list[str]) -> None:
    while True:
        number = str(len(texts))
        await service.post({"source": "t", "message": number})
        texts.append(number)
        await asyncio.sleep(0.005)


def stored(valkey: Valkey) -> list[str]:
    import msgspec

    rows: Any = valkey.client.xrange("logs")
    return [msgspec.json.decode(fields[b"event"])["message"] for _, fields in rows]


@pytest.mark.parametrize("signal", ["kill", "terminate"])
async def test_a_whole_server_that_is_restarted_costs_no_row_and_is_back_in_seconds(
    own_valkey: Valkey, browser: Browser, tmp_path: Path, signal: str
) -> None:
    environ = {"REDIS_ADDR": own_valkey.url, "PORT": str(free_port())}
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(spawned(tmp_path, **environ))
        await process.ready()
        shown = await stack.enter_async_context(window(browser, process.url))
        await shown.state("connected")
        texts = await _numbers(process, 0, 20)
        for round_ in range(1, 4):
            getattr(process.popen, signal)()
            await process.exit_status()
            await shown.state("reconnecting")
            process = await stack.enter_async_context(spawned(tmp_path, **environ))
            await process.ready()
            back = asyncio.get_running_loop().time()
            texts += await _numbers(process, 100 * round_, 20)
            await shown.state("connected")
            assert asyncio.get_running_loop().time() - back < 5
            texts += await _numbers(process, 100 * round_ + 50, 20)
            await shown.shows(texts)


async def test_a_redis_that_is_restarted_costs_no_row(own_valkey: Valkey, browser: Browser) -> None:
    async with (
        serving(redis_addr=own_valkey.url) as service,
        window(browser, service.url) as shown,
    ):
        await shown.state("connected")
        texts = await send(service, 0, 10)
        await shown.shows(texts)
        own_valkey.kill()
        own_valkey.start()

        async def sent() -> bool:
            return (await service.post({"source": "t", "message": "back"})).status_code == 202

        await wait_until(sent, "Redis is back")
        texts += ["back", *await send(service, 10, 20)]
        await shown.shows(texts)


async def test_a_connection_that_died_in_silence_is_made_again(
    valkey: Valkey, browser: Browser
) -> None:
    async with (
        serving(redis_addr=valkey.url, heartbeat_s=0.4) as service,
        Cable(service.url) as cable,
        window(browser, cable.url) as shown,
    ):
        await shown.state("connected")
        texts = await send(service, 0, 5)
        await shown.shows(texts)
        cable.freeze()
        texts += await send(service, 5, 10)
        await shown.shows(texts, 30)
        assert await shown["#state"].inner_text() == "connected"


async def test_an_idle_connection_that_beats_is_kept(valkey: Valkey, browser: Browser) -> None:
    async with (
        serving(redis_addr=valkey.url, heartbeat_s=0.4) as service,
        window(browser, service.url) as shown,
    ):
        await shown.state("connected")
        beats = "() => window.beats = (window.beats || 0)"
        await shown.page.evaluate(beats)
        await shown.page.evaluate(
            "() => document.addEventListener('heartbeat', () => window.beats++)"
        )
        await shown.page.wait_for_function("() => window.beats > 6", timeout=20_000)
        assert len([url for url in shown.requests if "/ui/stream" in url]) == 1


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {"status": 503, "content_type": "application/problem+json", "body": "{}"},
        {"status": 200, "content_type": "text/html", "body": "<p id=wrong>a captive portal"},
    ],
    ids=["refused", "503", "html"],
)
async def test_a_first_connection_that_fails_is_tried_again(
    valkey: Valkey, browser: Browser, answer: dict[str, Any] | None
) -> None:
    attempts = 0

    async def fail_twice(route: Route, _: Request) -> None:
        nonlocal attempts
        attempts += 1
        if attempts > 2:
            await route.continue_()
        elif answer is None:
            await route.abort()
        else:
            await route.fulfill(**answer)

    async with serving(redis_addr=valkey.url) as service:
        texts = await send(service, 0, 5)
        async with window(
            browser, service.url, prepare=lambda page: page.route("**/ui/stream*", fail_twice)
        ) as shown:
            await shown.state("connected")
            await shown.shows(texts)
            assert attempts == 3
            assert await shown["#wrong"].count() == 0
            assert await subscribers(service) == 1


async def test_a_session_that_ends_asks_to_sign_in(valkey: Valkey, browser: Browser) -> None:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(redis_addr=valkey.url, port=port, read_tokens="old") as service:
            shown = await stack.enter_async_context(window(browser, service.url))
            await shown["#token"].fill("old")
            await shown["text=Sign in"].click()
            await shown.state("connected")
        async with serving(redis_addr=valkey.url, port=port, read_tokens="new"):
            await shown.state("refused")
            assert await shown["#connect"].is_hidden()
            assert await shown["#disconnect"].is_hidden()
            await shown["#sign-in"].click()
            await shown["#token"].fill("new")
            await shown["text=Sign in"].click()
            await shown.state("connected")


async def test_a_page_in_the_background_pauses_and_misses_nothing(
    valkey: Valkey, browser: Browser
) -> None:
    hide = (
        "value => { Object.defineProperty(document, 'hidden', {value, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )
    async with serving(redis_addr=valkey.url) as service, window(browser, service.url) as shown:
        await shown.state("connected")
        texts = await send(service, 0, 5)
        await shown.shows(texts)
        await shown.page.evaluate(hide, True)
        await wait_until(lambda: _alone(service), "the stream is paused")
        texts += await send(service, 5, 300)
        await shown.page.evaluate(hide, False)
        await shown.shows(texts)
        assert shown.errors == []


async def test_redis_away_at_first_is_shown_and_then_it_goes_on(
    own_valkey: Valkey, browser: Browser
) -> None:
    own_valkey.kill()
    async with (
        serving(redis_addr=own_valkey.url) as service,
        window(browser, service.url) as shown,
    ):
        await shown.state("waiting")
        assert "waiting: " in await shown["#state"].inner_text()
        own_valkey.start()
        await shown.state("connected")


async def test_the_stream_begins_on_every_load(valkey: Valkey, browser: Browser) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service.url) as shown:
        for _ in range(15):
            await shown.page.reload()
            await shown.state("connected")
        assert shown.errors == []


# -- tokens, origins, looks -------------------------------------------------------------------


async def test_over_plain_http_from_another_machine_the_forms_work(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        url = service.url.replace("127.0.0.1", "logs.test")
        async with window(browser, f"{url}/?level=INFO") as shown:
            await shown["#token"].fill("wrong")
            await shown["text=Sign in"].click()
            await shown["text=not known here"].wait_for()
            for token in ("w", "r"):
                await shown["#token"].fill(token)
                await shown["text=Sign in"].click()
            await shown.state("connected")
            assert "level=INFO" in shown.page.url
            assert not await shown.page.evaluate("() => isSecureContext")
            await shown["[name=message]"].fill("from afar")
            await shown["#send button"].click()
            await shown.shows(["from afar"])
            await shown["text=Sign out"].click()
            await shown["#token"].wait_for()


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 760}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 760}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 380, "height": 800}},
    "wide": {"color_scheme": "dark", "viewport": {"width": 1920, "height": 1000}},
}
SHOWN = [
    {"source": "api-gateway", "message": "GET /v1/orders 200 in 12 ms", "metadata": {"n": 200}},
    {"source": "api-gateway", "level": "DEBUG", "message": "cache hit for key orders:8841"},
    {"source": "worker-3", "level": "WARN", "message": "retrying payment 8841, attempt 2 of 5"},
    {
        "source": "worker-3",
        "level": "ERROR",
        "message": "connection reset by peer\nTraceback (most recent call last):\n"
        '  File "pay.py", line 12, in charge\n    raise ConnectionResetError',
        "metadata": {"order": 8841, "region": "us-east-1"},
    },
    {"source": "kernel", "level": "FATAL", "message": "out of memory: killed process 4121"},
    {
        "source": "billing.reconciliation.nightly",
        "level": "AUDIT",
        "message": "<script>alert(1)</script> \x1b[31mred\x1b[0m \u202egnp.exe\u202c",
    },
    {"source": "tracer", "level": "TRACE", "message": "span 7f3a closed"},
]


@pytest.mark.parametrize("look", LOOKS)
async def test_nothing_overflows_and_there_is_something_to_look_at(
    valkey: Valkey, browser: Browser, look: str
) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    options = LOOKS[look]

    async def picture(shown: Window, name: str) -> None:
        await shown.page.screenshot(path=SCREENSHOTS / f"{look}-{name}.png", full_page=True)
        wide = await shown.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0

    async with serving(redis_addr=valkey.url) as service:
        async with window(browser, service.url, **options) as shown:
            await shown.state("connected")
            await picture(shown, "empty")
            first = (await service.post(SHOWN * 3)).json()["first_id"]
            await wait_until(lambda: _count(shown, "#rows > .row", 21), "rows")
            await shown["[name=message]"].fill("hello <b>world</b>")
            await shown["#send button"].click()
            await shown["#answer .stored"].wait_for()
            await wait_until(lambda: _count(shown, "#rows > .row", 22), "the row")
            await picture(shown, "rows")
        async with window(browser, f"{service.url}/?level=%3E%3Dx", **options) as shown:
            await picture(shown, "bad-filter")
    valkey.client.xtrim("logs", maxlen=5, approximate=False)
    async with (
        serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service,
        window(browser, f"{service.url}/?since={first}", **options) as shown,
    ):
        await shown["#token"].fill("x")
        await shown["text=Sign in"].click()
        await picture(shown, "login")
        await shown["#token"].fill("r")
        await shown["text=Sign in"].click()
        await shown["#rows .row"].first.wait_for()
        await shown["#disconnect"].click()
        await picture(shown, "signed-in")
