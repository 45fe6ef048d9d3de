"""What a link carries: filter, levels, time, position; and what the browser keeps and loads."""

import csv
import io
import json

from playwright.async_api import Browser

from tests.page.window import BROWSER, Window, send, window
from tests.servers import Service

pytestmark = BROWSER


async def test_filters_live_in_the_url(service: Service, browser: Browser) -> None:
    await send(service, 0, 5)
    await send(service, 5, 10, level="ERROR", source="api-1")
    async with window(browser, service.url) as shown:
        await shown.shows([str(n) for n in range(10)])
        await shown[".chip.error"].click()
        await shown.shows([str(n) for n in range(5, 10)])
        await shown["#filters [name=source]"].fill("api*")
        await shown.page.get_by_role("button", name="Filter", exact=True).click()
        await shown.shows([str(n) for n in range(5, 10)])
        assert "level=ERROR&source=api*" in shown.page.url.replace("%2A", "*")
        await send(service, 10, 12)
        await send(service, 12, 14, level="ERROR", source="api-2")
        wanted = ["5", "6", "7", "8", "9", "12", "13"]
        await shown.shows(wanted)
        await shown.says("#count-filtered", "2")
        await shown.page.reload()
        await shown.shows(wanted)
        await shown.page.go_back()
        await shown.page.go_back()
        await shown.shows([str(n) for n in range(14)])
        assert await shown["#filters [name=source]"].input_value() == ""
        await shown.page.go_forward()
        await shown.shows(wanted)
        assert await shown[".chip.error"].get_attribute("aria-pressed") == "true"
        assert await shown[".chip.info"].get_attribute("aria-pressed") == "false"


async def test_chips_choose_levels(service: Service, browser: Browser) -> None:
    for n, level in enumerate(("DEBUG", "INFO", "WARN", "ERROR")):
        await send(service, n, n + 1, level=level)
    async with window(browser, f"{service.url}/?level=>%3Dwarn") as shown:
        await shown.shows(["2", "3"])
        pressed = await shown[".chip[aria-pressed=true]"].all_inner_texts()
        assert pressed == ["WARN", "ERROR", "FATAL"]
        await shown[".chip.warn"].click()
        await shown.shows(["3"])
        await shown[".chip.debug"].click()
        await shown.shows(["0", "3"])
        await shown.page.get_by_role("link", name="Clear").click()
        await shown.shows(["0", "1", "2", "3"])
        assert "?" not in shown.page.url


async def test_a_filter_that_is_wrong_says_where_while_it_is_typed(
    service: Service, shown: Window
) -> None:
    await shown["#q"].fill("level>=warn (timeout")
    await shown["#filter-said .error"].wait_for()
    assert await shown["#filter-said code"].inner_text()
    await shown["#q"].fill("status>=x")
    await shown.says("#filter-said mark", "x")
    await shown["#q"].fill("status>=500")
    await shown.says("#filter-said .takes", "Shows ")


async def test_a_url_whose_filter_is_wrong_says_so_and_can_be_mended(
    service: Service, browser: Browser
) -> None:
    texts = await send(service, 0, 3)
    async with window(browser, f"{service.url}/?q=status>%3Dx", quiet=False) as shown:
        await shown.says("#filter-said .error", "comes a number")
        await shown.state("disconnected")
        await shown["#q"].fill("")
        await shown["#q"].press("Enter")
        await shown.state("connected")
        await shown.shows(texts)


async def test_a_rows_time_is_a_permalink(service: Service, browser: Browser) -> None:
    texts = await send(service, 0, 30)
    async with window(browser, service.url) as shown:
        await shown.shows(texts)
        row = shown["#rows > .row"].nth(20)
        href = await row.locator(".when").get_attribute("href")
        await row.locator(".when").click()
        assert shown.page.url == f"{service.url}{href}"
        await shown.says("#rows > .at .message", "20")
        await shown.page.go_back()
        await shown.shows(texts)
        await shown.mode("live")
    async with window(browser, f"{service.url}{href}&level=ERROR") as shown:
        await shown.shows(["20"])
        await shown.mode("paused")


async def test_a_permalink_to_what_is_gone_says_so(service: Service, browser: Browser) -> None:
    texts = await send(service, 0, 3)
    async with window(browser, f"{service.url}/?at=5-0") as shown:
        await shown.says("#rows > .left-out", "has no event 5-0")
        await shown["#continue"].click()
        await shown.shows(texts)


async def test_since_is_a_choice_and_in_the_url(service: Service, browser: Browser) -> None:
    old = (await service.post({"source": "t", "message": "old"})).json()["id"]
    texts = await send(service, 0, 3)
    after = f"{old.partition('-')[0]}-{int(old.partition('-')[2]) + 1}"
    async with window(browser, f"{service.url}/?since={after}") as shown:
        await shown.shows(texts)
        await shown["#filters [name=since]"].select_option("1h")
        await shown.shows(["old", *texts])
        assert "since=1h" in shown.page.url


async def test_filters_are_saved_in_the_browser(service: Service, shown: Window) -> None:
    texts = await send(service, 0, 12)
    await shown.shows(texts)
    await shown["#q"].fill("1")
    await shown["#q"].press("Enter")
    await shown.shows(["1", "10", "11"])
    await shown["#saved summary"].click()
    await shown["#save"].click()
    await shown.page.goto(service.url)
    await shown.shows(texts)
    await shown["#saved summary"].click()
    await shown["#saved-list a"].click()
    await shown.shows(["1", "10", "11"])
    await shown["#saved summary"].click()
    await shown.page.get_by_role("button", name="Forget this filter").click()
    await shown.has("#saved-list li", 0)


async def test_what_is_filtered_is_downloaded(service: Service, browser: Browser) -> None:
    texts = await send(service, 0, 300, level="WARN", metadata={"n": 1})
    await send(service, 300, 600)
    async with window(browser, f"{service.url}/?level=WARN") as shown:
        for kind in ("NDJSON", "CSV"):
            await shown["#downloads summary"].click()
            async with shown.page.expect_download() as starting:
                await shown["#downloads"].get_by_text(kind, exact=True).click()
            download = await starting.value
            assert download.suggested_filename == f"logpipe.{kind.lower()}"
            text = (await download.path()).read_text()
            if kind == "CSV":
                found = [each["message"] for each in csv.DictReader(io.StringIO(text))]
            else:
                found = [json.loads(line)["message"] for line in text.splitlines()]
            assert found == texts
