"""The operator's page in a real browser."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from tests.helpers import wait_until
from tests.page.window import ARGUMENTS, CHROMIUM, SCREENSHOTS
from tests.servers import Service, Valkey, free_port, serving, subscribed

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # one loop, so that one browser serves all tests
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"NOT TESTED IN A BROWSER: no {CHROMIUM}"),
]

EVENT = {"source": "api-gateway", "message": "GET /v1/orders 200 in 12 ms"}
FILTER = 'level>=info source:api* -healthz "in 12 ms"'
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 360, "height": 760}},
    "wide": {"color_scheme": "dark", "viewport": {"width": 2560, "height": 1300}},
}

CONTRAST = """
() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll("main *")) {
    if (![...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim())) continue;
    if (node.closest("svg") || !node.checkVisibility()) continue;
    const two = [light(parts(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(...two) + .05) / (Math.min(...two) + .05);
    if (ratio < 4.5) bad.push(`${node.className} ${node.textContent.trim()}: ${ratio}`);
  }
  return bad;
}
"""
HIDE = """
(hidden) => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=list(ARGUMENTS)
        )
        yield browser
        await browser.close()


class Shown:
    """The page in a browser, its requests, and what its console said."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.console: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.console.append(message.text))
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    @property
    def refreshes(self) -> int:
        return sum(url.endswith("/ui/status") for url in self.requests)

    async def refreshed(self) -> None:
        async with self.page.expect_response("**/ui/status"):
            pass

    async def has(self, text: str) -> None:
        await self.page.get_by_text(text).first.wait_for(timeout=20_000)


@contextlib.asynccontextmanager
async def window(browser: Browser, service: Service, **options: Any) -> AsyncIterator[Shown]:
    context = await browser.new_context(**options)
    shown = Shown(await context.new_page())
    await shown.page.goto(f"{service.url}/status")
    try:
        yield shown
    finally:
        await context.close()


async def test_it_refreshes_by_itself_and_keeps_what_is_selected(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service) as shown:
        await shown.has("Nobody reads.")
        await shown.page.evaluate(
            "() => getSelection().selectAllChildren(document.querySelector('#now tbody th'))"
        )
        await service.post([EVENT] * 321)
        async with subscribed(service.url, q=FILTER) as reader:
            await reader.named("hello")
            await shown.has("321 accepted")
            await shown.has("level>=INFO")
        await shown.has("Nobody reads.")
        assert await shown.page.evaluate("() => String(getSelection())") == "this process"
        assert await shown.page.locator("#stale").is_hidden()
        assert shown.console == []


async def test_a_hidden_page_asks_for_nothing_and_is_fresh_at_once_when_shown(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service) as shown:
        await shown.page.clock.install()
        await shown.page.reload()
        await shown.page.clock.run_for(2_000)
        await wait_until(lambda: shown.refreshes > 0, "it was refreshed")
        await shown.page.evaluate(HIDE, True)
        before = shown.refreshes
        await shown.page.clock.run_for(60_000)
        assert shown.refreshes == before
        await shown.page.evaluate(HIDE, False)
        await wait_until(lambda: shown.refreshes > before, "it was refreshed")
        assert shown.console == []


async def test_a_page_whose_server_is_away_says_so_until_it_is_back(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url) as service, window(browser, service) as shown:
        stale = shown.page.locator("#stale")
        await shown.page.route("**/ui/status", lambda route: route.abort())
        await stale.wait_for(state="visible")
        await shown.page.unroute("**/ui/status")
        await stale.wait_for(state="hidden")
        await shown.page.route("**/ui/status", lambda route: route.fulfill(status=502, body="No."))
        await stale.wait_for(state="visible")
        await shown.has("Processes")


async def test_when_the_session_ends_it_goes_to_the_login(valkey: Valkey, browser: Browser) -> None:
    async with (
        serving(redis_addr=valkey.url, read_tokens="r") as service,
        window(browser, service) as shown,
    ):
        await shown.page.locator("#token").fill("r")
        await shown.page.get_by_role("button", name="Sign in").click()
        await shown.page.goto(f"{service.url}/status")
        await shown.has("All roles serve.")
        await shown.page.context.clear_cookies()
        await shown.page.locator("#token").wait_for()


@contextlib.asynccontextmanager
async def busy(service: Service) -> AsyncIterator[None]:
    """Events that go through, and readers of all kinds."""
    async with (
        subscribed(service.url) as reader,
        subscribed(service.url, q=FILTER),
        subscribed(service.url, delivery="shared", group="billing workers"),
    ):
        for _ in range(10):
            assert (await service.post([EVENT] * 200)).status_code == 202
            await reader.until(200)
        yield


@pytest.mark.parametrize("look", LOOKS)
async def test_nothing_overflows_and_all_can_be_read(
    valkey: Valkey, browser: Browser, look: str
) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)

    async def picture(shown: Shown, name: str) -> None:
        await shown.refreshed()
        path = SCREENSHOTS / f"{look}-status-{name}.png"
        await shown.page.screenshot(path=path, full_page=True)
        wide = await shown.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0
        assert await shown.page.evaluate(CONTRAST) == []
        assert shown.console == []

    nowhere = f"http://127.0.0.1:{free_port()}"
    async with serving(redis_addr=valkey.url) as service:
        async with window(browser, service, **LOOKS[look]) as shown:
            await picture(shown, "empty")
            async with busy(service):
                await picture(shown, "busy")
        async with (
            serving(role="ui", collector_url=nowhere, distributor_url=service.url) as page,
            window(browser, page, **LOOKS[look]) as shown,
        ):
            await shown.has("cannot be reached")
            await picture(shown, "away")
