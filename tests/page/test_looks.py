"""Every state in every look: nothing sticks out, axe finds nothing serious, and there is a picture
in tests/screenshots for a person to look at."""

from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.async_api import Browser

from tests.page.looks import LOOKS, STATES, arranged
from tests.page.window import BROWSER, SCREENSHOTS, Window
from tests.servers import Service, Valkey

pytestmark = BROWSER

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")

# What can be clicked and is seen, but not all of it in the window's width.
STICKS_OUT = """() => [...document.querySelectorAll("button, .button, a, input, select, summary")]
  .filter(e => e.checkVisibility() && !e.closest("#log"))
  .filter(e => { const box = e.getBoundingClientRect();
    const within = e.closest(".paused, .menu > div, .live, .sender, body").getBoundingClientRect();
    return box.left < within.left - 1 || box.right > Math.min(within.right, innerWidth) + 1; })
  .map(e => e.outerHTML.slice(0, 120))"""


async def _violations(shown: Window) -> list[str]:
    """What axe finds serious or critical: the rule, and the first elements that break it."""
    await shown.page.evaluate(AXE.read_text() + "; 0")  # by the debugger: no policy is loosened
    found: dict[str, Any] = await shown.page.evaluate(
        "() => axe.run({resultTypes: ['violations']})"
    )
    return [
        f"{each['id']}: {[node['html'][:160] for node in each['nodes'][:3]]}"
        f" {each['nodes'][0]['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("state", STATES)
async def test_every_state_fits_is_accessible_and_there_is_something_to_look_at(
    valkey: Valkey, service: Service, browser: Browser, state: str
) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    async with arranged(valkey, service, browser, state, LOOKS["light"]) as shown:
        for look, options in LOOKS.items():
            await shown.page.set_viewport_size(options["viewport"])
            await shown.page.emulate_media(color_scheme=options["color_scheme"])
            await shown.page.screenshot(path=SCREENSHOTS / f"{state}-{look}.png")
            over = await shown.page.evaluate(
                "() => document.documentElement.scrollWidth - innerWidth"
            )
            assert over <= 0, look
            if await shown["#log"].count():
                over = await shown["#log"].evaluate("log => log.scrollWidth - log.clientWidth")
                assert over <= 0, look
            assert await shown.page.evaluate(STICKS_OUT) == [], look
            assert await _violations(shown) == [], look
