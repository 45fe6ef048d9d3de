"""Pictures of every state in every look, in tests/screenshots, for a person to look at."""

from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.page.looks import LOOKS, STATES, arranged
from tests.page.window import BROWSER
from tests.servers import Service, Valkey

pytestmark = BROWSER

SCREENSHOTS = Path(__file__).parent.parent / "screenshots"


@pytest.mark.parametrize("state", STATES)
async def test_nothing_overflows_and_there_is_something_to_look_at(
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
            if state not in ("login", "help"):
                over = await shown["#log"].evaluate("log => log.scrollWidth - log.clientWidth")
                assert over <= 0, look
