"""Many tabs of one browser, tabs in the background, and proxies that keep streams back."""

from playwright.async_api import Browser

from tests.helpers import wait_until
from tests.page.proxies import Buffering
from tests.page.window import (
    BROWSER,
    HIDE,
    Window,
    has_subscribers,
    send,
    subscribers,
    window,
)
from tests.servers import Service

pytestmark = BROWSER


async def test_seven_tabs_with_filters_of_their_own_all_show_rows_and_send(
    service: Service, browser: Browser
) -> None:
    async with window(browser, f"{service.url}/?source=tab-0") as first:
        tabs = [first]
        for number in range(1, 7):
            tabs.append(Window(await first.page.context.new_page()))
            await tabs[-1].page.goto(f"{service.url}/?source=tab-{number}")
        for tab in tabs:
            await tab.state("connected")
        for round_ in range(2):
            for number, tab in enumerate(tabs):
                await tab["#send-source"].fill(f"tab-{number}")
                await tab["#send-message"].fill(f"{number}: {round_}")
                await tab["#send .primary"].click()
                await tab["#answer .stored"].wait_for()
        for number, tab in enumerate(tabs):
            await tab.shows([f"{number}: 0", f"{number}: 1"])
        assert await subscribers(service) <= 3 + 4
        short = [tab for tab in tabs if "short requests" in await tab["#state"].inner_text()]
        assert len(short) >= 3
        # A tab that closes leaves its stream to another.
        streaming = next(tab for tab in tabs[1:] if tab not in short)
        await streaming.page.close()

        async def taken_over() -> bool:
            states = [await tab["#state"].inner_text() for tab in short]
            return sum("short requests" in state for state in states) < len(short)

        await wait_until(taken_over, "a stream is taken over", 20)
        assert [error for tab in tabs for error in tab.errors] == []


async def test_a_hidden_tab_costs_nothing_and_misses_nothing(
    service: Service, shown: Window
) -> None:
    texts = await send(service, 0, 5)
    await shown.shows(texts)
    await shown.page.evaluate(HIDE, True)
    await has_subscribers(service, 0)
    asked = len(shown.requests)
    texts += await send(service, 5, 300)
    # Three ticks of the page's clock.
    await shown.page.evaluate("() => new Promise(done => setTimeout(done, 3200))")
    assert len(shown.requests) == asked
    assert await subscribers(service) == 0
    await shown.page.evaluate(HIDE, False)
    await shown.shows(texts)


async def test_a_proxy_that_buffers_is_named_and_the_page_works_through_it(
    service: Service, browser: Browser
) -> None:
    texts = await send(service, 0, 10)
    async with (
        Buffering(service.url) as proxy,
        window(browser, proxy.url) as shown,
    ):
        await shown.says("#state", "a proxy on the way holds streams back")
        await shown.shows(texts)
        texts += await send(service, 10, 20)
        await shown.shows(texts)
        await shown["#send-message"].fill("through")
        await shown["#send .primary"].click()
        await shown.shows([*texts, "through"])
        await shown.page.keyboard.press("Escape")
        await shown.page.keyboard.press("Space")
        await shown.mode("paused")
        more = await send(service, 20, 25)
        await shown.says("#waiting", "5 new")
        await shown["#continue"].click()
        await shown.shows([*texts, "through", *more])


async def test_a_stream_that_only_starts_slowly_is_not_taken_for_a_proxys(
    service: Service, shown: Window
) -> None:
    """An idle stream is silent for longer than a held-back one needs to be recognised."""
    await shown.page.evaluate("() => new Promise(done => setTimeout(done, 5200))")
    await shown.shows(await send(service, 0, 3))
    assert len(shown.streams()) == 1
    assert "proxy" not in await shown["#state"].inner_text()
