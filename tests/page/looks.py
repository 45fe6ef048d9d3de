"""The page as it looks: its looks, its states, and how each state comes about."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from playwright.async_api import Browser

from tests.page.window import Window, window
from tests.servers import Service, Valkey, serving

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 820}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 820}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 360, "height": 780}},
    "wide": {"color_scheme": "dark", "viewport": {"width": 2560, "height": 1300}},
}
STATES = ("empty", "busy", "paused", "details", "error", "span", "help", "menus", "login")

MINUTE_MS = 60_000
_TRACE = (
    "connection reset by peer\nTraceback (most recent call last):\n"
    '  File "pay.py", line 12, in charge\n    raise ConnectionResetError'
)
_KINDS: tuple[dict[str, Any], ...] = (
    {
        "source": "api-gateway",
        "message": "GET /v1/orders 200 in 12 ms",
        "metadata": {"status": 200, "region": "us-east-1"},
    },
    {"source": "api-gateway", "level": "DEBUG", "message": "cache hit for key orders:8841"},
    {"source": "auth", "message": "\x1b[32m✓\x1b[0m token refreshed for \x1b[1mann\x1b[0m"},
    {
        "source": "api-gateway",
        "message": "POST /v1/payments 201 in 48 ms",
        "metadata": {"status": 201, "region": "eu-west-1", "trace": "7f3a9c"},
    },
    {
        "source": "worker-3",
        "level": "WARN",
        "message": "retrying payment 8841, attempt 2 of 5",
        "metadata": {"order": 8841},
    },
    {"source": "scheduler", "message": "nightly reconciliation queued: 1,204 accounts"},
    {
        "source": "worker-3",
        "level": "ERROR",
        "message": _TRACE,
        "metadata": {"order": 8841, "region": "us-east-1", "user": {"id": 7, "plan": "pro"}},
    },
    {"source": "api-gateway", "message": "GET /healthz 200 in 0 ms"},
    {"source": "tracer", "level": "TRACE", "message": "span 7f3a closed after 61 ms"},
    {
        "source": "billing.reconciliation.nightly",
        "level": "AUDIT",
        "message": "ledger balanced <b>exactly</b> \u202egnp.exe\u202c",
    },
    {"source": "kernel", "level": "FATAL", "message": "out of memory: killed process 4121"},
    {
        "source": "search",
        "message": "indexed 320 documents in 1.4 s",
        "metadata": {"shard": 3, "took_ms": 1412},
    },
)


def history(valkey: Valkey, minutes: int = 45) -> None:
    """A past: some events of each of the last minutes, as other writers leave them."""
    seconds, _ = valkey.client.time()
    pipe = valkey.client.pipeline()
    for minute in range(minutes, 0, -1):
        at = int(seconds) * 1000 - minute * MINUTE_MS
        for n in range(3 + minute * 7 % 11 + (12 if minute in (14, 15, 31) else 0)):
            kind = _KINDS[(minute * 5 + n) % (len(_KINDS) if minute % 7 == 0 else 9)]
            if minute == 14 and n % 2:
                kind = _KINDS[6]
            event = json.dumps({"level": "INFO", **kind})
            pipe.xadd("logs", {"event": event}, id=f"{at + n * 900}-{n}")
    pipe.execute()


def _just_now(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events, as of the last seconds."""
    now = time.time_ns() // 1_000_000
    return [
        {**event, "ts_unix_ms": now - (len(events) - n) * 411 - n * n % 97}
        for n, event in enumerate(events)
    ]


async def _empty(shown: Window, service: Service) -> None:
    await shown.state("connected")


async def _busy(shown: Window, service: Service) -> None:
    await shown.state("connected")
    await shown["#rows > .row"].first.wait_for()
    await service.post(_just_now(list(_KINDS) * 4))
    await shown["#send-message"].fill("hello <b>world</b>")
    await shown["#send .primary"].click()
    await shown["#answer .stored"].wait_for()
    await shown.says("#rows > .row:last-child .message", "hello")


async def _paused(shown: Window, service: Service) -> None:
    await _busy(shown, service)
    await shown.page.keyboard.press("Escape")
    await shown.scroll_up(900)
    await shown.mode("paused")
    for _ in range(2):
        await service.post(list(_KINDS) * 8)
    await shown.says("#waiting", "192 new")


async def _details(shown: Window, service: Service) -> None:
    await _busy(shown, service)
    row = shown["#rows > .row.error"].last
    await row.locator(".level").click()
    await shown["#rows > .details .tree"].wait_for()


async def _error(shown: Window, service: Service) -> None:
    await shown["#filter-said .error"].wait_for()
    await shown["#send-source"].evaluate("input => input.removeAttribute('required')")
    await shown["#send-source"].fill("")
    await shown["#send .primary"].click()
    await shown.says("#error-source", "empty")


async def _span(shown: Window, service: Service) -> None:
    await shown.mode("span")
    await shown["#rows > .row"].first.wait_for()
    await shown["#rows mark"].first.wait_for()


async def _help(shown: Window, service: Service) -> None:
    await _busy(shown, service)
    await shown["#help-open"].click()
    await shown["#help"].wait_for()


async def _menus(shown: Window, service: Service) -> None:
    await shown.state("connected")
    await shown["#add-pair"].click()
    await shown["#saved summary"].click()
    await shown["#save"].click()
    await shown["#saved-list a"].wait_for()
    await shown["#rows > .row"].first.wait_for()


async def _login(shown: Window, service: Service) -> None:
    await shown["#token"].fill("x")
    await shown["text=Sign in"].click()
    await shown["text=not known here"].wait_for()


_ARRANGED: dict[str, Callable[[Window, Service], Any]] = {
    "empty": _empty,
    "busy": _busy,
    "paused": _paused,
    "details": _details,
    "error": _error,
    "span": _span,
    "help": _help,
    "menus": _menus,
    "login": _login,
}
assert tuple(_ARRANGED) == STATES


@contextlib.asynccontextmanager
async def arranged(
    valkey: Valkey, service: Service, browser: Browser, state: str, look: dict[str, Any]
) -> AsyncIterator[Window]:
    """The page in a state and a look."""
    async with contextlib.AsyncExitStack() as stack:
        if state != "empty":
            history(valkey)
        if state == "login":
            guarded = serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w")
            service = await stack.enter_async_context(guarded)
        seconds, _ = valkey.client.time()
        since = int(seconds) * 1000 - 16 * MINUTE_MS
        query = {
            "error": "?q=level>%3Dwarn+status>%3Dlots",
            "span": f"?q=reset+OR+orders&since={since}&to={since + 5 * MINUTE_MS}",
            "menus": "?q=timeout+OR+orders&level=INFO,ERROR&cols=status,region",
        }
        url = f"{service.url}/{query.get(state, '')}"
        opened = window(browser, url, quiet=state not in ("login", "error"), **look)
        shown = await stack.enter_async_context(opened)
        await _ARRANGED[state](shown, service)
        yield shown
