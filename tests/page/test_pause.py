"""Pause: nothing is lost, what waits is counted, what is left out is said."""

import contextlib

import pytest
from playwright.async_api import Browser, Route

from tests.helpers import wait_until
from tests.page.window import BROWSER, Window, has_subscribers, send, window
from tests.servers import Service, Valkey, free_port, serving

pytestmark = BROWSER


async def test_scrolling_up_pauses_and_to_go_on_loses_nothing(
    service: Service, shown: Window
) -> None:
    texts = await send(service, 0, 100)
    await shown.shows(texts)
    await shown.scroll_up()
    await shown.mode("paused")
    more = await send(service, 100, 313)
    await shown.says("#waiting", "Paused · 213 new")
    assert await shown.page.title() == "(213) logpipe"
    assert await shown.messages() == texts
    await shown["#continue"].click()
    await shown.shows(texts + more)
    await shown.at_end()
    more += await send(service, 313, 320)
    await shown.shows(texts + more)
    assert await shown.page.title() == "logpipe"
    await has_subscribers(service, 1)


async def test_what_waits_is_counted_through_the_filter(service: Service, browser: Browser) -> None:
    async with window(browser, f"{service.url}/?level=ERROR") as shown:
        await shown.state("connected")
        texts = await send(service, 0, 3, level="ERROR")
        await shown.shows(texts)
        await shown.page.keyboard.press("Space")
        await shown.mode("paused")
        await send(service, 3, 50)
        texts += await send(service, 50, 57, level="ERROR")
        await shown.says("#waiting", "Paused · 7 new")
        await shown.page.keyboard.press("Space")
        await shown.shows(texts)


async def test_a_pause_survives_a_lost_connection(service: Service, shown: Window) -> None:
    texts = await send(service, 0, 10)
    await shown.shows(texts)
    await shown.page.keyboard.press("Space")
    texts += await send(service, 10, 15)
    await shown.says("#waiting", "5 new")
    await shown["#disconnect"].click()
    texts += await send(service, 15, 20)
    await shown["#connect"].click()
    await shown.says("#waiting", "10 new")
    await shown["#continue"].click()
    await shown.shows(texts)


async def test_a_jump_to_live_says_what_passed_and_leads_to_it(
    service: Service, shown: Window
) -> None:
    texts = await send(service, 0, 10)
    await shown.shows(texts)
    await shown.page.keyboard.press("Space")
    passed = await send(service, 10, 60)
    await shown.says("#waiting", "50 new")
    await shown["#newest"].click()
    await shown.says("#rows > .left-out", "50 events passed while this was paused")
    after = await send(service, 60, 63)
    await shown.shows(texts + after)
    await shown["#rows > .left-out a"].click()
    await shown.mode("paused")

    async def are() -> bool:
        return set(passed) <= set(await shown.messages())

    await wait_until(are, "what passed")


async def test_a_paused_position_is_in_the_url_and_survives_a_reload(
    service: Service, shown: Window
) -> None:
    texts = await send(service, 0, 30)
    await shown.shows(texts)
    await shown.page.keyboard.press("Space")
    await shown.mode("paused")
    assert "?at=" in shown.page.url
    texts += await send(service, 30, 35)
    await shown.says("#waiting", "5 new")
    await shown.page.reload()
    await shown.mode("paused")
    await shown["#continue"].click()
    await shown.shows(texts)
    assert "at=" not in shown.page.url


@pytest.mark.parametrize("paused", ["", "continue", "newest"])
async def test_what_the_stream_lost_meanwhile_is_told(
    valkey: Valkey, browser: Browser, paused: str
) -> None:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(redis_addr=valkey.url, port=port) as service:
            opened = window(browser, service.url, quiet=False)
            shown = await stack.enter_async_context(opened)
            await shown.shows(texts := await send(service, 0, 10))
            if paused:
                await shown.page.keyboard.press("Space")
                await shown.mode("paused")
            await shown["#disconnect"].click()
            await has_subscribers(service, 0)
            texts += (await send(service, 10, 20))[-4:]
            valkey.client.xtrim("logs", maxlen=4, approximate=False)
        async with serving(redis_addr=valkey.url, port=port):
            await shown["#connect"].click()
            if paused:
                await shown.says("#waiting", "4 new")
                await shown[f"#{paused}"].click()
            await shown.says("#count-gaps", "1")
            if paused == "newest":
                await shown.says("#rows > .left-out", "4 events passed")
                await shown.says("#rows > .left-out", "others are missing")
                return
            await shown.shows(texts)
            await shown.says("#rows > .gap", "missing after ")
            await shown.says("#rows > .gap", "the stream no longer keeps them")
            order = await shown["#rows > *"].evaluate_all("all => all.map(e => e.classList[0])")
            assert order[-5] == "gap"


