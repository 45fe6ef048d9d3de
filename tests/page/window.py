"""A page in a browser: what it shows, what it asks for, and what goes wrong in it."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Dialog, Locator, Page

from tests.helpers import wait_until
from tests.servers import Service

CHROMIUM = Path("/usr/bin/chromium")
SCREENSHOTS = Path(__file__).parent.parent / "screenshots"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A name that is not this machine's own: browsers trust plain HTTP less there.
    "--host-resolver-rules=MAP logs.test 127.0.0.1",
)
BROWSER = [
    pytest.mark.asyncio(loop_scope="session"),  # one loop, so that one browser serves all tests
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"NOT TESTED IN A BROWSER: no {CHROMIUM}"),
]
"""The marks of a module of browser tests."""

HIDE = (
    "value => { Object.defineProperty(document, 'hidden', {value, configurable: true});"
    " document.dispatchEvent(new Event('visibilitychange')); }"
)
"""What a browser does when a tab goes to the background; a headless one has no background."""


class Window:
    """One page; its console, its dialogs and its requests are kept."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        self.requests: list[str] = []
        page.on(
            "console",
            lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", self._on_dialog)

    async def _on_dialog(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        await dialog.dismiss()

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def streams(self) -> list[str]:
        """The requests for the live stream so far."""
        return [url for url in self.requests if "/ui/stream" in url]

    async def messages(self) -> list[str]:
        """The messages of the rows, oldest first."""
        found: list[str] = await self.page.eval_on_selector_all(
            "#rows > .row > .message", "all => all.map(each => each.textContent)"
        )
        return found

    async def state(self, wanted: str) -> None:
        """Waits for a state of the connection."""
        await self[f'#live[data-state="{wanted}"]'].wait_for(timeout=20_000)

    async def mode(self, wanted: str) -> None:
        """Waits until the rows are `live`, `paused` or those of a `span`."""
        await self[f'#live[data-mode="{wanted}"]'].wait_for()

    async def shows(self, messages: list[str], timeout: float = 20) -> None:
        """Waits until the rows are these and no others."""
        wanted = [len(messages), messages[-1] if messages else None]
        ends = (
            "() => { const all = document.querySelectorAll('#rows > .row > .message');"
            " return [all.length, all[all.length - 1]?.textContent ?? null]; }"
        )

        async def are() -> bool:
            return await self.page.evaluate(ends) == wanted and await self.messages() == messages

        with contextlib.suppress(AssertionError):
            await wait_until(are, "the rows", timeout)
        assert await self.messages() == messages

    async def has(self, selector: str, number: int, timeout: float = 20) -> None:
        """Waits until so many elements are there."""

        async def there() -> bool:
            return await self[selector].count() == number

        with contextlib.suppress(AssertionError):
            await wait_until(there, selector, timeout)
        assert await self[selector].count() == number

    async def says(self, selector: str, text: str, timeout: float = 20) -> None:
        """Waits until an element's text, as it is seen, holds this one."""
        with contextlib.suppress(AssertionError):
            await wait_until(lambda: self._says(selector, text), selector, timeout)
        assert text in "".join(await self[selector].all_inner_texts())

    async def _says(self, selector: str, text: str) -> bool:
        return text in "".join(await self[selector].all_inner_texts())

    async def below(self) -> float:
        """How many pixels of rows are below the ones in view."""
        found: float = await self["#log"].evaluate(
            "log => log.scrollHeight - log.scrollTop - log.clientHeight"
        )
        return found

    async def scroll_up(self, to: int = 600) -> None:
        """Scrolls the rows up, as a wheel does."""
        await self["#log"].evaluate("(log, to) => { log.scrollTop = to; }", to)

    async def at_end(self) -> None:
        """Waits until the newest rows are in view."""

        async def there() -> bool:
            return await self.below() < 2

        await wait_until(there, "the newest rows are in view")

    async def open_details(self, row: int = 0) -> Locator:
        """Clicks a row; returns its details when they have come."""
        await self["#rows > .row"].nth(row).locator(".level").click()
        await self["#rows > .details .tree"].first.wait_for()
        return self["#rows > .details"].first


@contextlib.asynccontextmanager
async def window(
    browser: Browser,
    url: str,
    *,
    prepare: Callable[[Page], Awaitable[object]] | None = None,
    quiet: bool = True,
    **options: Any,
) -> AsyncIterator[Window]:
    """A page in a browser context of its own; a `quiet` one has nothing in its console at the end,
    neither errors nor warnings."""
    context: BrowserContext = await browser.new_context(**options)
    try:
        page = await context.new_page()
        opened = Window(page)
        if prepare is not None:
            await prepare(page)
        await page.goto(url)
        yield opened
        if quiet:
            assert opened.errors == []
    finally:
        await context.close()


async def send(service: Service, first: int, last: int, **event: Any) -> list[str]:
    """Sends numbered events; returns their messages."""
    texts = [str(number) for number in range(first, last)]
    events = [{"source": "t", "message": text, **event} for text in texts]
    assert (await service.post(events)).status_code == 202
    return texts


async def subscribers(service: Service) -> int:
    """How many streams a service has open."""
    metrics = (await service.http.get("/metrics")).text
    lines = metrics.splitlines()
    (line,) = [each for each in lines if "logpipe_subscribers{" in each and "broadcast" in each]
    return int(float(line.rpartition(" ")[2]))


async def has_subscribers(service: Service, number: int) -> None:
    """Waits until a service has so many streams open."""

    async def has() -> bool:
        return await subscribers(service) == number

    await wait_until(has, f"{number} streams", 20)
