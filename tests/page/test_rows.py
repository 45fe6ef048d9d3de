"""Rows: what they show of an event, how many there are, and what a click on one opens."""

from typing import Any

from playwright.async_api import Browser

from tests.helpers import wait_until
from tests.page.window import BROWSER, Window, send, window
from tests.servers import Service, Valkey, serving

pytestmark = BROWSER


async def _colour(shown: Window, selector: str) -> str:
    found: str = await shown[selector].evaluate("each => getComputedStyle(each).color")
    return found


async def test_a_terminals_colours_are_colours_and_its_commands_are_shown(
    service: Service, shown: Window
) -> None:
    await service.post({"source": "t", "message": "\x1b[31mred\x1b[0m plain \x1b]0;title\x07"})
    await shown["#rows .fg1"].wait_for()
    assert await shown["#rows .fg1"].inner_text() == "red"
    assert await _colour(shown, "#rows .fg1") != await _colour(shown, "#rows .message")
    assert await shown["#rows .message"].inner_text() == "red plain \\x1b]0;title\\x07"


async def test_what_a_filter_found_is_marked(service: Service, browser: Browser) -> None:
    await service.post([{"source": "t", "message": m} for m in ("a Timeout here", "fine")])
    async with window(browser, f"{service.url}/?q=timeout") as shown:
        await shown.shows(["a Timeout here"])
        assert await shown["#rows mark"].all_inner_texts() == ["Timeout"]


async def test_time_is_local_or_utc_or_ago_and_stays_so(service: Service, browser: Browser) -> None:
    await service.post({"source": "t", "message": "m", "ts_unix_ms": 1710000000123})
    async with window(browser, service.url, timezone_id="Asia/Tokyo") as shown:
        await shown.says("#rows .when", "2024-03-10 01:00:00.123")
        await shown["#clock"].select_option("utc")
        assert await shown["#rows .when"].inner_text() == "2024-03-09 16:00:00.123Z"
        await shown["#clock"].select_option("ago")
        assert (await shown["#rows .when"].inner_text()).endswith(" d ago")
        await shown.page.reload()
        await shown["#rows .when"].wait_for()
        assert (await shown["#rows .when"].inner_text()).endswith(" d ago")


async def test_rows_wrap_or_do_not(service: Service, shown: Window) -> None:
    await service.post({"source": "t", "message": "word " * 200})
    row = shown["#rows > .row"]
    await row.wait_for()
    wrapped = await row.evaluate("each => each.offsetHeight")
    await shown["#wrap"].uncheck()
    assert await row.evaluate("each => each.offsetHeight") < wrapped
    assert await shown["#log"].evaluate("log => log.scrollWidth > log.clientWidth")
    await shown.page.reload()
    assert not await shown["#wrap"].is_checked()


async def test_a_long_message_is_folded_and_opens(service: Service, shown: Window) -> None:
    text = "".join(f"{n:05} " for n in range(10_600))  # 63,600 bytes
    await service.post({"source": "t", "message": text})
    await shown.says("#rows .more", "show all 63,600 characters")
    assert await shown["#rows > .row"].evaluate("each => each.offsetHeight") < 500
    await shown["#rows .more"].click()
    assert await shown["#rows .message"].inner_text() == text
    assert await shown["#rows > .details"].count() == 0


METADATA: dict[str, Any] = {
    "region": "us-east-1",
    "status": 503,
    "user": {"name": "ann", "tags": ["a", "b"]},
    "odd key!": None,
}


async def test_a_click_opens_the_metadata_as_a_tree_and_closes_it(
    service: Service, shown: Window
) -> None:
    await service.post({"source": "api", "message": "m", "metadata": METADATA})
    await shown["#rows > .row"].wait_for()
    details = await shown.open_details()
    text = await details.locator(".tree").inner_text()
    for told in ("source", "api", "region", "us-east-1", "status", "503", "ann", "odd key!"):
        assert told in text
    # A tree: what is deeper stands further to the right.
    depth = "(li, key) => [...li.querySelectorAll('.key')].find(k => k.textContent == key)"
    lefts = [
        await details.evaluate(f"{depth[:-1]}).getBoundingClientRect().left", key)
        for key in ("metadata", "user", "tags", "0")
    ]
    assert lefts == sorted(set(lefts))
    await shown["#rows > .row .level"].click()
    await shown.has("#rows > .details", 0)


