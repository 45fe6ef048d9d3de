"""For everyone: without a mouse, without motion, on any screen."""

from playwright.async_api import Browser

from tests.page.window import BROWSER, Window, send, window
from tests.servers import Service

pytestmark = BROWSER


async def test_all_controls_are_reached_by_tab_and_say_where_the_focus_is(shown: Window) -> None:
    focused = (
        "() => { const e = document.activeElement, s = getComputedStyle(e);"
        " const name = e == document.body ? '' : e.id || e.textContent.trim() || e.name;"
        " return [name, s.outlineStyle, s.outlineWidth]; }"
    )
    reached: list[str] = []
    for _ in range(45):
        await shown.page.keyboard.press("Tab")
        name, style, width = await shown.page.evaluate(focused)
        if name == "":  # the document: all have been reached
            break
        reached.append(name)
        assert style != "none", name
        assert width != "0px", name
    for name in ("fold", "theme", "help-open", "send-source", "steady", "disconnect", "q", "log"):
        assert name in reached


async def test_who_wants_no_motion_sees_none(service: Service, browser: Browser) -> None:
    for preference, moves in (("no-preference", True), ("reduce", False)):
        async with window(browser, service.url, reduced_motion=preference) as shown:
            await shown.state("connected")
            await shown.page.keyboard.press("Space")
            await shown.mode("paused")
            name = await shown["#paused"].evaluate("e => getComputedStyle(e).animationName")
            assert (name != "none") == moves


async def test_a_window_of_another_size_stays_at_the_newest_rows(
    service: Service, shown: Window
) -> None:
    await shown.shows(await send(service, 0, 100))
    await shown.at_end()
    for width in (360, 1360, 700):
        await shown.page.set_viewport_size({"width": width, "height": 780})
        await shown.at_end()
        await shown.mode("live")


async def test_labels_name_all_fields(shown: Window) -> None:
    nameless = await shown["input, select, textarea, button, summary"].evaluate_all(
        "all => all.filter(e => e.type != 'hidden' && !e.labels?.length && !e.ariaLabel"
        " && !e.textContent.trim()).map(e => e.outerHTML)"
    )
    assert nameless == []
