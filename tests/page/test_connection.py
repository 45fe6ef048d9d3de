"""The connection: it is made again from where the rows end, and says what it does."""

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Request, Route

from logpipe import __version__
from tests.helpers import wait_until
from tests.page.proxies import Cable
from tests.page.window import (
    BROWSER,
    Window,
    has_subscribers,
    send,
    subscribers,
    window,
)
from tests.servers import UNMEASURED, Process, Service, Valkey, free_port, serving, spawned

pytestmark = BROWSER

# -- the connection ---------------------------------------------------------------------------


async def test_what_is_sent_while_disconnected_comes_once_on_connect(
    service: Service, shown: Window
) -> None:
    assert await shown["#connect"].is_hidden()
    texts = await send(service, 0, 3)
    await shown.shows(texts)
    for round_ in range(1, 4):
        await shown["text=Disconnect"].click()
        await shown.state("disconnected")
        assert await shown["#disconnect"].is_hidden()
        await has_subscribers(service, 0)
        texts += await send(service, 10 * round_, 10 * round_ + 5)
        assert await shown.messages() == texts[:-5]
        await shown["#connect"].click()
        await shown.state("connected")
        await shown.shows(texts)
    assert await subscribers(service) == 1


async def test_connect_before_the_first_row_goes_on_from_the_first_connection(
    valkey: Valkey, browser: Browser
) -> None:
    async with (
        serving(redis_addr=valkey.url) as service,
        window(browser, service.url) as shown,
    ):
        await shown.state("connected")
        await shown["#disconnect"].click()
        texts = await send(service, 0, 200)
        await shown["#connect"].click()
        await shown.shows(texts)


async def test_impatient_clicks_leave_one_stream(service: Service, shown: Window) -> None:
    await shown.page.evaluate(
        "() => { for (let n = 0; n < 20; n++) {"
        " document.getElementById('disconnect').click();"
        " document.getElementById('connect').click(); } }"
    )
    await shown.state("connected")
    texts = await send(service, 0, 50)
    await shown.shows(texts)
    await has_subscribers(service, 1)
    await shown["#disconnect"].click()
    await has_subscribers(service, 0)


def _numbers(process: Process, first: int, count: int) -> Any:
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
        sending: asyncio.Task[None] | None = None
        for _ in range(3):
            before = len(texts)
            async with spawned(tmp_path, **role, **UNMEASURED) as process:
                await process.ready()
                await shown.state("connected")
                sending = sending or asyncio.create_task(_keep_sending(collector, texts))
                await wait_until(lambda: len(texts) > before + 20, "events while it serves")  # noqa: B023
                getattr(process.popen, signal)()
                await process.exit_status()
                await shown.state("waiting")
        async with spawned(tmp_path, **role, **UNMEASURED) as process:
            await shown.state("connected")
            assert sending is not None
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            await shown.shows(stored(own_valkey))
        assert len(texts) > 60


async def _keep_sending(service: Service, texts: list[str]) -> None:
    while True:
        number = str(len(texts))
        await service.post({"source": "t", "message": number})
        texts.append(number)
        await asyncio.sleep(0.02)


def stored(valkey: Valkey) -> list[str]:
    rows: Any = valkey.client.xrange("logs")
    return [json.loads(fields[b"event"])["message"] for _, fields in rows]


@pytest.mark.parametrize("signal", ["kill", "terminate"])
async def test_a_whole_server_that_is_restarted_costs_no_row_and_is_back_in_seconds(
    own_valkey: Valkey, browser: Browser, tmp_path: Path, signal: str
) -> None:
    environ = {"REDIS_ADDR": own_valkey.url, "PORT": str(free_port())}
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(spawned(tmp_path, **environ, **UNMEASURED))
        await process.ready()
        shown = await stack.enter_async_context(window(browser, process.url, quiet=False))
        await shown.state("connected")
        texts = await _numbers(process, 0, 20)
        for round_ in range(1, 4):
            getattr(process.popen, signal)()
            await process.exit_status()
            await shown.state("reconnecting")
            assert re.fullmatch(
                r"reconnecting in \d s: (the server cannot be reached|the connection was lost"
                r"|the server is stopping)",
                await shown["#state"].inner_text(),
            )
            process = await stack.enter_async_context(spawned(tmp_path, **environ, **UNMEASURED))
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
        assert (await shown["#state"].inner_text()).startswith("connected to this process")


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
            browser,
            service.url,
            quiet=False,
            prepare=lambda page: page.route("**/ui/stream*", fail_twice),
        ) as shown:
            await shown.state("connected")
            await shown.shows(texts)
            assert attempts == 3
            assert await shown["#wrong"].count() == 0
            assert await subscribers(service) == 1


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


async def test_the_state_names_the_roles_and_the_version(
    service: Service, valkey: Valkey, browser: Browser
) -> None:
    async with window(browser, service.url) as shown:
        await shown.says(
            "#state", f"connected to this process (collector, distributor, ui) {__version__}"
        )
    async with (
        serving(role="ui", distributor_url=service.url, collector_url=service.url) as page,
        window(browser, page.url) as shown,
    ):
        await shown.says("#state", f"connected to distributor {service.url} {__version__}")
        await shown["#send .primary"].click()
        await shown.has("#rows > .row", 1)


async def test_the_stream_begins_on_every_load(service: Service, shown: Window) -> None:
    for _ in range(15):
        await shown.page.reload()
        await shown.state("connected")