async def test_a_value_is_copied(service: Service, shown: Window) -> None:
    await shown.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await service.post({"source": "api", "message": "m", "metadata": METADATA})
    await shown["#rows > .row"].wait_for()
    details = await shown.open_details()

    async def copied() -> str:
        text: str = await shown.page.evaluate("() => navigator.clipboard.readText()")
        return text

    async def copies(text: str) -> None:
        async def has() -> bool:
            return text in await copied()

        await wait_until(has, f"{text} is copied")

    await details.get_by_label("Copy the value of metadata.region").click()
    await copies("us-east-1")
    await details.get_by_text("Copy metadata").click()
    await copies('"name": "ann"')
    await details.get_by_text("Copy link").click()
    await copies(f"{service.url}/?at=")


async def test_over_plain_http_from_another_machine_a_value_is_copied_too(
    valkey: Valkey, browser: Browser
) -> None:
    async with (
        serving(redis_addr=valkey.url, allowed_hosts="logs.test") as service,
        window(browser, service.url.replace("127.0.0.1", "logs.test")) as shown,
    ):
        await service.post({"source": "api", "message": "m", "metadata": METADATA})
        await shown["#rows > .row"].wait_for()
        details = await shown.open_details()
        await details.get_by_label("Copy the value of metadata.region").click()
        await shown["#send-message"].fill("")
        await shown["#send-message"].press("Control+V")
        assert await shown["#send-message"].input_value() == "us-east-1"


async def test_a_value_is_filtered_for_and_out_and_given_a_column(
    service: Service, shown: Window
) -> None:
    for n, status in enumerate((503, 200, 503)):
        metadata = {"status": status, "n": n}
        await service.post({"source": "api", "message": str(n), "metadata": metadata})
    await shown.has("#rows > .row", 3)
    details = await shown.open_details()
    await details.get_by_label("Filter for metadata.status:503", exact=True).click()
    await shown.has("#rows > .row", 2)
    assert "status%3A503" in shown.page.url
    details = await shown.open_details()
    await details.get_by_label("Filter out metadata.n:0", exact=True).click()
    await shown.has("#rows > .row", 1)
    details = await shown.open_details()
    await details.get_by_label("Give status a column").click()
    await shown.says("#rows .column", "503")
    assert "cols=status" in shown.page.url
    await shown["#columns button"].click()
    await shown.has("#rows .column", 0)
    assert "cols" not in shown.page.url


async def test_the_oldest_rows_leave_the_page_and_it_stays_at_the_newest(
    service: Service, browser: Browser
) -> None:
    texts = await send(service, 0, 400)
    async with window(browser, service.url) as shown:
        await shown.shows(texts[-100:])
        texts += await send(service, 400, 900) + await send(service, 900, 1380)
        await shown.says("#rows > .row:last-child .message", texts[-1])
        messages = await shown.messages()
        assert messages == texts[-len(messages) :]
        assert 990 < len(messages) <= 1000
        await shown.at_end()
        # Where the page ends above, it goes on when it is scrolled to.
        await shown["#log"].evaluate("log => log.scrollTop = 500")
        await shown["#log"].evaluate("log => log.scrollTop = 0")
        await shown.says("#rows > .row >> nth=0", texts[-len(messages) - 100])


async def test_rows_that_come_above_leave_those_in_view_where_they_are(
    service: Service, shown: Window
) -> None:
    await send(service, 0, 450)
    await shown.says("#rows > .row:last-child .message", "449")
    await shown.page.reload()
    await shown.says("#rows > .row:last-child .message", "449")
    top = "() => document.querySelector('[data-probe]').getBoundingClientRect().top"
    await shown["#log"].evaluate("log => log.scrollTop = 420")
    await shown.mode("paused")
    await shown["#rows > .row"].first.evaluate("row => row.dataset.probe = 1")
    await shown["#log"].evaluate("log => log.scrollTop = 390")
    before = await shown.page.evaluate(top)
    await shown.has("#rows > .row", 200)
    assert abs(await shown.page.evaluate(top) - before) < 2
