"""What the page asks the server to search: one at a time, no longer than it is needed."""

import pytest
from playwright.async_api import Browser, Page, Route

from tests.helpers import wait_until
from tests.page.window import BROWSER, HIDE, Window, send, window
from tests.servers import Service

pytestmark = BROWSER

BUSY = {
    "status": 503,
    "headers": {"Retry-After": "1"},
    "content_type": "application/problem+json",
    "body": "{}",
}


class Held:
    """Requests that match and are not answered, and which of them the page has given up."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.asked: list[str] = []
        self.left: list[str] = []

    async def prepare(self, page: Page) -> None:
        async def hold(route: Route) -> None:
            self.asked.append(route.request.url)

        await page.route(self._pattern, hold)
        page.on("requestfailed", lambda request: self.left.append(request.url))

    @property
    def pending(self) -> int:
        return len(self.asked) - len(set(self.asked) & set(self.left))


async def filter_by(shown: Window, text: str) -> None:
    await shown["#q"].fill(text)
    await shown["#q"].press("Enter")


@pytest.mark.parametrize("what", ["volume", "rows"])
async def test_another_filter_ends_the_search_before(
    service: Service, browser: Browser, what: str
) -> None:
    await send(service, 0, 3)
    held = Held(f"**/ui/{what}?*")
    async with window(browser, service.url, prepare=held.prepare) as shown:
        await wait_until(lambda: len(held.asked) == 1, "the first search", 20)
        for number in range(2, 5):
            await filter_by(shown, f"word{number}")
            await wait_until(lambda: len(held.asked) == number, "the next search", 20)  # noqa: B023
            await wait_until(lambda: held.pending == 1, "the one before has ended", 20)


@pytest.mark.parametrize("what", ["volume", "rows"])
async def test_a_busy_server_is_asked_again_when_it_says(
    service: Service, browser: Browser, what: str
) -> None:
    await send(service, 0, 3)
    free = False

    async def busy(route: Route) -> None:
        await (route.continue_() if free else route.fulfill(**BUSY))  # type: ignore[arg-type]

    async with window(
        browser,
        service.url,
        prepare=lambda page: page.route(f"**/ui/{what}?*", busy),
        quiet=False,  # chromium writes each 503 to the console
    ) as shown:
        word = "the volume" if what == "volume" else "older events"
        await shown.says("#busy", f"The server is busy or cannot reach Redis. Asking for {word}")
        await shown.state("connected")
        free = True
        await shown["#busy"].wait_for(state="hidden")
        await shown.has("#rows > .row", 3)
        await shown["#volume .info"].first.wait_for()


async def test_a_rare_match_is_searched_for_page_by_page(
    service: Service, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.fanout.history.PAGE_SCAN", 100)
    await service.post([{"source": "t", "message": "needle"}])
    await send(service, 0, 1_000)
    async with window(browser, f"{service.url}/?q=needle") as shown:
        await shown.shows(["needle"])
        assert len([url for url in shown.requests if "/ui/rows" in url]) > 10
    searching = "Searching older events: none found since "
    async with window(browser, service.url, prepare=_second_is_held) as shown:
        await filter_by(shown, "needle")
        await shown.says("#rows > .edge", searching)


async def _second_is_held(page: Page) -> None:
    """The first page of rows of a filter is answered, and no other."""
    asked = 0

    async def hold(route: Route) -> None:
        nonlocal asked
        asked += "q=needle" in route.request.url
        if asked < 2:
            await route.continue_()

    await page.route("**/ui/rows?*", hold)


async def test_a_rare_volume_says_how_far_was_counted(
    service: Service, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.ui.reading.VOLUME_SCAN", 100)
    await send(service, 0, 300)
    async with window(browser, f"{service.url}/?q=nothing") as shown:
        await shown.says("#volume-from", "counted from ")
        await shown.says("#volume-said", "none found")


async def test_a_hidden_tab_searches_no_further(service: Service, browser: Browser) -> None:
    await send(service, 0, 3)
    held = Held("**/ui/rows?*")
    async with window(browser, service.url, prepare=held.prepare) as shown:
        await wait_until(lambda: len(held.asked) == 1, "the search", 20)
        await shown.page.evaluate(HIDE, True)
        await wait_until(lambda: held.pending == 0, "it has ended", 20)
        await shown.page.evaluate(HIDE, False)
        await wait_until(lambda: len(held.asked) == 2, "it goes on", 20)