async def test_a_hit_is_shown_in_its_context(service: Service, browser: Browser) -> None:
    texts = await send(service, 0, 20)
    hit = await send(service, 20, 21, level="ERROR")
    texts += hit + await send(service, 21, 40)
    async with window(browser, f"{service.url}/?level=ERROR") as shown:
        await shown.shows(hit)
        details = await shown.open_details()
        await details.get_by_text("Show in context").click()
        await shown.shows(texts)
        assert await shown["#rows > .at .message"].inner_text() == "20"
        assert "level" not in shown.page.url
        await shown.page.go_back()
        await shown.shows(hit)


async def test_to_go_live_while_a_context_loads_shows_each_row_once(
    service: Service, browser: Browser
) -> None:
    texts = await send(service, 0, 20)
    async with window(browser, service.url) as shown:
        await shown.shows(texts)
        hit = await shown["#rows > .row"].nth(10).get_attribute("data-id")
        asked: dict[str, Route] = {}

        async def hold(route: Route) -> None:
            asked["context" if "at=" in route.request.url else "older"] = route

        await shown.page.route("**/ui/rows?*", hold)
        await shown.page.goto(f"{service.url}/?at={hit}", wait_until="commit")
        await wait_until(lambda: "context" in asked, "the context is asked for")
        context = asked["context"].request
        async with shown.page.expect_event("requestfailed", lambda failed: failed == context):
            await shown["#continue"].click()
        await wait_until(lambda: "older" in asked, "older rows are asked for")
        await asked["older"].continue_()
        await shown.shows(texts)


async def test_rows_scrolled_far_away_come_again_on_going_on(
    service: Service, browser: Browser
) -> None:
    """Older rows push the newest off the page; to go on brings them back, in order."""
    texts = [text for n in range(3) for text in await send(service, 500 * n, 500 * n + 500)]
    async with window(browser, service.url) as shown:
        await shown.says("#rows > .row:last-child .message", texts[-1])

        async def at_the_oldest() -> bool:
            await shown["#log"].evaluate("log => log.scrollTop = 500")
            await shown["#log"].evaluate("log => log.scrollTop = 0")
            return (await shown.messages())[0] == "0"

        await wait_until(at_the_oldest, "the oldest row", 30)
        messages = await shown.messages()
        assert messages == texts[: len(messages)]
        assert len(messages) <= 1000
        assert await shown["#rows"].evaluate("rows => rows.childElementCount") <= 1001
        await shown.says("#waiting", f"{1500 - len(messages)} new")
        await shown["#continue"].click()
        await shown.says("#rows > .row:last-child .message", texts[-1])
        messages = await shown.messages()
        assert messages == texts[-len(messages) :]
        assert len(messages) > 900


async def test_a_pause_leaves_the_rows_in_view_where_they_are(
    service: Service, browser: Browser
) -> None:
    await send(service, 0, 90, metadata={"lines": "a long value " * 40})
    await send(service, 90, 100)
    async with window(browser, service.url) as shown:
        await shown.has("#rows > .row", 100)
        await shown.at_end()
        row = shown["#rows > .row"].nth(97)
        before: float = await row.evaluate("row => row.getBoundingClientRect().top")
        await shown.page.keyboard.press("Space")
        await shown.mode("paused")
        assert abs(await row.evaluate("row => row.getBoundingClientRect().top") - before) < 60
        await shown["#log"].evaluate("log => { log.scrollTop = log.scrollTop - 100; }")
        assert abs(await row.evaluate("row => row.getBoundingClientRect().top") - before) < 160
        await shown["#continue"].click()
        await shown.mode("live")
        await shown["#log"].hover()
        await shown.page.mouse.wheel(0, -300)
        await shown.mode("paused")

        async def moved() -> bool:
            top: float = await row.evaluate("row => row.getBoundingClientRect().top")
            return abs(top - before - 300) < 60

        await wait_until(moved, "the rows have moved as far as the wheel")
