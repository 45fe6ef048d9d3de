"""One browser for all tests of the page; a service and a page on it, for most of them."""

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.page.window import ARGUMENTS, CHROMIUM, Window, window
from tests.servers import Service, Valkey, serving


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Debian's chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=list(ARGUMENTS)
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def service(valkey: Valkey) -> AsyncIterator[Service]:
    """All roles in one process."""
    async with serving(redis_addr=valkey.url) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="session")
async def shown(service: Service, browser: Browser) -> AsyncIterator[Window]:
    """The page of the service, connected; nothing in its console at the end."""
    async with window(browser, service.url) as shown:
        await shown.state("connected")
        yield shown
