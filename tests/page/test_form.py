"""The form that sends test events, and its panel."""

import json
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.helpers import wait_until
from tests.page.window import BROWSER, Window, window
from tests.servers import Service, Valkey

pytestmark = BROWSER


def _stored(valkey: Valkey) -> list[dict[str, Any]]:
    rows: Any = valkey.client.xrange("logs")
    return [json.loads(fields[b"event"]) for _, fields in rows]


async def test_what_the_form_sends_shows_as_a_row(service: Service, shown: Window) -> None:
    await shown.page.get_by_label("Source").first.fill("kitchen")
    await shown.page.get_by_label("Level").first.select_option("ERROR")
    await shown.page.get_by_label("Message").fill("the <b>milk</b> boils\nover")
    await shown.page.get_by_role("button", name="Send", exact=True).click()
    await shown.shows(["the <b>milk</b> boils\nover"])
    await shown.says("#answer .stored", "stored as 1")
    assert await shown["#rows .source"].inner_text() == "kitchen"
    assert await shown["#rows .row.error .level"].inner_text() == "ERROR"


async def test_metadata_is_typed_as_keys_and_values(
    valkey: Valkey, service: Service, shown: Window
) -> None:
    for key, value in (("status", "503"), ("region", "us-east-1"), ("gone", "1")):
        await shown["#add-pair"].click()
        await shown.page.get_by_role("textbox", name="Key").last.fill(key)
        await shown.page.get_by_role("textbox", name="Value").last.fill(value)
    await shown.page.get_by_role("button", name="Remove").last.click()
    await shown["#send .primary"].click()
    await shown["#answer .stored"].wait_for()
    assert _stored(valkey)[0]["metadata"] == {"status": 503, "region": "us-east-1"}


@pytest.mark.parametrize("number", [10, 100])
async def test_one_click_sends_many(service: Service, shown: Window, number: int) -> None:
    await shown["#send-message"].fill("hello")
    await shown[f'#send [name=count][value="{number}"]'].click()
    await shown.says("#answer", f"{number} stored")
    await shown.shows([f"hello ({n} of {number})" for n in range(1, number + 1)])


async def test_one_a_second_is_sent_until_it_is_switched_off(
    service: Service, shown: Window
) -> None:
    await shown.page.get_by_label("Send one every second").check()
    await shown.has("#rows > .row", 2)
    await shown.page.get_by_label("Send one every second").uncheck()
    # Two ticks of the page's own clock later there is no third one.
    await shown.page.evaluate("() => new Promise(done => setTimeout(done, 2100))")
    assert await shown["#rows > .row"].count() <= 3


async def test_an_error_stands_by_its_field_and_goes_when_it_is_mended(
    service: Service, shown: Window
) -> None:
    await shown["#send-source"].fill("")
    await shown["#send .primary"].click()
    assert not await shown["#send-source"].evaluate("input => input.validity.valid")
    await shown["#send-source"].evaluate("input => input.removeAttribute('required')")
    await shown["#add-pair"].click()
    await shown.page.get_by_role("textbox", name="Value").fill("a value without a key")
    await shown["#send .primary"].click()
    await shown.says("#error-metadata", "key")
    await shown.page.get_by_role("textbox", name="Key").fill("key")
    await shown["#send .primary"].click()
    await shown.says("#error-source", "must not be empty")
    assert await shown["#error-metadata"].is_hidden()
    await shown["#send-source"].fill("a")
    await shown["#send .primary"].click()
    await shown["#answer .stored"].wait_for()
    assert await shown["#error-source"].is_hidden()
    shown.errors.clear()  # the browser's own line for an answer of 422


async def test_a_server_that_is_gone_is_told_below_the_form(
    service: Service, browser: Browser
) -> None:
    async with window(browser, service.url, quiet=False) as shown:
        await shown.state("connected")
        await shown.page.route("**/ui/send", lambda route: route.abort())
        await shown["#send .primary"].click()
        await shown["#answer >> text=cannot be reached"].wait_for()


async def test_the_panel_folds_away_and_stays_so(service: Service, shown: Window) -> None:
    width = "live => live.offsetWidth"
    narrow = await shown["#live"].evaluate(width)
    await shown["#fold"].click()
    assert await shown["#sender"].is_hidden()
    assert await shown["#live"].evaluate(width) > narrow
    assert await shown["#fold"].get_attribute("aria-expanded") == "false"
    await shown.page.reload()
    assert await shown["#sender"].is_hidden()
    await shown["#fold"].click()
    assert await shown["#sender"].is_visible()


async def test_the_sources_that_were_seen_are_offered(service: Service, shown: Window) -> None:
    await service.post([{"source": source, "message": "m"} for source in ("b", "a", "b")])

    async def offered() -> list[str]:
        found: list[str] = await shown["#sources option"].evaluate_all(
            "all => all.map(each => each.value)"
        )
        return found

    async def both() -> bool:
        return sorted(await offered()) == ["a", "b"]

    await wait_until(both, "both sources are offered")
