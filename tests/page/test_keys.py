"""The keyboard."""

import pytest
from playwright.async_api import Browser

from tests.page.window import BROWSER, Window, send, window
from tests.servers import Service

pytestmark = BROWSER


async def _current(shown: Window) -> str:
    return await shown["#rows > .current .message"].inner_text()


async def test_slash_goes_to_the_filter_and_its_letters_are_only_letters(shown: Window) -> None:
    await shown.page.keyboard.press("/")
    await shown.page.keyboard.type("teck? ")
    assert await shown["#q"].input_value() == "teck? "
    assert await shown["#help"].is_hidden()
    await shown.page.keyboard.press("Escape")
    await shown.page.keyboard.press("?")
    assert await shown["#help"].is_visible()


async def test_j_and_k_walk_the_rows_and_enter_opens_one(service: Service, shown: Window) -> None:
    await shown.shows(await send(service, 0, 10))
    await shown.page.keyboard.press("j")
    assert await _current(shown) == "9"
    await shown.page.keyboard.press("k")
    await shown.page.keyboard.press("k")
    assert await _current(shown) == "7"
    await shown.mode("paused")
    await shown.page.keyboard.press("j")
    assert await _current(shown) == "8"
    await shown.page.keyboard.press("Enter")
    await shown["#rows > .details .tree"].wait_for()
    await shown.page.keyboard.press("Enter")
    await shown.has("#rows > .details", 0)


async def test_e_and_shift_e_walk_the_errors(service: Service, shown: Window) -> None:
    for first, level in ((0, "INFO"), (20, "ERROR"), (21, "INFO"), (60, "FATAL"), (61, "INFO")):
        await send(service, first, first + (1 if level != "INFO" else 20), level=level)
    await shown.has("#rows > .row", 62)
    await shown.page.keyboard.press("e")
    assert await _current(shown) == "60"
    await shown.page.keyboard.press("Shift+E")
    assert await _current(shown) == "20"
    await shown.page.keyboard.press("e")
    assert await _current(shown) == "60"
    assert await shown["#rows > .current"].evaluate("row => row === document.activeElement")


async def test_c_clears_the_rows_and_new_ones_come(service: Service, shown: Window) -> None:
    await shown.shows(await send(service, 0, 10))
    await shown.page.keyboard.press("c")
    await shown.shows([])
    await shown.shows(await send(service, 10, 12))


async def test_t_changes_the_theme_and_it_stays(shown: Window) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    light = await shown.page.evaluate(ground)
    await shown.page.keyboard.press("t")
    dark = await shown.page.evaluate(ground)
    assert dark != light
    await shown.page.reload()
    assert await shown.page.evaluate(ground) == dark
    await shown.page.keyboard.press("t")
    assert await shown.page.evaluate(ground) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_without_a_choice_the_theme_is_the_systems(
    service: Service, browser: Browser, scheme: str
) -> None:
    async with window(browser, service.url, color_scheme=scheme) as shown:
        ground = await shown.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) > 384) == (scheme == "light")
