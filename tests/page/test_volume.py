"""The volume above the rows, and what a drag on it shows."""

from typing import Any

from playwright.async_api import Browser

from tests.helpers import wait_until
from tests.page.window import BROWSER, Window, send, window
from tests.servers import Service, Valkey

pytestmark = BROWSER

MINUTE_MS = 60_000


def _at(valkey: Valkey, ms: int, number: int, level: str = "INFO") -> None:
    """Some entries of a time that is over, as another writer may add them."""
    for n in range(number):
        event = f'{{"source":"old","level":"{level}","message":"{level} {n}"}}'
        valkey.client.xadd("logs", {"event": event}, id=f"{ms}-{n}")


async def _now(valkey: Valkey) -> int:
    seconds, micros = valkey.client.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def _bars(shown: Window) -> dict[str, float]:
    """The heights of all bars together, by level."""
    found: dict[str, Any] = await shown["#volume"].evaluate(
        "svg => { const sum = {}; for (const r of svg.querySelectorAll('rect:not(.chosen)'))"
        " sum[r.classList[0]] = (sum[r.classList[0]] ?? 0) + r.height.baseVal.value;"
        " return sum; }"
    )
    return found


async def test_events_are_drawn_by_time_and_level_and_new_ones_are_added(
    valkey: Valkey, service: Service, browser: Browser
) -> None:
    now = await _now(valkey)
    _at(valkey, now - 20 * MINUTE_MS, 30)
    _at(valkey, now - 10 * MINUTE_MS, 10, "ERROR")
    async with window(browser, service.url) as shown:
        await shown.has("#rows > .row", 40)

        async def drawn() -> bool:
            return set(await _bars(shown)) == {"info", "error"}

        await wait_until(drawn, "the volume of what is kept")
        bars = await _bars(shown)
        assert abs(bars["info"] / bars["error"] - 3) < 0.1
        await send(service, 0, 40, level="FATAL")

        async def more() -> bool:
            return (await _bars(shown)).get("fatal", 0) > 90

        await wait_until(more, "what has come")
        await shown.says("#volume-said", "at most 40 in ")


async def test_a_page_that_is_open_for_days_draws_all_and_keeps_no_more_than_it_draws(
    shown: Window,
) -> None:
    seconds = 200_000
    kept, drawn = await shown.page.evaluate(
        "seconds => { const now = Date.now(); const begin = now - (now % 1000) - seconds * 1000;"
        " const counts = [0, 0, 1, 0, 0, 0, 0];"
        " for (let n = 0; n < seconds; n++) volume.add([[begin + n * 1000, counts]]);"
        " volume.draw();"
        " return [volume.counts.size, volume.bars().flat().reduce((sum, n) => sum + n)]; }",
        seconds,
    )
    assert kept <= 600
    assert drawn == seconds


async def test_a_drag_shows_that_time_and_back_to_live_ends_it(
    valkey: Valkey, service: Service, browser: Browser
) -> None:
    now = await _now(valkey)
    _at(valkey, now - 30 * MINUTE_MS, 5, "WARN")
    _at(valkey, now - 15 * MINUTE_MS, 4, "ERROR")
    texts = await send(service, 0, 3)
    async with window(browser, service.url) as shown:
        await shown.has("#rows > .row", 12)
        await shown["#volume .error"].wait_for()
        bar = await shown["#volume .error"].bounding_box()
        assert bar is not None
        y = bar["y"] + bar["height"] / 2
        await shown.page.mouse.move(bar["x"] - 30, y)
        await shown.page.mouse.down()
        await shown.page.mouse.move(bar["x"] + 30, y, steps=4)
        assert float(await shown["#volume .chosen"].get_attribute("width") or 0) > 1
        await shown.page.mouse.up()
        await shown.mode("span")
        await shown.shows([f"ERROR {n}" for n in range(4)])
        assert "since=" in shown.page.url
        assert "to=" in shown.page.url
        await shown.says("#place-said", "Showing ")
        await send(service, 3, 5)
        await shown.page.reload()
        await shown.shows([f"ERROR {n}" for n in range(4)])
        await shown["#back-to-live"].click()
        await shown.mode("live")
        await shown.has("#rows > .row", 14)
        await shown.page.go_back()
        await shown.shows([f"ERROR {n}" for n in range(4)])
        await shown.page.go_forward()
        await shown.state("connected")
        more = [*texts, *await send(service, 5, 6)]
        assert more

        async def newest() -> bool:
            return (await shown.messages())[-1:] == ["5"]

        await wait_until(newest, "live again")


async def test_a_bar_says_what_it_stands_for(service: Service, shown: Window) -> None:
    await send(service, 0, 7, level="ERROR")
    await shown["#volume .error"].first.wait_for()
    await shown["#volume .error"].first.hover()
    await shown.says("#volume-said", "7 error")
