"""For everyone: axe finds nothing serious, in every look and state of the page."""

from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.async_api import Browser

from tests.page.looks import LOOKS, STATES, arranged
from tests.page.window import BROWSER, Window, window
from tests.servers import Service, Valkey

pytestmark = BROWSER

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")


async def violations(shown: Window) -> list[str]:
    """What axe finds serious or critical: the rule, and the first elements that break it."""
    await shown.page.evaluate(AXE.read_text() + "; 0")  # by the debugger: no policy is loosened
    found: dict[str, Any] = await shown.page.evaluate(
        "() => axe.run({resultTypes: ['violations']})"
    )
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:160] for node in each['nodes'][:3]]}"
        f" {each['nodes'][0]['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("state", STATES)
async def test_axe_finds_nothing_serious(
    valkey: Valkey, service: Service, browser: Browser, state: str
) -> None:
    async with arranged(valkey, service, browser, state, LOOKS["light"]) as shown:
        found = {}
        for look, options in LOOKS.items():
            await shown.page.set_viewport_size(options["viewport"])
            await shown.page.emulate_media(color_scheme=options["color_scheme"])
            found[look] = await violations(shown)
        assert {look: each for look, each in found.items() if each} == {}


async def test_who_wants_no_motion_sees_none(service: Service, browser: Browser) -> None:
    moves = "() => document.getAnimations().length"
    for preference, number in (("no-preference", 1), ("reduce", 0)):
        async with window(browser, service.url, reduced_motion=preference) as shown:
            await shown.state("connected")
            await shown.page.clock.install()
            await shown["#log"].press("Space")
            await shown.mode("paused")
            rule = await shown["#paused"].evaluate("e => getComputedStyle(e).animationName")
            assert (rule != "none") == bool(number)
            assert number or not await shown.page.evaluate(moves)
